"""The pictures of results/README.md, from results/*.jsonl:  python results/pictures.py

Dots are seeds, lines are means.  Grey is the untrained network, with its BatchNorm fed.
"""
import os
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from results.claims import FOLDER, GROUPS, LOSSES, claims, cycle_found, mean_over_g, pick, reach, rows_of, value  # noqa: E402

COLOURS = {"frozen": "0.6", "hssl": "tab:orange", "assl": "tab:blue", "given": "tab:green", "learned": "tab:purple"}
MARKS = {"frozen": "s", "hssl": "o", "assl": "^", "given": "o", "learned": "^"}
WHAT = {"rot": "turns of g·90°", "scale": "shrinking, step g of the list", "trans": "shifts by g positions (4 px)"}


def dots(ax, points, loss, label=None):
    """Dots of every seed and the line of their means.  points: {x: [values]}."""
    xs = sorted(points)
    ax.plot(xs, [statistics.mean(points[x]) for x in xs], color=COLOURS[loss], label=label or LOSSES[loss])
    ax.plot([x for x in xs for _ in points[x]], [v for x in xs for v in points[x]], MARKS[loss], color=COLOURS[loss], ms=4)


def gaps(rows, **flags):
    """For each seed of the rows with these flags: the untrained network's error of Eq. 1, its null, and the invariance after
    H-SSL over that after A-SSL; means over g."""
    runs = [pick(rows, loss=loss, **flags) for loss in ("frozen", "hssl", "assl")]
    return [(mean_over_g(u, "equation1"), mean_over_g(u, "invariance"), mean_over_g(h, "invariance") / mean_over_g(a, "invariance"))
            for u, h, a in ([of[seed] for of in runs] for seed in sorted(set.intersection(*map(set, runs))))]


def learned():
    """Invariance to T_g after both losses, for three groups."""
    rows = rows_of("learned")
    figure, axes = plt.subplots(1, 3, figsize=(12.8, 4.2), layout="constrained", sharey=True)
    for ax, group in zip(axes, GROUPS):
        for loss in ("frozen", "assl", "hssl"):
            runs = pick(rows, group=group, loss=loss).values()
            dots(ax, {g + 1: list(values) for g, values in enumerate(zip(*(r["invariance"] for r in runs)))}, loss)
        ax.axhline(1, color="0.8", lw=0.8, zorder=0)
        ax.set_title(GROUPS[group])
        ax.set_xlabel(f"g: {WHAT[group]}")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("‖f(T_g x)(g0) - f(x)(g0)‖\nover the distance of two images")
    axes[0].set_ylim(0)
    axes[0].legend()
    axes[0].text(0.5, 1.015, "as far as two different images", fontsize=7, color="0.5", transform=axes[0].get_yaxis_transform(), ha="center")
    figure.suptitle("How far T_g moves the features: 0 is invariant")
    return figure


def same():
    """The claims that two things are the same, in units of their margins."""
    found = [r for r in claims() if r["margin"]]
    if not found:
        return None
    colours = {"within the margin": "tab:green", "different": "tab:red", "undecided": "0.5"}
    figure, ax = plt.subplots(figsize=(9, 1.6 + 0.28 * len(found)), layout="constrained")
    ax.axvspan(-1, 1, color="0.92", label="the margin")
    ax.axvline(0, color="0.6", lw=0.8)
    for row, r in enumerate(found):
        ax.errorbar(r["mean"] / r["margin"], row, xerr=r["half"] / r["margin"], fmt="o", ms=4, color=colours[r["verdict"]])
    for name, colour in colours.items():
        ax.plot([], [], "o-", color=colour, label=name)
    ax.set(yticks=range(len(found)), yticklabels=[r["what"] for r in found], xlabel="difference over its margin, 95 % interval", xscale="symlog", title="Is the difference within the margin?")
    ax.set_xticks((-10, -1, 0, 1, 10), ("-10", "-1", "0", "1", "10"))  # linear in ±1, logarithmic outside
    ax.invert_yaxis()
    ax.legend(fontsize=8, loc="lower left")
    return figure


