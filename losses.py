"""The losses: A-SSL (Eq. 2) and H-SSL (Eq. 3) are one InfoNCE with different arguments.

Needs one sibling: groups.py.

    A-SSL changes the image and keeps the base space:  h(f(T_g1 x)(g0)) with h(f(T_g2 x)(g0))
    H-SSL keeps the image and moves the base space:    h(f(x)(g1⁻¹·g0)) with h(f(x)(g2⁻¹·g0))

If f is equivariant the two are the same numbers, f(T_g x)(g0) = Γ_g f(x)(g0) = f(x)(g⁻¹·g0).
(Not for scale: fibers are pooled over space, and the mean of a shrunk map is another one.)

    f, h, _ = backbones.build("mnist", "rot")
    pairs = HSSL(f.group)
    x = torch.rand(8, 1, 29, 29)
    loss = info_nce(*pairs.views(f, h, x, *pairs.draw(8)))

f is a network with `f.group` and `f.bundle(x, base)`, as in backbones.py; h is any head.  Letters
and shapes are those of groups.py's alphabet.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

import groups


# ---- Eq. 2's InfoNCE
def info_nce(y1, y2, tau=0.1, denominator="paper", W=None):
    """InfoNCE as printed in Eq. 2:

        -1/N Σ_i log [ exp(sim(y1_i, y2_i)/τ) / Σ_{k≠i} Σ_{j,l ∈ {1,2}} exp(sim(yj_i, yl_k)/τ) ]

    y1, y2       (B, D) the two views, floats; the same B on every process, N in all
    tau          the temperature τ > 0
    denominator  "paper": as above; both views of i share it, and the positive is not in it.
                 "ntxent": SimCLR's; each view of i is an anchor of its own, with all other 2N-1
    W            None: sim is the cosine.  (D, D), not always symmetric: DIM(L)'s log-bilinear model
                 y1ᵀ W y2 on views that are not normalised (Eq. 5, Appendix C)
    Returns a scalar, at least float32.  ValueError for other views, τ or denominators, and for
    N = 1 if that leaves the denominator empty (in "ntxent" the positive is left: the loss is 0).
    Memory: a few (2B, 2N) float32 matrices, 256 MiB each at B = N = 4096 (results/bench.py).
    """
    if denominator not in ("paper", "ntxent"):
        raise ValueError(f"the denominator is 'paper' or 'ntxent', not {denominator!r}")
    if not 0 < tau < math.inf:
        raise ValueError(f"the temperature tau must be above 0, not {tau}")
    if y1.shape != y2.shape or y1.dim() != 2 or not y1.is_floating_point():
        shapes = f"{[*y1.shape]}, {[*y2.shape]}"
        raise ValueError(f"two views are (B, D) floats, not {y1.dtype} {shapes}")
    with torch.autocast(y1.device.type, enabled=False):  # τ = 0.1 gives e^±10
        y = torch.stack([y1, y2])  # (2, B, D)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        if W is None:
            y = F.normalize(y, dim=-1)
        candidates, first = gather(y)  # (2, N, D): yl_k; here image i is number first + i
        anchors = y if W is None else y @ W.to(y)
        anchors = anchors / tau  # (2, B, D): yj_i
        b, n = anchors.shape[1], candidates.shape[1]
        if n < 2 and denominator == "paper":
            raise ValueError("Eq. 2 compares with other images: it needs at least two examples")

        positive = (anchors * candidates[:, first : first + b].flip(0)).sum(-1)  # (2, B)
        logits = anchors.flatten(0, 1) @ candidates.flatten(0, 1).T  # (2B, 2N)
        logits = logits.view(2, b, 2, n)  # j, i, l, k
        # A logit of -∞ adds e^-∞ = 0 and has no gradient.  So we write it behind autograd's back:
        # masked_fill would copy all logits, and takes a quarter more time.
        same_image = logits.detach().diagonal(first, 1, 3)  # (2, 2, B): j, l, where k = i
        if denominator == "paper":
            same_image.fill_(-torch.inf)  # the sum is over k ≠ i
            return (logits.logsumexp((2, 3)).logsumexp(0) - positive[0]).mean()
        same_image.diagonal().fill_(-torch.inf)  # j = l: an anchor is not its own candidate
        return (logits.logsumexp((2, 3)) - positive).mean()


def gather(y):
    """All processes' y in order of rank, with gradient, and where this process's part begins.

    y (2, B, D), with the same B on every process → (2, N, D) and an int.
    The backward pass sums the gradients of all processes, so that the mean which
    DistributedDataParallel takes is the gradient of the loss of one process with all images.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return y, 0
    return torch.cat(list(AllGather.apply(y)), 1), dist.get_rank() * y.shape[1]


