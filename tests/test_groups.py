"""Groups: the axioms, the two actions, bundles, and which g are drawn."""
import itertools

import pytest
import torch
from conftest import blobs, relative

from groups import (SCALES, Rotation, RotationScale, Scale, Translation, bundle, fibers, pairs, sample, shrink_matrix)

GROUPS = {"trans": Translation(4, 5), "rot": Rotation()}
LISTS = {"scale": Scale(), "rotscale": RotationScale()}  # finite lists, not groups


def triples(group):
    g = torch.arange(group.order)
    return torch.cartesian_prod(g, g, g).T


@pytest.mark.parametrize("name", GROUPS)
def test_group_axioms(name):
    group = GROUPS[name]
    a, b, c = triples(group)
    g = torch.arange(group.order)
    assert (group.product(group.product(a, b), c) == group.product(a, group.product(b, c))).all()
    assert (group.product(g, torch.zeros_like(g)) == g).all() and (group.product(torch.zeros_like(g), g) == g).all()
    assert (group.product(g, group.inverse(g)) == 0).all() and (group.product(group.inverse(g), g) == 0).all()
    table = group.product(g[:, None], g[None])  # a Latin square: closed, and every row a permutation
    assert all((row.sort().values == g).all() for row in (*table, *table.T))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_scales_is_not_a_group(name):
    group = LISTS[name]
    a, b, c = triples(group)
    left, right = group.product(group.product(a, b), c), group.product(a, group.product(b, c))
    assert (left == right).all()  # associative, "off the list" included …
    g = torch.arange(group.order)
    assert (group.product(g, torch.zeros_like(g)) == g).all()  # … with an identity …
    assert (group.product(g, g) == -1).any()  # … but not closed …
    assert (group.inverse(g) == -1).sum() == group.order - (4 if name == "rotscale" else 1)  # … and without inverses
    with_inverse = g[group.inverse(g) >= 0]
    assert (group.product(with_inverse, group.inverse(with_inverse)) == 0).all()


def pairs_of(group):
    g = torch.arange(group.order)
    return torch.cartesian_prod(g, g).T


@pytest.mark.parametrize("group", [Rotation(), Translation(5, 7, wrap=True), Translation(5, 7, stride=2, wrap=True)])
def test_T_and_Gamma_are_exact_actions(group):
    """T_a T_b = T_ab and Γ_a Γ_b = Γ_ab, bit for bit."""
    a, b = pairs_of(group)
    s = getattr(group, "stride", 1)
    size = (8, 8) if isinstance(group, Rotation) else (5 * s, 7 * s)
    x = torch.randn(1, 2, *size).expand(len(a), -1, -1, -1)
    z = torch.randn(1, 3, 4, *((8, 8) if isinstance(group, Rotation) else (5, 7))).expand(len(a), -1, -1, -1, -1)
    assert torch.equal(group.T(group.T(x, b), a), group.T(x, group.product(a, b)))
    assert torch.equal(group.Gamma(group.Gamma(z, b), a), group.Gamma(z, group.product(a, b)))
    e = torch.zeros_like(a)
    assert torch.equal(group.T(x, e), x) and torch.equal(group.Gamma(z, e), z)


def test_translation_filled_with_background_is_an_action_while_nothing_leaves_the_frame():
    group = Translation(15, 15)
    near = torch.tensor([g for g in range(group.order) if max(map(abs, map(int, group.signed(torch.tensor(g))))) <= 2])
    a, b = torch.cartesian_prod(near, near).T
    x = torch.zeros(len(a), 1, 15, 15)
    x[:, :, 4:11, 4:11] = torch.rand(7, 7)  # four pixels of margin, two shifts of at most two
    assert torch.equal(group.T(group.T(x, b), a), group.T(x, group.product(a, b)))
    far = torch.full((1,), 7)  # seven columns: the stroke leaves, and does not come back
    assert not torch.equal(group.T(group.T(x[:1], far), group.inverse(far)), x[:1])


def test_scale_acts_only_nearly_and_by_how_much(double):
    """On a geometric list T_1 T_1 and T_2 differ by resampling alone; on the paper's also because 1.25² ≠ 1.33."""
    x = blobs(16, 65)
    one, two = torch.full((16,), 1), torch.full((16,), 2)
    error = {}
    for name, factors in {"geometric": (1.0, 1.2, 1.44), "paper": SCALES}.items():
        group = Scale(factors)
        assert torch.equal(group.T(x, torch.zeros_like(one)), x)
        error[name] = relative(group.T(group.T(x, one), one), group.T(x, two))
    # A triangle of width σ has variance about (σ²+1)/6 source pixels; the strokes are 2.6 … 6.4 px wide, so one
    # resampling widens them by at most 1 - 2.6/√(2.6² + 0.41) = 3 %, and two by twice that.
    assert error["geometric"] < 0.06
    assert error["paper"] > 0.2  # 1.5625 for 1.33


