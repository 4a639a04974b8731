"""From finished runs to claims: the rows of results/*.jsonl, their means and spreads, and what they decide.

    from results.claims import claims, pick, rows_of
    claims()                                          # one dict for each claim; results/tables.py prints them

A difference is paired by seed, with a 95 % interval from Student's t.  "Within the margin" is said only if the whole
interval lies within a stated margin (two one-sided tests, at 2.5 % each).
"""
import itertools
import math
import os
import statistics

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import t as student

import checkpoint

FOLDER = os.path.dirname(os.path.abspath(__file__))
LOSSES = {"frozen": "untrained", "hssl": "H-SSL (Eq. 3)", "assl": "A-SSL (Eq. 2)", "supervised": "supervised"}
GROUPS = {"rot": "rotation", "scale": "scale", "trans": "translation"}
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "tiny-imagenet": "Tiny ImageNet", "mnist5k": "5,000 MNIST digits", "folder": "a folder"}
READOUTS = ("top1", "linear", "knn", "fiber", "moved")
DISTANCES = ("invariance", "equation1", "axis")


# ---------------------------------------------------------------- rows
def rows_of(experiment):
    """results/EXPERIMENT.jsonl: one dict for each run.  [] if there is no such file; incomplete lines are skipped."""
    return [row for row in checkpoint.read_lines(os.path.join(FOLDER, f"{experiment}.jsonl")) if "loss" in row]


def pick(rows, **flags):
    """{seed: row} of the rows with these flags.  Raises ValueError if two rows have the same seed, since they are then different runs."""
    found = {}
    for row in rows:
        if all(row.get(k) == v for k, v in flags.items()):
            if row["seed"] in found:
                raise ValueError(f"two runs of seed {row['seed']} have {flags}: remove one from results/*.jsonl")
            found[row["seed"]] = row
    return found


def mean_over_g(row, name):
    """The mean of a distance over g; None if it is not defined for this run."""
    return statistics.mean(row[name]) if row[name] and None not in row[name] else None


def value(row, name):
    """A read-out; the mean of a distance over g; or "one position": the invariance to the first g, for translation 4 px."""
    if name == "one position":
        return row["invariance"][0]
    return row[name] if name in READOUTS else mean_over_g(row, name)


def cycle_found(row):
    """Whether the eigenvalues of a learned A are within 0.15 of 1, i, -1, -i, paired in the best way."""
    return 0.15 > min(max(abs(complex(*a) - b) for a, b in zip(p, (1, 1j, -1, -1j))) for p in itertools.permutations(row["eigenvalues"]))


def reach(row):
    """The largest distance in px between the two views of a run with translations (A-SSL: along the diagonal)."""
    return 2 * 2 ** 0.5 * int(row["strength"] * 29) if row["loss"] == "assl" else 4 * (row["max_distance"] or 98) ** 0.5  # 98: any two of 8 × 8


def by_seed(rows, name, **flags):
    """{seed: `value`} of the rows with these flags, without those in which it is not defined."""
    return {seed: v for seed, row in pick(rows, **flags).items() if (v := value(row, name)) is not None}


# ---------------------------------------------------------------- statistics
def spread(values, digits=1):
    """"mean ± standard deviation" of a list without its Nones; "x (1 seed)" for one number, "" for none."""
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return f"{values[0]:.{digits}f} (1 seed)" if values else ""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def half_width(deviation, n):
    """Half of the 95 % interval of a mean of n numbers, Student's t.  deviation: a number or an array."""
    return student.ppf(0.975, n - 1) * deviation / n ** 0.5


def interval(values):
    """Mean and half-width of the 95 % interval of a list (infinite for one number)."""
    n = len(values)
    return statistics.mean(values), math.inf if n < 2 else float(half_width(statistics.stdev(values), n))


