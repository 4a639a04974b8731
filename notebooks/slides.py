"""Draws five slides for a class, 16:9, into notebooks/slides: python notebooks/slides.py

All from real digits and untrained networks.  notebooks/README.md says what to ask at each.
"""

import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data
import eq2_to_eq3
from backbones import MNISTNet
from groups import Rotation, Scale
from probe import grey_bins, share_found
from show import TURNS, draw, fed, fiber_rows, plt

SLOTS = [f"slot {r}" for r in range(4)]
ANGLES = ["0°", "90°", "180°", "270°"]


def one_filter_four_slots(figure, f, x):
    """The first layer: a filter turned four times, and its maps of the digit."""
    figure.suptitle("One filter, turned four times: four slots", fontsize=36)
    layer = f.convs[0]
    maps = layer(x)[0]  # (8, 4, 29, 29)
    channel = int(maps.std(1).mean((-2, -1)).argmax())  # where the four slots differ most
    axes = figure.subplots(2, 5)
    axes[0, 0].axis("off")
    draw(axes[1, 0], x[0, 0])
    axes[1, 0].set_title("image", fontsize=26)
    for r in range(4):
        kernel = layer.kernel(r)[channel, 0]
        for ax, picture in ((axes[0, r + 1], kernel), (axes[1, r + 1], maps[channel, r])):
            limit = float(picture.abs().max())
            draw(ax, picture, "", TURNS[r], "RdBu_r", vmin=-limit, vmax=limit)
        axes[0, r + 1].set_title(f"{SLOTS[r]}: {ANGLES[r]}", fontsize=26)


def turn_and_roll(figure, f, x):
    """Eq. 1: the digit turns, and the rows move on by one slot."""
    figure.suptitle("Turn the digit: the rows move on by one slot (Eq. 1)", fontsize=36)
    four = Rotation().T(x.expand(4, -1, -1, -1), torch.arange(4))  # (4, 1, 29, 29)
    fibers = f.read(f(four))  # (4, 4, C)
    assert all(torch.allclose(fibers[g], fibers[0].roll(g, 0), atol=1e-12) for g in range(4))
    shown = fibers[0].std(0).argsort(descending=True)[:10]
    values = (fibers - fibers[0].mean(0))[..., shown]
    axes = figure.subplots(2, 4, height_ratios=[1, 1.2])
    for g in range(4):
        draw(axes[0, g], four[g, 0])
        axes[0, g].set_title(f"turned by {ANGLES[g]}", fontsize=26)
        marks = [((r + g) % 4, TURNS[r]) for r in range(4)]
        fiber_rows(axes[1, g], values[g], marks=marks, limit=float(values.abs().max()), ylabel="")
        axes[1, g].set_yticks(range(4), SLOTS if g == 0 else [""] * 4, fontsize=24)
    figure.supxlabel("each row: the channels in one slot, averaged over space", fontsize=26)


def from_eq2_to_eq3(figure, f, x):
    """The step from turned images to slots."""
    eq2_to_eq3.draw(figure.add_axes([0, 0, 1, 1]))


def find_your_partner(figure, f, x):
    """InfoNCE: which pairs stand in the numerator, which in the denominator."""
    figure.suptitle("InfoNCE: find the other view among all other images", fontsize=36)
    n = 4
    image = torch.arange(n).repeat_interleave(2)  # (2N,)
    table = (image[:, None] != image).double()
    for k in range(0, 2 * n, 2):
        table[k, k + 1] = 3
    ax = figure.subplots()
    draw(ax, table, cmap="Greys")
    names = [f"{'abcd'[k // 2]}{k % 2 + 1}" for k in range(2 * n)]
    ax.set_xticks(range(2 * n), names, fontsize=26)
    ax.set_yticks(range(2 * n), names, fontsize=26)
    text = "images a, b, c, d\nviews 1 and 2\n\nblack: pull together\n"
    text += "grey: push apart\nwhite: left out"
    ax.text(2 * n + 0.2, n - 0.5, text, fontsize=30, va="center")


def is_the_task_trivial(figure, f, x):
    """Eight grey values, counted, find every turned copy, and shrunk ones no better than chance."""
    figure.suptitle("Is the task trivial?  Eight grey values, counted, no network", fontsize=36)
    images = data.load("mnist5k").test_x.double() / 255  # (1000, 1, 29, 29)
    axes = figure.subplots(2, 3)
    ones = torch.ones(len(images), dtype=torch.long)
    cases = [
        ("an image", x, None),
        ("turned by 90°", Rotation().T(x, ones[:1]), Rotation().T(images, ones)),
        ("shrunk to 4/5", Scale().T(x, ones[:1]), Scale().T(images, ones)),
    ]
    for column, (name, picture, changed) in enumerate(cases):
        draw(axes[0, column], picture[0, 0])
        axes[0, column].set_title(name, fontsize=28)
        ax = axes[1, column]
        ax.bar(range(1, 8), grey_bins(picture)[0, 1:], color="0.35")  # without the background
        ax.set(ylim=(0, 100), xticks=[], yticks=[])
        ax.set_xlabel("grey value (without black)", fontsize=22)
        if changed is not None:
            nearest = -torch.cdist(grey_bins(changed), grey_bins(images), p=1)
            found = share_found(nearest)
            ax.set_title(f"finds {found:.1f} %\nof 1,000 copies", fontsize=26)
            print(f"grey values find {found:.1f} % of the images {name}")


SLIDES = {
    "1_slots": one_filter_four_slots,
    "2_turn": turn_and_roll,
    "3_eq2_to_eq3": from_eq2_to_eq3,
    "4_infonce": find_your_partner,
    "5_trivial": is_the_task_trivial,
}


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    plt.rcParams["svg.hashsalt"] = "slides"  # the same files each time
    plt.rcParams["figure.constrained_layout.use"] = False
    images = data.load("mnist5k").test_x[:128].double() / 255
    f = fed(MNISTNet(rotations=4, width=0.25, functions=3), images)
    os.makedirs(os.path.join(HERE, "slides"), exist_ok=True)
    for name, slide in SLIDES.items():
        figure = plt.figure(figsize=(16, 9))
        if slide is not from_eq2_to_eq3:
            figure.set_layout_engine("constrained", rect=(0.02, 0.02, 0.96, 0.96))
        slide(figure, f, images[6:7])
        figure.savefig(os.path.join(HERE, "slides", name + ".svg"), metadata={"Date": None})
        if len(sys.argv) > 1:  # also as PNG, into this folder
            figure.savefig(os.path.join(sys.argv[1], name + ".png"), dpi=45)
        plt.close(figure)


if __name__ == "__main__":
    main()
