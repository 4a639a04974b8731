"""The paper's tables and figures from finished runs: results/*.jsonl → Markdown and pictures.

    python probe.py --table table1          # print one: table1, table2, figure2_left, figure2_right, claims, gap, …
    python probe.py --write README.md       # put all of them into the README, between its marks, and draw the pictures

Every number is a mean over seeds with their standard deviation, or a paired difference over seeds with its 95 %
confidence interval.  The runs are results/run.sh's; the paper's numbers are in results/paper.json.
"""
import contextlib
import json
import math
import os
import re
import statistics

LOSSES = {"assl": "A-SSL (Eq. 2)", "hssl": "H-SSL (Eq. 3)", "hybrid": "both (App. A)", "frozen": "frozen", "supervised": "supervised"}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "tiny-imagenet": "Tiny ImageNet",
         "mnist5k": "5,000 MNIST digits", "folder": "a folder of images", "rot": "rotation", "trans": "translation", "scale": "scale", "rotscale": "rotation × scale",
         "equivariant": "equivariant", "mlp": "MLP", "cnn": "CNN (6 × CHW)"}
CURVES = {"figure2_left": ("base_size", "|g0|, fibers in a bundle"), "figure2_right": ("max_distance", "largest ‖g1 - g2‖² of a pair"),
          "gap_sizes": ("image_size", "image size, px"), "rotation_epochs": ("epochs", "epochs"),
          "mlp_epochs": ("epochs", "epochs")}  # the flag that varies, and its name
T95 = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided 95 %, by degrees of freedom; 9 for more


def rows_of(experiment, folder="results"):
    """results/EXPERIMENT.jsonl, one dict a run: result.json with its flags; a torn line counts for nothing."""
    rows = []
    for line in open(os.path.join(folder, f"{experiment}.jsonl")):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def by_seed(rows, key="top1", **config):
    """{seed: value} of the rows with that configuration."""
    return {r["seed"]: r[key] for r in rows if all(r[k] == v for k, v in config.items())}


