"""The losses against loops and numbers by hand; Eq. 2 = Eq. 3 when f is equivariant; draws."""

import math

import pytest
import torch
from conftest import relative, trained

from backbones import CNN, MLP, Head, MNISTNet, build
from groups import SCALES, Rotation, RotationScale, Scale, Translation, bundle, fibers
from losses import (
    ASSL,
    HSSL,
    Matched,
    a_ssl,
    chance,
    cosine_regression,
    diagnostics,
    h_ssl,
    info_nce,
)

pytestmark = pytest.mark.usefixtures("double")


# ---------------------------------------------------------------- InfoNCE
def cosine(a, b):
    return float((a @ b / (a.norm() * b.norm())).detach())


def naive_eq2(y1, y2, tau, sim=cosine):
    """Eq. 2 word for word."""
    views, n, total = (y1, y2), len(y1), 0.0
    for i in range(n):
        below = 0.0
        for k in range(n):
            if k != i:
                below += sum(math.exp(sim(a[i], b[k]) / tau) for a in views for b in views)
        total -= math.log(math.exp(sim(y1[i], y2[i]) / tau) / below) / n
    return total


def naive_ntxent(y1, y2, tau, sim=cosine):
    """SimCLR's algorithm 1 word for word."""
    z = [v for pair in zip(y1, y2, strict=True) for v in pair]
    n, total = len(z), 0.0
    for i in range(n):
        below = sum(math.exp(sim(z[i], z[k]) / tau) for k in range(n) if k != i)
        total -= math.log(math.exp(sim(z[i], z[i ^ 1]) / tau) / below) / n
    return total


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_info_nce_against_loops(tau):
    y1, y2 = torch.randn(7, 5), torch.randn(7, 5)
    assert abs(float(info_nce(y1, y2, tau)) - naive_eq2(y1, y2, tau)) < 1e-12
    assert abs(float(info_nce(y1, y2, tau, "ntxent")) - naive_ntxent(y1, y2, tau)) < 1e-12
    assert abs(naive_eq2(y1, y2, tau) - naive_ntxent(y1, y2, tau)) > 0.1  # they are two losses


def test_a_log_bilinear_model_that_is_not_symmetric_against_loops():
    """sim(a, b) = aᵀ W b ≠ sim(b, a): in ntxent each anchor has a numerator of its own."""
    y1, y2, W = torch.randn(7, 5), torch.randn(7, 5), torch.randn(5, 5)

    def sim(a, b):
        return float(a @ W @ b)

    assert abs(sim(y1[0], y2[0]) - sim(y2[0], y1[0])) > 0.1
    assert abs(float(info_nce(y1, y2, 0.5, W=W)) - naive_eq2(y1, y2, 0.5, sim)) < 1e-10
    assert abs(float(info_nce(y1, y2, 0.5, "ntxent", W)) - naive_ntxent(y1, y2, 0.5, sim)) < 1e-10


def test_info_nce_at_chance():
    y = torch.ones(9, 4)
    for denominator, terms in (("paper", 4 * 8), ("ntxent", 2 * 9 - 1)):
        assert chance(9, denominator) == math.log(terms)
        assert abs(float(info_nce(y, y, denominator=denominator)) - math.log(terms)) < 1e-12


def test_info_nce_gradient():
    y1, y2 = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    for denominator in ("paper", "ntxent"):
        assert torch.autograd.gradcheck(info_nce, (y1, y2, 0.5, denominator))


@pytest.mark.parametrize(
    "size, dtype, options, told",
    [
        ((1, 3), torch.float32, {}, "two examples"),
        ((2, 3), torch.float32, dict(denominator="other"), "denominator"),
        ((2, 3), torch.float32, dict(tau=0.0), "tau"),
        ((2, 3), torch.float32, dict(tau=-0.1), "tau"),
        ((2, 3), torch.float32, dict(tau=math.nan), "tau"),
        ((2, 3), torch.int64, {}, "floats"),
        ((2, 3, 4), torch.float32, {}, "floats"),
    ],
)
def test_info_nce_refuses(size, dtype, options, told):
    with pytest.raises(ValueError, match=told):
        info_nce(torch.ones(size, dtype=dtype), torch.ones(size, dtype=dtype), **options)
    with pytest.raises(ValueError, match="floats"):
        info_nce(torch.ones(2, 3), torch.ones(3, 3))