def test_shrinking_keeps_the_mean_of_what_is_inside_and_fills_background(double):
    for s in SCALES:
        a = shrink_matrix(29, s)
        inside = ((torch.arange(29) - 14.0) * s).abs() <= 14.5
        assert torch.allclose(a.sum(1), inside.double(), atol=1e-12)
        assert torch.allclose(a, a.flip(0, 1), atol=1e-14)  # about the centre
    assert torch.equal(shrink_matrix(29, 1.0), torch.eye(29))


def test_actions_are_per_example_and_keep_dtype():
    for group, size in ((Rotation(), 9), (Translation(9, 9), 9), (Scale(), 9), (RotationScale(), 9)):
        x = torch.rand(6, 2, size, size)
        g = torch.arange(6) % group.order
        together = group.T(x, g)
        for i in range(6):
            assert torch.allclose(together[i:i + 1], group.T(x[i:i + 1], g[i:i + 1]), atol=1e-6)
        assert together.dtype == x.dtype


def test_integer_images_are_moved_but_not_shrunk():
    """Turning and shifting keep uint8; shrinking averages, so it refuses what it could only round."""
    u, g = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8), torch.tensor([1, 2, 3])
    for group in (Rotation(), Translation(9, 9)):
        assert torch.equal(group.T(u, g).float(), group.T(u.float(), g)) and group.T(u, g).dtype == torch.uint8
    for group in (Scale(), RotationScale()):
        with pytest.raises(ValueError, match=r"call x\.float\(\)"):
            group.T(u, g)


def test_bundle_is_gamma_read_at_the_base(double):
    """Γ_g[z](g0) = z(g⁻¹·g0), Section 2: what moves the map also moves the base space, the other way."""
    for group, z in ((Rotation(), torch.randn(8, 3, 4, 5, 5)),
                     (Translation(6, 6, wrap=True), torch.randn(8, 3, 1, 6, 6)),
                     (Scale(), torch.randn(8, 3, 6, 1, 1))):  # one pixel: shrinking it does nothing
        for size in (1, 3 if group.order < 10 else 4):
            g0 = group.base_space(size)
            g = pairs(group, g0)[0]
            g = g[torch.randint(len(g), (8,))]
            moved = group.shift_base(g, g0)
            left = bundle(fibers(group.Gamma(z, g), group), g0.expand(8, -1))
            right = bundle(fibers(z, group), moved)
            assert left.shape == (8, size * 3)
            assert torch.allclose(left, right, atol=1e-12)


def test_order_of_a_bundle_matters():
    z = torch.randn(2, 3, 4)  # fibers (B, |G|, C) of C4
    z = z.transpose(1, 2)
    forwards, backwards = torch.tensor([[0, 1]] * 2), torch.tensor([[1, 0]] * 2)
    assert not torch.equal(bundle(z, forwards), bundle(z, backwards))
    assert torch.equal(bundle(z, forwards)[:, :3], z[:, 0]) and torch.equal(bundle(z, forwards)[:, 3:], z[:, 1])


@pytest.mark.parametrize("group", [Translation(5, 4), Rotation(), Scale(), RotationScale((1.0, 1.5, 2.0))])
def test_base_spaces_of_every_size(group):
    """Every legal |g0| gives distinct elements, whole wherever it may be put; 0 and |G| are refused."""
    for size in range(1, group.order):
        if isinstance(group, Translation) and size not in {h * w for h in range(1, 6) for w in range(1, 5)}:
            with pytest.raises(ValueError, match="for example"):
                group.base_space(size)
            continue
        g0 = group.base_space(size)
        assert len(g0) == size == len(g0.unique())
        g, _ = pairs(group, g0)
        moved = group.shift_base(g, g0)
        assert (moved >= 0).all() and (moved < group.order).all()
        assert all(len(row.unique()) == size for row in moved)
        assert len(moved.unique(dim=0)) == len(moved)  # different g, different bundles
        if isinstance(group, Translation):  # a patch stays a patch: same height and width everywhere
            y, x = moved // group.width, moved % group.width
            assert len((y.amax(1) - y.amin(1)).unique()) == len((x.amax(1) - x.amin(1)).unique()) == 1
    for size in (0, group.order):
        with pytest.raises(ValueError):
            group.base_space(size)


