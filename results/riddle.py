"""What do the networks of `taught` know?  Ink, or shapes?

    python results/riddle.py --data-dir data    # → results/riddle.jsonl; pictures.py draws it

Reads the networks in runs/ that results/run.py has trained for `taught` with --seed (default 10).
For each group: untrained, trained on its slots alone, on jitter alone, and on both.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import data
import probe
from results.audit import counts
from results.claims import FOLDER, arm

ARMS = {  # group → its arms
    "rot": ("untrained", "H-SSL", "jitter alone", "H-SSL + jitter"),
    "scale": ("untrained", "H-SSL", "jitter alone", "H-SSL + jitter"),
    "trans": ("untrained", "near", "jitter alone", "near + jitter"),
}


# ---------------------------------------------------------------- one network
@torch.no_grad()
def features(folder, images):
    """f(x)(g0) on one slot for training and test images: (N, C) twice.  f as the run left it."""
    saved = torch.load(os.path.join(folder, "checkpoint.pt"), weights_only=True)
    config = saved["config"]
    if isinstance(config, str):  # an older format
        config = json.loads(config)
    f, _, classifier, *_ = probe.network(config, images)
    f.load_state_dict({k[2:]: v for k, v in saved["model"].items() if k.startswith("f.")})
    f.eval()
    classifier.eval()
    probe.feed(f, classifier, images.train_x, torch.device("cpu"))
    slot = torch.tensor([[probe.centre(f)]])
    found = []
    for x in (images.train_x, images.test_x):
        parts = [f.bundle(part / 255, slot.expand(len(part), 1)) for part in x.split(256)]
        found.append(torch.cat(parts).double().numpy())
    return found


def measure(folder, row, images):
    """The numbers of one network, in per cent: a dict."""
    group = row["group"]
    train_z, test_z = features(folder, images)
    train_s, test_s = (counts(x / 255, group) for x in (images.train_x, images.test_x))
    spread = train_s.std(0) + 1e-9
    train_s, test_s = ((s - train_s.mean(0)) / spread for s in (train_s, test_s))
    guess = LinearRegression().fit(train_s, train_z).predict(test_s)
    unexplained = ((test_z - guess) ** 2).sum() / ((test_z - test_z.mean(0)) ** 2).sum()
    pca = PCA(3).fit(train_z)
    first = pca.transform(test_z)[:, 0]
    ink = images.test_x.sum((1, 2, 3)).double().numpy()
    return dict(
        grey_bins_find_it=np.mean(row["bins"]),
        f_finds_it=np.mean(row["retrieval"]),
        hand_made=100 * (1 - unexplained),
        three_directions=100 * pca.explained_variance_ratio_.sum(),
        ink=100 * abs(np.corrcoef(first, ink)[0, 1]),
        linear=row["linear_one"],
        knn=row["knn_one"],
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--runs", default=os.path.join(ROOT, "runs"), help="folder of the runs")
    p.add_argument("--dataset", default="mnist", help="of the runs (default mnist)")
    p.add_argument("--seed", type=int, default=10, help="of the runs (default 10)")
    args = p.parse_args()
    runs = {}
    for name in sorted(os.listdir(args.runs)):
        path = os.path.join(args.runs, name, "result.json")
        if os.path.exists(path):
            with open(path) as file:
                row = json.load(file)
            usual = row["functions"] is None and row["width"] == 1
            if usual and (row["dataset"], row["seed"]) == (args.dataset, args.seed):
                runs[arm(row)] = os.path.dirname(path), row
    with open(os.path.join(FOLDER, "riddle.jsonl"), "w") as file:
        for group, names in ARMS.items():
            for name in names:
                folder, row = runs[f"{group}, {name}"]
                sizes = row["train_size"], row["seed"], row["test_size"]
                images = data.load(args.dataset, args.data_dir, *sizes)
                found = dict(group=group, arm=name) | measure(folder, row, images)
                file.write(json.dumps(found) + "\n")
                print(found, flush=True)


if __name__ == "__main__":
    main()
