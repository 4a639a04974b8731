"""The pictures of results/README.md, from results/*.jsonl:  python results/pictures.py [NAME ...]

A picture whose runs do not exist is left out.  Dots are seeds, and lines and | their means; rings
are digits changed by g, or the paper's numbers.
"""

import os
import sys

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from results import claims, tables
from results.claims import COLOURS, GROUPS, LOSSES, by_seed, load
from results.tables import LABELS, RIDDLE

plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "figure.titlesize": 12})
plt.rcParams.update({"legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
plt.rcParams["figure.constrained_layout.use"] = True


def spelled(arm):
    """What an arm trains with, for readers."""
    group, loss = arm.split(", ")[:2]
    if group == "trans":
        loss = loss.replace("H-SSL", "any two")
    return loss.replace("near", "neighbours")


def dots(ax, y, values, colour, fill):
    """A dot for each seed, and | for their mean."""
    ax.plot(values, [y] * len(values), "o", mec=colour, mfc=fill, ms=6)
    ax.plot(values.mean(), y, "|", color=colour, ms=16)


def lines_of(ax, labels):
    """A line for each label, the first at the top."""
    ax.set(yticks=range(len(labels)), yticklabels=labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x", color="0.92")


def dot_plot(ax, frame, measure, arms):
    """A line for each arm: a measure of test images as they are (filled), and changed (hollow)."""
    for y, name in enumerate(arms):
        colour = COLOURS[name.split(", ")[1]]
        for m, fill in ((measure, colour), (f"{measure}_changed", "white")):
            dots(ax, y, by_seed(frame, m, name), colour, fill)
    lines_of(ax, [spelled(name) for name in arms])


def columns_of_dots(frames, title):
    """One column for each {title: rows}: linear classifiers on one slot (above), all (below)."""
    size = (max(7.5, 4.3 * len(frames)), 6)
    figure, axes = plt.subplots(2, len(frames), figsize=size, sharex=True)
    for column, (name, frame) in zip(axes.T.reshape(-1, 2), frames.items()):
        arms = list(dict.fromkeys(frame["arm"]))
        for ax, measure in zip(column, ("linear_one", "linear_all")):
            dot_plot(ax, frame, measure, arms)
            ax.set_title(f"{name}: {'one slot' if measure == 'linear_one' else 'all slots'}")
        column[1].set_xlabel("% right: ● as they are, ○ changed by g")
    figure.suptitle(title)
    return figure


def front():
    """The front page: what a linear classifier reads off digits and CIFAR-10."""
    rows = list(tables.readings())
    size = (9.6, 0.4 + 1.6 * len(rows))
    figure, axes = plt.subplots(len(rows), 4, figsize=size, sharex="row", squeeze=False)
    for line, (title, parts) in zip(axes, rows):
        for ax, found, (_, _, h_ssl) in zip(line, parts.values(), tables.PAIRED):
            for y, (loss, values) in enumerate(found.items()):
                colour = COLOURS[loss.replace("H-SSL", h_ssl)]
                dots(ax, y, values, colour, colour)
            ax.axvline(found["untrained"].mean(), color=COLOURS["untrained"], lw=0.8)
            lines_of(ax, list(found))
            ax.tick_params(labelleft=ax is line[0])
        line[0].set_ylabel(title.replace(", ", ":\n").replace(" by g", "\nby g"), size=10)
    for ax, (name, _, _) in zip(axes[0], tables.PAIRED):
        ax.set_title(name)
    figure.supxlabel("right answers of a linear classifier, %: ● a seed, | their mean", size=10)
    return figure


def primary():
    """The six claims: the interval of each row, and where it had to lie (grey)."""
    every = [(name, row) for name, (_, rows) in claims.primary().items() for row in rows]
    figure, axes = plt.subplots(2, 1, figsize=(11, 6), height_ratios=(10, 5))
    for ax, unit, edge in zip(axes, (False, True), (75, 1.1)):
        labels = []
        part = [pair for pair in every if (pair[1]["measure"] == "invariance") == unit]
        for y, (name, row) in enumerate(part):
            low, high = np.clip(claims.wanted(row["asked"]), -edge, edge)
            ax.barh(y, high - low, left=low, height=0.9, color="0.9")
            colour = {"holds": "#3f7d3a", "opposite": "#b3261e"}.get(row["result"], "#c98a00")
            ax.plot([row["low"], row["high"]], [y, y], "|-", color=colour, lw=2, ms=9)
            ax.plot(row["mean"], y, "o", color=colour)
            a, b = tables.named(row["a"]), tables.named(row["b"])
            labels.append(f"{name}  {tables.HEADS[row['measure']]}: {a} − {b.split(', ', 1)[1]}")
        ax.axvline(0, color="0.6", lw=0.8)
        lines_of(ax, labels)
        ax.set_xlim(-edge, edge)
        ax.set_xlabel("change under g (1: two different images)" if unit else "points")
    figure.suptitle("Six claims: grey is what was asked; green holds, yellow is open, red opposite")
    return figure


def taught():
    frame = load("taught")
    parts = {GROUPS[g]: rows for g, rows in frame.groupby("group", sort=False)}
    title = "One slot, digits as they are: jitter alone gains most, negatives alone lose"
    return columns_of_dots(parts, title)


def cifar10():
    parts = {GROUPS[g]: rows for g, rows in load("cifar10").groupby("group", sort=False)}
    title = "CIFAR-10, an eighth of the width: a second slot teaches, but not if it is any position"
    return columns_of_dots(parts, title)


def minute():
    parts = {"10,000 digits, 9 epochs": load("nearer"), "60,000 digits, 1 epoch": load("minute")}
    parts = {name: frame for name, frame in parts.items() if not frame.empty}
    return columns_of_dots(
        parts, "Scale, 3 functions and the maximum: what a linear classifier reads"
    )


def knob():
    """What breaking Eq. 1 by ε changes: four measures of three networks."""
    found = tables.by_epsilon()
    panels = {
        "equation1": "off Γ_g's prediction (1: two different images)",
        "invariance": "change under a turn (1: two different images)",
        "linear_all_changed": "linear, all slots, turned digits, %",
        "retrieval": "finds its copy among 1,000, %",
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharex=True)
    places = range(len(found))
    for ax, (measure, label) in zip(axes.flat, panels.items()):
        for loss in tables.LEARNED:
            values = [arms[loss][measure] for arms in found.values()]
            means = [seeds.mean() for seeds in values]
            ax.plot(places, means, color=COLOURS[loss], label=loss)
            for place, seeds in zip(places, values):
                ax.plot([place] * len(seeds), seeds, "o", color=COLOURS[loss], ms=4)
        ax.set_title(label)
        ax.set_ylim(0)
    for ax in axes[1]:
        ax.set_xticks(places, [f"{epsilon:g}" for epsilon in found])
        ax.set_xlabel("ε: how much Eq. 1 is broken")
    axes[0, 1].legend()
    figure.suptitle(
        "Eq. 1 broken by ε: A-SSL finds more copies; at small ε H-SSL reads more turned digits"
    )
    return figure


def published():
    """Gains over the untrained network, ours (a dot for each seed) and the paper's (rings)."""
    kinds = [kind for kind in tables.compared() if "hssl" in kind[2] or "assl" in kind[2]]
    figure, ax = plt.subplots(figsize=(11, 1 + 0.42 * len(kinds)))
    for y, (_, arms, theirs) in enumerate(kinds):
        for loss in ("hssl", "assl"):
            colour = COLOURS[claims.LOSSES[loss]]
            ours, before = (arms[name].set_index("seed")["top1"] for name in (loss, "frozen"))
            gains = (ours - before).dropna()
            place = y + (0.12 if loss == "assl" else -0.12)
            ax.plot(gains, [place] * len(gains), "o", color=colour, ms=3)
            ax.plot(gains.mean(), place, "|", color=colour, ms=10)
            if loss in theirs:
                gain = theirs[loss] - theirs["frozen"]
                ax.plot(gain, place, "o", color=colour, mfc="none", ms=10)
    for loss in ("H-SSL", "A-SSL"):
        ax.plot([], [], "o", color=COLOURS[loss], label=loss)
    names = [
        f"{title.replace('**', '')}, {tables.images(arms['hssl'])}" for title, arms, _ in kinds
    ]
    ax.axvline(0, color=COLOURS["untrained"], label="untrained")
    ax.set(yticks=range(len(kinds)), yticklabels=names)
    ax.set_xlabel("top-1 over untrained, points (rows: images × epochs)")
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    figure.suptitle("What training adds to top-1: ● a seed here, | their mean, ○ the paper")
    ax.legend()
    return figure


def distance():
    """Fig. 2 right: three measures by the largest distance of the two views."""
    rows = load("distance")
    seeds = rows.groupby("seed")["arm"].nunique()
    rows = rows[rows["seed"].isin(seeds[seeds == seeds.max()].index)]  # those that all arms have
    own = 2 * 2**0.5 * (rows["strength"] * 29).astype(int)  # px: two shifts, along the diagonal
    matched = 8 * 2**0.5 * (rows["strength"] * 8).astype(int)  # strides of 4 px, a map of 8 × 8
    slots = 4 * rows["max_distance"] ** 0.5  # its unit is a squared stride
    kinds = [rows["pairs"] == "matched", rows["loss"] == "hssl"]
    rows["px"] = np.select(kinds, [matched, slots], own)
    panels = {
        "top1": "top-1",
        "linear_one": "linear, one slot",
        "linear_all_changed": "linear, all slots, shifted digits",
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True)
    for ax, (measure, title) in zip(axes, panels.items()):
        for (loss, pairs), part in rows.groupby(["loss", "pairs"]):
            means = part.groupby("px")[measure].mean()
            look = dict(color=COLOURS[LOSSES[loss]], ls="-" if pairs == "own" else "--")
            ax.plot(means.index, means, label=f"{LOSSES[loss]}, {pairs} pairs", **look)
            fill = look["color"] if pairs == "own" else "white"
            ax.plot(part["px"], part[measure], "o", mec=look["color"], mfc=fill, ms=4)
        before = by_seed(load("taught"), measure, "trans, untrained").mean()
        ax.axhline(before, color=COLOURS["untrained"], label="untrained")
        ax.set(title=title, xlabel="largest distance of the two views, px")
    axes[0].set_ylabel("%")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]))
    figure.suptitle(
        "H-SSL learns more from near views; most runs read fewer shifted digits than untrained"
    )
    return figure


