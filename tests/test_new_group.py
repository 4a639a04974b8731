"""The worked example of notebook 05, D4, taken out of the notebook and run: it is a group, it acts,
its network is equivariant, Eq. 2 = Eq. 3 holds for it, and with the wrong order of a product Eq. 3
is another number."""

import copy
import os
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import ROOT, blobs, relative, trained

from backbones import Head, MNISTNet
from gconv import GConv
from groups import bundle, fibers, pairs, sample
from losses import HSSL, a_ssl, h_ssl, info_nce

pytestmark = pytest.mark.slow
ALL = torch.arange(8)  # (8,)
PAIRS = torch.cartesian_prod(ALL, ALL).T  # (2, 64)


@pytest.fixture(scope="module")
def example():
    """What the notebook's cells with the tag "definition" define, run one after another, and their
    text as `code`."""
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
    """The notebook's network with another extent, or another convolution."""
    conv = conv or example.D4Conv
    f = MNISTNet(rotations=4, width=0.25, extent=extent, conv=conv, group=example.D4())
    return f.double()


def by_element(f, x, group):
    """‖f(T_g x) - Γ_g f(x)‖ / ‖Γ_g f(x)‖ for each g, x one image (1, C_in, H, H): 8 floats."""
    x = x.expand(8, -1, -1, -1)  # (8, C_in, H, H)
    with torch.no_grad():
        left, right = f(group.T(x, ALL)), group.Gamma(f(x), ALL)  # (8, C, 8, H', H')
    return [relative(p, q) for p, q in zip(left, right, strict=True)]


def commuting(group):
    a, b = PAIRS  # (64,) each
    return group.product(a, b) == group.product(b, a)  # (64,)


def test_the_definitions_are_short(example):
    """Short enough to be read: the four steps have at most 50 lines of code."""
    start, end = example.code.index("class D4Elements"), example.code.index("class WrongOrder")
    assert sum(bool(line.strip()) for line in example.code[start:end].split("\n")) <= 50


# ---------------------------------------------------------------- steps 1 to 3
def test_axioms(example):
    group = example.D4()
    a, b, c = torch.cartesian_prod(ALL, ALL, ALL).T  # (512,) each
    assert torch.equal(group.product(group.product(a, b), c), group.product(a, group.product(b, c)))
    table = group.product(
        ALL[:, None], ALL
    )  # (8, 8), a Latin square: closed, and every row a permutation
    assert all(torch.equal(row.sort().values, ALL) for row in (*table, *table.T))
    assert torch.equal(table[0], ALL) and torch.equal(table[:, 0], ALL)
    assert not group.product(ALL, group.inverse(ALL)).any()
    assert not group.product(group.inverse(ALL), ALL).any()
    assert commuting(group).sum() == 40  # 64 - 24: not abelian


def test_T_and_Gamma_are_exact_actions(example):
    """T_a T_b = T_ab and Γ_a Γ_b = Γ_ab for all 64 pairs, bit for bit, and T_ba wherever a and b
    commute and nowhere else."""
    group, (a, b) = example.D4(), PAIRS  # (64,) each
    for act, x in ((group.T, torch.randn(1, 2, 5, 5)), (group.Gamma, torch.randn(1, 3, 8, 5, 5))):
        x = x.expand(64, *x.shape[1:])  # (64, …)
        twice = act(act(x, b), a)  # (64, …)
        assert torch.equal(twice, act(x, group.product(a, b)))
        other = act(x, group.product(b, a))  # (64, …)
        assert torch.equal((twice == other).flatten(1).all(1), commuting(group))
        eight = act(x[:8], ALL)  # (8, …)
        assert torch.equal(eight[0], x[0]) and len(eight.flatten(1).unique(dim=0)) == 8
    square = torch.arange(4.0).view(1, 1, 2, 2)  # (B, C, H, H)
    assert group.T(square, torch.tensor([4])).flatten().tolist() == [1, 0, 3, 2]  # left is right
    assert group.T(square, torch.tensor([1])).flatten().tolist() == [
        1,
        3,
        0,
        2,
    ]  # counter-clockwise
    assert group.T(square, torch.tensor([5])).flatten().tolist() == [0, 2, 1, 3]  # mirror first


