"""The losses against loops and numbers by hand; Eq. 2 = Eq. 3, loss and gradients, when f is equivariant; distances; draws."""
import math

import pytest
import torch
from conftest import blobs, relative, trained

from backbones import CNN, MLP, Head, MNISTNet
from groups import SCALES, Rotation, Scale, Translation, bundle, fibers, pairs, sample
from losses import Draws, a_ssl, chance, cosine_regression, diagnostics, distances, h_ssl, info_nce

pytestmark = pytest.mark.usefixtures("double")


# ---------------------------------------------------------------- InfoNCE
def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def naive_eq2(y1, y2, tau, sim=cosine):
    """Eq. 2 word for word."""
    views, n, total = (y1, y2), len(y1), 0.0
    for i in range(n):
        below = sum(math.exp(sim(views[j][i], views[l][k]) / tau)
                    for k in range(n) if k != i for j in range(2) for l in range(2))
        total -= math.log(math.exp(sim(y1[i], y2[i]) / tau) / below) / n
    return total


def naive_ntxent(y1, y2, tau, sim=cosine):
    """SimCLR's algorithm 1 word for word."""
    z = [v for pair in zip(y1, y2) for v in pair]
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
    sim = lambda a, b: float(a @ W @ b)
    assert abs(sim(y1[0], y2[0]) - sim(y2[0], y1[0])) > 0.1
    assert abs(float(info_nce(y1, y2, 0.5, W=W)) - naive_eq2(y1, y2, 0.5, sim)) < 1e-10
    assert abs(float(info_nce(y1, y2, 0.5, "ntxent", W)) - naive_ntxent(y1, y2, 0.5, sim)) < 1e-10


def test_info_nce_at_chance():
    y = torch.ones(9, 4)
    for denominator, terms in (("paper", 4 * 8), ("ntxent", 2 * 9 - 1)):
        assert abs(float(info_nce(y, y, denominator=denominator)) - chance(9, denominator)) < 1e-12 and chance(9, denominator) == math.log(terms)


def test_info_nce_gradient():
    y1, y2 = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    for denominator in ("paper", "ntxent"):
        assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.5, denominator), (y1, y2))


def test_info_nce_refuses():
    with pytest.raises(ValueError, match="two examples"):
        info_nce(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="denominator"):
        info_nce(torch.ones(2, 3), torch.ones(2, 3), denominator="other")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce_in_half_precision_is_computed_in_float32(dtype):
    y1, y2 = torch.randn(64, 32).to(dtype), torch.randn(64, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(y1, y2, 0.01)  # e^±100: over the top of float16
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(info_nce(y1.double(), y2.double(), 0.01))) < 1e-4


# ---------------------------------------------------------------- no negatives, and what shows a collapse
def test_cosine_regression_by_hand():
    """1/2·[(1 - 0) + (1 - 1/√2) + (1 + 1) + (1 - 1)], whatever the lengths, and no gradient to the views that are met."""
    p1, p2 = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 3.0], [0.0, 1.0]])
    y1, y2 = torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, -7.0]])
    for y in (p1, p2, y1, y2):
        y.requires_grad_()
    loss = cosine_regression(p1, p2, y1, y2)
    assert abs(loss.item() - (1 + 1 - 0.5 ** 0.5 + 2 + 0) / 2) < 1e-12
    loss.backward()
    assert y1.grad is None and y2.grad is None and p1.grad.any() and p2.grad.any()
    assert torch.allclose(p1.grad[0], torch.tensor([0.0, -0.5])) and not p1.grad[1].any()  # -1/2·∂cos/∂p; at cos = -1 it is flat


