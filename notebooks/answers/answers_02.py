"""Answers to the exercises of notebook 02: python notebooks/answers/answers_02.py"""
import os
import sys
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "notebooks")]

import numpy as np
import torch
import torch.nn.functional as F

from data import load
from gconv import GConv, hermite_gaussian, turn
from groups import Rotation

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
C4, all_four = Rotation(), torch.arange(4)  # (4,)
relative = lambda a, b: float((a - b).norm() / b.norm())


# ---------------------------------------------------------------- 1. turn the coefficients
def turn_coefficients(w):
    """w (e, e) → (e, e): what multiplies ψ_ba after a quarter turn is (-1)^b·w_ab."""
    turned = torch.empty_like(w)  # (e, e)
    for a, b in np.ndindex(*w.shape):
        turned[b, a] = (-1) ** b * w[a, b]
    return turned


w = torch.randn(5, 5)  # (e, e)
assert torch.equal(turn_coefficients(w), turn(w, 1)) and not torch.equal(w.T, turn(w, 1))
print("1: turn_coefficients equals gconv.turn")


# ---------------------------------------------------------------- 2. legal sizes
def legal_sizes(kernel, padding, stride, sizes):
    return [n for n in sizes if (n + 2 * padding - kernel) % stride == 0]


def error_of(f, size):
    """Relative error of Eq. 1 over three turns of one random image."""
    x4 = torch.rand(1, 1, size, size).expand(4, -1, -1, -1)  # (4, 1, H, H)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return relative(f(C4.T(x4, all_four))[1:], C4.Gamma(f(x4), all_four)[1:])


legal = legal_sizes(7, 0, 3, range(25, 41))
print("2: right for k = 7, padding 0, stride 3:", legal)  # even ones too
assert legal == [25, 28, 31, 34, 37, 40]
for n in range(25, 41):
    error = error_of(GConv(1, 8, 7, 3, rotations=4, stride=3), n)
    assert error < 1e-13 if n in legal else error > 0.1

# ---------------------------------------------------------------- 3. one pixel by hand
planes = torch.zeros(4, 3, 3)  # (d, 3, 3)
planes[0, 1, 1], planes[1, 1, 2] = 1, 2
example = GConv(1, 1, kernel_size=3, padding=1, rotations=4, extent=4)
to_w = torch.linalg.inv(hermite_gaussian(3, 3)[0])  # (3, 3)
example.weight.copy_((to_w.T @ planes @ to_w)[None, :, None])  # (1, 4, 1, 3, 3)
maps = torch.randint(10, (4, 4, 4), generator=torch.Generator().manual_seed(1)).double()  # (t, 4, 4)
maps[1, 1, 1], maps[2, 0, 1] = 7, 5
# r = 2, p = (2, 1).  The 1: d = 0, so t = 2, and q = p = (2, 1).
# The 2: d = 1, so t = 3, and q - p is the offset (0, +1) after a half turn, (0, -1): q = (2, 0).
by_hand = 1 * maps[2, 2, 1] + 2 * maps[3, 2, 0]
z_example = example(maps[None, None])[0, 0]  # (r, 4, 4)
print(f"3: {maps[2, 2, 1]:.0f} + 2 · {maps[3, 2, 0]:.0f} = {by_hand:.0f}, GConv {z_example[2, 2, 1]:.0f}")
assert torch.isclose(z_example[2, 2, 1], by_hand)

# ---------------------------------------------------------------- 4. effective size 1
x = load("mnist5k").test_x[:4].double() / 255  # (4, 1, 29, 29)
z = GConv(1, 1, 7, 1, rotations=4, padding=3)(x)  # (4, 1, 4, 29, 29)
assert (z == z[:, :, :1]).all() and z.std() > 0
# The only function is ψ_00, a round bell, and turn(w, r) is w.  So the four maps are equal, the lifted axis holds one thing
# four times, and the two fibers that H-SSL compares would always be equal.
print("4: the four maps are equal")


# ---------------------------------------------------------------- 5. find the bug
def loops(y, g):
    """The loop of Section 6; g is C4.inverse, or what stands in its place: y (1, 1, 4, H, W) → z, the same shape."""
    padded, z = F.pad(y[0, 0], [1] * 4), torch.zeros_like(y)  # (4, H + 2, W + 2), (1, 1, 4, H, W)
    for r, t in torch.cartesian_prod(all_four, all_four):
        turned = psi[C4.product(g(r), t)].rot90(int(r))  # (3, 3)
        for p0, p1 in np.ndindex(*y.shape[-2:]):
            z[0, 0, r, p0, p1] += (padded[t, p0:p0 + 3, p1:p1 + 3] * turned).sum()
    return z


eq4, wrong = (lambda y: loops(y, C4.inverse)), (lambda y: loops(y, lambda r: r))
psi, y = torch.randn(4, 3, 3), torch.randn(1, 1, 4, 6, 6)  # (d, 3, 3), (B, C_in, G, H, W)
for a in all_four[:, None]:  # (1,) each: one element for a batch of one
    errors = [relative(f(C4.Gamma(y, a)), C4.Gamma(f(y), a)) for f in (eq4, wrong)]
    print(f"5: turn by {90 * int(a)}°: error of Eq. 4 {errors[0]:.0e}, with g in place of g⁻¹ {errors[1]:.0e}")
    assert errors[0] < 1e-14 and (errors[1] < 1e-14) == (int(a) in (0, 2))
# With t + r the plane of Γ_a y at r is r + t + a, that of Γ_a z is r - a + t.  They are equal where a = -a: 0° and 180°.
