"""Make results/README.md: the text of ABOUT.md with the tables and numbers of results/*.jsonl.

    python results/tables.py            # write the page
    python results/tables.py taught     # print one table

In ABOUT.md {taught} is a table (or a text), {taught | top1 | rot, H-SSL} a mean over seeds, and
{taught | top1 | rot, A-SSL | rot, H-SSL} both means and the 95 % interval of their difference; with
another | − it is only the difference.  With four arms, a | b | c | d | −, it is that of a − b and
c − d.  {draw taught | …} looks in the runs of both, {rates − taught | …} for a in the first and for
b in the second.  A line with a number or a picture whose runs do not exist is left out; so is a
whole section if its first table or picture is.
"""

import json
import os
import re
import sys

import numpy as np
import pandas as pd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import probe
from results import claims, run
from results.claims import COLOURS, GROUPS, LOSSES, by_seed, difference, load
from results.experiments import EXPERIMENTS, SIZES

CIFAR = "CIFAR-10 (JPEG copy)"  # as our rows have it
TINY = "Tiny ImageNet (100 images a class)"  # likewise
DATA = {"mnist": "MNIST", "cifar10": CIFAR, "tiny-imagenet": TINY}
HEADS = {  # measure → the head of its column
    "top1": "top-1",
    "linear_one": "one slot",
    "linear_one_changed": "one slot, changed",
    "linear_all": "all slots",
    "linear_all_changed": "all slots, changed",
    "knn_one": "kNN, one slot",
    "knn_one_changed": "kNN, one slot, changed",
    "error": "error of Eq. 1",
    "invariance": "change under g",
    "equation1": "off Γ_g's prediction",
    "retrieval": "finds its copy",
    "where": "the slot's share, %",  # of networks that were kept, so not in a run's line
}
READ = list(HEADS)[:5]
LEARNED = list(LOSSES.values())[:3]  # all but supervised
ANSWERS = {"holds": "yes", "opposite": "opposite", "open": "open"}
# Top-1 beside the paper's: title, experiments, data set, arms without their losses, its table
KINDS = [
    *((f"MNIST, {name}", "taught labels", "mnist", g, "table1") for g, name in GROUPS.items()),
    *((f"MNIST, {name}", "table1", "mnist", g, "table1") for g, name in GROUPS.items()),
    *((f"{CIFAR}, {name}", "cifar10", "cifar10", g, "table1") for g, name in GROUPS.items()),
    (f"{TINY}, turns", "tiny", "tiny-imagenet", "rot", "table1"),
    (f"{TINY}, scales", "table1", "tiny-imagenet", "scale", "table1"),
    ("MNIST, positions, **MLP**", "table2", "mnist", "trans, mlp", "table2"),
    ("MNIST, scales, **CNN 6 × CHW**", "table2", "mnist", "scale, cnn", "table2"),
    ("… with structure", "table2", "mnist", "scale", None),
    (f"{CIFAR}, scales, **CNN 6 × CHW**", "table2_cifar10", "cifar10", "scale, cnn", "table2"),
    ("… with structure", "table2_cifar10", "cifar10", "scale", None),
]
PAIRED = (  # what the two views of H-SSL are: for readers, the group, the loss
    ("turns", "rot", "H-SSL"),
    ("scales", "scale", "H-SSL"),
    ("neighbours", "trans", "near"),
    ("any two positions", "trans", "H-SSL"),
)
LABELS = (10, 100, 1000, 10000)
QUICK = {  # measure of the quick start → what it is
    "error": "how far Γ_g's prediction is from f(T_g x), divided by the change under g (next "
    "row); 1: as bad as no prediction",
    "invariance": "how far T_g moves the features; 1: as far as another digit",
    "retrieval": "of 1,000 digits, how many are nearest to their own changed copy; by chance 0.1; "
    "a histogram of eight grey values, without a network, finds 100 (turns) and 0.1 (scales)",
    "linear_one": "a linear classifier on one slot, learned on unchanged digits",
    "linear_one_changed": "the same classifier, on turned or shrunk digits",
    "linear_all": "a linear classifier on the maximum over the slots",
    "linear_all_changed": "the same classifier, on turned or shrunk digits",
    "top1": "a classifier built like the paper's",
}
RIDDLE = {  # measure of riddle.py → its name
    "bins": "grey bins find copy",
    "retrieval": "f finds copy",
    "own_task": "own task",
    "hand_made": "hand-made numbers",
    "three_directions": "three directions",
    "ink": "ink",
    "knn": "kNN",
    "knn_whitened": "kNN, whitened",
    "linear": "linear",
}