class AllGather(torch.autograd.Function):
    """The tensors of all R processes, (R, …), with the gradient that `dist.all_gather` lacks."""

    @staticmethod
    def forward(ctx, y):
        everyone = [torch.empty_like(y) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, y.contiguous())
        return torch.stack(everyone)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)  # others may hold it too
        dist.all_reduce(grad)  # the sum of the gradients of all processes' losses …
        return grad[dist.get_rank()]  # … and the part of it for this process's y


def cosine_regression(p1, p2, y1, y2):
    """BYOL (Grill et al. 2020, Eq. 2) and SimSiam (Chen & He 2021): each view predicts the other.

        1/N Σ_i { [ 1 - cos(p1_i, y2_i) ] + [ 1 - cos(p2_i, y1_i) ] },    0 … 4, 2 at chance

    BYOL's own loss in both directions is twice this.

    p1, p2  (B, D) predictions q(y) of the network that learns
    y1, y2  (B, D) the targets, used without gradient: the views of a slow copy of the network
            (BYOL) or of the network itself (SimSiam)
    Returns a scalar, at least float32.
    """
    dtype = torch.promote_types(p1.dtype, torch.float32)
    with torch.autocast(p1.device.type, enabled=False):
        one = 1 - F.cosine_similarity(p1.to(dtype), y2.to(dtype).detach())  # (B,)
        two = 1 - F.cosine_similarity(p2.to(dtype), y1.to(dtype).detach())  # (B,)
        return (one + two).mean()


# ---- the two views
def a_ssl(f, h, x, image_group, g0, g1, g2, x2=None):
    """Eq. 2, the two views: h(f(T_g1 x)(g0)) and h(f(T_g2 x)(g0)).

    image_group  acts on the images; g1 and g2 are elements of it
    g0           elements of f.group, the same for both views
    x2           the images of the second view, if something else has changed each view by itself
    Returns y1, y2 (B, D), for `info_nce`.
    """
    view1 = image_group.T(x, g1.to(x.device))
    view2 = image_group.T(x if x2 is None else x2, g2.to(x.device))
    base = torch.atleast_2d(g0).expand(len(x), -1)  # (B, |g0|): one base space …
    y = f.bundle(torch.cat([view1, view2]), base.repeat(2, 1))  # (2B, |g0|·C): … of two images
    return h(y).chunk(2)


def h_ssl(f, h, x, g0, g1, g2, x2=None):
    """Eq. 3, the two views: h(f(x)(g1⁻¹·g0)) and h(f(x)(g2⁻¹·g0)), with Eq. 6's indices (those
    printed in Eq. 3 have errors).

    g1 and g2 are elements of f.group such that g⁻¹·g0 stays on the feature map: `HSSL` draws them.
    The rest is as in `a_ssl`.  With x2 both change, images and base space (Appendix A).
    """
    base1 = f.group.shift_base(g1, g0)  # (B, |g0|): two base spaces …
    base2 = f.group.shift_base(g2, g0)
    if x2 is None:
        y = f.bundle(x, torch.stack([base1, base2], 1))  # (B, 2, |g0|·C): … of one image
        y = y.transpose(0, 1).flatten(0, 1)  # (2B, |g0|·C)
    else:
        y = f.bundle(torch.cat([x, x2]), torch.cat([base1, base2]))  # … or of each its own
    return h(y).chunk(2)


# ---- what each equation draws
class ASSL:
    """Eq. 2's random elements (Appendix B), and the views made with them.

    T_g1 and T_g2 are uniform among the augmentations.  Both views share g0, which a uniform
    element has moved.

    group        f.group
    image_group  acts on the images; for translation by single pixels
    base_size    |g0|; all of |G|: both views read all of z (SimCLR, Appendix C)
    strength     largest shift along each axis, as a part of the size (only translation)
    shared       True: g0 is the same for all images of a batch.  Else a network that knows where
                 its slots are can tell images apart by their slots
    """

    def __init__(self, group, image_group, base_size=1, strength=0.2, shared=False):
        self.group = group
        self.image_group = image_group
        self.shared = shared
        self.changes = image_group.augmentations(strength)  # (M,)
        elements = torch.arange(group.order)
        if base_size == group.order:
            self.g0 = elements  # (|g0|,)
            self.elements = elements[:1]  # those that move g0: the identity alone
        else:
            self.g0 = group.base_space(base_size)
            self.elements = elements[group.fits_inside(elements, self.g0)]

    def draw(self, batch, generator=None):
        """→ g0 (batch, |g0|), g1 and g2 (batch,), long and on the CPU."""
        g = pick(self.elements, 1 if self.shared else batch, generator)
        g1 = pick(self.changes, batch, generator)
        g2 = pick(self.changes, batch, generator)
        return self.group.shift_base(g, self.g0).expand(batch, -1), g1, g2

    def views(self, f, h, x, g0, g1, g2, x2=None):
        return a_ssl(f, h, x, self.image_group, g0, g1, g2, x2)