def knob():
    """The figure of the project: the error of Eq. 1 against how alike the two losses' networks are."""
    rows = rows_of("knob")
    epsilons = sorted({r["epsilon"] for r in rows if r["loss"] == "assl"} & {r["epsilon"] for r in rows if r["loss"] == "hssl"})
    if not epsilons:
        return None
    figure, (left, *others) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for n, e in enumerate(epsilons):
        errors, _, ratios = zip(*gaps(rows, epsilon=e))
        left.plot(errors, ratios, "o", color=plt.get_cmap("plasma")(n / len(epsilons)), ms=5, label=f"ε = {e:g}")
    left.axhline(1, color="0.6", lw=0.8)
    left.legend(fontsize=8, loc="upper left")
    left.set(xscale="log", xlabel="error of Eq. 1 of the untrained network, mean over g\n(at ε = 0 it is the rounding of float32)",
             ylabel="invariance after H-SSL / after A-SSL\n(1: the theory)", title="Does H-SSL do what A-SSL does?")
    for ax, of in zip(others, (lambda r: mean_over_g(r, "invariance"), lambda r: r["moved"])):
        for loss in ("frozen", "assl", "hssl"):
            dots(ax, {max(e, 0.01): [of(r) for r in pick(rows, epsilon=e, loss=loss).values()] for e in epsilons}, loss)
        ax.set(xscale="log", xlabel="ε (0 is drawn at 0.01)", ylim=(0, None))
    others[0].set(ylabel="invariance, mean over g", title="How far a turn moves the features")
    others[1].set(ylabel="% of test digits, turned at random", title="Accuracy on randomly turned digits (`moved`)")
    others[0].legend()
    return figure


def rotation_long():
    """The read-outs over the steps of a long training."""
    rows = [r for r in rows_of("rotation_long") if r.get("curve")]
    if not rows:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(12.8, 4), layout="constrained")
    for ax, name in zip(axes, ("top1", "linear", "invariance")):
        read = lambda r: mean_over_g(r, name) if name == "invariance" else r[name]
        for r in rows:
            style = "-" if r["lr"] == 3.2 else ":"
            style = "--" if r["group"] == "scale" else style
            label = f"{GROUPS[r['group']]}, {LOSSES[r['loss']]}" + ", lr / 16" * (r["lr"] != 3.2) if r["seed"] == 0 else None
            ax.plot(*zip(*[(p["step"], read(p)) for p in r["curve"]]), style, marker=".", color=COLOURS[r["loss"]], label=label)
        ax.set(title="invariance, mean over g" if name == "invariance" else name, xlabel="step", ylabel="% of test images" if name == "top1" else None)
        for r in rows_of("rotation_long"):
            if r["loss"] == "frozen":
                ax.axhline(read(r), color="0.6", lw=0.8, ls="--" if r["group"] == "scale" else "-",
                           label=f"{GROUPS[r['group']]}, untrained" if r["seed"] == 0 else None)
    axes[1].legend(fontsize=7, loc="center right")
    return figure


def strength():
    """Read-outs against the largest displacement between the two views."""
    rows = [r for r in rows_of("strength") if r["objective"] == "infonce" and r["base_size"] == 1]
    if not {r["loss"] for r in rows} >= {"assl", "hssl"}:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(12.8, 4), layout="constrained")
    for ax, name in zip(axes, ("top1", "linear", "one position")):
        for loss in ("assl", "hssl"):
            points = {}
            for r in rows:
                if r["loss"] == loss:
                    points.setdefault(reach(r), []).append(value(r, name))
            dots(ax, points, loss)
        for r in rows:
            if r["loss"] == "frozen":
                ax.axhline(value(r, name), color="0.6", lw=0.8, label="untrained" if r["seed"] == 0 else None)
        ax.set(title=name if name != "one position" else "invariance to a shift by one position (4 px)", xlabel="largest distance between the two views, px",
               ylabel="over the distance of two images" if name == "one position" else "% of test images")
    axes[0].legend()
    return figure


