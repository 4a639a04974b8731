"""Draws notebooks/turning.gif: a digit turns, and the fibers of two networks are watched: python notebooks/turning.py

Middle, a network for rotations: after each quarter turn its four fibers have moved one row on, unchanged (Eq. 1).
Right, an ordinary CNN with four times the channels, read as four fibers: they do not move along the rows.
Both are untrained; their BatchNorm has seen 256 digits.  `measure` gives the numbers, without the drawing."""
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data  # noqa: E402
from backbones import MNISTNet  # noqa: E402
from groups import Rotation  # noqa: E402
from losses import distances  # noqa: E402

STEP, HOLD = 15, 6  # degrees a frame; frames for which a quarter turn stays in view


class FourParts(nn.Module):
    """A network without rotations and 4·C channels, read as four fibers of C channels: z (B, C, 4, H', W')."""

    order, independent, pool = 4, False, "mean"

    def __init__(self, width):
        super().__init__()
        self.net = MNISTNet(width=4 * width)  # rotations=1: no lifted axis

    def forward(self, x, elements=None):
        return self.net(x)[:, :, 0].unflatten(1, (4, -1)).transpose(1, 2)  # (B, C, 4, H', W')


def fed(f, images):
    """f in evaluation mode, its BatchNorm with the mean and variance of images (B, C_in, H, H).  No weight changes.

    A BatchNorm that has seen nothing divides by 1, and the layers of an untrained f would then differ in size."""
    for norm in f.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # a plain average
    with torch.no_grad():
        f.train()(images)
    return f.eval()


def turned(x, degrees):
    """x (1, 1, H, H) turned counter-clockwise: quarter turns are exact, what is left is interpolated."""
    quarters, rest = divmod(degrees, 90)
    x = x.rot90(quarters, (-2, -1))  # (1, 1, H, H)
    if rest == 0:
        return x
    a = torch.deg2rad(torch.tensor(float(rest)))  # ()
    matrix = torch.stack([a.cos(), -a.sin(), a * 0, a.sin(), a.cos(), a * 0]).view(1, 2, 3)  # (1, 2, 3)
    return F.grid_sample(x, F.affine_grid(matrix.to(x), x.shape, align_corners=False), align_corners=False)  # (1, 1, H, H)


def measure(f, images):
    """Root mean square over images, for turns by 90°, 180°, 270°, in units of the distance between two images: three
    floats of ‖f(T_g x)(0) - f(x)(g⁻¹·0)‖ (Eq. 1), and three of its null ‖f(T_g x)(0) - f(x)(0)‖."""
    found = distances(f, images, Rotation(), torch.arange(1, 4), torch.tensor([0]))
    return found["equation1"], found["invariance"]


def main():
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    images = data.load("mnist5k").test_x[:256].double() / 255  # (256, 1, 29, 29)
    x, both = images[6:7], [fed(f, images) for f in (MNISTNet(rotations=4, width=0.25), FourParts(0.25))]  # (1, 1, 29, 29) a 7
    angles = [a for quarter in range(4) for a in [90 * quarter] * HOLD + list(range(90 * quarter + STEP, 90 * quarter + 90, STEP))]
    z = {a: [f(turned(x, a)).mean((-2, -1))[0].T for f in both] for a in set(angles)}  # two (4, C) for each angle
    channels = z[0][0].std(0).argsort(descending=True)[:16].sort().values  # (16,) that differ most between the four fibers
    mean = [v.mean(0) for v in z[0]]  # (C,) twice: what the four rows share at 0° is left out of the picture
    errors = [measure(f, images)[0] for f in both]
    assert all(torch.allclose(z[90 * q][0], z[0][0].roll(q, 0), atol=1e-12) for q in range(4))

    figure, axes = plt.subplots(1, 3, figsize=(8, 2.7), width_ratios=[1, 1.35, 1.35], layout="constrained")
    shown = [axes[0].imshow(x[0, 0], cmap="gray")]
    for ax, v, m, name in zip(axes[1:], z[0], mean, ("network for rotations", "ordinary CNN, as four fibers")):
        limit = float((v - m)[:, channels].abs().max())
        shown.append(ax.imshow((v - m)[:, channels], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto"))
        ax.set(xticks=[], yticks=range(4), title=name, ylabel="fiber")
    axes[0].set(xticks=[], yticks=[], aspect="equal")
    note = [ax.set_xlabel(" \n ", fontsize=9) for ax in axes]
    note[0].set_text("errors are in units of the\ndistance between two digits")
    axes[1].set_xlim(-0.5, 15.5)  # the marks lie outside
    marks = [axes[1].plot(-0.9, r, "s", ms=9, clip_on=False, color=f"C{r}")[0] for r in range(4)]

    def draw(angle):
        quarter, rest = divmod(angle, 90)
        axes[0].set_title(f"turned by {angle}°")
        shown[0].set_data(turned(x, angle)[0, 0])
        for image, v, m in zip(shown[1:], z[angle], mean):
            image.set_data((v - m)[:, channels])
        for text, error, words in zip(note[1:], errors, ("the same rows, moved {} down", "other rows than before")):
            at_rest = rest == 0 and quarter > 0
            text.set_text(f"{words.format(quarter)}\nerror of Eq. 1: {error[quarter - 1]:.2g}" if at_rest else " \n ")
        for r, mark in enumerate(marks):
            mark.set_ydata([(r + quarter) % 4])
            mark.set_visible(rest == 0)
        return shown

    FuncAnimation(figure, draw, frames=angles).save(os.path.join(HERE, "turning.gif"), PillowWriter(fps=5), dpi=72)
    print(f"notebooks/turning.gif: error of Eq. 1 at 90°, {errors[0][0]:.0e} for rotations, {errors[1][0]:.2f} for the CNN")


if __name__ == "__main__":
    main()
