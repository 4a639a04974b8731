"""Answers to the exercises of notebook 03: python notebooks/answers/answers_03.py

Exercise 5 is open and has no answer here; `OnImages` is a place to start from.
"""

import os
import sys
import warnings

NOTEBOOKS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.dirname(NOTEBOOKS), NOTEBOOKS]
import torch
import torch.nn.functional as F

from backbones import build
from data import load
from groups import Group, Rotation, bundle, fibers
from losses import a_ssl, h_ssl, info_nce
from probe import distances, mean_over_g
from show import fed

torch.set_default_dtype(torch.float64)


def digits(count, size=None):
    """The first training digits in 0 … 1: (count, 1, H, H)."""
    return load("mnist5k", image_size=size).train_x[:count].double() / 255


def network(x):
    """The paper's network for quarter turns at a quarter of its width, and its head."""
    torch.manual_seed(0)
    f, h, _ = build("mnist", "rot", width=1 / 4)
    f = fed(f, x)
    with torch.no_grad():
        h = fed(h, f.bundle(x, torch.zeros(len(x), 1, dtype=torch.long)))
    return f, h


# ------------------------------------------------------- in the class and exercise 1: InfoNCE
def my_info_nce(y1, y2, tau=0.1):
    n = len(y1)
    y = F.normalize(torch.cat([y1, y2]), dim=1)  # (2N, D)
    similar = y @ y.T / tau  # (2N, 2N)
    positive = similar[:n, n:].diagonal()  # (N,)
    image = torch.arange(n).repeat(2)  # (2N,) which image a view belongs to
    other = image[:, None] != image  # k ≠ i
    denominator = (similar.exp() * other).sum(1).view(2, n).sum(0)  # (N,) both views of i
    return (denominator.log() - positive).mean()


def simclr(y1, y2, tau=0.1):
    n = len(y1)
    y = F.normalize(torch.cat([y1, y2]), dim=1)  # (2N, D)
    similar = y @ y.T / tau  # (2N, 2N)
    positive = similar[:n, n:].diagonal().repeat(2)  # (2N,): each view is an anchor of its own
    other = ~torch.eye(2 * n, dtype=torch.bool)  # only a view with itself is left out
    denominator = (similar.exp() * other).sum(1)  # (2N,): no sum over both views
    return (denominator.log() - positive).mean()


def exercise_1():
    y1, y2 = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))  # (N, D) twice
    paper, ntxent = info_nce(y1, y2), info_nce(y1, y2, denominator="ntxent")
    assert abs(my_info_nce(y1, y2) - paper) < 1e-12
    assert abs(simclr(y1, y2) - ntxent) < 1e-12
    assert abs(paper - ntxent) > 0.1
    print(f"1: the paper's denominator {paper:.6f}, SimCLR's {ntxent:.6f}")


# ------------------------------------------------------------------- 2. predict, then run
def exercise_2():
    """Both strided layers need an odd map: H odd, and (H + 1)/2 odd.  So H = 4m + 1."""
    exact = []
    for size in range(27, 34):
        x = digits(16, size)  # (16, 1, H, H)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the network warns of sizes that are not exact
            f, _ = network(x)
            found = distances(f, x, f.group, torch.tensor([1]), torch.tensor([0]))
        error = mean_over_g(found, "error")
        print(f"2: {size} px: error of Eq. 1 {error:.0e}")
        assert error < 1e-12 or error > 1e-3
        if error < 1e-12:
            exact.append(size)
    assert exact == [size for size in range(27, 34) if size % 4 == 1] == [29, 33]


