"""results/claims.py, tables.py and run.py: the statistics, what is refused, and the queue's list of what is left; on rows made up here."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from results import claims, run, tables


def row(seed, top1, invariance, **config):
    config = dict(dataset="mnist", group="rot", loss="hssl", train_images=100, test_images=50, epochs=3, width=1.0, amp="auto") | config
    return dict(config, seed=seed, top1=top1, linear=top1, knn=top1, fiber=top1, moved=top1, invariance=invariance, equation1=[0.0], axis=invariance,
                cpu_seconds=36.0, code="abc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "FOLDER", str(tmp_path))
    rows = [row(s, v, [i], loss=loss) for loss, values in (("frozen", ((70, 0.7), (71, 0.72), (72, 0.8))), ("hssl", ((80, 0.10), (82, 0.11), (84, 0.12))),
                                                          ("assl", ((81, 0.10), (82.5, 0.112), (86, 0.121)))) for s, (v, i) in enumerate(values)]
    (tmp_path / "learned.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n[]\n5\n{"torn')
    return tmp_path


def test_torn_and_foreign_lines_are_left_out(folder):
    assert len(claims.rows_of("learned")) == 9 and claims.rows_of("nothing") == []


def test_mean_spread_and_interval():
    assert claims.spread([80, 82, 84]) == "82.0 ± 2.0" and claims.spread([80]) == "80.0 (1 seed)" and claims.spread([]) == ""
    mean, half = claims.interval([1.0, 0.5, 2.0])
    assert abs(mean - 3.5 / 3) < 1e-12 and abs(half - 4.30265 * 0.763763 / math.sqrt(3)) < 1e-4  # t(0.975, 2 degrees of freedom)
    assert claims.interval([5.0]) == (5.0, math.inf)


@pytest.mark.parametrize("mean, margin", [(0.4, None), (0.0, 1.0), (0.3, 1.0), (1.2, 1.0)])
def test_the_chance_to_decide_is_what_a_simulation_gives(mean, margin):
    draws = np.random.default_rng(0).normal(mean, 1.0, (4000, 9))
    decided = [claims.verdict(*claims.interval(list(values)), margin) != "undecided" for values in draws]
    assert abs(np.mean(decided) - claims.chance(mean, 1.0, 9, margin)) < 0.03
    assert abs(np.mean(decided) - claims.chance(mean, 1.0, 30, margin)) > 0.1  # another number of seeds


def test_seeds_needed_is_the_smallest_number_that_suffices():
    for values, margin in (([1.0, 2.0, 3.0], None), ([-1.0, 0.1, 1.0], 0.5), ([5.0, 5.0], 1.0)):
        n = claims.seeds_needed(values, margin)
        even = [claims.chance(claims.statistics.mean(values), claims.statistics.stdev(values), k, margin) >= 0.5 for k in range(2, n + 1)]
        assert even == [False] * (n - 2) + [True]


def test_the_error_of_the_margin_itself_changes_no_verdict():
    """A margin of gain/part comes from the same runs.  |A - H| < gain/part means that gain/part - (A - H) and gain/part + (A - H)
    are both above 0.  Their intervals contain the error of the gain too; ABOUT.md says that the nine verdicts are the same."""
    rows, verdicts = claims.rows_of("learned"), []
    for group in claims.GROUPS:
        for name, short, teacher, part in claims.measures(group):
            untrained, h, a = (claims.by_seed(rows, name, group=group, loss=loss) for loss in ("frozen", "hssl", "assl"))
            gain = claims.difference(untrained, a) if teacher == "assl" else claims.difference(h, untrained)
            off = claims.difference(a, h)
            both = [claims.interval([gain[s] / part + sign * off[s] for s in off]) for sign in (-1, 1)]
            told = [c["verdict"] for c in claims.compare(rows, "") if c["what"].startswith(f"{short}, A - H, {claims.GROUPS[group]}")]
            verdicts += [(found == "within the margin", all(mean > half for mean, half in both)) for found in told]
    assert len(verdicts) == 9 and all(a == b for a, b in verdicts) and {a for a, _ in verdicts} == {True, False}


@pytest.mark.parametrize("looks, percent", [((5,), 5), ((3, 5), 9), ((3, 7), 9), ((3, 5, 8), 12)])
def test_what_looking_again_does_to_the_error_rate(looks, percent):
    """If nothing differs, how often does a test that stops at the first verdict find a difference?  results/ABOUT.md says it."""
    values = np.random.default_rng(0).normal(size=(40000, max(looks)))
    found = np.zeros(len(values), dtype=bool)
    for n in looks:
        found |= abs(values[:, :n].mean(1)) > claims.half_width(values[:, :n].std(1, ddof=1), n)
    assert abs(100 * found.mean() - percent) < 0.6


def test_two_rows_that_claim_one_seed_are_told(folder):
    with open(folder / "learned.jsonl", "a") as file:
        file.write("\n" + json.dumps(row(0, 63, [0.5], lr=0.1)) + "\n")
    with pytest.raises(ValueError, match="two runs of seed 0"):
        tables.learned()


def test_a_claim_is_a_paired_difference_with_its_interval_and_margin(folder):
    a, b = {0: 81.0, 1: 82.5, 2: 86.0, 7: 0.0}, {0: 80.0, 1: 82.0, 2: 84.0}
    made = claims.claim("", "", a, b)
    mean, half = claims.interval([1.0, 0.5, 2.0])
    assert (made["mean"], made["half"], made["seeds"]) == (mean, half, 3) and made["verdict"] == "undecided" and made["price"] == "too few seeds to say how many are needed"
    assert claims.claim("", "", a, b, margin=mean + half)["verdict"] == "within the margin"
    assert claims.claim("", "", {s: 83 + s / 10 for s in range(3)}, {s: 82 for s in range(3)}, margin=2)["verdict"] == "within the margin"
    assert claims.claim("", "", a, b, planned=4) is None and claims.claim("", "", a, b, planned=3) == made  # no verdict before all planned seeds
    assert claims.claim("", "", a, b, margin=mean + half - 1e-6)["verdict"] == "undecided"
    near = claims.claim("", "", {0: 0.2, 1: 0.7, 2: 1.1, 3: 1.6}, dict.fromkeys(range(4), 0.0), margin=1)  # 0.9 ± 0.95; "different" with 0.9 ± 0.9
    assert near["verdict"] == "undecided" and near["price"] == "about 4 new seeds"
    shifted = {s: v + 10 for s, v in a.items()}
    assert claims.claim("", "", shifted, b, margin=1)["verdict"] == "different" and claims.claim("", "", shifted, b)["verdict"] == "holds"
    assert claims.claim("", "", b, shifted)["verdict"] == "fails" and claims.claim("", "", {0: 1.0}, b) is None


def test_the_claims_speak_of_the_rows(folder):
    found = {r["what"]: r for r in claims.claims()}
    same = found["invariance, A - H, rotation"]
    assert same["verdict"] == "within the margin" and abs(same["mean"] - 0.001) < 1e-9
    assert found["invariance, untrained - H, rotation"]["verdict"] == "holds"
    assert "invariance, A - H, scale" not in found  # no such rows
    assert same["claim"] in tables.claims_table()
    planned = {r["what"]: r["margin"] for r in claims.compare(claims.rows_of("learned"), "", claims.PLANNED)}
    assert planned["invariance, A - H, rotation"] == 0.05 and planned["moved, A - H, rotation"] == 2 and planned["top-1, A - H, rotation"] == 1
    assert not claims.compare(claims.rows_of("learned"), "", claims.PLANNED, 4)  # three seeds are there
    for r in found.values():  # for n claims the two tails of 2.5 % become 2.5 % / n
        wider = claims.student.ppf(1 - 0.025 / len(found), 2) / claims.student.ppf(0.975, 2)
        assert wider > 1.5 and r["corrected"] == claims.verdict(r["mean"], r["half"] * wider, r["margin"])


def test_a_verdict_compares_the_interval_with_0_or_with_the_margin():
    assert [claims.verdict(mean, 1) for mean in (1.1, 0.9, -0.9, -1.1)] == ["holds", "undecided", "undecided", "fails"]
    assert [claims.verdict(mean, 1, margin=3) for mean in (0.9, -1.9, 2.1, 0)] == ["within the margin", "within the margin", "different", "within the margin"]
    assert claims.verdict(0.9, 1, margin=1.5) == "undecided"


def test_the_results_page_is_what_the_rows_say():
    """results/README.md as committed is what results/tables.py writes."""
    path = os.path.join(ROOT, "results", "README.md")
    before = open(path).read()
    try:
        tables.main([])
        assert open(path).read() == before, "python results/tables.py"
    finally:
        with open(path, "w") as file:
            file.write(before)


def test_the_front_page_has_the_table_of_the_rows():
    page, verdicts = open(os.path.join(ROOT, "README.md")).read(), [r["corrected"] for r in claims.claims()]
    assert tables.front() in page
    assert f"{verdicts.count('undecided')} of {len(verdicts)} verdicts are undecided" in page


def test_a_broken_paper_json_is_an_error(folder):
    (folder / "table1.jsonl").write_text(json.dumps(row(0, 90, [0.1])))
    (folder / "paper.json").write_text("{")
    with pytest.raises(ValueError):
        tables.table1()


def test_tables_that_stand_beside_the_papers_numbers(folder, tmp_path):
    (tmp_path / "paper.json").write_text(json.dumps(dict(table1=[["mnist", "rot", "hssl", 70.3, 5.4]], table2=[["mnist", "trans", "assl", 87.6, 0.2]])))
    (tmp_path / "table1.jsonl").write_text("\n".join(json.dumps(row(s, 80 + s, [0.1])) for s in range(3)))
    (tmp_path / "table2.jsonl").write_text(json.dumps(row(0, 91, [0.1], group="trans", backbone="mlp", loss="assl")))
    assert "| MNIST, rotation |  | 81.00 ± 1.00 |  |  |\n| *the paper* |  | *70.3 ± 5.4* |  |  |" in tables.table1()
    assert "| MNIST, MLP (translation) |  |  | 91.00 (1 seed) |  |\n| *the paper* |  |  | *87.6 ± 0.2* |  |" in tables.table2()
    (tmp_path / "figure2_left.jsonl").write_text(json.dumps(row(0, 60, [0.1], group="scale", base_size=3)))
    (tmp_path / "figure2_right.jsonl").write_text(json.dumps(row(0, 60, [0.1], group="trans", distance="topological", max_distance=8)))
    assert "| scale, \\|g0\\| = 3 | 1 | 60.0" in tables.figure2_left() and "| topological distance at most 8 | 1 | 60.0" in tables.figure2_right()


def test_an_unknown_table_is_one_line():
    with pytest.raises(SystemExit, match="no table is called table9"):
        tables.main(["table9"])


# ---------------------------------------------------------------- the queue
def test_the_queue_lists_each_run_once_and_shares_rows(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run, "ROOT", str(tmp_path))
    flags = ["--group rot --seed 0", "--group rot  --seed 0", "--group rot --seed 1"]
    monkeypatch.setattr(run, "EXPERIMENTS", {"one": flags, "two": flags[:1]})
    assert [name for name, _ in run.left(["one-gpu"])[0]] == ["one-gpu"] * 2  # another budget, another file
    assert run.left(["one", "two"]) == ([("one", "--group rot --seed 0"), ("one", "--group rot --seed 1")], [])
    (tmp_path / "results/one.jsonl").write_text('{"torn')
    run.append("one", run.train.config_of(run.train.parse(["--group", "rot"])) | dict(top1=5.0))
    jobs, shared = run.left(["one", "two"])
    assert jobs == [("one", "--group rot --seed 1")] and [(name, row["top1"]) for name, row in shared] == [("two", 5.0)]
    assert [name for name, _ in run.rows_of()] == ["one"]  # to look changes nothing
    flags[1:] = ["--group rot --seed 0 --probe-epochs 2"]
    assert run.left(["one"])[0] == [("one", "--group rot --seed 0 --probe-epochs 2")]  # the line has no curve
    run.EXPERIMENTS["two"] = flags[:1] * 2
    assert len(run.left(["two"])[1]) == 1  # one line, not two


def test_a_run_that_fails_is_told_at_once_and_no_further_run_starts(tmp_path, monkeypatch, capfd):
    """Here there is no train.py in the folder."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run, "ROOT", str(tmp_path))
    monkeypatch.setattr(run, "EXPERIMENTS", {"one": ["--seed 0", "--seed 1"]})
    monkeypatch.setattr(sys, "argv", ["run.py", "--workers", "1"])
    with pytest.raises(SystemExit) as stop:
        run.main()
    out, err = capfd.readouterr()
    assert stop.value.code == 1 and "1 runs left" not in out and "2 runs left" in out and out.count(" one: ") == 1
    assert err.startswith("run.py: a run failed, no further run starts\n") and "train.py" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_queue_and_its_run(tmp_path, number):
    """SIGHUP: a closed terminal.  The run here only waits."""
    (tmp_path / "results").mkdir()
    for name in ("checkpoint", "data", "launch", "results/run", "results/experiments"):
        shutil.copy(os.path.join(ROOT, f"{name}.py"), tmp_path / f"{name}.py")
    (tmp_path / "train.py").write_text("import sys, time, types\nparse = lambda argv: types.SimpleNamespace(probe_epochs=None, epochs=1)\nconfig_of = lambda args: dict(seed=0)\n"
                                       "if __name__ == '__main__':\n    open('started', 'w').close()\n    time.sleep(60)\n    open('ended', 'w').close()")
    queue = subprocess.Popen([sys.executable, "results/run.py", "structure"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while queue.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.05)
    queue.send_signal(number)
    assert (queue.communicate(timeout=30)[1], queue.returncode) == ("", 0) and not (tmp_path / "ended").exists()


def test_every_experiment_is_made_of_legal_flags():
    for name, lines in run.EXPERIMENTS.items():
        for budget in ("cpu", *run.BUDGETS):
            for flags in lines:
                more = "" if budget == "cpu" else run.BUDGETS[budget].get(run.train.parse(flags.split()).dataset, "")
                assert run.train.parse(f"{flags} {more}".split()).epochs >= 0, name


def test_the_list_of_what_is_left(monkeypatch, capsys):
    """On the rows that are here, some of which are no training runs."""
    monkeypatch.setattr(sys, "argv", ["run.py", "--list", "--seeds", "1"])
    run.main()
    told = capsys.readouterr().out.splitlines()
    commands = [line for line in told if not line.startswith("# ")]
    assert told[-1].startswith(f"# in all: {len(commands)} runs left, about") and len(told) == len(commands) + len(run.EXPERIMENTS) + 1
    assert all(line.startswith("python train.py ") and line.endswith("--seed 0") for line in commands)
