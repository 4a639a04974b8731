"""The losses: A-SSL (Eq. 2) and H-SSL (Eq. 3) are the same InfoNCE with different arguments.

Needs one sibling: groups.py.

    A-SSL changes the image twice, with one base space:  h(f(T_g1 x)(g0))   against  h(f(T_g2 x)(g0))
    H-SSL keeps the image and moves the base space:      h(f(x)(g1⁻¹·g0))   against  h(f(x)(g2⁻¹·g0))

If f is equivariant, the two give the same numbers, since f(T_g x)(g0) = Γ_g f(x)(g0) = f(x)(g⁻¹·g0).  (Not for scale: fibers
are pooled over space, and the mean of a shrunk map is another one.  Measure it with `distances`.)

Under torchrun each rank holds a part of the batch.  The negatives come from all ranks, with gradient.
"""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

import groups
from groups import bundle, fibers


def info_nce(y1, y2, tau=0.1, denominator="paper", W=None):
    """InfoNCE as printed in Eq. 2.  y1, y2 (B, D): the two views, any scale, any float dtype → scalar float32/64.  N: B on all ranks together.

        -1/N Σ_i log [ exp(sim(y1_i, y2_i)/τ) / Σ_{k≠i} Σ_{j,l ∈ {1,2}} exp(sim(yj_i, yl_k)/τ) ]

    The denominator leaves out the positive, and both views of i share one denominator: at chance the loss is log 4(N-1).
    denominator="ntxent" is SimCLR's: each view of i is a separate anchor.  Its denominator has all 2N-1 other views,
    including its positive: at chance the loss is log(2N-1).
    sim is the cosine.  With W (D, D) it is DIM(L)'s log-bilinear model y1ᵀ W y2 on y without normalisation (Eq. 5, Appendix C).
    W need not be symmetric: in "ntxent" the second anchor's positive is y2ᵀ W y1.
    Memory: (2B, 2N) float32 matrices, 256 MiB each at N = 4096 in one process; the peak with the backward pass is 1.0 to
    1.6 GiB (results/bench.py).  Raises ValueError for an unknown denominator, and for N < 2, where no k ≠ i exists."""
    if denominator not in ("paper", "ntxent"):
        raise ValueError(f"the denominator is 'paper' or 'ntxent', not {denominator!r}")
    b = len(y1)
    with torch.autocast(y1.device.type, enabled=False):  # float32 from here: τ = 0.1 gives e^±10
        y = torch.stack([y1, y2])  # (2, B, D)
        y = y.to(torch.promote_types(y.dtype, torch.float32))  # (2, B, D): at least float32
        y = F.normalize(y, dim=-1) if W is None else y  # (2, B, D)
        everyone, first = gather(y)  # (2, N, D): the columns; this rank's examples start at `first`
        n = everyone.shape[1]
        if n < 2:
            raise ValueError("a contrastive loss needs at least two examples")
        y = (y if W is None else y @ W) / tau  # (2, B, D): yᵀW, for sim(y_i, y_k) = y_iᵀ W y_k
        logits = y.flatten(0, 1) @ everyone.flatten(0, 1).T  # (2B, 2N)
        positive = (y * everyone[:, first:first + b].flip(0)).sum(-1)  # (2, B): anchor j with the other view of the same image
        logits = logits.view(2, b, 2, n)  # (2, B, 2, N): view j, i, view l, k
        rows = torch.arange(b, device=y.device)  # (B,)
        with torch.no_grad():  # e^-∞ = 0 has no gradient; without autograd this needs no copy of the logits
            for j in range(2):
                logits[j, rows, j, rows + first] = -torch.inf  # an anchor is not its own candidate
                if denominator == "paper":
                    logits[j, rows, 1 - j, rows + first] = -torch.inf  # k ≠ i: its positive is not a candidate
        candidates = logits.flatten(2).logsumexp(2)  # (2, B) over l and k
        if denominator == "paper":
            candidates, positive = candidates.logsumexp(0), positive[0]  # (B,), over j too: both views of i share one denominator
        return (candidates - positive).mean()  # ()