def chance(mean, deviation, seeds, margin=None):
    """The chance that so many new seeds decide a claim (see `verdict`), if these are the true mean and standard deviation."""
    deviation = max(deviation, 1e-12)
    error = deviation / seeds ** 0.5  # of the mean
    measured = deviation * (chi2.ppf((np.arange(100) + 0.5) / 100, seeds - 1) / (seeds - 1)) ** 0.5  # (100,): equally likely values of what is measured for it
    half = half_width(measured, seeds)  # (100,)
    inside = lambda width: norm.cdf((width - mean) / error) - norm.cdf((-width - mean) / error)  # the mean lies in ± width
    undecided = inside(half) - inside(np.maximum(0, (margin or 0) - half))  # (100,): the interval contains 0 and leaves the margin
    return 1 - float(undecided.clip(0).mean())


def seeds_needed(values, margin=None):
    """The smallest number of seeds with an even `chance` to decide, from the mean and spread of these; at most 1000."""
    return next((n for n in range(2, 1000) if chance(statistics.mean(values), statistics.stdev(values), n, margin) >= 0.5), 1000)


# ---------------------------------------------------------------- claims
def difference(a, b):
    """a - b of two {seed: number}, for the seeds that both have."""
    return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def claim(text, what, a, b, margin=None, planned=2):
    """The difference a - b of two {seed: number}, paired by seed, as a dict; None for fewer than `planned` seeds.

    a, b: the means; mean ± half: the interval of the difference; price: how many new seeds may decide it, as text.
    With a margin the test is "within the margin", else "a > b"."""
    seeds = difference(a, b)
    values = list(seeds.values())
    if len(values) < planned:
        return None
    mean, half = interval(values)
    found, price = verdict(mean, half, margin), ""
    if found == "undecided" and len(values) < 4:
        price = "too few seeds to say how many are needed"
    elif found == "undecided":
        wanted = seeds_needed(values, margin)
        price = "1,000 new seeds or more" if wanted == 1000 else f"about {wanted} new seeds"
    return dict(claim=text, what=what, a=statistics.mean(a[s] for s in seeds), b=statistics.mean(b[s] for s in seeds), mean=mean, half=half, margin=margin,
                seeds=len(seeds), verdict=found, price=price)


def verdict(mean, half, margin=None):
    """What the interval mean ± half says about "a > b", or with a margin about "within the margin", see ABOUT.md."""
    if margin is None:
        return "holds" if mean > half else "fails" if mean < -half else "undecided"
    return "within the margin" if abs(mean) + half <= margin else "different" if abs(mean) > half else "undecided"


SAME = (  # measure, its name, the loss whose gain over untrained gives the margin, the part of the gain
    ("invariance", "invariance", "assl", 10), ("one position", "invariance to one position", "assl", 10), ("moved", "moved", "hssl", 2), ("top1", "top-1", "hssl", 2))
PLANNED = {"invariance": 0.05, "one position": 0.05, "moved": 2, "top1": 1}  # margins of Table 1's claims, see ABOUT.md


def measures(group):
    """The lines of SAME for this group: "one position" is for translation."""
    return [line for line in SAME if line[0] != "one position" or group == "trans"]


def compare(rows, where, margins=None, planned=2):
    """The claims about A-SSL, H-SSL and the untrained network, for rows of one data set and budget: see `claim`.  where: text that names them.

    margins: {measure: margin} fixed before the runs.  None: a part of the gain over the untrained network, so "the same" is
    asked only where that gain is above 0 (its interval)."""
    found = []
    for group, spelled in GROUPS.items():
        for name, short, teacher, part in measures(group):
            untrained, h, a = (by_seed(rows, name, group=group, loss=loss) for loss in ("frozen", "hssl", "assl"))
            if name not in READOUTS:
                found.append(claim("H-SSL lowers `invariance`", f"{short}, untrained - H, {spelled}{where}", untrained, h, planned=planned))
            gain = claim("", "", untrained, a) if teacher == "assl" else claim("", "", h, untrained)
            if gain and (margins or gain["mean"] > gain["half"]):
                margin = margins[name] if margins else gain["mean"] / part
                said = f"{margin:g} (fixed before the runs)" if margins else f"{'a tenth' if part == 10 else 'half'} of {LOSSES[teacher][:5]}'s gain over untrained"
                found.append(claim(f"A-SSL and H-SSL differ by less than {said}", f"{short}, A - H, {spelled}{where}", a, h, margin, planned))
    return [row for row in found if row]


