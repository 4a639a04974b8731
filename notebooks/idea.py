"""Draws notebooks/idea.png, the README's picture of the step from Eq. 2 to Eq. 3, from real tensors: python notebooks/idea.py"""
import os
import sys

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data  # noqa: E402
from backbones import MNISTNet  # noqa: E402
from groups import Rotation, fibers  # noqa: E402
from turning import fed  # noqa: E402

SHOWN = 24  # channels, of 128
ANGLES = ["0°", "90°", "180°", "270°"]
FIRST, SECOND = "#1b8a4b", "#d6278f"  # view 1, view 2

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
digits = data.load("mnist5k")
images = digits.train_x[:256].double() / 255  # (256, 1, 29, 29)
group, f = Rotation(), fed(MNISTNet(rotations=4), images)  # random weights

x = images[(digits.train_y[:256] == 7).nonzero()[9]]  # (1, 1, 29, 29) a 7
g1, g2, g0 = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])  # (1,) three times
z = fibers(f(x), group)[0]  # (4, C)
z1, z2 = (fibers(f(group.T(x, g)), group)[0] for g in (g1, g2))  # (4, C) twice
place1, place2 = (int(group.shift_base(g, g0)) for g in (g1, g2))
gap = max(float((z1[g0] - z[place1]).abs().max()), float((z2[g0] - z[place2]).abs().max()))
assert gap < 1e-12
assert (z1[g0] - z[g0]).abs().max() > 0.1  # the null: without the step g⁻¹ the rows are not equal

channels = z.std(0).argsort(descending=True)[:SHOWN].sort().values  # (24,) where the four rows of z differ most
mean = z.mean(0)  # (C,) what the four rows share is left out of the picture
limit = float((z - mean)[:, channels].abs().max())


def image(ax, picture, title, colour="black"):
    ax.imshow(picture[0, 0], cmap="gray")
    ax.set_title(title, fontsize=12, color=colour)


def rows(ax, values, marks, title, colour="black"):
    """Fibers as rows, channels as columns; marks: (row, colour) of the ones that the loss reads."""
    ax.imshow((values - mean)[:, channels], aspect="auto", cmap="Greys", vmin=-limit, vmax=limit)
    for row, edge in marks:
        ax.add_patch(Rectangle((-0.4, row - 0.42), SHOWN - 0.2, 0.84, fill=False, ec=edge, lw=3))
    ax.set_yticks(range(4), ANGLES, fontsize=9)
    ax.set_ylabel("filter turned by", fontsize=9)
    ax.set_title(title, fontsize=12, color=colour)


figure, axes = plt.subplot_mosaic([["x1", "f1", "A"], ["x2", "f2", "A"], ["x", "z", "H"]], figsize=(10.4, 6),
                                  width_ratios=[1, 3, 2.2], layout="constrained")
for ax in axes.values():
    ax.set_xticks([]), ax.set_yticks([])
    ax.spines[:].set_visible(False)
image(axes["x1"], group.T(x, g1), "$T_{g_1}x$: 90°", FIRST)
image(axes["x2"], group.T(x, g2), "$T_{g_2}x$: 180°", SECOND)
image(axes["x"], x, "$x$: 0°")
rows(axes["f1"], z1, [(int(g0), FIRST)], "$f(T_{g_1}x)$, read at $g_0$ = 270°", FIRST)
rows(axes["f2"], z2, [(int(g0), SECOND)], "$f(T_{g_2}x)$, read at $g_0$ = 270°", SECOND)
rows(axes["z"], z, [(place1, FIRST), (place2, SECOND)],
     f"$z = f(x)$, read at $g_1^{{-1}}g_0$ = {ANGLES[place1]} and at $g_2^{{-1}}g_0$ = {ANGLES[place2]}")
axes["z"].set_xlabel(f"{SHOWN} of the {len(mean)} channels: those that differ most between the four rows of $z$;\n"
                     "the mean of these four rows is subtracted in all three maps", fontsize=9)
for name, lines in (("A", "A-SSL, Eq. 2:\ntwo turned images,\none row of each map\n\n"
                          r"$\mathrm{sim}(h(f(T_{g_1}x)(g_0)),\ h(f(T_{g_2}x)(g_0)))$"),
                    ("H", "H-SSL, Eq. 3:\none image,\ntwo rows of its map\n\n"
                          r"$\mathrm{sim}(h(z(g_1^{-1}g_0)),\ h(z(g_2^{-1}g_0)))$")):
    axes[name].text(0.02, 0.5, lines, fontsize=11, va="center", linespacing=1.5, transform=axes[name].transAxes)
figure.suptitle("Rows framed in one colour hold the same numbers: both losses compare the same two rows", fontsize=13)
figure.savefig(os.path.join(HERE, "idea.png"), dpi=100)
print(f"notebooks/idea.png: rows framed in one colour differ by at most {gap:.0e}")
