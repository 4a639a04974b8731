"""Groups: the axioms, the two actions, bundles, and which g are drawn."""

import pytest
import torch
from conftest import blobs, relative

from groups import (
    SCALES,
    Numbered,
    Rotation,
    RotationScale,
    Scale,
    Translation,
    bundle,
    fibers,
    pairs,
    sample,
    shrink_matrices,
)

GROUPS = [Translation(4, 5), Rotation()]
LISTS = [Scale(), RotationScale(), Numbered(7)]  # finite lists, not groups
METRICS = ("euclidean", "topological")


def names(group):
    return type(group).__name__


def all_pairs(group):
    g = torch.arange(group.order)
    return torch.cartesian_prod(g, g).T


# ------------------------------------------------------------------------------------ axioms
def check_axioms(group):
    g = torch.arange(group.order)
    a, b, c = torch.cartesian_prod(g, g, g).T
    left = group.product(group.product(a, b), c)
    assert torch.equal(left, group.product(a, group.product(b, c)))
    assert not group.product(g, group.inverse(g)).any()
    assert not group.product(group.inverse(g), g).any()
    table = group.product(g[:, None], g)  # a Latin square: closed, every row a permutation
    assert all(torch.equal(row.sort().values, g) for row in (*table, *table.T))
    assert torch.equal(table[0], g) and torch.equal(table[:, 0], g)  # 0 is the identity


@pytest.mark.parametrize("group", GROUPS, ids=names)
def test_group_axioms(group):
    check_axioms(group)


@pytest.mark.parametrize("group", LISTS, ids=names)
def test_a_list_is_not_a_group(group):
    g = torch.arange(group.order)
    a, b, c = torch.cartesian_prod(g, g, g).T
    left = group.product(group.product(a, b), c)
    # Associative, "off the list" included, with an identity …
    assert torch.equal(left, group.product(a, group.product(b, c)))
    assert torch.equal(group.product(g, torch.zeros_like(g)), g)
    # … but not closed, and without inverses.
    assert (group.product(g, g) == -1).any()
    with_inverse = g[group.inverse(g) >= 0]
    assert len(with_inverse) == (4 if isinstance(group, RotationScale) else 1)
    assert not group.product(with_inverse, group.inverse(with_inverse)).any()


