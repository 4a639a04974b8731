"""From finished runs to differences, intervals and the primary claims of CLAIMS.md.

    from results.claims import load, difference, primary
    taught = load("taught")                                 # a pandas table, a row for each run
    difference(taught, "top1", "rot, A-SSL", "rot, H-SSL")  # paired by seed, with its interval

A run's arm is its short name, as in CLAIMS.md: "trans, near + jitter".
"""

import json
import os
import re

import pandas as pd
from scipy.stats import t as student

from probe import CHANGE, mean_over_g

FOLDER = os.path.dirname(os.path.abspath(__file__))
SEEDS = range(10, 15)  # of the primary claims
LEVEL = 0.99  # of their intervals
LOSSES = {"frozen": "untrained", "hssl": "H-SSL", "assl": "A-SSL", "supervised": "supervised"}
GROUPS = {"rot": "turns", "scale": "scales", "trans": "positions"}  # for readers
ORDER = ("untrained", "negatives alone", "H-SSL", "near", "A-SSL", "shift alone", "jitter alone")
ORDER += ("H-SSL + shift", "H-SSL + jitter", "near + jitter", "A-SSL + jitter", "supervised")


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
                rows += [json.loads(line) | dict(experiment=name) for line in file]
    for row in rows:
        row.setdefault("pairs", "own")  # older rows have no matched pairs
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
    augment = row.get("augment", "none")
    if row.get("max_distance") == 0:
        return "negatives alone" if augment == "none" else f"{augment} alone"
    name = "near" if row.get("max_distance") == 1 else LOSSES[row["loss"]]
    return name if augment == "none" else f"{name} + {augment}"


def arm(row):
    """A run's short name: group, network, `loss_name`, and what differs from the usual."""
    name = [row["group"]]
    if row["backbone"] != "equivariant":
        name.append(row["backbone"])
    name.append(loss_name(row))
    if row.get("draw") == "batch":
        name.append("one draw")
    if row.get("extent", 1) > 1:
        name.append(f"extent {row['extent']}")
    if row["epsilon"]:
        name.append(f"epsilon {row['epsilon']:g}")
    if row["base_size"] > 1 and row["backbone"] == "equivariant":
        name.append(f"size {row['base_size']}")
    if (row["max_distance"] or 0) > 1:
        name.append(f"distance {row['max_distance']:g}")
    if row.get("pairs") == "matched":
        name.append(f"matched {row['strength']:g}")
    elif row["loss"] == "assl" and row["strength"] != 0.2:
        name.append(f"strength {row['strength']:g}")
    return ", ".join(name)


def place(row):
    """Where a run stands in a table."""
    group = list(GROUPS).index(row["group"])
    network = ("mlp", "cnn", "equivariant").index(row["backbone"])
    distance = row["max_distance"] or 0
    order = ORDER.index(loss_name(row))
    extent, size = row.get("extent", 1), row["base_size"]
    return group, network, extent, row["epsilon"], size, order, distance, row["strength"]


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
    """Student's t: a Series or list of numbers → mean, low, high (NaN for fewer than two)."""
    values = pd.Series(values, dtype=float)
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.sem(skipna=False)
    mean = values.mean(skipna=False)
    return mean, mean - half, mean + half


def difference(frame, measure, a, b, level=0.95, seeds=None):
    """a - b of two arms, paired by seed: a dict of mean_a, mean_b, mean, low, high, seeds.

    seeds: these are tested, and no others.  None: all that both arms have, at least two.
    Returns None if a run is missing."""
    a, b = by_seed(frame, measure, a), by_seed(frame, measure, b)
    if seeds is None:
        seeds = a.index.intersection(b.index)
    seeds = list(seeds)
    if len(seeds) < 2 or not set(seeds) <= set(a.index) & set(b.index):
        return None
    a, b = a[seeds], b[seeds]
    mean, low, high = interval(a - b, level)
    return dict(mean_a=a.mean(), mean_b=b.mean(), mean=mean, low=low, high=high, seeds=len(seeds))


def result(low, high, asked):
    """What an interval says about "above C", "below C" or "within C": holds, opposite or open."""
    word, bound = asked.split()
    bound = float(bound)
    inside, outside = -bound < low and high < bound, low > bound or high < -bound
    if dict(above=low > bound, below=high < bound, within=inside)[word]:
        return "holds"
    if dict(above=high < bound, below=low > bound, within=outside)[word]:
        return "opposite"
    return "open"  # also if the measure is undefined in a run: then low and high are NaN


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
