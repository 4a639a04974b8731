"""What do trained networks know: ink, or shapes?  And how far do a few labels go with them?

    python results/riddle.py --data-dir data    # adds to results/riddle.jsonl; pictures.py draws it

Reads the networks in runs/ again that results/run.py has trained for `taught` and `pooling`: all
seeds that are there.  A network that has a line is not read again.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import probe
from losses import HSSL
from results.audit import counts
from results.claims import FOLDER, arm, mean_over_g

SLOTS = ("untrained", "H-SSL", "jitter alone", "H-SSL + jitter")
TRAININGS = dict(rot=SLOTS, scale=SLOTS, trans=[name.replace("H-SSL", "near") for name in SLOTS])
LABELS = (10, 100, 1000)


def ink(one, images):
    """What one slot of a network knows of ink and other counts, in per cent: a dict.

    one  its features of the training and of the test images: (N, C) and (B, C)"""
    train_z, test_z = (z.double().numpy() for z in one)
    train_s, test_s = (
        torch.cat([counts(x / 255, "rot"), counts(x / 255, "scale")], 1)  # the same for all groups
        for x in (images.train_x, images.test_x)
    )
    spread = train_s.std(0) + 1e-9
    train_s, test_s = ((s - train_s.mean(0)) / spread for s in (train_s, test_s))
    guess = LinearRegression().fit(train_s, train_z).predict(test_s)
    unexplained = ((test_z - guess) ** 2).sum() / ((test_z - test_z.mean(0)) ** 2).sum()
    pca = PCA(min(64, train_z.shape[1])).fit(train_z)
    train_p, test_p = (pca.transform(z) for z in (train_z, test_z))  # (N, 64), (B, 64)
    sums = images.test_x.sum((1, 2, 3)).double().numpy()
    size = pca.explained_variance_**0.5 + 1e-9
    train_w, test_w = (torch.from_numpy(z / size).float() for z in (train_p, test_p))
    return dict(
        hand_made=100 * float(1 - unexplained),
        three_directions=100 * float(pca.explained_variance_ratio_[:3].sum()),
        ink=100 * abs(float(np.corrcoef(test_p[:, 0], sums)[0, 1])),
        knn_whitened=probe.knn_accuracy(train_w, images.train_y, (test_w, images.test_y))[0],
    )


@torch.no_grad()
def own_task(f, images, group):
    """The task of H-SSL, on 1,000 test images: for how many per cent is the nearest to one slot,
    by cosine, another slot of the same image?  Positions: a neighbour."""
    draws = HSSL(f.group, max_distance=1 if group == "trans" else None)
    x = images.test_x[:1000] / 255
    g0, g1, g2 = draws.draw(len(x), torch.Generator().manual_seed(0))
    other = (g1 != g2).nonzero()[:, 0]
    parts = other.split(250)
    views = [draws.views(f, torch.nn.Flatten(), x[i], g0[i], g1[i], g2[i]) for i in parts]
    one, two = (F.normalize(torch.cat(view), dim=1) for view in zip(*views))
    return probe.share_found(one @ two.T)


def few_labels(n, train_z, train_y, *tests, draws=5):
    """A linear classifier on n labelled images, equally many of each class: the mean accuracy over
    disjoint draws.  Arguments and result as in probe.linear_accuracy."""
    by_class = [(train_y == c).nonzero()[:, 0] for c in train_y.unique()]
    each = n // len(by_class)
    found = []
    for draw in range(draws):
        part = slice(draw * each, (draw + 1) * each)
        chosen = torch.cat([places[part] for places in by_class])  # (n,)
        found.append(probe.linear_accuracy(train_z[chosen], train_y[chosen], *tests))
    return np.mean(found, 0).tolist()


def measure(folder, data_dir):
    """The numbers of the network in a run's folder: a dict."""
    f, classifier, image_group, images, config = probe.open_run(folder, data_dir)
    f.eval()
    classifier.eval()
    dtype = None if config["precision"] == "float32" else getattr(torch, config["precision"])
    where = torch.device("cpu"), dtype
    probe.feed(f, classifier, images.train_x, *where)
    train = probe.encode(f, classifier, images.train_x, *where)
    test = probe.encode(f, classifier, images.test_x, *where)
    changed = probe.encode(f, classifier, images.test_x, *where, image_group)
    found = ink((train[1], test[1]), images)
    found["own_task"] = own_task(f, images, config["group"])
    for slots, i in (("one", 1), ("all", 2)):
        tests = [(z[i], images.test_y) for z in (test, changed)]
        for n in LABELS:
            as_is, on_changed = few_labels(n, train[i], images.train_y, *tests)
            found |= {f"{slots}_{n}": as_is, f"{slots}_changed_{n}": on_changed}
    return found


def finished(runs, *experiments):
    """The finished runs of these experiments in a folder: (its folder, its row) of each."""
    for name in sorted(os.listdir(runs)):
        folder = os.path.join(runs, name)
        path = os.path.join(folder, "result.json")
        if name.split("-")[0] in experiments and os.path.exists(path):
            with open(path) as file:
                yield folder, json.load(file)


def known(about, path):
    """Whether a file has a line of the network with this arm, width and seed."""
    if not os.path.exists(path):
        return False
    with open(path) as file:
        rows = list(map(json.loads, file))
    return any(all(row[k] == about[k] for k in ("arm", "width", "seed")) for row in rows)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--runs", default=os.path.join(ROOT, "runs"), help="folder of the runs")
    args = p.parse_args()
    path = os.path.join(FOLDER, "riddle.jsonl")
    for folder, row in finished(args.runs, "taught", "pooling"):
        about = dict(group=row["group"], arm=arm(row), width=row["width"], seed=row["seed"])
        training = about["arm"].split(", ")[1]
        wanted = about["width"] < 1 or training in TRAININGS[row["group"]]  # `pooling` is narrow
        if not wanted or known(about, path):
            continue
        about |= dict(linear=row["linear_one"], knn=row["knn_one"])
        for slots in ("one", "one_changed", "all", "all_changed"):
            about[f"{slots}_{row['train_images']}"] = row[f"linear_{slots}"]
        about |= dict(bins=mean_over_g(row, "bins"), retrieval=mean_over_g(row, "retrieval"))
        with open(path, "a") as file:
            file.write(json.dumps(about | measure(folder, args.data_dir)) + "\n")
        print(about, flush=True)


if __name__ == "__main__":
    main()
