"""InfoNCE against loops, and the paper's claim: Eq. 2 = Eq. 3, loss and gradients, when f is equivariant."""
import math

import pytest
import torch
from conftest import blobs, relative, trained

from backbones import CNN, MLP, Head, MNISTNet
from groups import SCALES, Rotation, Scale, Translation, pairs, sample
from losses import Draws, a_ssl, equivariance_error, h_ssl, info_nce

pytestmark = pytest.mark.usefixtures("double")


# ---------------------------------------------------------------- InfoNCE
def naive_eq2(y1, y2, tau):
    """Eq. 2 word for word."""
    sim = lambda a, b: float(a @ b / (a.norm() * b.norm()))
    views, n, total = (y1, y2), len(y1), 0.0
    for i in range(n):
        below = sum(math.exp(sim(views[j][i], views[l][k]) / tau)
                    for k in range(n) if k != i for j in range(2) for l in range(2))
        total -= math.log(math.exp(sim(y1[i], y2[i]) / tau) / below) / n
    return total


def naive_ntxent(y1, y2, tau):
    """SimCLR's algorithm 1 word for word."""
    z = [v for pair in zip(y1, y2) for v in pair]
    sim = lambda a, b: float(a @ b / (a.norm() * b.norm()))
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


def test_info_nce_at_chance():
    y = torch.ones(9, 4)
    assert abs(float(info_nce(y, y)) - math.log(4 * 8)) < 1e-12
    assert abs(float(info_nce(y, y, denominator="ntxent")) - math.log(2 * 9 - 1)) < 1e-12


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


@pytest.mark.parametrize("size", [1, 2, 3])
def test_equation_2_is_equation_3_for_rotation(size):
    """The loss and every parameter's gradient, to 1e-10, with trained weights, BatchNorm as in evaluation."""
    f = trained(MNISTNet(rotations=4, width=1 / 8).double(), torch.rand(8, 1, 29, 29))
    h = trained(Head(size * f.channels, (16, 16, 16)), torch.randn(8, size * f.channels))
    x = torch.rand(12, 1, 29, 29)
    (a, ga), (b, gb) = both(f, h, x, Rotation(), *draws(Rotation(), 12, size))
    assert abs((a - b).item()) < 1e-10
    assert all(relative(p, q) < 1e-10 for p, q in zip(ga, gb))


@pytest.mark.parametrize("size", [1, 2, 3])
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
    for f, c in ((MNISTNet(rotations=4, width=1 / 8).double().eval(), 16), (MLP(28 * 28).double().eval(), 128)):
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


def test_the_gap_for_scale_is_the_equivariance_error():
    """As near as f is to equivariance and no nearer: the gap between the views is Eq. 1's measured error."""
    x = blobs(16, 29, margin=2)
    f = trained(MNISTNet(SCALES, width=1 / 4).double(), x[:8])
    h = lambda y: y
    g0, g1, g2 = draws(Scale(), 16, 1)
    error = equivariance_error(f, x, Scale(), g1, g0[0])
    with torch.no_grad():
        (a1, _), (b1, _) = (loss(f, h, x, Scale(), g0, g1, g2) for loss in (a_ssl, h_ssl))
    assert abs(relative(a1, b1) - error) < 1e-10


def test_all_paths_of_bundles_agree():
    """Sampled elements, and the full map with fibers read off it, give the same views."""
    x = torch.rand(5, 1, 29, 29)
    f = trained(MNISTNet(SCALES, width=1 / 8).double(), x)
    group = Scale()
    for size in (1, 2, 5):
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
    views = a_ssl(f, torch.nn.Identity(), x, draws.images, g0, g1, g2, draws.map)
    for y, g in zip(views, (g1, g2)):
        z = f(draws.images.T(x, g)).mean((-2, -1))  # (4, C, |G|)
        assert relative(y, z.transpose(1, 2).flatten(1)) < 1e-12
    with pytest.raises(ValueError, match=f"1 … {f.order - 1}"):
        Draws("hssl", "trans", False, f.order, 29, 1, 1, base_size=f.order)
