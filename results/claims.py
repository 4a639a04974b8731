"""From finished runs to differences, intervals and the primary claims of CLAIMS.md.

    from results.claims import load, difference, primary
    taught = load("taught")                                 # a pandas table, a row for each run
    difference(taught, "top1", "rot, A-SSL", "rot, H-SSL")  # paired by seed, with its interval

A run's arm is its short name, as in CLAIMS.md: "trans, near + jitter".
"""

import json
import math
import os
import re

import pandas as pd
from scipy.stats import t as student

from probe import CHANGE, mean_over_g
from results.experiments import SEEDS
from results.run import DEFAULTS

FOLDER = os.path.dirname(os.path.abspath(__file__))
LEVEL = 0.99  # of the intervals of the primary claims
LOSSES = {"frozen": "untrained", "hssl": "H-SSL", "assl": "A-SSL", "supervised": "supervised"}
GROUPS = {"rot": "turns", "scale": "scales", "trans": "positions"}  # for readers
COLOURS = {  # of what a run trains with, in the order of tables; nothing else has them
    "untrained": "#9a9a9a",
    "negatives alone": "#b88bc4",
    "H-SSL": "#a0522d",
    "near": "#d9966b",
    "A-SSL": "#007c91",
    "shift alone": "#c8cf86",
    "jitter alone": "#94a323",
    "H-SSL + shift": "#7a6a4f",
    "H-SSL + jitter": "#50590f",
    "near + jitter": "#3b2a1c",
    "A-SSL + jitter": "#6fb3c0",
    "supervised": "black",
}


# ---------------------------------------------------------------- rows
def load(*names):
    """The rows of results/NAME.jsonl as one table, sorted by arm; empty if there is no such file.

    A measure with a value for each g is replaced by its mean, NaN if it is undefined.  New columns:
    `arm`, and `error`, the error of Eq. 1 over the change under g, its null."""
    rows = []
    for name in names:
        path = os.path.join(FOLDER, f"{name}.jsonl")
        if os.path.exists(path):
            with open(path) as file:
                rows += [DEFAULTS | json.loads(line) | dict(experiment=name) for line in file]
    for row in rows:
        row["arm"] = arm(row)
        row["error"] = mean_over_g(row, "error") if "equation1" in row else None
        for name in CHANGE:
            if name in row:
                row[name] = mean_over_g(row, name)
    frame = pd.DataFrame(sorted(rows, key=place))
    for name in ("error", *CHANGE):
        if name in frame:
            frame[name] = frame[name].astype(float)  # None is NaN
    return frame


def loss_name(row):
    """What a run trains with: "H-SSL", "near", "jitter alone", "A-SSL + jitter", …"""
    augment = row["augment"]
    if row["max_distance"] == 0:
        return "negatives alone" if augment == "none" else f"{augment} alone"
    name = "near" if row["max_distance"] == 1 else LOSSES[row["loss"]]
    return name if augment == "none" else f"{name} + {augment}"


def arm(row):
    """A run's short name: group, network, `loss_name`, and what differs from the usual."""
    row = DEFAULTS | row  # older rows lack newer flags
    name = [row["group"]]
    if row["backbone"] != "equivariant":
        name.append(row["backbone"])
    name.append(loss_name(row))
    if row["draw"] == "batch":
        name.append("one draw")
    if row["extent"] > 1:
        name.append(f"extent {row['extent']}")
    if row["epsilon"]:
        name.append(f"epsilon {row['epsilon']:g}")
    if row["base_size"] > 1 and row["backbone"] == "equivariant":
        name.append(f"size {row['base_size']}")
    if (row["max_distance"] or 0) > 1:
        name.append(f"distance {row['max_distance']:g}")
    if row["pairs"] == "matched":
        name.append(f"matched {row['strength']:g}")
    elif row["loss"] == "assl" and row["strength"] != 0.2:
        name.append(f"strength {row['strength']:g}")
    return ", ".join(name)


