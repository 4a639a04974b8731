"""The answers to the notebooks' exercises: each file runs, and every answer in it is an assert."""

import glob
import os

import nbformat
import pytest
from conftest import ROOT

FILES = sorted(glob.glob(os.path.join(ROOT, "notebooks", "answers", "answers_*.py")))
NOTEBOOKS = sorted(glob.glob(os.path.join(ROOT, "notebooks", "0*.ipynb")))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_answers_are_right(request, path):
    """As a reader runs them, in the background, see conftest.py."""
    with open(path) as file:
        assert any(line.startswith(("assert ", "    assert ")) for line in file)
    done = request.config.behind[path].result()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_a_notebook_names_its_answers_and_folds_one_below_each_question(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    answers = f"answers_{os.path.basename(path)[:2]}.py"
    assert answers in text
    assert os.path.join(ROOT, "notebooks", "answers", answers) in FILES
    assert text.count("<details>") == text.count("</details>") >= text.count("**Question")
