"""Group convolution with a basis-augmented kernel (Eq. 4): translations, quarter turns, scales.

A filter is a combination of Hermite-Gaussian functions, ψ_mn(y, x) = b_m(y)·b_n(x), with learned
coefficients w_mn (SESN, Sosnovik et al. 2020, basis type A).  To turn or enlarge a filter, turn or
enlarge its functions.  Turns are exact, at sizes that fit the strides; scale is approximate.
Needs no sibling: you can copy this file alone.

    lift = GConv(1, 8, kernel_size=11, padding=5, rotations=4)
    conv = GConv(8, 16, kernel_size=7, effective_size=3, padding=3, stride=2, rotations=4)
    x = torch.rand(2, 1, 29, 29)
    z = conv(lift(x))                               # (2, 16, 4, 15, 15) = (B, C, G, H', W')

A layer with extent 1 never mixes slots, so inside a network the group axis is a part of the batch:
`fold` puts it there, sorted by slot.  A full feature map has N = |G|·B such images.  A loss that
reads two fibers of each image needs only N = 2·B: that is all the speed-up there is.

    y, axis = fold(x, lift.order)                   # (8, 1, 29, 29) = (N, C, H, W)
    z = unfold(conv(lift(y, axis), axis), axis)     # (2, 16, 4, 15, 15) again
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


# ---- the basis
def support(kernel_size, scale, max_scale):
    """Width in pixels of the filter at `scale`: int(k·s/s_max)//2·2 + 1, always odd (SESN)."""
    return int(kernel_size * scale / max_scale) // 2 * 2 + 1


def hermite_gaussian(kernel_size, effective_size, scales=(1.0,)):
    """The functions b_n(u) = He_n(u/s)·exp(-u²/2s²)/s, n = 0 … e-1, at each scale s.

    Every b_n has unit norm at the smallest scale.  The other scales keep that factor, so that a
    larger filter gives a larger object a similar response (notebook 02 shows where this fails).
    Arguments and errors as in GConv → for each scale (e, k_s) float64, k_s = `support`.
    """
    if kernel_size % 2 == 0 or not 1 <= effective_size <= kernel_size:
        raise ValueError(
            f"{effective_size} functions on {kernel_size} pixels: kernel_size must be odd, and "
            f"effective_size at least 1 and at most {kernel_size}"
        )
    if min(scales) <= 0 or sorted(scales) != list(scales):
        raise ValueError(f"scales must be positive and must not decrease, not {scales}")
    bases = []
    for s in scales:
        half = support(kernel_size, s, scales[-1]) // 2
        u = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu") / s  # (k_s,)
        he = [torch.ones_like(u), u]
        for n in range(1, effective_size):
            he.append(u * he[n] - n * he[n - 1])  # He_(n+1) = u·He_n - n·He_(n-1)
        bell = torch.exp(-(u**2) / 2)
        bases.append(torch.stack(he[:effective_size]) * bell / s)  # (e, k_s)
    norm = bases[0].norm(dim=1, keepdim=True)  # (e, 1)
    if not norm.all():
        raise ValueError(f"at scale {scales[0]} the filter is 1 px wide: enlarge kernel_size")
    return [b / norm for b in bases]


def turn(w, quarter_turns):
    """Coefficients of the turned filter: w (…, e, e) → as w.

    This is exact: rot90(ψ_mn) = (-1)^n ψ_nm, since b_n has the parity of n.
    """
    sign = 1 - 2 * (torch.arange(w.shape[-1], device=w.device) % 2)  # (e,): 1, -1, 1, …
    for _ in range(quarter_turns % 4):
        w = (w * sign).transpose(-1, -2)  # (…, e, e)
    return w


