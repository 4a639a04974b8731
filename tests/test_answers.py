"""The answers to the notebooks' exercises: each file runs, and every answer in it is an assert."""

import glob
import os
import runpy

import nbformat
import pytest
import torch
from conftest import ROOT

FILES = sorted(glob.glob(os.path.join(ROOT, "notebooks", "answers", "answers_*.py")))
NOTEBOOKS = sorted(glob.glob(os.path.join(ROOT, "notebooks", "0*.ipynb")))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_answers_are_right(path):
    """In this process; dtype, threads and gradient mode are put back."""
    threads = torch.get_num_threads()
    with open(path) as file:
        assert any(line.startswith(("assert ", "    assert ")) for line in file)
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_a_notebook_names_its_answers_and_folds_one_below_each_question(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    answers = f"answers_{os.path.basename(path)[:2]}.py"
    assert answers in text
    assert os.path.join(ROOT, "notebooks", "answers", answers) in FILES
    assert text.count("<details>") == text.count("</details>") >= text.count("**Question")
