"""The basis, and the group convolution against naive loops, plain convolutions and the equation it claims."""
import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, relative

from gconv import GConv, hermite_gaussian, jets, lift, support, turn, unlift
from groups import SCALES, Rotation, RotationScale, Scale, Translation

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(params=[0, 10 ** 9], ids=["W(B*x)", "(WB)*x"])
def form(request, monkeypatch):
    """A test that asks for this runs in either form."""
    monkeypatch.setattr(GConv, "jets_above", request.param)


# A basis of 3 functions on 7 pixels in either form, and a complete one, which has one form only: (e, jets_above)
BASES = pytest.mark.parametrize("e, above", [(3, 0), (3, 10 ** 9), (7, 0)], ids=["W(B*x)", "(WB)*x", "complete"])


# ---------------------------------------------------------------- basis
def test_supports_are_sesns():
    assert [support(7, s, 1.75) for s in SCALES] == [5, 5, 5, 7, 7, 7]
    assert [support(11, s, 1.75) for s in SCALES] == [7, 7, 9, 9, 11, 11]
    assert support(7, 1.0, 1.0) == 7


def test_basis_against_the_formula():
    """b_n(u) ∝ He_n(u/s)·exp(-u²/2s²)/s, with He by its recurrence; unit norm at the smallest scale, kept at the others."""
    scales = (1.0, 1.5)
    for s, basis in zip(scales, hermite_gaussian(7, 4, scales)):
        u = np.arange(-(basis.shape[1] // 2), basis.shape[1] // 2 + 1) / s
        he = [np.ones_like(u), u]
        for n in range(1, 3):
            he.append(u * he[n] - n * he[n - 1])
        raw = np.stack(he) * np.exp(-u ** 2 / 2) / s
        u1 = np.arange(-2, 3)  # support(7, 1.0, 1.5) = 5
        he1 = [np.ones_like(u1) * 1.0, u1 * 1.0, u1 ** 2 - 1.0, u1 ** 3 - 3.0 * u1]
        norm = np.linalg.norm(np.stack(he1) * np.exp(-u1 ** 2 / 2), axis=1, keepdims=True)
        np.testing.assert_allclose(basis.numpy(), raw / norm, atol=1e-13)


def test_basis_functions_are_independent_and_have_parity():
    for b in hermite_gaussian(11, 11):
        assert torch.linalg.matrix_rank(b) == 11  # effective 11 on 11 pixels: every kernel is within reach
        sign = (-1.0) ** torch.arange(11)[:, None]
        assert torch.allclose(b.flip(1), sign * b, atol=1e-13)


def test_turned_coefficients_are_turned_kernels():
    w, b = torch.randn(2, 3, 5, 5), hermite_gaussian(7, 5)[0]
    kernel = lambda w: torch.einsum("oiab,ak,bl->oikl", w, b, b)
    for r in range(4):
        assert torch.allclose(kernel(turn(w, r)), kernel(w).rot90(r, (-2, -1)), atol=1e-13)
    assert torch.equal(turn(w, 4), w)


def test_wrong_sizes_are_refused():
    for bad in (dict(kernel_size=6), dict(kernel_size=7, effective_size=8), dict(kernel_size=7, effective_size=0), dict(kernel_size=7, rotations=3),
                dict(kernel_size=7, extent=2), dict(kernel_size=7, scales=(0.0, 1.0)), dict(kernel_size=7, scales=(1.5, 1.0)),
                dict(kernel_size=3, scales=(1.0, 2.0))):  # 1 px at the first scale, where b_1 would be 0
        with pytest.raises(ValueError):
            GConv(1, 1, **bad)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        GConv(1, 1, 7)(torch.zeros(1, 1, 5, 5))


# ---------------------------------------------------------------- against oracles
@pytest.mark.parametrize("e, stride, padding", [(3, 1, 3), (3, 2, 3), (3, 2, 0), (7, 2, 3), (1, 1, 3), (5, 3, 2)])
def test_trivial_group_is_a_plain_convolution(form, e, stride, padding):
    conv = GConv(2, 5, 7, e, stride=stride, padding=padding, bias=True)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(3, 2, 15, 13)
    b = hermite_gaussian(7, e)[0]
    kernel = torch.einsum("oiab,ak,bl->oikl", conv.weight[:, 0], b, b)
    assert torch.allclose(conv(x)[:, :, 0], F.conv2d(x, kernel, conv.bias, stride, padding), atol=1e-12)


@BASES
@pytest.mark.parametrize("padding, stride", [(3, 1), (0, 2), (3, 2)])
def test_every_element_against_kernels_padded_to_the_largest(monkeypatch, e, above, padding, stride):
    """SESN's way: all kernels zero-padded to 7 × 7, one grouped convolution."""
    monkeypatch.setattr(GConv, "jets_above", above)
    conv = GConv(2, 4, 7, e, scales=SCALES, rotations=4, padding=padding, stride=stride)
    y = torch.randn(3, 2, conv.order, 13, 13)
    kernels = [F.pad(k, [(7 - k.shape[-1]) // 2] * 4) for k in map(conv.kernel, range(conv.order))]
    grouped = F.conv2d(y.transpose(1, 2).flatten(1, 2), torch.cat(kernels), stride=stride, padding=padding, groups=conv.order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # these sizes are legal
        assert relative(conv(y), grouped.unflatten(1, (conv.order, 4)).transpose(1, 2)) < 1e-13


@pytest.mark.parametrize("scales, rotations", [((1.0,), 4), ((1.0, 1.3, 1.7), 1), ((1.0, 1.5), 4)])
def test_full_extent_against_a_naive_loop_of_equation_4(form, scales, rotations):
    """z(g) = Σ_{k} Σ_i y_i(g·k) ψ_i(k): loops over elements, channels and pixels; nothing shared with gconv but the basis."""
    order = len(scales) * rotations
    conv = GConv(2, 3, 5, 3, scales=scales, rotations=rotations, padding=2, extent=order)
    y = torch.randn(1, 2, order, 6, 6)
    z, weight = torch.zeros(1, 3, order, 6, 6), conv.weight.detach().numpy()
    group = (Rotation() if len(scales) == 1 else RotationScale(scales)) if rotations == 4 else Scale(scales)
    for g, k in itertools.product(range(order), range(order)):
        h = int(group.product(torch.tensor(g), torch.tensor(k)))
        if h < 0:
            continue  # past the last scale
        b = hermite_gaussian(5, 3, scales)[g // rotations].numpy()
        size = b.shape[1]
        for c, i in itertools.product(range(3), range(2)):
            psi = sum(weight[c, k, i, p, q] * np.outer(b[p], b[q]) for p in range(3) for q in range(3))
            psi = np.rot90(psi, g % rotations)
            padded = np.pad(y[0, i, h].numpy(), size // 2)
            for u, v in itertools.product(range(6), range(6)):
                z[0, c, g, u, v] += (padded[u:u + size, v:v + size] * psi).sum()
    assert relative(conv(y), z) < 1e-12


def test_jets_are_the_basis_coefficients():
    y = torch.randn(2, 3, 9, 9)
    b = hermite_gaussian(7, 3)[0]
    jet = jets(y, (7, 3, (1.0,)), 0, 2, 3).unflatten(1, (3, 3, 3))  # (2, b, a, C, H', W')
    for p, q in itertools.product(range(3), range(3)):
        psi = torch.outer(b[p], b[q])[None, None].expand(3, 1, -1, -1)
        assert torch.allclose(jet[:, q, p], F.conv2d(y, psi, stride=2, padding=3, groups=3), atol=1e-12)


# ---------------------------------------------------------------- equivariance, layer by layer
@BASES
@pytest.mark.parametrize("size, stride, padding", [(8, 1, 3), (9, 2, 3), (13, 3, 0), (11, 2, 0)])
@pytest.mark.parametrize("extent", [1, 3])
def test_rotation_is_exact_on_legal_sizes(monkeypatch, e, above, size, stride, padding, extent):
    monkeypatch.setattr(GConv, "jets_above", above)
    assert (size + 2 * padding - 7) % stride == 0
    group, g = Rotation(), torch.arange(4)
    lifting = GConv(2, 3, 7, e, rotations=4, stride=stride, padding=padding)
    x = torch.randn(4, 2, size, size)
    assert relative(lifting(group.T(x, g)), group.Gamma(lifting(x), g)) < 1e-12
    conv = GConv(2, 3, 7, e, rotations=4, stride=stride, padding=padding, extent=extent, bias=True)
    torch.nn.init.normal_(conv.bias)
    y = torch.randn(4, 2, 4, size, size)
    assert relative(conv(group.Gamma(y, g)), group.Gamma(conv(y), g)) < 1e-12


@pytest.mark.parametrize("size", [8, 28, 32])
def test_an_illegal_size_is_wrong_by_order_one_and_says_so(size):
    conv = GConv(1, 2, 7, 3, rotations=4, stride=2, padding=3)
    x, g = torch.randn(4, 1, size, size), torch.arange(4)
    with pytest.warns(UserWarning, match=f"{size - 1} or {size + 1}"):
        z, turned = conv(x), conv(Rotation().T(x, g))
    assert relative(turned, Rotation().Gamma(z, g)) > 0.3
    for good in (size - 1, size + 1):  # what it recommends is right, and then it says nothing
        x = torch.randn(4, 1, good, good)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert relative(conv(Rotation().T(x, g)), Rotation().Gamma(conv(x), g)) < 1e-12


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_translation_by_whole_strides_is_exact_away_from_the_border(stride):
    group = Translation(9, 9, stride=stride)
    size = 8 * stride + 1
    conv = GConv(1, 3, 7, 3, stride=stride, padding=3)
    x = torch.zeros(9, 1, size, size)
    lo, hi = 2 * stride, size - 2 * stride
    x[..., lo:hi, lo:hi] = torch.randn(9, 1, hi - lo, hi - lo)
    g = torch.tensor([dy % 9 * 9 + dx % 9 for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    inner = (..., slice(1, -1), slice(1, -1))  # one position of the map: nothing was shifted in there
    assert relative(conv(group.T(x, g))[inner], group.Gamma(conv(x), g)[inner]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("k", [7, 9, 11, 15, 21])
def test_scale_error_is_what_the_support_cuts_off_the_basis(k):
    """f(T_g x)(σ_0) against (Γ_g f(x))(σ_0), a lifting layer of effective size 3, inside the shrunk frame.

    An enlarged filter would answer to an enlarged stroke alike, but each lives on k_s pixels, and what is cut off
    differs from scale to scale.  The bound: twice (two axes) the worst difference of the share of b_n's norm that is
    cut at σ_g and at σ_0, plus 2 % for resampling the image.  Measured over three sets of random weights: 12 to 37 % at
    k = 7, 2 to 4 % at 11, 1 % at 15, at the worst factor."""
    x, scale = blobs(6, 97, margin=12), Scale()
    conv = GConv(1, 4, k, 3, scales=SCALES, padding=k // 2)
    z = conv(x)  # (6, 4, 6, 97, 97)
    whole, cut = hermite_gaussian(61, 3, SCALES), []
    for b, w in zip(hermite_gaussian(k, 3, SCALES), whole):
        b = F.pad(b, [(w.shape[1] - b.shape[1]) // 2] * 2)  # (3, 61 or less)
        cut.append((b - w).norm(dim=1) / w.norm(dim=1))
    for i in range(1, 6):
        g = torch.full((6,), i)
        left, right = conv(scale.T(x, g), [6, 0, 0, 0, 0, 0]), scale.Gamma(z, g)[:, :, 0]  # (6, 4, 97, 97), both at element 0
        inside = (torch.arange(97) - 48).abs() < 48 / SCALES[i] - 1
        inside = inside[:, None] & inside  # (97, 97)
        error, bound = relative(left * inside, right * inside), 2 * float((cut[i] - cut[0]).abs().max()) + 0.02
        print(f"k = {k}, 1/{SCALES[i]}: error {error:.3f}, bound {bound:.3f}")
        assert error < bound


# ---------------------------------------------------------------- sampled elements, dtype, state
@pytest.mark.parametrize("scales, rotations", [(SCALES, 1), ((1.0,), 4), ((1.0, 1.5), 4)])
def test_sampled_elements_are_those_of_the_full_map(form, scales, rotations):
    """Exactly the same fibers, and the same gradients of a loss that looks at no others."""
    order = len(scales) * rotations
    group = dict(scales=scales, rotations=rotations)
    a, b = GConv(2, 3, 7, 7, padding=3, **group), GConv(3, 4, 7, 3, padding=3, stride=2, **group)
    x = torch.randn(6, 2, 9, 9)
    elements = torch.randint(order, (6, 3))
    target = torch.randn(6, 4, 3, 5, 5)
    y, counts, back = lift(x, elements, order)
    sampled = unlift(b(a(y, counts), counts), back, 3)
    full = b(a(x)).transpose(1, 2)[torch.arange(6)[:, None], elements].transpose(1, 2)
    assert relative(sampled, full) < 1e-12
    grads = [torch.autograd.grad((z * target).sum(), [a.weight, b.weight]) for z in (sampled, full)]
    assert all(relative(p, q) < 1e-12 for p, q in zip(*grads))


def test_jets_that_are_computed_again_give_the_same_gradients(monkeypatch):
    """As on a GPU, bit for bit."""
    conv, x = GConv(2, 32, 7, 3, scales=SCALES, rotations=4, padding=3, stride=2), torch.randn(3, 2, 9, 9, requires_grad=True)
    assert any(conv.mixes(g) for g in range(conv.order))
    found = []
    for again in (False, True):
        monkeypatch.setattr(GConv, "recompute", again)
        found.append(torch.autograd.grad(conv(x).square().sum(), [x, conv.weight]))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("counts, says", [([2, 2, 2, 1, 1], "5 numbers with the sum 8"), ([2, 2, 2, 1], "the sum 7"), ([0] * 4, "the sum 0")])
def test_counts_has_one_number_for_each_element_and_counts_all_images(counts, says):
    """With a number more, images would be lost."""
    with pytest.raises(ValueError, match=f"{says}.*4 elements.*{8 * any(counts)}, 1, 5, 5"):
        GConv(1, 1, 3, rotations=4, padding=1)(torch.zeros(8 * any(counts), 1, 5, 5), counts)


def test_torch_compile_does_not_change_the_filters():
    """Written as (-1)**n, the signs of `turn` were all -1 after it."""
    conv, x = GConv(2, 3, 5, rotations=4, padding=2), torch.randn(2, 2, 9, 9)
    assert torch.allclose(torch.compile(conv, backend="eager")(x), conv(x), atol=1e-12)


def test_extent_needs_all_elements():
    conv = GConv(1, 1, 3, rotations=4, padding=1, extent=2)
    with pytest.raises(ValueError, match="needs all"):
        conv(torch.zeros(3, 1, 5, 5), [1, 2, 0, 0])


@pytest.mark.parametrize("change", ["data", "load", "delta", "copy_", "new"])
@pytest.mark.parametrize("amp", [False, True])
def test_filters_are_never_stale(form, change, amp):
    """Whatever way the coefficients are changed, the next call in evaluation mode sees it."""
    torch.set_default_dtype(torch.float32)
    conv, x = GConv(1, 2, 7, 3, rotations=4, padding=3).eval(), torch.randn(1, 1, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        before = conv(x)
        assert torch.equal(conv(x), before)
        if change == "data":
            conv.weight.data.mul_(2)  # exact in any precision
        elif change == "load":
            conv.load_state_dict({"weight": 2 * conv.weight})
        elif change == "delta":
            conv.register_buffer("delta", torch.stack([turn(conv.weight[:, 0], g) for g in range(4)]))
        elif change == "copy_":
            conv.weight.copy_(2 * conv.weight)
        else:
            conv.weight = torch.nn.Parameter(2 * conv.weight)
        assert torch.equal(conv(x), 2 * before) and before.any()
        assert set(conv.state_dict()) == ({"weight", "delta"} if change == "delta" else {"weight"})
    conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_bfloat16_is_near_float32(form):
    """bf16 keeps 8 bits: products carry 2⁻⁹ relative error each, and sums of independent ones stay near that."""
    torch.set_default_dtype(torch.float32)
    conv = GConv(4, 8, 7, 3, scales=SCALES, padding=3)
    y = torch.randn(2, 4, 6, 13, 13)
    with torch.autocast("cpu", torch.bfloat16):
        z = conv(y)
    assert z.dtype == torch.bfloat16
    assert relative(z.float(), conv(y)) < 4 * 2 ** -8


def test_a_forward_pass_in_inference_mode_does_no_harm_to_later_training():
    """The bases and matrices that are kept must not be inference tensors.  Sizes that no other test has."""
    conv, x = GConv(1, 24, 13, 3, padding=6), torch.rand(2, 1, 21, 21)
    with torch.inference_mode():
        conv(x)
        GConv(1, 2, 9, 2, padding=4).kernel(0)
    conv(x).sum().backward()
    GConv(1, 2, 9, 2, padding=4).kernel(0).sum().backward()
    assert conv.mixes(0) and conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(1, 29, 29), (2, 8, 6, 29, 29), (2, 2, 8, 4, 29, 29)])
def test_a_map_of_another_shape_is_told(shape):
    with pytest.raises(ValueError, match="this layer takes"):
        GConv(8, 8, 7, 3, padding=3, rotations=4)(torch.rand(shape))
