"""The answers to the notebooks' exercises: each file runs, and every answer in it is an assert."""
import glob
import os
import runpy

import pytest
import torch
from conftest import ROOT

FILES = sorted(glob.glob(os.path.join(ROOT, "notebooks", "answers", "answers_*.py")))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_answers_are_right(path):
    """In this process; dtype and gradient mode are put back."""
    try:
        assert any(line.startswith(("assert ", "    assert ")) for line in open(path)), "an answer is checked by an assert"
        runpy.run_path(path, run_name="__main__")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)


def test_notebooks_and_answers_name_each_other():
    """Each notebook that says where its answers are names a file that is there, and each file of answers is named."""
    named = set()
    for path in glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb")):
        text = open(path).read()
        named |= {f for f in (os.path.basename(p) for p in FILES) if f in text}
        number = os.path.basename(path)[:2]
        if f"answers_{number}.py" in text:
            assert os.path.exists(os.path.join(ROOT, "notebooks", "answers", f"answers_{number}.py"))
    assert named == {os.path.basename(p) for p in FILES}