def place(row):
    """Where a run stands in a table."""
    group = list(GROUPS).index(row["group"])
    network = ("mlp", "cnn", "equivariant").index(row["backbone"])
    order = list(COLOURS).index(loss_name(row))
    size, distance = row["base_size"], row["max_distance"] or 0
    first = group, network, row["extent"], row["epsilon"], size
    return *first, order, distance, row["strength"], row["seed"]


# ---------------------------------------------------------------- differences
def by_seed(frame, measure, arm):
    """A measure of one arm: a Series over seeds.  ValueError if two runs have the same seed."""
    if frame.empty:
        return pd.Series(dtype=float)
    runs = frame[frame["arm"] == arm].set_index("seed")
    if not runs.index.is_unique:
        raise ValueError(f"two runs of {arm} have the same seed: remove one from results/*.jsonl")
    return runs[measure].astype(float)


def interval(values, level=0.95):
    """Student's t: a Series or list of numbers → a dict of mean, low, high (NaN for fewer than
    two)."""
    values = pd.Series(values, dtype=float)
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.sem(skipna=False)
    mean = values.mean(skipna=False)
    return dict(mean=mean, low=mean - half, high=mean + half)


def difference(frame, measure, a, b, level=0.95, seeds=None, other=None):
    """a - b of two arms, paired by seed: a dict of mean_a, mean_b, mean, low, high, seeds.

    seeds: these are tested, and no others.  None: all that both arms have, at least two.
    other: the table with the runs of b, if it is another one.
    Returns None if a run is missing."""
    a = by_seed(frame, measure, a)
    b = by_seed(frame if other is None else other, measure, b)
    both = a.index.intersection(b.index)
    seeds = list(both if seeds is None else seeds)
    if len(seeds) < 2 or not set(seeds) <= set(both):
        return None
    a, b = a[seeds], b[seeds]
    return dict(mean_a=a.mean(), mean_b=b.mean(), seeds=len(seeds)) | interval(a - b, level)


def wanted(asked):
    """Where "above C", "below C" or "within C" asks a difference to lie: two floats."""
    word, bound = asked.split()
    c = float(bound)
    return dict(above=(c, math.inf), below=(-math.inf, c), within=(-c, c))[word]


def result(low, high, asked):
    """What an interval says about what was `asked`: holds, opposite or open."""
    least, most = wanted(asked)
    if least < low and high < most:
        return "holds"
    return "opposite" if high < least or low > most else "open"  # open, too, if they are NaN


# ---------------------------------------------------------------- the primary claims
def claims_page():
    """CLAIMS.md → its table (a list of dicts, a row each) and {letter: its title}."""
    with open(os.path.join(FOLDER, "CLAIMS.md")) as file:
        lines = file.read().splitlines()
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    names = ("claim", "experiment", "measure", "a", "b", "asked")
    rows = [dict(zip(names, cells)) for cells in table[2:]]
    titles = re.findall(r"^- \*\*(\w)\. (.*?)\.?\*\*", "\n".join(lines), re.MULTILINE)
    return rows, dict(titles)


def primary():
    """Test each row of CLAIMS.md: {letter: (result, rows)} for the claims of which all runs exist.

    A row is a dict of its names, what `difference` gives, and its result.  A claim holds if all
    its rows hold; it is refuted if one says the opposite, else open."""
    rows, _ = claims_page()
    found = {}
    for row in rows:
        frame = load(row["experiment"])
        measured = difference(frame, row["measure"], row["a"], row["b"], LEVEL, SEEDS)
        if measured:
            row |= measured
            row["result"] = result(row["low"], row["high"], row["asked"])
        found.setdefault(row["claim"], []).append(row)
    tested = {}
    for name, rows in found.items():
        results = {row.get("result") for row in rows}
        if results == {"holds"}:
            tested[name] = "holds", rows
        elif None not in results:
            tested[name] = "refuted" if "opposite" in results else "open", rows
    return tested
