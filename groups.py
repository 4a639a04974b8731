"""Groups and their actions: T_g on images, Γ_g on feature maps, and the fiber bundles z(g⁻¹·g0).

Keller, Suau & Zappella, *Homomorphic Self-Supervised Learning* (2022), Sections 2 and 3.  Needs no sibling: you can copy this file alone.

    import torch
    from groups import Rotation
    group = Rotation()
    x = torch.rand(8, 1, 29, 29)
    g = torch.randint(group.order, (8,))      # one element per example
    group.T(x, g).shape                       # torch.Size([8, 1, 29, 29])

A network f is equivariant (Eq. 1) when f(T_g x) = Γ_g f(x).  Every group has T and Γ side by side, with the same signature.

Alphabet, used in every file of this repository
    x   images                 (B, C_in, H, W)
    z   feature map f(x)       (B, C, G, H', W')   G = lifted elements (1 for translation)
    g   group elements         (B,) long, one per example, numbered 0 … |G|-1, on the device of x (`pairs` and `sample` are on the CPU)
    g0  base space             (|g0|,) or (B, |g0|) long, an *ordered* list of elements
    fibers                     (B, |G|, C)         z read as a function on the group
    z(g⁻¹·g0)  fiber bundle    (B, |g0|·C)
"""
import functools

import torch

SCALES = (1.0, 1.25, 1.33, 1.5, 1.66, 1.75)  # the paper's six (Appendix B)