# ---- Eq. 4
class GConv(nn.Module):
    """Eq. 4 with h = g·k: z(g) = Σ_k Σ_i y_i(g·k) ∗ T_g ψ_i(k), i an input channel, ∗ in space.

    kernel_size     odd, the support at the largest scale
    effective_size  e: functions along each axis, e² coefficients for each pair of channels (None:
                    kernel_size; 3 is better with several scales: the smallest has few pixels)
    scales          factors that do not decrease; (1.0,) for no scaling
    rotations       1, or 4 for quarter turns
    stride          size + 2·padding - kernel_size must be a multiple of it, or the layer samples
                    other positions of the turned image; conv(z) warns
    padding, bias   as in Conv2d; the bias is shared by all slots
    extent          how many slots g·k a filter spans, 1 (most of SESN) … |G| (all of Eq. 4).
                    Rotation wraps around; scale stops at the last factor
    ValueError for others.  stride >= 1, padding >= 0.  Slot g = s·rotations + r has scale s and r
    quarter turns.

    Another group: a subclass sets `order` and overrides `turned` and `scale_index`, and
    `neighbours` too if the extent is above 1 (notebook 05).
    """

    order = None  # the number of slots; None: the number of scales times that of rotations
    jets_above = 1000  # C_out·k² above which W·(B ∗ y) is the cheaper form (results/bench.py)
    recompute = None  # whether the backward pass computes the jets again; None: on CUDA

    def __init__(
        self,
        c_in,
        c_out,
        kernel_size,
        effective_size=None,
        scales=(1.0,),
        rotations=1,
        stride=1,
        padding=0,
        bias=False,
        extent=1,
    ):
        super().__init__()
        if rotations not in (1, 4):
            raise ValueError(f"rotations is 1 or 4, not {rotations}")
        if self.order is None:
            self.order = len(scales) * rotations
        if not 1 <= extent <= self.order:
            raise ValueError(f"extent is 1 … |G| = {self.order}, not {extent}")
        self.kernel_size = kernel_size
        self.effective_size = kernel_size if effective_size is None else effective_size
        self.scales = tuple(scales)
        self.rotations = rotations
        self.turns = self.order > len(self.scales)  # or mirrors: a group of yours
        self.stride = stride
        self.padding = padding
        self.extent = extent
        e = self.effective_size
        self.weight = nn.Parameter(torch.empty(c_out, extent, c_in, e, e))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.register_buffer("delta", None)  # (|G|, C_out, C_in, e, e), set by backbones.perturb
        self.make_basis()
        nn.init.normal_(self.weight, std=(2 / self.weight[0].numel()) ** 0.5)  # He et al. 2015

    def make_basis(self):
        bases = hermite_gaussian(self.kernel_size, self.effective_size, self.scales)
        self.bases = [b.to(self.weight) for b in bases]  # (e, k_s) for each scale, not saved

    def _apply(self, fn, recurse=True):
        # .to() and .double() come here.  The basis is made anew, since a cast from float32 would
        # keep its rounding.
        super()._apply(fn, recurse)
        self.make_basis()
        return self

    # ---- what a group decides
    def turned(self, w, g):
        """Coefficients of the filter at the identity → those at element g: w (…, e, e) → as w."""
        return turn(w, g % self.rotations)

    def scale_index(self, g):
        """Which of `scales` element g has."""
        return g // self.rotations

    def neighbours(self, g):
        """The slots g·k that the filter at g spans: k = 0, 1, … extent-1, as far as they exist."""
        if self.extent == 1:
            return [g]
        if self.order != len(self.scales) * self.rotations:
            raise NotImplementedError("with extent > 1 another group needs its own neighbours(g)")
        s, r = divmod(g, self.rotations)
        found = []
        for k in range(self.extent):
            ds, dr = divmod(k, self.rotations)
            if s + ds < len(self.scales):
                found.append((s + ds) * self.rotations + (r + dr) % self.rotations)
        return found

    # ---- the filter at element g
    def basis(self, g):
        """The functions b_n at the scale of element g: (e, k_s)."""
        return self.bases[self.scale_index(g)]

    def coefficients(self, g):
        """W at element g, the n neighbours side by side: (C_out, n·C_in, e, e)."""
        n = len(self.neighbours(g))
        w = self.turned(self.weight[:, :n].flatten(1, 2), g)
        return w if self.delta is None else w + self.delta[g]

    def kernel(self, g):
        """W·B, the filter at element g in pixels: (C_out, n·C_in, k_s, k_s)."""
        b = self.basis(g)
        with torch.autocast(b.device.type, enabled=False):  # half precision rounds once, later
            return torch.einsum("oimn,mk,nl->oikl", self.coefficients(g), b, b)

    # ---- the convolution
    def forward(self, z, axis=None):
        """z (B, C_in, H, W) or (B, C_in, G, H, W) → (B, C_out, G, H', W').

        With an axis, z is folded: (N, C_in, H, W) → (N, C_out, H', W').  ValueError for other
        shapes, images smaller than the kernel, and extent > 1 if some slots are missing.
        """
        if axis is not None:
            return self.folded(z, axis)
        if z.dim() not in (4, 5) or z.dim() == 5 and z.shape[2] != self.order:
            shapes = f"(B, C_in, H, W) or (B, C_in, {self.order}, H, W)"
            raise ValueError(f"this layer takes {shapes}, not {tuple(z.shape)}")
        for size in z.shape[-2:]:  # a network checks the sizes of all its layers together
            rest = (size + 2 * self.padding - self.kernel_size) % self.stride
            if self.turns and rest and not torch.compiler.is_compiling():
                warnings.warn(
                    f"stride {self.stride} at {size} px breaks equivariance: sizes that are good "
                    f"for this layer are {size - rest} or {size - rest + self.stride}",
                    stacklevel=4,  # the line that calls the layer
                )
        y, axis = fold(z, self.order)
        return unfold(self.folded(y, axis), axis)

    def folded(self, y, axis):
        """The layer on a folded map: (N, C_in, H, W) → (N, C_out, H', W').  Errors as above."""
        counts = axis.counts
        n = y.shape[0]
        if y.dim() != 4 or len(counts) != self.order or n == 0 or n != sum(counts):
            raise ValueError(
                f"counts has {len(counts)} numbers with the sum {sum(counts)}, this layer "
                f"{self.order} slots, and y the shape {tuple(y.shape)}"
            )
        if min(y.shape[-2:]) + 2 * self.padding < self.kernel_size:
            raise ValueError(f"{tuple(y.shape[-2:])} px, padded, are smaller than the kernel")
        if self.extent > 1 and axis.slots is not None:
            raise ValueError("a filter that spans several slots (extent > 1) needs all of them")
        # Splitting (N, H, W, C) keeps the memory channels last, also that of the gradients.
        parts = [part.permute(0, 3, 1, 2) for part in y.permute(0, 2, 3, 1).split(counts)]
        out = []
        for g, count in enumerate(counts):
            if count:
                # Side by side as channels, so that the sum over i includes the sum over k.
                seen = join([parts[h] for h in self.neighbours(g)], 1)  # (N_g, n·C_in, H, W)
                out.append(self.at(g, seen))  # (N_g, C_out, H', W')
        return join(out, 0)

    def at(self, g, y):
        """The convolution at element g: y (N, n·C_in, H, W) → (N, C_out, H', W')."""
        b = self.basis(g)
        e, k = b.shape
        if e < k and self.weight.shape[0] * k * k > self.jets_above:  # W·(B ∗ y) is cheaper
            sizes = self.kernel_size, self.stride, self.padding
            rows = band(b, y.shape[2], *sizes).to(y.dtype)  # (H', e, H)
            cols = band(b, y.shape[3], *sizes).to(y.dtype)  # (W', e, W)
            args = y, self.coefficients(g), rows, cols, self.bias
            recompute = y.is_cuda if self.recompute is None else self.recompute
            if recompute and torch.is_grad_enabled():
                return checkpoint(mix, *args, use_reentrant=False, preserve_rng_state=False)
            return mix(*args)
        inner = self.padding - (self.kernel_size - k) // 2  # centred in kernel_size
        if inner < 0:
            y = F.pad(y, [inner] * 4)
            inner = 0
        return F.conv2d(y, self.kernel(g), self.bias, self.stride, inner)  # (W·B) ∗ y