def claims():
    """All claims that the finished runs can test: a list of dicts, see `claim`.  Tables, notebook and pictures use it.

    `corrected` is the verdict with intervals of 1 - 0.05/n for n claims (Bonferroni).  With at least 95 % all of
    them contain the true differences, if the claims and the seeds were fixed beforehand (here they were not, see ABOUT.md)."""
    learned, knob, repaired, table1 = map(rows_of, ("learned", "knob", "scale_repaired", "table1"))
    found = compare(learned, "")
    for data_set in DATA:
        found += compare([r for r in table1 if r["dataset"] == data_set], f" ({DATA[data_set]}, whole)", PLANNED, 5 if data_set == "mnist" else 3)
    found += broken(knob)
    near = lambda loss, name="moved", functions=3, pool="max": by_seed(repaired, name, functions=functions, pool=pool, loss=loss)  # by default the network nearest to Eq. 1
    found.append(claim("Scale, nearer to Eq. 1: H-SSL raises the accuracy on shrunk digits", "moved, H - untrained, 3 functions, max over space", near("hssl"), near("frozen")))
    found.append(claim("Scale, nearer to Eq. 1: A-SSL reaches more on shrunk digits than H-SSL", "moved, A - H, 3 functions, max over space", near("assl"), near("hssl")))
    gaps = [difference(*(near(loss, "invariance", *network) for loss in ("hssl", "assl"))) for network in ((None, "mean"), (3, "max"))]
    found.append(claim("Scale, nearer to Eq. 1: the two losses differ less in invariance", "invariance, (H - A) of the paper's network - (H - A) of 3 functions, max", *gaps))
    gains = {group: difference(*(by_seed(learned, "top1", group=group, loss=loss) for loss in ("hssl", "frozen"))) for group in ("scale", "trans")}
    found.append(claim("H-SSL gains more over untrained for scale than for translation", "top-1, gain for scale - gain for translation (the seeds of both)", gains["scale"], gains["trans"]))
    found = [row for row in found if row]
    for row in found:
        wider = student.ppf([1 - 0.025 / len(found), 0.975], row["seeds"] - 1)
        row["corrected"] = verdict(row["mean"], row["half"] * wider[0] / wider[1], row["margin"])
    return found


def broken(knob):
    """The claims about a network in which Eq. 1 is broken by ε, for rows of `knob`; [] if H-SSL has no clear gain at ε = 0."""
    moved, invariance = (lambda loss, epsilon, name=name: by_seed(knob, name, epsilon=epsilon, loss=loss) for name in ("moved", "invariance"))
    exact = claim("", "", moved("hssl", 0), moved("frozen", 0))  # H-SSL's gain where Eq. 1 holds
    if not exact or exact["mean"] <= exact["half"]:
        return []
    margin, found = exact["mean"] / 2, []
    for epsilon in (0.03, 0.1, 0.3, 1, 3):
        found.append(claim("Eq. 1 broken: H-SSL ends less invariant to turns than A-SSL", f"invariance, H - A, ε = {epsilon}",
                           invariance("hssl", epsilon), invariance("assl", epsilon)))
    gap = lambda epsilon: difference(invariance("hssl", epsilon), invariance("assl", epsilon))
    found.append(claim("Eq. 1 broken: the two losses differ more in invariance than at ε = 0", "invariance, (H - A) at ε = 1 - (H - A) at ε = 0", gap(1), gap(0)))
    for epsilon in (0.03, 0.1, 0.3):
        found.append(claim("Eq. 1 broken a little: A-SSL and H-SSL differ by less than half of H-SSL's gain at ε = 0", f"moved, A - H, ε = {epsilon}",
                           moved("assl", epsilon), moved("hssl", epsilon), margin))
    for epsilon in (1, 3):
        found.append(claim("Eq. 1 broken: A-SSL reaches more on turned digits than H-SSL", f"moved, A - H, ε = {epsilon}", moved("assl", epsilon), moved("hssl", epsilon)))
        found.append(claim("Eq. 1 broken: H-SSL and untrained differ by less than half of H-SSL's gain at ε = 0", f"moved, H - untrained, ε = {epsilon}",
                           moved("hssl", epsilon), moved("frozen", epsilon), margin))
    return found