def test_diagnostics_in_closed_form():
    """Four orthogonal views, over and over; one nearer stranger each; and all views alike."""
    near = lambda found, *expected: all(abs(a - b) < 1e-6 for a, b in zip(found.values(), expected, strict=True))
    y = torch.eye(4)  # each coordinate is 1 once and 0 three times: standard deviation √(1/4·3/4), times √4
    assert near(diagnostics(y, 3 * y), 1, 0, 0, 0.75 ** 0.5)
    assert near(diagnostics(y, y.roll(1, 0)), 0, 1 / 3, 1 / 3, 0.75 ** 0.5)  # the positive at a right angle, one of three others on top
    assert near(diagnostics(y[:1].expand(4, -1), y[:1].expand(4, -1)), 1, 1, 0, 0)


# ---------------------------------------------------------------- Eq. 2 = Eq. 3
def draws(group, batch, size):
    g0 = group.base_space(size)
    g, allowed = pairs(group, g0)
    return g0.expand(batch, -1), *sample(g, allowed, batch)


def both(f, h, x, group, g0, g1, g2):
    parameters = [*f.parameters(), *h.parameters()]
    out = []
    for loss in (a_ssl, h_ssl):
        value = info_nce(*loss(f, h, x, group, g0, g1, g2))
        out.append((value, torch.autograd.grad(value, parameters)))
    return out


@pytest.mark.parametrize("size", [1, 3])
def test_equation_2_is_equation_3_for_rotation(size):
    """The loss and every parameter's gradient, to 1e-10, with trained weights, BatchNorm as in evaluation."""
    f = trained(MNISTNet(rotations=4, width=1 / 8).double(), torch.rand(8, 1, 29, 29))
    h = trained(Head(size * f.channels, (16, 16, 16)), torch.randn(8, size * f.channels))
    x = torch.rand(12, 1, 29, 29)
    (a, ga), (b, gb) = both(f, h, x, Rotation(), *draws(Rotation(), 12, size))
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb))


@pytest.mark.parametrize("size", [1, 3])
def test_equation_2_is_equation_3_even_while_batchnorm_learns(size):
    """Both losses look at one and the same set of fibers (|g0| = 1: just those compared; beyond: whole maps), so their
    batch statistics are the same too: equal to 1e-10 in training mode."""
    f, h = MNISTNet(rotations=4, width=1 / 8).double(), Head(16 * size, (16, 16, 16))
    x = torch.rand(12, 1, 29, 29)
    state = {k: v.clone() for k, v in f.state_dict().items()}
    results = []
    for loss in (a_ssl, h_ssl):
        f.load_state_dict(state)
        torch.manual_seed(1)
        value = info_nce(*loss(f, h, x, Rotation(), *draws(Rotation(), 12, size)))
        grads = torch.autograd.grad(value, list(f.parameters()))
        results.append((value, grads, {k: v.clone() for k, v in f.named_buffers()}))
    (a, ga, sa), (b, gb, sb) = results
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb))
    # From |g0| = 2 on both compute whole maps, A-SSL those of twice as many images: the variance is the same, but its
    # unbiased estimate, kept for evaluation, is divided by n - 1.
    kept = [k for k in sa if size == 1 or not k.endswith("running_var")]
    assert all(torch.allclose(sa[k], sb[k], atol=1e-12) for k in kept) and len(kept) >= 6


def test_without_equivariance_the_two_differ():
    """An MLP, and an even image: the same two lines of code, and another number."""
    x, group = torch.rand(12, 1, 28, 28), Rotation()
    mlp = MLP(28 * 28).double().eval()
    for f, c in ((MNISTNet(rotations=4, width=1 / 8).double().eval(), 16), (lambda x: mlp(x)[:, :, :4], 128)):  # four of its 16 elements
        h = Head(c, (16, 16, 16)).eval()
        with torch.no_grad():
            a, b = (info_nce(*loss(f, h, x, group, *draws(group, 12, 1))) for loss in (a_ssl, h_ssl))
        assert abs(float(a - b)) > 1e-3


