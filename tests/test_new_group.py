"""The group of notebook 05, D4, taken out of the notebook and tested harder than there."""

import os
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import ROOT, blobs, relative, trained
from test_groups import check_axioms

from backbones import Head, MNISTNet
from gconv import GConv
from groups import bundle, fibers, pairs, sample
from losses import HSSL, a_ssl, h_ssl, info_nce

pytestmark = pytest.mark.slow
ALL = torch.arange(8)  # (8,)
PAIRS = torch.cartesian_prod(ALL, ALL).T  # (2, 64)


@pytest.fixture(scope="module")
def example():
    """What the notebook's cells with the tag "definition" define, and their text as `code`."""
    path = os.path.join(ROOT, "notebooks", "05_add_a_group.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(c.source for c in cells if "definition" in c.metadata.get("tags", []))
    names = {}
    try:
        exec(compile(code, "05_add_a_group.ipynb", "exec"), names)
    finally:
        torch.set_default_dtype(torch.float32)
    return SimpleNamespace(**names, code=code)


def network(example, extent=1, conv=None):
    conv = conv or example.D4Conv
    return MNISTNet(width=0.25, extent=extent, conv=conv, group=example.D4()).double()


def by_element(f, x, group):
    """‖f(T_g x) - Γ_g f(x)‖ / ‖Γ_g f(x)‖ for each g, of one image x (1, C_in, H, H): 8 floats."""
    x = x.expand(8, -1, -1, -1)  # (8, C_in, H, H)
    with torch.no_grad():
        left = f(group.T(x, ALL))  # (8, C, 8, H', H')
        right = group.Gamma(f(x), ALL)
    return [relative(p, q) for p, q in zip(left, right)]


def commuting(group):
    a, b = PAIRS
    return group.product(a, b) == group.product(b, a)  # (64,)


def test_the_definitions_are_short(example):
    """The group and its layer: at most 35 lines of code."""
    text = example.code
    lines = text[text.index("class Elements") : text.index("class WrongOrder")].split("\n")
    assert sum(bool(line.strip()) for line in lines) <= 35


# ---------------------------------------------------------------- the group
def test_axioms(example):
    check_axioms(example.D4())
    assert commuting(example.D4()).sum() == 40  # not abelian


def test_T_and_Gamma_are_exact_actions(example):
    """T_a T_b = T_ab and Γ_a Γ_b = Γ_ab, bit for bit; with T_ba only where a and b commute."""
    group = example.D4()
    a, b = PAIRS
    for act, x in ((group.T, torch.randn(1, 2, 5, 5)), (group.Gamma, torch.randn(1, 3, 8, 5, 5))):
        x = x.expand(64, *x.shape[1:])
        twice = act(act(x, b), a)
        assert torch.equal(twice, act(x, group.product(a, b)))
        other = act(x, group.product(b, a))
        assert torch.equal((twice == other).flatten(1).all(1), commuting(group))
        eight = act(x[:8], ALL)
        assert torch.equal(eight[0], x[0]) and len(eight.flatten(1).unique(dim=0)) == 8
    square = torch.arange(4.0).view(1, 1, 2, 2)
    assert group.T(square, torch.tensor([4])).flatten().tolist() == [1, 0, 3, 2]  # left and right
    assert group.T(square, torch.tensor([1])).flatten().tolist() == [1, 3, 0, 2]  # against a clock
    assert group.T(square, torch.tensor([5])).flatten().tolist() == [0, 2, 1, 3]  # mirror first


def test_a_bundle_is_gamma_read_at_the_base(example, double):
    """Γ_g[z](g0) = z(g⁻¹·g0) for all g and every size of g0, and not z(g0·g⁻¹)."""
    group = example.D4()
    z = torch.randn(1, 3, 8, 5, 5).expand(8, -1, -1, -1, -1)  # (B, C, 8, H', H')
    moved = fibers(group.Gamma(z, ALL), group)  # (8, 8, 3)
    for size in range(1, 8):
        g0 = group.base_space(size)
        left = bundle(moved, g0.expand(8, -1))  # (8, |g0|·C)
        right = bundle(fibers(z, group), group.shift_base(ALL, g0))
        assert left.shape == (8, 3 * size) and torch.allclose(left, right, atol=1e-12)
        if size > 1:  # the identity alone commutes with everything
            wrong = bundle(fibers(z, group), example.WrongOrder().shift_base(ALL, g0))
            assert relative(wrong, left) > 0.1


# ---------------------------------------------------------------- the layers
def test_a_size_that_is_not_exact_is_said(example, recwarn):
    """Also of a group of one's own, whose layers have no `rotations`."""
    f = network(example).eval()
    by_size = {}
    for size in (29, 30):
        by_size[size] = by_element(f, torch.rand(1, 1, size, size).double(), example.D4())
    assert max(by_size[29]) < 1e-10 and max(by_size[30]) > 0.01
    assert {str(one.message)[:5] for one in recwarn} == {"30 px"}


@pytest.mark.parametrize("extent, jets_above", [(1, 0), (3, 10**9), (8, 0)])
def test_f_of_T_is_Gamma_of_f(example, double, monkeypatch, extent, jets_above):
    """All g, trained weights, every position: 1e-10.  With extent 8, all of Eq. 4, slots mix."""
    monkeypatch.setattr(GConv, "jets_above", jets_above)
    f = trained(network(example, extent), torch.rand(4, 1, 29, 29))
    x = torch.rand(1, 1, 29, 29)
    assert f(x).shape == (1, 32, 8, 8, 8)
    assert max(by_element(f, x, example.D4())) < 1e-10


def test_mirrored_filters_and_the_order_of_neighbours_are_needed(example, double):
    class Swapped(example.D4Conv):
        def neighbours(self, g):
            return [example.D4().product(k, g) for k in range(self.extent)]

    x = blobs(1, 29)
    errors = by_element(network(example, conv=example.TurnsOnly).eval(), x, example.D4())
    assert max(errors[:4]) < 1e-10 and min(errors[4:]) > 0.5
    errors = by_element(network(example, 8, Swapped).eval(), x, example.D4())
    assert max(errors[0], errors[2]) < 1e-10  # these two commute with all
    assert min(errors[g] for g in (1, 3, 4, 5, 6, 7)) > 0.1


# ---------------------------------------------------------------- Eq. 2 = Eq. 3
def value_and_gradients(views, f, h):
    value = info_nce(*views)
    return value, torch.autograd.grad(value, [*f.parameters(), *h.parameters()])


@pytest.mark.parametrize("extent, size, training", [(1, 3, False), (1, 5, True), (8, 2, False)])
def test_equation_2_is_equation_3(example, double, extent, size, training):
    """The loss and every gradient, to 1e-10, weights trained; also while BatchNorm learns."""
    group = example.D4()
    f = trained(network(example, extent), torch.rand(4, 1, 29, 29)).train(training)
    f.sampled = False  # the same slots in both, for BatchNorm
    h = trained(Head(size * 32, (16, 16, 16)), torch.randn(8, size * 32)).train(training)
    g0 = group.base_space(size)
    x = torch.rand(6, 1, 29, 29)
    g1, g2 = sample(pairs(group, g0), 6)
    g0 = g0.expand(6, -1)
    a, ga = value_and_gradients(a_ssl(f, h, x, group, g0, g1, g2), f, h)
    b, gb = value_and_gradients(h_ssl(f, h, x, g0, g1, g2), f, h)
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb))


