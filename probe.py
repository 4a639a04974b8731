"""What a finished run has learned: a detached classifier and k nearest neighbours on frozen features.

    python probe.py runs/mnist5k-scale-hssl-equivariant-seed0     # probe the run again: prints and writes top-1

Needs, beside the packages: backbones.py (and what it needs) and data.py.  The classifier is Appendix B's: on MNIST
one more group convolution, the maximum over the group, a linear layer.  It is *detached*: the backbone is in
evaluation mode, no gradient reaches it, and it encodes every image just once.
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F

import backbones
import data


@torch.no_grad()
def encode(f, classifier, x, device, dtype=None, batch=256, quiet=True):
    """Frozen features of images x (N, C_in, H, W) uint8 → what the classifier learns from, (N, …), and vectors (N, C).

    The first is `classifier.fixed(z)`, all that has nothing to learn; the second, for kNN, z averaged over space and
    the maximum of it over the group.  Both stay in the precision they came in, on the CPU."""
    from tqdm import tqdm
    f.eval()
    fixed, vectors = [], []
    for part in tqdm(x.split(batch), desc="encode", unit="batch", leave=False, disable=True if quiet else None):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            z = f(part.to(device).float() / 255)  # (B, C, G, H', W')
            fixed.append(classifier.fixed(z).cpu())
        vectors.append(z.float().mean((-2, -1)).amax(2).cpu())  # (B, C)
    return torch.cat(fixed), torch.cat(vectors)


def train_classifier(classifier, fixed, labels, device, steps=1500, batch=256, lr=2e-3, seed=0):
    """Adam and a cosine on cross-entropy, `steps` steps, the same for every run of a table.  Changes classifier."""
    classifier.train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < min(batch, len(labels)):
            order = torch.randperm(len(labels), generator=generator)  # (N,)
        index, order = order[:batch], order[batch:]  # (B,)
        logits = classifier(fixed[index].to(device).float())  # (B, classes)
        loss = F.cross_entropy(logits, labels[index].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(classifier, fixed, labels, device, batch=1000):
    """Top-1 in per cent."""
    classifier.eval()
    right = [(classifier(part.to(device).float()).argmax(1).cpu() == y).sum()
             for part, y in zip(fixed.split(batch), labels.split(batch))]
    return 100 * float(sum(right)) / len(labels)


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
    """Encode once, then both probes → dict(top1, knn, train_images, test_images), accuracies in per cent."""
    was = torch.random.get_rng_state()
    torch.manual_seed(seed)
    for module in classifier.modules():  # a fresh classifier for every run, the supervised ones included
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    train_fixed, train_v = encode(f, classifier, images.train_x, device, dtype, quiet=quiet)
    test_fixed, test_v = encode(f, classifier, images.test_x, device, dtype, quiet=quiet)
    train_classifier(classifier, train_fixed, images.train_y, device, seed=seed)
    torch.random.set_rng_state(was)
    return dict(top1=accuracy(classifier, test_fixed, images.test_y, device),
                knn=knn_accuracy(train_v, images.train_y, test_v, images.test_y),
                train_images=len(images.train_y), test_images=len(images.test_y))


class ProbeError(Exception):
    """The run can't be probed; the message is one line that says why."""


def open_run(folder, data_dir=None):
    """A finished run's folder → f with its weights, a fresh classifier, its images, its configuration."""
    try:
        config = json.load(open(os.path.join(folder, "config.json")))["config"]
        state = torch.load(os.path.join(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)["model"]
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        raise ProbeError(f"{folder} holds no finished run ({type(error).__name__}): name a folder that train.py wrote") from None
    images = data.load(config["dataset"], data_dir or "data", config["train_size"], config["seed"])
    mean, std = data.mean_std(images.train_x)
    f, _, classifier = backbones.build(images.kind, config["group"], config["backbone"], config["width"], images.classes,
                                       images.train_x.shape[-1], images.train_x.shape[1], mean, std, config["base_size"])
    f.load_state_dict({k.removeprefix("f."): v for k, v in state.items() if k.startswith("f.")})  # strict: every weight
    return f, classifier, images, config


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("run", help="a run folder of train.py")
    p.add_argument("--data-dir", help="where the images are (default data)")
    args = p.parse_args()
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
    except (ProbeError, data.DataError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        sys.exit(2)