def test_one_image_in_ntxent_has_one_candidate_its_positive():
    """log of one term is 0, as in the loops of SimCLR's algorithm; the gradient is 0 too."""
    y1, y2 = torch.randn(2, 1, 5, requires_grad=True)
    loss = info_nce(y1, y2, denominator="ntxent")
    assert abs(loss.item()) < 1e-14 and abs(naive_ntxent(y1, y2, 0.1)) < 1e-12
    assert all(g.norm() < 1e-14 for g in torch.autograd.grad(loss, (y1, y2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce_in_half_precision_is_computed_in_float32(dtype):
    y1, y2 = torch.randn(64, 32).to(dtype), torch.randn(64, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(y1, y2, 0.01)  # e^±100: over the top of float16
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(info_nce(y1.double(), y2.double(), 0.01))) < 1e-4


# ---------------------------------------------------------------- no negatives; a collapse
def test_cosine_regression_by_hand():
    """1/2·[(1 - 0) + (1 - 1/√2) + (1 + 1) + (1 - 1)], whatever the lengths; no gradient to y."""
    p1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    p2 = torch.tensor([[3.0, 3.0], [0.0, 1.0]])
    y1 = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    y2 = torch.tensor([[0.0, 1.0], [0.0, -7.0]])
    for y in (p1, p2, y1, y2):
        y.requires_grad_()
    loss = cosine_regression(p1, p2, y1, y2)
    assert abs(loss.item() - (1 + 1 - 0.5**0.5 + 2 + 0) / 2) < 1e-12
    loss.backward()
    assert y1.grad is None and y2.grad is None and p1.grad.any() and p2.grad.any()
    assert torch.allclose(p1.grad[0], torch.tensor([0.0, -0.5]))  # -1/2·∂cos/∂p
    assert not p1.grad[1].any()  # at cos = -1 it is flat


def test_diagnostics_in_closed_form():
    """Four orthogonal views, over and over; one nearer stranger each; and all views alike."""
    y = torch.eye(4)  # a coordinate is 1 once and 0 three times: deviation √(1/4·3/4), times √4
    alike = y[:1].expand(4, -1)
    for y1, y2, expected in [
        (y, 3 * y, (1, 0, 0, 0.75**0.5)),
        (y, y.roll(1, 0), (0, 1 / 3, 1 / 3, 0.75**0.5)),  # one of three others on top
        (alike, alike, (1, 1, 0, 0)),
    ]:
        found = diagnostics(y1, y2).values()
        assert all(abs(a - b) < 1e-6 for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------- Eq. 2 = Eq. 3
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "all slots"])
@pytest.mark.parametrize("size", [1, 3])
def test_equation_2_is_equation_3_for_rotation(size, sampled, training):
    """The loss and every parameter's gradient, to 1e-10, weights trained.

    Even while BatchNorm learns: both losses look at one and the same set of fibers, those that are
    compared or whole maps, so that their batch statistics are the same too."""
    f = trained(MNISTNet(rotations=4, width=1 / 8), torch.rand(8, 1, 29, 29)).train(training)
    f.sampled = sampled
    h = trained(Head(size * 16, (16, 16, 16)), torch.randn(8, size * 16)).train(training)
    x = torch.rand(12, 1, 29, 29)
    drawn = HSSL(f.group, size).draw(12)
    state = {k: v.clone() for k, v in f.state_dict().items()}
    results = []
    for views in (lambda *g: a_ssl(f, h, x, Rotation(), *g), lambda *g: h_ssl(f, h, x, *g)):
        f.load_state_dict(state)
        value = info_nce(*views(*drawn))
        grads = torch.autograd.grad(value, [*f.parameters(), *h.parameters()])
        results.append((value, grads, {k: v.clone() for k, v in f.named_buffers()}))
    (a, ga, sa), (b, gb, sb) = results
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb, strict=True))
    # With all slots A-SSL computes the maps of twice as many images: the variance is the same, but
    # its unbiased estimate, kept for evaluation, is divided by n - 1.
    kept = [k for k in sa if sampled or not k.endswith("running_var")]
    assert len(kept) >= 6 and all(torch.allclose(sa[k], sb[k], atol=1e-12) for k in kept)


