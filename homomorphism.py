"""A learned homomorphism: a network without built-in structure learns f and Γ_g together, for C4 (quarter turns) or scale.

    python homomorphism.py --share 0.1 --lam 10 --seed 0         # an MLP on 4,000 digits, one JSON row, one or two minutes
    python homomorphism.py --given --share 0.03 --out rows.jsonl # Γ is the cyclic permutation, only f learns
    python homomorphism.py --one-way --start identity            # without the inverse direction, see `equation1`
    python homomorphism.py --group scale --backbone cnn --width 0.125 --given    # six fibers, Γ is the shift by g

Keller, Suau & Zappella (2022), Section 5: "one field of research which appears particularly promising for future work is the
integration of learned homomorphisms with H-SSL. In the H-SSL framework, a learned homomorphism can be seen as equivalent to
a learned augmentation."  This is a first version of it, and not in the paper.  Needs all other modules.

f's features are read as G = |G| fibers v = f(x) (B, G, C): 4 for C4, 6 for scale.  One matrix A (G, G) stands for the generator, and
Γ_g = A^g acts on the fiber axis, the same for all channels.  What is learned:

    L = InfoNCE( h((Γ_g1 v)(g0)), h((Γ_g2 v)(g0)) )  +  λ · ‖f(T_g x) - Γ_g f(x)‖² / ‖f(T_g x) - f(x)‖²    (in both directions, see `equation1`)

The first term is H-SSL (Eq. 3) with v(g⁻¹·g0) := (Γ_g v)(g0).  The second is the error of Eq. 1, divided by the error
with Γ_g = 1 (the null).  It needs turned images, but only for a share of each batch, with g uniform in 1 … G-1.  share 0: H-SSL on a network
without structure (Table 2).  share 1: two passes for each image, the cost of A-SSL.  ‖A⁴ - 1‖ is not a term of L.

Scale is not a group, as T_g has no inverse.  The given A is the shift (A v)(i) = v(i+1).  Eq. 1 is compared only on the fibers i with
i + g < G, and only in one direction.  So f can also meet it by giving all shrunk images the same features; `measure` reports this
as `kept`.

Only the second term trains A.  If the first did too, A = 1 would solve it.
Everything runs on the CPU, in one process.

Related methods, what they assume and what they learn: notebook 06, section 6.
"""
import copy
import json
import sys
import time

import torch
from torch import nn

import backbones
import data
import groups
import launch
import losses
import probe
import train
from checkpoint import UsageError

C4 = groups.Rotation()
GROUPS = {"rot": C4, "scale": groups.Scale()}


# ---------------------------------------------------------------- Γ, and the two terms of the loss
def as_fibers(z, pool="mean", order=4):
    """z (B, C', G', H', W'), G' a multiple of `order`, pooled over space and read as `order` fibers v (B, order, C), C = C'·G'/order.

    The MLP's 16 fibers become four with four times the channels: on the 16 fibers, Γ = A ⊗ 1₄ (fiber 4r + q goes to another r and keeps q)."""
    return groups.fibers(z, C4, pool).unflatten(1, (order, -1)).flatten(2)  # (B, order, C)


def cycle(group=C4):
    """The given A, (G, G): (A v)(i) = v(g⁻¹·i) for g = 1 as in groups.py.  C4: the cyclic permutation v(i - 1).  Scale: the shift v(i + 1), 0 past the end."""
    index = group.shift_base(torch.ones(1, dtype=torch.long), torch.arange(group.order))[0]  # (G,)
    return torch.eye(group.order)[index] * (index >= 0)[:, None]  # (G, G)


def start(name, noise=0.01, group=C4):
    """The initial A, (G, G): "random" is orthogonal; "identity" is 1 + noise·N(0, 1); "cycle" is `cycle(group)`.

    A 4-cycle has the eigenvalues 1, i, -1, -i and the determinant -1.  In notebook 06 (random starts, two of each sign) A first becomes
    nearly singular, since f does not follow the turns yet.  So the sign of the determinant at the start does not decide."""
    if name == "random":
        return nn.init.orthogonal_(torch.empty(group.order, group.order))  # (G, G)
    return cycle(group) if name == "cycle" else torch.eye(group.order) + noise * torch.randn(group.order, group.order)  # (G, G)