def riddle():
    frame = tables.networks("riddle")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), sharey=True)
    for ax, (group, part) in zip(axes, frame.groupby("group", sort=False)):
        for i, (name, rows) in enumerate(part.groupby("arm", sort=False)):
            loss = name.split(", ")[1]
            x = np.arange(len(RIDDLE)) + 0.15 * (i - 1.5)
            values = rows[list(RIDDLE)].T  # a line for each measure, a column for each seed
            label = spelled(name)
            ax.plot(x, values, "o", color=COLOURS[loss], ms=4, label=label)
        ax.set_xticks(range(len(RIDDLE)), RIDDLE.values(), rotation=45, ha="right")
        ax.set(title=GROUPS[group], ylim=(-3, 103))
        ax.grid(axis="y", color="0.92")
    axes[0].set_ylabel("per cent")
    labels = {t: h for ax in axes for h, t in zip(*ax.get_legend_handles_labels())}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels))
    figure.suptitle("H-SSL solves turns and scales; kNN falls with turns, but not once whitened")
    return figure


def few():
    """From few labels to many: one slot on digits as they are, all slots on changed digits."""
    frame = tables.networks("few")
    turns = frame[frame["group"] == "rot"]
    wide = turns["arm"].str.endswith("extent 4")
    columns = {
        "turns, extent 1": turns[~wide],
        "turns, extent 4": turns[wide],
        "positions": frame[frame["group"] == "trans"],
    }
    columns = {title: part for title, part in columns.items() if len(part)}
    panels = {"one": "one slot, digits as they are", "all_changed": "all slots, changed digits"}
    size = (4.3 * len(columns), 6.4)
    figure, axes = plt.subplots(2, len(columns), figsize=size, sharex=True, squeeze=False)
    for column, (kind, part) in zip(axes.T, columns.items()):
        for ax, (measure, title) in zip(column, panels.items()):
            names = [f"{measure}_{n}" for n in LABELS]
            for name, rows in part.groupby("arm", sort=False):
                loss = name.split(", ")[1]
                label = spelled(name)
                look = dict(ls="--", marker="D") if loss == "supervised" else dict(marker="o")
                means = rows[names].mean()
                ax.plot(LABELS, means, color=COLOURS[loss], ms=4, label=label, **look)
                ax.plot(LABELS, rows[names].T, look["marker"], color=COLOURS[loss], ms=4)
            ax.set(xscale="log", title=f"{kind}: {title}")
            ax.set_xticks(LABELS, [f"{n:,}" for n in LABELS])
            ax.grid(axis="y", color="0.92")
        column[1].set_xlabel("labelled digits")
    for ax in axes[:, 0]:
        ax.set_ylabel("linear classifier, %")
    lines = {t: h for ax in axes.flat for h, t in zip(*ax.get_legend_handles_labels())}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    figure.suptitle("All slots: jitter alone gains most with turns, H-SSL + jitter with positions")
    return figure