@pytest.mark.filterwarnings("ignore:28 px breaks equivariance")
def test_without_equivariance_the_two_differ():
    """An MLP, and an even image: the same two lines of code, and another number."""
    x = torch.rand(12, 1, 28, 28)
    for f in (MNISTNet(rotations=4, width=1 / 8), MLP(28 * 28)):
        f.eval()
        h = Head(f.channels, (16, 16, 16)).eval()
        g0, g1, g2 = HSSL(Rotation()).draw(12)
        with torch.no_grad():
            a = info_nce(*a_ssl(f, h, x, Rotation(), g0, g1, g2))
            b = info_nce(*h_ssl(f, h, x, g0, g1, g2))
        assert abs(float(a - b)) > 1e-3


def test_equation_2_is_equation_3_for_translation_away_from_the_border():
    """g0 in the middle of a large map, moved by one position (4 px): neither sees the border."""
    f = trained(MNISTNet(width=1 / 8), torch.rand(4, 1, 29, 29))
    h = Head(4 * 16, (16, 16, 16)).eval()
    f.group = group = f.translations(97)
    assert (group.height, group.width, group.stride) == (25, 25, 4)
    x = torch.rand(6, 1, 97, 97)
    g0 = (12 * 25 + 12 + torch.tensor([0, 1, 25, 26])).expand(6, -1)
    g1 = torch.tensor([0, 1, 25, 26, 25 * 24, 24])
    g2 = torch.tensor([26, 0, 1, 25, 0, 1])
    with torch.no_grad():
        a = info_nce(*a_ssl(f, h, x, group, g0, g1, g2))
        b = info_nce(*h_ssl(f, h, x, g0, g1, g2))
    assert abs(float(a - b)) < 1e-10


@pytest.mark.parametrize(
    "build", [lambda: MLP(29 * 29), lambda: CNN("mnist", width=1 / 8)], ids=["mlp", "cnn"]
)
def test_a_ssl_without_structure_compares_all_of_z(build):
    """Appendix B emulates fibers "in the H-SSL setting"; A-SSL is SimCLR there, on all of z."""
    f = build().eval()
    pixels = Translation(29, 29)
    loss = ASSL(f.group, pixels, base_size=f.group.order)
    g0, g1, g2 = loss.draw(4, torch.Generator().manual_seed(0))
    x = torch.rand(4, 1, 29, 29)
    views = loss.views(f, torch.nn.Identity(), x, g0, g1, g2)
    for y, g in zip(views, (g1, g2), strict=True):
        z = f(pixels.T(x, g)).mean((-2, -1))  # (4, C, |G|)
        assert relative(y, z.transpose(1, 2).flatten(1)) < 1e-12


