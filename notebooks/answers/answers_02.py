"""Answers to the exercises of notebook 02: python notebooks/answers/answers_02.py"""

import os
import sys
import warnings

NOTEBOOKS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.dirname(NOTEBOOKS), NOTEBOOKS]
import torch
import torch.nn.functional as F

from data import load
from gconv import GConv, hermite_gaussian, turn
from groups import Rotation
from show import equation1, relative

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
C4 = Rotation()
all_four = torch.arange(4)

# ------------------------------------------------------------- in the class: one pixel of Eq. 4
planes = torch.zeros(4, 3, 3)  # (d, 3, 3)
planes[0, 1, 1] = 1
planes[1, 1, 2] = 2
example = GConv(1, 1, kernel_size=3, padding=1, rotations=4, extent=4)
to_w = torch.linalg.inv(hermite_gaussian(3, 3)[0])  # (3, 3)
example.weight.copy_((to_w.T @ planes @ to_w)[None, :, None])  # (1, 4, 1, 3, 3)
maps = torch.randint(10, (4, 4, 4), generator=torch.Generator().manual_seed(1)).double()
maps[1, 1, 1] = 7
maps[2, 0, 1] = 5
z = example(maps[None, None])[0, 0]  # (r, 4, 4)
assert torch.isclose(z[1, 1, 1], torch.tensor(17.0))  # the example
# r = 2, p = (2, 1).  The 1: d = 0, so t = 2, and q = p = (2, 1).
# The 2: d = 1, so t = 3, and q - p is (0, +1) after a half turn, (0, -1): q = (2, 0).
mine = maps[2, 2, 1] + 2 * maps[3, 2, 0]
not_turned = maps[2, 2, 1] + 2 * maps[3, 2, 2]
print(f"class: by hand {mine:.0f}, GConv {z[2, 2, 1]:.0f}; without the turn {not_turned:.0f}")
assert torch.isclose(z[2, 2, 1], mine) and not torch.isclose(z[2, 2, 1], not_turned)


# ---------------------------------------------------------------------- 1. turn the coefficients
def turn_coefficients(w):
    """w (e, e) → (e, e): what multiplies ψ_ba after a quarter turn is (-1)^b·w_ab."""
    turned = torch.empty_like(w)
    for a in range(len(w)):
        for b in range(len(w)):
            turned[b, a] = (-1) ** b * w[a, b]
    return turned


w = torch.randn(5, 5)  # (e, e)
assert torch.equal(turn_coefficients(w), turn(w, 1))
assert not torch.equal(w.T, turn(w, 1))
print("1: turn_coefficients equals gconv.turn")


# --------------------------------------------------------------------------------- 2. legal sizes
def legal_sizes(kernel, padding, stride, sizes):
    return [n for n in sizes if (n + 2 * padding - kernel) % stride == 0]


def error_of(f, size):
    """The error of Eq. 1 over four turns of one random image."""
    image = torch.rand(1, 1, size, size).expand(4, -1, -1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return equation1(f(C4.T(image, all_four)), C4.Gamma(f(image), all_four), f(image))


legal = legal_sizes(7, 0, 3, range(25, 41))
print("2: right for k = 7, padding 0, stride 3:", legal)  # even ones too
assert legal == [25, 28, 31, 34, 37, 40]
for n in range(25, 41):
    error = error_of(GConv(1, 8, 7, 3, rotations=4, stride=3), n)
    assert error < 1e-13 if n in legal else error > 0.1

# ---------------------------------------------------------------------------- 3. effective size 1
x = load("mnist5k").test_x[:4].double() / 255  # (4, 1, 29, 29)
z = GConv(1, 1, 7, 1, rotations=4, padding=3)(x)  # (4, 1, 4, 29, 29)
assert (z == z[:, :, :1]).all() and z.std() > 0
# The only function is ψ_00, a round bell, and turn(w, r) is w.  So the four maps are equal, and the
# two fibers that H-SSL compares would always be equal.
print("3: the four maps are equal")


# -------------------------------------------------------------------------------- 4. find the bug
def loops(y, sign):
    """The loops of Section 6 with the plane d = t + sign·r: y (1, 1, 4, H, W) → as y."""
    padded = F.pad(y[0, 0], [1] * 4)  # (4, H + 2, W + 2)
    z = torch.zeros_like(y)
    for r in range(4):
        for t in range(4):
            filter_here = psi[(t + sign * r) % 4].rot90(r)  # (3, 3)
            z[0, 0, r] += F.conv2d(padded[t][None, None], filter_here[None, None])[0, 0]
    return z


psi = torch.randn(4, 3, 3)  # (d, 3, 3)
y = torch.randn(1, 1, 4, 6, 6)  # (B, C_in, G, H, W)
for a in all_four[:, None]:  # (1,) each: one element for a batch of one
    right, wrong = [
        relative(loops(C4.Gamma(y, a), sign), C4.Gamma(loops(y, sign), a)) for sign in (-1, 1)
    ]
    print(f"4: turn by {90 * int(a):3}°: off by {right:.0e}, with g for g⁻¹ by {wrong:.0e}")
    assert right < 1e-14
    assert (wrong < 1e-14) == (int(a) in (0, 2))
# With t + r the plane of Γ_a y at r is r + t + a, and that of Γ_a z is r - a + t.  They are equal
# where a = -a: 0° and 180°.
