"""What the notebooks share: one style, fixed colours, and a few pictures.

    import show
    show.grid([[x, y]], titles=["before", "after"])  # a row of maps
    show.check("shift_base", mine, right)            # right, wrong, or not written yet

Turns, views and losses (results/claims.py) never share a colour.
"""

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from torch.nn.modules.batchnorm import _BatchNorm

TURNS = ["#3366cc", "#e6a700", "#2e9e5b", "#d1352b"]  # slot or element 0°, 90°, 180°, 270°
VIEWS = ["#8e24aa", "#ff5fa2"]  # g1 and g2 of a pair
ERROR, NULL = "#222222", "#b5b5b5"  # the error of Eq. 1, and its null: 1

plt.rcParams.update(
    {
        "figure.dpi": 80,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 11,
        "legend.fontsize": 10,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "image.interpolation": "nearest",
    }
)


# ------------------------------------------------------------------------------------- pictures
def draw(ax, image, title="", colour=None, cmap="gray", **limits):
    """One map without ticks.  A coloured frame stands for a turn or a view.

    image   (H, W)
    limits  vmin and vmax
    Returns what `imshow` returns, for a colour bar."""
    shown = ax.imshow(image, cmap=cmap, **limits)
    ax.set(xticks=[], yticks=[], title=title)
    for spine in ax.spines.values():
        spine.set(color=colour or "0.6", linewidth=3 if colour else 0.8)
    return shown


def grid(rows, titles=(), names=(), colours=(), cmap="gray", limit=None, size=1.9):
    """Maps in rows and columns, all in one colour scale.

    rows     a list of lists of (H, W)
    titles   one for each column; a list of lists: one for each map
    names    one for each row, on its left
    colours  frames, laid out like `titles`
    cmap     "RdBu_r" puts 0 in the middle, white
    limit    the largest value shown; None: that of all maps
    size     of a map, in inches
    Returns the figure.  A title or colour of None is left out."""
    if limit is None:
        limit = max(float(torch.as_tensor(m).abs().max()) for row in rows for m in row) or 1.0
    low = -limit if cmap == "RdBu_r" else 0.0
    width = len(rows[0])
    figsize = (size * width + (1.2 if names else 0), (size + 0.05) * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), width, figsize=figsize, squeeze=False)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            title = of_cell(titles, i, j, first_row_only=True)
            colour = of_cell(colours, i, j)
            draw(axes[i, j], image, title or "", colour, cmap, vmin=low, vmax=limit)
        if names:
            axes[i, 0].set_ylabel(names[i], rotation=0, ha="right", va="center")
    return figure


def of_cell(values, i, j, first_row_only=False):
    """The title or colour of row i, column j; values as in `grid`."""
    if not len(values):
        return None
    if isinstance(values[0], (list, tuple)):
        return values[i][j]
    return None if first_row_only and i else values[j]


def fiber_rows(ax, values, title="", marks=(), limit=None, ylabel="slot"):
    """Fibers as rows, channels as columns.

    values  (n, C)
    marks   (row, colour) of the rows that are framed
    limit   the largest value shown"""
    limit = limit or float(values.abs().max())
    ax.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for row, colour in marks:
        frame = Rectangle((-0.45, row - 0.45), values.shape[1] - 0.1, 0.9)
        frame.set(fill=False, edgecolor=colour, linewidth=3)
        ax.add_patch(frame)
    ax.set(xticks=[], yticks=range(len(values)), ylabel=ylabel, title=title)


def bars(ax, names, series, colours, unit="{:.2g}"):
    """Groups of bars, each with its value above it.

    names    one for each group
    series   {label: one value for each group; nan: there is none}
    colours  {label: colour}
    unit     how a value is written"""
    width = 0.84 / len(series)
    for k, (label, values) in enumerate(series.items()):
        places = [n + (k - (len(series) - 1) / 2) * width for n in range(len(names))]
        heights = [0.0 if v != v else float(v) for v in values]
        drawn = ax.bar(places, heights, 0.94 * width, color=colours[label], label=label)
        written = ["–" if v != v else unit.format(float(v)) for v in values]
        ax.bar_label(drawn, written, fontsize=10, padding=2)
    ax.set_xticks(range(len(names)), names)
    ax.margins(y=0.15)


def slider(picture, largest, start=1):
    """picture(g) with a slider for g = 0 … largest; one picture where ipywidgets is missing."""
    try:
        from ipywidgets import interact
    except ImportError:
        picture(start)
        return
    interact(picture, g=(0, largest))


# ------------------------------------------------------------------------------ what is not drawn
def check(name, mine, right):
    """Say whether an answer (a tensor or a number) is right, wrong or not written yet."""
    if mine is None:
        print(f"{name}: not written yet")
        return
    mine = torch.as_tensor(mine).double()
    right = torch.as_tensor(right).double()
    same = mine.shape == right.shape and torch.allclose(mine, right, atol=1e-9)
    print(f"{name}: {'right' if same else 'wrong'}")


def relative(a, b):
    """The relative difference ‖a - b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def equation1(changed, predicted, still):
    """The error of Eq. 1: ‖changed - predicted‖ over the change under g, ‖changed - still‖.

    changed    f(T_g x), or its bundle f(T_g x)(g0)
    predicted  Γ_g f(x), or f(x)(g⁻¹·g0)
    still      f(x), or f(x)(g0)
    Returns a number.  0 is exact; at its null, 1, the prediction is as bad as none."""
    return float((changed - predicted).norm() / (changed - still).norm())


def fed(module, inputs):
    """A network or head in evaluation mode, its BatchNorm with the mean and variance of `inputs`.

    No weight changes.  A BatchNorm that has seen nothing divides by 1, and the layers of an
    untrained network would differ in size."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = None  # a plain average
    with torch.no_grad():
        module.train()(inputs)
    return module.eval()
