"""results/: intervals, CLAIMS.md against made-up rows, the page, and the loop over runs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib import pyplot as plt
from scipy.stats import ttest_rel

from results import claims, pictures, run, tables

KINDS = [
    f"{kind}_{slots}{x}"
    for kind in ("linear", "knn")
    for slots in ("one", "all")
    for x in ("", "_changed")
]


def made_up(folder, names=run.EXPERIMENTS, gains=None):
    """A row for every run of these experiments.  gains: {arm: what is added to its measures}."""
    for name in names:
        with open(os.path.join(folder, f"{name}.jsonl"), "w") as file:
            for flags in run.EXPERIMENTS[name]:
                row = run.train.config_of(run.train.parse(shlex.split(flags)))
                noise = np.random.default_rng(zlib.crc32(flags.encode())).normal(size=9) / 10
                gain = (gains or {}).get(claims.arm(row), 0)
                row |= {m: 80 + gain + n for m, n in zip(("top1", *KINDS), noise)}
                row |= dict(invariance=[0.5 + gain / 100 + noise[0] / 100] * 3, equation1=[0.2] * 3)
                row |= dict(retrieval=[50.0 + gain + noise[1]], bins=[100.0], train_seconds=60.0)
                row |= dict(train_images=row["train_size"] or 60000, test_images=5000)
                file.write(json.dumps(row) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("CLAIMS.md", "ABOUT.md", "paper.json"):
        shutil.copy(os.path.join(ROOT, "results", name), tmp_path)
    monkeypatch.setattr(claims, "FOLDER", str(tmp_path))
    return tmp_path


# ---------------------------------------------------------------- statistics and claims
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_a_paired_interval_is_scipys(level):
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    frame = pd.DataFrame(dict(arm=["a"] * 5 + ["b"] * 5, seed=[*range(5)] * 2, v=[*a, *b]))
    found = claims.difference(frame, "v", "a", "b", level)
    wanted = ttest_rel(a, b).confidence_interval(level)
    assert np.allclose((found["low"], found["high"]), wanted, atol=1e-12)
    assert np.isclose(found["mean"], (a - b).mean()) and found["seeds"] == 5
    assert claims.difference(frame, "v", "a", "b", seeds=range(6)) is None  # seed 5 is missing
    assert claims.difference(frame[:6], "v", "a", "b") is None  # one seed has no interval
    with pytest.raises(ValueError, match="same seed"):
        claims.difference(pd.concat([frame, frame[:1]]), "v", "a", "b")


@pytest.mark.parametrize(
    "asked, holds, opposite, unclear",
    [
        ("above 0", (0.1, 2), (-2, -0.1), (-1, 2)),
        ("above -0.2", (-0.1, 2), (-2, -0.3), (-1, 2)),
        ("below 2", (-9, 1.9), (2.1, 3), (1, 3)),
        ("within 3", (-2.9, 2.9), (3.1, 5), (-5, 1)),
        ("within 3", (-1, 2), (-5, -3.1), (1, 5)),
    ],
)
def test_what_an_interval_says(asked, holds, opposite, unclear):
    assert claims.result(*holds, asked) == "holds"
    assert claims.result(*opposite, asked) == "opposite"
    assert claims.result(*unclear, asked) == "open"
    assert claims.result(np.nan, np.nan, asked) == "open"  # undefined in a run


def test_every_claim_is_tested_on_the_rows(folder):
    """Gains that let A, C and F hold, refute B and D, and leave E open; the noise is 0.1."""
    gains = {"rot, H-SSL": 2.5, "rot, H-SSL, epsilon 1": 5, "scale, H-SSL": 5, "trans, near": 5}
    gains |= {"trans, mlp, A-SSL": -9, "scale, cnn, A-SSL": -9, "rot, H-SSL + jitter": -4}
    made_up(folder, ("taught", "knob", "table2"), gains)
    found = claims.primary()
    results = {name: result for name, (result, _) in found.items()}
    assert results == dict(A="holds", B="refuted", C="holds", D="refuted", E="open", F="holds")
    rows, titles = claims.claims_page()
    assert sum(len(rows) for _, rows in found.values()) == len(rows) == 15
    assert list(titles) == list(found) and titles["C"].startswith("Without structure only A-SSL")
    assert [r["result"] for r in found["B"][1]] == ["holds", "opposite"]
    assert [r["result"] for r in found["D"][1]] == ["holds", "holds", "opposite"]
    assert [r["result"] for r in found["E"][1]] == ["open", "holds"]


def test_a_claim_waits_for_all_five_seeds_and_no_other_seed_counts(folder):
    made_up(folder, ("taught",), {"scale, H-SSL": 5})
    path = folder / "taught.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pilot = [row | dict(seed=0, linear_one_changed=0.0) for row in rows[:3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + pilot))
    assert claims.primary()["F"][1][0]["seeds"] == 5 and claims.primary()["F"][0] == "holds"
    kept = [row for row in rows if (row["seed"], row["group"]) != (14, "scale")]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert set(claims.primary()) == {"A", "E"}  # B and C have no rows at all


# ---------------------------------------------------------------- the page
def test_the_committed_page_is_what_the_rows_say():
    with open(os.path.join(claims.FOLDER, "README.md")) as file:
        page = file.read()
    assert page == tables.page(), "python results/tables.py"


def test_the_front_page_shows_what_the_rows_say():
    with open(os.path.join(ROOT, "README.md")) as file:
        page = file.read()
    for name in ("front", "quick"):
        assert tables.table(name) in page, f"python results/tables.py {name}"
    taught = claims.load("taught")
    for told, *what in (  # differences, with their intervals
        ("turns gain 0.6", "linear_one", "rot, H-SSL", "rot, untrained"),
        ("jitter gain 4", "linear_all_changed", "trans, near + jitter", "trans, untrained"),
    ):
        found = claims.difference(taught, *what)
        assert f"{told} ({tables.span(found, what[0])})" in page
        value = told.split()[-1]
        assert f"{found['mean']:.{len(value.partition('.')[2])}f}" == value
    best = claims.load("pilot_negatives").query("epochs > 0").groupby("group")["linear_one"].max()
    gains = claims.load("pilot_rates").query("lr == 2 and augment == 'none'").set_index("group")
    gains = (gains["linear_one"] - best).round().astype(int)
    assert "{rot} point higher for turns, {scale} for scales, {trans} for".format(**gains) in page
    vote = [claims.by_seed(taught, "knn_one", f"rot, {a}").mean() for a in ("untrained", "H-SSL")]
    assert "from {:.0f} to {:.0f} %".format(*vote) in page
    for arm in ("H-SSL + shift", "untrained", "shift alone"):
        top1 = claims.by_seed(claims.load("minute"), "top1", f"scale, {arm}")
        assert tables.spread(top1, "top1") in page, arm
    shares = tables.networks("where").groupby("arm")["where"].mean()
    arms = ("A-SSL", "jitter alone", "near", "H-SSL", "untrained", "A-SSL, one draw")
    numbers = [f"{shares[f'trans, {arm}']:.0f}" for arm in arms]
    told = page[page.index("The slot's share of its features") :]
    assert re.findall(r"\d+", told)[:6] == numbers
    answers = [
        line.split("|")[-2].strip() for line in tables.answers().split("\n") if line[:1] == "|"
    ]
    kinds = [sum(kind in answer for answer in answers[2:]) for kind in ("yes", "opposite", "open")]
    told = "{} sentences of the paper to the test: yes {}, opposite {}, open {}."
    assert told.format(len(answers) - 2, *kinds) in page


def every_row(folder):
    """Rows of all experiments, made up, and what else the page needs, as it is committed."""
    made_up(folder)
    for name in ("audit", "riddle", "where", "table1"):
        shutil.copy(os.path.join(ROOT, "results", f"{name}.jsonl"), folder)
    steps = dict(machine="one", heads=["H-SSL"], processes=dict(one=1.0))
    steps["rows"] = [dict(what="MNIST", speed={"H-SSL": 1000.0}, ratio=1.9)] * 4
    (folder / "bench.json").write_text(json.dumps(steps))


def test_a_page_of_all_runs_has_every_line_and_one_of_none_has_no_gap(folder):
    shutil.copy(os.path.join(ROOT, "results", "table1.jsonl"), folder)
    none = tables.page()
    every_row(folder)
    every = tables.page()
    template = (folder / "ABOUT.md").read_text().splitlines()[1:]
    assert [line for line in template if tables.filled(line) is None] == []  # no misspelt arm
    assert "{" not in none + every and "nan" not in every
    assert "– to –" not in every and "± –" not in every
    assert every.count("\n## ") == (folder / "ABOUT.md").read_text().count("\n## ")
    assert "## What a group teaches" in every and "What a group teaches" not in none
    assert len(every.splitlines()) <= 295 and none.count("not tested here") == 17
    assert "Bonferroni" not in every and "not run" not in none + every


@pytest.mark.slow
def test_every_picture_is_drawn_of_all_runs(folder):
    every_row(folder)
    for draw in pictures.PICTURES.values():
        draw()
        plt.close("all")


def test_a_new_flag_does_not_ask_for_the_committed_runs_again():
    done = {run.key(row) for _, row in run.rows()}
    assert set(run.wanted(["taught", "knob", "table2", "pooling"], "cpu")) <= done


def test_a_difference_of_two_tables_and_one_of_differences_are_paired_by_seed(folder):
    made_up(folder, ("taught", "nearer"), {"scale, H-SSL": 3})
    near, far = claims.load("nearer"), claims.load("taught")
    names = ("scale, H-SSL", "scale, untrained", "scale, A-SSL", "scale, jitter alone")
    a, b, c, d = (claims.by_seed(near, "top1", name) for name in names)
    both = ttest_rel(a - b, c - d).confidence_interval(0.95)
    text = tables.text_of("nearer", "top1", *names, "−")
    assert text == f"{(a - b - c + d).mean():+.1f} ({both.low:+.1f} to {both.high:+.1f})"
    other = ttest_rel(claims.by_seed(far, "top1", names[0]), c).confidence_interval(0.95)
    text = tables.text_of("taught − nearer", "top1", names[0], names[2], "−")
    assert text.endswith(f" ({other.low:+.1f} to {other.high:+.1f})")


def test_every_number_of_a_table_is_a_mean_over_seeds(folder):
    made_up(folder, ("nearer",))
    frame = claims.load("nearer")
    values = frame[frame["arm"] == "scale, A-SSL + jitter"]["linear_all"]
    assert (
        f"{values.mean():.1f}±{values.std(ddof=1):.1f}" in tables.table("nearer")
        and len(values) == 5
    )
    assert list(dict.fromkeys(frame["arm"]))[0] == "scale, untrained"


# ---------------------------------------------------------------- the loop over runs
STUB = """import argparse, json, os, signal, sys, time
def parse(argv):
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=0); p.add_argument("--dataset", default="mnist")
    p.add_argument("--data-dir"); p.add_argument("--out"); return p.parse_args(argv)
