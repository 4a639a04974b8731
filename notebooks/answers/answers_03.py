"""Answers to the exercises of notebook 03, each with its asserts.  From the repository root: python notebooks/answers/answers_03.py

Exercise 5 is open and has no answer here; `OnImages` is a place to start from."""
import math
import os
import sys
import warnings

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import backbones  # noqa: E402
import data  # noqa: E402
import losses  # noqa: E402
from groups import Rotation, bundle, fibers  # noqa: E402

ROTATION = Rotation()


def digits(count, size=None):
    """The first training digits, float64 in 0 … 1: (count, 1, H, H)."""
    return data.load("mnist5k", image_size=size).train_x[:count].double() / 255


def network(x):
    """The paper's network for quarter turns at a quarter of its width, and a head: float64, BatchNorm has seen x once."""
    torch.manual_seed(0)
    f, h, _ = backbones.build("mnist", "rot", width=1 / 4)
    f, h = f.double(), h.double()
    with torch.no_grad():
        h(fibers(f(x), ROTATION)[:, 0])  # (B, D) training mode: BatchNorm averages
    return f.eval(), h.eval()


# ---------------------------------------------------------------- 1 · InfoNCE from loops
def info_nce_in_loops(y1, y2, tau=0.1):
    """Eq. 2 as it is printed, with one loop for each sum.  y1, y2 (N, D) → a float."""
    y = torch.nn.functional.normalize(torch.stack([y1, y2]), dim=-1)  # (2, N, D) so that a dot product is a cosine
    n, total = len(y1), 0.0
    for i in range(n):
        denominator = 0.0
        for k in range(n):
            if k == i:
                continue  # the sum is over k ≠ i: the positive is not in it
            for j in range(2):
                for l in range(2):
                    denominator += math.exp(float(y[j, i] @ y[l, k]) / tau)
        total += math.log(math.exp(float(y[0, i] @ y[1, i]) / tau) / denominator)
    return -total / n


def ntxent_in_loops(y1, y2, tau=0.1):
    """SimCLR's: three lines change.  y1, y2 (N, D) → a float."""
    y = torch.nn.functional.normalize(torch.stack([y1, y2]), dim=-1)  # (2, N, D)
    n, total = len(y1), 0.0
    for i in range(n):
        for j in range(2):  # each view is an anchor of its own …
            denominator = sum(math.exp(float(y[j, i] @ y[l, k]) / tau) for k in range(n) for l in range(2) if (l, k) != (j, i))  # … with its positive
            total += math.log(math.exp(float(y[0, i] @ y[1, i]) / tau) / denominator)
    return -total / (2 * n)  # … and there are 2N of them


def exercise_1():
    y1, y2 = torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (N, D) twice
    loops, module = info_nce_in_loops(y1, y2), float(losses.info_nce(y1, y2))
    simclr = float(losses.info_nce(y1, y2, denominator="ntxent"))  # another number
    assert abs(loops - module) < 1e-12 and abs(loops - simclr) > 0.1
    assert abs(ntxent_in_loops(y1, y2) - simclr) < 1e-12
    same = torch.ones(7, 16, dtype=torch.float64)  # (N, D) all views equal
    assert abs(info_nce_in_loops(same, same) - math.log(4 * 6)) < 1e-12
    print(f"1  loops {loops:.12f}, info_nce {module:.12f}; with SimCLR's denominator {simclr:.3f}")


# ---------------------------------------------------------------- 2 · predict, then run
def exercise_2():
    """Both strided layers need an odd map: H odd, and (H + 1)/2 odd.  So H = 4m + 1."""
    predicted = [size for size in range(27, 34) if size % 4 == 1]
    found = {}
    for size in range(27, 34):
        x = digits(16, size)  # (16, 1, H, H)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gconv.py warns of the sizes that are not exact
            f, _ = network(x)
            d = losses.distances(f, x, ROTATION, torch.tensor([1]), torch.tensor([0]))
        found[size] = d["equation1"][0], d["invariance"][0]
    exact = [size for size, (error, _) in found.items() if error < 1e-12]
    assert exact == predicted == [29, 33]
    assert all(error > 1e-3 for size, (error, _) in found.items() if size not in exact)
    print("2  exact sizes", exact, "; Eq. 1 error (and invariance) at 28 px: {:.2f} ({:.2f})".format(*found[28]))


