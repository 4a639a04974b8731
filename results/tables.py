"""Make tables from finished runs: results/*.jsonl → results/README.md.  (results/pictures.py makes the pictures.)

    python results/tables.py               # write results/README.md: the text of ABOUT.md with the tables in it
    python results/tables.py learned       # print one table: learned, knob, strength, …, claims, bench, front

Each function of TABLES returns the Markdown of one table.  Read-outs are means ± standard deviations over seeds; distances for
each g are means.  What the runs decide is in claims.py.
run.py, scale_error.py and learned_group.py make the runs; the paper's numbers are in results/paper.json.
"""
import collections
import functools
import json
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from results import claims  # noqa: E402
from results.claims import DATA, DISTANCES, GROUPS, LOSSES, READOUTS, by_seed, cycle_found, mean_over_g, pick, reach, rows_of, spread  # noqa: E402


def profile(runs, name):
    """A distance for g = 1, 2, … as text, each the mean over seeds; "none" if it is not defined for these runs."""
    lists = [row[name] for row in runs if row[name] and None not in row[name]]
    return " ".join(f"{statistics.mean(v):.2f}" for v in zip(*lists)) if lists else "none"


def cost(rows):
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    sizes = sorted({(DATA[r["dataset"]], r["train_images"], r["test_images"], r["epochs"], r["width"]) for r in rows if r["epochs"]})
    what = ";".join(f" {d}, {n:,} training and {m:,} test images, {e} epoch{'s' * (e > 1)}, width {w:g}" for d, n, m, e, w in sizes)
    kinds = collections.Counter(row.get("precision", "not recorded, mostly bfloat16") for row in rows if row["epochs"])
    precision = f" Precision of the trained ones: {', '.join(f'{name} ({n} runs)' for name, n in sorted(kinds.items()))}." if len(kinds) > 1 else ""
    return f"*{len(rows)} run{'s' * (len(rows) > 1)}, {hours:.1f} hours of one CPU core.{what}{'.' * bool(what)}{precision}*"