# ---------------------------------------------------------------- draws, and their views
GROUPS = {
    "rot": Rotation(),
    "scale": Scale(),
    "rotscale": RotationScale(),
    "trans": Translation(8, 8, stride=4),
}
IMAGE_GROUPS = dict(GROUPS, trans=Translation(29, 29))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("two_images", [False, True], ids=["one image", "two images"])
@pytest.mark.parametrize("loss", ["assl", "hssl"])
def test_the_views_are_those_of_the_equation(loss, two_images):
    """Eq. 2: T_g1 x and T_g2 x at g0.  Eq. 3: x at g1⁻¹·g0 and g2⁻¹·g0.  With x2 the second view
    has images of its own; in Eq. 3 that changes both, images and base space (Appendix A)."""
    f, group = MNISTNet(SCALES, width=1 / 16).eval(), Scale()
    x = torch.rand(4, 1, 29, 29)
    x2 = torch.rand(4, 1, 29, 29) if two_images else x
    draws = ASSL(f.group, group, 2) if loss == "assl" else HSSL(f.group, 2)
    g0, g1, g2 = draws.draw(4, generator())
    assert all(len(g.unique()) > 1 for g in (g1, g2))
    h = torch.nn.Identity()
    views = draws.views(f, h, x, g0, g1, g2, x2=x2 if two_images else None)
    for y, image, g in zip(views, (x, x2), (g1, g2), strict=True):
        if loss == "assl":
            image, base = group.T(image, g), g0
        else:
            base = group.shift_base(g, g0)
        assert relative(y, bundle(fibers(f(image), group), base)) < 1e-12


def uniform(drawn, values):
    """Every one of `values` is drawn, nothing else is, and each as often as the others: within 6 σ
    of a binomial."""
    found, counts = drawn.unique(return_counts=True)
    expected = len(drawn) / len(values)
    same = torch.equal(found, torch.as_tensor(sorted(values)))
    return same and ((counts - expected).abs() < 6 * expected**0.5).all()


@pytest.mark.parametrize("strength, px", [(0.2, 5), (0.0, 0), (0.1, 2), (0.5, 14)])
def test_translations_are_uniform_up_to_the_strength(strength, px):
    """Appendix B: shifts of up to ±20 % along each axis, 5 of 29 px; the two views apart."""
    pixels = IMAGE_GROUPS["trans"]
    loss = ASSL(GROUPS["trans"], pixels, strength=strength)
    _, g1, g2 = loss.draw(20000, generator())
    for g in (g1, g2):
        for d in pixels.signed(g):  # (B,) px each
            assert uniform(d, range(-px, px + 1))
    assert px == 0 or 0 < (g1 == g2).float().mean() < 6 / (2 * px + 1) ** 2


@pytest.mark.parametrize("group, order", [("rot", 4), ("scale", 6), ("rotscale", 24)])
def test_a_ssl_draws_every_element_and_every_slot(group, order):
    g0, g1, g2 = ASSL(GROUPS[group], IMAGE_GROUPS[group]).draw(20000, generator())
    assert g0.shape == (20000, 1) and all(uniform(g, range(order)) for g in (g0[:, 0], g1, g2))
    assert uniform(g1 * order + g2, range(order**2))  # independent of each other
    assert uniform(g1 * order + g0[:, 0], range(order**2))  # and of where the fibers are read


@pytest.mark.parametrize("name, order", [("rot", 4), ("scale", 6), ("trans", 64)])
def test_h_ssl_draws_every_pair_of_slots(name, order):
    group = GROUPS[name]
    g0, g1, g2 = HSSL(group).draw(20 * order**2, generator())
    one, two = (group.shift_base(g, g0)[:, 0] for g in (g1, g2))
    assert uniform(one, range(order)) and uniform(two, range(order))
    assert order > 10 or uniform(one * order + two, range(order**2))


@pytest.mark.parametrize("name", ["rot", "scale", "trans"])
def test_at_distance_0_both_views_are_equal_and_only_the_negatives_teach(name):
    f, h, _ = build("mnist", name, width=1 / 16)
    pairs = HSSL(f.group, max_distance=0)
    drawn = pairs.draw(8, generator())
    assert len(drawn[1].unique()) > 1  # of different images in different slots
    y1, y2 = pairs.views(f, h, torch.rand(8, 1, 29, 29), *drawn)
    assert (y1 - y2).abs().max() < 1e-12  # where an image lies in memory changes the rounding
    away = math.log(4 * 7) - info_nce(y1, y2)  # 0 if all images have one y
    assert away > 1 and torch.autograd.grad(away, f.convs[0].weight)[0].norm() > 0