def test_a_bundle_is_gamma_read_at_the_base(example, double):
    """Γ_g[z](g0) = z(g⁻¹·g0) for all g and every size of g0, and not z(g0·g⁻¹)."""
    group, z = (
        example.D4(),
        torch.randn(1, 3, 8, 5, 5).expand(8, -1, -1, -1, -1),
    )  # (B, C, 8, H', H')
    moved = fibers(group.Gamma(z, ALL), group)  # (8, 8, 3)
    for size in range(1, 8):
        g0 = group.base_space(size)  # (|g0|,)
        assert len(g0.unique()) == size
        left = bundle(moved, g0.expand(8, -1))  # (8, |g0|·C)
        right = bundle(fibers(z, group), group.shift_base(ALL, g0))
        assert left.shape == (8, 3 * size) and torch.allclose(left, right, atol=1e-12)
        if size > 1:  # the identity alone commutes with everything
            off = bundle(fibers(z, group), example.wrong.shift_base(ALL, g0))
            assert relative(off, left) > 0.1


def test_distances_and_draws(example):
    group = example.D4()
    d = group.distance(ALL[:, None], ALL, "topological")  # (8, 8)
    assert d[0].tolist() == [0, 1, 2, 1, 1, 2, 3, 2]
    assert torch.equal(d, d.T) and (d[:, :, None] + d[None] >= d[:, None, :]).all()
    for g in ALL:
        moved = group.product(g, ALL)
        assert torch.equal(group.distance(moved[:, None], moved, "topological"), d)
    assert torch.equal(group.distance(ALL[:, None], ALL), d**2)
    g0 = group.base_space(2)  # (2,)
    near = pairs(group, g0, 1, "topological")
    assert torch.equal(near.elements, ALL)
    assert (near.counts == 4).all()  # itself, two turns, one mirror
    g1, g2 = sample(near, 500)  # (500,) each
    slot1, slot2 = (group.shift_base(g, g0)[:, 0] for g in (g1, g2))  # (500,) each
    assert (group.distance(slot1, slot2) <= 1).all()
    assert len(torch.stack([g1, g2], 1).unique(dim=0)) == 32


# ---------------------------------------------------------------- step 4
@pytest.mark.parametrize("e", [3, 7])
def test_filters_are_the_eight_copies_of_one(example, double, e):
    """T_g ψ at element g: the coefficients say it, and so do the pixels."""
    conv = example.D4Conv(2, 3, 7, e)
    kernel = torch.stack([conv.kernel(g) for g in range(8)])  # (8, C_out, C_in, 7, 7)
    copies = example.D4().T(kernel[:1].expand(8, -1, -1, -1, -1), ALL)
    assert torch.allclose(kernel, copies, atol=1e-13)


@pytest.mark.parametrize(
    "extent, jets_above",
    [(1, 0), (3, 10**9), (8, 0)],
    ids=["1-W(B*x)", "3-(WB)*x", "8-W(B*x)"],
)
def test_f_of_T_is_Gamma_of_f(example, double, monkeypatch, extent, jets_above):
    """All eight g, trained weights, every position of the map: 1e-10.  With extent 8, Eq. 4 in
    full, the eight elements mix."""
    monkeypatch.setattr(GConv, "jets_above", jets_above)
    f = copy.deepcopy(example.f) if extent == 1 else network(example, extent)
    f = trained(f, torch.rand(4, 1, 29, 29))
    assert f(torch.rand(1, 1, 29, 29)).shape == (1, 32, 8, 8, 8)
    assert max(by_element(f, torch.rand(1, 1, 29, 29), example.D4())) < 1e-10


