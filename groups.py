"""Groups and their actions: T_g on images, Γ_g on feature maps, and the bundles z(g⁻¹·g0).

Keller, Suau & Zappella, *Homomorphic Self-Supervised Learning* (2023), Sections 2 and 3.
Needs no sibling: you can copy this file alone.

    x = torch.rand(8, 1, 29, 29)
    g = torch.randint(4, (8,))    # one element for each example
    Rotation().T(x, g).shape      # torch.Size([8, 1, 29, 29])

A network f is equivariant (Eq. 1) when f(T_g x) = Γ_g f(x).

Alphabet, used in every file of this repository; docstrings do not repeat these shapes
    x   images                 (B, C_in, H, W)
    z   feature map f(x)       (B, C, G, H', W')   G = |G|, but 1 for translation
    g   group elements         (B,) long, one for each example, numbered 0 … |G|-1
    g0  base space             (|g0|,) or (B, |g0|) long, an *ordered* list of elements
    fibers                     (B, |G|, C)         z read as a function on the group
    z(g⁻¹·g0)  fiber bundle    (B, |g0|·C)
    slot g                     where z(g) is found: a place on the lifted axis G, for translation
                               a position (y, x) of the map
"""

from typing import NamedTuple

import torch

SCALES = (1.0, 1.25, 1.33, 1.5, 1.66, 1.75)  # the paper's six (Appendix B)


class Group:
    """What all groups share.  Each adds four parts (notebook 05 writes a new group):

    order          |G|; element 0 is the identity
    product(a, b)  a·b, elementwise with broadcasting: (…,) long, -1 where it does not exist
    inverse(a)     a⁻¹: likewise
    T(x, g)        T_g x: image b changed by g[b].  x (B, …, H, W) → as x
    """

    spatial = False  # the slots are on the lifted axis: fibers are pooled over space

    def shift_base(self, g, g0):
        """g⁻¹·g0, the base space moved by g: (B, |g0|) long."""
        return self.product(self.inverse(g)[:, None], torch.atleast_2d(g0))

    def Gamma(self, z, g):
        """(Γ_g z)(i) = T_g z(g⁻¹·i), and 0 where g⁻¹·i does not exist: a map as z.

        ValueError for maps of another group.
        """
        if z.dim() != 5 or z.shape[2] != self.order:
            raise ValueError(f"a feature map of this group has G = {self.order}, not {[*z.shape]}")
        base = self.shift_base(g, torch.arange(self.order, device=g.device))  # (B, |G|)
        example = torch.arange(len(z), device=z.device)[:, None]  # (B, 1)
        changed = self.T(z, g).transpose(1, 2)  # (B, |G|, C, H', W')
        changed = changed[example, base.clamp(min=0)]
        return changed.masked_fill((base < 0)[..., None, None, None], 0).transpose(1, 2)

    def base_space(self, size):
        """The first `size` elements: (size,) long.  ValueError for none, or all of several."""
        most = max(1, self.order - 1)
        if not 1 <= size <= most:
            raise ValueError(f"a base space of this group has 1 … {most} elements, not {size}")
        return torch.arange(size)

    def fits_inside(self, g, g0):
        """Which g keep all of g⁻¹·g0 on the feature map: g (M,), g0 (|g0|,) → (M,) bool."""
        return (self.shift_base(g, g0) >= 0).all(1)

    def distance(self, g1, g2, metric="euclidean"):
        """Distance between elements, with broadcasting: (…,) float64.

        metric  "euclidean": ‖g1 - g2‖² of the `coordinates`, squared as in Section 4.
                "topological": each group's own.  ValueError for another
        """
        if metric == "euclidean":
            return (self.coordinates(g1) - self.coordinates(g2)).pow(2).sum(-1)
        if metric == "topological":
            return self.topological(g1, g2)
        raise ValueError(f"the distance is 'euclidean' or 'topological', not {metric!r}")

    def coordinates(self, g):
        """(…,) long → (…, n) float64; here n = 1, the element's number."""
        return g[..., None].double()

    def topological(self, g1, g2):
        """The number of steps from element to element."""
        return (g1 - g2).abs().double()

    def augmentations(self, strength=0.2):
        """The elements g from which Eq. 2 draws T_g: (M,) long; here all of them."""
        return torch.arange(self.order)


