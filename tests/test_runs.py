"""A run is killed, stopped, spoiled and moved; the same command goes on with it, or refuses it."""

import json
import os
import random
import shutil
import time
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest
import torch
from conftest import folder, refused_in_one_line
from lives import begin, checkpoint, contents, live, log_of, logged, refused, same

import probe
import train

pytestmark = pytest.mark.usefixtures("nursery")
slow = pytest.mark.slow
STEPS = 24  # of six epochs, four steps each


@pytest.fixture(scope="module")
def flags(tiny):
    return [*tiny, "--epochs", 6, "--out", "r"]


@pytest.fixture(scope="module")
def unbroken(flags, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, said, stderr = live(folder, flags)
    assert status == 0 and f"steps 0 … {STEPS}" in said, stderr
    assert checkpoint(folder / "r")["step"] == STEPS
    return folder / "r"


@pytest.fixture
def copied(unbroken, tmp_path, monkeypatch):
    """The working folder, where r is a copy of that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(unbroken, "r")
    return tmp_path


def refuse(flags, *words):
    """The command says why it does nothing.  It would go on in this process."""
    with refused_in_one_line(*words):
        train.main([str(flag) for flag in flags])


def assert_whole(folder, unbroken):
    """A run has ended as an unbroken one does, and its log has each step once."""
    assert same(checkpoint(folder), checkpoint(unbroken))
    assert logged(folder, "step") == logged(unbroken, "step")
    assert not list(folder.glob("*.tmp"))
    ours, theirs = [json.loads((run / "result.json").read_text()) for run in (folder, unbroken)]
    assert ours | dict(train_seconds=0) == theirs | dict(train_seconds=0)


# ------------------------------------------------------------------------- killed and continued
@slow
def test_killed_at_twenty_random_moments_and_continued(flags, tmp_path, unbroken):
    """At any call of a function, in the middle of writing a checkpoint, and between writing it and
    replacing the old one.  A life that ends first begins a new run."""
    size = (unbroken / "checkpoint.pt").stat().st_size
    draw = random.Random(0)
    killed = dict(call=0, byte=0, replace=0)
    ended = 0
    while sum(killed.values()) < 20 or not ended:
        kind = draw.choice(list(killed))
        last = dict(call=200_000, byte=3 * size, replace=3)[kind]
        status, _, stderr = live(tmp_path, flags, die=(kind, draw.randint(1, last)))
        assert status in (0, -SIGKILL), stderr
        killed[kind] += status != 0
        if status == 0:
            assert_whole(tmp_path / "r", unbroken)
            shutil.rmtree(tmp_path / "r")
            ended += 1
    assert live(tmp_path, flags)[0] == 0
    assert_whole(tmp_path / "r", unbroken)
    assert min(killed.values()) > 2, killed


def test_stopped_by_a_signal_and_continued(flags, tmp_path, unbroken):
    """Saved at once, 128 + n; in the last step too, before anything is measured."""
    for step, number in ((5, SIGTERM), (6, SIGINT), (14, SIGHUP), (STEPS - 1, SIGTERM)):
        status, said, stderr = live(tmp_path, flags, die=("step", step), how=[number])
        assert status == 128 + number, stderr
        last = f"stopped after step {step + 1} of {STEPS}: the same command goes on"
        assert said.splitlines()[-1] == last
        assert checkpoint(tmp_path / "r")["step"] == step + 1
    assert not (tmp_path / "r/result.json").exists()
    assert live(tmp_path, flags)[0] == 0
    ours = logged(tmp_path / "r", "step")
    assert ours == sorted(set(ours)), "no step twice"  # one that was stopped has no line
    assert same(checkpoint(tmp_path / "r"), checkpoint(unbroken))


@slow
def test_a_second_signal_ends_a_run_that_hangs(flags, tmp_path, unbroken):
    die = dict(die=("step", 6), hang=True)
    assert live(tmp_path, flags, **die, how=[SIGTERM, SIGINT])[0] == 128 + SIGINT
    assert checkpoint(tmp_path / "r")["step"] == 4
    assert live(tmp_path, flags)[0] == 0
    assert_whole(tmp_path / "r", unbroken)


@slow
def test_a_signal_that_the_parent_ignores_stays_ignored(flags, tmp_path, unbroken):
    """As under nohup."""
    assert live(tmp_path, flags, die=("step", 6), how=[SIGHUP], ignored=[SIGHUP])[0] == 0
    assert_whole(tmp_path / "r", unbroken)


@slow
@pytest.mark.parametrize(
    "more",
    [
        "--objective ntxent --backbone cnn --group scale",
        "--objective bilinear",
        "--objective byol --group rot",
        "--objective simsiam --backbone mlp",
        "--loss supervised",
        "--loss assl --augment shift",
        "--loss hssl --augment jitter --group rot --base-size 2",
        "--amp fp16 --backbone mlp --width 0.05",
    ],
)
def test_each_loss_and_objective_goes_on_as_if_unbroken(tiny, tmp_path, more):
    flags = [*tiny, "--epochs", 2, *more.split(), "--out"]
    assert live(tmp_path, [*flags, "whole"])[0] == 0
    assert live(tmp_path, [*flags, "r"], die=("step", 6))[0] == -SIGKILL
    status, said, stderr = live(tmp_path, [*flags, "r"])
    assert status == 0 and "steps 4 … 8" in said, stderr
    assert_whole(tmp_path / "r", tmp_path / "whole")
    if "fp16" in more:
        scaler = checkpoint(tmp_path / "r")["scaler"]
        assert 0 < scaler["_growth_tracker"] <= 8
    if "byol" in more:
        weights = checkpoint(tmp_path / "r")["model"]
        fast, slow = weights["f.convs.1.weight"], weights["target.0.convs.1.weight"]
        assert 0 < float((fast - slow).norm() / fast.norm()) < 0.1  # it follows f slowly


@slow
def test_a_checkpoint_in_bf16_goes_on_in_bf16_on_a_cpu_without_it(tiny, tmp_path):
    flags = [*tiny, "--epochs", 2, "--amp", "auto", "--out"]
    has, has_not = dict(avx512_bf16=True), dict(avx512_bf16=False)
    assert live(tmp_path, [*flags, "whole"], cpu=has)[0] == 0
    assert live(tmp_path, [*flags, "r"], cpu=has, die=("step", 6))[0] == -SIGKILL
    status, said, _ = live(tmp_path, [*flags, "r"], cpu=has_not)
    assert status == 0 and "steps 4 … 8, bfloat16 on cpu" in said
    assert_whole(tmp_path / "r", tmp_path / "whole")
    status, said, _ = live(tmp_path, [*flags, "other"], cpu=has_not)
    assert status == 0 and "float32 on cpu" in said


@slow
def test_measuring_during_the_training_changes_nothing(flags, tmp_path, unbroken):
    flags = [*flags, "--probe-epochs", 2]
    assert live(tmp_path, flags, die=("measuring", 2))[0] == -SIGKILL  # at step 8
    assert live(tmp_path, flags, die=("step", 9))[0] == -SIGKILL  # it has measured at step 8
    assert live(tmp_path, flags)[0] == 0
    assert same(checkpoint(tmp_path / "r"), checkpoint(unbroken))
    assert [line["step"] for line in log_of(tmp_path / "r") if "top1" in line] == [0, 8, 16]


@slow
def test_the_scale_of_fp16_is_halved_until_the_gradients_are_finite(tiny, tmp_path):
    flags = [*tiny, *"--amp fp16 --backbone mlp --width 0.05 --epochs 3 --out r".split()]
    assert live(tmp_path, flags, die=("step", 6))[0] == -SIGKILL
    state = checkpoint(tmp_path / "r")
    start = state["model"]["h.0.weight"]

    def with_scale(scale, **fault):
        state["scaler"]["scale"] = scale
        torch.save(state, tmp_path / "r/checkpoint.pt")
        return live(tmp_path, flags, **fault)

    assert with_scale(2.0**40, die=("step", 6), how=[SIGTERM])[0] == 128 + SIGTERM
    skipped = checkpoint(tmp_path / "r")
    assert skipped["scaler"]["scale"] == 2.0**37  # steps 4, 5 and 6
    assert torch.equal(skipped["model"]["h.0.weight"], start)
    refused(with_scale(2.0**-25), "not finite at step 4", "--lr", "the last checkpoint is kept")


# ----------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("more", ["--tau 0.2", "--seed 1 --lr 1", "--group rot", "--epochs 7"])
def test_other_settings_are_refused_and_named(flags, unbroken, monkeypatch, more):
    monkeypatch.chdir(unbroken.parent)
    before = contents(unbroken)
    refuse([*flags, *more.split()], "take another --out", *more.split()[::2])
    assert contents(unbroken) == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_images_are_refused(flags, copied, finished):
    """Also by a finished run: its result is not theirs."""
    if not finished:
        (copied / "r/result.json").unlink()
    folder(copied / "images")
    before = contents(copied)
    refuse([*flags, "--data-dir", "images"], "a run on other images")
    assert contents(copied) == before


def test_a_finished_run_whose_images_have_moved_is_not_measured_again(
    flags, copied, monkeypatch, capsys
):
    shutil.copytree(flags[flags.index("--data-dir") + 1], "images")
    monkeypatch.setattr(probe, "evaluate", None)
    before = contents(copied)
    train.main([*map(str, flags), "--data-dir", "images"])
    assert capsys.readouterr().out.startswith("r is finished\n") and contents(copied) == before


def cut(path, share):
    os.truncate(path, int(share * path.stat().st_size))


def exchange_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: cut(path, 0),
    "cut in the middle": lambda path: cut(path, 0.5),
    "cut near the end": lambda path: cut(path, 0.99),
    "one bit": exchange_a_byte,
    "text": lambda path: path.write_text("mine"),
    "hostile": lambda path: path.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR."),
    "a list": lambda path: torch.save([1], path),
    "another program's": lambda path: torch.save(dict(model={}, epoch=3), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_kept(flags, copied, damage):
    DAMAGE[damage](copied / "r/checkpoint.pt")
    before = contents(copied)
    refuse(flags, "r/checkpoint.pt", "kept", "take another --out")
    assert contents(copied) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "curves.png"])
def test_files_of_something_else_are_refused_and_kept(flags, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text("mine")
    refuse(flags, name, "take another --out")
    assert contents(tmp_path) == {f"r/{name}": b"mine"}


@slow
def test_a_second_command_in_the_same_folder_is_refused(flags, tmp_path, unbroken):
    first = begin(tmp_path, flags, die=("step", 6), how=[], hang=True)
    while not (tmp_path / "fault").exists():
        assert first.is_alive()
        time.sleep(0.01)
    before = contents(tmp_path / "r")
    more = [*flags, "--out", tmp_path / "r"]
    refused(live(tmp_path / "second", more), "another process is using", "wait")
    assert contents(tmp_path / "r") == before
    first.kill()
    first.join()
    assert live(tmp_path, flags)[0] == 0
    assert_whole(tmp_path / "r", unbroken)


@slow
def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(tiny, tmp_path):
    more = ["--weight-decay", "1e6", "--lr", "1e6", "--epochs", 9, "--out", "r"]
    refused(live(tmp_path, [*tiny, *more]), "not finite", "smaller --lr")
    for value in checkpoint(tmp_path / "r")["model"].values():
        assert value.isfinite().all()


# ---------------------------------------------------------------------------------- finished
def test_a_finished_run_prints_its_result_again_and_changes_nothing(
    flags, unbroken, monkeypatch, capsys
):
    monkeypatch.chdir(unbroken.parent)
    before = contents(unbroken)
    train.main([str(flag) for flag in flags])
    result = json.loads(before["result.json"])
    assert capsys.readouterr().out == f"r is finished\n{probe.report(result)}\n"
    assert contents(unbroken) == before


@slow
def test_a_finished_run_is_measured_again_with_other_measures(flags, unbroken, tmp_path):
    """Also where its training would not fit into the memory."""
    shutil.copytree(unbroken, tmp_path / "r")
    old = json.loads((unbroken / "result.json").read_text()) | dict(processes=8, device="cuda:0")
    (tmp_path / "r/result.json").write_text(json.dumps(old))  # it was trained elsewhere
    more = ["--probe-size", 50, "--before"]
    status, said, stderr = live(tmp_path, [*flags, *more], memory=1)
    assert status == 0 and f"steps {STEPS} … {STEPS}" in said, stderr
    assert (tmp_path / "r/checkpoint.pt").read_bytes() == (unbroken / "checkpoint.pt").read_bytes()
    new = json.loads((tmp_path / "r/result.json").read_text())
    assert new["train_images"] == new["untrained"]["train_images"] == 50
    same_now = ("invariance", "equation1", "retrieval", "train_seconds", "processes", "device")
    assert {name: new[name] for name in same_now} == {name: old[name] for name in same_now}
    assert new["untrained"]["invariance"] != new["invariance"]
    assert "untrained    trained" in said


def test_the_untrained_column_is_what_frozen_measures(tiny, unbroken, tmp_path):
    """--before, beside a training, and --loss frozen measure the same network."""
    assert live(tmp_path, [*tiny, "--loss", "frozen", "--out", "r"])[0] == 0
    frozen = json.loads((tmp_path / "r/result.json").read_text())
    more = ["--epochs", 1, "--before", "--out", "s"]
    assert live(tmp_path, [*tiny, *more])[0] == 0
    untrained = json.loads((tmp_path / "s/result.json").read_text())["untrained"]
    assert untrained == {name: frozen[name] for name in untrained}


def test_a_whole_run_in_its_own_words(tiny, tmp_path):
    """What a run prints and leaves, with its curves."""
    flags = [*tiny, "--epochs", 2, "--before", "--out", "r"]
    status, said, stderr = live(tmp_path, flags, curves=True)
    assert status == 0 and stderr == ""  # no bar and no warning, as stderr is not a terminal
    names = ("checkpoint.pt", "curves.png", "lock", "metrics.jsonl", "result.json")
    assert sorted(contents(tmp_path / "r")) == sorted(names)
    lines = said.splitlines()
    assert lines[0].startswith("hssl on folder: 128 images of 29 px, group trans, equivariant")
    assert lines[1].startswith("epoch 1 of 2   loss ") and lines[2].startswith("epoch 2 of 2")
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert "\n".join(lines[3:-1]) == probe.report(result)
    assert result["classes"] == ["0", "1"] and result["processes"] == 1
    assert result["width"] == 0.125 and result["slots"] == "sampled"
    log = log_of(tmp_path / "r")
    assert "argv" in log[0] and [line["step"] for line in log[1:]] == [4, 8]
    assert log[1]["lr"] == pytest.approx(train.learning_rate(3, 8, 2, 0.25))
    assert log[1]["chance"] == pytest.approx(train.losses.chance(32))
