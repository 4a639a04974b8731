"""What the tests share: the modules on the path, two threads, the notebooks that run beside them, and digits made of nothing but arithmetic."""
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import launch  # noqa: E402

launch.keep_freed_memory()
os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2 ** 31 - 1))  # the same for the processes that tests and notebooks start
os.environ.setdefault("OMP_NUM_THREADS", "2")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not os.environ.get("TEST_ON_GPU"):  # most tests are about the CPU and gloo; a GPU's owner can run the suite on it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


RUN = """import nbclient, nbformat, os, sys
notebook, folder = nbformat.read(sys.argv[1], as_version=4), os.path.dirname(sys.argv[1])
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()"""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name.startswith("test_notebook_runs"))  # at the end: they wait for what runs in the background


def pytest_collection_finish(session):
    """Start the selected notebooks, one after the other in fresh kernels; the tests then have one thread: session.config.notebooks[path] is a future of the process."""
    run = lambda path: subprocess.run([sys.executable, "-c", RUN, path], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    pool = ThreadPoolExecutor(1)
    session.config.notebooks = {item.callspec.params["path"]: pool.submit(run, item.callspec.params["path"]) for item in session.items
                                if item.name.startswith("test_notebook_runs") and not session.config.option.collectonly}
    if session.config.notebooks:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nursery():
    """Start a process that has imported train.py and in which no torch thread has run: tests fork theirs from it in tenths of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.path.dirname(__file__)]))
        multiprocessing.get_context("forkserver").set_forkserver_preload(["train", "matplotlib.pyplot", "test_faults", "test_distributed"])
        multiprocessing.forkserver.ensure_running()


@pytest.fixture
def double():
    """Everything made in this test is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def blobs(batch, size, c_in=1, margin=0, dtype=torch.float64):
    """Smooth random images with an empty margin: a few Gaussian strokes, no two alike: (B, C_in, size, size)."""
    u = torch.arange(size, dtype=dtype)
    inside = size - 1 - 2 * margin
    centre = margin + inside * (0.25 + 0.5 * torch.rand(batch, c_in, 6, 2, dtype=dtype))  # (B, C_in, 6, 2)
    width = inside * (0.04 + 0.06 * torch.rand(batch, c_in, 6, 1, dtype=dtype))  # (B, C_in, 6, 1)
    y = torch.exp(-((u - centre[..., :1]) / width) ** 2 / 2)  # (B, C_in, 6, size)
    x = torch.exp(-((u - centre[..., 1:]) / width) ** 2 / 2)  # (B, C_in, 6, size)
    images = torch.einsum("bcny,bcnx->bcyx", y, x)  # (B, C_in, size, size)
    frame = (u >= margin) & (u <= size - 1 - margin)
    return images * frame[:, None] * frame


def relative(a, b):
    """‖a - b‖ / ‖b‖."""
    return float(((a - b).norm() / b.norm()).detach())


def trained(f, x, steps=3):
    """f after a few steps on a loss that knows nothing of the group: weights and BatchNorm statistics have moved."""
    before = [p.detach().clone() for p in f.parameters()]
    optimizer = torch.optim.SGD(f.parameters(), lr=0.1)
    f.train()
    target = torch.randn_like(f(x).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        (f(x) - target).pow(2).mean().backward()
        optimizer.step()
    assert all((a != b).any() for a, b in zip(before, f.parameters())), "a weight did not move"
    return f.eval()