class Translation(Group):
    """Z_H × Z_W: shifts of an H × W grid.  Element (dy, dx) has the number dy·W + dx.

    The product is that of the torus, so the group axioms hold.  T and Γ fill the new border with
    background, 0 (the paper does not say).  They are actions as long as nothing leaves the frame.

    height, width  size of the grid
    stride         pixels for one step of the grid: T moves by stride·(dy, dx), Γ by (dy, dx)
    """

    spatial = True  # the slots are the positions of the map: |G| = H'·W'

    def __init__(self, height, width, stride=1):
        if min(height, width, stride) < 1:
            raise ValueError(f"sizes must be at least 1, not {height}, {width}, {stride}")
        self.height = height
        self.width = width
        self.stride = stride
        self.order = height * width

    # Modulo the width the number of an element is its dx.
    def product(self, a, b):
        return self.number(a // self.width + b // self.width, a + b)

    def inverse(self, a):
        return self.number(-(a // self.width), -a)

    def number(self, dy, dx):
        """The element (dy, dx), on the torus: (…,) long."""
        return dy % self.height * self.width + dx % self.width

    def signed(self, g):
        """The shortest shift that equals g on the torus: dy and dx (…,) long, within ±size/2."""
        up = (self.height - 1) // 2
        left = (self.width - 1) // 2
        return (g // self.width + up) % self.height - up, (g + left) % self.width - left

    def T(self, x, g):
        """T_g x: image b moved by stride·signed(g[b]) pixels."""
        return self.move(x, g, self.stride)

    def Gamma(self, z, g):
        """Γ_g z: map b, with any G, moved by signed(g[b]) positions.  ValueError as above."""
        if z.shape[-2:] != (self.height, self.width):
            grid = f"{self.height} × {self.width}"
            raise ValueError(f"a feature map of this group is {grid}, not {[*z.shape]}")
        return self.move(z, g, 1)

    def move(self, x, g, step):
        """Image or map b moved by step·signed(g[b]), with 0 around it."""
        for dim, shift in zip((-2, -1), self.signed(g)):
            n = x.shape[dim]
            shape = [len(x)] + [1] * (x.dim() - 1)
            shape[dim] = n
            source = torch.arange(n, device=x.device) - step * shift[:, None]  # (B, n)
            source = source.view(shape)  # (B, …, n, …)
            x = x.gather(dim, (source % n).expand(x.shape))
            x = x.masked_fill((source < 0) | (source >= n), 0)
        return x

    def base_space(self, size):
        """The h × w patch of `size` positions nearest to a square, in the corner: (size,) long.

        ValueError unless it fits the grid without filling it ("no padding", Appendix B).
        """
        heights = range(1, self.height + 1)
        heights = [h for h in heights if size % h == 0 and size // h <= self.width]
        if not heights or not 1 <= size <= max(1, self.order - 1):
            raise ValueError(f"no patch of {size} positions fits this grid without filling it")
        h = min(heights, key=lambda h: max(h, size // h))
        return (torch.arange(h)[:, None] * self.width + torch.arange(size // h)).flatten()

    def fits_inside(self, g, g0):
        base = self.shift_base(g, g0)  # (M, |g0|)
        return (base - base[:, :1] == g0 - g0[:1]).all(1)  # a patch that wraps loses its shape

    def coordinates(self, g):
        """dy and dx, both from 0: (…, 2) float64."""
        return torch.stack([g // self.width, g % self.width], -1).double()

    def topological(self, g1, g2):
        """‖g1 - g2‖² on the torus, where opposite edges of the grid are neighbours."""
        dy, dx = self.signed(self.product(self.inverse(g1), g2))
        return (dy**2 + dx**2).double()

    def augmentations(self, strength=0.2):
        """The shifts of at most `strength` of the size along each axis, rounded down."""
        g = torch.arange(self.order)
        dy, dx = self.signed(g)
        near = (dy.abs() <= int(strength * self.height)) & (dx.abs() <= int(strength * self.width))
        return g[near]


class Rotation(Group):
    """C4: turns by 0°, 90°, 180°, 270°, counter-clockwise."""

    order = 4

    def product(self, a, b):
        return (a + b) % 4

    def inverse(self, a):
        return -a % 4

    def T(self, x, g):
        """T_g x: image b turned by 90°·g[b].  ValueError unless images are square."""
        height, width = x.shape[-2:]
        if height != width:
            raise ValueError(f"a quarter turn needs square images, not {height} × {width}")
        turns = torch.stack([x.rot90(r, (-2, -1)) for r in range(4)], 1)  # (B, 4, …, H, H)
        return turns[torch.arange(len(x), device=x.device), g]

    def topological(self, g1, g2):
        """The shorter way round the circle, 0 … 2 quarter turns."""
        turns = (g1 - g2) % 4
        return torch.minimum(turns, 4 - turns).double()


class Chain(Group):
    """Elements in a row, a·b = a + b.  Γ_g reads slot g0 + g at g0, and there is nothing past the
    end: **not a group**, see Scale."""

    def product(self, a, b):
        c = a + b
        return torch.where((c < self.order) & (a >= 0) & (b >= 0), c, -1)

    def inverse(self, a):
        return torch.where(a == 0, 0, -1)

    def shift_base(self, g, g0):
        return self.product(torch.atleast_2d(g0), g[:, None])  # -1 past the end


class Numbered(Chain):
    """n >= 1 slots that are only numbered: no group acts on them (Table 2, without structure)."""

    def __init__(self, n):
        self.order = n

    def T(self, x, g):
        raise ValueError("no group acts on numbered slots, so T_g and Γ_g do not exist")


class Scale(Chain):
    """A list of scale factors 1 = σ_0 < σ_1 < …: **not a group**.

    Element g *shrinks* the image to 1/σ_g of its size (enlarging would cut the image at its
    frame), and the lifted axis holds the filters enlarged by σ_i.  The filter σ_i sees in the
    shrunk image what σ_(i+g) sees in the original.  So g⁻¹·g0 = g0 + g.  Three properties fail:
    nothing follows the last factor, nothing but the identity has an inverse on the list, and the
    paper's list is not geometric, so that σ_a·σ_b is only near σ_(a+b).
    """

    def __init__(self, factors=SCALES):
        factors = tuple(factors)
        if factors[:1] != (1,) or factors != tuple(sorted(set(factors))):
            raise ValueError(f"scale factors must start at 1.0 and increase, not {factors}")
        self.factors = factors
        self.order = len(factors)

    def T(self, x, g):
        """T_g x: image b shrunk about its centre to 1/σ_g[b] of its size, 0 (background) around it.

        ValueError for integer images, and on the CPU for g not on the list.
        """
        if not x.is_floating_point():
            raise ValueError(f"only floating point images can shrink, not {x.dtype}: x.float()")
        # On a GPU a look at g would wait for all work before it.  So there -1 picks NaN.
        if g.device.type == "cpu" and ((g < 0) | (g >= self.order)).any():
            raise ValueError(f"an element is not in 0 … {self.order - 1}")
        factors = (*self.factors, torch.nan)
        rows = shrink_matrices(x.shape[-2], factors).to(x, non_blocking=True)  # (|G| + 1, H, H)
        cols = shrink_matrices(x.shape[-1], factors).to(x, non_blocking=True)  # (|G| + 1, W, W)
        with torch.autocast(x.device.type, enabled=False):  # no half precision for pixels
            return torch.einsum("bij,b...jk,blk->b...il", rows[g], x, cols[g])

    def topological(self, g1, g2):
        """|log(σ_g1/σ_g2)|."""
        log = torch.tensor(self.factors, dtype=torch.float64, device=g1.device).log()  # (|G|,)
        return (log[g1] - log[g2]).abs()


def shrink_matrices(size, factors):
    """The matrices A of T_g along one axis: A x Aᵀ is x shrunk about its centre to 1/factor.

    Row u averages the source pixels around factor·u with a triangle of half-width `factor`, which
    limits aliasing.  Rows outside the source are 0.  → (len(factors), size, size) float64.
    """
    u = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2  # (size,), centred
    factor = torch.tensor(factors, dtype=torch.float64, device="cpu")[:, None, None]  # (S, 1, 1)
    source = factor * u[:, None]  # (S, size, 1)
    weight = (1 - (source - u).abs() / factor).clamp(min=0)  # (S, size, size)
    inside = source.abs() <= size / 2  # (S, size, 1)
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-12) * inside


class RotationScale(Group):
    """C4 × scale: element (s, r) has the number s·4 + r.  Not a group, see Scale."""

    def __init__(self, factors=SCALES):
        self.rotation = Rotation()
        self.scale = Scale(factors)
        self.order = 4 * self.scale.order

    def number(self, s, r):
        return torch.where(s < 0, -1, s * 4 + r)

    def product(self, a, b):
        s = self.scale.product(a // 4, b // 4)  # -1 // 4 is -1
        return self.number(s, self.rotation.product(a, b))

    def inverse(self, a):
        return self.number(self.scale.inverse(a // 4), self.rotation.inverse(a))

    def shift_base(self, g, g0):
        s = self.scale.shift_base(g // 4, g0 // 4)
        return self.number(s, self.rotation.shift_base(g, g0))

    def T(self, x, g):
        """T_g x: image b turned, then shrunk."""
        return self.scale.T(self.rotation.T(x, g % 4), g // 4)

    def coordinates(self, g):
        return torch.stack([g // 4, g % 4], -1).double()

    def topological(self, g1, g2):
        """The sum of the two, in mixed units."""
        turns = self.rotation.topological(g1 % 4, g2 % 4)
        return turns + self.scale.topological(g1 // 4, g2 // 4)


# ---- fibers, bundles, and random g
def fibers(z, group, pool="mean"):
    """z read as a function on the group (Section 2): z(g) ∈ R^C for every g.

    For translation each position is a slot.  The other groups pool over space: "mean" as in
    Appendix B, or "max".  Returns (B, n, C) for the n slots of z.  ValueError for another pool, and
    for translations another grid or G > 1.
    """
    if pool not in ("mean", "max"):
        raise ValueError(f"fibers are pooled by 'mean' or 'max', not {pool!r}")
    if group.spatial:
        if z.shape[2:] != (1, group.height, group.width):
            wanted = f"[B, C, 1, {group.height}, {group.width}]"
            raise ValueError(f"translations need a map {wanted}, not {[*z.shape]}")
        z = z.flatten(2)  # (B, C, H'·W')
    elif pool == "mean":
        z = z.mean((-2, -1))  # (B, C, |G|)
    else:
        z = z.amax((-2, -1))
    return z.transpose(1, 2)


def bundle(fibers, base):
    """The fiber bundle z(base) = [z(g) | g ∈ base] ∈ R^(|g0|·C) (Section 2), as base lists them.

    base (B, |g0|) or (1, |g0|) long, all >= 0 → (B, |g0|·C).
    """
    index = base[..., None].expand(len(fibers), -1, fibers.shape[-1])  # (B, |g0|, C)
    return fibers.gather(1, index).flatten(1)


class Pairs(NamedTuple):
    """The pairs (g1, g2) that may be drawn, on the CPU: M elements with at most K partners each."""

    elements: torch.Tensor  # (M,) long, for g1
    partners: torch.Tensor  # (M, K) long, for g2: of row i the first counts[i], i too
    counts: torch.Tensor  # (M,) long


def pairs(group, g0, max_distance=None, metric="euclidean"):
    """Which g1 and g2 Eq. 3 may draw: a `Pairs`, to be given to `sample`.

    An element g is used if all of g⁻¹·g0 lies on the feature map (no wrap, no padding).

    g0            (|g0|,)
    max_distance  of the two bundles, in the unit of `metric`.  None: any; 0: the same one
    ValueError if no two different elements are that near, unless max_distance is 0.
    """
    elements = torch.arange(group.order)
    elements = elements[group.fits_inside(elements, g0)]  # (M,)
    if len(elements) < 2 and max_distance != 0:
        raise ValueError(f"a base space of {len(g0)} fits at only one slot, and two are needed")
    first = group.shift_base(elements, g0[:1])[:, 0]  # (M,): where each bundle begins
    d = group.distance(first[:, None], first, metric)  # (M, M)
    allowed = d <= (torch.inf if max_distance is None else max_distance)
    counts = allowed.sum(1)  # (M,)
    if max_distance != 0 and counts.max() < 2:
        nearest = f"the nearest are {d[d > 0].min():.3g} apart"
        raise ValueError(f"no two elements are within a distance of {max_distance}: {nearest}")
    # in each row the partners first, in order
    allowed_first = allowed.int().argsort(dim=1, descending=True, stable=True)  # (M, M)
    return Pairs(elements, elements[allowed_first[:, : counts.max()]], counts)


def sample(drawn_from, batch, generator=None):
    """Draw g1 uniformly, then g2 uniformly from its partners: two (batch,) long tensors."""
    elements, partners, counts = drawn_from
    i = torch.randint(len(elements), (batch,), generator=generator)
    u = torch.rand(batch, dtype=torch.float64, generator=generator)  # in [0, 1)
    return elements[i], partners[i, (u * counts[i]).long()]