class HSSL:
    """Eq. 3's random elements (Appendix B), and the views made with them.

    g1 is uniform among the elements that keep g0 on the map, g2 among those whose bundle is at most
    `max_distance` from g1's (None: any; 0: the same one, the null of what slots add).

    group, base_size  as in ASSL, but never all of |G|
    metric            the unit of max_distance: "euclidean" or "topological", see groups.py
    shared            True: g1 and g2 are the same for all images of a batch, see ASSL
    """

    def __init__(self, group, base_size=1, max_distance=None, metric="euclidean", shared=False):
        self.shared = shared
        self.g0 = group.base_space(base_size)  # (|g0|,)
        self.allowed = groups.pairs(group, self.g0, max_distance, metric)

    def draw(self, batch, generator=None):
        """As ASSL's."""
        g1, g2 = groups.sample(self.allowed, 1 if self.shared else batch, generator)
        return self.g0.expand(batch, -1), g1.expand(batch), g2.expand(batch)

    def views(self, f, h, x, g0, g1, g2, x2=None):
        return h_ssl(f, h, x, g0, g1, g2, x2)


class Matched:
    """One draw for both equations, so that they differ in nothing else (only translation).

    g1 and g2 are uniform among the shifts by whole strides of at most `strength` along each axis,
    g0 among the slots from which none of these shifts leaves the map.

    group     f.group, which also moves the images
    equation  a_ssl or h_ssl
    """

    def __init__(self, group, equation, strength=0.2):
        self.group = group
        self.equation = equation
        self.changes = group.augmentations(strength)  # (M,)
        slots = torch.arange(group.order)
        dy, dx = group.signed(self.changes)  # (M,) each
        y = slots // group.width
        x = slots % group.width
        on_map = (y >= dy.max()) & (y - dy.min() < group.height)
        on_map &= (x >= dx.max()) & (x - dx.min() < group.width)
        self.g0 = slots[on_map]
        if len(self.changes) < 2:
            raise ValueError(f"no shift by a whole stride is within a strength of {strength}")

    def draw(self, batch, generator=None):
        """As ASSL's."""
        g0 = pick(self.g0, batch, generator)[:, None]
        return g0, pick(self.changes, batch, generator), pick(self.changes, batch, generator)

    def views(self, f, h, x, g0, g1, g2, x2=None):
        if self.equation is h_ssl:
            return h_ssl(f, h, x, g0, g1, g2, x2)
        return a_ssl(f, h, x, self.group, g0, g1, g2, x2)


def pick(elements, batch, generator):
    """`batch` elements, drawn uniformly: (batch,) long."""
    return elements[torch.randint(len(elements), (batch,), generator=generator)]


# ---- what shows a collapse
def chance(n, denominator="paper"):
    """InfoNCE of N examples whose similarities are all equal: log of the number of terms."""
    return math.log(2 * n - 1 if denominator == "ntxent" else 4 * (n - 1))


@torch.no_grad()
def diagnostics(y1, y2):
    """Numbers that show a collapse, from one process's views (B, D): a dict of floats.

    positive_similarity, negative_similarity  mean cosines
    positive_rank  share of other images that are nearer than the positive: 0 is best, 0.5 chance
    spread         standard deviation of the normalised y1 over the batch, times √D: 1 if it fills
                   the sphere evenly, 0 if it has collapsed
    """
    y1 = F.normalize(y1.float(), dim=1)
    y2 = F.normalize(y2.float(), dim=1)
    similarity = y1 @ y2.T  # (B, B)
    positive = similarity.diagonal()  # (B,)
    others = max(1, len(y1) * (len(y1) - 1))
    return dict(
        positive_similarity=float(positive.mean()),
        negative_similarity=float((similarity.sum() - positive.sum()) / others),
        positive_rank=float((similarity > positive[:, None]).sum() / others),
        spread=float(y1.std(0, correction=0).mean() * y1.shape[1] ** 0.5),
    )
