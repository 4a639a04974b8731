"""The README's tables are made from results/*.jsonl and from nothing else; the arithmetic, on runs made up here."""
import json
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from results.tables import by_seed, change, claims, gap, grid, interval, plus_minus, rows_of, series, table, tables_into

PAPER = {"table1": [["mnist", "rot", "hssl", 70.3, 5.4]], "table2": []}


def line(top1, **config):
    config = dict(dataset="mnist", group="rot", loss="hssl", backbone="equivariant", objective="infonce", seed=0, epochs=3, width=1.0,
                  base_size=1, max_distance=None, distance="euclidean", lr=2.0, batch_size=256) | config
    seconds = 0 if config["loss"] == "frozen" else 90.0
    return json.dumps(dict(config, top1=top1, cpu_seconds=36.0, train_seconds=seconds, threads=1, train_images=100, test_images=50,
                           equivariance_error=0.1))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "paper.json").write_text(json.dumps(PAPER))
    rows = [line(v, loss=loss, seed=s) for loss, values in (("hssl", (80, 82, 84)), ("assl", (81, 82.5, 86)), ("frozen", (70, 71, 72)))
            for s, v in enumerate(values)]
    (tmp_path / "table1.jsonl").write_text("\n".join([*rows, '{"top1": 1, "torn']))
    return tmp_path


def test_a_torn_line_counts_for_nothing(folder):
    rows = rows_of("table1", folder)
    assert len(rows) == 9 and by_seed(rows, loss="hssl") == {0: 80, 1: 82, 2: 84}


def test_mean_spread_and_interval():
    assert plus_minus([80, 82, 84]) == "82.0 ± 2.0" and plus_minus([80]) == "80.0 (n = 1)" and plus_minus([]) == ""
    assert plus_minus([1, 3], "+") == "+2.0 ± 1.4 (n = 2)"
    mean, half = interval([1.0, 0.5, 2.0])
    assert abs(mean - 3.5 / 3) < 1e-12 and abs(half - 4.303 * 0.7638 / math.sqrt(3)) < 0.01
    assert interval([5.0]) == (5.0, math.inf)


def test_grid_shows_ours_above_the_papers(folder):
    text = grid("table1", folder)
    assert "| MNIST, rotation | 83.2 ± 2.6 | 82.0 ± 2.0 | 71.0 ± 1.0 |" in text
    assert "| *the paper* |  | *70.3 ± 5.4* |  |" in text
    assert "3 epochs, 1.5 minutes of training (median) on 1 thread. 9 runs, 0.1 hours of one CPU core" in text


def test_a_run_that_two_experiments_share_counts_once(folder):
    row = json.loads((folder / "table1.jsonl").read_text().splitlines()[0])
    (folder / "figure2_left.jsonl").write_text(json.dumps(row | {"experiment": "figure2_left"}) + "\n" + line(50, seed=7))
    assert table("total", folder).startswith("10 runs, 0.1 hours")


def test_a_claim_is_a_paired_difference_with_its_interval(folder):
    text = claims(folder)
    mean, half = interval([1.0, 0.5, 2.0])
    assert f"| A - H, MNIST, rotation | {mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] |" in text
    assert "not told apart, and not shown equal" in text
    label, error, values = gap(folder)[0]
    assert values == [1, 0.5, 2] and error == 0.1 and "rotation" in label


def test_figures_are_series_over_seeds(folder):
    (folder / "figure2_left.jsonl").write_text("\n".join(line(v, base_size=n, seed=s) for n, vs in ((1, (50, 40)), (2, (55, 38))) for s, v in enumerate(vs)))
    (label, xs, points), = series("figure2_left", folder)
    assert xs == [1, 2] and [round(c, 9) for c in change(points, 2)] == [10, -5]
    assert "| change, % | +0.0 ± 0.0 (n = 2) | +2.5 ± 10.6 (n = 2) |" in table("figure2_left", folder)


def test_losses_that_differ_are_curves_of_their_own(folder):
    (folder / "rotation_epochs.jsonl").write_text("\n".join(line(v, loss=loss, epochs=e) for loss, vs in (("hssl", (50, 40)), ("assl", (55, 38)))
                                                            for e, v in zip((10, 2), vs)))
    (one, xs, points), (two, *_) = series("rotation_epochs", folder)
    assert "H-SSL" in one and "A-SSL" in two and xs == [2, 10] and points == {2: {0: 40}, 10: {0: 50}}


def test_the_readme_is_what_the_results_say():
    path = os.path.join(ROOT, "README.md")
    assert "<!-- table1 -->" in open(path).read()
    assert tables_into(path, os.path.join(ROOT, "results")) == open(path).read(), "python probe.py --write README.md"


def test_an_unknown_table_is_one_line(folder):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "probe.py"), "--table", "table9"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().split("\n")) == 1 and "sh results/run.sh table9" in done.stderr