def scale_repaired():
    """The error of Eq. 1 against its null, for the networks of the table."""
    rows = rows_of("scale_repaired")
    networks = [n for n in ((None, "mean"), (3, "mean"), (None, "max"), (3, "max")) if pick(rows, functions=n[0], pool=n[1], loss="assl")]
    if len(networks) < 2:
        return None
    figure, (*axes, gap) = plt.subplots(1, len(networks) + 1, figsize=(3.5 * len(networks) + 3.5, 3.8), layout="constrained")
    for ax, (functions, pool) in zip(axes, networks):
        for loss in ("frozen", "assl", "hssl"):
            runs = list(pick(rows, functions=functions, pool=pool, loss=loss).values())
            if runs:
                dots(ax, {g + 1: list(v) for g, v in enumerate(zip(*(r["invariance"] for r in runs)))}, loss, f"invariance, {LOSSES[loss]}")
                means = [statistics.mean(v) for v in zip(*(r["equation1"] for r in runs))]
                ax.plot(range(1, len(means) + 1), means, ":", color=COLOURS[loss], label=f"error of Eq. 1, {LOSSES[loss]}")
        name = "the paper's" if (functions, pool) == networks[0] else f"{functions or 11} functions, {pool} over space"
        ax.sharey(axes[0])
        ax.set(title=name, xlabel="g")
        gap.plot(*zip(*[(error / null, ratio) for error, null, ratio in gaps(rows, functions=functions, pool=pool)]), "o" if pool == "mean" else "D", mfc="none" if functions else None, color="tab:red", ms=5, label=name)
    axes[0].set_ylabel("over the distance of two images")
    axes[-1].legend(fontsize=8, loc="upper left")
    gap.axhline(1, color="0.6", lw=0.8)
    gap.set(xlabel="untrained error of Eq. 1 over its null", ylabel="invariance after H-SSL / after A-SSL", title="Does H-SSL do what A-SSL does?")
    gap.legend(fontsize=7)
    return figure


def learned_group():
    """Eq. 1's error and H-SSL's invariance against the share of turned images, and where the learned A ended."""
    rows = [r for r in rows_of("learned_group") if r["over"] == "null" and r["backbone"] == "mlp" and r["lam"] == 10 and r["start"] != "identity" and not r["one_way"]]
    if not rows:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(1, 1, 0.8))
    for kind in ("given", "learned"):
        for ax, name in zip(axes, ("over_null", "invariance")):
            points = {}
            for r in rows:
                if r["given"] == (kind == "given"):
                    points.setdefault(max(r["share"], 0.001), []).append(mean_over_g(r, name))
            dots(ax, points, kind, f"Γ {kind}")
    for ax, name, title in zip(axes, ("over_null", "invariance"), ("error of Eq. 1 over its null (1: Γ_g does nothing)", "invariance: how far T_g moves f(x)")):
        untrained = statistics.mean(mean_over_g(r["untrained"], name) for r in rows if r["given"])
        ax.axhline(untrained, color="0.6", label=f"untrained (Γ given): {untrained:.2f}")
        ax.set(xscale="log", xlabel="share of each batch that is turned (0 is drawn at 0.001)", title=title, ylim=(0, None))
        ax.legend(fontsize=8)
    ax, ends = axes[2], [r for r in rows if not r["given"] and r["share"] == 0.1]
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
    for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        ax.add_patch(plt.Circle((x, y), 0.15, fill=False))
    ax.plot([], [], "o", mfc="none", color="k", ms=9, label="within 0.15 of a 4-cycle")
    for found, colour in ((False, "tab:orange"), (True, "tab:blue")):
        runs = [r for r in ends if cycle_found(r) == found]
        ax.plot(*zip(*[a for r in runs for a in r["eigenvalues"]]), "^", color=colour, ms=4, label=f"{len(runs)} seeds: " + ("a 4-cycle is found" if found else "none is found"))
    ax.set(aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.25, 1.8), title="eigenvalues of A, 10 % turned")
    ax.legend(fontsize=8, loc="upper center")
    return figure


if __name__ == "__main__":
    for make in (learned, same, knob, scale_repaired, rotation_long, strength, learned_group):
        figure = make() if make is same or rows_of(make.__name__) else None
        if figure:
            figure.savefig(os.path.join(FOLDER, f"{make.__name__}.png"), dpi=100)
            print(f"{make.__name__}.png")
