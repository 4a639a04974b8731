"""What the tests share: modules on the path, notebooks that run beside them, and images made of
nothing but arithmetic."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "2")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not os.environ.get("TEST_ON_GPU"):  # the tests are about the CPU; who has a GPU can use it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from data import UsageError

# ------------------------------------------------------------------- notebooks and their answers
RUN = """import nbclient, nbformat, os, sys
notebook, folder = nbformat.read(sys.argv[1], as_version=4), os.path.dirname(sys.argv[1])
where = {"metadata": {"path": folder}}
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()"""
BEHIND = ("test_notebook_runs", "test_answers_are_right")  # each has a path, which runs meanwhile


def run_file(path):
    """A notebook in a fresh kernel, or a script: one thread, in a process of its own."""
    how = ["-c", RUN, path] if path.endswith(".ipynb") else [path]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, *how], capture_output=True, text=True, env=env)


def pytest_collection_modifyitems(items):
    # at the end: they wait for what runs in the background
    items.sort(key=lambda item: item.name.startswith(BEHIND))


def pytest_collection_finish(session):
    """Start the selected files, one after the other.  The tests then have one thread.
    session.config.behind[path] is a future of the process."""
    pool = ThreadPoolExecutor(1)
    session.config.behind = {}
    if session.config.option.collectonly:
        return
    for item in session.items:
        if item.name.startswith(BEHIND):
            path = item.callspec.params["path"]
            session.config.behind[path] = pool.submit(run_file, path)
    if session.config.behind:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------ lives of runs
@pytest.fixture(scope="session")
def nursery():
    """Start the process that lives are forked from, see lives.py.  Use it wherever one is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.path.dirname(__file__)]))
        names = ["train", "matplotlib.pyplot", "lives"]
        # what probe.py and torch's optimizers import late: else each life takes seconds for it
        names += ["sklearn.linear_model", "sklearn.model_selection", "sklearn.neighbors"]
        names += ["sklearn.pipeline", "torch._dynamo", "torch.distributed"]
        multiprocessing.get_context("forkserver").set_forkserver_preload(names)
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Flags of a run on 128 images of 16 px in 2 classes, 32 a batch: four steps an epoch."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 64), ("test", 8)):
        for c in range(2):
            images = blobs(n, 16, 3, generator=generator).clamp(max=1)  # (n, 3, 16, 16)
            write_images(root / split / str(c), (images * (255 - 100 * c)).to(torch.uint8))
    return [
        *("--dataset", "folder", "--data-dir", str(root), "--group", "trans", "--width", "0.125"),
        *("--batch-size", "32", "--warmup-epochs", "0.5", "--amp", "off", "--no-before"),
        *("--probe-size", "40"),
    ]


def write_images(folder, images, ending="png"):
    """Images (n, C, H, W) uint8 as files 0.png, 1.png, … in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        to_pil_image(image).save(folder / f"{i}.{ending}")


# -------------------------------------------------------------------------------- small parts
@pytest.fixture
def double():
    """Everything made in this test is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def blobs(batch, size, c_in=1, margin=0, dtype=torch.float64, generator=None):
    """Smooth random images with an empty margin: a few Gaussian strokes, no two alike:
    (B, C_in, size, size)."""
    u = torch.arange(size, dtype=dtype)
    inside = size - 1 - 2 * margin
    centre = torch.rand(batch, c_in, 6, 2, dtype=dtype, generator=generator)
    centre = margin + inside * (0.25 + 0.5 * centre)  # (B, C_in, 6, 2)
    width = torch.rand(batch, c_in, 6, 1, dtype=dtype, generator=generator)
    width = inside * (0.04 + 0.06 * width)  # (B, C_in, 6, 1)
    y = torch.exp(-(((u - centre[..., :1]) / width) ** 2) / 2)  # (B, C_in, 6, size)
    x = torch.exp(-(((u - centre[..., 1:]) / width) ** 2) / 2)  # (B, C_in, 6, size)
    images = torch.einsum("bcny,bcnx->bcyx", y, x)  # (B, C_in, size, size)
    frame = (u >= margin) & (u <= size - 1 - margin)
    return images * frame[:, None] * frame


def noise(n, size=20, channels=3):
    """(n, channels, size, size) uint8; size: also (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8)


def folder(root, size=20, classes=("a", "b"), splits=("train", "test"), n=3):
    """A folder of n random images for each class and split → its name."""
    for split in splits:
        for c in classes:
            write_images(root / split / c, noise(n, size))
    return str(root)


def as_bytes(x):
    """Images in 0 … 1 as uint8; what is brighter is cut."""
    return (255 * x).clamp(0, 255).to(torch.uint8)


@contextlib.contextmanager
def refused_in_one_line(*words):
    """Something in this block raises UsageError, whose one line has these words."""
    with pytest.raises(UsageError) as caught:
        yield
    told = str(caught.value)
    assert "\n" not in told and all(word in told for word in words), told


def relative(a, b):
    """‖a - b‖ / ‖b‖."""
    return float(((a - b).norm() / b.norm()).detach())


def trained(f, x, steps=3):
    """f after a few steps on a loss that knows nothing of the group: weights and BatchNorm
    statistics have moved."""
    before = [p.detach().clone() for p in f.parameters()]
    optimizer = torch.optim.SGD(f.parameters(), lr=0.1)
    f.train()
    target = torch.randn_like(f(x).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        (f(x) - target).pow(2).mean().backward()
        optimizer.step()
    for old, new in zip(before, f.parameters()):
        assert (old != new).any(), "a weight did not move"
    return f.eval()
