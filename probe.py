"""Evaluate a run: five read-outs of its frozen features, and three distances between features.

    python probe.py runs/mnist5k-scale-hssl-equivariant-seed0     # prints a small table, writes probe.json

Needs six siblings: backbones.py, checkpoint.py, data.py, groups.py, launch.py, losses.py (and what they need).

Read-outs, in per cent of the test images; the network is frozen:
    top1     the classifier of Appendix B with a new linear layer; on MNIST after one more group convolution (random unless supervised)
    linear   a linear layer on one vector for each image: the maximum over the lifted axis of the fibers pooled over space
    knn      20 nearest neighbours, with the same vectors
    fiber    20 nearest neighbours, with one fiber f(x)(g0), at element 0 (translation: at the centre)
    moved    as fiber, but each test image is first changed by a random T_g.  The training images are not changed.  If f is
             invariant to T_g, this equals fiber
Distances: `losses.distances`.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

import backbones
import checkpoint
import data
import groups
import launch
import losses

READOUTS = ("top1", "linear", "knn", "fiber", "moved")


@torch.no_grad()
def encode(f, classifier, draws, x, device, dtype=None, generator=None, batch=256, quiet=True):
    """Images x (N, C_in, H, W) uint8 → frozen features, three float32 tensors on the CPU.

    (N, C'), `classifier.features(z)`; (N, C), the maximum over the group of the pooled fibers; (N, C), one fiber f(x)(g0) at
    element 0, for translation at the centre.  Without structure the last two are all of z, pooled over space: (N, G·C).
    generator: if given, each image is first changed by a random T_g, see `losses.Draws.moved`, and only the last is computed."""
    features, pooled, one = [], [], []
    for part in tqdm(x.split(batch), desc="encode", unit="batch", leave=False, disable=True if quiet else None):
        part = part.to(device).float() / 255  # (B, C_in, H, W)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            if generator is None:
                z = f(part)  # (B, C, G, H', W')
                features.append(classifier.features(z).float().cpu())  # (B, C')
            else:
                element0 = [torch.zeros(len(part), 1, dtype=torch.long, device=device)] if f.independent and f.order > 1 else []  # all that is read
                z = f(draws.moved(part, generator), *element0)  # (B, C, 1, H', W'), or (B, C, G, H', W') if f can't compute only some
        z = (z if draws.structured else backbones.as_channels(z)).float()  # (B, C, G, H', W') or (B, G·C, 1, H', W')
        fibers = groups.fibers(z, groups.Rotation(), f.pool)  # (B, G, C): pooled over space, for translation too
        if generator is None:
            pooled.append(fibers.amax(1).cpu())  # (B, C)
        one.append((z[:, :, 0, z.shape[-2] // 2, z.shape[-1] // 2] if draws.map.spatial else fibers[:, 0]).cpu())  # (B, C)
    return [torch.cat(parts) if parts else None for parts in (features, pooled, one)]


def linear_accuracy(train_x, train_y, test_x, test_y, classes, steps=3000, epochs=50, batch=256, lr=0.01, seed=0):
    """Top-1 in per cent of a linear layer on standardised features (N, C), trained on labels (N,) with Adam and a cosine schedule.

    It learns for `steps` steps or `epochs` epochs, whichever is longer.  Sets torch's seed."""
    steps = max(steps, epochs * len(train_y) // batch)
    mean, std = train_x.mean(0), train_x.std(0).clamp(min=1e-6)  # (C,)
    train_x = (train_x - mean) / std  # (N, C)
    torch.manual_seed(seed)
    linear = torch.nn.Linear(train_x.shape[1], classes)
    optimizer = torch.optim.Adam(linear.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        index = torch.randint(len(train_y), (batch,))  # (B,)
        loss = F.cross_entropy(linear(train_x[index]), train_y[index])  # ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return 100 * float((linear((test_x - mean) / std).argmax(1) == test_y).float().mean())


@torch.no_grad()
def knn_accuracy(train_v, train_y, test_v, test_y, k=20, tau=0.07, batch=1000):
    """Top-1 in per cent of k nearest neighbours: cosine similarity s, votes with weight exp(s/τ) (Wu et al. 2018).

    train_v, test_v (N, C); train_y, test_y (N,) long."""
    train_v, test_v = F.normalize(train_v, dim=1), F.normalize(test_v, dim=1)  # (N, C)
    k, classes, right = min(k, len(train_y)), int(train_y.max()) + 1, 0
    for v, y in zip(test_v.split(batch), test_y.split(batch)):
        s, i = (v @ train_v.T).topk(k, dim=1)  # (B, k)
        votes = torch.zeros(len(y), classes).scatter_add_(1, train_y[i], (s / tau).exp())  # (B, classes)
        right += (votes.argmax(1) == y).sum()
    return 100 * float(right) / len(test_y)


def evaluate(f, classifier, draws, images, device, dtype=None, seed=0, quiet=True, feed=True):
    """The read-outs in per cent, the distances, and the numbers of images: a dict, see the top of this file.

    f and classifier are left in evaluation mode; their weights do not change.  A BatchNorm that has seen no image yet (the
    classifier's, and all of an untrained network) takes its statistics from 2,048 training images.  Without this
    BatchNorm would not normalise in an untrained network, and the comparison with a trained one would not be fair.  feed=False leaves its
    statistics unchanged.  The distances are computed in float32, on at most 1,024 test images."""
    state = torch.random.get_rng_state()
    f.eval(), classifier.eval()
    fresh = [m for m in (*f.modules(), *classifier.modules()) if isinstance(m, _BatchNorm) and not int(m.num_batches_tracked)]
    if fresh and feed:
        momenta = [norm.momentum for norm in fresh]
        for norm in fresh:
            norm.train().momentum = None  # a plain average over batches
        n = min(2048, len(images.train_x))
        encode(f, classifier, draws, images.train_x[:n - (n % 256 == 1)], device, dtype, batch=256)  # no batch of one: it has no variance
        for norm, momentum in zip(fresh, momenta):
            norm.eval().momentum = momentum
    train = encode(f, classifier, draws, images.train_x, device, dtype, quiet=quiet)  # (N, C'), (N, C), (N, C)
    test = encode(f, classifier, draws, images.test_x, device, dtype, quiet=quiet)
    moved = encode(f, classifier, draws, images.test_x, device, dtype, torch.Generator().manual_seed(0), quiet=quiet)
    learn = lambda i: linear_accuracy(train[i], images.train_y, test[i], images.test_y, images.classes, seed=seed)
    neighbours = lambda i, tests: knn_accuracy(train[i], images.train_y, tests[i], images.test_y)
    found = dict(zip(READOUTS, (learn(0), learn(1), neighbours(1, test), neighbours(2, test), neighbours(2, moved))))
    torch.random.set_rng_state(state)
    found |= draws.distances(f, images.test_x[:1024].to(device).float() / 255)
    return found | dict(train_images=len(images.train_y), test_images=len(images.test_y))


def report(found):
    """The result of `evaluate` as a small text table.  ± is the standard error due to the number of test images."""
    error = lambda p: (p * (100 - p) / found["test_images"]) ** 0.5  # √(p(1 - p)/n), in points
    lines = ["   ".join(f"{name} {found[name]:.2f} ± {error(found[name]):.2f} %" for name in READOUTS)]
    lines.append("distances over that of two different images, for g = 1 …")
    for name, what in (("invariance", "f(T_g x)(g0) - f(x)(g0)"), ("equation1", "f(T_g x)(g0) - f(x)(g⁻¹·g0)"), ("axis", "f(x)(g⁻¹·g0) - f(x)(g0)")):
        values = found[name]
        if values is None:
            told = "no Γ_g acts on this network"
        elif None in values:
            told = "undefined: one image, or f gives all images the same features"
        else:
            told = " ".join(f"{v:.3f}" if v > 1e-3 or v == 0 else f"{v:.0e}" for v in values)
        lines.append(f"  {name:10} ‖{what}‖".ljust(46) + told)
    return "\n".join(lines)


def network(config, images):
    """The f, h, classifier and `losses.Draws` of a run's configuration; f is perturbed if epsilon > 0.

    Raises ValueError as `backbones.build` and `losses.Draws` do."""
    c_in, size = images.train_x.shape[1], images.train_x.shape[-1]
    f, h, classifier = backbones.build(images.kind, config["group"], config["backbone"], config["width"], images.classes, size, c_in,
                                       *data.mean_std(images.train_x), config["base_size"], functions=config["functions"], pool=config["pool"])
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