# ---------------------------------------------------------------- small parts
def markdown(heads, lines):
    """A table; None without lines.  89.8±0.5 has no spaces there, so that it stays on one line."""
    if not lines:
        return None
    lines = [heads, ["---"] * len(heads), *lines]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return text.replace(" ± ", "±")


def number(value, measure, sign=""):
    digits = 2 if measure in ("invariance", "equation1", "error", "slope") else 1
    return "–" if pd.isna(value) else f"{value:{sign}.{digits}f}".replace("-", "−")


def spread(values, measure):
    """Mean ± standard deviation of a Series over seeds; one number for one seed, "" for none."""
    if not len(values):
        return ""
    mean = number(values.mean(skipna=False), measure)
    if len(values) < 2 or values.isna().any():
        return mean
    return f"{mean} ± {number(values.std(), measure)}"


def counted(seeds):
    """The fewest and the most seeds of a row, as text."""
    seeds = sorted(seeds)
    few, most = seeds[0], seeds[-1]
    return f"{few}" if few == most else f"{few} to {most}"


def span(found, measure):
    """The interval of a difference, as text."""
    return f"{number(found['low'], measure, '+')} to {number(found['high'], measure, '+')}"


def signed(found, measure):
    """A difference with its interval, as text."""
    return f"{number(found['mean'], measure, '+')} ({span(found, measure)})"


def named(arm):
    """An arm's name for readers."""
    group, rest = arm.split(", ", 1)
    words = {"mlp": "MLP", "cnn": "CNN", "epsilon": "ε =", "near": "neighbours"}
    for short, long in words.items():
        rest = rest.replace(short, long)
    return f"{GROUPS[group]}, {rest}"


def wide(width):
    """A width as text, if it is not 1."""
    return "" if width == 1 else f", width {width:g}"


def budget(frame):
    """The settings of the trained runs: a list of texts."""
    told = []
    kinds = ["dataset", "train_images", "test_images", "epochs", "width"]
    trained = frame[frame["epochs"] > 0]
    for (dataset, train, test, epochs, width), _ in trained.groupby(kinds, sort=False):
        epochs = f"{epochs} epochs" if epochs > 1 else "1 epoch"
        images = f"{DATA[dataset]}, {train:,} training and {test:,} test images, {epochs}"
        told.append(images + wide(width))
    return told


def read_outs(measures, name):
    """A line for each arm of this experiment: mean ± standard deviation.  None without runs."""
    frame, lines = load(name), []
    if frame.empty:
        return None
    for arm, runs in frame.groupby("arm", sort=False):
        lines.append([named(arm), *(spread(runs[m], m) for m in measures), len(runs)])
    heads = ["", *(HEADS[measure] for measure in measures), "seeds"]
    return f"{markdown(heads, lines)}\n\n*{'; '.join(budget(frame))}.*"


def images(rows):
    """Training images × epochs, and the width if it is not 1, as text."""
    row = rows.iloc[0]
    return f"{row['train_images']:,} × {row['epochs']}{wide(row['width'])}"


def paper():
    """The paper's numbers and sentences, see paper.json."""
    with open(os.path.join(claims.FOLDER, "paper.json")) as file:
        return json.load(file)


# ---------------------------------------------------------------- the first screens
def answers():
    """The paper's sentences and what the runs say: a line each.

    In paper.json a sentence has the paper's numbers, the experiments that may test it (the first
    that has three seeds does), two arms a and b, and what it says of a - b in top-1.  One that
    needs no runs has the answer there."""
    lines, budgets = [], {}
    for sentence, theirs, experiments, a, b, asked in paper()["sentences"]:
        line = [sentence, theirs, "", "", "", "not tested here" if experiments else asked]
        for frame in map(load, experiments.split()):
            found = difference(frame, "top1", a, b)
            if found and found["seeds"] > 2:
                means = f"{number(found['mean_a'], 'top1')}, {number(found['mean_b'], 'top1')}"
                width = frame.loc[frame["arm"] == a, "width"].iloc[0]
                ours = f"{DATA[frame['dataset'].iloc[0]]}{wide(width)}: {means}"
                answer = ANSWERS[claims.result(found["low"], found["high"], asked)]
                line = [sentence, theirs, ours, signed(found, "top1"), found["seeds"], answer]
                budgets |= dict.fromkeys(budget(frame))
                break
        lines.append(line)
    heads = ["the paper, text or table", "its a, b", "our a, b", "our a − b", "seeds", "here"]
    return markdown(heads, lines) + (f"\n\n*{'; '.join(budgets)}.*" if budgets else "")


