"""Evaluate a run: how its frozen features respond to T_g, and what a simple classifier reads off them.

    python probe.py runs/mnist5k-scale-hssl-equivariant-seed0     # prints a table, writes probe.json

Needs six siblings: backbones.py, checkpoint.py, data.py, groups.py, launch.py, losses.py (and what they need).

Distances and retrieval, for each g other than e, on up to 1,000 test images (`distances`):
    invariance   ‖f(T_g x)(g0) - f(x)(g0)‖        the change under g; null: 1, as far as two different images
    equation1    ‖f(T_g x)(g0) - f(x)(g⁻¹·g0)‖    the error of Eq. 1; null: invariance, as if Γ_g did nothing
    axis         ‖f(x)(g⁻¹·g0) - f(x)(g0)‖        how much the slots of one map differ
    retrieval    per cent of images x that are the nearest of all to f(T_g x)(g0), by cosine
    bins         the same with eight grey values counted in the image, without a network

Read-outs, in per cent of the test images.  The classifiers learn on images as they are; `_changed` reads test images that
were changed by a random g other than e.
    top1         the classifier of Appendix B with a new linear layer
    linear_one   a linear classifier on one slot, f(x)(g0)
    linear_all   a linear classifier on the maximum over all slots.  In an exactly equivariant network this is invariant for
                 nothing: untrained it reads turned images as well as upright ones
    knn_one, knn_all   20 nearest neighbours on the same two features
"""
import json
import os
import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

import backbones
import checkpoint
import data
import groups
import launch
import losses

CHANGE = ("invariance", "equation1", "axis", "retrieval", "bins")
READOUTS = ("top1",) + tuple(f"{kind}_{slots}{changed}" for kind in ("linear", "knn")
                             for slots in ("one", "all") for changed in ("", "_changed"))


# ---------------------------------------------------------------- distances
@torch.no_grad()
def distances(f, x, group, elements, g0, map_group=None):
    """How f responds to T_g, for each g in `elements`: root mean squares over images, and retrieval.  See the top of this file.

    The three distances are divided by the distance between two different images, √ mean over i ≠ k of ‖f(x_i)(g0) - f(x_k)(g0)‖².
    If f is exactly equivariant, equation1 is 0 and invariance equals axis (not for scale: the mean of a shrunk map is another).

    f         backbone in evaluation mode
    x         (B, C_in, H, W) images in 0 … 1
    elements  (M,) long
    g0        (|g0|,) long, the slots that are read
    map_group given if `group` does not act on z: how slots are read; equation1 and axis are then None
    Returns a dict of lists of M floats.  A distance is None if f gives all images the same features, up to rounding, or if
    there is one image (0/0).  Raises ValueError if f is in training mode."""
    if getattr(f, "training", False):
        raise ValueError("distances need f in evaluation mode: f.eval()")

    def read(x, base):  # (B, …) images at m base spaces (m, |g0|) → (m, B, |g0|·C), in little memory
        parts = [losses.bundles(f, part, base.expand(len(part), -1, -1), map_group or group) for part in x.split(128)]
        return torch.cat(parts, 1).double().cpu()

    def rms(a):  # (B, |g0|·C) → ()
        return a.pow(2).sum(1).mean().sqrt()

    here = read(x, g0[None])[0]  # (B, |g0|·C)
    two_images = (2 * here.var(0, correction=0).sum() * len(x) / max(1, len(x) - 1)).sqrt()  # ()
    collapsed = bool(two_images <= 8 * torch.finfo(x.dtype).eps * rms(here))  # images differ by no more than rounding
    keys, grey = torch.nn.functional.normalize(here), grey_bins(x)  # (B, |g0|·C), (B, 8·C_in)
    itself = torch.arange(len(x))  # (B,)
    found = {name: [] for name in CHANGE}
    for g in elements:
        changed = group.T(x, g.expand(len(x)))  # (B, C_in, H, W)
        moved = read(changed, g0[None])[0]  # (B, |g0|·C)
        nearest = (torch.nn.functional.normalize(moved) @ keys.T).argmax(1)  # (B,)
        alike = torch.cdist(grey_bins(changed), grey, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)  # (B,)
        found["retrieval"].append(100 * float((nearest == itself).double().mean()))
        found["bins"].append(100 * float((alike == itself).double().mean()))
        pairs = dict(invariance=(moved, here))
        if map_group is None:
            along = read(x, group.shift_base(g[None], g0))[0]  # (B, |g0|·C)
            pairs |= dict(equation1=(moved, along), axis=(along, here))
        for name, (a, b) in pairs.items():
            found[name].append(None if collapsed else float(rms(a - b) / two_images))
    return {name: values or None for name, values in found.items()}