def Gamma(A, v, g):
    """Γ_g v = A^g v on the fiber axis: A (G, G), v (B, G, C), g (B,) long, 0 … G-1 → (B, G, C)."""
    powers = torch.stack([torch.linalg.matrix_power(A, k) for k in range(len(A))])  # (G, G, G): 1, A, A², …
    return powers[g] @ v  # (B, G, C)


def views(v, h, A, g0, g1, g2):
    """Eq. 3 with Γ instead of a moved base space: h((Γ_g1 v)(g0)) and h((Γ_g2 v)(g0)).

    v (B, G, C); h: head; A (G, G); g0 (B, |g0|), g1, g2 (B,) long → y1, y2 (B, D), the arguments of `losses.info_nce`.
    With A = cycle() this is losses.h_ssl; with A = 1 the two views are equal."""
    y = torch.cat([groups.bundle(Gamma(A, v, g), g0) for g in (g1, g2)])  # (2B, |g0|·C)
    return h(y).chunk(2)  # (B, D) twice


def equation1(moved, v, A, g, one_way=False, group=C4, over="null"):
    """The error of Eq. 1 over its null, in both directions if g has an inverse: the mean, over the g that occur, of

        ½ Σ ( ‖f(T_g x) - Γ_g f(x)‖² + ‖f(x) - Γ_(g⁻¹) f(T_g x)‖² )  /  Σ ‖f(T_g x) - f(x)‖²,    0 exact, 1 for Γ_g = 1

    moved = f(T_g x), v = f(x) (k, G, C); A (G, G); g (k,) long, 1 … G-1 → scalar.  Each sum is over the images with the same g, and
    over the fibers i for which g⁻¹·i exists: all for C4.
    One ratio for each image would be dominated by images that T_g hardly changes; one ratio for all g, by the g that change f most.

    The second direction needs no further image.  Γ_(g⁻¹) = A^(4-g) undoes Γ_g only if A⁴ = 1.  Without it
    (one_way) Γ need not be a group action: x is upright, so A = 0 with f(T_g x) = 0, or a projection, is also a solution.
    The null carries gradient, so the ratio rewards neither f → c·f nor f(T_g x) = f(x).  With a detached null, a smaller f or
    an invariant f would lower the loss.
    over="images" divides by the squared distance between two images instead (twice the variance of f(x) and f(T_g x)).  Then an invariant f
    is also a solution, with every Γ for which Γ_g f(x) = f(x).  Compare it with Γ = 1, which asks only for f(T_g x) = f(x).
    over="null" raises ValueError for 0/0, if the null is only rounding error: f is constant or invariant."""
    exists = (group.shift_base(g, torch.arange(group.order)) >= 0)[..., None]  # (k, G, 1)
    square = lambda a: a.new_zeros(group.order).index_add(0, g, (a * exists).pow(2).sum((1, 2)))  # (G,): a sum for each g
    error, null = square(moved - Gamma(A, v, g)), square(moved - v)  # (G,) twice
    back = group.inverse(g)  # (k,)
    if not one_way and (back >= 0).all():
        error = (error + square(v - Gamma(A, moved, back))) / 2  # (G,)
    drawn = torch.bincount(g, minlength=group.order) > 0  # (G,)
    if over == "images":
        return error.sum() / (len(v) * 2 * torch.cat([v, moved]).var(0).sum())  # ()
    if (null <= (10 * torch.finfo(v.dtype).eps) ** 2 * square(v))[drawn].any():
        raise ValueError("f gives x and T_g x the same features, so Eq. 1's error over its null is 0/0: f is constant or invariant")
    return (error[drawn] / null[drawn]).mean()  # ()