@pytest.mark.parametrize("group", LISTS, ids=names)
def test_on_a_list_the_base_space_moves_along_it(group):
    """g⁻¹·g0 = g0 + g along the scales, g0 - g round the circle, and -1 past the end."""
    g, g0 = all_pairs(group)
    turns = 4 if isinstance(group, RotationScale) else 1
    s = g0 // turns + g // turns
    expected = torch.where(s < group.order // turns, s * turns + (g0 - g) % turns, -1)
    assert torch.equal(group.shift_base(g, g0[:, None])[:, 0], expected)
    assert torch.equal(group.fits_inside(g, g0[:1]), group.shift_base(g, g0[:1])[:, 0] >= 0)


# ----------------------------------------------------------------------------------- actions
class Rolled(Translation):
    """Translations of a torus: what leaves the frame comes back on the other side."""

    def move(self, x, g, step):
        dy, dx = self.signed(g)
        moved = []
        for image, down, right in zip(x, dy.tolist(), dx.tolist()):
            moved.append(image.roll((step * down, step * right), (-2, -1)))
        return torch.stack(moved)


@pytest.mark.parametrize("group", [Rotation(), Rolled(5, 7), Rolled(5, 7, stride=2)])
def test_T_and_Gamma_are_exact_actions(group):
    """T_a T_b = T_ab and Γ_a Γ_b = Γ_ab, bit for bit."""
    a, b = all_pairs(group)
    e = torch.zeros_like(a)
    image, grid = (8, 8), (8, 8)
    if group.spatial:
        image, grid = (5 * group.stride, 7 * group.stride), (5, 7)
    x = torch.randn(1, 2, *image).expand(len(a), -1, -1, -1)
    z = torch.randn(1, 3, 4, *grid).expand(len(a), -1, -1, -1, -1)
    for act, start in ((group.T, x), (group.Gamma, z)):
        assert torch.equal(act(act(start, b), a), act(start, group.product(a, b)))
        assert torch.equal(act(start, e), start)


def test_translation_filled_with_background_is_an_action_while_nothing_leaves_the_frame():
    group = Translation(15, 15)
    near = group.augmentations(2 / 15)  # four pixels of margin, two shifts of at most two
    a, b = torch.cartesian_prod(near, near).T
    x = torch.zeros(len(a), 1, 15, 15)
    x[:, :, 4:11, 4:11] = torch.rand(7, 7)
    assert torch.equal(group.T(group.T(x, b), a), group.T(x, group.product(a, b)))
    far = torch.full((1,), 7)  # seven columns: the stroke leaves, and does not come back
    assert not torch.equal(group.T(group.T(x[:1], far), group.inverse(far)), x[:1])


def test_scale_acts_only_nearly_and_by_how_much(double):
    """T_1 T_1 and T_2 differ by resampling alone on a geometric list; on the paper's 1.25² ≠ 1.33.

    A triangle of width σ has variance about (σ²+1)/6 source pixels.  The strokes are 2.6 … 6.4 px
    wide, so one resampling widens them by at most 1 - 2.6/√(2.6² + 0.41) = 3 %, and two by twice
    that."""
    x = blobs(16, 65)
    one, two = torch.full((16,), 1), torch.full((16,), 2)
    error = {}
    for name, factors in {"geometric": (1.0, 1.2, 1.44), "paper": SCALES}.items():
        group = Scale(factors)
        assert torch.equal(group.T(x, torch.zeros_like(one)), x)
        error[name] = relative(group.T(group.T(x, one), one), group.T(x, two))
    assert error["geometric"] < 0.06 and error["paper"] > 0.2  # 1.5625 for 1.33


def test_shrinking_keeps_the_mean_of_what_is_inside_and_fills_background():
    for s, a in zip(SCALES, shrink_matrices(29, SCALES), strict=True):
        inside = ((torch.arange(29) - 14.0) * s).abs() <= 14.5
        assert torch.allclose(a.sum(1), inside.double(), atol=1e-12)
        assert torch.allclose(a, a.flip(0, 1), atol=1e-14)  # about the centre
    assert torch.equal(shrink_matrices(29, (1.0,))[0], torch.eye(29, dtype=torch.float64))


def test_rotation_turns_counter_clockwise():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    turned = Rotation().T(x, torch.tensor([1]))
    assert torch.equal(turned[0, 0], torch.tensor([[1.0, 3.0], [0.0, 2.0]]))


def test_translation_moves_by_whole_strides():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 1, 1] = 1
    group = Translation(3, 3, stride=2)
    assert group.T(x, torch.tensor([1 * 3 + 1]))[0, 0, 3, 3] == 1  # (dy, dx) = (1, 1): two pixels


@pytest.mark.parametrize("group", [Rotation(), Translation(9, 9), Scale(), RotationScale()])
def test_actions_are_per_example_and_keep_dtype(group):
    x, g = torch.rand(6, 2, 9, 9), torch.arange(6) % group.order
    together = group.T(x, g)
    for i in range(6):
        assert torch.allclose(together[i : i + 1], group.T(x[i : i + 1], g[i : i + 1]), atol=1e-6)
    assert together.dtype == x.dtype and group.T(x.double(), g).dtype == torch.float64


def test_integer_images_are_moved_but_not_shrunk():
    """Turning and shifting keep uint8; shrinking averages, so it refuses what it could round."""
    u, g = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8), torch.tensor([1, 2, 3])
    for group in (Rotation(), Translation(9, 9)):
        assert group.T(u, g).dtype == torch.uint8
        assert torch.equal(group.T(u, g).float(), group.T(u.float(), g))
    for group in (Scale(), RotationScale()):
        with pytest.raises(ValueError, match=r"x\.float\(\)"):
            group.T(u, g)