def plus_minus(values, sign="", digits=1):
    """Mean and standard deviation over seeds as text, with n if that is not 3."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:{sign}.{digits}f} (n = 1)" if values else ""
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}" + f" (n = {len(values)})" * (len(values) != 3)


def interval(values):
    """Mean and half-width of its 95 % confidence interval (Student's t over seeds; infinite for one seed)."""
    values = list(values)
    if len(values) < 2:
        return (values[0] if values else math.nan), math.inf
    return statistics.mean(values), T95[min(len(values), len(T95)) - 1] * statistics.stdev(values) / len(values) ** 0.5


def grid(experiment, folder="results"):
    """A table in Markdown: a row for each data set, group, backbone and objective, a column a loss, the paper's below ours."""
    rows = rows_of(experiment, folder)
    if experiment == "objectives" and "table1" in experiments(folder):  # the plain losses at the same budget, to compare
        rows += [r for r in rows_of("table1", folder) if r["dataset"] == "mnist" and r["group"] != "trans" and r["loss"] != "supervised"]
    paper = {tuple(p[:3]): p[3:] for p in json.load(open(os.path.join(folder, "paper.json"))).get(experiment, [])}
    keys = ("dataset", "group", "backbone", "objective")
    kinds = sorted({tuple(r[k] for k in keys) for r in rows}, key=lambda kind: [list(NAMES).index(n) for n in kind[:3]] + [kind[3]])
    columns = [loss for loss in LOSSES if any(r["loss"] == loss for r in rows)]
    text = ["| top-1, % | " + " | ".join(LOSSES[c] for c in columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for kind in kinds:
        name = f"{NAMES[kind[0]]}, {NAMES[kind[1]]}" + f", {NAMES[kind[2]]}" * (kind[2] != "equivariant") + f", {kind[3]}" * (kind[3] != "infonce")
        cells = [plus_minus(by_seed(rows, loss=c, **dict(zip(keys, kind))).values(), digits=2 if experiment == "mnist_whole" else 1) for c in columns]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
        published = [paper.get((kind[0], kind[1], c)) for c in columns]
        if any(published):
            text.append("| *the paper* | " + " | ".join(f"*{p[0]} ± {p[1]}*" if p else "" for p in published) + " |")
    return "\n".join([*text, "", budget(rows)])


def budget(rows):
    """What the runs were, in one paragraph; their minutes are the median of those that trained."""
    kinds, text = {}, []
    for r in rows:
        what = (f"{NAMES[r['dataset']]}" + f", {NAMES[r['backbone']]}" * (r["backbone"] != "equivariant") +
                f": {r['train_images']:,} training and {r['test_images']:,} test images, width {r['width']:g}")
        kinds.setdefault(what, []).append(r)
    for what, runs in sorted(kinds.items()):
        trained = [r for r in runs if r["train_seconds"]]
        if trained:
            epochs, threads = ([f(r[key] for r in trained) for f in (min, max)] for key in ("epochs", "threads"))
            minutes = statistics.median(r["train_seconds"] for r in trained) / 60
            what += (f", {' to '.join(f'{e:g}' for e in dict.fromkeys(epochs))} epochs, {minutes:.1f} minutes of training (median) "
                     f"on {' to '.join(map(str, dict.fromkeys(threads)))} thread" + "s" * (threads[1] > 1))
        text.append(what)
    return "; ".join(text) + f". {total(rows)}"


def total(rows):
    """How many runs, and what they took; a run that two experiments share counts once."""
    rows = {json.dumps({k: v for k, v in r.items() if k != "experiment"}, sort_keys=True): r for r in rows}.values()
    return f"{len(rows)} runs, {sum(r['cpu_seconds'] for r in rows) / 3600:.1f} hours of one CPU core in all."


def series(experiment, folder="results"):
    """An experiment of CURVES: [(label, xs, {x: {seed: top-1}})]."""
    x, _ = CURVES[experiment]
    rows, lines = rows_of(experiment, folder), {}
    for r in rows:
        label = NAMES[r["dataset"]] + ", " + (r["distance"] if x == "max_distance" else NAMES[r["group"]])
        label += f", {NAMES[r['backbone']]}" * (r["backbone"] != "equivariant")
        label += f", {LOSSES[r['loss']]}" * (len({row["loss"] for row in rows}) > 1)
        label += f", |g0| = {r['base_size']}" * (x != "base_size" and r["base_size"] > 1)
        lines.setdefault(label, {}).setdefault(r[x], {})[r["seed"]] = r["top1"]
    return [(label, sorted(points), points) for label, points in lines.items()]


def change(points, x):
    """%-change of top-1 at x against the first x, seed by seed."""
    first = points[min(points)]
    return [100 * (v / first[s] - 1) for s, v in points[x].items() if s in first]


def curves(experiment, folder="results"):
    """An experiment of CURVES as tables in Markdown; see `draw` for the picture."""
    text = []
    for label, xs, points in series(experiment, folder):
        text += [f"| {label}: {CURVES[experiment][1]} | ".replace("|g0|", "\\|g0\\|") + " | ".join(f"{x:g}" for x in xs) + " |", "|---" * (1 + len(xs)) + "|",
                 "| top-1, % | " + " | ".join(plus_minus(points[x].values()) for x in xs) + " |"]
        if experiment == "figure2_left":
            text.append("| change, % | " + " | ".join(plus_minus(change(points, x), "+") for x in xs) + " |")
        text.append("")
    return "\n".join([*text, budget(rows_of(experiment, folder))])


def claims(folder="results"):
    """C1 … C5: the paper's claims, each a paired difference over seeds, in points of top-1, with a 95 % interval."""
    text = ["| claim | measured | difference [95 % interval] | the paper's | verdict |", "|---|---|---|---|---|"]
    paper = json.load(open(os.path.join(folder, "paper.json")))

    def row(claim, what, a, b, published, verdict):
        seeds = sorted(a.keys() & b.keys())
        if not seeds:
            return
        mean, half = interval([a[s] - b[s] for s in seeds])
        span = f"[{mean - half:+.1f}, {mean + half:+.1f}]" if half < math.inf else "[one seed]"
        told = f"{published:+.1f}" if published is not None else ""
        text.append(f"| {claim} | {what} | {mean:+.1f} {span} | {told} | {verdict(mean, half) if half < math.inf else 'open: one seed'} |")

    def read(table, *key):
        found = [p[3] for p in paper[table] if tuple(p[:3]) == key]
        return found[0] if found else None

    def minus(a, b):
        return None if a is None or b is None else a - b
    equal = lambda m, h: "equal within 2 points" if abs(m) + h <= 2 else "differs" if abs(m) > h else "not told apart, and not shown equal"
    gains = lambda m, h: "holds" if m > h else "fails" if m < -h else "not told apart"
    not_above = lambda m, h: "holds" if m < -h else "fails" if m > h else "not told apart from frozen"
    falls = lambda m, h: "holds: falls" if m < -h else "fails: rises" if m > h else "not told from constant"
    one, two = rows_of("table1", folder), rows_of("table2", folder) if os.path.exists(os.path.join(folder, "table2.jsonl")) else []
    for data_set in ("mnist", "cifar10", "tiny-imagenet"):
        for group in ("rot", "trans", "scale"):
            get = lambda loss: by_seed(one, dataset=data_set, group=group, loss=loss)
            frozen, learned = get("frozen"), False
            for v in (get("assl"), get("hssl")):
                mean, half = interval([v[s] - frozen[s] for s in v.keys() & frozen.keys()])
                learned |= mean > half
            row("C1 A-SSL ≈ H-SSL", f"A - H, {NAMES[data_set]}, {NAMES[group]}", get("assl"), get("hssl"),
                minus(read("table1", data_set, group, "assl"), read("table1", data_set, group, "hssl")),
                equal if learned or not frozen else lambda m, h: "differs" if abs(m) > h else "open: neither is shown above frozen")
    for experiment, what in (("mnist_whole", "whole MNIST"), ("quickstart", NAMES["mnist5k"])):  # Table 1's row at other budgets
        if experiment in experiments(folder):
            more = rows_of(experiment, folder)
            row("C1 A-SSL ≈ H-SSL", f"A - H, {what}, scale", by_seed(more, loss="assl"), by_seed(more, loss="hssl"), None, equal)
    for data_set in ("mnist", "cifar10"):
        row("C2 H-SSL gains from translation to scale", f"H scale - H translation, {NAMES[data_set]}",
            by_seed(one, dataset=data_set, group="scale", loss="hssl"), by_seed(one, dataset=data_set, group="trans", loss="hssl"),
            minus(read("table1", data_set, "scale", "hssl"), read("table1", data_set, "trans", "hssl")), gains)
    for data_set, group, backbone in (("mnist", "trans", "mlp"), ("mnist", "scale", "cnn"), ("cifar10", "scale", "cnn")):
        get = lambda loss: by_seed(two, dataset=data_set, group=group, backbone=backbone, loss=loss)
        paper2 = {loss: read("table2", data_set, group, loss) for loss in LOSSES}
        for claim, a, b, verdict in (("C3 without structure H-SSL is below A-SSL", "assl", "hssl", gains),
                                     ("C3 … and like the frozen network, or below", "hssl", "frozen", not_above),
                                     ("C3 … A-SSL is above it", "assl", "frozen", gains)):
            short = {"assl": "A", "hssl": "H", "frozen": "frozen"}
            row(claim, f"{short[a]} - {short[b]}, {NAMES[data_set]}, {NAMES[backbone]}", get(a), get(b), minus(paper2[a], paper2[b]), verdict)
    for experiment, claim, verdict in (("figure2_left", "C4 stable in \\|g0\\|", equal), ("figure2_right", "C5 constant or falling with distance", falls)):
        if os.path.exists(os.path.join(folder, f"{experiment}.jsonl")):
            for label, xs, points in (line for line in series(experiment, folder) if len(line[1]) > 1):
                row(claim, f"{label}: at {xs[-1]:g} - at {xs[0]:g}", points[xs[-1]], points[xs[0]], None, verdict)
    return "\n".join(text)


def gap(folder="results"):
    """Pairs of runs alike but for A-SSL and H-SSL: [(label, equivariance error of f, A - H by seed)]."""
    same = ("dataset", "group", "backbone", "image_size", "train_images", "epochs", "width", "lr", "batch_size")
    pairs = {}
    for experiment in experiments(folder):
        for r in rows_of(experiment, folder):
            if r["group"] == "rotscale":
                continue  # the one step that its error is measured for is a turn, which says nothing of scale
            plain = r["objective"] == "infonce" and r["base_size"] == 1 and r["max_distance"] is None and r["epochs"]
            if plain and r["loss"] in ("assl", "hssl") and r["equivariance_error"] is not None:
                pairs.setdefault(tuple(r.get(k) for k in same), {}).setdefault(r["loss"], {})[r["seed"]] = (r["top1"], r["equivariance_error"])
    points, kinds = [], [kind[:4] for kind in pairs]
    for (dataset, group, backbone, px, images, epochs, *_), found in pairs.items():
        seeds = sorted(found.get("assl", {}).keys() & found.get("hssl", {}).keys())
        if seeds:
            label = f"{NAMES[dataset].split(' (')[0]}, {NAMES[group]}" + f", {px} px" * (px is not None)
            label += f", {images:,} images, {epochs} epochs" * (kinds.count((dataset, group, backbone, px)) > 1)  # at two budgets
            points.append((label, statistics.mean(found["hssl"][s][1] for s in seeds),
                           [found["assl"][s][0] - found["hssl"][s][0] for s in seeds]))
    return sorted(points, key=lambda point: point[1])


def gaps(folder="results"):
    """`gap` as a table in Markdown."""
    return "\n".join(["| | equivariance error of f after H-SSL | A - H, points of top-1 |", "|---|---|---|",
                      *(f"| {label} | {error:.1e} | {plus_minus(values, '+')} |" for label, error, values in gap(folder))])


def speed(folder="results"):
    """results/bench.json, written by tests/bench.py, in Markdown: the training steps as a table, the rest as a list."""
    bench = json.load(open(os.path.join(folder, "bench.json")))
    kinds = ("usual", "usual bf16", "bare")
    text = ["| H-SSL training step | images/s | against the usual way¹ in float32 | … in bf16 | against its bare convolutions² | in float32, against the usual way |",
            "|---" * 6 + "|"]
    rest, forms, limits = [], [], []
    for row in bench["rows"]:
        what, ips, ratios = row["what"], row["images_per_second"], row.get("ratios", {})
        if "usual" in ips:
            text.append(f"| {what.removeprefix('step, ')} | {ips['ours']:,.0f} | " + " | ".join(f"{ratios['ours/' + k]:.1f}×" for k in kinds)
                        + f" | {ips['ours float32'] / ips['usual']:.1f}× |")
            limits.append(f"{what.removeprefix('step, ').split(', batch')[0]} {ips['bare'] / ips['usual']:.1f}")
        elif what.startswith("form, "):
            ratio, = ratios.values()
            forms.append((ratio, what.removeprefix("form, "), row["mixes"] == (ratio > 1)))
        else:
            parts = [", ".join(f"{k} {v:,.0f}".strip() for k, v in ips.items()) + " images/s"] * bool(ips)
            unit = " %" if "per cent" in what else ""
            parts += [", ".join(f"{k} {v:.2f}{unit}" for k, v in ratios.items())] * bool(ratios)
            rest.append(f"- {what}" + ": " * bool(parts) + "; ".join(parts))
    if limits:
        rest.insert(0, f"- the bare convolutions² against the usual way in float32: {'; '.join(limits)} times as fast")
    if forms:
        (low, at, _), (high, there, _) = min(forms), max(forms)
        rest.append(f"- W·(B∗x) is {low:.2f} ({at}) to {high:.2f} times ({there}) as fast as (W·B)∗x over the networks' layers; "
                    f"the form that a layer takes is the faster one in {sum(f[2] for f in forms)} of {len(forms)}")
    m = bench["machine"]
    about = f"{m['threads']} threads of {m['cpu']}, bf16 {'in' if m['bf16'] else 'not in'} hardware, torch {m['torch']}; medians of interleaved rounds"
    return "\n".join([*text, "", *rest, "", f"({about}.)"])


def experiments(folder="results"):
    """The names of all experiments that have a finished run."""
    return sorted(name[:-6] for name in os.listdir(folder) if name.endswith(".jsonl"))


def table(name, folder="results"):
    """One table in Markdown, by name: an experiment's, "claims", "gap" or "speed".  Raises ValueError if nothing is there yet."""
    made = {"claims": claims, "gap": gaps, "speed": speed, "total": lambda folder: total([r for n in experiments(folder) for r in rows_of(n, folder)])}
    if name in made:
        return made[name](folder)
    if name not in experiments(folder):
        raise ValueError(f"{folder}/{name}.jsonl is not there: first sh results/run.sh {name}, or one of {', '.join([*made, *experiments(folder)])}")
    return (curves if name in CURVES else grid)(name, folder)


def tables_into(path, folder="results"):
    """A Markdown file's text with every table between its marks, <!-- NAME --> and <!-- /NAME -->, made anew."""
    text = open(path).read()

    def fill(match):
        name = match[1]
        try:
            made = table(name, folder)
        except (OSError, ValueError):
            made = f"*Not run yet:* `sh results/run.sh {name}`"
        return f"<!-- {name} -->\n{made}\n<!-- /{name} -->"
    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.S)


def draw(folder="results"):
    """Figure 2's panels and the gap against the equivariance error, into results/figure2.png and results/gap.png."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    panels = [name for name in ("figure2_left", "figure2_right") if name in experiments(folder)]
    if panels:
        figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.4), layout="constrained", squeeze=False)
        for ax, name in zip(axes[0], panels):
            for label, xs, points in series(name, folder):
                ys = [change(points, x) if name == "figure2_left" else list(points[x].values()) for x in xs]
                std = [statistics.stdev(y) if len(y) > 1 else 0 for y in ys]
                ax.errorbar(xs, [statistics.mean(y) for y in ys], std, marker="o", ms=4, capsize=2, label=label)
            ax.set_xscale("log")
            ax.set_xticks(sorted({x for _, xs, _ in series(name, folder) for x in xs}))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.tick_params("x", labelsize=7)
            ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            ax.set_xlabel(CURVES[name][1])
            ax.set_ylabel("change of top-1, %" if name == "figure2_left" else "top-1, %")
            ax.legend(fontsize=8)
        figure.savefig(os.path.join(folder, "figure2.png"), dpi=110)
        plt.close(figure)
    points = gap(folder)
    if points:
        figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
        for i, (label, error, values) in enumerate(points):
            mean, half = interval(values)
            ax.errorbar(max(error, 1e-8), mean, None if half == math.inf else statistics.stdev(values), marker="os^"[i // 10 % 3], capsize=2, label=label)
        ax.axhline(0, color="grey", lw=0.8)
        ax.set_xscale("log")
        ax.set_xlabel("equivariance error of f after H-SSL")
        ax.set_ylabel("A-SSL - H-SSL, points of top-1")
        ax.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
        figure.savefig(os.path.join(folder, "gap.png"), dpi=110)
        plt.close(figure)


def show(name=None, path=None):
    """Print the table `name`; put all tables into the Markdown file `path` and draw the pictures.  Raises ValueError, OSError."""
    if name:
        print(table(name))
    if path:
        text = tables_into(path)
        with open(path, "w") as file:
            file.write(text)
        draw()