def grey_bins(x, bins=8):
    """How many pixels of each image have each of eight grey values: (B, C_in, H, W) in 0 … 1 → (B, 8·C_in) float64, on the CPU."""
    level = (x.cpu() * bins).long().clamp(0, bins - 1).flatten(2)  # (B, C_in, H·W)
    return torch.nn.functional.one_hot(level, bins).sum(2).flatten(1).double()  # (B, 8·C_in)


# ---------------------------------------------------------------- read-outs
@torch.no_grad()
def encode(f, classifier, draws, x, device, dtype=None, generator=None, batch=256, quiet=True):
    """Images x (N, C_in, H, W) uint8 → frozen features, three float32 tensors on the CPU.

    (N, C'), `classifier.features(z)`; (N, C), one slot: f(x)(g0) at slot 0, for translation at the centre; (N, C), all slots: their
    maximum.  Without structure a maximum over slots has no meaning: there the last is all of z, (N, G·C).
    generator: if given, each image is first changed by a random T_g other than e, see `losses.Draws.moved`."""
    features, one, every = [], [], []
    for part in tqdm(x.split(batch), desc="encode", unit="batch", leave=False, disable=True if quiet else None):
        part = part.to(device).float() / 255  # (B, C_in, H, W)
        if generator is not None:
            part = draws.moved(part, generator)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            z = f(part)  # (B, C, G, H', W')
            features.append(classifier.features(z).float().cpu())  # (B, C')
        fibers = groups.fibers(z.float(), draws.map, f.pool).cpu()  # (B, |G|, C)
        one.append(fibers[:, draws.centre])  # (B, C)
        every.append(fibers.amax(1) if draws.structured else fibers.flatten(1))  # (B, C) or (B, G·C)
    return torch.cat(features), torch.cat(one), torch.cat(every)