def test_equation_2_is_equation_3_for_translation_away_from_the_border():
    """g0 in the middle of a large map, moved by one position (4 px): neither sees the border."""
    f = trained(MNISTNet(width=1 / 8).double(), torch.rand(4, 1, 29, 29))
    h = Head(4 * 16, (16, 16, 16)).eval()
    group = Translation(25, 25, stride=4)
    x = torch.rand(6, 1, 97, 97)
    g0 = (12 * 25 + 12 + torch.tensor([0, 1, 25, 26])).expand(6, -1)
    g1, g2 = torch.tensor([0, 1, 25, 26, 25 * 24, 24]), torch.tensor([26, 0, 1, 25, 0, 1])
    with torch.no_grad():
        a, b = (info_nce(*loss(f, h, x, group, g0, g1, g2)) for loss in (a_ssl, h_ssl))
    assert abs(float(a - b)) < 1e-10


def test_all_paths_of_bundles_agree():
    """Sampled elements, and the full map with fibers read off it, give the same views."""
    x = torch.rand(5, 1, 29, 29)
    f = trained(MNISTNet(SCALES, width=1 / 8).double(), x)
    group = Scale()
    for size in (1, 2):  # fewer than half of the elements
        g0, g1, g2 = draws(group, 5, size)
        fast = h_ssl(f, lambda y: y, x, group, g0, g1, g2)
        f.independent = False
        slow = h_ssl(f, lambda y: y, x, group, g0, g1, g2)
        f.independent = True
        assert all(relative(a, b) < 1e-12 for a, b in zip(fast, slow))


@pytest.mark.parametrize("build", [lambda: MLP(29 * 29), lambda: CNN("mnist", width=1 / 8)], ids=["mlp", "cnn"])
def test_a_ssl_without_structure_compares_all_of_z(build):
    """Appendix B emulates fibers "in the H-SSL setting"; A-SSL is plain SimCLR there, on every fiber at once."""
    f = build().eval()
    draws = Draws("assl", "trans", False, f.order, 29, 1, 1, base_size=f.order)
    g0, g1, g2 = draws(4, torch.Generator().manual_seed(0))
    x = torch.rand(4, 1, 29, 29)
    views = a_ssl(f, torch.nn.Identity(), x, draws.pixels, g0, g1, g2, draws.map)
    for y, g in zip(views, (g1, g2)):
        z = f(draws.pixels.T(x, g)).mean((-2, -1))  # (4, C, |G|)
        assert relative(y, z.transpose(1, 2).flatten(1)) < 1e-12
    with pytest.raises(ValueError, match=f"1 … {f.order - 1}"):
        Draws("hssl", "trans", False, f.order, 29, 1, 1, base_size=f.order)


# ---------------------------------------------------------------- distances
def naive_distances(f, x, group, elements, g0):
    """The three distances word for word: loops over elements, images and pairs of images."""
    read = lambda image, base: bundle(fibers(f(image[None]), group), base[None])[0]  # (|g0|·C,)
    n, square = len(x), lambda a, b: float((a - b).pow(2).sum())
    here = [read(image, g0) for image in x]
    two_images = sum(square(here[i], here[k]) for i in range(n) for k in range(n) if i != k) / (n * (n - 1))
    found = dict(invariance=[], equation1=[], axis=[])
    for g in elements[:, None]:
        moved = [read(group.T(image[None], g)[0], g0) for image in x]
        along = [read(image, group.shift_base(g, g0)[0]) for image in x]
        for name, a, b in (("invariance", moved, here), ("equation1", moved, along), ("axis", along, here)):
            found[name].append((sum(map(square, a, b)) / n / two_images) ** 0.5)
    return found


@pytest.mark.parametrize("group, net, base", [
    (Scale(), dict(scales=SCALES), [0]), (Rotation(), dict(rotations=4), [1, 2]), (Translation(7, 7, 4), {}, [24])],
    ids=["scale", "rot", "trans"])