@pytest.mark.parametrize("strength, strides", [(0.125, 1), (0.25, 2), (0.4, 3), (0.5, 4)])
def test_matched_pairs_are_the_same_for_both_and_stay_on_the_map(strength, strides):
    """So that the two losses are equal wherever Eq. 1 is exact."""
    group = Translation(8, 8, stride=4)
    assl, hssl = (Matched(group, equation, strength) for equation in (a_ssl, h_ssl))
    drawn = assl.draw(20000, generator())
    assert all(torch.equal(a, b) for a, b in zip(drawn, hssl.draw(20000, generator())))
    g0, g1, g2 = drawn
    for g in (g1, g2):
        for d in group.signed(g):
            assert uniform(d, range(-min(strides, 3), strides + 1))  # of ±4 the torus has one
        moved = group.shift_base(g, g0)[:, 0]
        for there, d, place in zip((moved // 8, moved % 8), group.signed(g), (g0 // 8, g0 % 8)):
            assert torch.equal(there, place[:, 0] - d)  # nothing wraps
    assert uniform(g0[:, 0] // 8, range(strides, 8 - min(strides, 3)))
    with pytest.raises(ValueError, match="no shift by a whole stride"):
        Matched(group, a_ssl, 0.1)


def test_matched_pairs_make_the_losses_equal_away_from_the_border():
    f, h = MNISTNet(width=1 / 16).eval(), Head(8, [8, 8]).eval()
    x = torch.zeros(6, 1, 29, 29)
    x[..., 13:16, 13:16] = torch.rand(6, 1, 3, 3)
    losses = []
    for equation in (a_ssl, h_ssl):
        pairs = Matched(f.group, equation, 0.125)
        losses.append(info_nce(*pairs.views(f, h, x, *pairs.draw(6, generator()))))
    assert abs(losses[0] - losses[1]) < 1e-10


@pytest.mark.parametrize("name, group", GROUPS.items())
def test_with_one_draw_all_images_share_their_slots(name, group):
    """And over many batches they are as without: each slot (a_ssl), each pair (h_ssl)."""
    a_ssl = ASSL(group, IMAGE_GROUPS[name], shared=True)
    h_ssl = HSSL(group, shared=True)
    draws = generator()
    slots, pairs = set(), set()
    for _ in range(60 * group.order if group.order < 10 else 2000):
        g0, g1, g2 = a_ssl.draw(64, draws)
        assert g0.shape == (64, 1) and (g0 == g0[0]).all() and len(g1.unique()) > 1
        slots.add(int(g0[0]))
        g0, g1, g2 = h_ssl.draw(64, draws)
        assert g0.shape == (64, 1) and g1.shape == g2.shape == (64,)
        assert (g1 == g1[0]).all() and (g2 == g2[0]).all()
        pairs.add((int(g1[0]), int(g2[0])))
    assert slots == set(range(group.order))
    assert len(pairs) > min(group.order**2 - 1, 500)


@pytest.mark.parametrize("loss", [ASSL(Scale(), Scale()), HSSL(Scale())], ids=["assl", "hssl"])
def test_draws_depend_on_nothing_but_the_generator(loss):
    one, again, other = (loss.draw(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again)) and not any(map(torch.equal, one[1:], other[1:]))


@pytest.mark.parametrize("group, order", [("rot", 4), ("scale", 6), ("trans", 64)])
def test_a_ssl_on_all_of_z_is_simclr(group, order):
    """base_size = |G|: every fiber, one after the other; H-SSL can't move such a base space."""
    g0, g1, _ = ASSL(GROUPS[group], IMAGE_GROUPS[group], base_size=order).draw(500)
    assert torch.equal(g0, torch.arange(order).expand(500, -1)) and len(g1.unique()) > 1
    with pytest.raises(ValueError, match=f"1 … {order - 1}|without filling"):
        HSSL(GROUPS[group], base_size=order)


# ---------------------------------------------------------------- what does not fit together
FOUR, ZERO = torch.arange(4), torch.tensor([0])
MISFITS = {  # a call with a network of six scales, an ordinary one and four images, and the answer
    "a grid of another size": (
        lambda f, plain, x: h_ssl(plain, Head(16), x[..., 4:, 4:], ZERO, FOUR, FOUR),
        r"a map \[B, C, 1, 8, 8\], not \[4, 16, 1, 7, 7\]",
    ),
    "too few elements": (
        lambda f, plain, x: h_ssl(f, Head(16), x, ZERO, FOUR[:2], FOUR[:2]),
        r"4 images, but base spaces of shape \[2, 2, 1\]",
    ),
    "a base space without an image": (
        lambda f, plain, x: f.bundle(x, ZERO),
        r"4 images, but base spaces of shape \[1\]",
    ),
    "an empty base space": (
        lambda f, plain, x: f.bundle(x, torch.zeros(4, 0, dtype=torch.long)),
        r"4 images, but base spaces of shape \[4, 0\]",
    ),
    "slots of fewer images": (lambda f, plain, x: f(x, torch.zeros(2, 1).long()), r"not \[2, 1\]"),
    "slots without an image": (lambda f, plain, x: f(x, ZERO.expand(4)), r"not \[4\]"),
    "past the last scale": (
        lambda f, plain, x: h_ssl(f, Head(16), x, torch.tensor([4]), FOUR, FOUR),
        "groups.pairs",
    ),
    "a base space that is not in the group": (
        lambda f, plain, x: a_ssl(plain, Head(16), x, Translation(8, 8), ZERO + 64, FOUR, FOUR),
        "slots 64 … 64 of 0 … 63",
    ),
    "one slot of a map of positions": (
        lambda f, plain, x: plain(x, FOUR[:, None]),
        "needs all slots",
    ),
}


def test_a_group_with_another_number_of_elements_is_told():
    f = MNISTNet(rotations=4, width=1 / 8).eval()
    f.group, f.sampled = Scale(), False  # six elements, four slots
    with pytest.raises(ValueError, match="4 fibers, and the group 6"):
        f.bundle(torch.rand(2, 1, 29, 29), torch.zeros(2, 1).long())


@pytest.mark.parametrize("what", MISFITS)
def test_arguments_that_do_not_fit_together_are_told(what):
    """Each of them would give a plausible number."""
    call, told = MISFITS[what]
    f = MNISTNet(scales=SCALES, width=1 / 8).eval()
    with pytest.raises(ValueError, match=told):
        call(f, MNISTNet(width=1 / 8).eval(), torch.rand(4, 1, 29, 29))


def test_one_base_space_for_all_images_is_enough():
    f, h = MNISTNet(rotations=4, width=1 / 8).eval(), Head(32, (8,)).eval()
    x, g = torch.rand(4, 1, 29, 29), torch.tensor([0, 1, 2, 3])
    for loss in (
        lambda g0: a_ssl(f, h, x, Rotation(), g0, g, g.flip(0)),
        lambda g0: h_ssl(f, h, x, g0, g, g.flip(0)),
    ):
        one, each = loss(g[:2]), loss(g[:2].expand(4, -1))
        assert torch.equal(one[0], each[0]) and torch.equal(one[1], each[1])


@pytest.mark.parametrize("group", ["rot", "scale", "trans", "rotscale"])
def test_from_image_to_loss_with_what_build_returns(group):
    """Every group, both equations: a finite loss with a gradient for every weight."""
    f, h, _ = build("mnist", group, width=1 / 16, base_size=2)
    x = torch.rand(6, 1, 29, 29)
    for loss in (ASSL(f.group, IMAGE_GROUPS[group], 2), HSSL(f.group, 2)):
        value = info_nce(*loss.views(f, h, x, *loss.draw(6)))
        grads = torch.autograd.grad(value, [*f.parameters(), *h.parameters()])
        assert value.isfinite() and all(g.isfinite().all() and g.any() for g in grads)
