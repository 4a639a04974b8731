"""Draws notebooks/eq2_to_eq3.svg, the lecture's picture of Eq. 2 and Eq. 3, from a real digit: python notebooks/eq2_to_eq3.py

Left, Eq. 2: two turned images, two feature maps, both read at the same place g0.
Right, Eq. 3: the image as it is, one feature map, read at two places.  Equal fibers have the same colour."""
import os
import sys

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data  # noqa: E402
from backbones import MNISTNet  # noqa: E402
from groups import Rotation, fibers  # noqa: E402

GREEN, PINK, GREY = "#1b8a4b", "#d6278f", "#8c8c8c"  # view 1, view 2 (as in notebook 03), the rest
CHANNELS = 10  # of 128: those that differ most from turn to turn

# ---------------------------------------------------------------- the numbers
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
images = data.load("mnist5k")
group, f = Rotation(), MNISTNet(rotations=4)
f(images.train_x[:64].double() / 255)  # training mode: BatchNorm sees 64 digits
f.eval()
x = images.train_x[images.train_y == 4][3:4].double() / 255  # (1, 1, 29, 29)
g0, turns = torch.tensor([0]), [torch.tensor([1]), torch.tensor([2])]  # (1,) each: g1 a quarter turn, g2 half a turn
turned = [group.T(x, g) for g in turns]  # (1, 1, 29, 29) twice
with torch.no_grad():
    one = fibers(f(x), group)[0]  # (4, C)
    two = [fibers(f(t), group)[0] for t in turned]  # (4, C) twice
places = [int(group.shift_base(g, g0)) for g in turns]  # g⁻¹·g0
gap = max(float((m[0] - one[p]).abs().max()) for m, p in zip(two, places))
assert gap < 1e-13
chosen = one.std(0).argsort(descending=True)[:CHANNELS]  # (10,)
low, high = one[:, chosen].amin(0), one[:, chosen].amax(0)  # (10,) the range of each channel over the four turns
shown = lambda m: ((m[:, chosen] - low) / (high - low)).clamp(0, 1)  # (4, 10) in 0 … 1

# ---------------------------------------------------------------- the drawing
plt.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans", "svg.hashsalt": "eq2_to_eq3"})
figure = plt.figure(figsize=(16, 9))
ax = figure.add_axes([0, 0, 1, 1])
ax.set(xlim=(0, 16), ylim=(0, 9))
ax.axis("off")


def say(x, y, text, size=24, colour="black", ha="center", **kwargs):
    ax.text(x, y, text, fontsize=size, color=colour, ha=ha, va="center", **kwargs)


def digit(x, y, size, picture, label, colour):
    ax.imshow(picture[0, 0], cmap="gray", extent=(x, x + size, y, y + size), interpolation="nearest", zorder=2)
    ax.add_patch(Rectangle((x, y), size, size, fill=False, ec=colour, lw=4, zorder=3))
    say(x + size / 2, y - 0.38, label, 26, colour)


def arrow(x0, x1, y):
    ax.annotate("", (x1, y), (x0, y), arrowprops=dict(arrowstyle="-|>", lw=3, mutation_scale=26, color="black"))
    say((x0 + x1) / 2, y + 0.3, "$f$", 26)


def feature_map(x, y, width, height, values, marks):
    """Four fibers, one a row, the element 0 on top; marks: {row: (colour, label)} of the fibers that the loss reads."""
    for row in range(4):
        colour = marks.get(row, (GREY,))[0]
        shades = LinearSegmentedColormap.from_list("", ["white", colour])
        top = y + height * (4 - row) / 4
        for c, value in enumerate(values[row]):
            ax.add_patch(Rectangle((x + c * width / CHANNELS, top - height / 4), width / CHANNELS, height / 4,
                                   fc=shades(0.12 + float(value) * (0.78 if row in marks else 0.38)), ec="white", lw=0.6))
        if row not in marks:
            ax.add_patch(Rectangle((x, top - height / 4), width, height / 4, fill=False, ec="#c4c4c4", lw=1))
        say(x - 0.12, top - height / 8, f"{90 * row}°", 17, "#555555", ha="right")
    for row, (colour, label) in marks.items():
        top = y + height * (4 - row) / 4
        ax.add_patch(Rectangle((x, top - height / 4), width, height / 4, fill=False, ec=colour, lw=5, zorder=4))
        say(x + width + 0.15, top - height / 8, label, 26, colour, ha="left")


say(3.1, 8.45, "Eq. 2   (A-SSL)", 32, weight="bold")
say(3.1, 7.8, "two turned images, two maps,\nthe same place", 21, linespacing=1.3)
for y, picture, values, colour, k in ((5.05, turned[0], two[0], GREEN, 1), (1.95, turned[1], two[1], PINK, 2)):
    digit(0.3, y, 1.9, picture, f"$T_{{g_{k}}}\\,x$", colour)
    arrow(2.28, 2.82, y + 0.95)
    feature_map(3.6, y, 1.85, 1.9, shown(values), {0: (colour, "$g_0$")})
    say(4.5, y - 0.38, f"$f(T_{{g_{k}}}\\,x)$", 24)

say(12.9, 8.45, "Eq. 3   (H-SSL)", 32, weight="bold")
say(12.9, 7.8, "one image, one map,\ntwo places", 21, linespacing=1.3)
digit(9.65, 3.5, 1.9, x, "$x$", "black")
arrow(11.65, 12.15, 4.45)
feature_map(12.85, 3.2, 1.55, 2.5, shown(one), {places[0]: (GREEN, r"$g_1^{-1}\!\cdot g_0$"), places[1]: (PINK, r"$g_2^{-1}\!\cdot g_0$")})
say(13.6, 2.8, "$f(x)$", 24)

ax.add_patch(Rectangle((6.35, 2.75), 3.0, 3.6, fc="#f2f2f2", ec="none", zorder=0))
say(7.85, 5.75, "$f(T_g\\,x)(g_0)$", 30)
say(7.85, 4.95, "=", 40, weight="bold")
say(7.85, 4.15, r"$f(x)(g^{-1}\!\cdot g_0)$", 30)
say(7.85, 3.2, "if $f$ is equivariant", 20)
say(7.85, 2.25, "same colour: same numbers", 20)
say(7.85, 1.8, "(float64: to $10^{-13}$)", 18, "#555555")

for left, comma, right, first, second in ((0.75, 3.55, 5.72, "$h(f(T_{g_1}x)(g_0))$", "$h(f(T_{g_2}x)(g_0))$"),
                                          (9.65, 12.75, 15.2, r"$h(f(x)(g_1^{-1}\!\cdot g_0))$", r"$h(f(x)(g_2^{-1}\!\cdot g_0))$")):
    say(comma - 0.12, 0.65, first, 22, GREEN, ha="right")
    say(comma, 0.6, ",", 22)
    say(comma + 0.15, 0.65, second, 22, PINK, ha="left")
    say(left, 0.65, r"$\mathrm{sim}($", 22, ha="left")
    say(right, 0.65, "$)$", 22, ha="left")

out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "eq2_to_eq3.svg")
figure.savefig(out, dpi=100, metadata={"Date": None} if out.endswith(".svg") else None)
print(f"{os.path.basename(out)}: fibers of one colour differ by at most {gap:.1e}")