def test_distances_against_loops(group, net, base):
    x = blobs(4, 25)
    f = trained(MNISTNet(width=1 / 16, **net).double(), x, steps=1)
    elements = torch.tensor([1, 3] if group.order < 10 else [7, 14])
    with torch.no_grad():
        expected = naive_distances(f, x, group, elements, torch.tensor(base))
    found = distances(f, x, group, elements, torch.tensor(base))
    for name in expected:
        assert torch.allclose(torch.tensor(found[name]), torch.tensor(expected[name]), rtol=1e-10, atol=1e-10), name


def test_an_exact_network_has_no_error_of_equation_1():
    """f(T_g x)(g0) = f(x)(g⁻¹·g0), so T_g changes the features at g0 just as much as they change along the axis: not by 0."""
    f = trained(MNISTNet(rotations=4, width=1 / 16).double(), torch.rand(4, 1, 29, 29))
    found = distances(f, torch.rand(5, 1, 29, 29), Rotation(), torch.arange(1, 4), torch.tensor([2]))
    assert max(found["equation1"]) < 1e-10 < 1e-3 < min(found["invariance"])
    assert all(abs(i - a) < 1e-10 for i, a in zip(found["invariance"], found["axis"], strict=True))


@pytest.mark.parametrize("weight, bias", ((0.0, 0.0), (1e-14, 1.0)), ids=["constant", "up to rounding"])
def test_features_that_never_change_have_no_distances(weight, bias):
    """0/0 is None, not 0: a collapsed network is not an invariant one."""
    f, x = MNISTNet(rotations=4, width=1 / 16).double().eval(), torch.rand(3, 1, 29, 29)
    torch.nn.init.constant_(f.norms[-1].weight, weight), torch.nn.init.constant_(f.norms[-1].bias, bias)
    assert (fibers(f(x), Rotation()).var(0).sum() > 0) == (weight > 0)
    found = distances(f, x, Rotation(), torch.arange(1, 4), torch.tensor([0]))
    assert found == dict(invariance=[None] * 3, equation1=[None] * 3, axis=[None] * 3)


@pytest.mark.parametrize("build", [lambda: MLP(29 * 29, width=1 / 8), lambda: CNN("mnist", width=1 / 16)], ids=["mlp", "cnn"])
def test_a_network_without_structure_has_only_invariance(build):
    f, x = trained(build().double(), torch.rand(4, 1, 29, 29)).train(), torch.rand(3, 1, 29, 29)
    found = Draws("hssl", "rot", False, f.order, 29, f(x).shape[-1], f.stride).distances(f, x)
    assert found["equation1"] is None and found["axis"] is None and f.training  # left as it was
    f.eval()
    with torch.no_grad():
        here, turned = (f(y).mean((-2, -1)).flatten(1) for y in (x, x.rot90(1, (-2, -1))))  # (3, C·G): all of z
    two_images = torch.cdist(here, here).pow(2).sum() / 6
    assert abs(found["invariance"][0] - float((here - turned).pow(2).sum(1).mean() / two_images) ** 0.5) < 1e-10
    assert len(found["invariance"]) == 3 and min(found["invariance"]) > 1e-3


# ---------------------------------------------------------------- draws, and the views made with them
GRID = dict(structured=True, order=1, size=29, positions=8, stride=4)
AXIS = {"rot": dict(GRID, order=4), "scale": dict(GRID, order=6), "rotscale": dict(GRID, order=24), "trans": GRID}



