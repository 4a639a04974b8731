"""The trainer: LARS by hand, the schedule, the objectives, and the real command: end to end, and misused."""
import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_faults import live

import backbones
import data
import losses
import probe
import train

SMALL = ["--group", "trans", "--width", "0.125", "--train-size", "512", "--test-size", "200", "--batch-size", "128", "--warmup-epochs", "0.5"]  # four steps an epoch


def run(*flags, cwd, command=(sys.executable, os.path.join(ROOT, "train.py"))):
    """The command, alone in a folder: → CompletedProcess with text."""
    return subprocess.run([*command, *map(str, flags)], cwd=cwd, text=True, capture_output=True, timeout=300,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))


# ---------------------------------------------------------------- the optimiser and its schedule
def test_lars_against_steps_by_hand():
    """p (2-D) with the trust ratio, b (1-D) without it and without weight decay; two steps, so momentum shows."""
    p, b = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, -1.0])
    gp, gb = torch.tensor([[0.6, 0.8]]), torch.tensor([0.5, 0.5])
    params = [torch.nn.Parameter(p.clone()), torch.nn.Parameter(b.clone())]
    optimizer = train.LARS(params, lr=0.5, momentum=0.9, weight_decay=0.1, eta=0.02)
    vp, vb = torch.zeros_like(p), torch.zeros_like(b)
    for _ in range(2):
        def closure():
            params[0].grad, params[1].grad = gp.clone(), gb.clone()
            return 5 * params[0].sum().requires_grad
        assert optimizer.step(closure) == 5  # with gradient, and returned
        d = gp + 0.1 * p
        vp = 0.9 * vp + 0.02 * (p.norm() / d.norm()) * d
        vb = 0.9 * vb + gb
        p, b = p - 0.5 * vp, b - 0.5 * vb
    assert torch.allclose(params[0].detach(), p, atol=1e-7) and torch.allclose(params[1].detach(), b, atol=1e-7)


def test_lars_first_step_has_the_length_it_should():
    """An adapted step has norm lr·η·‖p‖ whatever the gradient's scale; a zero weight or gradient does not divide by 0."""
    for scale in (1e-6, 1.0, 1e6):
        w = torch.nn.Parameter(torch.randn(5, 7))
        before = w.detach().clone()
        w.grad = scale * torch.randn(5, 7)
        train.LARS([w], lr=2.0, weight_decay=0.0, eta=0.001).step()
        assert abs(float((w.detach() - before).norm() / before.norm()) - 0.002) < 1e-6
    zero = torch.nn.Parameter(torch.zeros(3, 3))
    zero.grad = torch.zeros(3, 3)
    train.LARS([zero]).step()
    assert torch.isfinite(zero).all()


def test_schedule():
    rate = [train.learning_rate(t, 100, 10, 2.0) for t in range(100)]
    assert all(a < b for a, b in zip(rate[:10], rate[1:11])) and abs(rate[10] - 2.0) < 1e-12
    assert all(a > b for a, b in zip(rate[10:], rate[11:])) and rate[-1] < 0.01
    assert abs(rate[55] - 1.0) < 1e-12  # half-way down the cosine
    assert train.learning_rate(0, 0, 0, 1.0) == 1.0


def test_draws_depend_on_seed_and_step_alone():
    draws = [torch.randperm(100, generator=train.seeded(*key)) for key in ((0, 5, 1), (0, 5, 1), (0, 6, 1), (1, 5, 1), (0, 5, 2))]
    assert torch.equal(draws[0], draws[1]) and not any(torch.equal(draws[0], d) for d in draws[2:])


# ---------------------------------------------------------------- what is learned, and from what
@pytest.mark.parametrize("objective", ["infonce", "ntxent", "bilinear", "byol", "simsiam"])
def test_each_objective_is_the_loss_of_its_name(objective):
    (f, h, classifier), draws = backbones.build("mnist", "rot", width=1 / 16), losses.Draws("hssl", "rot", True, 4, 29, 8, 4)
    model = train.Objective(argparse.Namespace(loss="hssl", objective=objective, tau=0.3), f, h, classifier, draws).eval()
    torch.nn.init.normal_(f.convs[2].weight)  # BYOL's slow copy is now another network
    x, g = torch.rand(6, 1, 29, 29), draws(6, torch.Generator().manual_seed(0))
    y, nce = draws.views(f, h, x, *g), lambda *more: losses.info_nce(*y, 0.3, *more)
    met = lambda f, h: losses.cosine_regression(*map(model.q, y), *draws.views(f, h, x, *g))
    expected = dict(infonce=nce, ntxent=lambda: nce("ntxent"), bilinear=lambda: nce("paper", model.W), byol=lambda: met(*model.target), simsiam=lambda: met(f, h))
    assert torch.allclose(model(x, None, *g)[0], expected[objective]())


def test_an_epoch_shows_every_image_once_with_new_elements(tmp_path, monkeypatch):
    seen, views = [], losses.Draws.views
    monkeypatch.setattr(losses.Draws, "views", lambda self, f, h, x, *g: (seen.append((x, g[1])), views(self, f, h, x, *g))[1])
    monkeypatch.setattr(probe, "evaluate", lambda *_, **__: {}), monkeypatch.setattr(probe, "report", str)
    train.main([*SMALL, "--epochs", "2", "--out", str(tmp_path / "r")])
    x, g1 = (torch.stack(part) for part in zip(*seen))  # (8, 128, 1, 29, 29), (8, 128)
    assert all(len(e.unique(dim=0)) == 512 for e in x.view(2, 512, -1)) and not torch.equal(x[:4], x[4:]) and len(g1.unique(dim=0)) == 8


