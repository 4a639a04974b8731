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
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import probe
from losses import HSSL
from results.audit import counts
from results.claims import FOLDER, arm, mean_over_g
from results.run import key, wanted

SLOTS = ("untrained", "H-SSL", "jitter alone", "H-SSL + jitter")
TRAININGS = dict(rot=SLOTS, scale=SLOTS, trans=[name.replace("H-SSL", "near") for name in SLOTS])
LABELS = (10, 100, 1000)


def components(one, images):
    """What one slot of a network knows of ink and other counts, in per cent: a dict.

    one  its features of the training and of the test images: (N, C) and (B, C)"""
    train_z, test_z = (z.double().numpy() for z in one)
    train_s, test_s = (
        torch.cat([counts(x / 255, "rot"), counts(x / 255, "scale")], 1)  # the same for all groups
        for x in (images.train_x, images.test_x)
    )
    by_hand = make_pipeline(StandardScaler(), LinearRegression()).fit(train_s, train_z)
    guess = by_hand.predict(test_s)
    pca = PCA(min(64, train_z.shape[1])).fit(train_z)
    size = pca.explained_variance_**0.5 + 1e-9  # not 0
    train_p, test_p = (torch.from_numpy(pca.transform(z) / size) for z in (train_z, test_z))
    sums = images.test_x.sum((1, 2, 3)).double()
    return dict(
        hand_made=100 * r2_score(test_z, guess, multioutput="variance_weighted"),
        three_directions=100 * float(pca.explained_variance_ratio_[:3].sum()),
        ink=100 * abs(float(np.corrcoef(test_p[:, 0], sums)[0, 1])),
        knn_whitened=probe.knn_accuracy(train_p, images.train_y, (test_p, images.test_y))[0],
    )


@torch.no_grad()
def own_task(f, images, group):
    """The task of H-SSL, on 1,000 test images: for how many per cent of them is another slot of the
    same image the nearest to one slot, by cosine?  Positions: a neighbour."""
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


def measure(folder, row, data_dir):
    """The numbers of the network in a run's folder: a dict.  None if it is not read."""
    training = arm(row).split(", ")[1]
    if row["width"] == 1 and training not in TRAININGS[row["group"]]:  # all of `pooling` is narrow
        return None
    f, classifier, image_group, images, config = probe.open_run(folder, data_dir)
    f.eval()
    classifier.eval()
    dtype = None if config["precision"] == "float32" else getattr(torch, config["precision"])
    where = torch.device("cpu"), dtype
    probe.feed(f, classifier, images.train_x, *where)
    train = probe.encode(f, classifier, images.train_x, *where)
    test = probe.encode(f, classifier, images.test_x, *where)
    changed = probe.encode(f, classifier, images.test_x, *where, image_group)
    found = dict(linear=row["linear_one"], knn=row["knn_one"])
    found |= dict(bins=mean_over_g(row, "bins"), retrieval=mean_over_g(row, "retrieval"))
    found |= components((train[1], test[1]), images)
    found["own_task"] = own_task(f, images, config["group"])
    for slots, i in (("one", 1), ("all", 2)):
        tests = [(z[i], images.test_y) for z in (test, changed)]
        for n in LABELS:
            as_is, on_changed = few_labels(n, train[i], images.train_y, *tests)
            found |= {f"{slots}_{n}": as_is, f"{slots}_changed_{n}": on_changed}
        for more in ("", "_changed"):
            found[f"{slots}{more}_{row['train_images']}"] = row[f"linear_{slots}{more}"]
    return found


def has_line(path, about):
    """Whether a file has a line with all that `about` says."""
    if not os.path.exists(path):
        return False
    with open(path) as file:
        return any(about.items() <= json.loads(line).items() for line in file)


def main(doc, file, experiments, measure):
    """This program, and where.py: a line of results/FILE for each network of these experiments.

    measure  (its folder, its row, --data-dir) → a dict of numbers, or None"""
    p = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--runs", default=os.path.join(ROOT, "runs"), help="folder of the runs")
    args = p.parse_args()
    path = os.path.join(FOLDER, file)
    asked = wanted(experiments, "cpu")
    for name in sorted(os.listdir(args.runs)):
        folder = os.path.join(args.runs, name)
        result = os.path.join(folder, "result.json")
        if not os.path.exists(result):
            continue  # not finished
        with open(result) as finished:
            row = json.load(finished)
        about = dict(group=row["group"], arm=arm(row), width=row["width"], seed=row["seed"])
        if key(row) not in asked or has_line(path, about):
            continue
        found = measure(folder, row, args.data_dir)
        if found:
            with open(path, "a") as lines:
                lines.write(json.dumps(about | found) + "\n")
            print(about, flush=True)


if __name__ == "__main__":
    main(__doc__, "riddle.jsonl", ("taught", "pooling"), measure)
