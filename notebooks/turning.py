"""Draws notebooks/turning.gif: python notebooks/turning.py

A digit turns, and the slots of two untrained networks are watched.  Left of them the digit.
Middle, a network for rotations: after each quarter turn its four rows have moved on by one slot,
unchanged (Eq. 1).  Right, an ordinary CNN with four times the channels, read as four slots: after
a quarter turn it has other rows.
"""

import io
import os
import sys

import torch
import torch.nn.functional as F
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data
from backbones import CNN, MNISTNet
from groups import Rotation
from probe import distances
from show import TURNS, fed, plt

STEP = 30  # degrees a frame
CHANNELS = 16  # of 32 are shown: those that differ most between the four slots


def turned(x, degrees):
    """x (1, 1, H, H) turned counter-clockwise: quarter turns are exact, the rest interpolated."""
    quarters, rest = divmod(degrees, 90)
    x = x.rot90(quarters, (-2, -1))
    if rest == 0:
        return x
    angle = torch.deg2rad(torch.tensor(float(rest)))
    cos, sin, no = angle.cos(), angle.sin(), 0 * angle
    matrix = torch.stack([cos, -sin, no, sin, cos, no]).view(1, 2, 3).to(x)
    where = F.affine_grid(matrix, x.shape, align_corners=False)
    return F.grid_sample(x, where, align_corners=False)  # (1, 1, H, H)


def networks(images):
    """A network for rotations, and an ordinary CNN that claims to have four slots."""
    f = MNISTNet(rotations=4, width=0.25)
    cnn = CNN(width=0.25, order=4)
    cnn.group = Rotation()  # so that the error of Eq. 1 can be measured
    return fed(f, images), fed(cnn, images)


def errors(f, images):
    """The error of Eq. 1 for 90°, 180°, 270°; at 1 the prediction is as bad as none."""
    found = distances(f, images, Rotation(), torch.arange(1, 4), torch.tensor([0]))
    return [e / change for e, change in zip(found["equation1"], found["invariance"])]


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    images = data.load("mnist5k").test_x[:128].double() / 255  # (128, 1, 29, 29)
    x = images[6:7]  # (1, 1, 29, 29), a 7
    names = "network for rotations", "ordinary CNN"
    both = networks(images)
    error = [errors(f, images) for f in both]

    frames = []
    for angle in range(0, 360, STEP):
        quarter, rest = divmod(angle, 90)
        figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), width_ratios=[1, 1.25, 1.25])
        axes[0].imshow(turned(x, angle)[0, 0], cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(f"the digit, turned by {angle}°", fontsize=15)
        axes[0].set(xticks=[], yticks=[])
        for ax, f, name, wrong in zip(axes[1:], both, names, error):
            start = f.read(f(x))[0]  # (4, C)
            shown = start.std(0).argsort(descending=True)[:CHANNELS].sort().values  # (16,)
            values = (f.read(f(turned(x, angle)))[0] - start.mean(0))[:, shown]  # (4, 16)
            limit = float((start - start.mean(0))[:, shown].abs().max())
            ax.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
            ax.set_title(name, fontsize=15)
            ax.set(xticks=[], yticks=range(4), xlim=(-0.5, CHANNELS + 0.7))
            ax.set_yticklabels([f"slot {r}" for r in range(4)], fontsize=13)
            ax.spines[:].set_visible(False)
            if rest == 0:
                colours = [TURNS[(r - quarter) % 4] for r in range(4)]
                ax.scatter([CHANNELS + 0.1] * 4, range(4), s=260, marker="s", c=colours)
            text = "between two quarter turns"
            if angle == 0:
                text = "squares: where each row should be"
            elif rest == 0:
                text = f"error of Eq. 1: {wrong[quarter - 1]:.2g}"
                if wrong[quarter - 1] < 1e-10:
                    text = f"the rows of 0°, moved down by {quarter}\nerror of Eq. 1: 0 (rounding)"
                else:
                    text = f"other rows than at 0°\n{text} (null: 1)"
            ax.set_xlabel(text + ("" if "\n" in text else "\n "), fontsize=13)
        figure.suptitle(
            "Each row: all channels in one slot (16 shown, averaged over space)", fontsize=14
        )
        picture = io.BytesIO()
        figure.savefig(picture, dpi=72)
        plt.close(figure)
        frames.append(Image.open(picture).convert("RGB"))

    palette = frames[0].quantize(64, Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pauses = [1800 if angle % 90 == 0 else 250 for angle in range(0, 360, STEP)]  # ms
    path = os.path.join(HERE, "turning.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    print(f"turning.gif: error of Eq. 1 at 90°: {error[0][0]:.0e} for rotations, {error[1][0]:.2f}")


if __name__ == "__main__":
    main()