def draw():
    """Positions: the slot's share of the features, and what is read on shifted digits."""
    frame = tables.by_slots()
    titles = {"": "slots drawn for each image", ", one draw": "one draw for a batch"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharex=True, sharey=True)
    for ax, (ending, title) in zip(axes, titles.items()):
        for loss in COLOURS:
            runs = frame[frame["arm"] == f"trans, {loss}{ending}"]
            mark = "s" if "jitter" in loss else "o"
            label = spelled(f"trans, {loss}") if len(runs) and not ending else None
            look = dict(color=COLOURS[loss], label=label, ms=6)
            ax.plot(runs["where"], runs["linear_all_changed"], mark, **look)
        free = by_seed(frame, "linear_all_changed", "trans, untrained").mean()
        ax.axhline(free, color=COLOURS["untrained"], lw=0.8)
        ax.set(title=title, xlabel="the slot's share of the features, %", xlim=(0, 100))
        ax.grid(color="0.92")
    axes[0].set_ylabel("linear, all slots, shifted digits, %")
    figure.legend(loc="outside right center")
    figure.suptitle("Positions: if each image has its own slot, A-SSL learns which one")
    return figure


PICTURES = (front, primary, taught, minute, knob, published, cifar10, distance, riddle, few, draw)
PICTURES = {picture.__name__: picture for picture in PICTURES}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        if name not in PICTURES:
            sys.exit(f"pictures.py: no picture is called {name}: take {', '.join(PICTURES)}")
        if tables.table(name):
            PICTURES[name]().savefig(os.path.join(claims.FOLDER, f"{name}.png"), dpi=100)
            print(f"{name}.png")
