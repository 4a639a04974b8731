"""Answers to the exercises of notebook 05: python notebooks/answers/answers_05.py"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "notebooks")]

import nbformat
import torch

from backbones import MNISTNet
from data import load
from gconv import GConv
from losses import distances
from turning import fed

# What the notebook defines: D4 and its network.
cells = nbformat.read(os.path.join(ROOT, "notebooks", "05_add_a_group.ipynb"), as_version=4).cells
for cell in cells:
    if "definition" in cell.metadata.get("tags", []):
        exec(cell.source)
torch.set_grad_enabled(False)
ALL = torch.arange(8)  # (8,)
images = load("mnist5k").test_x[:128].double() / 255  # (128, 1, 29, 29)


# ---------------------------------------------------------------- 1. a group of two elements
class Mirror:
    """0 does nothing, 1 mirrors: left and right change places."""

    spatial, order = False, 2

    def product(self, a, b):
        return (a + b) % 2  # (…,)

    def inverse(self, a):
        return a  # (…,) both undo themselves

    def T(self, x, g):
        return torch.stack([x, x.flip(-1)], 1)[torch.arange(len(x)), g]  # (B, C, H, H)

    def shift_base(self, g, g0):
        return self.product(self.inverse(g)[:, None], torch.atleast_2d(g0))  # (B, |g0|)

    def Gamma(self, z, g):
        base = self.shift_base(g, torch.arange(2))  # (B, 2)
        maps = z.transpose(1, 2)[torch.arange(len(z))[:, None], base]  # (B, 2, C, H', W')
        return self.T(maps.transpose(1, 2), g)  # (B, C, 2, H', W')

    def base_space(self, size):
        return torch.arange(size)  # (|g0|,), size 1

    def fits_inside(self, g, g0):
        return torch.ones_like(g, dtype=torch.bool)  # (M,)

    def distance(self, g1, g2, metric="euclidean"):
        return (g1 - g2).abs().double()  # (…,) 0 or 1 in both metrics


class MirrorConv(GConv):
    def neighbours(self, g):
        return [(k, (g + k) % 2) for k in range(self.extent)]

    def coefficients(self, g):
        sign = (-1.0) ** (g * torch.arange(self.effective_size)).to(self.weight)  # (e,)
        return self.weight.flatten(1, 2) * sign  # (C_out, extent·C_in, e, e)


two_places = dict(scales=(1.0, 1.0))
mirror_net, plain_net = (MNISTNet(**two_places, width=0.25, conv=conv) for conv in (MirrorConv, GConv))
one, start = torch.tensor([1]), torch.tensor([0])  # g = 1, g0 = [0]
right = distances(fed(mirror_net, images), images, Mirror(), one, start)
wrong_net = distances(fed(plain_net, images), images, Mirror(), one, start)
print(f"1: error of Eq. 1 {right['equation1'][0]:.0e}; null {right['invariance'][0]:.2f};",
      f"with a plain GConv {wrong_net['equation1'][0]:.2f}")
assert right["equation1"][0] < 1e-12 < 0.1 < min(right["invariance"][0], wrong_net["equation1"][0])
z, x1 = mirror_net(images[:4]), images[:4]  # (4, 32, 2, 8, 8), (4, 1, 29, 29)
ones = torch.ones(4, dtype=torch.long)  # (4,)
assert torch.allclose(mirror_net(Mirror().T(x1, ones)), Mirror().Gamma(z, ones), atol=1e-11)


# ---------------------------------------------------------------- 2. inverse from product alone
def inverse_from_product(group, a):
    """The b with a·b = 0: in row a of the product table, the column that holds 0.  a (…,) → (…,)."""
    return (group.product(a[..., None], torch.arange(group.order)) == 0).long().argmax(-1)  # (…,)


assert torch.equal(inverse_from_product(D4(), ALL), D4().inverse(ALL))
print("2: inverse_from_product equals D4.inverse")

# ---------------------------------------------------------------- 3. predict, then run
left_side, right_side = (s.shift_base(ALL, ALL) for s in (D4(), WrongOrder()))  # (8, 8) twice
commute = (left_side == right_side)  # (8, 8)
print(f"3: {int(commute.sum())} of 64 pairs; elements that commute with all: {commute.all(1).nonzero().flatten().tolist()}")
assert commute.sum() == 40 and commute.all(1).nonzero().flatten().tolist() == [0, 2]  # nothing, and the half turn


# ---------------------------------------------------------------- 4. find the bug
class Forgetful(D4):
    def product(self, a, b):
        return 4 * ((a // 4 + b // 4) % 2) + (a + b) % 4  # (…,)

    def inverse(self, a):  # its own inverse, so that the rules of a group can be tested
        return a // 4 * 4 + -a % 4  # (…,)


group = Forgetful()
a, b, c = torch.cartesian_prod(ALL, ALL, ALL).T  # (512,) each
assert torch.equal(group.product(group.product(a, b), c), group.product(a, group.product(b, c)))
assert torch.equal(group.product(ALL, 0 * ALL), ALL) and not group.product(ALL, group.inverse(ALL)).any()
# With its own inverse all rules of step 1 hold: this product is a group too, but another, abelian one.  (The class of the
# notebook keeps D4's inverse, so there the rule of the inverse fails: 5·5 is not 0.)
assert D4().product(torch.tensor(5), torch.tensor(5)) == 0 != group.product(torch.tensor(5), torch.tensor(5))
a, b = torch.cartesian_prod(ALL, ALL).T  # (64,) each
x64 = images[:1].expand(64, -1, -1, -1)  # (64, 1, 29, 29)
equal = (group.T(group.T(x64, b), a) == group.T(x64, group.product(a, b))).flatten(1).all(1)  # (64,)
print(f"4: T_a T_b = T_ab for {int(equal.sum())} of 64 pairs")
assert not equal.all() and torch.equal(equal, group.product(a, b) == D4().product(a, b))
# The notebook's class fails in step 1 (the inverse).  With an inverse of its own only step 2 finds the bug: the numbers form a group, but
# not the group by which the images change.
