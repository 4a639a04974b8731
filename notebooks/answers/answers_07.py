"""Answers to the exercises of notebook 07: python notebooks/answers/answers_07.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import torch

import data
import groups
import probe

digits = data.load("mnist5k")
x = digits.test_x.float() / 255  # (1000, 1, 29, 29)


# ---------------------------------------------------------------- the fill-in
def my_bins(image):
    counts = []
    for b in range(8):
        counts.append(((image >= b / 8) & (image < (b + 1) / 8)).sum())
    return torch.stack(counts)


image = x[6, 0].clamp(max=0.999)
assert torch.equal(my_bins(image).double(), probe.grey_bins(image[None, None])[0])
print("fill-in: my_bins is right")


# ---------------------------------------------------------------- the exercise: bins and scales
def standard(images):
    """Each grey value's number of pixels, in units of its spread over the images of this view."""
    counts = probe.grey_bins(images)[:, 1:]  # not the black ones
    return (counts - counts.mean(0)) / counts.std(0)


shrunk = groups.Scale().T(x, torch.full((len(x),), 2))
statistics = {"grey bins": probe.grey_bins, "in their spread": standard}
hits = {}
for name, statistic in statistics.items():
    hits[name] = probe.share_found(-torch.cdist(statistic(shrunk), statistic(x)))
    print(f"{name:16} finds {hits[name]:5.1f} of 100 shrunk digits")
assert hits["grey bins"] < 1 < hits["in their spread"] < 10
