"""Notebook 06's code: a network without structure learns Eq. 1 from turned images.

    python notebooks/homomorphism.py              # an MLP on 4,000 digits, about a minute
    python notebooks/homomorphism.py --learn-A    # Γ is learned too

The paper names "the integration of learned homomorphisms with H-SSL" as future work (Section 5).
This is a first version of it, for quarter turns (C4); it is not in the paper.

f's features are read as four fibers v = f(x) (B, 4, C).  One matrix A (4, 4) stands for a turn by
90°, and Γ_g = A^g acts on the fibers, the same for all channels.  What is learned:

    L = InfoNCE( h((Γ_g1 v)(g0)), h((Γ_g2 v)(g0)) )  +  λ · equation1

The first term is H-SSL (Eq. 3) with (Γ_g v)(g0) for v(g⁻¹·g0).  The second is the error of Eq. 1,
squared.  It needs turned images, but only for a share of each batch.  Only the second term trains
A: A = I would solve the first.

Needs backbones.py, data.py, groups.py, losses.py and train.py, one folder up.
"""

import argparse
import os
import sys

import torch
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import backbones
import data
import groups
import losses
import train

C4 = groups.Rotation()
LAMBDA = 10.0  # λ
RATE = 2.0  # the peak learning rate


# ------------------------------------------------------------------------------ f, v and Γ
def network(images, width=0.5):
    """Table 2's MLP f for a data.Data, and a head h for one of its four fibers."""
    mean, std = data.mean_std(images.train_x)
    size = images.train_x.shape[-1]
    f, _, _ = backbones.build("mnist", "rot", "mlp", width, size=size, mean=mean, std=std)
    sizes = [backbones.scaled(128, width)] * 3
    return f, backbones.Head(f.group.order // 4 * f.channels, sizes)


def four_fibers(f, x):
    """v = f(x), read as four fibers: x (B, C_in, H, H) → (B, 4, C).

    The MLP's 16 slots become four with four times the channels; a network for turns has four."""
    return f.read(f(x)).unflatten(1, (4, -1)).flatten(2)


def cycle():
    """The given A (4, 4): what a quarter turn does to a network with built-in structure,
    (A v)(i) = v(i - 1).  Its eigenvalues are 1, i, -1, -i."""
    return torch.eye(4).roll(1, 0)


def Gamma(A, v, g):
    """Γ_g v = A^g v on the fibers: A (4, 4), v (B, 4, C), g (B,) in 0 … 3 → (B, 4, C)."""
    powers = [torch.linalg.matrix_power(A, k) for k in range(4)]
    return torch.stack(powers)[g] @ v


# ------------------------------------------------------------------------------ the two terms
def views(v, h, A, g0, g1, g2):
    """Eq. 3's views with Γ instead of a moved base space: h((Γ_g1 v)(g0)) and h((Γ_g2 v)(g0)).

    v           (B, 4, C)
    h           head
    A           (4, 4); with `cycle()` these are the views of losses.h_ssl
    g0, g1, g2  (B, |g0|), (B,) and (B,) long
    Returns y1, y2 (B, D), for losses.info_nce."""
    y1 = groups.bundle(Gamma(A, v, g1), g0)  # (B, |g0|·C)
    y2 = groups.bundle(Gamma(A, v, g2), g0)
    return h(torch.cat([y1, y2])).chunk(2)


def equation1(moved, v, A, g, one_way=False):
    """The error of Eq. 1, squared and in both directions; the mean over the g that occur:

        ½ Σ ( ‖f(T_g x) - Γ_g f(x)‖² + ‖f(x) - Γ_(g⁻¹) f(T_g x)‖² )  /  Σ ‖f(T_g x) - f(x)‖²

    Each sum is over the images with the same g.  0 is exact; 1 is no better than Γ_g = I.  The null
    has a gradient too, so neither smaller features nor invariant ones make the ratio smaller.

    moved, v  f(T_g x) and f(x), (B, 4, C) each
    A, g      (4, 4), and (B,) in 1 … 3
    one_way   leave the second direction out.  Then A = 0 with f(T_g x) = 0 is a solution
    Returns a scalar.  ValueError for 0/0: f is constant or invariant, up to rounding."""
    ratios = []
    for k in g.unique():
        a = v[g == k]  # (n, 4, C)
        b = moved[g == k]
        forth = torch.full((len(a),), int(k))  # (n,)
        error = (b - Gamma(A, a, forth)).pow(2).sum()
        if not one_way:
            error = (error + (a - Gamma(A, b, C4.inverse(forth))).pow(2).sum()) / 2
        null = (b - a).pow(2).sum()
        if null <= (10 * torch.finfo(a.dtype).eps) ** 2 * a.pow(2).sum():
            raise ValueError("Eq. 1's error over its null is 0/0: f is constant or invariant")
        ratios.append(error / null)
    return torch.stack(ratios).mean()


# ------------------------------------------------------------------------------ training
def learn(f, h, A, x, share=0.1, epochs=20, batch_size=256, seed=0, watch=None):
    """Train f, h and (if it requires a gradient) A in place, with LARS as in train.py.

    f, h   from `network`; A (4, 4)
    x      (N, C_in, H, H) uint8
    share  of each batch, the first images, that are also seen turned; 0: Eq. 3 alone
    watch  called with the number of each step before it
    Returns the last loss.  ValueError as in `equation1`."""
    learned = [p for p in (*f.parameters(), *h.parameters(), A) if p.requires_grad]
    optimizer = train.LARS(learned)
    per_epoch = len(x) // batch_size
    turned = round(share * batch_size)
    f.train()
    h.train()
    for step in range(epochs * per_epoch):
        if watch is not None:
            watch(step)
        order = torch.randperm(len(x), generator=train.seeded(seed, step // per_epoch, 1))  # (N,)
        batch = order[step % per_epoch * batch_size :][:batch_size]
        images = x[batch].float() / 255  # (B, C_in, H, H)
        g1, g2 = torch.randint(4, (2, batch_size), generator=train.seeded(seed, step, 2))
        g = torch.randint(1, 4, (turned,), generator=train.seeded(seed, step, 3))  # (n,)
        both = torch.cat([images, C4.T(images[:turned], g)])  # (B + n, C_in, H, H)
        v, moved = four_fibers(f, both).split([batch_size, turned])
        g0 = torch.zeros(batch_size, 1, dtype=torch.long)
        loss = losses.info_nce(*views(v, h, A.detach(), g0, g1, g2))
        if turned:
            loss = loss + LAMBDA * equation1(moved, v[:turned], A, g)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step, epochs * per_epoch, per_epoch, RATE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# ------------------------------------------------------------------------------ what was learned
@torch.no_grad()
def measure(f, A, x):
    """How f responds to a turn and how well A^g predicts it: a dict of lists, for g = 1, 2, 3.

    Root mean squares over images x (B, C_in, H, H); f in evaluation mode.

        invariance   ‖f(T_g x) - f(x)‖, the change under g; 1: the distance of two different images
        equation1    ‖f(T_g x) - Γ_g f(x)‖, likewise
        axis         ‖Γ_g f(x) - f(x)‖, likewise
        over_null    equation1 / invariance, the error of Eq. 1
        orbit        the same ratio over all four turns of each x, since `learn` sees upright pairs
    """
    turns = [torch.full((len(x),), k) for k in range(4)]
    v = torch.stack([four_fibers(f, C4.T(x, g)) for g in turns]).double()  # (4, B, 4, C)
    A = A.detach().double()
    two_images = (2 * v[0].flatten(1).var(0).sum()).sqrt()
    found = {name: [] for name in ("invariance", "equation1", "axis", "over_null", "orbit")}
    for k in (1, 2, 3):
        predicted = torch.linalg.matrix_power(A, k) @ v  # (4, B, 4, C): Γ_k f(T_a x)
        really = v.roll(-k, 0)  # f(T_k T_a x)
        null = rms(really[0] - v[0])
        error = rms(really[0] - predicted[0])
        found["invariance"].append(float(null / two_images))
        found["equation1"].append(float(error / two_images))
        found["axis"].append(float(rms(predicted[0] - v[0]) / two_images))
        found["over_null"].append(float(error / null))
        found["orbit"].append(float(rms(really - predicted) / rms(really - v)))
    return found


def rms(a):
    """The root mean square of the lengths of features a (…, 4, C)."""
    return a.pow(2).sum((-1, -2)).mean().sqrt()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--share", type=float, default=0.1, help="of each batch that is also turned")
    p.add_argument("--learn-A", action="store_true", help="start with a random A, and train it")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    images = data.load("mnist5k")
    torch.manual_seed(args.seed)
    f, h = network(images)
    A = nn.Parameter(nn.init.orthogonal_(torch.empty(4, 4))) if args.learn_A else cycle()
    learn(f, h, A, images.train_x, args.share, seed=args.seed)
    for name, values in measure(f.eval(), A, images.test_x.float() / 255).items():
        print(f"{name:11}", " ".join(f"{value:.2f}" for value in values), "  g = 1, 2, 3")


if __name__ == "__main__":
    main()
