"""Draws notebooks/eq2_to_eq3.svg and idea.png: python notebooks/eq2_to_eq3.py

The step from Eq. 2 to Eq. 3 in one picture, from a real digit and an untrained network.
Left, Eq. 2: two turned images, two feature maps, both read at 0°.
Right, Eq. 3: one image, one feature map, read in two slots.  One colour: the same numbers.
"""

import os
import sys

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data
from backbones import MNISTNet
from groups import Rotation
from show import VIEWS, fed, plt

CHANNELS = 8  # of 128 are shown: those that differ most between the four slots


def numbers():
    """Images (3, 1, 29, 29): x, T_g1 x and T_g2 x; their fibers (3, 4, 8) in 0 … 1; two slots."""
    torch.manual_seed(0)
    digits = data.load("mnist5k")
    images = digits.train_x.double() / 255
    group = Rotation()
    f = fed(MNISTNet(rotations=4).double(), images[:64])
    g = torch.tensor([0, 1, 2])  # no turn, g1 a quarter turn, g2 half a turn
    four = images[digits.train_y == 4][3:4].expand(3, -1, -1, -1)
    views = group.T(four, g)  # (3, 1, 29, 29)
    with torch.no_grad():
        z = f.read(f(views))  # (3, 4, C)
    slots = group.shift_base(g, torch.tensor([0]))[:, 0].tolist()  # g⁻¹·g0, with g0 = 0°
    for view, slot in zip(z, slots):
        assert torch.allclose(view[0], z[0, slot], atol=1e-12)
    shown = z[0].std(0).argsort(descending=True)[:CHANNELS]
    low, high = z[0][:, shown].amin(0), z[0][:, shown].amax(0)  # of each channel
    return views, ((z[..., shown] - low) / (high - low)).clamp(0, 1), slots


def digit(ax, x, y, size, image, label, colour="black"):
    ax.imshow(image[0], cmap="gray", extent=(x, x + size, y, y + size), zorder=2)
    ax.add_patch(Rectangle((x, y), size, size, fill=False, ec=colour, lw=5, zorder=3))
    ax.text(x + size / 2, y - 0.42, label, fontsize=28, color=colour, ha="center", va="center")


def feature_map(ax, x, y, width, height, values, marks):
    """Four slots, one a row, 0° on top; marks: {slot: (colour, label)} of those that are read."""
    cell = width / CHANNELS
    row = height / 4
    for slot in range(4):
        colour, label = marks.get(slot, ("#999999", ""))
        strength = 0.85 if slot in marks else 0.3
        shades = LinearSegmentedColormap.from_list("", ["white", colour])
        bottom = y + height - (slot + 1) * row
        for c, value in enumerate(values[slot].tolist()):
            shade = shades(0.08 + strength * value)
            ax.add_patch(Rectangle((x + c * cell, bottom), cell, row, fc=shade, ec="white", lw=1))
        if label:
            frame = Rectangle((x, bottom), width, row, fill=False, ec=colour, lw=6, zorder=4)
            ax.add_patch(frame)
        middle = bottom + row / 2
        ax.text(x + width + 0.15, middle, label, fontsize=27, color=colour, va="center")
        name = f"{90 * slot}°"
        ax.text(x - 0.12, middle, name, fontsize=20, color="#444444", ha="right", va="center")


def arrow(ax, x0, x1, y):
    style = dict(arrowstyle="-|>", lw=3, mutation_scale=28, color="black")
    ax.annotate("", (x1, y), (x0, y), arrowprops=style)
    ax.text((x0 + x1) / 2, y + 0.3, "$f$", fontsize=28, ha="center", va="center")


def draw(ax):
    """The picture, on axes of 16 × 9."""
    views, fibers, slots = numbers()
    ax.set(xlim=(0, 16), ylim=(0, 9))
    ax.axis("off")
    for x, title, below in (
        (3.4, "Eq. 2: turn the image", "two images, one slot"),
        (12.1, "Eq. 3: read another slot", "one image, two slots"),
    ):
        ax.text(x, 8.4, title, fontsize=34, weight="bold", ha="center", va="center")
        ax.text(x, 7.7, below, fontsize=25, ha="center", va="center")
    ax.plot([7.65, 7.65], [1.3, 8.5], color="#bbbbbb", lw=2)

    for k, y in ((1, 4.75), (2, 1.6)):
        colour = VIEWS[k - 1]
        digit(ax, 0.3, y, 2.2, views[k], f"$T_{{g_{k}}}x$", colour)
        arrow(ax, 2.6, 3.2, y + 1.1)
        feature_map(ax, 4.25, y, 2.3, 2.2, fibers[k], {0: (colour, "$g_0$")})
    digit(ax, 8.05, 2.95, 2.6, views[0], "$x$")
    arrow(ax, 10.8, 11.3, 4.25)
    marks = {
        slots[1]: (VIEWS[0], r"$g_1^{-1} g_0$"),
        slots[2]: (VIEWS[1], r"$g_2^{-1} g_0$"),
    }
    feature_map(ax, 12.25, 2.35, 2.3, 3.8, fibers[0], marks)
    text = "same colour, same numbers: so the two losses are equal"
    ax.text(8, 0.5, text, fontsize=28, ha="center", va="center")


def main():
    plt.rcParams["svg.hashsalt"] = "eq2_to_eq3"  # the same file each time
    plt.rcParams["figure.constrained_layout.use"] = False
    figure = plt.figure(figsize=(16, 9))
    draw(figure.add_axes([0, 0, 1, 1]))
    figure.savefig(os.path.join(HERE, "eq2_to_eq3.svg"), metadata={"Date": None})
    figure.savefig(os.path.join(HERE, "idea.png"), dpi=60)
    print("eq2_to_eq3.svg, idea.png: fibers of one colour are equal to 1e-12")


if __name__ == "__main__":
    main()