def primary():
    """The primary claims, with every row of CLAIMS.md that is tested."""
    lines, tested = [], claims.primary()
    if not tested:
        return None
    for name, title in claims.claims_page()[1].items():
        result, rows = tested.get(name, ("waits for its runs", ()))
        lines.append([f"**{name}. {title}**", "", "", "", f"**{result}**"])
        for row in rows:
            m = row["measure"]
            a, b = (named(row[arm]).replace(", ", " (", 1) + ")" for arm in "ab")
            what = f"{HEADS[m]}: {a} − {b}"
            means = f"{number(row['mean_a'], m)}, {number(row['mean_b'], m)}"
            lines.append([what, means, signed(row, m), row["asked"], row["result"]])
    heads = ["", "means", "a − b, 99 % interval", "asked", "result"]
    return markdown(heads, lines)


# ---------------------------------------------------------------- the tables
def taught():
    measures = [*READ, "knn_one", "knn_one_changed", "invariance", "retrieval"]
    return read_outs(measures, "taught")


def added():
    """What slots add to an untrained network, and to jitter."""
    frame, lines = load("taught"), []
    measures = ("top1", "linear_one", "linear_one_changed", "linear_all_changed", "knn_one")
    for b, more in (("untrained", ""), ("jitter alone", " + jitter")):
        for name, group, loss in PAIRED:
            a = f"{group}, {loss}{more}"
            found = [difference(frame, m, a, f"{group}, {b}") for m in measures]
            if all(found):
                cells = [signed(d, m) for d, m in zip(found, measures)]
                lines.append([f"{name}: H-SSL{more} − {b}", *cells])
    return markdown(["in points: a − b", *(HEADS[m] for m in measures)], lines)


def slots():
    """One slot: what negatives alone add, and what H-SSL adds to each of its nulls."""
    lines, m = [], "linear_one"
    kinds = (
        ("negatives alone", "untrained"),
        ("H-SSL", "untrained"),
        ("H-SSL", "negatives alone"),
        ("H-SSL", "jitter alone"),
        ("H-SSL + jitter", "jitter alone"),
    )
    for title, experiment in (("digits", "taught"), ("CIFAR-10", "cifar10")):
        frame = load(experiment)
        for name, group, loss in PAIRED:
            found = []
            for pair in kinds:
                a, b = (f"{group}, {arm.replace('H-SSL', loss)}" for arm in pair)
                found.append(difference(frame, m, a, b))
            if any(found):
                cells = [signed(d, m) if d else "" for d in found]
                seeds = counted(d["seeds"] for d in found if d)
                lines.append([f"{title}, {name}", *cells, seeds])
    heads = [" − ".join(pair) for pair in kinds]
    return markdown(["one slot, in points", *heads, "seeds"], lines)


def by_slots():
    """The runs of positions of which where.py has measured the slot's share, with it."""
    frame, features = load("taught", "draw"), networks("where")
    if frame.empty or features.empty:
        return pd.DataFrame()
    return frame.merge(features[["arm", "seed", "where"]])


def draw():
    """Positions: the slot's share of the features, and what is read.  Slots are drawn for each
    image, or once for all images of a batch.  Only printed."""
    frame, lines = by_slots(), []
    measures = ("where", "top1", "linear_all", "linear_all_changed")
    for name in COLOURS if len(frame) else ():
        both = [frame[frame["arm"] == f"trans, {name}{more}"] for more in ("", ", one draw")]
        both = [runs for runs in both if len(runs)]
        if both:
            cells = [" · ".join(spread(runs[m], m) for runs in both) for m in measures]
            seeds = " · ".join(str(len(runs)) for runs in both)
            lines.append([named(f"trans, {name}"), *cells, seeds])
    heads = ["for each image · one draw", *(HEADS[m] for m in measures), "seeds"]
    return markdown(heads, lines)


