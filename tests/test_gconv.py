"""The basis, and the group convolution against naive loops, plain convolutions and Eq. 4."""

import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, relative

from backbones import MNISTNet
from gconv import Axis, GConv, band, fold, hermite_gaussian, support, turn, unfold
from groups import SCALES, Rotation, RotationScale, Scale, Translation

pytestmark = pytest.mark.usefixtures("double")
BOTH = dict(scales=(1.0, 1.5), rotations=4)
SMALL = [dict(rotations=4), dict(scales=(1.0, 1.5), extent=2)]  # compilers are slow


@pytest.fixture(params=[0, 10**9], ids=["W(B*x)", "(WB)*x"])
def form(request, monkeypatch):
    """A test that asks for this runs in either form."""
    monkeypatch.setattr(GConv, "jets_above", request.param)


# 3 functions on 7 pixels in either form, and a complete basis, which has one form: (e, jets_above)
BASES = pytest.mark.parametrize(
    "e, above", [(3, 0), (3, 10**9), (7, 0)], ids=["W(B*x)", "(WB)*x", "complete"]
)


# ------------------------------------------------------------------------------------ basis
def test_supports_are_sesns():
    assert [support(7, s, 1.75) for s in SCALES] == [5, 5, 5, 7, 7, 7]
    assert [support(11, s, 1.75) for s in SCALES] == [7, 7, 9, 9, 11, 11]
    assert support(7, 1.0, 1.0) == 7


@pytest.mark.parametrize("k, e, scales", [(7, 4, (1.0, 1.5)), (11, 11, (1.0,)), (5, 1, (1.0,))])
def test_basis_against_numpys_polynomials(k, e, scales):
    """b_n(u) ∝ He_n(u/s)·exp(-u²/2s²)/s, with the norm of the smallest scale at every scale."""
    raw = []
    for s in scales:
        half = support(k, s, scales[-1]) // 2
        u = np.arange(-half, half + 1) / s
        he = np.stack([np.polynomial.hermite_e.hermeval(u, np.eye(e)[n]) for n in range(e)])
        raw.append(he * np.exp(-(u**2) / 2) / s)
    norm = np.linalg.norm(raw[0], axis=1, keepdims=True)
    for b, expected in zip(hermite_gaussian(k, e, scales), raw, strict=True):
        np.testing.assert_allclose(b.numpy(), expected / norm, atol=1e-13)


def test_as_many_basis_functions_are_independent_as_there_are_pixels():
    bases = hermite_gaussian(11, 11) + hermite_gaussian(11, 11, SCALES)
    ranks = [int(torch.linalg.matrix_rank(b)) for b in bases]
    assert ranks == [11, 7, 7, 9, 9, 11, 11]  # see MNISTNet's functions