def config_of(args): return dict(seed=args.seed, dataset=args.dataset)
def stop(*_): open("stopped", "a").write("x"); sys.exit(143)
if __name__ == "__main__":
    args = parse(sys.argv[1:]); signal.signal(signal.SIGTERM, stop)
    open("started", "a").write(f"{args.seed}")
    assert args.seed < 9, "seed 9 is a mistake"
    assert os.environ["OMP_NUM_THREADS"] == "1"
    time.sleep(60 * (args.seed == 8))
    os.makedirs(args.out, exist_ok=True)
    json.dump(config_of(args) | dict(top1=1.0), open(f"{args.out}/result.json", "w"))
"""


@pytest.fixture
def queue(tmp_path):
    """A folder with run.py, a train.py that does nothing, and three experiments: → its command."""
    (tmp_path / "results").mkdir()
    shutil.copy(os.path.join(ROOT, "results", "run.py"), tmp_path / "results")
    (tmp_path / "train.py").write_text(STUB)
    runs = dict(one=["--seed 0", "--seed 1"], two=["--seed  1", "--seed 2"], slow=["--seed 8"] * 2)
    runs |= dict(bad=["--seed 9", "--seed 3"])
    (tmp_path / "results" / "experiments.py").write_text(f"NOT_RUNS = ()\nEXPERIMENTS = {runs}\n")

    def start(*flags):
        command = [sys.executable, "results/run.py", *flags]
        return subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True)

    return start


def seeds(tmp_path, name):
    lines = (tmp_path / "results" / f"{name}.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["seed"] for line in lines)


def test_each_run_is_done_once_and_its_row_stands_in_each_experiment(queue, tmp_path):
    assert queue("one").wait() == 0 and seeds(tmp_path, "one") == [0, 1]
    assert queue("two", "--list").communicate()[0] == (
        "python train.py --seed 2\n# 1 of 2 runs are left\n"
    )
    assert queue("one", "two").wait() == 0 and queue("one", "two").wait() == 0  # again: nothing
    assert seeds(tmp_path, "one") == [0, 1] and seeds(tmp_path, "two") == [1, 2]
    assert sorted((tmp_path / "started").read_text()) == ["0", "1", "2"]
    assert "no experiment is called three" in queue("three").communicate()[1]


def test_a_signal_stops_the_queue_after_its_runs_have_saved(queue, tmp_path):
    process = queue("slow", "one", "--workers", "1")
    while process.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "" and process.returncode == 0
    assert (tmp_path / "stopped").read_text() == "x" and (tmp_path / "started").read_text() == "8"
    assert queue("slow", "one", "--hours", "0").wait() == 0  # no time: nothing starts
    assert (tmp_path / "started").read_text() == "8"


def test_a_run_that_fails_is_told_and_no_further_run_starts(queue, tmp_path):
    out, err = queue("bad", "--workers", "1").communicate()
    assert "seed 9 is a mistake" in err and "1 runs were not started" in out
    assert (tmp_path / "started").read_text() == "9"


def test_every_experiment_is_made_of_legal_flags():
    assert len(run.wanted(run.EXPERIMENTS, "cpu")) > 300
    for budget in ("gpu", "paper"):
        assert len(run.wanted(["taught", "cifar10", "tiny"], budget)) > 100