def readings():
    """What the front page shows: (what is read, {what the views are: {loss: values by seed}})."""
    losses = ("untrained", "negatives alone", "H-SSL", "A-SSL", "jitter alone", "H-SSL + jitter")
    for title, experiment, measure in (
        ("digits, one slot", "taught", "linear_one"),
        ("digits changed by g, all slots", "taught", "linear_all_changed"),
        ("CIFAR-10, one slot", "cifar10", "linear_one"),
    ):
        frame, parts = load(experiment), {}
        for name, group, h_ssl in PAIRED:
            arms = {loss: f"{group}, {loss.replace('H-SSL', h_ssl)}" for loss in losses}
            parts[name] = {loss: by_seed(frame, measure, arm) for loss, arm in arms.items()}
        if len(frame):
            yield title, parts


def front():
    """The table of the front page: what a linear classifier reads."""
    lines, heads = [], []
    for title, parts in readings():
        heads = ["linear classifier, %", *parts["turns"]]
        lines.append([f"**{title}**", *[""] * len(parts["turns"])])
        for name, found in parts.items():
            lines.append([name, *(spread(values, "top1") for values in found.values())])
    return markdown(heads, lines)


def quick():
    """The quick start of the front page: what each measure is, and its values."""
    frame, lines = load("quick"), []
    if frame.empty:
        return None
    for measure, name, _ in probe.ROWS:
        cells = []
        for _, runs in frame.groupby("group"):  # rot, scale
            before = pd.Series([probe.mean_over_g(found, measure) for found in runs["untrained"]])
            cells += [spread(before, measure), spread(runs[measure], measure)]
        lines.append([name.replace("  ", "… "), *cells, QUICK[measure]])
    heads = [f"{name}: {when}" for name in ("turns", "scales") for when in ("untrained", "trained")]
    return markdown(["", *heads, "what it is"], lines)


def by_epsilon():
    """Each ε of which all three networks have runs, 0 with them: {ε: {loss: its rows}}."""
    found = {}
    if load("knob").empty:
        return found
    for epsilon, rows in load("taught", "knob").groupby("epsilon"):
        ending = f", epsilon {epsilon:g}" if epsilon else ""
        arms = {name: rows[rows["arm"] == f"rot, {name}{ending}"] for name in LEARNED}
        if all(map(len, arms.values())):
            found[epsilon] = arms
    return found


def knob():
    """Each ε: four measures of three networks.  Only printed."""
    lines = []
    measures = ("equation1", "invariance", "linear_all_changed", "linear_one", "retrieval")
    for epsilon, arms in by_epsilon().items():
        cells = [" · ".join(spread(runs[m], m) for runs in arms.values()) for m in measures]
        lines.append([f"ε = {epsilon:g}", *cells, min(map(len, arms.values()))])
    heads = [" · ".join(LEARNED), *(HEADS[m] for m in measures), "seeds"]
    return markdown(heads, lines)


def compared():
    """Each of KINDS that has runs: (title, {loss: its rows}, {loss: the paper's top-1})."""
    known = paper()
    for title, experiments, dataset, prefix, table in KINDS:
        frame = load(*experiments.split())
        if frame.empty:
            continue
        frame = frame[frame["dataset"] == dataset]
        arms = {loss: frame[frame["arm"] == f"{prefix}, {name}"] for loss, name in LOSSES.items()}
        setting = [dataset, prefix.split(",")[0]]
        theirs = {row[2]: row[3] for row in known.get(table, ()) if row[:2] == setting}
        if len(arms["hssl"]):
            yield title, arms, theirs


def published():
    """Top-1 beside Tables 1 and 2 of the paper, whose numbers are in italics."""
    lines = []
    for title, arms, theirs in compared():
        rows, frozen = arms["hssl"], arms["frozen"]
        cells = []
        for loss, runs in arms.items():
            cells.append(spread(runs["top1"], "top1"))
            if loss in theirs:
                cells[-1] += f" *({theirs[loss]})*"
        free = spread(frozen["linear_all"], "linear_all") if "linear_all" in frozen else ""
        seeds = counted(len(runs) for runs in arms.values() if len(runs))
        lines.append([title, images(rows), cells[0], free, *cells[1:], seeds])
    heads = ["top-1, %", "images × epochs", "untrained", "untrained, all slots (linear)"]
    heads += [*list(LOSSES.values())[1:], "seeds"]
    return markdown(heads, lines)


