"""Measure a network: how its features respond to T_g, and what a simple classifier reads off them.

    python probe.py runs/mnist5k-rot-hssl-equivariant-seed0  # prints a table, writes probe.json

Needs four siblings: backbones.py, data.py, groups.py, losses.py (and what they need).

Distances and retrieval, on up to 1,000 test images, for each g that `study` names:
    invariance   ‖f(T_g x)(g0) - f(x)(g0)‖        the change under g; null: 1, two different images
    equation1    ‖f(T_g x)(g0) - f(x)(g⁻¹·g0)‖    how far Γ_g misses; null: invariance
    axis         ‖f(x)(g⁻¹·g0) - f(x)(g0)‖        how much the slots of one map differ
    retrieval    per cent of images that are the nearest of all to their changed copy, by f
    bins         the same with eight grey values counted in the image, without a network

Read-outs, in per cent of the test images.  The classifiers learn on images as they are.  `_changed`
reads test images that were changed by a random g other than e (shifts: up to 20 %).
    top1                     the classifier of Appendix B with a new linear layer
    linear_one, knn_one      a linear classifier and 20 nearest neighbours on one slot, f(x)(g0)
    linear_all, knn_all      the same on the maximum over all slots.  In an exactly equivariant
                             network this is invariant for nothing, trained or not
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

import backbones
import data
import groups
import losses
from data import UsageError

CHANGE = ("invariance", "equation1", "axis", "retrieval", "bins")
ROWS = (  # of the printed table: name, label, null
    ("error", "error of Eq. 1", "1"),
    ("invariance", "change under g", "1"),
    ("retrieval", "finds its copy, %", ""),
    ("linear_one", "linear, one slot, %", ""),
    ("linear_one_changed", "  changed by g", ""),
    ("linear_all", "linear, all slots, %", ""),
    ("linear_all_changed", "  changed by g", ""),
    ("top1", "top-1, %", ""),
)


# ---- distances and retrieval
def full_float32():
    """Turn off TF32, with which a GPU rounds float32 to 10 bits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@torch.no_grad()
def distances(f, x, image_group, elements, g0):
    """How f responds to T_g, for each g in `elements`: see the top of this file.

    The three distances are root mean squares over images, divided by that of two different images,
    √ mean over i ≠ k of ‖f(x_i)(g0) - f(x_k)(g0)‖².  If f is exactly equivariant, equation1 is 0
    and invariance equals axis (not for scale: the mean of a shrunk map is another).  On a GPU call
    `full_float32` first, or an exact network looks inexact.

    f            backbone in evaluation mode
    x            (B, C_in, H, W) images in 0 … 1
    image_group  acts on the images
    elements     (M,) long
    g0           (|g0|,) long, the slots that are read
    Returns a dict of lists of M floats.  equation1 and axis are None if no group acts on z.  A
    distance is None if f gives all images the same features, up to rounding, or for one image.
    Raises ValueError if f is in training mode, or if some g⁻¹·g0 is past the end."""
    if f.training:
        raise ValueError("distances need f in evaluation mode: f.eval()")

    def read(images, base):  # (|g0|,) → (B, |g0|·C), in little memory
        parts = [f.bundle(part, base.expand(len(part), -1)) for part in images.split(128)]
        return torch.cat(parts).cpu().double()

    def rms(a):  # (B, |g0|·C) → ()
        return a.pow(2).sum(1).mean().sqrt()

    here = read(x, g0)  # (B, |g0|·C)
    squares = (here - here.mean(0)).pow(2).sum()
    two_images = (2 * squares / max(1, len(x) - 1)).sqrt()  # over i ≠ k
    collapsed = bool(two_images <= 8 * torch.finfo(x.dtype).eps * rms(here))
    keys = F.normalize(here)
    grey = grey_bins(x)
    found = {name: [] for name in CHANGE}
    for g in elements:
        changed = image_group.T(x, g.expand(len(x)))  # (B, C_in, H, W)
        moved = read(changed, g0)  # (B, |g0|·C)
        compared = dict(invariance=(moved, here))
        if not isinstance(f.group, groups.Numbered):
            along = read(x, f.group.shift_base(g[None], g0)[0])  # (B, |g0|·C)
            compared |= dict(equation1=(moved, along), axis=(along, here))
        for name, (a, b) in compared.items():
            found[name].append(None if collapsed else float(rms(a - b) / two_images))
        found["retrieval"].append(share_found(F.normalize(moved) @ keys.T))
        found["bins"].append(share_found(-torch.cdist(grey_bins(changed), grey, p=1)))
    return {name: values or None for name, values in found.items()}


