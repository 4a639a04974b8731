"""Answers to the exercises of notebook 01: python notebooks/answers/answers_01.py"""

import os
import sys

NOTEBOOKS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.dirname(NOTEBOOKS), NOTEBOOKS]
import torch

from backbones import MNISTNet
from data import load
from groups import Rotation, Translation
from show import fed, relative

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
C4 = Rotation()
images = load("mnist5k").test_x[:256].double() / 255  # (256, 1, 29, 29)
x = images[[6, 10, 14, 27]]  # (4, 1, 29, 29)
f = fed(MNISTNet(rotations=4, width=0.25, functions=3), images)


# ------------------------------------------------------------------- in the class: shift_base
def shift_base(g, g0):
    """g⁻¹·g0 for quarter turns: g (B,), g0 (n,) → (B, n)."""
    return (g0 - g[:, None]) % 4


every, g0 = torch.arange(4), torch.tensor([0, 1])
assert torch.equal(shift_base(every, g0), C4.shift_base(every, g0))
assert not torch.equal(shift_base(-every % 4, g0), C4.shift_base(every, g0))
print("class: shift_base equals Rotation.shift_base")


# ---------------------------------------------------------------------------------- 1. turn
def turn(x, g):
    """Image b turned by g[b] quarter turns, counter-clockwise: x (B, C, H, H), g (B,) → as x.

    A quarter turn moves the last column to the first row: transpose, then reverse the rows."""
    copies = [x]
    for _ in range(3):
        copies.append(copies[-1].transpose(-1, -2).flip(-2))
    return torch.stack(copies, 1)[torch.arange(len(x)), g]


g = torch.tensor([1, 2, 3, 1])  # (4,)
assert torch.equal(turn(x, g), C4.T(x, g))
print("1: turn equals Rotation.T")


# ------------------------------------------------------------------- 2. shift_base on a grid
def shift_on_grid(g, g0, height, width):
    """Subtract dy from the rows and dx from the columns: g (B,), g0 (n,) → (B, n)."""
    rows = (g0 // width - (g // width)[:, None]) % height
    columns = (g0 % width - (g % width)[:, None]) % width
    return rows * width + columns


grid = Translation(5, 7)
all_35, patch = torch.arange(35), torch.tensor([0, 1, 7, 8])
assert torch.equal(shift_on_grid(all_35, patch, 5, 7), grid.shift_base(all_35, patch))
wrong = shift_on_grid(grid.inverse(all_35), patch, 5, 7)
assert not torch.equal(wrong, grid.shift_base(all_35, patch))
print("2: shift_on_grid equals Translation.shift_base")

# ------------------------------------------------------------------------ 3. predict, then run
# 3⁻¹·2 = 1·2 = 3: the map from slot 3, turned by 270°.
z = f(x)  # (4, 32, 4, 8, 8)
three = torch.full((4,), 3)
assert torch.equal(C4.Gamma(z, three)[:, :, 2], z[:, :, 3].rot90(3, (-2, -1)))
# Four bundles, two sets: [0, 2], [3, 1], [2, 0], [1, 3].  Without order, g = 0 and 2 are the same.
base = C4.shift_base(every, torch.tensor([0, 2]))  # (4, 2)
assert len(base.unique(dim=0)) == 4
assert len(base.sort(1).values.unique(dim=0)) == 2
print("3: the map from slot 3, turned by 270°; 4 bundles and 2 sets")


# -------------------------------------------------------------------------- 4. find the bug
class Buggy(Rotation):
    def shift_base(self, g, g0):
        return (torch.atleast_2d(g0) + g[:, None]) % 4  # g·g0


buggy = Buggy()
for element in range(4):
    g = torch.full((4,), element)
    one = f.bundle(buggy.T(x, g), g0.expand(4, -1))  # f(T_g x)(g0)
    two = buggy.Gamma(z, g)[:, :, g0].mean((-2, -1)).transpose(1, 2).flatten(1)  # (Γ_g f(x))(g0)
    last = f.bundle(x, buggy.shift_base(g, g0))  # f(x)(g⁻¹·g0)
    print(f"4: g = {element}: first '=' off by {relative(one, two):.0e}, ", end="")
    print(f"second by {relative(two, last):.0e}")
    assert relative(two, last) < 1e-12  # Γ and the base space are wrong in the same way
    assert (relative(one, two) < 1e-12) == (element in (0, 2))  # 0 and 2 are their own inverses
# So the first "=", Eq. 1, fails, for g = 1 and g = 3.  The wrong Γ is still an action, because the
# order of two turns does not matter.  A test of Γ alone can't find this bug.  A test of Eq. 1 does.
a, b = torch.cartesian_prod(every, every).T  # (16,) twice
many = z[:1].expand(16, -1, -1, -1, -1)  # (16, 32, 4, 8, 8)
assert torch.equal(buggy.Gamma(buggy.Gamma(many, b), a), buggy.Gamma(many, C4.product(a, b)))