def slopes(frame, group):
    """Fig. 2 left: top-1 (a row for each seed, a column for each |g0|), and the seeds' slopes, in
    points for each doubling of |g0|."""
    arms = {n: f"{group}, H-SSL, size {n}".removesuffix(", size 1") for n in SIZES[group]}
    curves = pd.DataFrame({n: by_seed(frame, "top1", arm) for n, arm in arms.items()}).dropna()
    return curves, [np.polyfit(np.log2(list(arms)), row, 1)[0] for row in curves.to_numpy()]


def bundle():
    """Fig. 2 left: top-1 for each size of the base space, and its slope."""
    lines = []
    for name, frozen in (("bundle", "taught"), ("bundle_cifar10", "cifar10")):
        frame, before = load(name), load(frozen)
        for group, spelled in GROUPS.items():
            curves, slope = slopes(frame, group)
            if len(curves) > 1:
                arm = f"{group}, untrained"
                free = [spread(by_seed(before, m, arm), m) for m in ("top1", "linear_all")]
                sizes = ", ".join(f"{n}: {number(v, 'top1')}" for n, v in curves.mean().items())
                title = f"{DATA[frame['dataset'].iloc[0]]}, {spelled}"
                found = signed(claims.interval(slope), "slope")
                lines.append([title, *free, sizes, found, len(curves)])
    heads = ["", "untrained, top-1", "untrained, all slots (linear)", "top-1 at each size of g0"]
    return markdown([*heads, "points for each doubling", "seeds"], lines)


def networks(name):
    """What riddle.py ("riddle" or "few") or where.py ("where") measured in networks, sorted; empty
    if there is nothing."""
    path = os.path.join(claims.FOLDER, f"{'riddle' if name == 'few' else name}.jsonl")
    if not os.path.exists(path):
        return pd.DataFrame()

    def place(row):
        group, training, *more = row["arm"].split(", ")
        return list(GROUPS).index(group), -row["width"], more, list(COLOURS).index(training)

    with open(path) as file:
        frame = pd.DataFrame(sorted(map(json.loads, file), key=place))
    narrow = frame["width"] < 1  # those of `pooling`
    if name == "riddle":
        frame = frame[~narrow]
    if name == "few":
        frame = frame[narrow | (frame["group"] == "trans")]
    if frame.duplicated(["arm", "seed"]).any():
        raise ValueError(f"two networks have the same arm and seed: remove one from {path}")
    return frame


def riddle():
    """What trained networks know, in per cent: of each measure the mean over seeds."""
    frame, lines = networks("riddle"), []
    for arm, rows in frame.groupby("arm", sort=False) if len(frame) else ():
        lines.append([named(arm), *(spread(rows[m], "top1") for m in RIDDLE), len(rows)])
    return markdown(["", *RIDDLE.values(), "seeds"], lines)


def few():
    """Pooling with and without training, from few labels to many: turns, narrower, with extent 1
    and 4; and neighbouring positions."""
    frame, lines = networks("few"), []
    measures = [f"{m}_{n}" for m in ("one", "all_changed") for n in LABELS]
    for arm, rows in frame.groupby("arm", sort=False) if len(frame) else ():
        lines.append([named(arm), *(spread(rows[m], "top1") for m in measures), len(rows)])
    heads = [f"one slot, {n:,}" for n in LABELS] + [f"all, changed, {n:,}" for n in LABELS]
    return markdown(["labels", *heads, "seeds"], lines)


def gains():
    """What training adds to pooling without training, by labels: all slots, changed digits."""
    frame, lines = networks("few"), []
    kinds = (
        ("turns, extent 1", "rot, {}", "H-SSL"),
        ("turns, extent 4", "rot, {}, extent 4", "H-SSL"),
        ("positions (H-SSL: neighbours)", "trans, {}", "near"),
    )
    for title, arm, h_ssl in kinds:
        free = arm.format("untrained")
        arms = [arm.format(name) for name in (h_ssl, "jitter alone", f"{h_ssl} + jitter")]
        for n in (100, 10000):
            found = [difference(frame, f"all_changed_{n}", trained, free) for trained in arms]
            if all(found):
                cells = [signed(d, "top1") for d in found]
                lines.append([title, f"{n:,}", *cells, counted(d["seeds"] for d in found)])
    heads = ("H-SSL", "jitter alone", "H-SSL + jitter", "seeds")
    return markdown(["all slots, changed: points over free pooling", "labels", *heads], lines)


