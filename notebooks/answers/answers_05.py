"""Answers to the exercises of notebook 05: python notebooks/answers/answers_05.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import torch

import data
import probe
import show
from backbones import MNISTNet
from gconv import GConv, turn
from groups import Group

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
ALL = torch.arange(8)
images = data.load("mnist5k").test_x[:128].double() / 255  # (128, 1, 29, 29)


# ---------------------------------------------------------------- the fill-ins
def inverse_from_product(group, a):
    table = group.product(a[:, None], torch.arange(group.order))  # (n, |G|)
    return (table == 0).long().argmax(1)


def mirrored(w):
    n = torch.arange(w.shape[-1])
    return w * (-1.0) ** n


class D4(Group):
    order = 8

    def product(self, a, b):
        return 4 * ((a // 4 + b // 4) % 2) + (a + (1 - 2 * (a // 4)) * b) % 4

    def inverse(self, a):
        return torch.where(a < 4, -a % 4, a)

    def T(self, x, g):
        eight = [y.rot90(r, (-2, -1)) for y in (x, x.flip(-1)) for r in range(4)]
        return torch.stack(eight, 1)[torch.arange(len(x)), g]


assert torch.equal(inverse_from_product(D4(), ALL), D4().inverse(ALL))
conv = GConv(1, 1, 7, 3)
kernel = conv.kernel(0).detach()
conv.weight.data = mirrored(conv.weight.detach())
assert torch.allclose(conv.kernel(0), kernel.flip(-1), atol=1e-14)
print("fill-ins: inverse_from_product and mirrored are right")


# ---------------------------------------------------------------- 1. a group of two elements
class Mirror(Group):
    """0 does nothing, 1 mirrors: left and right change places."""

    order = 2

    def product(self, a, b):
        return (a + b) % 2

    def inverse(self, a):
        return a

    def T(self, x, g):
        return torch.stack([x, x.flip(-1)], 1)[torch.arange(len(x)), g]


class MirrorConv(GConv):
    order = 2

    def turned(self, w, g):
        return mirrored(w) if g else w

    def scale_index(self, g):
        return 0


class NoMirror(MirrorConv):
    def turned(self, w, g):
        return w


error = {}
for layer in (MirrorConv, NoMirror):
    f = show.fed(MNISTNet(width=0.25, conv=layer, group=Mirror()), images)
    found = probe.distances(f, images, Mirror(), torch.tensor([1]), torch.tensor([0]))
    error[layer] = probe.mean_over_g(found, "error")
    print(f"1: {layer.__name__:10} error of Eq. 1 {error[layer]:.0e}")
assert error[MirrorConv] < 1e-12 < 0.1 < error[NoMirror]


# ---------------------------------------------------------------- 2. find the bug
class Forgetful(D4):
    def product(self, a, b):
        return 4 * ((a // 4 + b // 4) % 2) + (a + b) % 4

    def inverse(self, a):
        return a // 4 * 4 + -a % 4


group = Forgetful()
a, b, c = torch.cartesian_prod(ALL, ALL, ALL).T  # (512,) each
one = group.product(group.product(a, b), c)
assert torch.equal(one, group.product(a, group.product(b, c)))  # part 1 finds nothing …
assert not group.product(ALL, group.inverse(ALL)).any()
a, b = torch.cartesian_prod(ALL, ALL).T  # (64,) each
x = images[:1].expand(64, -1, -1, -1)
twice = group.T(group.T(x, b), a)
equal = (twice == group.T(x, group.product(a, b))).flatten(1).all(1)
print(f"2: T_a T_b = T_ab for {int(equal.sum())} of 64 pairs")
assert not equal.all()  # … and part 2 does
assert torch.equal(equal, group.product(a, b) == D4().product(a, b))
assert torch.equal(turn(turn(conv.weight, 1), 3), conv.weight)