def test_what_is_filled_in_is_0_even_beside_inf():
    x, z = torch.rand(1, 1, 5, 5), torch.rand(1, 1, 6, 5, 5)
    x[..., 4, 4], z[:, :, 5] = torch.inf, torch.inf
    assert (Translation(5, 5).T(x, torch.tensor([6]))[0, 0, 0] == 0).all()
    assert (Scale().Gamma(z[..., :1, :1], torch.tensor([3]))[:, :, 3:] == 0).all()


# ------------------------------------------------------------------------ fibers and bundles
@pytest.mark.parametrize(
    "group, shape",
    [
        (Rotation(), (8, 3, 4, 5, 5)),
        (Rolled(6, 6), (8, 3, 1, 6, 6)),
        (Scale(), (8, 3, 6, 1, 1)),  # one pixel: shrinking it does nothing
    ],
)
def test_bundle_is_gamma_read_at_the_base(double, group, shape):
    """Γ_g[z](g0) = z(g⁻¹·g0), Section 2: what moves the map moves the base space the other way."""
    z = torch.randn(shape)
    for size in (1, 3 if group.order < 10 else 4):
        g0 = group.base_space(size)
        g = pairs(group, g0).elements
        g = g[torch.randint(len(g), (8,))]
        left = bundle(fibers(group.Gamma(z, g), group), g0.expand(8, -1))
        right = bundle(fibers(z, group), group.shift_base(g, g0))
        assert left.shape == (8, size * 3) and torch.allclose(left, right, atol=1e-12)


def test_order_of_a_bundle_matters():
    z = torch.randn(2, 4, 3)  # fibers (B, |G|, C) of C4
    forwards = bundle(z, torch.tensor([[0, 1]]))  # one base space for all
    assert torch.equal(forwards, torch.cat([z[:, 0], z[:, 1]], 1))
    assert not torch.equal(forwards, bundle(z, torch.tensor([[1, 0]] * 2)))


def test_fibers_are_pooled_by_mean_or_max():
    z = torch.rand(2, 3, 4, 5, 5)  # (B, C, G, H', W')
    assert torch.allclose(fibers(z, Rotation()), z.mean((3, 4)).transpose(1, 2))
    assert torch.equal(fibers(z, Rotation(), "max"), z.amax((3, 4)).transpose(1, 2))
    with pytest.raises(ValueError, match="'avg'"):
        fibers(z, Rotation(), "avg")


@pytest.mark.parametrize(
    "group", [Translation(5, 4), Rotation(), Scale(), RotationScale((1.0, 1.5, 2.0)), Numbered(5)]
)
def test_base_spaces_of_every_size(group):
    """Every legal |g0| gives distinct elements, whole wherever they are; 0 and |G| are refused."""
    for size in range(1, group.order):
        if group.spatial and size not in {h * w for h in range(1, 6) for w in range(1, 5)}:
            with pytest.raises(ValueError, match=f"no patch of {size}"):
                group.base_space(size)
            continue
        g0 = group.base_space(size)
        assert len(g0) == size == len(g0.unique())
        bases = group.shift_base(pairs(group, g0).elements, g0)
        assert (bases >= 0).all() and (bases < group.order).all()
        assert all(len(row.unique()) == size for row in bases)
        assert len(bases.unique(dim=0)) == len(bases)  # different g, different bundles
        if group.spatial:  # a patch stays a patch: same height and width everywhere
            y, x = bases // group.width, bases % group.width
            for u in (y, x):
                assert len((u.amax(1) - u.amin(1)).unique()) == 1
    for size in (0, group.order):
        with pytest.raises(ValueError):
            group.base_space(size)