def audit():
    """How often counts find the changed copy, by group and augmentation (results/audit.py)."""
    path = os.path.join(claims.FOLDER, "audit.jsonl")
    if not os.path.exists(path):
        return None
    frame = pd.read_json(path, lines=True)
    lines = []
    for (dataset, group), rows in frame.groupby(["dataset", "group"], sort=False):
        rows = rows.set_index("what")
        cells = [f"{r['bins']:.1f} · {r['counts']:.1f}" for _, r in rows.iterrows()]
        lines.append([f"{DATA[dataset]}, {GROUPS[group]}", *cells])
    return markdown(["found by grey bins · by kept counts, %", *rows.index], lines)


def bench():
    """Training steps (results/bench.json): images a second."""
    path = os.path.join(claims.FOLDER, "bench.json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        found = json.load(file)
    lines = []
    for row in found["rows"]:
        speed = [f"{value:,.0f}" for value in row["speed"].values()]
        lines.append([row["what"], *speed, f"{row['ratio']:.2f}"])
    both = ", ".join(f"{name}: {value:,.0f}" for name, value in found["processes"].items())
    table = markdown(["images a second", *found["heads"], "H-SSL / A-SSL"], lines)
    return f"{table}\n\n*{found['machine']}. train.py, quick start: {both} (two threads in all).*"


def spent():
    """How many runs are behind the page, and their hours."""
    every = {run.key(row): row["train_seconds"] for _, row in run.rows(claims.FOLDER)}
    hours = sum(every.values()) / 3600
    return f"{len(every)} runs, about {hours:.0f} hours of training, most with one CPU thread"


TABLES = (answers, primary, taught, added, slots, audit, gains, published)
TABLES += (bundle, bench, spent, quick, front, draw, few, riddle, knob)
TABLES = {table.__name__: table for table in TABLES}


def table(name):
    """A table of TABLES; for the name of an experiment all that its runs read.  None without
    runs."""
    return TABLES[name]() if name in TABLES else read_outs(list(HEADS)[:-1], name)


# ---------------------------------------------------------------- the page
def text_of(name, measure, *arms):
    """{name | measure | arms} of ABOUT.md as text; None if a run is missing."""
    name, *other = name.split(" − ")
    frame = networks(name) if name in ("riddle", "few", "where") else load(*name.split())
    if len(arms) == 1:
        return spread(by_seed(frame, measure, *arms), measure)
    if len(arms) == 5:
        a, b, c, d = (by_seed(frame, measure, arm) for arm in arms[:4])
        gains = ((a - b) - (c - d)).dropna()
        return signed(claims.interval(gains), measure) if len(gains) > 1 else None
    found = difference(frame, measure, *arms[:2], other=load(*other) if other else None)
    if not found:
        return None
    if arms[2:]:
        return signed(found, measure)
    a, b = (number(found[key], measure) for key in ("mean_a", "mean_b"))
    return f"{a} against {b} ({span(found, measure)})"


def filled(line):
    """A line of ABOUT.md with its tables and numbers; None if one of them, or of a picture, has no
    runs."""
    picture = re.fullmatch(r"!\[.*\]\((\w+)\.png\)", line)
    if picture and not table(picture[1]):
        return None
    for mark in re.findall(r"\{[^{}]+\}", line):
        name, *rest = [part.strip() for part in mark[1:-1].split("|")]
        text = text_of(name, *rest) if rest else table(name)
        if not text:
            return None
        line = line.replace(mark, text)
    return line


def page():
    """The text of results/README.md."""
    with open(os.path.join(claims.FOLDER, "ABOUT.md")) as file:
        next(file)  # its first line says what ABOUT.md is
        sections = file.read().split("\n## ")
    kept = []
    for section in sections:
        lines = [(line, filled(line)) for line in section.split("\n")]
        shown = [new for line, new in lines if re.fullmatch(r"\{\w+\}|!\[.*\.png\)", line)]
        if not shown or shown[0]:
            kept.append("\n".join(new for _, new in lines if new is not None))
    return re.sub(r"\n{3,}", "\n\n", "\n## ".join(kept))


def main(names):
    known = dict.fromkeys([*TABLES, *EXPERIMENTS])
    for name in names:
        if name not in known:
            sys.exit(f"tables.py: no table is called {name}: take {', '.join(known)}")
        print(table(name) or f"{name}: its runs do not exist yet")
    if not names:
        text = page()
        with open(os.path.join(claims.FOLDER, "README.md"), "w") as file:
            file.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
