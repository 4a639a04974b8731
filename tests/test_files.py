"""What the README promises of the files: each says what it needs and works with only that, the notebooks run, the snippet prints what it says."""
import ast
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import ROOT

import data
import losses
import probe

MODULES = {os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "*.py"))}
TRY = {
    "groups": "from groups import Rotation; import torch; g = torch.tensor([1]); x = torch.rand(1, 1, 5, 5)\n"
              "assert torch.equal(Rotation().T(Rotation().T(x, g), Rotation().inverse(g)), x)",
    "gconv": "from gconv import GConv; import torch\nassert GConv(1, 2, 7, rotations=4)(torch.rand(2, 1, 9, 9)).shape == (2, 2, 4, 3, 3)",
    "data": "import data\nassert data.load('mnist5k').test_x.shape == (1000, 1, 29, 29)",
    "checkpoint": "import checkpoint, torch\nstate = dict(step=0, steps=1, model={'w': torch.ones(3)})\ncheckpoint.save('.', state, None)\n"
                  "assert checkpoint.load('.', state)[0]['step'] == 0",
    "losses": "from losses import info_nce; import torch\nassert info_nce(torch.eye(3), torch.eye(3)) < 0",
    "backbones": "from backbones import MNISTNet; import torch\nassert MNISTNet(rotations=4)(torch.rand(1, 1, 29, 29)).shape == (1, 128, 4, 8, 8)",
}


def named(name):
    """The siblings that a module's docstring says it needs: a set of names."""
    return set(re.findall(r"(\w+)\.py", re.search("Needs.*", open(os.path.join(ROOT, f"{name}.py")).read()).group()))


@pytest.mark.parametrize("name", sorted(MODULES - {"train", "homomorphism"}))  # these say "all other modules"
def test_a_file_says_which_siblings_it_needs(name):
    tree = ast.parse(open(os.path.join(ROOT, f"{name}.py")).read())
    used = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names} | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert used & MODULES == named(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRY)
def test_a_file_copied_out_works_with_only_the_siblings_it_names(tmp_path, name):
    for file in (name, *named(name)):
        shutil.copy(os.path.join(ROOT, f"{file}.py"), tmp_path)
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


def test_the_lines_that_load_the_weights_give_features_of_the_network():
    block = re.search(r"```python\n(.*?)```", open(os.path.join(ROOT, "notebooks/weights/README.md")).read(), re.S).group(1)
    code = "\n".join(block.replace("rot-hssl", name) + f"\nassert z.shape == (2, {order}, 128)"  # the file's name is all that changes
                     for name, order in (("rot-hssl", 4), ("scale-hssl", 6)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_links_and_anchors_lead_somewhere(page):
    text = open(os.path.join(ROOT, page)).read()
    slug = lambda line: re.sub(r"[^\w -]", "", line.strip().lstrip("# ")).lower().replace(" ", "-")  # as the usual hosts make them
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = os.path.join(ROOT, os.path.dirname(page), path) if path else os.path.join(ROOT, page)
            assert os.path.exists(target), link
            assert not anchor or anchor in {slug(line) for line in open(target) if line.startswith("#")}, link


def test_tests_that_the_readme_names_are_there():
    code = "".join(open(path).read() for path in glob.glob(os.path.join(ROOT, "tests", "test_*.py")))
    named = re.findall(r"`(test_\w+)`", open(os.path.join(ROOT, "README.md")).read())
    assert named and all(f"def {name}(" in code for name in named)


def test_files_stay_short():
    lines = lambda path: len(open(os.path.join(ROOT, path)).read().splitlines())
    assert lines("README.md") <= 150
    for path in glob.glob(os.path.join(ROOT, "*.py")):
        assert lines(path) <= 365, path


NOTEBOOKS = sorted(glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_notebook_is_small_and_has_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert os.path.getsize(path) < 600_000
    assert any(cell.get("outputs") for cell in notebook.cells), "committed with its outputs"
    longest = max(len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code")
    assert longest <= 20, "no code cell over 20 lines"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_notebook_runs(request, path):
    """From start to end, in the background, see conftest.py.  Every claim in it is an assert."""
    done = request.config.notebooks[path].result()
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(ROOT, "notebooks", "weights", "*.pt"))), ids=os.path.basename)
def test_the_weights_give_the_numbers_beside_them(path, monkeypatch):
    """The distances, to 1e-3.  For one file also knn, fiber and moved, within one standard error of 1,000 digits, since half
    precision differs between machines."""
    images, stated = data.load("mnist5k"), json.load(open(path + ".json"))
    f, _, classifier, draws = probe.network(stated, images)
    f.load_state_dict(torch.load(path, weights_only=True))
    monkeypatch.setattr(probe, "linear_accuracy", lambda *args, **more: 0.0)
    if path.endswith("rot-hssl.pt"):
        found = probe.evaluate(f, classifier, draws, images, torch.device("cpu"))
        assert all(abs(found[name] - stated[name]) <= (stated[name] * (100 - stated[name]) / 1000) ** 0.5 for name in ("knn", "fiber", "moved"))
    else:  # the last g
        found = losses.distances(f.eval(), images.test_x.float() / 255, draws.studied, draws.all[-1:], torch.tensor([0]))
    for name in ("invariance", "equation1", "axis"):
        assert torch.allclose(torch.tensor(found[name]), torch.tensor(stated[name][-len(found[name]):]), atol=1e-3)