def join(parts, dim):
    """torch.cat, which would copy a single part."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def mix(y, w, rows, cols, bias):
    """W·(B ∗ y): the e² responses to the basis (the "jets"), then W at each position.

    The basis is separable and fixed.  So this takes two matrix products, and then e² = 9 multiply-
    adds for each pair of channels and position instead of k² = 25 … 49.  The jets take e² times
    the memory of an output with y's channels.
    """
    n, c, height, width = y.shape
    out_height, e, _ = rows.shape
    y = y.permute(0, 2, 3, 1).reshape(n, height, width * c)
    y = torch.matmul(rows.flatten(0, 1), y)  # (N, H'·e, W·C)
    y = y.view(-1, e, width, c).transpose(1, 2).reshape(-1, width, e * c)  # (N·H', W, e·C)
    y = torch.matmul(cols.flatten(0, 1), y)  # (N·H', W'·e, e·C)
    jets = y.view(n, out_height, -1, e * e * c)  # (N, H', W', e²·C)
    w = w.permute(0, 3, 2, 1).flatten(1)  # (C_out, e²·C): n, then m, then C, as in the jets
    return F.conv2d(jets.permute(0, 3, 1, 2), w[..., None, None], bias)


def band(b, size, kernel_size, stride, padding):
    """The filters along one axis as a matrix: b (e, k_s) → (H', e, H), row (i, n) is b_n at i.

    H = size and H' = (size + 2·padding - kernel_size)//stride + 1.  Outside the image is 0.
    """
    outputs = (size + 2 * padding - kernel_size) // stride + 1
    first = (kernel_size - b.shape[1]) // 2 - padding  # where output 0 begins to look
    before = (outputs - 1) * stride + first
    after = size - first - b.shape[1]
    windows = F.pad(b, (before, after)).unfold(1, size, stride)  # (e, H', H), the last output first
    return windows.flip(1).transpose(0, 1)


# ---- the group axis as a part of the batch
class Axis(NamedTuple):
    """Which slots the N images of a folded batch belong to."""

    counts: list  # counts[g] images belong to slot g
    slots: torch.Tensor | None = None  # (B, n), those that were asked for; None: all
    back: torch.Tensor | None = None  # (N,), the index that undoes their sorting by slot


def fold(z, order, slots=None):
    """Put the group axis into the batch, sorted by slot: y (N, C, H, W), and how, an Axis.

    z      images (B, C, H, W): one copy for each slot.  Or a feature map (B, C, |G|, H, W)
    order  G, the length of the lifted axis
    slots  (B, n) long: of each image only these, N = B·n.  None (for maps always): all, N = |G|·B.
           They may stay on the CPU: then nothing waits for the GPU
    ValueError if slots are not (B, n).
    """
    if slots is None:
        axis = Axis([z.shape[0]] * order)
        if z.dim() == 4:
            y = z.permute(0, 2, 3, 1).repeat(order, 1, 1, 1)  # (N, H, W, C)
        else:
            y = z.permute(2, 0, 3, 4, 1).flatten(0, 1)
    else:
        if slots.dim() != 2 or len(slots) != len(z):
            raise ValueError(f"slots of {len(z)} images are (B, n), not {[*slots.shape]}")
        flat = slots.flatten()
        counts = flat.bincount(minlength=order).tolist()  # the host reads this, and nothing else
        sorting = flat.argsort(stable=True)
        image = (sorting // slots.shape[1]).to(z.device, non_blocking=True)
        back = sorting.argsort().to(z.device, non_blocking=True)
        axis = Axis(counts, slots, back)
        y = z.permute(0, 2, 3, 1).index_select(0, image)  # (N, H, W, C)
    return y.permute(0, 3, 1, 2), axis  # channels last in memory


def unfold(y, axis):
    """Undo `fold`: y (N, C, H', W') → z (B, C, n, H', W'), n = |G| if all were asked for."""
    if axis.slots is None:
        return y.unflatten(0, (len(axis.counts), -1)).permute(1, 2, 0, 3, 4)
    y = y.permute(0, 2, 3, 1).index_select(0, axis.back)  # (N, H', W', C)
    return y.unflatten(0, axis.slots.shape).permute(0, 4, 1, 2, 3)