@pytest.mark.parametrize(
    "bad",
    [
        dict(kernel_size=6),
        dict(kernel_size=7, effective_size=8),
        dict(kernel_size=7, effective_size=0),
        dict(kernel_size=7, rotations=3),
        dict(kernel_size=7, extent=2),
        dict(kernel_size=7, scales=(0.0, 1.0)),
        dict(kernel_size=7, scales=(1.5, 1.0)),
        dict(kernel_size=3, scales=(1.0, 2.0)),  # 1 px at the first scale, where b_1 would be 0
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(bad):
    with pytest.raises(ValueError):
        GConv(1, 1, **bad)


# ------------------------------------------------------------------------- against oracles
@BASES
@pytest.mark.parametrize("padding, stride", [(3, 1), (0, 2), (3, 2)])
def test_every_slot_against_kernels_padded_to_the_largest(monkeypatch, e, above, padding, stride):
    """SESN's way: all kernels zero-padded to 7 × 7, one grouped convolution."""
    monkeypatch.setattr(GConv, "jets_above", above)
    geometry = dict(padding=padding, stride=stride)
    conv = GConv(2, 4, 7, e, scales=SCALES, rotations=4, bias=True, **geometry)
    torch.nn.init.normal_(conv.bias)
    z = torch.randn(3, 2, conv.order, 13, 15)
    kernels = [F.pad(k, [(7 - k.shape[-1]) // 2] * 4) for k in map(conv.kernel, range(conv.order))]
    bias = conv.bias.repeat(conv.order)
    y = z.transpose(1, 2).flatten(1, 2)
    expected = F.conv2d(y, torch.cat(kernels), bias, groups=conv.order, **geometry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # these sizes are legal
        assert relative(conv(z), expected.unflatten(1, (conv.order, 4)).transpose(1, 2)) < 1e-13


@pytest.mark.parametrize("scales, rotations", [((1.0,), 4), ((1.0, 1.3, 1.7), 1), ((1.0, 1.5), 4)])
def test_full_extent_against_a_naive_loop_of_equation_4(form, scales, rotations):
    """Loops over elements, channels and pixels; nothing is shared with gconv but the basis."""
    order = len(scales) * rotations
    conv = GConv(2, 3, 5, 3, scales=scales, rotations=rotations, padding=2, extent=order)
    y = torch.randn(1, 2, order, 6, 6)
    z, weight = torch.zeros(1, 3, order, 6, 6), conv.weight.detach().numpy()
    group = {1: Scale(scales), 4: RotationScale(scales)}[rotations]  # at one scale, a rotation
    for g, k in itertools.product(range(order), range(order)):
        h = int(group.product(torch.tensor(g), torch.tensor(k)))
        if h < 0:
            continue  # past the last scale
        b = hermite_gaussian(5, 3, scales)[g // rotations].numpy()
        size = b.shape[1]
        for c, i in itertools.product(range(3), range(2)):
            psi = np.einsum("ab,ak,bl->kl", weight[c, k, i], b, b)
            psi = np.rot90(psi, g % rotations)
            padded = np.pad(y[0, i, h].numpy(), size // 2)
            for u, v in itertools.product(range(6), range(6)):
                z[0, c, g, u, v] += (padded[u : u + size, v : v + size] * psi).sum()
    assert relative(conv(y), z) < 1e-12


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("size, stride, padding", [(9, 1, 3), (9, 2, 0), (8, 3, 5), (7, 4, 0)])
def test_a_band_is_a_convolution_along_one_axis(k, size, stride, padding):
    """Also where the smaller support of a small scale needs less padding than there is, or none."""
    b, x = torch.randn(2, k), torch.randn(size)
    padded = F.pad(x, [padding] * 2)[None, None]
    kernel = F.pad(b, [(7 - k) // 2] * 2)[:, None]  # centred in 7 px
    expected = F.conv1d(padded, kernel, stride=stride)[0].T  # (H', e)
    assert torch.allclose(band(b, size, 7, stride, padding) @ x, expected, atol=1e-13)


# ------------------------------------------------------------ equivariance, layer by layer
@BASES
@pytest.mark.parametrize("size, stride, padding", [(8, 1, 3), (9, 2, 3), (13, 3, 0), (11, 2, 0)])
@pytest.mark.parametrize("extent", [1, 3])
def test_rotation_is_exact_on_legal_sizes(monkeypatch, e, above, size, stride, padding, extent):
    monkeypatch.setattr(GConv, "jets_above", above)
    assert (size + 2 * padding - 7) % stride == 0
    group, g = Rotation(), torch.arange(4)
    layer = dict(rotations=4, stride=stride, padding=padding)
    lifting = GConv(2, 3, 7, e, **layer)
    x = torch.randn(4, 2, size, size)
    assert relative(lifting(group.T(x, g)), group.Gamma(lifting(x), g)) < 1e-12
    conv = GConv(2, 3, 7, e, extent=extent, bias=True, **layer)
    torch.nn.init.normal_(conv.bias)
    z = torch.randn(4, 2, 4, size, size)
    assert relative(conv(group.Gamma(z, g)), group.Gamma(conv(z), g)) < 1e-12


@pytest.mark.parametrize("size", [8, 28, 32])
def test_an_illegal_size_is_wrong_by_order_one_and_says_so(size):
    conv = GConv(1, 2, 7, 3, rotations=4, stride=2, padding=3)
    x, g = torch.randn(4, 1, size, size), torch.arange(4)
    with pytest.warns(UserWarning, match=f"{size - 1} or {size + 1}") as told:
        z, turned = conv(x), conv(Rotation().T(x, g))
    assert told[0].filename == __file__  # the line that calls the layer
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
    inner = (..., slice(1, -1), slice(1, -1))  # one position of the map: nothing was shifted in
    assert relative(conv(group.T(x, g))[inner], group.Gamma(conv(x), g)[inner]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("k", [7, 9, 11, 15, 21])
def test_scale_error_is_what_the_support_cuts_off_the_basis(k):
    """f(T_g x)(σ_0) against (Γ_g f(x))(σ_0), a lifting layer with e = 3, inside the shrunk frame.

    An enlarged filter would answer to an enlarged stroke alike, but each lives on k_s pixels, and
    what is cut off differs from scale to scale.  The bound: twice (two axes) the worst difference
    of the share of b_n's norm that is cut at σ_g and at σ_0, plus 2 % for resampling the image.
    Measured over three sets of random weights, at the worst factor: 12 to 37 % at k = 7, 2 to 4 %
    at 11, 1 % at 15."""
    x, scale = blobs(6, 97, margin=12), Scale()
    conv = GConv(1, 4, k, 3, scales=SCALES, padding=k // 2)
    z = conv(x)  # (6, 4, 6, 97, 97)
    cut = []
    for b, whole in zip(hermite_gaussian(k, 3, SCALES), hermite_gaussian(61, 3, SCALES)):
        b = F.pad(b, [(whole.shape[1] - b.shape[1]) // 2] * 2)
        cut.append((b - whole).norm(dim=1) / whole.norm(dim=1))
    first = Axis([6, 0, 0, 0, 0, 0], torch.zeros(6, 1, dtype=torch.long), torch.arange(6))
    for i in range(1, 6):
        g = torch.full((6,), i)
        left = conv(scale.T(x, g), first)  # (6, 4, 97, 97), both at σ_0
        right = scale.Gamma(z, g)[:, :, 0]
        inside = (torch.arange(97) - 48).abs() < 48 / SCALES[i] - 1
        inside = inside[:, None] & inside  # (97, 97)
        error = relative(left * inside, right * inside)
        bound = 2 * float((cut[i] - cut[0]).abs().max()) + 0.02
        print(f"k = {k}, 1/{SCALES[i]}: error {error:.3f}, bound {bound:.3f}")
        assert error < bound


# ---------------------------------------------------------------------- folded, and sampled
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("asked", [None, torch.tensor([[5, 2], [2, 0], [3, 5]])])
def test_fold_sorts_by_slot_and_unfold_undoes_it(asked, channels):
    """Folded images are channels last in memory, and so are those that leave a layer."""
    x = torch.randn(3, channels, 9, 8)
    y, axis = fold(x, 6, asked)
    slots = torch.arange(6).expand(3, 6) if asked is None else asked
    assert sum(axis.counts) == len(y) == slots.numel()
    assert axis.counts == slots.flatten().bincount(minlength=6).tolist()
    marked = y + 100 * torch.repeat_interleave(torch.tensor(axis.counts))[:, None, None, None]
    expected = x[:, :, None] + 100 * slots[:, None, :, None, None]  # (B, C, n, H, W)
    assert torch.equal(unfold(marked, axis), expected)
    assert y.stride() == (9 * 8 * channels, 1, 8 * channels, channels)
    out = GConv(channels, 4, 5, 3, scales=SCALES, padding=2)(y, axis)
    assert out.is_contiguous(memory_format=torch.channels_last)
    if asked is None:  # a map is folded slot by slot
        again, same = fold(unfold(marked, axis), 6)
        assert torch.equal(again, marked) and same == axis


def test_jets_that_are_computed_again_give_the_same_gradients(monkeypatch):
    """Bit for bit; None means never on a CPU, and the jets are not kept."""
    conv = GConv(4, 32, 7, 3, padding=3, **BOTH)
    x = torch.randn(3, 4, 21, 21, requires_grad=True)
    assert GConv.recompute is None
    grads, kept = [], []
    for recompute in (None, False, True):
        monkeypatch.setattr(GConv, "recompute", recompute)
        sizes = []

        def count(t, sizes=sizes):
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = conv(x).sum()
        kept.append(sum(sizes))
        grads.append(torch.autograd.grad(loss, [x, conv.weight]))
    assert all(map(torch.equal, grads[0] * 2, grads[1] + grads[2]))
    assert kept[0] == kept[1] > 3 * kept[2]


def test_a_hook_sees_a_layer_once():
    conv, calls = GConv(2, 3, 5, 3, padding=2, rotations=4), []
    conv.register_forward_hook(lambda *args: calls.append(len(args)))
    y, where = fold(torch.randn(2, 2, 9, 9), 4)
    for args in ((torch.randn(2, 2, 9, 9),), (torch.randn(2, 2, 4, 9, 9),), (y, where)):
        calls.clear()
        conv(*args)
        assert len(calls) == 1


# --------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "counts, says",
    [
        ([2, 2, 2, 1, 1], "5 numbers with the sum 8"),  # images would be lost
        ([2, 2, 2, 1], "the sum 7"),
        ([0] * 4, "the sum 0"),
    ],
)
def test_counts_has_one_number_for_each_slot_and_counts_all_images(counts, says):
    n = 8 * any(counts)
    with pytest.raises(ValueError, match=f"{says}.*4 slots.*{n}, 1, 5, 5"):
        conv = GConv(1, 1, 3, rotations=4, padding=1)
        conv(torch.zeros(n, 1, 5, 5), Axis(counts))


@pytest.mark.parametrize("shape", [(1, 29, 29), (2, 8, 6, 29, 29), (2, 2, 8, 4, 29, 29)])
def test_a_map_of_another_shape_is_told(shape):
    with pytest.raises(ValueError, match="this layer takes"):
        GConv(8, 8, 7, 3, padding=3, rotations=4)(torch.rand(shape))


@pytest.mark.parametrize("shape", [(5, 5), (5, 9), (9, 5)])
def test_an_image_smaller_than_the_kernel_is_told(shape):
    with pytest.raises(ValueError, match="smaller than the kernel"):
        GConv(1, 1, 7, 3)(torch.zeros(1, 1, *shape))


def test_extent_needs_all_slots():
    conv = GConv(1, 1, 3, rotations=4, padding=1, extent=2)
    some = fold(torch.zeros(3, 1, 5, 5), 4, torch.tensor([[0, 1, 1, 3]] * 3))
    equal = fold(torch.zeros(3, 1, 5, 5), 4, torch.tensor([[0, 1, 2, 3]] * 3))
    for y, axis in (some, equal):
        with pytest.raises(ValueError, match="needs all"):
            conv(y, axis)


# --------------------------------------------------------------------- a group of your own
class MirrorConv(GConv):
    """Slot 1 has the mirrored filter: b_n(-u) = (-1)^n b_n(u)."""

    order = 2

    def turned(self, w, g):
        return w * (1 - 2 * g * (torch.arange(w.shape[-1]) % 2))

    def scale_index(self, g):
        return 0


def test_a_new_group_with_an_extent_needs_its_own_neighbours():
    with pytest.raises(NotImplementedError, match="neighbours"):
        MirrorConv(1, 1, 7, 3, padding=3, extent=2)(torch.zeros(1, 1, 9, 9))


@pytest.mark.parametrize("conv, axis", [(GConv, dict(rotations=4)), (MirrorConv, {})])
def test_delta_changes_one_slot_in_every_group(form, conv, axis):
    """Also in a layer whose coefficients are its own."""
    layer, x = conv(1, 2, 7, 3, padding=3, **axis), torch.randn(1, 1, 9, 9)
    before = layer(x)
    delta = torch.zeros(layer.order, 2, 1, 3, 3)
    delta[1] = torch.randn(2, 1, 3, 3)
    layer.register_buffer("delta", delta)
    changed = (layer(x) - before).abs().amax((0, 1, 3, 4)) > 1e-6  # (G,)
    assert changed.nonzero().flatten().tolist() == [1]


# ------------------------------------------------------------------ dtype, state, compilers
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
            turned = [turn(conv.weight[:, 0], g) for g in range(4)]
            conv.register_buffer("delta", torch.stack(turned))
        elif change == "copy_":
            conv.weight.copy_(2 * conv.weight)
        else:
            conv.weight = torch.nn.Parameter(2 * conv.weight)
        assert torch.equal(conv(x), 2 * before) and before.any()


def test_one_seed_gives_the_same_weights_as_ever():
    """The first normal numbers are the weight, std √(2/fan-in) (He et al. 2015); the bias is 0."""
    torch.manual_seed(5)
    conv = GConv(2, 3, 7, 3, rotations=4, extent=2, bias=True)
    torch.manual_seed(5)
    expected = torch.empty(3, 2, 2, 3, 3).normal_(std=(2 / 36) ** 0.5)
    assert torch.equal(conv.weight, expected) and not conv.bias.any()
    assert list(conv.state_dict()) == ["weight", "bias"]


def test_bfloat16_is_near_float32(form):
    """bf16 keeps 8 bits: products carry 2⁻⁹ relative error, sums of independent ones not more."""
    torch.set_default_dtype(torch.float32)
    conv = GConv(4, 8, 7, 3, scales=SCALES, padding=3)
    z = torch.randn(2, 4, 6, 13, 13)
    with torch.autocast("cpu", torch.bfloat16):
        half = conv(z)
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), conv(z)) < 4 * 2**-8


def test_a_float32_layer_is_exact_in_float64_once_it_is_double(form):
    """Its basis is that of a layer made in float64, and not one that was rounded to float32."""
    torch.set_default_dtype(torch.float32)
    layer = torch.nn.Sequential(GConv(1, 2, 11, 5, padding=5, **BOTH)).double()
    torch.set_default_dtype(torch.float64)
    expected = GConv(1, 2, 11, 5, padding=5, **BOTH)
    expected.load_state_dict(layer[0].state_dict())
    x = torch.randn(2, 1, 13, 13)
    assert torch.equal(layer(x), expected(x))
    assert layer.float()(x.float()).dtype == torch.float32


def test_a_layer_made_without_memory_gets_its_basis_with_its_weights():
    with torch.device("meta"):
        layer = GConv(1, 2, 7, 3, padding=3, **BOTH)
    expected = GConv(1, 2, 7, 3, padding=3, **BOTH)
    layer.to_empty(device="cpu").load_state_dict(expected.state_dict())
    x = torch.randn(2, 1, 9, 9)
    assert torch.equal(layer(x), expected(x))


def test_a_forward_pass_in_inference_mode_does_no_harm_to_later_training(form):
    conv, x = GConv(1, 24, 13, 3, padding=6), torch.rand(2, 1, 21, 21)
    with torch.inference_mode():
        conv(x)
        conv.kernel(0)
    (conv(x).sum() + conv.kernel(0).sum()).backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("axis", SMALL, ids=str)
def test_compile_needs_no_graph_break_and_changes_nothing(axis):
    """A layer and its gradients.  (Written as (-1)**n, the signs of `turn` were all -1 in it.)"""
    conv = GConv(2, 3, 5, padding=2, **axis)
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    for shape in ((2, 2, 9, 9), (2, 2, conv.order, 9, 9)):
        z = torch.randn(shape)
        grads = [torch.autograd.grad(f(z).square().sum(), conv.weight)[0] for f in (compiled, conv)]
        assert torch.allclose(compiled(z), conv(z), atol=1e-12) and relative(*grads) < 1e-12


@pytest.mark.parametrize("recompute", [None, True])
def test_compile_of_a_network_needs_no_graph_break(monkeypatch, recompute):
    monkeypatch.setattr(GConv, "recompute", recompute)
    f, x = MNISTNet((1.0, 1.5), width=1 / 4), torch.randn(2, 1, 25, 25)  # layers in both forms
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x), f(x), atol=1e-12)


def test_compile_at_a_size_that_warns():
    """A layer, and a network."""
    torch.compiler.reset()  # it compiles a function only so many times
    conv = GConv(1, 2, 7, 3, rotations=4, stride=2, padding=3)
    net = MNISTNet(rotations=4, width=1 / 16)
    for f, x, told in (
        (conv, torch.ones(1, 1, 8, 8), "7 or 9"),
        (net, torch.rand(2, 1, 28, 28), "29"),
    ):
        compiled = torch.compile(f, fullgraph=True, backend="eager")
        with pytest.warns(UserWarning, match=told):
            expected = f(x)
        assert torch.allclose(compiled(x), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_any_batch_size(strict):
    """From a layer and a network that were never called."""
    batch = {0: torch.export.Dim("batch")}
    f = MNISTNet((1.0, 1.5), width=1 / 4, extent=2).eval()
    layer = GConv(2, 3, 5, padding=2, rotations=4)
    for module, shape in ((f, (1, 25, 25)), (layer, (2, 4, 9, 9))):
        args = (torch.randn(2, *shape),)
        program = torch.export.export(module, args, dynamic_shapes=(batch,), strict=strict)
        for n in (1, 2, 5):
            x = torch.randn(n, *shape)
            assert torch.allclose(program.module()(x), module(x), atol=1e-12)