# ---------------------------------------------------------------- 3 · shift_base for another group
class Dihedral:
    """D4: four turns, with or without a mirror first.  Element (m, r), "mirror m times, then turn r times", is number 4·m + r.

    A turn after a mirror is the mirror after the opposite turn.  So the order of two elements matters."""

    order, spatial = 8, False

    def product(self, a, b):
        """a·b, first b and then a: (…,) long."""
        turn = torch.where(a // 4 == 1, a % 4 - b % 4, a % 4 + b % 4) % 4  # a's mirror turns b's turns round
        return (a // 4 + b // 4) % 2 * 4 + turn

    def inverse(self, a):
        """a⁻¹: a mirrored element undoes itself; a turn is undone by the opposite turn.  (…,) long."""
        return torch.where(a // 4 == 1, a, -a % 4)

    def shift_base(self, g, g0):
        """g⁻¹·g0: g (B,), g0 (|g0|,) or (B, |g0|) → (B, |g0|) long.  The inverse stands on the left."""
        return self.product(self.inverse(g)[:, None], torch.atleast_2d(g0))

    def T(self, x, g):
        """T_g x: images (B, C, H, H), g (B,) → the same shape."""
        images = [one.flip(-1) if k >= 4 else one for one, k in zip(x, g.tolist())]  # B × (C, H, H)
        return torch.stack([one.rot90(k % 4, (-2, -1)) for one, k in zip(images, g.tolist())])  # (B, C, H, H)


class OnImages:
    """An exactly equivariant network for any finite group: z(k) = φ(T_{k⁻¹} x), for any function φ of an image.

    f(T_g x)(k) = φ(T_{k⁻¹} T_g x) = φ(T_{(g⁻¹·k)⁻¹} x) = f(x)(g⁻¹·k): this is Eq. 1."""

    def __init__(self, group, phi):
        self.group, self.phi = group, phi

    def __call__(self, x):
        k = torch.arange(self.group.order)  # (|G|,)
        copies = [self.phi(self.group.T(x, back.expand(len(x)))) for back in self.group.inverse(k)]  # |G| × (B, C)
        return torch.stack(copies, 1)  # (B, |G|, C) fibers


def exercise_3():
    group, every = Dihedral(), torch.arange(8)  # (8,)
    a, b, c = torch.cartesian_prod(every, every, every).T  # (512,) three times
    assert set(group.product(a, b).tolist()) == set(range(8))  # closure
    assert torch.equal(group.product(group.product(a, b), c), group.product(a, group.product(b, c)))
    assert torch.equal(group.product(a, 0 * a), a) and torch.equal(group.product(0 * a, a), a)  # identity
    assert (group.product(group.inverse(every), every) == 0).all()
    assert (group.product(a, b) != group.product(b, a)).any()  # not commutative
    x = digits(8)  # (8, 1, 29, 29)
    one, (a, b) = x[:1].expand(64, -1, -1, -1), torch.cartesian_prod(every, every).T  # (64, 1, 29, 29), (64,) twice
    assert torch.equal(group.T(group.T(one, b), a), group.T(one, group.product(a, b))) and torch.equal(group.T(x, 0 * every), x)  # an action
    matrix = torch.randn(29 * 29, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (H·H, C)
    f = OnImages(group, lambda x: torch.relu(x.flatten(1) @ matrix))
    g, g0 = every, torch.tensor([0, 6]).expand(8, -1)  # (8,), (8, 2)
    left = bundle(f(group.T(x, g)), g0)  # (8, 2·C)
    right = bundle(f(x), group.shift_base(g, g0))  # (8, 2·C)
    wrong = bundle(f(x), group.product(g0, group.inverse(g)[:, None]))  # (8, 2·C) the inverse on the right: g0·g⁻¹
    gap, null = (float((left - other).abs().max()) for other in (right, wrong))
    assert gap < 1e-10 and null > 1
    print(f"3  D4: f(T_g x)(g0) and f(x)(g⁻¹·g0) differ by {gap:.0e}; with g0·g⁻¹ by {null:.1f}")


# ---------------------------------------------------------------- 4 · find the bug
class Backwards(Rotation):
    """Rotation with the bug: g·g0 where g⁻¹·g0 should be."""

    def shift_base(self, g, g0):
        return (torch.atleast_2d(g0) + g[:, None]) % 4  # (B, |g0|)


def exercise_4():
    """Step 1 fails first: Γ_g uses `shift_base` to move the lifted axis.  Only step 3 still holds, as both of its sides have the bug.

    Where g = g⁻¹ (no turn and half a turn) nothing fails.  And training would not show it: g1 and g2 are uniform, so that
    -g1 and -g2 are drawn as often.  Of the losses only the comparison of Eq. 2 and Eq. 3, draw by draw, finds it."""
    bug, x = Backwards(), digits(32)  # (32, 1, 29, 29)
    f, h = network(x)
    g, g0 = torch.arange(32) % 4, torch.zeros(32, 1, dtype=torch.long)  # (B,), (B, 1)
    with torch.no_grad():
        z, turned = f(x), f(bug.T(x, g))  # (B, C, 4, 8, 8) twice
        step1 = (turned - bug.Gamma(z, g)).abs().amax((1, 2, 3, 4))  # (B,)
        step3 = fibers(bug.Gamma(z, g), bug)[:, 0] - bundle(fibers(z, bug), bug.shift_base(g, g0))  # (B, C)
        g2 = torch.arange(32) // 8  # (B,) with g: each pair of turns twice
        draws = [(g, g2), (-g % 4, -g2 % 4)]
        eq2 = [float(losses.info_nce(*losses.a_ssl(f, h, x, bug, g0, *d))) for d in draws]
        eq3 = [float(losses.info_nce(*losses.h_ssl(f, h, x, bug, g0, *d))) for d in draws]
    assert (step1[g % 2 == 1] > 1e-2).all() and step1[g % 2 == 0].max() < 1e-10  # quarter turns only
    assert step3.abs().max() < 1e-10
    assert abs(eq2[0] - eq3[0]) > 1e-4  # the losses differ …
    assert abs(eq2[0] - eq3[1]) < 1e-10 and abs(eq2[1] - eq3[0]) < 1e-10  # … but each is the other's for the opposite turns
    print(f"4  step 1 off by {step1.max():.2f}, step 3 by {step3.abs().max():.0e}; losses {eq2[0]:.4f} and {eq3[0]:.4f}, "
          f"with the opposite turns {eq2[1]:.4f} and {eq3[1]:.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for exercise in (exercise_1, exercise_2, exercise_3, exercise_4):
        exercise()
