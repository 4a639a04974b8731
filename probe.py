"""What a finished run has learned: a detached classifier and k nearest neighbours on frozen features.

    python probe.py runs/mnist5k-scale-hssl-equivariant-seed0     # probe the run again, in float32: prints and writes top-1
    python probe.py --table table1                                # a table of the paper from results/table1.jsonl

Needs two siblings: backbones.py and data.py (and what they need).  The classifier is Appendix B's: on MNIST one more
group convolution, the maximum over the group, a linear layer.  It is *detached*: the linear layer alone learns, no
gradient reaches the network, and every image is encoded just once.
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F
from tqdm import tqdm

import backbones
import data


@torch.no_grad()
def encode(f, classifier, x, device, dtype=None, batch=256, quiet=True):
    """Frozen features of images x (N, C_in, H, W) uint8: (N, C) for the linear layer and (N, C) for kNN, float32, CPU.

    The first is `classifier.features(z)`; the second, z averaged over space and the maximum of it over the group."""
    features, vectors = [], []
    for part in tqdm(x.split(batch), desc="encode", unit="batch", leave=False, disable=True if quiet else None):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            z = f(part.to(device).float() / 255)  # (B, C, G, H', W')
            features.append(classifier.features(z).float().cpu())  # (B, C)
        vectors.append(z.float().mean((-2, -1)).amax(2).cpu())  # (B, C)
    return torch.cat(features), torch.cat(vectors)


def linear_accuracy(train_x, train_y, test_x, test_y, classes, steps=3000, epochs=50, batch=256, lr=0.01, seed=0):
    """Top-1 in per cent of a linear layer on standardised features (N, C), by Adam and a cosine: the detached classifier.

    It learns for so many steps or epochs, whichever is longer."""
    steps = max(steps, epochs * len(train_y) // batch)
    mean, std = train_x.mean(0), train_x.std(0).clamp(min=1e-6)  # (C,)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    torch.manual_seed(seed)
    linear = torch.nn.Linear(train_x.shape[1], classes)
    optimizer = torch.optim.Adam(linear.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        index = torch.randint(len(train_y), (batch,))  # (B,)
        loss = F.cross_entropy(linear(train_x[index]), train_y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return 100 * float((linear(test_x).argmax(1) == test_y).float().mean())


@torch.no_grad()
def knn_accuracy(train_v, train_y, test_v, test_y, k=20, tau=0.07, batch=1000):
    """Top-1 in per cent of k nearest neighbours: cosine similarity s, votes of weight exp(s/τ) (Wu et al. 2018)."""
    train_v, test_v = F.normalize(train_v, dim=1), F.normalize(test_v, dim=1)  # (N, C)
    k, classes, right = min(k, len(train_y)), int(train_y.max()) + 1, 0
    for v, y in zip(test_v.split(batch), test_y.split(batch)):
        s, i = (v @ train_v.T).topk(k, dim=1)  # (B, k)
        votes = torch.zeros(len(y), classes).scatter_add_(1, train_y[i], (s / tau).exp())  # (B, classes)
        right += (votes.argmax(1) == y).sum()
    return 100 * float(right) / len(test_y)


def evaluate(f, classifier, images, device, dtype=None, seed=0, quiet=True):
    """Encode every image once, then both probes → dict(top1, knn, train_images, test_images), accuracies in per cent.

    f and classifier are left in evaluation mode; no weight of theirs changes.  Only the classifier's BatchNorm, if it
    has one that has seen no image yet, takes its statistics from 2,048 training images."""
    state = torch.random.get_rng_state()
    f.eval(), classifier.train()
    for norm in (m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        if not int(norm.num_batches_tracked):
            norm.momentum = None  # a plain average
            encode(f, classifier, images.train_x[:2048], device, dtype)
    classifier.eval()
    train_x, train_v = encode(f, classifier, images.train_x, device, dtype, quiet=quiet)
    test_x, test_v = encode(f, classifier, images.test_x, device, dtype, quiet=quiet)
    top1 = linear_accuracy(train_x, images.train_y, test_x, images.test_y, images.classes, seed=seed)
    torch.random.set_rng_state(state)
    return dict(top1=top1, knn=knn_accuracy(train_v, images.train_y, test_v, images.test_y),
                train_images=len(images.train_y), test_images=len(images.test_y))


class ProbeError(Exception):
    """The run can't be probed; the message is one line that says why."""


def open_run(folder, data_dir=None):
    """A finished run's folder → f with its weights, a fresh classifier, its images, its configuration.

    Raises ProbeError where the folder holds something else, data.DataError where the images are not there."""
    try:
        config = dict(json.load(open(os.path.join(folder, "config.json")))["config"])
        wanted = [config[k] for k in ("dataset", "train_size", "seed", "group", "backbone", "width", "base_size")]
        state = torch.load(os.path.join(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # missing, truncated, foreign, hostile: torch has many names for it
        raise ProbeError(f"{folder} holds no finished run ({type(error).__name__}): name a folder that train.py wrote") from None
    dataset, train_size, seed, group, backbone, width, base_size = wanted
    try:
        images = data.load(dataset, data_dir or "data", train_size, seed, config.get("test_size"), config.get("image_size"))
        mean, std = data.mean_std(images.train_x)
        f, _, classifier = backbones.build(images.kind, group, backbone, width, images.classes, images.train_x.shape[-1],
                                           images.train_x.shape[1], mean, std, base_size)
        for name, module in (("f.", f), ("classifier.", classifier)):
            module.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})  # strict: every weight
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError):
        raise ProbeError(f"checkpoint.pt, config.json and the images do not go together in {folder}: name another folder, "
                         "or the --data-dir that it was trained on") from None
    return f, classifier, images, config


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("run", nargs="?", help="a run folder of train.py")
    p.add_argument("--data-dir", help="where the images are (default data)")
    p.add_argument("--table", metavar="NAME", help="print a table from results/: table1, table2, figure2_left, figure2_right, claims, gap …")
    p.add_argument("--write", metavar="FILE", help="put all tables into a Markdown file, between its marks, and draw the pictures")
    args = p.parse_args()
    if args.table or args.write:
        from results import tables
        try:
            tables.show(args.table, args.write)
        except (OSError, ValueError) as error:
            raise ProbeError(str(error)) from None
        return
    if not args.run:
        p.error("name a run folder of train.py, or --table NAME")
    f, classifier, images, config = open_run(args.run, args.data_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(f.to(device), classifier.to(device), images, device, None, config["seed"], quiet=False)
    path = os.path.join(args.run, "probe.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
    print(f"top-1 {result['top1']:.2f} %   kNN {result['knn']:.2f} %   {path}")


if __name__ == "__main__":
    try:
        main()
    except (ProbeError, data.DataError, OSError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        sys.exit(2)