def test_each_half_of_step_4_is_needed(example, double):
    """Without the mirrored coefficients the turns stay exact, and the mirrors are wrong by over a
    half; with neighbours k·g instead of g·k, so is every element that does not commute
    with all the others."""

    class NotMirrored(example.D4Conv):
        def turned(self, w, g):
            return GConv.turned(self, w, g)

    class Swapped(example.D4Conv):
        def neighbours(self, g):
            product = example.D4().product
            return [(k, int(product(torch.tensor(k), g))) for k in range(self.extent)]

    x = blobs(1, 29)  # (1, C_in, H, H)
    errors = by_element(network(example, conv=NotMirrored).eval(), x, example.D4())
    assert max(errors[:4]) < 1e-10 and min(errors[4:]) > 0.5
    errors = by_element(network(example, 8, Swapped).eval(), x, example.D4())
    assert max(errors[0], errors[2]) < 1e-10
    assert min(errors[g] for g in (1, 3, 4, 5, 6, 7)) > 0.1


# ---------------------------------------------------------------- Eq. 2 = Eq. 3
def value_and_gradients(f, h, views):
    value = info_nce(*views)
    return value, torch.autograd.grad(value, [*f.parameters(), *h.parameters()])


@pytest.mark.parametrize(
    "extent, size, training", [(1, 3, False), (1, 3, True), (1, 5, True), (8, 2, False)]
)
def test_equation_2_is_equation_3(example, double, extent, size, training):
    """Loss and all gradients, to 1e-10, weights trained; BatchNorm fixed or learning."""
    group = example.D4()
    f = trained(network(example, extent), torch.rand(4, 1, 29, 29)).train(training)
    h = trained(Head(size * 32, (16, 16, 16)), torch.randn(8, size * 32)).train(training)
    x, drawn = torch.rand(6, 1, 29, 29), HSSL(group, size).draw(6)
    a, ga = value_and_gradients(f, h, a_ssl(f, h, x, group, *drawn))
    b, gb = value_and_gradients(f, h, h_ssl(f, h, x, *drawn))
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb, strict=True))


def test_the_wrong_order_breaks_it(example, double):
    """z(g0·g⁻¹) is z(g⁻¹·g0) for the 40 pairs (g, g0) that commute; for each of the other 24 it is
    off by more than 10 %.  Eq. 3 with it is another number (by more than 0.002) with other
    gradients (by more than 30 %)."""
    group, wrong, (g, g0) = example.D4(), example.wrong, PAIRS
    f, h, x = example.f, example.h, example.x[:12]  # x (B, C_in, H, W)
    with torch.no_grad():
        z = fibers(f(x[:1]), group).expand(64, -1, -1)  # (64, 8, C)
    right = bundle(z, group.shift_base(g, g0[:, None]))  # (64, C)
    off = bundle(z, wrong.shift_base(g, g0[:, None]))
    errors = (off - right).norm(dim=1) / right.norm(dim=1)  # (64,)
    print(f"wrong order: {errors[~commuting(group)].min():.3f} … {errors.max():.3f}")
    assert (errors[commuting(group)] == 0).all() and (errors[~commuting(group)] > 0.1).all()
    picked = PAIRS[:, ~commuting(group)][:, ::2]  # (2, 12) pairs that do not commute
    views = picked[1][:, None], picked[0], picked[0].roll(1)  # g0 (B, 1), g1 (B,), g2 (B,)
    a, ga = value_and_gradients(f, h, a_ssl(f, h, x, group, *views))
    b, gb = value_and_gradients(f, h, h_ssl(f, h, x, *views))
    f = copy.deepcopy(f)
    f.group = wrong
    c, gc = value_and_gradients(f, h, h_ssl(f, h, x, *views))
    apart = max(map(relative, gc, ga))
    print(f"Eq. 2 {a:.6f}, Eq. 3 {b:.6f}, in the wrong order {c:.6f}, gradients {apart:.3f}")
    assert abs((a - b).item()) < 1e-10 and max(map(relative, gb, ga)) < 1e-10
    assert abs((a - c).item()) > 0.002 and apart > 0.3
