"""Positions: do features tell where their slot is?

    python results/where.py --data-dir data    # adds to results/where.jsonl; tables.py shows it

The convolutions put zeros around an image, so a slot can know how far away the border is.  Here
each test image is rolled around by a random shift.  Then every slot sees the same pixels on
average, and what differs from slot to slot comes from the border.  Reads the networks in runs/ that
results/run.py has trained for `taught` and `draw`.  A network that has a line is not read again.
"""

import os
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import probe
from results.riddle import main


def rolled(x, generator):
    """Images (B, C_in, H, W), each rolled around by its own random shift."""
    shifts = torch.randint(x.shape[-1], (len(x), 2), generator=generator).tolist()
    return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(x, shifts)])


def explained(z):
    """How much of the variance of features z (B, C, |G|) the slot alone explains, in per cent: a
    mean over the channels that vary."""
    of_slots = z.mean(0).var(1, correction=0)  # (C,)
    whole = z.var((0, 2), correction=0)  # (C,)
    return 100 * float((of_slots / whole)[whole > 0].mean())


def share(f, x):
    """`explained` for the slots of a network f, over images x (B, C_in, H, W)."""
    x = rolled(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = torch.cat([f(part).flatten(2) for part in x.split(250)])  # (B, C, |G|)
    return explained(z)


def measure(folder, row, data_dir):
    """The slot's share in the network of a run's folder: a dict.  None if it has no positions."""
    if row["group"] != "trans":
        return None
    f, classifier, _, images, _ = probe.open_run(folder, data_dir)
    f.eval()
    classifier.eval()
    probe.feed(f, classifier, images.train_x, torch.device("cpu"))
    return dict(where=share(f, images.test_x[:1000] / 255))


if __name__ == "__main__":
    main(__doc__, "where.jsonl", ("taught", "draw"), measure)