def test_the_presets_are_appendix_b():
    values = lambda name: [getattr(train.parse(["--dataset", name]), k) for k in ("epochs", "batch_size", "lr", "warmup_epochs", "tau", "weight_decay")]
    assert values("cifar10") == values("tiny-imagenet") == [1300, 4096, 0.1, 10, 0.1, 1e-4] and values("mnist") == [500, *values("cifar10")[1:]]


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize("loss", ["hssl", *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("assl", "supervised", "frozen"))])
def test_a_run_writes_what_it_promises(tmp_path, request, loss):
    """H-SSL as a command; the others are forked from a process that has imported train.py, see conftest.py."""
    flags = [*SMALL, "--loss", loss, "--epochs", 1, "--out", "r"]
    if loss == "hssl":
        done = run(*flags, cwd=tmp_path)
        status, stdout, stderr = done.returncode, done.stdout, done.stderr
    else:
        request.getfixturevalue("nursery")
        status, stdout, stderr = live(tmp_path, flags, curves=True)
    assert status == 0 and stderr == "", stderr  # no progress bar and no warning, as stderr is not a terminal
    folder = tmp_path / "r"
    result = json.load(open(folder / "result.json"))
    expected = {"top1", "linear", "knn", "fiber", "moved", "invariance", "equation1", "axis", "train_seconds", "images_per_second", "dataset", "group", "loss", "backbone", "epochs", "seed", "parameters", "precision"}
    assert expected <= result.keys() and result["loss"] == loss and 0 <= result["top1"] <= 100
    config = json.load(open(folder / "config.json"))["config"]
    assert config["width"] == 0.125 and config["batch_size"] == 128
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    assert "argv" in lines[0]
    if loss != "frozen":
        assert lines[-1]["step"] == 4 and lines[-1]["lr"] == pytest.approx(0.5)  # the peak is 2·128/256; half-way down the cosine
        assert (folder / "curves.png").stat().st_size > 1000
    if loss in ("hssl", "assl"):
        assert abs(lines[-1]["chance"] - 6.2305) < 1e-3  # log 4·127
        assert {"spread", "positive_similarity", "negative_similarity", "positive_rank", "invariance", "equation1", "axis"} <= lines[-1].keys()
    assert f"{result['top1']:.2f}" in stdout and len(result["invariance"]) == 4  # shifts by 1 … 4 positions
    if loss != "hssl":
        return
    probed = run("r", "--weights", "w.pt", cwd=tmp_path, command=[sys.executable, os.path.join(ROOT, "probe.py")])
    assert probed.returncode == 0, probed.stderr
    probed = json.load(open(folder / "probe.json"))
    assert probed["step"] == probed["steps"] > 0
    assert probed | {k: result[k] for k in probed if k in result} == probed and probed["top1"] == result["top1"]  # the same precision, the same numbers
    weights, trained = torch.load(tmp_path / "w.pt", weights_only=True), torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert json.load(open(tmp_path / "w.pt.json")) == probed and weights and all(torch.equal(v, trained[f"f.{k}"]) for k, v in weights.items())


def test_torchrun_two_processes(tmp_path):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", os.path.join(ROOT, "train.py"),
                           *SMALL, "--epochs", "1", "--out", "r"], cwd=tmp_path, text=True, capture_output=True,
                          env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and json.load(open(tmp_path / "r/result.json"))["processes"] == 2


WRONG = {
    "unknown flag": (["--optimizer", "adam"], "unrecognized arguments"),
    "unknown value": (["--group", "affine"], "invalid choice"),
    "not a number": (["--lr", "fast"], "must be a number"),
    "a rate that overflows": (["--lr", "1e30"], "at most 1e+06"),
    "negative": (["--epochs", "-1"], "at least 0"),
    "nan": (["--lr", "nan"], "at least 0"),
    "zero temperature": (["--tau", "0"], "at least 0.0001"),
    "batch larger than the data": (["--batch-size", "9999"], "take 4000"),
    "train size larger than the data": (["--train-size", "99999"], "has 4000"),
    "base size": (["--base-size", "4"], "1 … 3"),
    "base size of a patch": (["--group", "trans", "--base-size", "63"], "49"),
    "no pair that near": (["--group", "trans", "--max-distance", "0.5"], "nearest are 1 apart"),
    "distance without hssl": (["--loss", "assl", "--max-distance", "3"], "--max-distance"),
    "a flag without effect": (["--backbone", "mlp", "--pool", "max"], "--pool has no meaning"),
    "a unit that needs a group": (["--backbone", "mlp", "--max-distance", "3", "--distance", "topological"], "--distance has no meaning"),
    "strength without translation": (["--loss", "assl", "--strength", "0.1"], "--strength has no meaning"),
    "no such network": (["--backbone", "cnn", "--group", "rot"], "--group scale"),
    "no such folder": (["--dataset", "folder", "--data-dir", "nowhere"], "--data-dir wants"),
    "no Tiny ImageNet": (["--dataset", "tiny-imagenet", "--data-dir", "nowhere"], "wnids.txt"),
    "nothing to resume": (["--resume", "--out", "nothing"], "no run to go on with"),
    "half a torchrun": (["--epochs", "1"], "start with torchrun"),
    "unwritable": (["--out", "/proc/here"], "can't write into"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_usage_is_refused_before_anything_is_written(tmp_path, monkeypatch, what):
    flags, message = WRONG[what]
    monkeypatch.chdir(tmp_path)
    if what == "half a torchrun":
        monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises((train.UsageError, data.DataError)) as caught:
        train.main(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_in_one_line_with_status_2(tmp_path):
    done = run("--group", "affine", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("train.py: ") and done.stderr.count("\n") == 1, done.stderr


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "torchrun --nproc_per_node=8" in text and "--nnodes=2" in text
    assert all(flag in text for flag in ("--max-distance", "--base-size", "--resume", "--amp"))