def test_the_patch_is_the_one_nearest_to_a_square():
    group = Translation(6, 8)
    shapes = {1: (1, 1), 2: (1, 2), 6: (2, 3), 8: (2, 4), 12: (3, 4), 40: (5, 8)}
    for size, (h, w) in shapes.items():
        expected = [8 * y + x for y in range(h) for x in range(w)]
        assert group.base_space(size).tolist() == expected
    assert Translation(7, 3).base_space(7).tolist() == [0, 3, 6, 9, 12, 15, 18]  # 7 × 1
    assert Translation(1, 1).base_space(1).tolist() == [0] == Numbered(1).base_space(1).tolist()


# --------------------------------------------------------------------------- distances, draws
def test_distances():
    rot, scale, trans = Rotation(), Scale(), Translation(5, 7)
    zero, three = torch.tensor(0), torch.tensor(3)
    assert rot.distance(zero, three) == 9 and rot.distance(zero, three, "topological") == 1
    assert scale.distance(zero, three) == 9
    assert abs(scale.distance(zero, three, "topological") - torch.tensor(1.5).log()) < 1e-6
    assert Numbered(5).distance(zero, three) == 9
    assert Numbered(5).distance(zero, three, "topological") == 3
    corner = torch.tensor(4 * 7 + 6)
    assert trans.distance(zero, corner) == 4**2 + 6**2
    assert trans.distance(zero, corner, "topological") == 2
    both = RotationScale()  # (0, 1) and (3, 0)
    assert both.distance(torch.tensor(1), torch.tensor(12)) == 1 + 9
    topological = both.distance(torch.tensor(1), torch.tensor(12), "topological")
    assert topological == 1 + scale.distance(zero, three, "topological")


@pytest.mark.parametrize("group", GROUPS + LISTS, ids=names)
def test_distances_are_distances(group):
    g = torch.arange(group.order)
    for metric in METRICS:
        d = group.distance(g[:, None], g, metric)
        assert d.dtype == torch.float64 and torch.equal(d, d.T) and not d.diagonal().any()
        assert (d[~torch.eye(len(g), dtype=bool)] > 0).all()
        elsewhere = g.to("meta")  # constants on another device would be refused, as on a GPU
        assert group.distance(elsewhere, elsewhere, metric).device.type == "meta"
    with pytest.raises(ValueError, match="'euclidean' or 'topological'"):
        group.distance(g, g, "manhattan")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("group", [Translation(6, 6), Rotation(), Scale(), Numbered(9)], ids=names)
def test_sampled_pairs_respect_the_distance_and_reach_all_of_it_evenly(group, size, metric):
    """g1 is uniform, and so is g2 among the elements near g1: both within 6 σ of a binomial."""
    g0, limit, batch = group.base_space(size), 2.0, 40000
    if isinstance(group, Scale) and metric == "topological":
        limit = 0.3
    drawn_from = pairs(group, g0, limit, metric)
    g1, g2 = sample(drawn_from, batch, torch.Generator().manual_seed(0))
    g = torch.arange(group.order)
    fits = group.fits_inside(g, g0)  # (|G|,)
    slot = group.shift_base(g, g0)[:, 0]
    allowed = group.distance(slot[:, None], slot, metric) <= limit  # (|G|, |G|)
    allowed &= fits & fits[:, None]
    near = allowed.sum(1)
    assert torch.equal(drawn_from.counts, near[fits])
    probability = allowed.double() / near.clamp(min=1)[:, None] / fits.sum()
    drawn = torch.zeros(group.order, group.order, dtype=torch.float64)
    drawn.index_put_((g1, g2), torch.ones(batch, dtype=torch.float64), accumulate=True)
    assert torch.equal(drawn > 0, allowed)
    for found, p in ((drawn, probability), (drawn.sum(1), probability.sum(1))):
        assert ((found - batch * p).abs() <= 6 * (batch * p * (1 - p)).sqrt()).all()
    with pytest.raises(ValueError, match="nearest are"):
        pairs(group, g0, 1e-3, metric)