class Translation:
    """Z_H × Z_W: shifts of an H × W grid.  Element (dy, dx) has the number dy·W + dx.

    The product is taken on the torus, so the group axioms hold exactly.  T and Γ fill the new border with background (0); the
    paper does not say what it does.  They are an action as long as nothing leaves the frame.  With `wrap=True` they roll:
    an action if the image has stride·height × stride·width pixels.

    height, width: size of the grid.  stride: pixels of the image for each step of the grid (T moves by stride·(dy, dx) pixels,
    Γ by (dy, dx) positions).  Raises ValueError unless all are >= 1."""

    spatial = True  # fibers are read off the positions of the map: |G| = H'·W'

    def __init__(self, height, width, stride=1, wrap=False):
        if min(height, width, stride) < 1:
            raise ValueError(f"height, width and stride must be at least 1, not {height}, {width}, {stride}")
        self.height, self.width, self.stride, self.wrap = height, width, stride, wrap
        self.order = height * width

    def coordinates(self, g):
        """g (…,) long → (…, 2) float64: dy in 0 … H-1 and dx in 0 … W-1."""
        return torch.stack([g // self.width, g % self.width], -1).double()  # (…, 2)

    def product(self, a, b):
        """a·b, elementwise with broadcasting: (…,) long."""
        dy = (a // self.width + b // self.width) % self.height  # (…,)
        dx = (a % self.width + b % self.width) % self.width  # (…,)
        return dy * self.width + dx

    def inverse(self, a):
        """a⁻¹: (…,) long."""
        return (-(a // self.width) % self.height) * self.width + (-(a % self.width)) % self.width

    def signed(self, g):
        """The shortest shift that equals g on the torus: dy, dx (…,) long, within ±size/2."""
        dy, dx = g // self.width, g % self.width  # (…,) twice
        dy = torch.where(dy > self.height // 2, dy - self.height, dy)  # (…,)
        return dy, torch.where(dx > self.width // 2, dx - self.width, dx)

    def _shift(self, x, g, step):
        dy, dx = self.signed(g)  # (B,) twice
        x = _shift_axis(x, dy * step, -2, self.wrap)  # as x
        return _shift_axis(x, dx * step, -1, self.wrap)

    def T(self, x, g):
        """T_g x: image b moved by stride·signed(g[b]) pixels.  x (B, C, H, W), g (B,) long → (B, C, H, W)."""
        return self._shift(x, g, self.stride)

    def Gamma(self, z, g):
        """Γ_g z: map b moved by signed(g[b]) positions.  z (B, C, G, H', W'), g (B,) long → the same shape."""
        return self._shift(z, g, 1)

    def shift_base(self, g, g0):
        """g⁻¹·g0, the base space moved by g: g (B,), g0 (|g0|,) or (B, |g0|) → (B, |g0|) long."""
        return self.product(self.inverse(g)[:, None], torch.atleast_2d(g0))

    def base_space(self, size):
        """The h × w patch in the corner with h·w = size that is nearest to a square: (|g0|,) long.

        Raises ValueError unless 1 <= size <= max(1, |G| - 1) and such a patch fits the grid ("no padding", Appendix B)."""
        fits = [(max(h, size // h), h) for h in range(1, self.height + 1) if size % h == 0 and size // h <= self.width]
        if not fits or not 1 <= size < max(self.order, 2):
            sizes = sorted({h * w for h in range(1, self.height + 1) for w in range(1, self.width + 1)} - {self.order} or {1})
            near = sorted(sizes, key=lambda s: (abs(s - size), s))[:3]
            raise ValueError(f"no rectangle of {size} positions fits into {self.height} × {self.width}: take a base space of "
                             f"1 … {max(1, self.order - 1)} positions that does, for example {', '.join(map(str, sorted(near)))}")
        h = min(fits)[1]
        y, x = torch.arange(h), torch.arange(size // h)  # (h,), (w,)
        return (y[:, None] * self.width + x).flatten()  # (|g0|,)

    def fits_inside(self, g, g0):
        """For which g the patch g⁻¹·g0 lies inside the frame without wrapping: g (M,), g0 (|g0|,) → (M,) bool."""
        moved = self.shift_base(g, g0)  # (M, |g0|)
        return (moved - moved[:, :1] == g0 - g0[:1]).all(1)  # a patch that wraps loses its shape

    def distance(self, g1, g2, metric="euclidean"):
        """Distance between elements, (…,) float64 >= 0, in squared grid steps.

        "euclidean": ‖g1 - g2‖² of the coordinates, squared as in Section 4.
        "topological": the same on the torus, where opposite edges of the grid are neighbours."""
        d = (self.coordinates(g1) - self.coordinates(g2)).abs()  # (…, 2)
        if _metric(metric) == "topological":
            d = torch.minimum(d, torch.tensor([self.height, self.width], device=d.device) - d)  # (…, 2)
        return d.pow(2).sum(-1)


class Rotation:
    """C4: turns by 0°, 90°, 180°, 270°, counter-clockwise.  The group axioms and both actions hold exactly."""

    spatial = False  # fibers are read off the lifted axis, after an average over space (Appendix B)
    order = 4

    def product(self, a, b):
        """a·b: (…,) long."""
        return (a + b) % 4

    def inverse(self, a):
        """a⁻¹: (…,) long."""
        return -a % 4

    def T(self, x, g):
        """T_g x: image b turned by 90°·g[b].  x (B, …, H, H), g (B,) long → the same shape.  ValueError unless square."""
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"a quarter turn needs square images, not {x.shape[-2]} × {x.shape[-1]}")
        turns = torch.stack([x.rot90(r, (-2, -1)) for r in range(4)], 1)  # (B, 4, …, H, H)
        return turns[torch.arange(len(x), device=x.device), g]  # (B, …, H, H)

    def Gamma(self, z, g):
        """Γ_g z: space is turned and the lifted axis is rolled, (Γ_g z)(r) = turn_g z(g⁻¹·r).  z (B, C, 4, H', H'), g (B,) long → as z."""
        r = torch.arange(4, device=g.device)  # (4,)
        return _take(self.T(z, g), self.shift_base(g, r))  # (B, C, 4, H', H')

    def shift_base(self, g, g0):
        """g⁻¹·g0: g (B,), g0 (|g0|,) or (B, |g0|) → (B, |g0|) long."""
        return (torch.atleast_2d(g0) - g[:, None]) % 4

    def base_space(self, size):
        """The first `size` elements: (|g0|,) long.  ValueError unless 1 <= size <= max(1, |G| - 1)."""
        return first_elements(size, self.order)

    def fits_inside(self, g, g0):
        """All True, since the axis is a circle and has no end: g (M,), g0 (|g0|,) → (M,) bool."""
        return torch.ones_like(g, dtype=torch.bool)

    def distance(self, g1, g2, metric="euclidean"):
        """Distance between elements, (…,) float64: "euclidean" is (g1 - g2)² as in Section 4, in squared
        quarter turns; "topological" is the shorter way round the circle, 0 … 2 quarter turns."""
        d = (g1 - g2).abs().double()  # (…,)
        return d.pow(2) if _metric(metric) == "euclidean" else torch.minimum(d, 4 - d)


class Scale:
    """A finite list of scale factors 1 = σ_0 < σ_1 < …: **not a group**, see below.

    Element g *shrinks* the image to 1/σ_g of its size (enlarging would cut the image at its frame), and the lifted axis holds the filters
    enlarged by σ_i.  The filter σ_i sees in the shrunk image what σ_(i+g) sees in the original.  So g⁻¹·g0 = g0 + g, which is
    further along the list.  Three properties of a group fail:
    - closure: nothing follows the last factor; there `product` returns -1 and Γ fills in 0;
    - inverse: only the identity has an inverse on the list; `inverse` returns -1 for the others;
    - composition: the paper's list is not geometric, so σ_a·σ_b is only near σ_(a+b).

    factors: increasing, the first is 1.0.  Raises ValueError otherwise."""

    spatial = False

    def __init__(self, factors=SCALES):
        if len(factors) < 1 or factors[0] != 1 or any(a >= b for a, b in zip(factors, factors[1:])):
            raise ValueError(f"scale factors must start at 1.0 and increase, not {tuple(factors)}")
        self.factors, self.order = tuple(factors), len(factors)

    def product(self, a, b):
        """a·b: (…,) long, -1 where it is past the end of the list or where a or b is -1."""
        c = a + b  # (…,)
        return torch.where((c < self.order) & (a >= 0) & (b >= 0), c, -1)

    def inverse(self, a):
        """a⁻¹: (…,) long, -1 (not on the list) for everything but the identity."""
        return torch.where(a == 0, 0, -1)

    def T(self, x, g):
        """T_g x: image b shrunk about its centre to 1/σ_g[b] of its size, with 0 (background) around it.

        Each output pixel is a weighted mean of source pixels (`shrink_matrix`), which limits aliasing.
        x (B, …, H, W), g (B,) long → the same shape.  Raises ValueError for integer images (means are not integers) and g = -1."""
        if not x.is_floating_point():
            raise ValueError(f"shrinking averages pixels, so images must be floating point, not {x.dtype}: call x.float() first")
        if (g < 0).any():
            raise ValueError("an element of -1 is past the end of the list: see `product`")
        rows = torch.stack([shrink_matrix(x.shape[-2], s) for s in self.factors]).to(x)  # (S, H, H)
        cols = torch.stack([shrink_matrix(x.shape[-1], s) for s in self.factors]).to(x)  # (S, W, W)
        with torch.autocast(x.device.type, enabled=False):  # no half precision for pixels
            return torch.einsum("bij,b...jk,blk->b...il", rows[g], x, cols[g])  # (B, …, H, W)

    def Gamma(self, z, g):
        """Γ_g z: space is shrunk and the lifted axis is shifted, (Γ_g z)(i) = shrink_g z(i + g), 0 past the end.  z (B, C, S, H', W'), g (B,) long → as z."""
        return _take(self.T(z, g), self.shift_base(g, torch.arange(self.order, device=g.device)))

    def shift_base(self, g, g0):
        """g⁻¹·g0 = g0 + g, -1 past the end: g (B,), g0 (|g0|,) or (B, |g0|) → (B, |g0|) long."""
        return self.product(torch.atleast_2d(g0), g[:, None])

    def base_space(self, size):
        """The first `size` factors, starting with 1.0: (|g0|,) long.  ValueError unless 1 <= size <= max(1, |G| - 1)."""
        return first_elements(size, self.order)

    def fits_inside(self, g, g0):
        """Which g keep all of g⁻¹·g0 on the list: g (M,), g0 (|g0|,) → (M,) bool."""
        return (self.shift_base(g, g0) >= 0).all(1)

    def distance(self, g1, g2, metric="euclidean"):
        """Distance between elements, (…,) float64: "euclidean" is (g1 - g2)², in squared steps of
        the list; "topological" is |log(σ_g1/σ_g2)|, with the natural logarithm."""
        if _metric(metric) == "euclidean":
            return (g1 - g2).double().pow(2)
        log = torch.tensor(self.factors, dtype=torch.float64, device=g1.device).log()  # (S,)
        return (log[g1] - log[g2]).abs()


class RotationScale:
    """C4 × scale: element (s, r) has the number s·4 + r, as on gconv.py's lifted axis.  Not a group, see Scale."""

    spatial = False

    def __init__(self, factors=SCALES):
        self.rotation, self.scale = Rotation(), Scale(factors)
        self.order = 4 * self.scale.order

    def product(self, a, b):
        """a·b: (…,) long, -1 where the scale is past the end of the list."""
        s = self.scale.product(a // 4, b // 4)  # (…,); -1 // 4 is -1
        return torch.where(s < 0, -1, s * 4 + (a + b) % 4)

    def inverse(self, a):
        """a⁻¹: (…,) long, -1 where the scale has no inverse."""
        return torch.where(a // 4 == 0, -a % 4, -1)

    def T(self, x, g):
        """T_g x: image b turned, then shrunk.  x (B, …, H, H), g (B,) long → the same shape.  ValueError as in the two."""
        return self.scale.T(self.rotation.T(x, g % 4), g // 4)

    def Gamma(self, z, g):
        """Γ_g z: z (B, C, S·4, H', H'), g (B,) long → the same shape."""
        return _take(self.T(z, g), self.shift_base(g, torch.arange(self.order, device=g.device)))

    def shift_base(self, g, g0):
        """g⁻¹·g0, -1 past the last scale: g (B,), g0 (|g0|,) or (B, |g0|) → (B, |g0|) long."""
        g0 = torch.atleast_2d(g0)
        s = self.scale.shift_base(g // 4, g0 // 4)  # (B, |g0|)
        return torch.where(s < 0, -1, s * 4 + self.rotation.shift_base(g % 4, g0 % 4))

    def base_space(self, size):
        """The first `size` elements (all turns of a scale, then the next scale): (|g0|,) long.  ValueError unless 1 <= size <= max(1, |G| - 1)."""
        return first_elements(size, self.order)

    def fits_inside(self, g, g0):
        """Which g keep all of g⁻¹·g0 on the list: g (M,), g0 (|g0|,) → (M,) bool."""
        return (self.shift_base(g, g0) >= 0).all(1)

    def distance(self, g1, g2, metric="euclidean"):
        """The distance of the rotations plus that of the scales: (…,) float64 >= 0, in mixed units."""
        return self.rotation.distance(g1 % 4, g2 % 4, metric) + self.scale.distance(g1 // 4, g2 // 4, metric)


# ---------------------------------------------------------------- fibers, bundles, and random g
def fibers(z, group, pool="mean"):
    """z read as a function on the group (Section 2): z(g) ∈ R^C for every g.

    For translation each position is an element.  The other groups pool over space: "mean" as in Appendix B, or "max".
    z (B, C, G, H', W') → (B, |G|, C).  ValueError for another pool, or G > 1 with translation."""
    if pool not in ("mean", "max"):
        raise ValueError(f"fibers are pooled by 'mean' or 'max', not {pool!r}")
    if group.spatial and z.shape[2] > 1:
        raise ValueError(f"fibers of translations need a map with one element on its lifted axis, not {z.shape[2]}")
    z = z.flatten(2) if group.spatial else z.mean((-2, -1)) if pool == "mean" else z.amax((-2, -1))  # (B, C, |G|)
    return z.transpose(1, 2)  # (B, |G|, C)


def bundle(fibers, base):
    """The fiber bundle z(base) = [z(g) | g ∈ base] ∈ R^(|g0|·C) (Section 2), in the order of base.

    fibers (B, |G|, C), base (B, |g0|) or (1, |g0|) long, all >= 0 → (B, |g0|·C)."""
    index = base[..., None].expand(len(fibers), -1, fibers.shape[-1])  # (B, |g0|, C)
    return fibers.gather(1, index).flatten(1)  # (B, |g0|·C)


def pairs(group, g0, max_distance=None, metric="euclidean"):
    """The elements from which g1 and g2 are drawn, and which pairs (g1, g2) are allowed.

    An element g is used if all of g⁻¹·g0 lies on the feature map (no wrap, no padding).  A pair is allowed if the two bundles
    are at most `max_distance` apart (None: any pair; 0: both from one slot, which needs an augmentation).  g0 (|g0|,) → elements (M,) long and allowed (M, M) bool.
    Raises ValueError if fewer than two elements remain, or no two different ones are within `max_distance`."""
    g = torch.arange(group.order)  # (|G|,)
    g = g[group.fits_inside(g, g0)]  # (M,)
    if len(g) < 2:
        raise ValueError(f"a base space of {len(g0)} of the {group.order} elements fits at only {len(g)} place(s), "
                         "and two are needed: take a smaller one")
    place = group.shift_base(g, g0[:1])[:, 0]  # (M,) the first element of each bundle
    d = group.distance(place[:, None], place[None, :], metric)  # (M, M)
    allowed = d <= (torch.inf if max_distance is None else max_distance)  # (M, M)
    if max_distance != 0 and not (allowed & ~torch.eye(len(g), dtype=torch.bool)).any():
        raise ValueError(f"no two elements are within a {metric} distance of {max_distance}: the nearest are {d[d > 0].min():.3g} apart")
    return g, allowed


def sample(elements, allowed, batch, generator=None):
    """Draw g1 uniformly, then g2 uniformly from the elements allowed with g1.

    elements (M,), allowed (M, M) bool, from `pairs` → two (batch,) long tensors."""
    i = torch.randint(len(elements), (batch,), generator=generator)  # (B,)
    j = torch.multinomial(allowed.double()[i], 1, generator=generator)[:, 0]  # (B,)
    return elements[i], elements[j]


# ---------------------------------------------------------------- small parts
@functools.lru_cache(maxsize=None)
@torch.inference_mode(False)  # what is kept here is used in training too
def shrink_matrix(size, factor):
    """The matrix A of one axis of T_g: (size, size) float64.  A x Aᵀ is x shrunk about its centre to 1/factor.

    Row u averages the source pixels around factor·u with a triangle of half-width `factor`; rows outside the source are 0."""
    u = torch.arange(size, dtype=torch.float64) - (size - 1) / 2  # (size,) centred
    weight = (1 - (u[:, None] * factor - u[None, :]).abs() / factor).clamp(min=0)  # (size, size)
    inside = (u * factor).abs() <= size / 2  # (size,)
    return weight / weight.sum(1, keepdim=True).clamp(min=1e-12) * inside[:, None]  # (size, size)


def _shift_axis(x, d, dim, wrap):
    """Move example b by d[b] along dim, filling with 0 (or rolling): x (B, …), d (B,) → the same shape."""
    n = x.shape[dim]
    source = torch.arange(n, device=x.device) - d[:, None]  # (B, n)
    view = [len(x)] + [1] * (x.dim() - 1)
    view[dim] = n
    moved = x.gather(dim, (source % n).view(view).expand(x.shape))  # as x
    return moved if wrap else moved.masked_fill(((source < 0) | (source >= n)).view(view), 0)


def _take(z, index):
    """Γ_g on the lifted axis: z at the elements `index`, 0 where it is -1.  z (B, C, G, H', W'), index (B, G) → as z."""
    if z.dim() != 5 or z.shape[2] != index.shape[1]:
        raise ValueError(f"a feature map of this group is (B, C, {index.shape[1]}, H', W'), not {tuple(z.shape)}")
    b = torch.arange(len(z), device=z.device)[:, None]  # (B, 1)
    taken = z.transpose(1, 2)[b, index.clamp(min=0)]  # (B, G, C, H', W')
    return taken.masked_fill((index < 0)[..., None, None, None], 0).transpose(1, 2)  # (B, C, G, H', W')


def first_elements(size, order):
    """0 … size - 1: (size,) long.  ValueError unless 1 <= size <= max(1, order - 1)."""
    if not 1 <= size < max(order, 2):
        raise ValueError(f"a base space of this group has 1 … {max(1, order - 1)} elements, not {size}")
    return torch.arange(size)  # (size,)


def _metric(name):
    if name not in ("euclidean", "topological"):
        raise ValueError(f"the distance is 'euclidean' or 'topological', not {name!r}")
    return name
