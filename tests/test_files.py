"""What is promised of the files: their layout, what each needs, and that the notebooks run."""

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
import probe
import train

LIMIT = 139_500  # characters of the core files together
CORE = ("groups", "gconv", "backbones", "losses", "probe", "train", "data", "syncnorm")
MODULES = {os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "*.py"))}
NOTEBOOKS = sorted(glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb")))
SCRIPTS = []
for pattern in ("*.py", "results/*.py", "tests/*.py", "notebooks/*.py", "notebooks/answers/*.py"):
    SCRIPTS += sorted(glob.glob(os.path.join(ROOT, pattern)))
TRY = {
    "groups": "g = torch.tensor([1]); x = torch.rand(1, 1, 5, 5); r = groups.Rotation()\n"
    "assert torch.equal(r.T(r.T(x, g), r.inverse(g)), x)",
    "gconv": "conv = gconv.GConv(1, 2, 7, rotations=4)\n"
    "assert conv(torch.rand(2, 1, 9, 9)).shape == (2, 2, 4, 3, 3)",
    "data": "assert data.jitter(torch.rand(2, 1, 9, 9), torch.rand(2, 9)).shape == (2, 1, 9, 9)",
    "losses": "assert losses.info_nce(torch.eye(3), torch.eye(3)) < 0",
    "backbones": "f = backbones.MNISTNet(rotations=4, width=0.1)\n"
    "assert f(torch.rand(1, 1, 29, 29)).shape == (1, 13, 4, 8, 8)",
    "syncnorm": "net = syncnorm.synchronise(torch.nn.Sequential(torch.nn.BatchNorm1d(3)))\n"
    "assert type(net[0]) is syncnorm.SyncBatchNorm and net(torch.rand(2, 3)).shape == (2, 3)",
    "probe": "assert probe.share_found(torch.eye(3)) == 100",
}


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def run(code, folder=ROOT):
    """A program in a process of its own → what it prints."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=folder, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def short(path):
    return os.path.relpath(path, ROOT)


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


# ------------------------------------------------------------------------------------ layout
@pytest.mark.parametrize("command", ["format --check", "check"])
def test_ruff(command):
    if not shutil.which("ruff"):
        pytest.skip("without ruff")
    line = ["ruff", *command.split(), "--no-cache", "."]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS + NOTEBOOKS, ids=short)
def test_no_line_is_over_100_columns(path):
    texts = code_cells(path) if path.endswith(".ipynb") else [read(path)]
    lines = [line for text in texts for line in text.splitlines()]
    assert [line for line in lines if len(line) > 100] == []
    hides = "# fmt" + ":"
    assert not any(hides in line for line in lines), "the formatter is switched off"


def test_the_core_stays_small():
    sizes = {name: len(read(f"{name}.py")) for name in CORE}
    assert sum(sizes.values()) <= LIMIT, sizes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_a_notebook_is_small_and_has_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert os.path.getsize(path) < 600_000
    assert any(cell.get("outputs") for cell in notebook.cells), "committed with its outputs"
    assert max(len(source.splitlines()) for source in code_cells(path)) <= 20


# --------------------------------------------------------------------------- what a file needs
def said(name):
    """The siblings that a module's docstring says it needs: a set of names."""
    docstring = ast.get_docstring(ast.parse(read(f"{name}.py")))
    found = re.search(r"Needs.*?\.(?=\s|$)", docstring, re.S).group().split("(and")[0]
    return set(re.findall(r"(\w+)\.py", found))


def imported(name):
    """The siblings that it imports."""
    found = set()
    for node in ast.walk(ast.parse(read(f"{name}.py"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & MODULES


@pytest.mark.parametrize("name", sorted(set(CORE) - {"train"}))  # train.py needs all
def test_a_file_says_which_siblings_it_imports(name):
    assert imported(name) == said(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRY)
def test_a_file_copied_out_works_with_the_siblings_it_names(tmp_path, name):
    needed = {name}
    while True:  # a sibling names its own
        more = needed.union(*[said(file) for file in needed])
        if more == needed:
            break
        needed = more
    for file in needed:
        shutil.copy(os.path.join(ROOT, f"{file}.py"), tmp_path)
    run(f"import torch, {name}\n{TRY[name]}", tmp_path)


# ------------------------------------------------------------------------------ pages
@pytest.mark.slow
def test_the_readme_snippet_prints_what_it_says():
    """The first python block of the README as it stands: each `# prints` comment is printed."""
    block = re.search(r"```python\n(.*?)```", read("README.md"), re.S).group(1)
    expected = re.findall(r"# prints (.*)", block)
    assert expected and run(block).strip().split("\n") == [e.strip() for e in expected]


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_links_and_anchors_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page
        if path:
            target = os.path.join(os.path.dirname(page), path)
        assert os.path.exists(os.path.join(ROOT, target)), link
        if anchor:
            titles = [line for line in read(target).splitlines() if line.startswith("#")]
            titles = [re.sub(r"[^\w -]", "", title.strip().lstrip("# ")) for title in titles]
            assert anchor in [title.lower().replace(" ", "-") for title in titles], link


# ------------------------------------------------------------------- notebooks and weights
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_notebook_runs(request, path):
    """From start to end, in the background, see conftest.py.  Every claim in it is an assert."""
    done = request.config.behind[path].result()
    assert done.returncode == 0, done.stderr


WEIGHTS = sorted(glob.glob(os.path.join(ROOT, "notebooks", "weights", "*.pt")))


@pytest.mark.slow
@pytest.mark.parametrize("path", WEIGHTS, ids=os.path.basename)
def test_the_weights_give_the_distances_beside_them(path):
    """The change under the last g, to 1e-3."""
    images = data.load("mnist5k")
    config = train.config_of(train.parse([])) | json.loads(read(path + ".json"))
    f, _, _, _, image_group = probe.network(config, images)
    f.load_state_dict(torch.load(path, weights_only=True))
    x = images.test_x / 255
    group, elements, g0 = probe.study(f.eval(), image_group, x.shape[-1])
    found = probe.distances(f, x, group, elements[-1:], g0)
    assert found["invariance"][0] == pytest.approx(config["invariance"][-1], abs=1e-3)


@pytest.mark.slow
def test_the_lines_that_load_the_weights_run():
    block = re.search(r"```python\n(.*?)```", read("notebooks/weights/README.md"), re.S).group(1)
    code = ""
    for path in WEIGHTS:
        name = os.path.basename(path)[:-3]
        order = 4 if name.startswith("rot") else 6
        code += block.replace("rot-hssl", name) + f"\nassert z.shape == (2, {order}, 128)\n"
    run(code)
