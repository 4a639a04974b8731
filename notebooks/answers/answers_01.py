"""Answers to the exercises of notebook 01: python notebooks/answers/answers_01.py"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "notebooks")]

import torch

from backbones import MNISTNet
from data import load
from groups import Rotation, Translation, bundle, fibers
from turning import fed

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
C4 = Rotation()
images = load("mnist5k").test_x[:256].double() / 255  # (256, 1, 29, 29)
x, g = images[[6, 10, 14, 27]], torch.tensor([1, 2, 3, 1])  # (4, 1, 29, 29), (4,)
f, cnn = (fed(MNISTNet(rotations=r, width=0.25), images) for r in (4, 1))
relative = lambda a, b: float((a - b).norm() / b.norm())


# ---------------------------------------------------------------- 1. turn
def turn(x, g):
    """Image b turned by g[b] quarter turns, counter-clockwise: x (B, C, H, H), g (B,) → (B, C, H, H).

    A quarter turn moves the last column to the first row: transpose, then turn the order of the rows round."""
    quarter = lambda x: x.transpose(-1, -2).flip(-2)  # (B, C, H, H)
    copies = [x]
    for _ in range(3):
        copies.append(quarter(copies[-1]))
    return torch.stack(copies, 1)[torch.arange(len(x)), g]  # (B, C, H, H)


assert torch.equal(turn(x, g), C4.T(x, g))
print("1: turn equals Rotation.T")


# ---------------------------------------------------------------- 2. shift_base
def shift_base(g, g0, height, width):
    """g⁻¹·g0 on a grid: subtract dy from the rows and dx from the columns: g (B,), g0 (|g0|,) → (B, |g0|)."""
    dy, dx = (g // width)[:, None], (g % width)[:, None]  # (B, 1) twice
    rows, columns = (g0 // width - dy) % height, (g0 % width - dx) % width  # (B, |g0|) twice
    return rows * width + columns  # (B, |g0|)


grid = Translation(5, 7)
every, some = torch.arange(35), torch.tensor([0, 1, 7, 8])  # (35,), (4,)
assert torch.equal(shift_base(every, some, 5, 7), grid.shift_base(every, some))
assert not torch.equal(shift_base(grid.inverse(every), some, 5, 7), grid.shift_base(every, some))
print("2: shift_base equals Translation.shift_base")

# ---------------------------------------------------------------- 3. predict, then run
z = f(x)  # (4, 32, 4, 8, 8)
# 3⁻¹·2 = 1·2 = 3: the map from place 3, turned by 270°.
assert torch.equal(C4.Gamma(z, torch.full((4,), 3))[:, :, 2], z[:, :, 3].rot90(3, (-2, -1)))
# Near 1: the filters of the CNN are not symmetric, and their turned copies are missing.
error = relative(cnn(C4.T(x, g)), C4.T(cnn(x)[:, :, 0], g)[:, :, None])
assert 0.5 < error < 2
# Four bundles, two sets: [0, 2], [3, 1], [2, 0], [1, 3].  Without order, g = 0 and g = 2 are the same.
base = C4.shift_base(torch.arange(4), torch.tensor([0, 2]))  # (4, 2)
assert len(base.unique(dim=0)) == 4 and len(base.sort(1).values.unique(dim=0)) == 2
print(f"3: the map from place 3, turned by 270°; an error of {error:.2f}; 4 bundles and 2 sets")


# ---------------------------------------------------------------- 4. find the bug
class Buggy(Rotation):
    def shift_base(self, g, g0):
        return (torch.atleast_2d(g0) + g[:, None]) % 4  # (B, |g0|)


def chain(group, g):
    """The three terms of Section 7 at g0 = [0, 1], for one element g: (B, |g0|·C) each."""
    g, g0 = torch.full((len(x),), g), torch.tensor([0, 1])  # (B,), (2,)
    return (bundle(fibers(f(group.T(x, g)), group), g0.expand(len(x), -1)),
            bundle(fibers(group.Gamma(f(x), g), group), g0.expand(len(x), -1)),
            bundle(fibers(f(x), group), group.shift_base(g, g0)))


for element in range(4):
    one, two, three = chain(Buggy(), element)  # (B, |g0|·C) each
    print(f"4: g = {element}: first '=' off by {relative(one, two):.0e}, second by {relative(two, three):.0e}")
    assert relative(two, three) < 1e-12  # Γ and the base space are wrong in the same way
    assert (relative(one, two) < 1e-12) == (element in (0, 2))  # 0 and 2 are their own inverses
# So the first "=", Eq. 1, fails, for g = 1 and g = 3.  The wrong Γ is an action all the same, because C4 is abelian:
a, b = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T  # (16,) twice
many = z[:1].expand(16, -1, -1, -1, -1)  # (16, 32, 4, 8, 8)
assert torch.equal(Buggy().Gamma(Buggy().Gamma(many, b), a), Buggy().Gamma(many, C4.product(a, b)))
# A test of Γ alone can't find this bug.  A test of Eq. 1 does.