@pytest.mark.parametrize("group", GROUPS + LISTS, ids=names)
def test_a_distance_of_0_gives_both_views_the_same_slots(group):
    g1, g2 = sample(pairs(group, group.base_space(1), 0), 500)
    assert torch.equal(g1, g2) and len(g1.unique()) == group.order
    for limit in (-1, float("nan"), 0.01):
        with pytest.raises(ValueError, match="nearest are"):
            pairs(group, group.base_space(1), limit)


def test_one_slot_is_enough_if_both_views_read_it():
    g0 = torch.arange(3)
    with pytest.raises(ValueError, match="only one slot"):
        pairs(Numbered(3), g0)
    g1, g2 = sample(pairs(Numbered(3), g0, 0), 5)
    assert not g1.any() and not g2.any()


def test_augmentations_are_all_elements_and_for_translation_the_near_ones():
    for group in (Rotation(), Scale(), RotationScale(), Numbered(3)):
        assert torch.equal(group.augmentations(), torch.arange(group.order))
    group = Translation(29, 29)
    for strength, most in {0.2: 5, 0.0: 0, 0.5: 14, 0.03: 0, 0.04: 1}.items():
        shifts = torch.stack(group.signed(group.augmentations(strength)))  # (2, M)
        assert shifts.abs().max() == most and shifts.shape[1] == (2 * most + 1) ** 2
        assert len(shifts.unique(dim=1).T) == shifts.shape[1]


# ---------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("group", [Rotation(), Scale(), RotationScale()], ids=names)
@pytest.mark.parametrize("shape", [(2, 5, 7, 7), (2, 5, 5, 7, 7)])
def test_gamma_takes_maps_of_its_group_only(group, shape):
    with pytest.raises(ValueError, match="a feature map of this group"):
        group.Gamma(torch.rand(shape), torch.tensor([0, 0]))


@pytest.mark.parametrize("shape", [(2, 5, 1, 7, 7), (2, 5, 1, 4, 16), (2, 5, 4, 8, 8)])
def test_translations_take_maps_of_their_grid_only(shape):
    """Also if another grid has as many positions."""
    group, z = Translation(8, 8), torch.rand(shape)
    with pytest.raises(ValueError, match="1, 8, 8"):
        fibers(z, group)
    if shape[2] == 1:  # Γ moves every G
        with pytest.raises(ValueError, match="a feature map of this group is 8 × 8"):
            group.Gamma(z, torch.tensor([1, 0]))


@pytest.mark.parametrize("make", [Scale, RotationScale])
@pytest.mark.parametrize("factors", [(), (1.0, 0.5), (2.0, 3.0), (1.0, 2.0, 2.0), (1.0, 3.0, 2.0)])
def test_factors_start_at_1_and_increase(make, factors):
    with pytest.raises(ValueError, match="start at 1.0 and increase"):
        make(factors)


def test_what_does_not_exist_is_refused():
    x, z = torch.rand(1, 1, 5, 5), torch.rand(1, 2, 4, 5, 5)
    with pytest.raises(ValueError, match="at least 1"):
        Translation(0, 3)
    for group in (Scale(), RotationScale()):
        for g in (-1, group.order, group.order + 4):
            with pytest.raises(ValueError, match="not in 0 … 5"):
                group.T(x, torch.tensor([g]))
    assert shrink_matrices(5, (1.0, torch.nan))[-1].isnan().all()  # what -1 picks on a GPU
    for act, images in ((Numbered(4).T, x), (Numbered(4).Gamma, z)):
        with pytest.raises(ValueError, match="no group acts"):
            act(images, torch.tensor([0]))
    with pytest.raises(ValueError, match="1, 10, 10"):
        fibers(z, Translation(10, 10))  # 4·25 numbers are not 100 positions
    with pytest.raises(ValueError, match="square"):
        Rotation().T(torch.zeros(1, 1, 3, 4), torch.tensor([1]))