@pytest.mark.parametrize("loss", ["assl", "hssl", "hybrid"])
def test_the_views_are_those_of_the_equation(loss):
    """Eq. 2: T_g1 x and T_g2 x at g0.  Eq. 3: x at g1⁻¹·g0 and g2⁻¹·g0.  Appendix A: T_a1 x at g1⁻¹·g0 and T_a2 x at g2⁻¹·g0."""
    draws, f, x = Draws(loss, "scale", **AXIS["scale"], base_size=2), MNISTNet(SCALES, width=1 / 16).eval(), torch.rand(4, 1, 29, 29)
    g0, g1, g2, *a = draws(4, torch.Generator().manual_seed(0))
    assert all(len(g.unique()) > 1 for g in (g1, g2, *a))
    for y, g, t in zip(draws.views(f, lambda y: y, x, g0, g1, g2, *a), (g1, g2), a or (g1, g2), strict=True):
        image, base = x if loss == "hssl" else draws.moves.T(x, t), g0 if loss == "assl" else draws.map.shift_base(g, g0)
        assert relative(y, bundle(fibers(f(image), Scale()), base)) < 1e-12


def test_translation_is_measured_downwards_at_the_centre():
    f, x = MNISTNet(width=1 / 16).eval(), blobs(4, 29)
    assert Draws("hssl", "trans", **GRID).distances(f, x) == distances(f, x, Translation(8, 8, 4), torch.tensor([8, 16, 24, 32]), torch.tensor([4 * 8 + 4]))


def uniform(drawn, values):
    """Every one of `values` is drawn, nothing else is, and each as often as the others: within 6 σ of a binomial."""
    found, counts = drawn.unique(return_counts=True)
    expected = len(drawn) / len(values)
    return torch.equal(found, torch.as_tensor(sorted(values))) and ((counts - expected).abs() < 6 * expected ** 0.5).all()


@pytest.mark.parametrize("strength, px", [(0.2, 5), (0.0, 0), (0.1, 2), (0.5, 14)])
def test_translations_are_uniform_up_to_the_strength(strength, px):
    """Appendix B: shifts of up to ±20 % along each axis, 5 of 29 px; each shift as likely, the two views apart."""
    draws = Draws("assl", "trans", **GRID, strength=strength)
    _, g1, g2 = draws(20000, torch.Generator().manual_seed(0))
    for g in (g1, g2):
        for d in draws.pixels.signed(g):  # (B,) px each
            assert uniform(d, range(-px, px + 1))
    assert px == 0 or 0 < (g1 == g2).float().mean() < 6 / (2 * px + 1) ** 2


@pytest.mark.parametrize("group, order", [("rot", 4), ("scale", 6), ("rotscale", 24)])
def test_a_ssl_draws_every_element_and_every_place(group, order):
    g0, g1, g2 = Draws("assl", group, **AXIS[group])(20000, torch.Generator().manual_seed(0))
    assert g0.shape == (20000, 1) and all(uniform(g, range(order)) for g in (g0[:, 0], g1, g2))
    assert uniform(g1 * order + g2, range(order ** 2))  # independent of each other
    assert uniform(g1 * order + g0[:, 0], range(order ** 2))  # and of where the fibers are read


@pytest.mark.parametrize("group, places", [("rot", 4), ("scale", 6), ("trans", 64)])
def test_h_ssl_draws_every_pair_of_places(group, places):
    draws = Draws("hssl", group, **AXIS[group])
    g0, g1, g2 = draws(20 * places ** 2, torch.Generator().manual_seed(0))
    one, two = (draws.map.shift_base(g, g0)[:, 0] for g in (g1, g2))
    assert uniform(one, range(places)) and uniform(two, range(places))
    assert places > 10 or uniform(one * places + two, range(places ** 2))


def test_draws_depend_on_nothing_but_the_generator():
    draws = Draws("hybrid", "scale", **AXIS["scale"])
    one, again, other = (draws(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again)) and not any(map(torch.equal, one[1:], other[1:]))


def test_a_hybrid_moves_images_and_bundles():
    draws = Draws("hybrid", "rot", **AXIS["rot"], strength=0.1)
    _, g1, g2, a1, a2 = draws(20000, torch.Generator().manual_seed(0))
    assert all(uniform(g, range(4)) for g in (g1, g2))
    assert all(uniform(d, range(-2, 3)) for a in (a1, a2) for d in draws.moves.signed(a))
    with pytest.raises(ValueError, match="take rot, scale or rotscale"):
        Draws("hybrid", "trans", **GRID)