def test_the_wrong_order_breaks_it(example, double):
    """z(g0·g⁻¹) is z(g⁻¹·g0) for the 40 pairs that commute, and far off for the others."""
    group = example.D4()
    wrong = example.WrongOrder()
    g, g0 = PAIRS
    f = trained(network(example), blobs(4, 29))
    h = Head(32).eval()
    x = blobs(12, 29)
    with torch.no_grad():
        z = fibers(f(x[:1]), group).expand(64, -1, -1)  # (64, 8, C)
    right = bundle(z, group.shift_base(g, g0[:, None]))  # (64, C)
    off = bundle(z, wrong.shift_base(g, g0[:, None]))
    differs = (right - z.mean(1)).norm(dim=1)  # (64,): a slot from the mean of all
    errors = (off - right).norm(dim=1) / differs
    assert (errors[commuting(group)] == 0).all()
    assert (errors[~commuting(group)] > 0.5).all()
    g, g0 = PAIRS[:, ~commuting(group)][:, ::2]  # 12 pairs that do not commute
    draws = g0[:, None], g, g.roll(1)
    a, ga = value_and_gradients(a_ssl(f, h, x, group, *draws), f, h)
    b, _ = value_and_gradients(h_ssl(f, h, x, *draws), f, h)
    f.group = wrong
    c, gc = value_and_gradients(h_ssl(f, h, x, *draws), f, h)
    assert abs((a - b).item()) < 1e-10
    assert abs((a - c).item()) > 0.002 and max(map(relative, gc, ga)) > 0.3


def test_the_draws_take_the_group_as_it_is(example):
    g0, g1, g2 = HSSL(example.D4(), base_size=2).draw(200)
    assert g0.shape == (200, 2) and len(g1.unique()) == len(g2.unique()) == 8