def share_found(similarity):
    """Per cent of rows i of (B, B) whose largest entry is entry i."""
    hits = similarity.argmax(1) == torch.arange(len(similarity))
    return 100 * float(hits.double().mean())


def grey_bins(x, bins=8):
    """How many pixels of each channel have each of eight grey values.

    x (B, C_in, H, W) in 0 … 1 → (B, 8·C_in) float64, on the CPU."""
    level = (x.cpu() * bins).long().clamp(0, bins - 1).flatten(2)  # (B, C_in, H·W)
    return torch.stack([(level == b).sum(2) for b in range(bins)], 2).flatten(1).double()


def study(f, image_group, size):
    """What `distances` asks of a network → the group for images, elements (M,), g0.

    All g other than e; of translations the shifts down by whole strides, up to half the map, read
    at its centre.  Where no group acts on z, all of z is read.  size: H of the images."""
    structured = not isinstance(f.group, groups.Numbered)
    if image_group.spatial:
        image_group = f.group if structured else groups.Translation(size // 4, size // 4, 4)
        elements = torch.arange(1, image_group.height // 2 + 1) * image_group.width
    else:
        elements = torch.arange(1, image_group.order)
    g0 = torch.tensor([centre(f)]) if structured else torch.arange(f.group.order)
    return image_group, elements, g0


def centre(f):
    """The slot that is read if one is enough: the first, for translation the central position."""
    if f.group.spatial:
        return f.group.height // 2 * f.group.width + f.group.width // 2
    return 0


# ---- read-outs
@torch.no_grad()
def encode(f, classifier, x, device, dtype=None, image_group=None, batch=256):
    """Frozen features of images, three float32 tensors on the CPU.

    x            (N, C_in, H, W) uint8
    dtype        for autocast; None: none
    image_group  if given, each image is first changed by a random T_g other than e
    Returns `classifier.features(z)` (N, C'), one slot (N, C), and all slots' maximum (N, C).
    Where no group acts on z such a maximum has no meaning: there the last is all of z, (N, G·C)."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for part in tqdm(x.split(batch), "encode", leave=False, disable=None):  # only in a terminal
        part = part.to(device) / 255  # (B, C_in, H, W)
        if image_group is not None:
            elements = image_group.augmentations()[1:]  # (M,): e is the first
            drawn = torch.randint(len(elements), (len(part),), generator=generator)
            part = image_group.T(part, elements[drawn].to(device))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            z = f(part)  # (B, C, G, H', W')
            features = classifier.features(z).float().cpu()  # (B, C')
        fibers = f.read(z.float()).cpu()  # (B, |G|, C)
        every = fibers.flatten(1) if isinstance(f.group, groups.Numbered) else fibers.amax(1)
        parts.append((features, fibers[:, centre(f)], every))
    return [torch.cat(column) for column in zip(*parts)]


def linear_accuracy(train_v, train_y, *tests):
    """Logistic regression on standardised features, converged, C chosen on a fifth of the training
    images (with fewer than five images a class C = 1).

    train_v, train_y  (N, C) and (N,)
    tests             pairs of features (M, C) and labels (M,)
    Returns the accuracy on each test in per cent."""
    # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, ShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    grid = {"logisticregression__C": (0.001, 0.01, 0.1, 1.0, 10.0)}
    split = ShuffleSplit(1, test_size=0.2, random_state=0)
    learned, _ = next(split.split(train_v))
    enough = len(train_y) >= 5 * len(train_y.unique())
    if enough and len(train_y[learned].unique()) > 1:
        model = GridSearchCV(model, grid, cv=split)
    with threadpool_limits(1):  # with two threads it takes four times as long
        model.fit(train_v.double().numpy(), train_y.numpy())
    return [100 * model.score(v.double().numpy(), y.numpy()) for v, y in tests]


def knn_accuracy(train_v, train_y, *tests, k=20, tau=0.07):
    """k nearest neighbours by cosine s, votes exp(s/τ) (Wu et al. 2018).  As linear_accuracy."""
    from sklearn.neighbors import KNeighborsClassifier

    def votes(distance):  # 1 - s
        return np.exp((1 - distance) / tau)

    model = KNeighborsClassifier(min(k, len(train_y)), metric="cosine", weights=votes)
    model.fit(train_v.numpy(), train_y.numpy())
    return [100 * model.score(v.numpy(), y.numpy()) for v, y in tests]


def feed(f, classifier, x, device, dtype=None):
    """Give every BatchNorm that has seen no image the statistics of up to 2,048 images x.

    Otherwise an untrained network would not normalise, and comparing it would not be fair."""
    norms = [m for m in (*f.modules(), *classifier.modules()) if isinstance(m, _BatchNorm)]
    fresh = [m for m in norms if not int(m.num_batches_tracked)]
    momenta = [norm.momentum for norm in fresh]
    for norm in fresh:
        norm.train()
        norm.momentum = None  # a plain average over batches
    if fresh:
        n = min(2048, len(x))
        encode(f, classifier, x[: n - (n % 256 == 1)], device, dtype)  # one image has no variance
    for norm, momentum in zip(fresh, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def evaluate(f, classifier, image_group, images, device, dtype=None, most=None):
    """All measures: a dict, see the top of this file.  Without labels only distances and retrieval.

    f and classifier are left in evaluation mode, and their weights do not change.

    image_group  acts on the images
    dtype        for autocast, of the read-outs; distances are computed in full precision
    most         learn the read-outs on so many training images (None: all)"""
    f.eval()
    classifier.eval()
    train_x = images.train_x[:most]
    train_y = None if images.train_y is None else images.train_y[:most]
    feed(f, classifier, images.train_x, device, dtype)
    x = images.test_x[:1000].to(device) / 255
    group, elements, g0 = study(f, image_group, x.shape[-1])
    found = distances(f, x, group, elements.to(device), g0.to(device))
    if train_y is not None and len(train_y.unique()) > 1:
        test_y = images.test_y
        train = encode(f, classifier, train_x, device, dtype)
        test = encode(f, classifier, images.test_x, device, dtype)
        changed = encode(f, classifier, images.test_x, device, dtype, image_group)
        found["top1"] = linear_accuracy(train[0], train_y, (test[0], test_y))[0]
        for slots, i in (("one", 1), ("all", 2)):
            for name, accuracy in (("linear", linear_accuracy), ("knn", knn_accuracy)):
                as_is, on_changed = accuracy(
                    train[i], train_y, (test[i], test_y), (changed[i], test_y)
                )
                found |= {f"{name}_{slots}": as_is, f"{name}_{slots}_changed": on_changed}
    return found | dict(train_images=len(train_x), test_images=len(images.test_x))


def mean_over_g(found, name):
    """A measure as one number: the mean over g; "error" is equation1 over invariance.  Or None."""
    if name == "error":
        both = found["equation1"], found["invariance"]
        if None in both or None in both[0]:
            return None
        values = [e / (i or 1) for e, i in zip(*both, strict=True)]
    else:
        values = found.get(name)
    if not isinstance(values, list):
        return values
    return None if None in values else sum(values) / len(values)


def report(result):
    """The measures as a table, beside those of the untrained network if the result holds them."""
    columns = {"trained" if result["epochs"] else "untrained": result}
    if "untrained" in result:
        columns = {"untrained": result["untrained"]} | columns

    def cell(v):
        if v is None:
            return f"{'-':>11}"
        return f"{v:11.1e}" if 0 < v < 1e-3 else f"{v:11.2f}"

    lines = [" " * 20 + "".join(f"{title:>11}" for title in columns) + "   null"]
    for name, label, null in ROWS:
        values = [mean_over_g(found, name) for found in columns.values()]
        if set(values) == {None}:
            continue  # without labels, or without a Γ_g
        cells = "".join(map(cell, values))
        if name == "retrieval":
            chance = 100 / min(1000, result["test_images"])
            null = f"{chance:.2g} by chance; eight grey values: {mean_over_g(result, 'bins'):.1f}"
        lines.append(f"{label:20}{cells}   {null}".rstrip())
    if mean_over_g(result, "invariance") is None and result["test_images"] > 1:
        lines.append("collapsed: all test images have the same features")
    return "\n".join(lines)


# ---- networks
def acts_on_images(name, size):
    """The group of `--group name` for images of size × size px."""
    if name == "trans":
        return groups.Translation(size, size)
    return dict(rot=groups.Rotation, scale=groups.Scale, rotscale=groups.RotationScale)[name]()


def network(config, images):
    """What a run's settings ask for → f, h, the classifier, what draws the pairs (see losses.py),
    and the group that acts on images.  Raises UsageError if they do not go together."""
    c_in, px = images.train_x.shape[1], images.train_x.shape[-1]
    image_group = acts_on_images(config["group"], px)
    about = dict(size=px, c_in=c_in, classes=max(2, len(images.classes)))
    about["mean"], about["std"] = data.mean_std(images.train_x)
    for name in ("group", "backbone", "width", "base_size", "functions", "extent", "pool"):
        about[name] = config[name]
    size = config["base_size"]
    shared = config["draw"] == "batch"
    try:
        f, h, classifier = backbones.build(images.kind, **about)
        f.sampled = f.independent and config["slots"] == "sampled"
        if config["epsilon"]:
            backbones.perturb(f, config["epsilon"], config["seed"])
        if config["pairs"] == "matched":
            equation = losses.h_ssl if config["loss"] == "hssl" else losses.a_ssl
            pairs = losses.Matched(f.group, equation, config["strength"])
        elif config["loss"] == "hssl":
            limit = config["max_distance"]
            pairs = losses.HSSL(f.group, size, limit, config["distance"], shared)
        else:
            pairs = losses.ASSL(f.group, image_group, size, config["strength"], shared)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return f, h, classifier, pairs, image_group


def open_run(folder, data_dir=None):
    """A run of train.py → f and the classifier with its weights, the group that acts on images,
    the images, and the settings with step and steps.  Raises UsageError."""
    path = os.path.join(folder, "checkpoint.pt")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config = saved["config"] | {name: saved[name] for name in ("step", "steps", "precision")}
        chosen = [config[name] for name in ("train_size", "seed", "test_size", "image_size")]
    except Exception as error:  # missing, truncated or foreign: torch raises many types
        raise UsageError(
            f"{folder} holds no run ({type(error).__name__}): name a folder that train.py wrote"
        ) from None
    data_dir = data_dir or saved["data_dir"]
    images = data.load(config["dataset"], data_dir, *chosen)
    if data.fingerprint(images.train_x) != saved["images"]:
        print("note: these are not the images of the training", file=sys.stderr)
    f, _, classifier, _, image_group = network(config, images)
    # the classifier's linear layer is fitted anew, so that other classes are no matter
    both = torch.nn.ModuleDict(dict(f=f, classifier=classifier))
    weights = {k: v for k, v in saved["model"].items() if k.startswith(("f.", "classifier."))}
    fresh = {k: v for k, v in both.state_dict().items() if k.startswith("classifier.linear")}
    try:
        both.load_state_dict(weights | fresh)
    except RuntimeError:
        raise UsageError(
            f"the network of {folder} does not fit the images in {data_dir!r}: name the --data-dir "
            "that it was trained on, or images of the same size"
        ) from None
    return f, classifier, image_group, images, config


def draw_curves(folder):
    """Draw curves.png from metrics.jsonl: the loss, the two views, and the distances."""
    from matplotlib.figure import Figure  # slow to import

    with open(os.path.join(folder, "metrics.jsonl")) as file:
        rows = [row for row in map(json.loads, file) if "loss" in row]
    panels = {
        "the loss": ("loss", "chance"),
        "the two views in a batch": ("positive_similarity", "negative_similarity", "spread"),
        "distances (1: two different images)": ("invariance", "equation1"),
    }
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for ax, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            values = [row.get(name) for row in rows]  # a supervised run has only the loss
            ax.plot([row["step"] for row in rows], values, label=name.replace("_", " "))
        ax.set(title=title, xlabel="step")
        ax.legend(fontsize=9)
    figure.savefig(os.path.join(folder, "curves.png"), dpi=110)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("run", help="a run folder of train.py")
    p.add_argument("--data-dir", help="folder of the images (default: that of the training)")
    p.add_argument("--probe-size", type=int, metavar="N", help="learn on N images (default all)")
    args = p.parse_args(argv)
    if args.probe_size is not None and args.probe_size < 2:
        raise UsageError(f"--probe-size {args.probe_size} is out of range: take 2 or more")
    f, classifier, image_group, images, config = open_run(args.run, args.data_dir)
    if config["step"] < config["steps"]:
        done = f"{config['step']} of {config['steps']} steps are done"
        print(f"note: {done}; train.py goes on with it", file=sys.stderr)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = None if config["precision"] == "float32" else getattr(torch, config["precision"])
    full_float32()
    f.to(device)
    classifier.to(device)
    found = evaluate(f, classifier, image_group, images, device, dtype, args.probe_size)
    with open(os.path.join(args.run, "probe.json"), "w") as file:
        json.dump(found | config, file, indent=1)
    print(report(found | config))


if __name__ == "__main__":
    try:
        main()
    except (UsageError, OSError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        sys.exit(2)
