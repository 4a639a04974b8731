"""Notebook 03's bound: the two losses differ by at most a constant times the error of Eq. 1."""

import sys

import pytest
import torch
from conftest import ROOT, blobs

sys.path.insert(0, f"{ROOT}/notebooks")
from backbones import Head, MNISTNet, perturb
from bound import gap_and_bound, lipschitz

EPSILONS = [10.0**-k for k in range(8, -1, -1)]


def fed(f, h, x):
    """Both after one batch in training mode, whose statistics they keep, in evaluation mode."""
    for module in (*f.modules(), *h.modules()):
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    h(f.bundle(x, torch.zeros(len(x), 1, dtype=torch.long)))
    return f.eval(), h.eval()


SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]


@pytest.mark.parametrize("seed", [0, *SLOW])
def test_the_bound_is_never_crossed_and_follows_epsilon(double, seed):
    torch.manual_seed(seed)
    x = blobs(12, 29)
    g0 = torch.randint(4, (12, 1))
    g1, g2 = torch.randint(4, (2, 12))
    gaps, bounds = [], []
    for epsilon in EPSILONS:
        torch.manual_seed(seed)
        f, h = MNISTNet(rotations=4, width=0.125), Head(16, (16, 16, 16))
        perturb(f, epsilon, seed)
        gap, bound = gap_and_bound(*fed(f, h, x), x, g0, g1, g2)
        gaps.append(gap)
        bounds.append(bound)
    assert all(0 < gap <= bound for gap, bound in zip(gaps, bounds))
    # both grow like epsilon where it is small, so the bound says something at each of them
    for values in (gaps, bounds):
        assert values[1] / values[0] == pytest.approx(10, rel=0.05)
    exact, bound = gap_and_bound(*fed(MNISTNet(rotations=4, width=0.125), h, x), x, g0, g1, g2)
    assert exact < 1e-12 and bound < 1e-8


def test_the_constant_of_a_head_is_not_exceeded(double):
    h = Head(8, (16, 16, 4))
    h(torch.randn(64, 8))
    h.eval()
    a, b = torch.randn(2, 500, 8)
    ratios = (h(a) - h(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert 0.01 * lipschitz(h) < ratios.max() <= lipschitz(h)
    linear = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
    linear[0].weight.data = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert lipschitz(linear) == pytest.approx(3)