# --------------------------------------------------------------------- 3. another group
class Dihedral(Group):
    """D4: mirror m times, then turn r times, is number 4·m + r.

    A turn after a mirror is the mirror after the opposite turn: the order matters."""

    order = 8

    def product(self, a, b):
        opposite = torch.where(a // 4 == 1, -b, b)  # a's mirror turns b's turns round
        return (a // 4 + b // 4) % 2 * 4 + (a + opposite) % 4

    def inverse(self, a):
        return torch.where(a // 4 == 1, a, -a % 4)  # a mirrored element undoes itself

    def T(self, x, g):
        images = []
        for image, k in zip(x, g.tolist()):
            if k >= 4:
                image = image.flip(-1)
            images.append(image.rot90(k % 4, (-2, -1)))
        return torch.stack(images)


class OnImages:
    """An exactly equivariant network for any finite group: z(k) = φ(T_{k⁻¹} x), for any φ.

    f(T_g x)(k) = φ(T_{k⁻¹} T_g x) = φ(T_{(g⁻¹·k)⁻¹} x) = f(x)(g⁻¹·k): this is Eq. 1."""

    def __init__(self, group, phi):
        self.group = group
        self.phi = phi

    def __call__(self, x):
        copies = []
        for back in self.group.inverse(torch.arange(self.group.order)):
            copies.append(self.phi(self.group.T(x, back.expand(len(x)))))  # (B, C)
        return torch.stack(copies, 1)  # (B, |G|, C) fibers


def exercise_3():
    group = Dihedral()
    every = torch.arange(8)
    a, b, c = torch.cartesian_prod(every, every, every).T  # (512,) each
    right = group.product(a, group.product(b, c))
    assert torch.equal(group.product(group.product(a, b), c), right)
    assert torch.equal(group.product(a, 0 * a), a) and torch.equal(group.product(0 * a, a), a)
    assert (group.product(group.inverse(every), every) == 0).all()
    assert (group.product(a, b) != group.product(b, a)).any()  # not commutative
    x = digits(8)  # (8, 1, 29, 29)
    a, b = torch.cartesian_prod(every, every).T  # (64,) twice
    many = x[:1].expand(64, -1, -1, -1)
    assert torch.equal(group.T(group.T(many, b), a), group.T(many, group.product(a, b)))

    matrix = torch.randn(29 * 29, 12, generator=torch.Generator().manual_seed(0))  # (H·H, C)

    def phi(x):
        return torch.relu(x.flatten(1) @ matrix)

    f = OnImages(group, phi)
    g0 = torch.tensor([0, 6]).expand(8, -1)  # (8, 2)
    left = bundle(f(group.T(x, every)), g0)  # (8, 2·C)
    gap = left - bundle(f(x), group.shift_base(every, g0))
    swapped = group.product(g0, group.inverse(every)[:, None])  # g0·g⁻¹, the inverse on the right
    null = left - bundle(f(x), swapped)
    assert gap.abs().max() < 1e-10 and null.abs().max() > 1
    print(f"3: D4: Eq. 1 off by {gap.abs().max():.0e}; with g0·g⁻¹ by {null.abs().max():.1f}")


# ---------------------------------------------------------------------- 4. find the bug
class Backwards(Rotation):
    """Rotation with the bug: g·g0 where g⁻¹·g0 should be."""

    def shift_base(self, g, g0):
        return (torch.atleast_2d(g0) + g[:, None]) % 4  # (B, |g0|)


def exercise_4():
    """Step 1 fails first: Γ_g uses `shift_base` to move the slots.

    Only step 3 holds, since both of its sides have the bug.  Where g = g⁻¹ (no turn, half a turn)
    nothing fails.  Training would not show it: g1 and g2 are uniform, so -g1 and -g2 are drawn as
    often.  Of the losses only the comparison of Eq. 2 and Eq. 3, draw by draw, finds it."""
    bug = Backwards()
    x = digits(32)  # (32, 1, 29, 29)
    f, h = network(x)
    f.group = bug
    g = torch.arange(32) % 4
    other = torch.arange(32) // 8  # with g: each pair of turns twice
    g0 = torch.zeros(32, 1, dtype=torch.long)
    with torch.no_grad():
        z, moved = f(x), bug.Gamma(f(x), g)
        step1 = (f(bug.T(x, g)) - moved).abs().amax((1, 2, 3, 4))  # (B,)
        step3 = fibers(moved, bug)[:, 0] - bundle(fibers(z, bug), bug.shift_base(g, g0))
        eq2 = info_nce(*a_ssl(f, h, x, bug, g0, g, other))
        eq3 = info_nce(*h_ssl(f, h, x, g0, g, other))
        opposite = info_nce(*h_ssl(f, h, x, g0, -g % 4, -other % 4))
    assert (step1[g % 2 == 1] > 1e-2).all() and step1[g % 2 == 0].max() < 1e-10
    assert step3.abs().max() < 1e-10
    assert abs(eq2 - eq3) > 1e-4  # the losses differ …
    assert abs(eq2 - opposite) < 1e-10  # … but each is the other's for the opposite turns
    print(f"4: step 1 off by {step1.max():.2f}, step 3 by {step3.abs().max():.0e}")
    print(f"   Eq. 2 {eq2:.4f}, Eq. 3 {eq3:.4f}, with the opposite turns {opposite:.4f}")


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3, exercise_4):
        exercise()
