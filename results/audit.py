"""Is the task trivial?  How often do counts find the changed copy of an image, without a network?

    python results/audit.py --dataset folder --data-dir pictures  # your own images, about a minute
    python results/audit.py --data-dir data --save                # MNIST → results/audit.jsonl

A loss that compares two views is solved by any numbers that both views share and other images do
not have.  So take an image and T_g of it, with a random g other than e.  With an augmentation each
of them is then changed once more, by itself.  For how many of 1,000 images is the second view
nearest to the first one of the same image?

    grey bins    eight grey values, counted in each channel
    kept counts  numbers that g leaves unchanged or nearly so: these bins, edges, rings or moments

The distance is Euclidean, after a linear map that makes the differences of two views equally large
in all directions.  It is learned on training images, as the first layer of a network would be.  If
the counts find nearly all copies, a network can solve the task with them and need not learn more.
What it does learn is another question.  (The pairs are those of A-SSL.  H-SSL has them, too, where
Eq. 1 holds.)  With labels the last line of each group says how well a linear classifier reads the
classes from the counts.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import data
import probe

AUGMENTS = ("none", "shift", "jitter")
HEADS = ("group", "augmentation", "grey bins, %", "kept counts, %", "chance, %")
LINE = "{:<8}{:<14}{:>15}{:>15}{:>15}"


def counts(x, group):
    """Numbers that g leaves unchanged, for scale nearly.  x (B, C_in, H, H) in 0 … 1 → (B, n).

    rot    8 grey bins a channel, ink, 3 lengths of edges, the ink in 8 rings about the centre
    trans  the bins, ink and edges, and 12 central moments in units of the ink's own size
    scale  these moments
    """
    bins = probe.grey_bins(x)  # (B, 8·C_in)
    x = x.double().mean(1)  # (B, H, H)
    size = x.shape[-1]
    ink = x.sum((1, 2)).clamp(min=1e-9)
    down = x.diff(dim=1).unfold(2, 2, 1).mean(-1)  # (B, H - 1, H - 1), in the middle of 4 pixels
    right = x.diff(dim=2).unfold(1, 2, 1).mean(-1)
    edges = [(down**2 + right**2).sqrt(), down.abs() + right.abs(), down**2 + right**2]
    edges = torch.stack([edge.sum((1, 2)) for edge in edges], 1)  # (B, 3)
    place = torch.arange(size, dtype=torch.float64)
    if group == "rot":
        from_centre = place - (size - 1) / 2
        radius = (from_centre[:, None] ** 2 + from_centre**2).sqrt()  # (H, H)
        rings = [(x * (radius // (size / 16) == i)).sum((1, 2)) for i in range(8)]
        return torch.cat([bins, ink[:, None], edges, torch.stack(rings, 1)], 1)
    moments = []
    rows = (x.sum(2) * place).sum(1) / ink  # the centre of the ink
    columns = (x.sum(1) * place).sum(1) / ink
    for order in (2, 3, 4):
        for p in range(order + 1):
            weights = (place - rows[:, None])[:, :, None] ** p
            weights = weights * (place - columns[:, None])[:, None] ** (order - p)
            moments.append((x * weights).sum((1, 2)) / ink ** (1 + order / 2))
    moments = torch.stack(moments, 1)  # (B, 12)
    if group == "scale":
        return moments
    return torch.cat([bins, ink[:, None], edges, moments], 1)


def two_views(x, group, augment, generator):
    """x (B, C_in, H, H) in 0 … 1 → x and T_g x, each with an augmentation of its own."""
    image_group = probe.acts_on_images(group, x.shape[-1])
    elements = image_group.augmentations()[1:]  # (M,): e is the first
    drawn = torch.randint(len(elements), (len(x),), generator=generator)
    views = [x, image_group.T(x, elements[drawn])]
    if augment == "none":
        return views
    u = torch.rand(2, len(x), 9, generator=generator)
    return [getattr(data, augment)(view, u_view) for view, u_view in zip(views, u)]


def found(learn, test):
    """Of two views' counts (N, n), and of those to be tested (B, n): per cent that are found."""
    a, b = (s.numpy() for s in learn)
    middle, spread = a.mean(0), a.std(0) + 1e-9  # (n,) twice
    difference = (a - b) / spread  # (N, n)
    within = difference.T @ difference / len(difference)  # (n, n)
    # a number that never differs would get an infinite weight
    L = np.linalg.cholesky(np.linalg.inv(within + 1e-6 * np.eye(len(within))))
    one, two = (torch.from_numpy((s.numpy() - middle) / spread @ L) for s in test)  # (B, n)
    return probe.share_found(-torch.cdist(two, one))


def audit(images, group, augment, seed=0):
    """How often counts find the changed copy → grey bins, kept counts, chance: per cent.

    images   a data.Data
    group    "rot", "scale" or "trans"
    augment  "none", "shift" or "jitter"
    """
    generator = torch.Generator().manual_seed(seed)
    learn = two_views(images.train_x[:4000] / 255, group, augment, generator)
    test = two_views(images.test_x[:1000] / 255, group, augment, generator)
    learn_all, test_all = ([counts(x, group) for x in views] for views in (learn, test))
    learn_bins, test_bins = ([probe.grey_bins(x) for x in views] for views in (learn, test))
    return found(learn_bins, test_bins), found(learn_all, test_all), 100 / len(test[0])


def classes(images, group):
    """How well a linear classifier reads the classes from grey bins and from kept counts → per cent
    twice, and the share of the most frequent class."""
    train_x, test_x = images.train_x[:4000] / 255, images.test_x[:1000] / 255
    train_y, test_y = images.train_y[:4000], images.test_y[:1000]
    pairs = [(probe.grey_bins(x), counts(x, group)) for x in (train_x, test_x)]
    read = []
    for train, test in zip(*pairs):
        read += probe.linear_accuracy(train, train_y, (test, test_y))
    return *read, 100 * float(test_y.bincount().max() / len(test_y))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--dataset", default="mnist", help="see data.py (default mnist)")
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--train-size", type=int, metavar="N", help="read N training images (or all)")
    p.add_argument("--test-size", type=int, metavar="N", help="read N test images (or all)")
    p.add_argument("--seeds", type=int, default=3, help="draws of g and u (default 3)")
    p.add_argument("--save", action="store_true", help="also add the rows to results/audit.jsonl")
    args = p.parse_args()
    images = data.load(args.dataset, args.data_dir, args.train_size, 0, args.test_size)
    print(LINE.format(*HEADS))
    rows = []
    for group in ("rot", "scale", "trans"):
        lines = []
        for augment in AUGMENTS:
            measured = [audit(images, group, augment, seed) for seed in range(args.seeds)]
            lines.append((augment, *np.mean(measured, 0)))
        if images.train_y is not None:
            lines.append(("reads classes", *classes(images, group)))
        for what, *values in lines:
            print(LINE.format(group, what, *(f"{value:.1f}" for value in values)), flush=True)
        rows += [(group, *line) for line in lines]
    if args.save:
        with open(os.path.join(ROOT, "results", "audit.jsonl"), "a") as file:
            for row in rows:
                named = dict(zip(("group", "what", "bins", "counts", "chance"), row))
                file.write(json.dumps(dict(dataset=args.dataset, seeds=args.seeds) | named) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (data.UsageError, OSError) as error:
        print(f"audit.py: {error}", file=sys.stderr)
        sys.exit(2)