def linear_accuracy(train_v, train_y, *tests):
    """A linear classifier: logistic regression on standardised features, converged, C chosen on a fifth of the training images.

    train_v (N, C), train_y (N,); tests: pairs of features (M, C) and labels (M,) → top-1 in per cent, one for each test."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    split = ShuffleSplit(1, test_size=0.2, random_state=0)
    model = GridSearchCV(model, {"logisticregression__C": (0.001, 0.01, 0.1, 1.0, 10.0)}, cv=split)
    model.fit(train_v.double().numpy(), train_y.numpy())
    return [100 * model.score(v.double().numpy(), y.numpy()) for v, y in tests]


def knn_accuracy(train_v, train_y, *tests, k=20, tau=0.07):
    """k nearest neighbours: cosine similarity s, votes with weight exp(s/τ) (Wu et al. 2018).  As `linear_accuracy`."""
    def votes(distance):  # 1 - s
        return np.exp((1 - distance) / tau)

    model = KNeighborsClassifier(min(k, len(train_y)), metric="cosine", weights=votes)
    model.fit(train_v.numpy(), train_y.numpy())
    return [100 * model.score(v.numpy(), y.numpy()) for v, y in tests]


def evaluate(f, classifier, draws, images, device, dtype=None, seed=0, quiet=True, feed=True):
    """All measures of the top of this file, and the numbers of images: a dict.

    f and classifier are left in evaluation mode; their weights do not change.  A BatchNorm that has seen no image yet (the
    classifier's, and all of an untrained network) takes its statistics from 2,048 training images.  Without this
    BatchNorm would not normalise in an untrained network, and the comparison with a trained one would not be fair.  feed=False
    leaves its statistics unchanged.  Distances and retrieval are computed in float32, on at most 1,000 test images."""
    f.eval(), classifier.eval()
    fresh = [m for m in (*f.modules(), *classifier.modules()) if isinstance(m, _BatchNorm) and not int(m.num_batches_tracked)]
    if fresh and feed:
        momenta = [norm.momentum for norm in fresh]
        for norm in fresh:
            norm.train().momentum = None  # a plain average over batches
        n = min(2048, len(images.train_x))
        encode(f, classifier, draws, images.train_x[:n - (n % 256 == 1)], device, dtype)  # no batch of one: it has no variance
        for norm, momentum in zip(fresh, momenta):
            norm.eval().momentum = momentum
    train = encode(f, classifier, draws, images.train_x, device, dtype, quiet=quiet)  # (N, C'), (N, C), (N, C)
    test = encode(f, classifier, draws, images.test_x, device, dtype, quiet=quiet)
    changed = encode(f, classifier, draws, images.test_x, device, dtype, torch.Generator().manual_seed(0), quiet=quiet)
    train_y, test_y = images.train_y, images.test_y
    found = dict(top1=linear_accuracy(train[0], train_y, (test[0], test_y))[0])
    for slots, i in (("one", 1), ("all", 2)):
        tests = (test[i], test_y), (changed[i], test_y)
        found[f"linear_{slots}"], found[f"linear_{slots}_changed"] = linear_accuracy(train[i], train_y, *tests)
        found[f"knn_{slots}"], found[f"knn_{slots}_changed"] = knn_accuracy(train[i], train_y, *tests)
    found |= draws.distances(f, images.test_x[:1000].to(device).float() / 255)
    return found | dict(train_images=len(train_y), test_images=len(test_y))


def report(found):
    """The result of `evaluate` as a small text table: per cent of the test images, then distances and retrieval for g = 1, 2, …"""
    lines = []
    for kind in ("linear", "knn"):
        for slots in ("one", "all"):
            name = f"{kind}_{slots}"
            lines.append(f"{name:12} {found[name]:5.1f} %   changed by g {found[name + '_changed']:5.1f} %")
    lines = [f"{'top1':12} {found['top1']:5.1f} %", *lines]
    for name in CHANGE:
        values = found[name]
        if values is None:
            told = "no Γ_g acts on this network"
        elif None in values:
            told = "undefined: one image, or f gives all images the same features"
        else:
            told = " ".join(f"{v:.3f}" if v > 1e-3 or v == 0 else f"{v:.0e}" for v in values)
        lines.append(f"{name:12} {told}")
    return "\n".join(lines)


def network(config, images):
    """The f, h, classifier and `losses.Draws` of a run's configuration; f is perturbed if epsilon > 0.

    Raises ValueError as `backbones.build` and `losses.Draws` do."""
    c_in, size = images.train_x.shape[1], images.train_x.shape[-1]
    f, h, classifier = backbones.build(images.kind, config["group"], config["backbone"], config["width"], images.classes, size, c_in,
                                       *data.mean_std(images.train_x), config["base_size"], functions=config["functions"], pool=config["pool"])
    if hasattr(f, "independent"):
        f.sampled = f.independent and config["slots"] == "sampled"  # else all slots are computed, also by H-SSL
    if config["epsilon"]:
        backbones.perturb(f, config["epsilon"], config["seed"])
    with torch.no_grad():
        positions = f.eval()(torch.zeros(1, c_in, size, size)).shape[-1]  # H' of z
    draws = losses.Draws(config["loss"], config["group"], config["backbone"] == "equivariant", f.order, size, positions, f.stride,
                         config["base_size"], config["max_distance"], config["distance"], config["strength"])
    return f.train(), h, classifier, draws


def open_network(folder, data_dir="data"):
    """A run's folder → f and the classifier with the weights of checkpoint.pt, its Draws, images, and configuration with
    step and steps.

    Raises UsageError if the folder holds no run or its parts do not fit, data.DataError if the images can't be loaded."""
    try:
        config = dict(json.load(open(os.path.join(folder, "config.json")))["config"])
        dataset, train_size, seed, _, _ = (config[k] for k in ("dataset", "train_size", "seed", "amp", "unfed"))  # the last two must be there
        saved = torch.load(os.path.join(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)
        weights, pixels, config["step"], config["steps"] = (saved[k] for k in ("model", "images", "step", "steps"))
    except Exception as error:  # missing, truncated, foreign or malicious: torch raises many types
        raise checkpoint.UsageError(f"{folder} holds no run ({type(error).__name__}): name a folder that train.py wrote") from None
    try:
        images = data.load(dataset, data_dir, train_size, seed, config.get("test_size"), config.get("image_size"))
        if data.fingerprint(images.train_x) != pixels:
            raise ValueError("other images than in training")
        f, _, classifier, draws = network(config, images)
        for name, module in (("f.", f), ("classifier.", classifier)):
            module.load_state_dict({k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)})  # strict: every weight
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError):
        raise checkpoint.UsageError(f"checkpoint.pt, config.json and the images do not go together in {folder}: name another folder, "
                                    "or the --data-dir that it was trained on") from None
    return f, classifier, draws, images, config


