"""Group convolution with a basis-augmented kernel (Eq. 4): translation, C4 rotations, scales, or both.

The kernel is a combination of Hermite–Gaussian functions ψ_ab(y, x) = b_a(y)·b_b(x) with learned
coefficients w_ab, the only parameters (SESN, Sosnovik et al. 2020, basis type A).  To enlarge the
kernel, enlarge the *functions*.  To turn it (the paper's Appendix B), turn the functions; this only
exchanges the w_ab and changes signs (`turn`).  Exact for turns, at sizes that fit the strides; for
scale only approximate (its error can be larger than without Γ_g).  Needs no sibling: you can copy
this file alone.

    import torch
    from gconv import GConv
    lift = GConv(1, 8, kernel_size=11, effective_size=11, padding=5, rotations=4)
    conv = GConv(8, 16, kernel_size=7, effective_size=3, padding=3, stride=2, rotations=4)
    z = conv(lift(torch.rand(2, 1, 29, 29)))      # (2, 16, 4, 15, 15) = (B, C, G, H', W')

How it runs.  With extent 1 (SESN, and the paper) a layer never mixes the elements of the group, so the
group axis is folded into the batch: a layer gets images (N, C, H, W) *sorted by element*, and `counts[g]`
of them belong to element g.  A full feature map has N = |G|·B.  A loss that uses two fibers of each image
needs only N = 2·B.

The layer has two exact forms and takes the cheaper one (results/bench.py measures both):
    (W·B) ∗ y   synthesise the k × k kernel, then convolve            few output channels, or a complete basis
    W·(B ∗ y)   filter with the fixed basis, then mix with W          C_out·k² > 1000: up to six times as fast
The second form computes e² Hermite coefficients (the "jet") at every output position.  This takes two
matrix products, since ψ_ab is separable.  Then W is a 1 × 1 convolution: e² = 9 multiply-adds for each
pair of channels instead of k² = 25 to 49 (the support grows with the scale), and no kernel is synthesised.
"""
import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


# ---------------------------------------------------------------- the basis
def support(kernel_size, scale, max_scale):
    """Width in pixels of the basis at `scale`: int(k·s/s_max)//2·2 + 1, always odd (SESN)."""
    return int(kernel_size * scale / max_scale) // 2 * 2 + 1


@functools.lru_cache(maxsize=None)
@torch.inference_mode(False)  # what is kept here is used in training too
def hermite_gaussian(kernel_size, effective_size, scales=(1.0,)):
    """The 1-D functions b_n(u) = He_n(u/s)·exp(-u²/2s²)/s, n = 0 … e-1, at each scale s.

    ψ_ab(y, x) = b_a(y)·b_b(x) is the type-A basis of SESN.  Each b_n has unit norm at the smallest
    scale.  The other scales use the same factor, so that a larger filter gives a larger object a similar response
    (not b_9 on 7 pixels, which is almost 0 there: notebook 02, section 9).

    kernel_size: odd, the support at the largest scale; effective_size: the number of functions, 1 … kernel_size.
    Returns a tuple with one (e, k_s) float64 tensor for each scale, k_s = `support`.  ValueError for other sizes or scales,
    and if the smallest filter of two or more functions is only 1 px wide, so that b_1 would be 0."""
    if kernel_size % 2 == 0 or not 1 <= effective_size <= kernel_size:
        raise ValueError(f"kernel_size must be odd and effective_size 1 … kernel_size, not {kernel_size}, {effective_size}")
    if min(scales) <= 0 or sorted(scales) != list(scales):
        raise ValueError(f"scales must be positive and must not decrease, not {scales}")
    basis = []
    for s in scales:
        half = support(kernel_size, s, scales[-1]) // 2
        u = np.arange(-half, half + 1) / s  # (k_s,)
        he = [np.polynomial.hermite_e.hermeval(u, np.eye(effective_size)[n]) for n in range(effective_size)]
        basis.append(torch.from_numpy(np.stack(he) * np.exp(-u ** 2 / 2) / s))  # (e, k_s)
    norm = basis[0].norm(dim=1, keepdim=True)  # (e, 1)
    if not norm.all():
        raise ValueError(f"at scale {scales[0]} the filter is only 1 px wide: take a kernel_size above {kernel_size}, or scales that are nearer to each other")
    return tuple(b / norm for b in basis)


@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)
def basis_on(basis_key, s, dtype, device):
    """`hermite_gaussian` at scale number s, kept on the device: (e, k_s)."""
    return hermite_gaussian(*basis_key)[s].to(dtype).to(device)  # (e, k_s)


