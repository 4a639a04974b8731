"""Draws notebooks/idea.png, the README's picture of Eq. 2 → Eq. 3, from real tensors: python notebooks/idea.py"""
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

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
group, f = Rotation(), MNISTNet(rotations=4).double()
digits = data.load("mnist5k").train_x[:32].double() / 255  # (32, 1, 29, 29)
f(digits)  # BatchNorm sees some digits
f.eval()
x = digits[5:6]  # (1, 1, 29, 29)
g1, g2, g0 = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
first, second = "tab:blue", "tab:orange"

with torch.no_grad():
    z = fibers(f(x), group)[0]  # (|G|, C)
    z1, z2 = (fibers(f(group.T(x, g)), group)[0] for g in (g1, g2))  # (|G|, C) each
i1, i2 = (int(group.shift_base(g, g0)) for g in (g1, g2))
gap = max(float((z1[g0] - z[i1]).abs().max()), float((z2[g0] - z[i2]).abs().max()))
assert gap < 1e-13
channels = z.std(0).argsort(descending=True)[:24]  # those that tell the turns apart best
mean = z.mean(0)  # (C,) what all rows share is left out of the picture

figure, axes = plt.subplot_mosaic([["x1", "x2", "f1", "f2", "A"], ["x", ".", "z", "z", "H"]], figsize=(11, 4.3),
                                  width_ratios=[1, 1, 1.25, 1.25, 2.6], layout="constrained")
for ax in axes.values():
    ax.set_xticks([]), ax.set_yticks([])
    ax.spines[:].set_visible(False)


def image(name, picture, title, colour="black"):
    axes[name].imshow(picture[0, 0], cmap="gray")
    axes[name].set_title(title, fontsize=12, color=colour)


def rows(name, values, marks, title, colour="black"):
    """Fibers as rows, channels as columns; marks: (row, colour) of the ones the loss looks at."""
    ax, values = axes[name], (values - mean)[:, channels]  # (|G|, 24)
    ax.imshow(values, aspect="auto", cmap="Greys", vmin=-float(values.abs().max()), vmax=float(values.abs().max()))
    for row, edge in marks:
        ax.add_patch(Rectangle((-0.45, row - 0.45), len(channels) - 0.1, 0.9, fill=False, ec=edge, lw=3))
    ax.set_yticks(range(4), ["0°", "90°", "180°", "270°"], fontsize=9)
    ax.set_title(title, fontsize=12, color=colour)


image("x1", group.T(x, g1), "$T_{g_1}x$", first)
image("x2", group.T(x, g2), "$T_{g_2}x$", second)
rows("f1", z1, [(int(g0), first)], "$f(T_{g_1}x)$", first)
rows("f2", z2, [(int(g0), second)], "$f(T_{g_2}x)$", second)
image("x", x, "$x$")
rows("z", z, [(i1, first), (i2, second)], "$z = f(x)$")
for name, lines in (("A", "A-SSL, Eq. 2 (SimCLR)\ntwo images, one place $g_0$:\n"
                          r"$\mathrm{sim}(h(f(T_{g_1}x)(g_0)),\ h(f(T_{g_2}x)(g_0)))$"),
                    ("H", "H-SSL, Eq. 3 (DIM)\none image, two places:\n"
                          r"$\mathrm{sim}(h(z(g_1^{-1}g_0)),\ h(z(g_2^{-1}g_0)))$" + f"\nframed rows agree to {gap:.0e}")):
    axes[name].text(0.02, 0.5, lines, fontsize=11.5, va="center", linespacing=1.8, transform=axes[name].transAxes)
figure.savefig(os.path.join(HERE, "idea.png"), dpi=100)
print(f"notebooks/idea.png: framed fibers differ by at most {gap:.1e}")