@torch.no_grad()
def measure(f, A, x, group=C4):
    """How f responds to T_g and how well A^g predicts it, for g = 1 … G-1: x (B, C_in, H, H), f in evaluation mode → a dict.

        invariance   √ mean ‖f(T_g x) - f(x)‖², in units of the distance between two different images (as losses.distances)
        equation1    √ mean ‖f(T_g x) - Γ_g f(x)‖², in the same units
        axis         √ mean ‖Γ_g f(x) - f(x)‖², how far Γ_g moves f(x), in the same units
        over_null    equation1 / invariance (the loss has its square): 0 exact, 1 if Γ_g does nothing.  A = 0 can also give less than 1: 1/√2 = 0.71 if f(x)
                     and f(T_g x) are orthogonal and equally long.  So read it together with `cyclic`
        orbit        the same ratio over all four turns of each x, since Eq. 1 must also hold for turned images
        kept         how far apart f puts T_g x of two images, over that for x: 0 if f(T_g x) is the same for all images, as with A = 0
        best         orbit for the best matrix M_g (G, G) of each g (least squares, no group law)
        cyclic       ‖A^G - 1‖ (Frobenius); eigenvalues: of A, [real, imaginary] each (a 4-cycle: 1, i, -1, -i)

    Distances are over the fibers i for which g⁻¹·i exists.  Shrinking twice by list factors is not one shrinking of the list, so for
    scale `orbit` is over x alone, equal to `over_null`.  A number that would be 0/0 is None."""
    n, closed = group.order, bool((group.inverse(torch.arange(group.order)) >= 0).all())
    v = torch.stack([as_fibers(f(group.T(x, torch.full((len(x),), k))), f.pool, n).double() for k in range(n)])  # (G, B, G, C): f(T_k x)
    A = A.detach().double()  # (G, G)
    rms = lambda a: a.pow(2).sum((-1, -2)).mean().sqrt()  # ()
    over = lambda a, b: float(a / b) if b > 1e-6 * rms(v) else None  # f computes in float32
    found = {name: [] for name in ("invariance", "equation1", "axis", "over_null", "orbit", "best", "kept")}
    for k in range(1, n):
        exists = group.shift_base(torch.tensor([k]), torch.arange(n))[0] >= 0  # (G,): where g⁻¹·i exists
        a, b = (v, v.roll(-k, 0)) if closed else (v[:1], v[k:k + 1])  # (4 or 1, B, G, C) twice: f(T_a x), f(T_k T_a x)
        rows, target = (t.transpose(2, 3).flatten(0, 2) for t in (a, b))  # (…, G) twice: rows · M_kᵀ = target
        M = (torch.linalg.pinv(rows.T @ rows) @ (rows.T @ target)).T  # (G, G)
        power = torch.linalg.matrix_power(A, k)  # (G, G)
        far = lambda p, q: rms((p - q)[..., exists, :])  # ()
        apart = lambda p: (2 * p[:, exists].flatten(1).var(0).sum()).sqrt()  # (): two images
        two_images = apart(v[0])  # ()
        null, error = far(b[0], a[0]), far(b[0], power @ a[0])  # () twice
        values = (over(null, two_images), over(error, two_images), over(far(power @ a[0], a[0]), two_images), over(error, null),
                  over(far(b, power @ a), far(b, a)), over(far(b, M @ a), far(b, a)), over(apart(v[k]), two_images))
        for name, value in zip(found, values):
            found[name].append(value)
    cyclic = (torch.linalg.matrix_power(A, n) - torch.eye(n).to(A)).norm()  # ()
    return found | dict(cyclic=float(cyclic), eigenvalues=torch.view_as_real(torch.linalg.eigvals(A)).tolist())


