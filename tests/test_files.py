"""What the README promises of the files: each works alone, the notebooks run, the snippet prints what it says."""
import glob
import os
import re
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest
from conftest import ROOT

SIBLINGS = {"groups.py": [], "gconv.py": [], "data.py": [], "losses.py": ["groups.py"], "backbones.py": ["gconv.py", "groups.py"]}
TRY = {
    "groups.py": "from groups import Rotation; import torch; g = torch.tensor([1]); x = torch.rand(1, 1, 5, 5)\n"
                 "assert torch.equal(Rotation().T(Rotation().T(x, g), Rotation().inverse(g)), x)",
    "gconv.py": "from gconv import GConv; import torch\nassert GConv(1, 2, 7, rotations=4)(torch.rand(2, 1, 9, 9)).shape == (2, 2, 4, 3, 3)",
    "data.py": "import data\nassert data.load('mnist5k').test_x.shape == (1000, 1, 29, 29)",
    "losses.py": "from losses import info_nce; import torch\nassert info_nce(torch.eye(3), torch.eye(3)) < 0",
    "backbones.py": "from backbones import MNISTNet; import torch\nassert MNISTNet(rotations=4)(torch.rand(1, 1, 29, 29)).shape == (1, 128, 4, 8, 8)",
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_file_copied_out_works_with_only_the_siblings_it_names(tmp_path, name):
    docstring = open(os.path.join(ROOT, name)).read().split('"""')[1]
    for sibling in SIBLINGS:
        if sibling != name and sibling != "data.py":
            named = re.search(r"Needs.*?(\.\s|$)", docstring, re.S).group()
            assert (sibling in SIBLINGS[name]) == (sibling in named), f"{name} should say whether it needs {sibling}"
    for file in [name, *SIBLINGS[name]]:
        shutil.copy(os.path.join(ROOT, file), tmp_path)
    done = subprocess.run([sys.executable, "-c", TRY[name]], cwd=tmp_path, text=True, capture_output=True,
                          env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert done.returncode == 0, done.stderr


def test_readme_snippet_prints_what_it_says(tmp_path):
    """The first python block of the README, run as it stands: every `# prints` comment is what it prints."""
    block = re.search(r"```python\n(.*?)```", open(os.path.join(ROOT, "README.md")).read(), re.S).group(1)
    expected = re.findall(r"# prints (.*)", block)
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert expected and done.stdout.strip().split("\n") == [e.strip() for e in expected]


def test_readme_names_no_file_that_is_not_there():
    text = open(os.path.join(ROOT, "README.md")).read()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert os.path.exists(os.path.join(ROOT, link)), link


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb"))), ids=os.path.basename)
def test_notebook_runs(path):
    """From start to end in a fresh kernel; every claim in it is an assert.  Small enough to read on the web."""
    assert os.path.getsize(path) < 600_000
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells), "committed with its outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": os.path.dirname(path)}}).execute()