def draw_curves(folder):
    """Draw curves.png from metrics.jsonl: the loss, the diagnostics of the views, and the distances, over the steps."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    rows = checkpoint.read_lines(os.path.join(folder, "metrics.jsonl"))
    lines = [row for row in rows if isinstance(row.get("loss"), (int, float)) and isinstance(row.get("step"), int)]
    if not lines:
        return
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained")
    panels = (("the loss", ("loss", "chance")), ("the two views in a batch", ("positive_similarity", "negative_similarity", "spread", "positive_rank")),
              ("distances (1: two different images)", ("invariance", "equation1", "axis")))
    for ax, (title, names) in zip(axes, panels):
        for name in names:
            points = [(row["step"], row[name]) for row in lines if row.get(name) is not None]
            if points:
                ax.plot(*zip(*points), {"chance": ":", "negative_similarity": "--", "axis": "--"}.get(name, "-"), label=name.replace("_", " "))
        ax.set(title=title, xlabel="step")
        if ax.lines:
            ax.legend(fontsize=8)
    with checkpoint.atomic_write(os.path.join(folder, "curves.png"), "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def main(argv=None):
    p = launch.Parser(description=__doc__.split("\n\n")[0])
    p.add_argument("run", help="a run folder of train.py")
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--weights", metavar="FILE", help="also write the weights of f to FILE, and the results and flags to FILE.json")
    args = p.parse_args(argv)
    if args.weights and not os.path.isdir(os.path.dirname(args.weights) or "."):
        raise checkpoint.UsageError(f"there is no folder {os.path.dirname(args.weights)}: make it, or choose another --weights")
    f, classifier, draws, images, config = open_network(args.run, args.data_dir)
    if config["step"] < config["steps"]:
        launch.say(f"warning: this run has done {config['step']} of {config['steps']} steps: train.py --resume goes on with it", "stderr")
    launch.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = evaluate(f.to(device), classifier.to(device), draws, images, device, launch.precision(config["amp"], device), config["seed"],
                     quiet=False, feed=not config["unfed"])
    paths = [os.path.join(args.run, "probe.json")]
    if args.weights:
        paths.append(args.weights + ".json")
        with checkpoint.atomic_write(args.weights, "wb") as file:
            torch.save(f.cpu().state_dict(), file)
    for path in paths:
        with checkpoint.atomic_write(path) as file:
            json.dump(found | config, file, indent=1)
    launch.say(report(found))


if __name__ == "__main__":
    sys.exit(launch.command(main, "probe.py"))