def turn(w, r):
    """Coefficients of the kernel turned by r·90°: rot90(ψ_ab) = (-1)^b ψ_ba, since b_n has the parity of n.

    w (…, e, e) → (…, e, e), with Σ turn(w)_ab ψ_ab = rot90(Σ w_ab ψ_ab) exactly."""
    sign = 1 - 2 * (torch.arange(w.shape[-1], device=w.device) % 2)  # (e,) 1, -1, 1, …
    for _ in range(r % 4):
        w = (w * sign).transpose(-1, -2)  # (…, e, e)
    return w


# ---------------------------------------------------------------- Eq. 4
class GConv(nn.Module):
    """Eq. 4 with h = g·k: z(g) = Σ_k Σ_i y_i(g·k) ψ_i(k).  i is the input channel, k an offset on the group and in space,
    ψ_i the kernel; its basis functions are turned and enlarged by g.

    Lifts an image (B, C_in, H, W), or maps (B, C_in, G, H, W), to (B, C_out, G, H', W'), with
    G = len(scales)·rotations and element g = (s, r) at place s·rotations + r.  The filters are computed in
    every call, so they always match the weights.

    kernel_size   odd; the support at the largest scale
    effective_size  e: orders 0 … e-1 in x and in y, e² coefficients for each pair of channels (default kernel_size;
                  with several scales 3 is better, since the smallest filter has few pixels)
    scales        factors in non-decreasing order; (1.0,) for no scaling
    rotations     1 or 4 (quarter turns)
    extent        how many neighbours k on the group axis a filter spans: 1 in SESN and the paper, up to |G|
                  for the full Eq. 4.  Along rotation it wraps; along scale it stops at the last factor.
    Raises ValueError for impossible sizes.  With a stride, H + 2·padding - k must be a multiple of the stride, or the
    layer samples other positions of the turned image.  With rotations=4, a layer called without `counts` then warns and names good sizes.
    Call it once before torch.export: what it keeps must not be made while exporting.
    """

    jets_above = 1000  # C_out·k² above which W·(B ∗ y) is the cheaper form
    recompute = torch.cuda.is_available()  # the jets, in the backward pass: kept, they would take e² times the memory of y

    def __init__(self, c_in, c_out, kernel_size, effective_size=None, scales=(1.0,), rotations=1,
                 stride=1, padding=0, bias=False, extent=1):
        super().__init__()
        if rotations not in (1, 4):
            raise ValueError(f"rotations is 1 or 4, not {rotations}")
        self.scales, self.rotations, self.order = tuple(scales), rotations, len(scales) * rotations
        if not 1 <= extent <= self.order:
            raise ValueError(f"extent is 1 … |G| = {self.order}, not {extent}")
        self.kernel_size, self.effective_size = kernel_size, kernel_size if effective_size is None else effective_size
        self.stride, self.padding, self.extent = stride, padding, extent
        self.basis_key = (kernel_size, self.effective_size, self.scales)
        hermite_gaussian(*self.basis_key)  # raises now, not at the first image, if the sizes are wrong
        e = self.effective_size
        self.weight = nn.Parameter(torch.empty(c_out, extent, c_in, e, e))
        self.bias = nn.Parameter(torch.empty(c_out)) if bias else None  # one for each channel, shared by all g
        self.register_buffer("delta", None)  # backbones.perturb sets it to break equivariance on purpose
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=(2 / self.weight[0].numel()) ** 0.5)  # He et al. 2015
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self):
        extras = f", extent={self.extent}" if self.extent > 1 else ""
        return (f"{self.weight.shape[2]}, {self.weight.shape[0]}, kernel_size={self.kernel_size}, "
                f"effective_size={self.effective_size}, scales={self.scales}, rotations={self.rotations}, "
                f"stride={self.stride}, padding={self.padding}{extras}")

    def neighbours(self, g):
        """The pairs (k, g·k) that the filter at g covers: offsets k < extent for which g·k is on the axis."""
        s, r = divmod(g, self.rotations)
        for k in range(self.extent):
            ds, dr = divmod(k, self.rotations)
            if s + ds < len(self.scales):
                yield k, (s + ds) * self.rotations + (r + dr) % self.rotations

    def coefficients(self, g):
        """The coefficients at element g: w turned, the n neighbours side by side: (C_out, n·C_in, e, e)."""
        offsets = [k for k, _ in self.neighbours(g)]
        w = turn(self.weight[:, offsets].flatten(1, 2), g % self.rotations)  # (C_out, n·C_in, e, e)
        return w if self.delta is None else w + self.delta[g]

    def kernel(self, g):
        """W·B, the kernel at element g in pixels: (C_out, n·C_in, k_s, k_s)."""
        b = basis_on(self.basis_key, g // self.rotations, self.weight.dtype, self.weight.device)  # (e, k_s)
        with torch.autocast(b.device.type, enabled=False):  # half precision rounds once, at the convolution
            return torch.einsum("oiab,ak,bl->oikl", self.coefficients(g), b, b)  # (C_out, n·C_in, k_s, k_s)

    def forward(self, y, counts=None):
        """y (B, C_in, H, W) or (B, C_in, G, H, W) → (B, C_out, G, H', W').

        With `counts`, y is folded: (N, C_in, H, W) sorted by element → (N, C_out, H', W').  ValueError if y has another
        shape or is too small, counts is not one number for each element or does not add up to N.  With extent > 1 every image
        must be there at all elements (`lift` with elements=None); only unequal counts are found to be wrong."""
        if counts is None:
            if y.dim() not in (4, 5) or y.dim() == 5 and y.shape[2] != self.order:
                raise ValueError(f"this layer takes (B, C_in, H, W) or (B, C_in, {self.order}, H, W), not {tuple(y.shape)}")
            self.warn_if_inexact(y)
            folded = y.repeat(self.order, 1, 1, 1) if y.dim() == 4 else y.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (G·B, C_in, H, W)
            return unlift(self(folded, [len(y)] * self.order), None, self.order)
        height, width = y.shape[-2:]
        if min(height, width) + 2 * self.padding < self.kernel_size:
            raise ValueError(f"a {height} × {width} image is smaller than the kernel ({self.kernel_size}, padding {self.padding})")
        if y.dim() != 4 or len(counts) != self.order or not sum(counts) == len(y) > 0:
            raise ValueError(f"counts has {len(counts)} numbers with the sum {sum(counts)}, this layer {self.order} elements, and y the shape {tuple(y.shape)}")
        if self.extent > 1 and len(set(counts)) > 1:
            raise ValueError("a filter that spans several elements (extent > 1) needs all of them")
        parts = [p.permute(0, 3, 1, 2) for p in channels_last(y).split(counts)]  # (counts[g], C_in, H, W) each
        out = []
        for g in range(self.order):
            if counts[g]:
                seen = [parts[h] for _, h in self.neighbours(g)]  # y(g·k), side by side: the sum over channels includes the sum over k
                w = self.mixer(g) if self.mixes(g) else self.kernel(g)
                out.append(self.one(torch.cat(seen, 1) if len(seen) > 1 else seen[0], w, g))  # (counts[g], C_out, H', W')
        return torch.cat(out) if len(out) > 1 else out[0]  # (N, C_out, H', W')

    def one(self, y, w, g):
        """The convolution at element g: y (N, n·C_in, H, W), w = kernel(g), or mixer(g) if mixes(g) → (N, C_out, H', W')."""
        if self.mixes(g):
            return self.mixed(y, w, g)
        inner = self.padding - (self.kernel_size - w.shape[-1]) // 2  # padding for this scale's own support
        if inner < 0:
            y, inner = F.pad(y, [inner] * 4), 0  # (N, n·C_in, H + 2·inner, W + 2·inner)
        if y.shape[1] == 1:  # torch treats one channel as channels first, which is half as fast: set the strides
            y = y.contiguous().as_strided(y.shape, (y.shape[2] * y.shape[3], 1, y.shape[3], 1))  # (N, 1, H, W)
        return F.conv2d(y, w, self.bias, self.stride, inner)  # (W·B) ∗ y: (N, C_out, H', W')

    def warn_if_inexact(self, y):
        """Warn if the stride breaks equivariance.  A network calls its layers with `counts` and checks their sizes itself."""
        rest = [(n + 2 * self.padding - self.kernel_size) % self.stride for n in y.shape[-2:]]
        if self.rotations > 1 and any(rest):
            good = ", ".join(sorted({f"{n - r} or {n - r + self.stride}" for n, r in zip(y.shape[-2:], rest) if r}))
            warnings.warn(f"stride {self.stride} on a {y.shape[-2]} × {y.shape[-1]} map (kernel {self.kernel_size}, padding "
                          f"{self.padding}) breaks rotation equivariance: (size + 2·padding - kernel) must be a multiple of the "
                          f"stride; the nearest good sizes for this layer are {good}", stacklevel=3)

    # ------------------------------------------------------------ the faster form: the same sums in another order
    def mixes(self, g):
        """Whether element g uses the form W·(B ∗ y): True where it is cheaper."""
        k = hermite_gaussian(*self.basis_key)[g // self.rotations].shape[1]
        return self.effective_size < k and self.weight.shape[0] * k * k > self.jets_above

    def mixer(self, g):
        """W, the coefficients at element g in the order of `jets`: (C_out, e²·n·C_in, 1, 1)."""
        return self.coefficients(g).permute(0, 3, 2, 1).flatten(1)[..., None, None]  # (C_out, e²·n·C_in, 1, 1)

    def mixed(self, y, w, g):
        """W·(B ∗ y): y (N, n·C_in, H, W), w from `mixer` → (N, C_out, H', W')."""
        form = lambda y, w: F.conv2d(jets(y, self.basis_key, g // self.rotations, self.stride, self.padding), w, self.bias)  # (N, C_out, H', W')
        return checkpoint(form, y, w, use_reentrant=False, preserve_rng_state=False) if self.recompute and torch.is_grad_enabled() else form(y, w)


# ---------------------------------------------------------------- the group axis, folded into the batch
def lift(x, elements, order):
    """One copy of each image for each requested element, sorted by element.

    x (B, C, H, W); elements (B, n) long, or None for all → y (B·n, C, H, W), counts (a list of |G| ints),
    and `back`, the index with which `unlift` undoes the sorting (None for all)."""
    x = x.contiguous(memory_format=torch.channels_last)
    if elements is None:
        return x.repeat(order, 1, 1, 1), [len(x)] * order, None
    flat = elements.flatten()  # (B·n,)
    sorting = flat.argsort(stable=True)  # (B·n,)
    counts = torch.bincount(flat, minlength=order).tolist()
    return x[sorting // elements.shape[1]], counts, sorting.argsort()  # (B·n, C, H, W), |G| ints, (B·n,)


def unlift(y, back, n):
    """Undo the sorting of `lift`: y (B·n, C, H', W') → z (B, C, n, H', W'), a view where `back` is None."""
    if back is None:  # sorted by element, all of them: (n·B, C, H', W')
        return y.unflatten(0, (n, -1)).permute(1, 2, 0, 3, 4)  # (B, C, n, H', W')
    y = channels_last(y).index_select(0, back).unflatten(0, (-1, n))  # (B, n, H', W', C)
    return y.permute(0, 4, 1, 2, 3)  # (B, C, n, H', W')


def channels_last(y):
    """y (N, C, H, W), channels last in memory → its contiguous view (N, H, W, C).  Splitting and joining this view keeps the
    memory order, also of gradients (the backward pass of a split of (N, C, H, W) would fall back to channels first)."""
    return y.permute(0, 2, 3, 1)  # (N, H, W, C)


# ---------------------------------------------------------------- the faster form
@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)
def jet_matrix(basis_key, s, size, stride, padding, dtype, device):
    """The filter bank of one axis as a banded matrix: row (i, n) is b_n centred on output i.

    basis_key: the arguments of `hermite_gaussian`; s: the scale's place in the list.
    (H'·e, H) with H' = (size + 2·padding - k)//stride + 1; outside the image is 0, as in any padded convolution."""
    b = hermite_gaussian(*basis_key)[s]  # (e, k_s)
    e, k_s = b.shape
    positions = (size + 2 * padding - basis_key[0]) // stride + 1
    matrix = torch.zeros(positions, e, size, dtype=torch.float64)  # (H', e, H)
    for i in range(positions):
        first = i * stride - padding + (basis_key[0] - k_s) // 2  # a smaller support is centred in k
        lo, hi = max(first, 0), min(first + k_s, size)
        matrix[i, :, lo:hi] = b[:, lo - first:hi - first]
    return matrix.view(positions * e, size).to(dtype).to(device)  # (H'·e, H)


def jets(y, basis_key, s, stride, padding):
    """B ∗ y: the e² Hermite coefficients ("jet") of every channel around every output position, at scale number s.

    y (N, C, H, W) → (N, e²·C, H', W'), channels last in memory and in the order (b, a, C) of ψ_ab(y, x)."""
    n, c, height, width = y.shape
    key = (stride, padding, y.dtype, y.device)
    rows = jet_matrix(basis_key, s, height, *key)  # (H'·e, H)
    cols = jet_matrix(basis_key, s, width, *key)  # (W'·e, W)
    e = basis_key[1]
    y = torch.matmul(rows, channels_last(y).reshape(n, height, width * c))  # (N, H'·e, W·C)
    y = y.view(-1, e, width, c).transpose(1, 2).reshape(-1, width, e * c)  # (N·H', W, e·C)
    y = torch.matmul(cols, y).view(n, len(rows) // e, len(cols) // e, e * e * c)  # (N, H', W', e·e·C)
    return y.permute(0, 3, 1, 2)  # (N, e²·C, H', W')