# ---------------------------------------------------------------- networks without structure
def networks(backbone, width, images, group="rot"):
    """f "mlp" | "cnn", its head h, probe.py's classifier and draws, for images (a data.Data) and group "rot" | "scale"."""
    order = GROUPS[group].order  # G
    c_in, size = images.train_x.shape[1], images.train_x.shape[-1]
    inside = dict(width=width, normalise=backbones.Normalise(*data.mean_std(images.train_x)))
    f = backbones.MLP(c_in * size * size, **inside) if backbone == "mlp" else backbones.CNN(c_in=c_in, order=order, **inside)
    features = f.order * f.channels  # all of z
    h = backbones.Head(features // order, [backbones.scaled(128, width)] * 3)
    classifier = backbones.MNISTClassifier(features, images.classes, convolve=backbone != "mlp", structured=False)
    return f, h, classifier, losses.Draws("hssl", group, False, f.order, size, 8, f.stride)


# ---------------------------------------------------------------- training, and the command
def learn(f, h, A, x, share=0.1, lam=10.0, one_way=False, epochs=20, batch_size=256, lr=2.0, warmup_epochs=1, seed=0, group=C4, over="null"):
    """Train f, h and A (if it requires a gradient) in place with L on images x (N, C_in, H, H) uint8 → the last loss.

    share: 0 … 1; lam: λ; epochs >= 1; lr: the peak rate is lr·batch_size/256; g0 is fiber 0.
    LARS and its schedule are as in train.py.  T_g changes copies of the first round(share·batch_size) images of each batch, and they pass
    through f with the batch, so BatchNorm sees both.  f and h stay in training mode.
    Raises ValueError if the loss is not finite, or as `equation1`."""
    params = [*f.parameters(), *h.parameters(), *([A] if A.requires_grad else [])]
    optimizer, per_epoch, k = train.LARS(params), len(x) // batch_size, round(share * batch_size)
    f.train(), h.train()
    for step in range(epochs * per_epoch):
        order = torch.randperm(len(x), generator=train.seeded(seed, step // per_epoch, 1))  # (N,)
        batch = x[order[step % per_epoch * batch_size:][:batch_size]].float() / 255  # (B, C_in, H, H)
        g1, g2 = torch.randint(group.order, (2, batch_size), generator=train.seeded(seed, step, 2))  # (B,) twice
        g = torch.randint(1, group.order, (k,), generator=train.seeded(seed, step, 3))  # (k,)
        v = as_fibers(f(torch.cat([batch, group.T(batch[:k], g)])), f.pool, group.order)  # (B + k, G, C)
        loss = losses.info_nce(*views(v[:batch_size], h, A.detach(), torch.zeros_like(g1)[:, None], g1, g2))  # ()
        if k and lam:
            loss = loss + lam * equation1(v[batch_size:], v[:k], A, g, one_way, group, over)  # ()
        if not loss.isfinite():
            raise ValueError(f"the loss is not finite at step {step}: take a smaller --lr or --lam")
        for part in optimizer.param_groups:
            part["lr"] = train.learning_rate(step, epochs * per_epoch, warmup_epochs * per_epoch, lr * batch_size / 256)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def parse(argv=None):
    """The command line → a namespace.  Raises UsageError."""
    p = launch.Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add, choice = p.add_argument, lambda name, values, text: p.add_argument(name, choices=values, default=values[0], help=f"{text} (default {values[0]})")
    choice("--dataset", ("mnist5k", "mnist"), "the images; mnist5k needs no download")
    add("--data-dir", default="data", help="folder of the images, also for downloads (default data)")
    choice("--group", tuple(GROUPS), "quarter turns, four fibers; or six scales, six fibers")
    choice("--backbone", ("mlp", "cnn"), "the MLP of Table 2, or its CNN with |G| times the channels")
    add("--width", type=launch.number(float, 0, 16, above=True), default=1.0, help="factor for every number of channels (default 1)")
    add("--share", type=launch.number(float, 0, 1), default=0.1, help="share of each batch that T_g changes (default 0.1)")
    add("--lam", type=launch.number(float, 0, 1e6), default=10.0, help="λ, the weight of the second term (default 10)")
    add("--one-way", action="store_true", help="use only f(T_g x) = Γ_g f(x), without the inverse direction")
    choice("--over", ("null", "images"), "what the error of Eq. 1 is divided by in the loss: its null, or the distance between two images")
    choice("--start", ("random", "identity", "cycle"), "the initial A")
    add("--given", action="store_true", help="A is the cyclic permutation, or the shift for scale, or 1 with --start identity; only f learns")
    add("--epochs", type=launch.number(int, 1, 1e6), default=20, help="passes over the training images (default 20)")
    add("--batch-size", type=launch.number(int, 2, 1e6), default=256, help="images in each step (default 256)")
    add("--lr", type=launch.number(float, 0, 1e6), default=2.0, help="base learning rate; the peak rate is lr * batch size / 256 (default 2)")
    add("--warmup-epochs", type=launch.number(float, 0, 1e6), default=1, help="epochs of linear warm-up before the cosine (default 1)")
    add("--seed", type=launch.number(int, 0, 2 ** 31 - 1), default=0, help="seed of the weights, A, the batches and the group elements (default 0)")
    add("--out", metavar="FILE", help="also append the row to this file")
    args = p.parse_args(argv)
    if args.given and args.start == "cycle":
        raise UsageError("--start cycle is what --given takes: leave it out")
    if args.over == "images" and (args.group == "scale" or not args.share * args.lam):
        raise UsageError("--over images needs --group rot, and --share and --lam above 0")
    if args.group == "scale" and (args.backbone == "mlp" or args.one_way):
        raise UsageError("--group scale needs --backbone cnn, as the MLP's 16 fibers are not a multiple of 6, and no --one-way, as scale has only one way")
    if not args.share * args.lam and (args.one_way or not args.given):
        raise UsageError("where --share or --lam is 0, A is not trained and Eq. 1 not used: add --given, leave out --one-way")
    if args.share and not round(args.share * args.batch_size):
        raise UsageError(f"--share {args.share:g} of --batch-size {args.batch_size} is no image: take --share 0, or at least {1 / args.batch_size:g}")
    args.start = "cycle" if args.given and args.start == "random" else args.start
    return args


def look(f, classifier, draws, A, images, seed, group):
    """The read-outs of probe.py, and `measure` on at most 1,024 test images: a dict.  f and classifier are not changed."""
    f, classifier = copy.deepcopy((f, classifier))  # the probe changes modes and BatchNorm
    found = probe.evaluate(f, classifier, draws, images, torch.device("cpu"), seed=seed)
    return {name: found[name] for name in probe.READOUTS} | measure(f, A, images.test_x[:1024].float() / 255, group)


def main(argv=None):
    """Train one setting and print one JSON row: its flags, the result of `look`, and that of the untrained network.  Raises UsageError and data.DataError."""
    args = parse(argv)
    launch.keep_freed_memory()
    images = data.load(args.dataset, args.data_dir)
    if args.batch_size > len(images.train_x):
        raise UsageError(f"--batch-size {args.batch_size} is more than the {len(images.train_x)} training images: take a smaller one")
    torch.manual_seed(args.seed)
    f, h, classifier, draws = networks(args.backbone, args.width, images, args.group)
    group = GROUPS[args.group]
    A = nn.Parameter(start(args.start, 0.0 if args.given else 0.01, group), requires_grad=not args.given)  # (G, G)
    untrained = look(f, classifier, draws, A, images, args.seed, group)
    try:
        loss = learn(f, h, A, images.train_x, args.share, args.lam, args.one_way, args.epochs, args.batch_size, args.lr, args.warmup_epochs, args.seed, group, args.over)
    except ValueError as error:
        raise UsageError(str(error)) from None
    row = {name: value for name, value in vars(args).items() if name not in ("data_dir", "out")}
    row |= dict(loss=loss, train_images=len(images.train_y), test_images=len(images.test_y), code=launch.code_version())
    row |= look(f, classifier, draws, A, images, args.seed, group) | dict(untrained=untrained, cpu_seconds=round(time.process_time(), 1))
    if args.out:
        with open(args.out, "a") as file:
            file.write(json.dumps(row) + "\n")
    launch.say(json.dumps(row))


if __name__ == "__main__":
    sys.exit(launch.command(main, "homomorphism.py"))