# ---------------------------------------------------------------- tables
def table(rows, kinds, columns):
    """Markdown: kinds is a list of (label, flags or the rows themselves), columns a list of (name, function of the kind's rows → text)."""
    columns = [("seeds", lambda runs: str(len(runs))), *columns]
    lines = ["| | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, flags in kinds:
        runs = flags if isinstance(flags, list) else list(pick(rows, **flags).values())
        if runs:
            lines.append(f"| {label} | " + " | ".join(column(runs) for _, column in columns) + " |")
    return "\n".join([*lines, "", cost(rows)])


def by_label(rows, label):
    """The kinds of `table`: [(a label, its rows)], in the order of the rows."""
    return [(name, [r for r in rows if label(r) == name]) for name in dict.fromkeys(map(label, rows))]


READ = [(name, lambda runs, name=name: spread([r[name] for r in runs])) for name in READOUTS]
FAR = [(name, lambda runs, name=name: profile(runs, name)) for name in DISTANCES]
MEANS = [(f"{name}, mean over g", lambda runs, name=name: spread([mean_over_g(r, name) for r in runs], 3)) for name in DISTANCES]


def learned():
    kinds = [(f"{GROUPS[g]}, {LOSSES[l]}", dict(group=g, loss=l, amp="auto")) for g in GROUPS for l in ("frozen", "hssl", "assl")]
    single = rows_of("precision")  # rotation again, in float32 on any machine
    kinds += [(f"rotation, {LOSSES[l]}, in float32", [r for r in single if r["loss"] == l]) for l in ("hssl", "assl")]
    return table(rows_of("learned") + single, kinds, FAR + READ)


def paper(name):
    """The paper's numbers: {(data set, group, loss): (mean, standard deviation)}."""
    return {tuple(p[:3]): p[3:] for p in json.load(open(os.path.join(claims.FOLDER, "paper.json")))[name]}


def front():
    """The table on the front page: one line for each group and loss."""
    rows, theirs = rows_of("learned"), paper("table1")
    lines = ["| | | `invariance`, mean over g | `moved`, % | top-1, % | the paper's top-1 |", "|---|---|---|---|---|---|"]
    for group, name in GROUPS.items():
        for loss in ("frozen", "hssl", "assl"):
            cells = [spread(by_seed(rows, what, group=group, loss=loss).values(), digits) for what, digits in (("invariance", 2), ("moved", 1), ("top1", 1))]
            known = theirs.get(("mnist", group, loss))
            lines.append(f"| {name} | {LOSSES[loss]} | {' | '.join(cells)} | {f'{known[0]} ± {known[1]}' if known else ''} |")
            name = ""
    return "\n".join(lines)


def unfed():
    kinds = [(f"{GROUPS[g]}, {b}, {'BatchNorm at 0 and 1' if u else 'BatchNorm fed'}", dict(group=g, backbone=b, unfed=u))
             for g, b in (("rot", "equivariant"), ("scale", "equivariant"), ("trans", "equivariant"), ("trans", "mlp"), ("scale", "cnn")) for u in (False, True)]
    return table(rows_of("unfed"), kinds, READ + FAR[:1])


def knob():
    rows = rows_of("knob")
    kinds = [(f"ε = {e:g}, {LOSSES[l]}", dict(epsilon=e, loss=l)) for e in sorted({r["epsilon"] for r in rows}) for l in ("frozen", "hssl", "assl")]
    return table(rows, kinds, MEANS + READ)


def scale_repaired():
    kinds = [(f"{'the paper' if (f, p) == (None, 'mean') else f'{f or 11} functions, {p} over space'}, {LOSSES[l]}", dict(functions=f, pool=p, loss=l))
             for f in (None, 3) for p in ("mean", "max") for l in ("frozen", "hssl", "assl")]
    return table(rows_of("scale_repaired"), kinds, FAR + READ)


def scale_error():
    rows = rows_of("scale_error")
    lines = ["| the network | mean error / mean null | equation1 | invariance |", "|---|---|---|---|"]
    for name in dict.fromkeys(r["name"] for r in rows):
        runs = list(pick(rows, name=name).values())
        ratio = [mean_over_g(r, "equation1") / mean_over_g(r, "invariance") for r in runs]
        lines.append(f"| {name} | {spread(ratio, 2)} | {profile(runs, 'equation1')} | {profile(runs, 'invariance')} |")
    return "\n".join(lines)


def rotation_long():
    rows = rows_of("rotation_long")
    kinds = [(f"{GROUPS[g]}, {LOSSES[l]}" + f", lr {lr:g}" * (l != "frozen"), dict(group=g, loss=l, lr=lr))
             for g in ("rot", "scale") for l in ("frozen", "hssl", "assl") for lr in (3.2, 0.2)]
    return table(rows, kinds, READ + MEANS)


def strength():
    rows = [r for r in rows_of("strength") if r["objective"] == "infonce" and r["base_size"] == 1 and r["epochs"]]
    kinds = sorted(dict.fromkeys((LOSSES[r["loss"]], round(reach(r), 1), r["strength"], r["max_distance"], r["loss"]) for r in rows), key=lambda kind: kind[:2])
    text = table(rows, [(f"{label}, at most {px:g} px apart" + ", as in `learned`" * (l == "hssl" and d is None), dict(strength=s, max_distance=d, loss=l)) for label, px, s, d, l in kinds], READ + FAR[:1])
    more = [r for r in rows_of("strength") if r not in rows]
    kinds = [("untrained", dict(loss="frozen")), (r"A-SSL, \|g0\| = \|G\| (SimCLR)", dict(base_size=64)),
             *[(f"{LOSSES[l]}, log-bilinear" + " (DIM(L))" * (l == "hssl"), dict(loss=l, objective="bilinear")) for l in ("hssl", "assl")]]
    return text + "\n\n" + table(more, kinds, READ + FAR[:1])


def pilot(name):
    """One line for each setting of a pilot, with the minutes of one run."""
    def label(r):
        trained = f", {r['epochs']} epoch{'s' * (r['epochs'] > 1)}, batch {r['batch_size']}, lr {r['lr']:g}" * bool(r["epochs"])
        more = f", {r['functions']} functions" * bool(r["functions"]) + ", maximum over space" * (r["pool"] == "max")
        return LOSSES.get(r["loss"], r["loss"]) + f", width {r['width']:g}" + trained + more

    minutes = lambda runs: f"{statistics.mean(r['cpu_seconds'] for r in runs) / 60:.0f}"
    rows = rows_of(name)
    return table(rows, by_label(rows, label), [("minutes of one core", minutes), *READ, *FAR[:1]])


def published(number, kinds):
    """Top-1 of results/table{number}.jsonl with the paper's numbers below, then everything that was measured.
    kinds: (label, flags of the rows, data set and group in paper.json)."""
    rows, known = rows_of(f"table{number}"), paper(f"table{number}")
    lines = ["| top-1, % | " + " | ".join(LOSSES.values()) + " |", "|---" * (1 + len(LOSSES)) + "|"]
    for label, flags, key in kinds:
        cells = [spread([r["top1"] for r in pick(rows, loss=loss, **flags).values()], 2) for loss in LOSSES]
        if any(cells):
            theirs = [known.get((*key, loss)) for loss in LOSSES]
            lines += [f"| {label} | " + " | ".join(cells) + " |", "| *the paper* | " + " | ".join(f"*{p[0]} ± {p[1]}*" if p else "" for p in theirs) + " |"]
    every = [(f"{label}, {name}", dict(loss=loss, **flags)) for label, flags, _ in kinds for loss, name in LOSSES.items()]
    return "\n".join([*lines, "", table(rows, every, FAR + READ)])


def table1():
    return published(1, [(f"{DATA[d]}, {GROUPS[g]}", dict(dataset=d, group=g), (d, g)) for d in ("mnist", "cifar10", "tiny-imagenet") for g in GROUPS])


def table2():
    return published(2, [("MNIST, MLP (translation)", dict(dataset="mnist", backbone="mlp"), ("mnist", "trans")),
                         *((f"{DATA[d]}, CNN 6 × CHW (scale)", dict(dataset=d, backbone="cnn"), (d, "scale")) for d in ("mnist", "cifar10"))])


def figure2_left():
    kinds = [(rf"{GROUPS[g]}, \|g0\| = {n}", dict(group=g, base_size=n)) for g, sizes in (("rot", (1, 2, 3)), ("scale", (1, 3, 5)), ("trans", (1, 4, 16, 36))) for n in sizes]
    return table(rows_of("figure2_left"), kinds, READ)


def figure2_right():
    kinds = [(f"{metric} distance at most {d}", dict(distance=metric, max_distance=d)) for metric in ("euclidean", "topological") for d in (1, 2, 4, 8, 18, 32, 98)]
    return table(rows_of("figure2_right"), kinds, READ + FAR[:1])


def learned_group():
    """Tables of the rows of homomorphism.py: the MLP, and the CNN with turns and with scales.  Then one of train.py for comparison."""
    every = sorted(rows_of("learned_group"), key=lambda r: (r["over"] != "null", r["one_way"], r["start"] == "identity", r["lam"] != 10, not r["given"], r["lam"], r["share"]))

    def label(r):
        gamma = "Γ learned" if not r["given"] else "Γ = 1" if r["start"] == "identity" else "Γ given"
        changed = "turned" if r["group"] == "rot" else "shrunk"
        share = f"{gamma}, {100 * r['share']:g} % {changed}" if r["share"] else f"no {changed} image"
        more = f", λ = {r['lam']:g}" * (r["lam"] != 10) + ", from identity" * (r["start"] == "identity" and not r["given"])
        return share + more + ", one direction" * r["one_way"] + ", error over that of two images" * (r["over"] == "images")

    mean = lambda what: lambda runs: spread([mean_over_g(r, what) for r in runs], 2)
    error, structure = ("error / null, mean over g", mean("over_null")), ("invariance", mean("invariance"))
    more = [("the same over all turns", mean("orbit")), ("the same, best matrix for each g", mean("best")), ("‖A⁴ - 1‖", lambda runs: spread([r["cyclic"] for r in runs], 2)),
            ("a 4-cycle found", lambda runs: f"{sum(map(cycle_found, runs))} of {len(runs)}")]
    kept = [("kept", mean("kept"))]
    parts = []
    for network, group, columns in (("mlp", "rot", [error, *more, structure]), ("cnn", "rot", [error, structure, *kept]), ("cnn", "scale", [error, structure, *kept])):
        rows = [r for r in every if r["backbone"] == network and r["group"] == group]
        plain = [r for r in rows if r["share"] == 0.1 and r["lam"] == 10 and r["over"] == "null" and not r["one_way"] and r["start"] != "identity"]
        start = [(f"the {network.upper()}, {GROUPS[group]}, untrained, {A}", [r["untrained"] for r in plain if r["given"] == given])
                 for given, A in ((True, "the given Γ"), (False, "a random A"))]
        if rows:
            parts.append(table(rows, [*start, *by_label(rows, label)], columns + READ))
    kinds = [(f"{LOSSES[l]}, {'MLP' if b == 'mlp' else 'structure built in'}", dict(loss=l, backbone=b)) for b in ("mlp", "equivariant") for l in ("frozen", "assl", "hssl")]
    return "\n\n".join([*parts, table(rows_of("structure"), kinds, READ + MEANS[:1])])


def bench():
    """A training step, ours and the usual way (results/bench.json): images per second and their ratios."""
    found = json.load(open(os.path.join(claims.FOLDER, "bench.json")))
    columns = (("bf16", "ours", "usual bf16"), ("float32", "ours float32", "usual"))
    lines = ["| a step of H-SSL | " + " | ".join(f"ours, {p} | the usual way, {p} | ratio" for p, _, _ in columns) + " |", "|---" * 7 + "|"]
    steps = [(row["what"][6:], row["images_per_second"]) for row in found["rows"] if row["what"].startswith("step, ")]
    lines += [f"| {what} | " + " | ".join(f"{v[a]:,.0f} | {v[b]:,.0f} | {v[a] / v[b]:.1f}" for _, a, b in columns) + " |" for what, v in steps]
    return "\n".join([*lines, "", "*{cpu}, {threads} threads, torch {torch}.*".format(**found["machine"])])


def claims_table():
    lines = ["| claim | measured | the two means | difference, 95 % interval | seeds | verdict | corrected |", "|---|---|---|---|---|---|---|"]
    for r in claims.claims():
        digits = 3 if r["what"].startswith("invariance") else 2
        span = f"{r['mean']:+.{digits}f} [{r['mean'] - r['half']:+.{digits}f}, {r['mean'] + r['half']:+.{digits}f}]"
        span += f", margin {r['margin']:.{digits}f}" if r["margin"] is not None else ""
        lines.append(f"| {r['claim']} | {r['what']} | {r['a']:.{digits}f}, {r['b']:.{digits}f} | {span} | {r['seeds']} | {r['verdict']}{': ' * bool(r['price'])}{r['price']} | {r['corrected']} |")
    trained = [("`learned`", r) for r in rows_of("learned") if r["epochs"]] + [(f"Table 1, {DATA[r['dataset']]}", r) for r in rows_of("table1") if r["epochs"]]
    minutes = {where: statistics.mean(r["cpu_seconds"] for name, r in trained if name == where) / 60 for where, _ in trained}
    return "\n".join([*lines, "", f"*Minutes of one CPU core for a run: {', '.join(f'{m:.0f} ({where})' for where, m in minutes.items())}. One more seed needs a run of each loss.*"])


def power():
    """For Table 1's claims: half the 95 % interval, and the chance of a decision, with 3 and 5 seeds, if all is as in `learned`."""
    lines = ["| A - H | in `learned` | margin | 5 seeds: interval | chance to decide | 3 seeds: interval | chance |", "|---" * 7 + "|"]
    rows = rows_of("learned")
    for group, spelled in GROUPS.items():
        for name, short, *_ in claims.measures(group):
            a, h = (by_seed(rows, name, group=group, loss=loss) for loss in ("assl", "hssl"))
            values, margin, digits = list(claims.difference(a, h).values()), claims.PLANNED[name], 1 if name in READOUTS else 3
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            cells = [f"±{claims.half_width(deviation, n):.{digits}f} | {100 * claims.chance(mean, deviation, n, margin):.0f} %" for n in (5, 3)]
            lines.append(f"| {short}, {spelled} | {mean:+.{digits}f} | {margin:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spent():
    """All runs behind the page, those that tables share counted once."""
    names = [name[:-6] for name in sorted(os.listdir(claims.FOLDER)) if name.endswith(".jsonl")]
    rows = {json.dumps(row, sort_keys=True): row for name in names for row in rows_of(name)}
    return f"{len(rows)} runs, {sum(row.get('cpu_seconds', 0) for row in rows.values()) / 3600:.1f} hours of one CPU core"


TABLES = dict(learned=learned, claims=claims_table, unfed=unfed, knob=knob, scale_error=scale_error, scale_repaired=scale_repaired,
              rotation_long=rotation_long, strength=strength, learned_group=learned_group,
              **{name: functools.partial(pilot, name) for name in ("pilot_speed", "pilot_cifar10", "pilot_tiny", "supervised")}, table1=table1, table2=table2,
              figure2_left=figure2_left, figure2_right=figure2_right, bench=bench, front=front, power=power, spent=spent)


def main(names):
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        sys.exit(f"tables.py: no table is called {unknown[0]}: take {', '.join(TABLES)}")
    if names:
        print("\n\n".join(TABLES[name]() for name in names))
        return
    learned_rows = rows_of("learned")
    page = open(os.path.join(claims.FOLDER, "ABOUT.md")).read()  # the text, with {learned} where that table goes
    for name, make in TABLES.items():
        # another experiment has run if it has a row that it does not share with `learned`
        ready = learned_rows if name in ("learned", "claims", "bench", "power", "spent") else any(row not in learned_rows for row in rows_of(name))
        page = page.replace(f"{{{name}}}", make() if ready else "Not run yet.")
    with open(os.path.join(claims.FOLDER, "README.md"), "w") as file:
        file.write(page)


if __name__ == "__main__":
    main(sys.argv[1:])