@pytest.mark.parametrize("group, order", [("rot", 4), ("scale", 6), ("trans", 64)])
def test_a_ssl_on_all_of_z_is_simclr(group, order):
    """base_size = |G|: every fiber, in order, at the only place there is; H-SSL has nowhere to move it."""
    g0, g1, _ = Draws("assl", group, **AXIS[group], base_size=order)(500)
    assert torch.equal(g0, torch.arange(order).expand(500, -1)) and len(g1.unique()) > 1
    with pytest.raises(ValueError, match=f"1 … {order - 1}"):
        Draws("hssl", group, **AXIS[group], base_size=order)


def test_moved_images_are_shifted_by_a_fifth_at_most():
    """Whatever the strength of the augmentation in training."""
    draws, x = Draws("assl", "trans", **GRID, strength=0.5), torch.zeros(3000, 1, 29, 29)
    x[:, :, 14, 14] = 1
    y = draws.moved(x, torch.Generator().manual_seed(0)).flatten(1).argmax(1)  # (B,): where the dot went
    assert uniform(y // 29, range(9, 20)) and uniform(y % 29, range(9, 20))


# ---------------------------------------------------------------- what does not fit together
FOUR, ZERO = torch.arange(4), torch.tensor([0])
MISFITS = {  # a call with a network of six scales, an ordinary one and four images, and a word of the answer
    "the group of another network": (lambda f, plain, x: h_ssl(f, Head(16, (8,)), x, Rotation(), ZERO, FOUR, FOUR), "6 fibers, and the group 4 elements"),
    "a grid of another size": (lambda f, plain, x: h_ssl(plain, Head(16, (8,)), x, Translation(4, 4), ZERO, FOUR, FOUR), "64 fibers, and the group 16"),
    "too few elements": (lambda f, plain, x: h_ssl(f, Head(16, (8,)), x, Scale(), ZERO, FOUR[:2], FOUR[:2]), "4 images, but base spaces for 2"),
    "past the last scale": (lambda f, plain, x: h_ssl(f, Head(16, (8,)), x, Scale(), torch.tensor([4]), FOUR, FOUR), "groups.pairs"),
    "a base space that is not in the group": (lambda f, plain, x: a_ssl(plain, Head(16, (8,)), x, Translation(8, 8), ZERO + 64, FOUR, FOUR), "elements 64 … 64 of 0 … 63"),
    "training mode": (lambda f, plain, x: distances(f.train(), x, Scale(), FOUR, ZERO), "evaluation mode"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_arguments_that_do_not_fit_together_are_told(what):
    """Each of them would give a plausible number."""
    call, word = MISFITS[what]
    with pytest.raises(ValueError, match=word):
        call(MNISTNet(scales=SCALES, width=1 / 8).eval(), MNISTNet(width=1 / 8).eval(), torch.rand(4, 1, 29, 29))


def test_one_image_has_no_unit():
    """There is no distance between two images: None, and neither 0 nor an error at the end of a training."""
    found = distances(MNISTNet(rotations=4, width=1 / 8).eval(), torch.rand(1, 1, 29, 29), Rotation(), FOUR[1:], ZERO)
    assert found == dict.fromkeys(("invariance", "equation1", "axis"), [None] * 3)


def test_one_base_space_for_all_images_is_enough():
    f, h, x, g = MNISTNet(rotations=4, width=1 / 8).eval(), Head(32, (8,)).eval(), torch.rand(4, 1, 29, 29), torch.tensor([0, 1, 2, 3])
    for loss in (a_ssl, h_ssl):
        one, each = (loss(f, h, x, Rotation(), g0, g, g.flip(0)) for g0 in (g[:2], g[:2].expand(4, -1)))
        assert torch.equal(one[0], each[0]) and torch.equal(one[1], each[1])
