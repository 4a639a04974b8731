"""How near to Eq. 1 can a scale network be brought without training?  python results/scale_error.py → results/scale_error.jsonl

The MNIST network at half the width on 256 test digits, BatchNorm fed with 512 digits, two seeds.  What is changed, alone or together: the basis
functions, how fibers are read off space, the list of scales, the background, the supports of the filters.
"""
import json
import os
import sys

import torch

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))
import backbones  # noqa: E402
import data  # noqa: E402
from gconv import GConv  # noqa: E402
from groups import SCALES, Scale  # noqa: E402
from losses import distances  # noqa: E402

GEOMETRIC = tuple(1.75 ** (i / 5) for i in range(6))
PAPER = dict(scales=SCALES, functions=11, first=11, support=7, effective=3, pool="mean", zero=False)
TRIED = [("the paper's", {}), ("background is 0", dict(zero=True)), ("maximum over space", dict(pool="max")), *((f"{n} functions", dict(functions=n)) for n in (10, 9, 3)),
         *((f"{n} functions, maximum", dict(functions=n, pool="max")) for n in (1, 2, 3, 4, 5, 6)),
         ("3 functions, maximum, geometric list", dict(functions=3, pool="max", scales=GEOMETRIC)),
         ("3 functions, maximum, background is 0", dict(functions=3, pool="max", zero=True)),
         ("3 functions, maximum, supports 15 and 11 px", dict(functions=3, pool="max", first=15, support=11)),
         ("3 functions, maximum, supports 19 and 15 px", dict(functions=3, pool="max", first=19, support=15)),
         ("2 functions in every layer, maximum", dict(functions=2, effective=2, pool="max")),
         ("2 functions in every layer, maximum, supports 15 and 11 px", dict(functions=2, effective=2, pool="max", first=15, support=11)),
         ("… and the geometric list", dict(functions=2, effective=2, pool="max", first=15, support=11, scales=GEOMETRIC))]


def network(images, scales, functions, first, support, effective, pool, zero):
    """An untrained MNIST network with these choices, its BatchNorm fed with 512 images."""
    mean, std = data.mean_std(images.train_x)
    conv = lambda c_in, c_out, k, e, stride, padding, **group: GConv(
        c_in, c_out, first if k == 11 else support, functions if k == 11 else effective, stride=stride, padding=(first if k == 11 else support) // 2, **group)
    f = backbones.MNISTNet(scales, width=0.5, pool=pool, normalise=backbones.Normalise([0.0] if zero else mean, std), conv=conv)
    for norm in f.norms:
        norm.momentum = None  # a plain average
    f.train()(images.train_x[:512].float() / 255)
    return f.eval()


if __name__ == "__main__":
    images = data.load("mnist5k")
    x = images.test_x[:256].float() / 255  # (256, 1, 29, 29)
    with torch.no_grad(), open(os.path.join(FOLDER, "scale_error.jsonl"), "w") as file:
        for name, choice in TRIED:
            for seed in range(2):
                torch.manual_seed(seed)
                choices = PAPER | choice
                found = distances(network(images, **choices), x, Scale(choices["scales"]), torch.arange(1, 6), torch.tensor([0]))
                file.write(json.dumps(dict(name=name, seed=seed, loss="frozen", **found)) + "\n")
            print(name, " ".join(f"{e:.2f}/{i:.2f}" for e, i in zip(found["equation1"], found["invariance"])), flush=True)
