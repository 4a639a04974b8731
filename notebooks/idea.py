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
channels = z.std(0).argsort(descending=True)[:28]  # those that tell the turns apart best

figure, axes = plt.subplots(2, 5, figsize=(11, 4.4), width_ratios=[1, 1, 2.2, 0.75, 3.0], layout="constrained")
for ax in axes.flat:
    ax.set_xticks([]), ax.set_yticks([])
    ax.spines[:].set_visible(False)


def image(ax, picture, title, colour="black"):
    ax.imshow(picture[0, 0], cmap="gray")
    ax.set_title(title, fontsize=11, color=colour)


def rows(ax, values, marks, title):
    """Fibers as rows; marks: (row, colour) of the ones the loss looks at."""
    ax.imshow(values[:, channels], aspect="auto", cmap="viridis", vmin=0, vmax=float(z[:, channels].max()))
    for row, colour in marks:
        ax.add_patch(Rectangle((-0.45, row - 0.45), len(channels) - 0.1, 0.9, fill=False, ec=colour, lw=3))
    ax.set_yticks(range(4), ["0°", "90°", "180°", "270°"], fontsize=9)
    ax.set_title(title, fontsize=11)


def text(ax, lines):
    ax.text(0, 0.5, lines, fontsize=11, va="center", linespacing=1.7, transform=ax.transAxes)


image(axes[0, 0], group.T(x, g1), "$T_{g_1}x$", first)
image(axes[0, 1], group.T(x, g2), "$T_{g_2}x$", second)
halves = axes[0, 2].get_subplotspec().subgridspec(1, 2, wspace=0.35)
axes[0, 2].remove()
left, right = (figure.add_subplot(h) for h in halves)
for ax, values, colour, title in ((left, z1, first, "$f(T_{g_1}x)$"), (right, z2, second, "$f(T_{g_2}x)$")):
    ax.set_xticks([])
    rows(ax, values, [(int(g0), colour)], title)
axes[0, 3].remove(), axes[1, 3].remove()
text(axes[0, 4], "A-SSL, Eq. 2 (SimCLR)\ntwo images, one place $g_0$\n"
                 r"$\mathrm{sim}(h(f(T_{g_1}x)(g_0)),\ h(f(T_{g_2}x)(g_0)))$")
image(axes[1, 0], x, "$x$")
axes[1, 1].remove()
rows(axes[1, 2], z, [(i1, first), (i2, second)], "$z = f(x)$")
text(axes[1, 4], "H-SSL, Eq. 3\none image, two places $g_1^{-1}g_0,\\ g_2^{-1}g_0$\n"
                 r"$\mathrm{sim}(h(z(g_1^{-1}g_0)),\ h(z(g_2^{-1}g_0)))$" + f"\nthe framed rows agree to {gap:.0e}")
figure.savefig(os.path.join(HERE, "idea.png"), dpi=100)
print(f"notebooks/idea.png: framed fibers differ by at most {gap:.1e}")