def gather(y):
    """All ranks' y, in rank order, with gradient, and the index at which this rank's part starts.

    y (V, B, D): V views, the same B on every rank → (V, N, D) with N = B·ranks, and an int.  The backward pass sums the gradients of
    all ranks, so that DDP's mean over ranks is the gradient of the one-process loss.  With one process: y and 0."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return y, 0
    return torch.cat(list(AllGather.apply(y)), 1), dist.get_rank() * y.shape[1]  # (V, N, D), int


class AllGather(torch.autograd.Function):
    """The tensors of R ranks, (R, …), with gradient.  `dist.all_gather` has no gradient to the other ranks' rows;
    torch.distributed.nn.all_gather has it, but is deprecated."""

    @staticmethod
    def forward(ctx, y):
        everyone = [torch.empty_like(y) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, y.contiguous())
        return torch.stack(everyone)  # (R, …)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)  # the sum of the gradients of all ranks' losses …
        return grad[dist.get_rank()]  # … and the part of it for this rank's y


def bundles(f, x, base, group):
    """f(x) at m base spaces of n elements for each image: x (B, C_in, H, W), base (B, m, n) → (m, B, n·C).

    f: images → z (B, C, G, H', W').  It may have `pool` (see `fibers`; a wrapper of f must pass it on) and, if f(x, elements) can compute only some elements
    of the lifted axis, `independent` = True and `order` = G.  These are used if two bundles have fewer elements than the
    group.  The rule does not depend on the loss: A-SSL and H-SSL take the same branch, and BatchNorm sees as many fibers
    in both.  Raises ValueError if x, base, f and the group do not fit."""
    m, n = base.shape[1:]
    if len(base) != len(x) or base.min() < 0 or base.max() >= group.order:
        raise ValueError(f"{len(x)} images, but base spaces for {len(base)}, with elements {base.min()} … {base.max()} of 0 … {group.order - 1}: "
                         "give one g for each image, and draw it with groups.pairs and groups.sample")
    flat, pool = base.flatten(1), getattr(f, "pool", "mean")  # (B, m·n)
    if not group.spatial and getattr(f, "sampled", getattr(f, "independent", False)) and f.order == group.order:
        z = fibers(f(x, flat), group, pool)  # (B, m·n, C): only those fibers
        return z.unflatten(1, (m, n)).flatten(2).transpose(0, 1)  # (m, B, n·C)
    z = fibers(f(x), group, pool)  # (B, |G|, C)
    if z.shape[1] != group.order:
        raise ValueError(f"f has {z.shape[1]} fibers, and the group {group.order} elements: take the group of this network")
    return bundle(z, flat).unflatten(1, (m, -1)).transpose(0, 1)  # (m, B, n·C)


def cosine_regression(p1, p2, y1, y2):
    """BYOL (Grill et al. 2020, Eq. 2) and SimSiam (Chen & He 2021): no negatives; each view predicts the other.

        1/N Σ_i { [ 1 - cos(p1_i, y2_i) ] + [ 1 - cos(p2_i, y1_i) ] },    0 … 4, 2 at chance

    BYOL's Eq. 2 is 2 - 2cos for one direction, so its loss in both directions is twice this.

    p1, p2 (B, D): predictions q(y) of the network that learns.  y1, y2 (B, D): the targets, without gradient; the views of
    a slow copy of the network for BYOL, of the network itself for SimSiam.  → scalar float32/64."""
    up = lambda y: y.to(torch.promote_types(y.dtype, torch.float32))  # (B, D): at least float32
    with torch.autocast(p1.device.type, enabled=False):
        one = 1 - F.cosine_similarity(up(p1), up(y2).detach())  # (B,)
        two = 1 - F.cosine_similarity(up(p2), up(y1).detach())  # (B,)
        return (one + two).mean()  # ()


def a_ssl(f, h, x, group, g0, g1, g2, map_group=None, x2=None):
    """Eq. 2, the two views: h(f(T_g1 x)(g0)) and h(f(T_g2 x)(g0)).

    f, h: backbone (see `bundles`) and head; x (B, C_in, H, W); g1, g2 (B,); g0 (|g0|,) or (B, |g0|), the same for both views;
    group acts on the images; map_group (default: group) defines how fibers are read off z.  x2 (default x): the images of the
    second view, if an augmentation changes each view by itself.  Returns y1, y2 (B, D): the arguments of `info_nce`."""
    x12 = torch.cat([group.T(x, g1), group.T(x if x2 is None else x2, g2)])  # (2B, C_in, H, W): two images …
    base = torch.atleast_2d(g0).expand(len(x), -1).repeat(2, 1)[:, None]  # (2B, 1, |g0|): … one base space
    y = bundles(f, x12, base, map_group or group)[0]  # (2B, |g0|·C)
    return h(y).chunk(2)  # (B, D) twice


def h_ssl(f, h, x, group, g0, g1, g2, x2=None):
    """Eq. 3, the two views: h(f(x)(g1⁻¹·g0)) and h(f(x)(g2⁻¹·g0)), with the indices of Eq. 6 (those printed in Eq. 3 have
    errors).  Arguments and result as in `a_ssl`.  With x2 (Appendix A: an augmentation that f's slots do not hold) there are two
    passes, one for each image: h(f(x)(g1⁻¹·g0)) and h(f(x2)(g2⁻¹·g0)).

    For translation and scale draw g1, g2 with `groups.pairs` and `groups.sample`: g⁻¹·g0 must not leave the map or the list."""
    bases = group.shift_base(g1, g0), group.shift_base(g2, g0)  # (B, |g0|) twice: two base spaces …
    if x2 is None:
        y = bundles(f, x, torch.stack(bases, 1), group).flatten(0, 1)  # … of one image: (2B, |g0|·C)
    else:
        y = bundles(f, torch.cat([x, x2]), torch.cat(bases)[:, None], group)[0]  # (2B, |g0|·C)
    return h(y).chunk(2)  # (B, D) twice


# ---------------------------------------------------------------- random elements, and diagnostics
class Draws:
    """Draw random g0, g1, g2 for whole batches (Appendix B), and make the two views with them.

    A-SSL: T_g1 and T_g2 uniform among the augmentations (translation: shifts of up to ±strength of the size, rounded down);
    one random place for g0, shared by both views.  base_size = |G| reads all of z (SimCLR, Appendix C).
    H-SSL: g1 uniform among the elements that keep g0 on the map; g2 uniform among those whose bundle is at most
    max_distance from g1's (see `groups.pairs`).

    loss "assl" | "hssl" (other losses of train.py draw as "assl" and do not use it); group "trans" | "rot" | "scale" | "rotscale"; structured: True if the group acts
    on z, False if z only has `order` numbered elements (Table 2); size: H of the images; positions, stride: H' of z and the pixels
    between neighbouring positions; base_size: |g0|; max_distance, distance: see `groups.pairs`; strength: 0 … 0.5.
    Attributes: pixels, map (the group as it acts on x, translation by single pixels, and on z), studied (its elements in `distances`),
    centre (the slot that the read-outs use), g0, structured.
    Raises ValueError if `groups.pairs` or `base_space` does."""

    def __init__(self, loss, group, structured, order, size, positions, stride, base_size=1, max_distance=None,
                 distance="euclidean", strength=0.2):
        self.loss, self.structured = loss, structured
        self.pixels = {"trans": lambda: groups.Translation(size, size), "rot": groups.Rotation,
                       "scale": groups.Scale, "rotscale": groups.RotationScale}[group]()
        grid, step = (positions, stride) if structured else (size // 4, 4)  # no positions: steps as in the MNIST network
        self.studied = groups.Translation(grid, grid, step) if group == "trans" else self.pixels
        self.map = self.studied if structured else groups.Scale(tuple(1.0 + i for i in range(order)))  # a list: g⁻¹·g0 adds the numbers
        self.all = torch.arange(self.map.order)  # (|G|,)
        if loss == "assl" and base_size == self.map.order:  # SimCLR: all of z, so there is one place for g0
            self.g0, self.places = self.all, self.all[:1]  # (|g0|,), (1,)
        else:
            self.g0 = self.map.base_space(base_size)  # (|g0|,)
            self.places, self.allowed = groups.pairs(self.map, self.g0, max_distance, distance)
        self.centre = grid // 2 * (grid + 1) if group == "trans" and structured else 0
        self.strength, self.size = strength, size

    def augmentations(self, group, strength):
        """The elements from which T_g is drawn, (M,): all, or for translation the shifts of up to strength·size along each axis."""
        g = torch.arange(group.order)  # (|G|,)
        return g[torch.stack(group.signed(g)).abs().amax(0) <= int(strength * self.size)] if group.spatial else g  # (M,)

    def __call__(self, batch, generator=None):
        """→ g0 (B, |g0|), g1 (B,), g2 (B,) long, on the CPU."""
        pick = lambda elements: elements[torch.randint(len(elements), (batch,), generator=generator)]  # (B,)
        change = lambda: pick(self.augmentations(self.pixels, self.strength))  # (B,)
        if self.loss == "hssl":
            return self.g0.expand(batch, -1), *groups.sample(self.places, self.allowed, batch, generator)
        return self.map.shift_base(pick(self.places), self.g0), change(), change()

    def views(self, f, h, x, g0, g1, g2, x2=None):
        """The two views of images x (B, C_in, H, H), or of x and x2, by the loss's equation, for elements drawn by this object: (B, D) twice."""
        if self.loss == "assl":
            return a_ssl(f, h, x, self.pixels, g0, g1, g2, self.map, x2)  # (B, D) twice
        return h_ssl(f, h, x, self.map, g0, g1, g2, x2)  # (B, D) twice

    def moved(self, x, generator):
        """Images x (B, C_in, H, H), each changed by a random T_g of `pixels` other than e (translation: ±20 %) → the same shape."""
        g = self.augmentations(self.pixels, 0.2)[1:]  # (M,), without e
        return self.pixels.T(x, g[torch.randint(len(g), (len(x),), generator=generator)].to(x.device))  # (B, C_in, H, H)

    def distances(self, f, x):
        """`probe.distances` of f on images x, for every g = 1, 2, … of `studied`.  Translation: shifts down by 1, 2, … positions
        up to half the map, read at its centre.  Without structure all of z is read.  f runs in evaluation mode."""
        import probe
        group = self.studied
        last, step = (group.height // 2, group.width) if group.spatial else (group.order - 1, 1)
        g0 = torch.tensor([self.centre]) if self.structured else self.all  # (1,) or (|G|,)
        elements = torch.arange(1, last + 1) * step  # (M,)
        training = f.training
        f.eval()
        found = probe.distances(f, x, group, elements.to(x.device), g0.to(x.device),
                                None if self.structured else self.map)
        f.train(training)
        return found


def chance(n, denominator="paper"):
    """InfoNCE of N examples when all similarities are equal: the log of the number of terms in the denominator."""
    return math.log(2 * n - 1 if denominator == "ntxent" else 4 * (n - 1))


@torch.no_grad()
def diagnostics(y1, y2):
    """Numbers that show a collapse, from one process's views (B, D): a dict of floats.

    positive_similarity, negative_similarity: mean cosine.  positive_rank: the share of other images that are nearer than
    the positive; 0 is best, 0.5 is chance.  spread: the standard deviation of normalised y1 over the batch times √D;
    1 if y1 fills the sphere evenly, 0 if it has collapsed."""
    y1, y2 = F.normalize(y1.float(), dim=1), F.normalize(y2.float(), dim=1)  # (B, D)
    similarity = y1 @ y2.T  # (B, B)
    positive, others = similarity.diagonal(), max(1, len(y1) * (len(y1) - 1))  # (B,)
    return dict(positive_similarity=float(positive.mean()),
                negative_similarity=float((similarity.sum() - positive.sum()) / others),
                positive_rank=float((similarity > positive[:, None]).sum() / others),
                spread=float(y1.std(0, correction=0).mean() * y1.shape[1] ** 0.5))