def test_distances():
    rot, scale, trans = Rotation(), Scale(), Translation(5, 7)
    zero, three = torch.tensor(0), torch.tensor(3)
    assert rot.distance(zero, three) == 9 and rot.distance(zero, three, "topological") == 1
    assert scale.distance(zero, three) == 9
    assert abs(scale.distance(zero, three, "topological") - torch.tensor(1.5).log()) < 1e-6
    corner = torch.tensor(4 * 7 + 6)
    assert trans.distance(zero, corner) == 4 ** 2 + 6 ** 2 and trans.distance(zero, corner, "topological") == 2
    for group in (rot, scale, trans, RotationScale()):
        g = torch.arange(group.order)
        for metric in ("euclidean", "topological"):
            d = group.distance(g[:, None], g[None], metric)
            assert torch.equal(d, d.T) and (d.diagonal() == 0).all() and (d[~torch.eye(len(g), dtype=bool)] > 0).all()
        with pytest.raises(ValueError, match="'euclidean' or 'topological'"):
            group.distance(zero, zero, "manhattan")
        elsewhere = g.to("meta")  # a device without numbers: constants on another one would be refused, as on a GPU
        assert group.distance(elsewhere, elsewhere, "topological").device.type == "meta"


@pytest.mark.parametrize("metric", ["euclidean", "topological"])
@pytest.mark.parametrize("group", [Translation(6, 6), Rotation(), Scale()])
def test_sampled_pairs_respect_the_distance_and_reach_all_of_it(group, metric):
    g0 = group.base_space(1)
    limit = 2.0 if not (isinstance(group, Scale) and metric == "topological") else 0.3
    g, allowed = pairs(group, g0, limit, metric)
    g1, g2 = sample(g, allowed, 20000, torch.Generator().manual_seed(0))
    p1, p2 = (group.shift_base(x, g0)[:, 0] for x in (g1, g2))
    assert (group.distance(p1, p2, metric) <= limit).all()
    place = group.shift_base(torch.arange(group.order), g0)[:, 0]  # (|G|,)
    assert len(torch.stack([g1, g2], 1).unique(dim=0)) == int((group.distance(place[:, None], place, metric) <= limit).sum())
    counts = torch.bincount(g1, minlength=group.order)[g].double()  # g1 is uniform: within 6 σ of a binomial
    expected = 20000 / len(g)
    assert ((counts - expected).abs() < 6 * expected ** 0.5).all()
    with pytest.raises(ValueError, match="nearest are"):
        pairs(group, g0, 1e-3, metric)


def test_wrong_groups_and_elements_are_refused():
    none, x, z = torch.tensor([-1]), torch.rand(1, 1, 5, 5), torch.rand(1, 2, 4, 5, 5)
    for bad in (lambda: Translation(0, 3), lambda: Scale((1.0, 0.5)), lambda: Scale((2.0, 3.0)), lambda: Scale().T(x, none), lambda: RotationScale().T(x, none),
                lambda: fibers(z, Translation(10, 10)),  # 4·25 numbers are not 100 positions
                lambda: Rotation().T(torch.zeros(1, 1, 3, 4), torch.tensor([1]))):
        with pytest.raises(ValueError):
            bad()


def test_rotation_turns_counter_clockwise():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(Rotation().T(x, torch.tensor([1]))[0, 0], torch.tensor([[1.0, 3.0], [0.0, 2.0]]))


def test_what_is_filled_in_is_0_even_beside_inf():
    x, z = torch.rand(1, 1, 5, 5), torch.rand(1, 1, 6, 5, 5)
    x[..., 4, 4], z[:, :, 5] = torch.inf, torch.inf
    assert (Translation(5, 5).T(x, torch.tensor([6]))[0, 0, 0] == 0).all()
    assert (Scale().Gamma(z[..., :1, :1], torch.tensor([3]))[:, :, 3:] == 0).all()


def test_translation_moves_by_whole_strides():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 1, 1] = 1
    group = Translation(3, 3, stride=2)
    assert group.T(x, torch.tensor([1 * 3 + 1]))[0, 0, 3, 3] == 1  # (dy, dx) = (1, 1): two pixels each
    assert list(itertools.chain(*group.coordinates(torch.tensor([5])).tolist())) == [1, 2]


@pytest.mark.parametrize("group", [Rotation(), Scale(), RotationScale()])
@pytest.mark.parametrize("shape", [(2, 5, 7, 7), (2, 5, 5, 7, 7)])
def test_gamma_takes_maps_of_its_group_only(group, shape):
    with pytest.raises(ValueError, match="a feature map of this group"):
        group.Gamma(torch.rand(shape), torch.tensor([0, 0]))


def test_fibers_are_pooled_by_mean_or_max():
    z = torch.rand(2, 3, 4, 5, 5)  # (B, C, G, H', W')
    assert torch.allclose(fibers(z, Rotation()), z.mean((3, 4)).transpose(1, 2)) and torch.equal(fibers(z, Rotation(), "max"), z.amax((3, 4)).transpose(1, 2))
    with pytest.raises(ValueError, match="'avg'"):
        fibers(z, Rotation(), "avg")
