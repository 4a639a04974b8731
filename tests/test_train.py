"""The trainer's parts: LARS by hand, the schedule, what is learned, the flags, memory; and that
training learns."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, refused_in_one_line, relative
from lives import live, log_of
from torch import nn

import data
import gconv
import losses
import probe
import train


# ---------------------------------------------------------- the optimiser, its schedule, draws
def by_hand(p, grads, lr, momentum, weight_decay, eta):
    """LARS word for word, in floats, for one tensor that is a list of rows."""
    v = torch.zeros_like(p)
    for g in grads:
        d, q = g, 1.0
        if p.dim() > 1:
            d = g + weight_decay * p
            size, length = float(p.norm()), float(d.norm())
            if size > 0 and length > 0:
                q = eta * size / length
        v = momentum * v + q * d
        p = p - lr * v
    return p


def test_lars_against_steps_by_hand(double):
    """Three steps, so that the momentum shows; two groups with numbers of their own; a matrix, a
    bias, a filter, a zero weight, a zero gradient, and one without a gradient."""
    shapes = [(3, 4), (5,), (2, 3, 4, 4), (3, 3), (3, 3), (2, 2)]
    start = [torch.randn(shape) for shape in shapes]
    start[3].zero_()
    grads = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    for step in grads:
        step[4].zero_()
    numbers = [
        dict(lr=0.5, momentum=0.9, weight_decay=0.1, eta=0.02),
        dict(lr=0.3, momentum=0.5, weight_decay=0.0, eta=0.1),
    ]
    parameters = [nn.Parameter(p.clone()) for p in start]
    halves = parameters[:3], parameters[3:]
    optimizer = train.LARS([dict(params=p, **n) for p, n in zip(halves, numbers)])
    for step in grads:
        for p, g in zip(parameters[:5], step):
            p.grad = g.clone()
        optimizer.step()
    for i, p in enumerate(parameters[:5]):
        expected = by_hand(start[i], [step[i] for step in grads], **numbers[i // 3])
        assert relative(p, expected) < 1e-12, shapes[i]
    assert torch.equal(parameters[5], start[5])


def test_lars_takes_a_closure_as_torchs_optimisers_do():
    """Lightning, for one, passes it.  The closure computes the gradient, so it must have one."""
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = train.LARS([p], lr=0.5)

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4 and p == 2 - 0.5 * 4
    assert optimizer.step() is None


def test_lars_defaults_are_those_of_the_paper_it_follows():
    group = train.LARS([nn.Parameter(torch.ones(1))]).param_groups[0]
    expected = dict(lr=0.1, momentum=0.9, weight_decay=1e-4, eta=0.001)
    assert {name: group[name] for name in expected} == expected


def test_the_rate_warms_up_and_decays_to_zero():
    rate = [train.learning_rate(t, 100, 10, 2.0) for t in range(101)]
    assert rate[0] == pytest.approx(2 / 11) and rate[10] == 2.0
    assert all(a < b for a, b in zip(rate[:10], rate[1:11]))
    assert all(a > b for a, b in zip(rate[10:], rate[11:]))
    assert rate[55] == pytest.approx(1.0) and rate[100] == pytest.approx(0)  # a cosine
    assert train.learning_rate(0, 0, 0, 1.0) == 1.0
    assert train.learning_rate(3, 3, 9, 1.0) == 0.4  # a run that ends while it warms up


def test_draws_depend_on_their_key_alone():
    keys = [(0, 5, 1), (0, 5, 1), (0, 6, 1), (1, 5, 1), (0, 5, 2), (5, 0, 1)]
    drawn = [torch.randperm(100, generator=train.seeded(*key)) for key in keys]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


# -------------------------------------------------------------------------- what is learned
def digits():
    """A data set made of nothing but random numbers: 64 images of 29 px in 3 classes."""
    x = torch.randint(256, (64, 1, 29, 29), generator=torch.Generator().manual_seed(0)).byte()
    y = torch.arange(64) % 3
    return data.Data(x, y, x[:20], y[:20], ["a", "b", "c"], "mnist")


def objective(flags):
    """An `Objective` as train.py makes it."""
    args = train.parse([*flags.split(), "--width", "0.0625", "--batch-size", "6"])
    torch.manual_seed(args.seed)
    f, h, classifier, pairs, _ = probe.network(vars(args), digits())
    return train.Objective(args, f, h, classifier, pairs)


@pytest.mark.parametrize("loss", ["hssl", "assl", "hssl --augment shift"])
@pytest.mark.parametrize("name", ["infonce", "ntxent", "bilinear", "byol", "simsiam"])
def test_each_objective_is_the_loss_of_its_name(loss, name):
    """Not on equal slow and fast networks, nor with W = 1/D."""
    tau = "" if name in ("byol", "simsiam") else " --tau 0.3"
    model = objective(f"--loss {loss} --objective {name} --group rot{tau}")
    model.eval()
    nn.init.normal_(model.f.convs[2].weight)
    if name == "bilinear":
        nn.init.normal_(model.W, std=0.1)
    x, x2 = torch.rand(2, 6, 1, 29, 29)
    if "augment" not in loss:
        x2 = None
    drawn = model.pairs.draw(6, torch.Generator().manual_seed(0))
    y1, y2 = model.pairs.views(model.f, model.h, x, *drawn, x2=x2)
    if name == "infonce":
        expected = losses.info_nce(y1, y2, 0.3)
    elif name == "ntxent":
        expected = losses.info_nce(y1, y2, 0.3, "ntxent")
    elif name == "bilinear":
        expected = losses.info_nce(y1, y2, 0.3, W=model.W)
    else:
        t1, t2 = y1, y2
        if name == "byol":
            t1, t2 = model.pairs.views(*model.target, x, *drawn, x2=x2)
            assert relative(t1, y1) > 0.1
        expected = losses.cosine_regression(model.q(y1), model.q(y2), t1, t2)
    loss, seen1, seen2 = model(x, x2, None, *drawn)
    assert torch.allclose(loss, expected) and not seen1.requires_grad
    assert torch.allclose(seen1, y1) and torch.allclose(seen2, y2)
    chance = {"infonce": math.log(20), "bilinear": math.log(20), "ntxent": math.log(11)}
    assert model.chance == pytest.approx(chance.get(name, 2))


@pytest.mark.parametrize("name", ["infonce", "ntxent", "bilinear", "byol", "simsiam"])
def test_each_objective_is_one_loss_where_the_network_is_exact(double, name):
    """The derivation of Eq. 3 from Eq. 2 is about views, so it holds for all: loss and gradient."""
    results = []
    for loss in ("assl", "hssl"):
        model = objective(f"--loss {loss} --objective {name} --group rot")
        x = torch.rand(6, 1, 29, 29, generator=torch.Generator().manual_seed(0))
        g0 = torch.zeros(6, 1, dtype=torch.long)
        g1 = torch.tensor([0, 1, 2, 3, 1, 2])
        value, _, _ = model(x, None, None, g0, g1, g1.roll(1))
        value.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((value.item(), torch.cat(grads)))
    (a, by_a), (b, by_b) = results
    assert abs(a - b) < 1e-10 and relative(by_a, by_b) < 1e-10
    assert abs(a - model(x, None, None, g0, 0 * g1, 0 * g1)[0].item()) > 0.01  # nothing moved


LEARNS = {
    "--loss supervised": {"f", "classifier"},
    "--loss hssl": {"f", "h"},
    "--loss assl": {"f", "h"},
    "--objective bilinear": {"f", "h", "W"},
    "--objective byol": {"f", "h", "q"},
    "--objective simsiam": {"f", "h", "q"},
}


@pytest.mark.parametrize("flags", LEARNS)
def test_what_learns_and_what_does_not(flags):
    """Every parameter that asks for a gradient gets one, and the slow copy none."""
    model = objective(f"{flags} --group rot")
    drawn = model.pairs.draw(6, torch.Generator().manual_seed(0))
    loss, _, _ = model(torch.rand(6, 1, 29, 29), None, torch.arange(6) % 3, *drawn)
    loss.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    asked = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == LEARNS[flags]
    assert asked == {name for name, p in model.named_parameters() if p.grad is not None}


def test_byol_follows_with_a_momentum_of_099():
    model = objective("--objective byol --group rot")
    slow = [p.clone() for p in model.target.parameters()]
    fast = [*model.f.parameters(), *model.h.parameters()]
    for p in fast:
        nn.init.normal_(p)
    model.update_target()
    for new, old, p in zip(model.target.parameters(), slow, fast, strict=True):
        assert torch.allclose(new, 0.99 * old + 0.01 * p, atol=1e-6)
    other = objective("--objective simsiam --group rot")
    other.update_target()  # has no slow copy


def test_supervised_training_is_cross_entropy():
    model = objective("--loss supervised --group rot")
    model.eval()
    x, y = torch.rand(6, 1, 29, 29), torch.arange(6) % 3
    logits = model.classifier(model.f(x))
    loss, _, _ = model(x, None, y)
    right = logits.softmax(1)[torch.arange(6), y]
    assert torch.allclose(loss, -right.log().mean())


# ------------------------------------------------------------------- the loop, step by step
@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Run the command here, on random images, up to the measures → what the loop did."""

    def run(*flags, note=lambda say: []):
        seen = SimpleNamespace(x=[], x2=[], y=[], g=[], optimizer=None, rates=[])
        forward, step = train.Objective.forward, train.LARS.step

        def watch_forward(model, x, x2, labels, *drawn):
            seen.x.append(x)
            seen.x2.append(x2)
            seen.y.append(labels)
            seen.g.append(torch.stack(drawn[1:]))
            return forward(model, x, x2, labels, *drawn)

        def watch_step(optimizer):
            seen.rates.append(optimizer.param_groups[0]["lr"])
            seen.optimizer = optimizer
            return step(optimizer)

        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(train.Objective, "forward", watch_forward)
            patch.setattr(train.LARS, "step", watch_step)
            patch.setattr(data, "load", lambda *chosen: digits())
            patch.setattr(train, "note_signals", note)
            patch.setattr(train, "measure", lambda *_: {})
            patch.setattr(train, "lock", lambda folder: None)
            patch.setattr(train, "fit_into_memory", lambda *more: None)
            patch.setattr(probe, "draw_curves", lambda folder: None)
            patch.setattr(probe, "evaluate", lambda *more, **named: {})
            patch.setattr(probe, "report", lambda result: "")
            small = ["--width", "0.0625", "--batch-size", "8", "--epochs", "2", "--amp", "off"]
            train.main([*small, *map(str, flags)])
        return seen

    return run


def test_an_epoch_shows_every_image_once_with_new_elements(watched):
    seen = watched("--group", "trans", "--out", "r")
    images = (255 * torch.stack(seen.x)).round()  # (16, 8, 1, 29, 29)
    labels = torch.stack(seen.y)  # (16, 8)
    for epoch in (slice(0, 8), slice(8, 16)):
        assert len(images[epoch].flatten(0, 1).unique(dim=0)) == 64
    assert not torch.equal(images[:8], images[8:])
    assert len(torch.stack(seen.g).unique(dim=0)) == 16
    all_images = digits().train_x.float()
    for x, y in zip(images.flatten(0, 1), labels.flatten()):
        found = (all_images == x).flatten(1).all(1).nonzero()
        assert int(found) % 3 == y
    other = watched("--group", "trans", "--out", "s", "--seed", 1)
    assert not torch.equal(images, (255 * torch.stack(other.x)).round())


def test_afterwards_signals_do_what_they_did_before(watched, monkeypatch, request):
    """So that Ctrl-C after a run inside Jupyter does not end its process."""

    def mine(*_):
        pass

    for number in train.SIGNALS:
        request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, mine)))
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    request.addfinalizer(functools.partial(signal.set_wakeup_fd, signal.set_wakeup_fd(ends[1])))
    watched("--out", "r", note=train.note_signals)
    assert {signal.getsignal(number) for number in train.SIGNALS} == {mine}
    monkeypatch.setattr(train, "finite", lambda *_: False)
    with pytest.raises(data.UsageError, match="not finite"):
        watched("--out", "s", note=train.note_signals)
    assert {signal.getsignal(number) for number in train.SIGNALS} == {mine}
    assert signal.set_wakeup_fd(-1) == ends[1]


def test_the_loop_follows_the_schedule_and_gives_lars_its_flags(watched):
    flags = ["--lr", 4, "--warmup-epochs", 0.5, "--weight-decay", 0.25, "--out", "r"]
    seen = watched(*flags)
    peak = 4 * 8 / 256
    assert seen.rates == [train.learning_rate(step, 16, 4, peak) for step in range(16)]
    assert seen.optimizer.param_groups[0]["weight_decay"] == 0.25
    assert watched("--out", "s").optimizer.param_groups[0]["weight_decay"] == 1e-4


@pytest.mark.parametrize("name", ["shift", "jitter"])
def test_each_view_is_changed_by_itself(watched, name):
    more = ["--strength", 0.1] if name == "shift" else []
    plain = watched("--out", "plain")
    seen = watched("--augment", name, *more, "--out", "r")
    assert plain.x2 == [None] * 16
    augment = getattr(data, name)
    for step, (x1, x2) in enumerate(zip(seen.x, seen.x2)):
        u = torch.rand(2, 8, 9, generator=train.seeded(0, step, 3))
        assert torch.allclose(x1, augment(plain.x[step], u[0], 0.1), atol=1e-6)
        assert torch.allclose(x2, augment(plain.x[step], u[1], 0.1), atol=1e-6)
        assert not torch.allclose(x1, x2)
    assert all(torch.equal(a, b) for a, b in zip(plain.g, seen.g))


def test_images_that_are_left_over_wait_for_the_next_epoch(watched):
    seen = watched("--batch-size", 24, "--out", "r")
    assert len(seen.x) == 4 and len(torch.cat(seen.x[:2]).unique(dim=0)) == 48


# ----------------------------------------------------------------------------------- flags
def test_the_presets_are_those_of_appendix_b():
    names = ("epochs", "batch_size", "lr", "warmup_epochs", "tau", "weight_decay")

    def values(dataset):
        args = train.parse(["--dataset", dataset])
        return [getattr(args, name) for name in names]

    assert values("cifar10") == values("tiny-imagenet") == [1300, 4096, 0.1, 10, 0.1, 1e-4]
    assert values("mnist") == [500, 4096, 0.1, 10, 0.1, 1e-4]
    assert train.parse(["--dataset", "mnist", "--epochs", "3"]).epochs == 3


def test_the_flags_reach_the_network_and_what_is_drawn():
    flags = (
        "--functions 3 --pool max --epsilon 0.3 --base-size 2 --max-distance 1 --width 0.5 "
        "--distance topological --slots sampled --tau 0.3"
    )
    args = train.parse(flags.split())
    f, h, _, pairs, _ = probe.network(vars(args), digits())
    assert f.convs[0].weight.shape[-1] == 3 and f.pool == "max" and f.sampled
    assert f.convs[0].delta is not None and f.channels == 64
    assert h[0].in_features == 2 * 64 and len(pairs.g0) == 2
    assert pairs.allowed.counts.tolist() == [3, 3, 3, 3]  # euclidean: 2 at the ends
    f, *_ = probe.network(vars(train.parse(["--extent", "3"])), digits())
    assert f.convs[1].extent == 3 and not f.sampled
    args = train.parse("--loss assl --group trans --strength 0.1".split())
    _, _, _, pairs, image_group = probe.network(vars(args), digits())
    assert image_group.order == 29 * 29 and len(pairs.changes) == 5 * 5  # 2 px of 29
    for loss in ("assl", "hssl"):
        flags = f"--loss {loss} --draw batch".split()
        assert probe.network(vars(train.parse(flags)), digits())[3].shared
        matched = f"--loss {loss} --group trans --pairs matched --strength 0.25"
        _, _, _, pairs, _ = probe.network(vars(train.parse(matched.split())), digits())
        assert pairs.equation.__name__[0] == loss[0] and len(pairs.changes) == 5 * 5


def test_defaults_that_depend_on_other_flags():
    args = train.parse([])
    assert (args.slots, args.before, args.max_distance) == ("sampled", True, None)
    assert args.out == os.path.join("runs", "mnist5k-rot-hssl-equivariant-seed0")
    assert train.parse(["--base-size", "2"]).slots == "all"
    assert train.parse(["--extent", "4"]).slots == "all"
    assert not train.parse(["--dataset", "cifar10"]).before
    assert not train.parse(["--no-before"]).before
    assert train.parse(["--loss", "frozen"]).epochs == 0


WRONG = {
    "--lr nan": "--lr nan is out of range: take 0 or more",
    "--lr 1e30": "out of range",
    "--epochs -1": "take 0 or more",
    "--tau 0": "take 0.0001 or more",
    "--batch-size 9999": "take 4000",
    "--batch-size 1": "take 2 or more",
    "--train-size 99999": "there are 4000",
    "--test-size 1001": "there are 1000",
    "--base-size 4": "1 … 3",
    "--group trans --base-size 63": "no patch of 63 positions",
    "--group trans --max-distance 0.5": "nearest are 1 apart",
    "--functions 12": "at most 11",
    "--backbone cnn --group rot": "--group scale",
    "--dataset folder --data-dir nowhere": "no images found",
    "--dataset tiny-imagenet --data-dir nowhere": "Tiny ImageNet in",
    "--device cuda": "--device cuda is not there",
    "--loss assl --max-distance 3": "--max-distance changes nothing",
    "--loss assl --base-size 6 --group scale --objective byol --tau 0.2": "--tau changes nothing",
    "--objective simsiam --tau 0.2": "--tau changes nothing",
    "--distance topological": "--distance changes nothing",
    "--strength 0.1": "--strength changes nothing",
    "--loss assl --strength 0.1": "--strength changes nothing",
    "--augment jitter --strength 0.1": "--strength changes nothing",
    "--loss supervised --objective byol": "--objective changes nothing",
    "--loss supervised --tau 0.2": "--tau changes nothing",
    "--loss supervised --base-size 2": "--base-size changes nothing",
    "--loss frozen --augment shift": "--augment changes nothing",
    "--pairs matched": "--pairs changes nothing",
    "--group trans --pairs matched --base-size 4": "--base-size changes nothing",
    "--group trans --pairs matched --draw batch": "--draw changes nothing",
    "--group trans --pairs matched --max-distance 4": "--max-distance changes nothing",
    "--group trans --pairs matched --strength 0.1": "no shift by a whole stride",
    "--backbone mlp --pool max": "--pool changes nothing",
    "--backbone mlp --functions 3": "--functions changes nothing",
    "--backbone mlp --epsilon 0.1": "--epsilon changes nothing",
    "--backbone mlp --extent 2": "--extent changes nothing",
    "--group trans --pool max": "--pool changes nothing",
    "--group trans --epsilon 0.1": "--epsilon changes nothing",
    "--loss supervised --slots sampled": "--slots changes nothing",
    "--group trans --slots sampled": "--slots changes nothing",
    "--extent 2 --slots sampled": "--slots changes nothing",
    "--extent 5": "extent is 1 … |G| = 4, not 5",
    "--group trans --extent 2": "extent is 1 … |G| = 1, not 2",
    "--extent 4 --epsilon 0.3": "it needs extent 1",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_usage_is_refused_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "note_signals", None)  # it would train here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused_in_one_line(WRONG[flags]):
        train.main(flags.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images, advice", [(5, "take 4"), (3, "take fewer processes")])
def test_the_batch_that_is_advised_fits_the_processes(tmp_path, monkeypatch, images, advice):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "start", lambda wanted: (0, 0, 4, torch.device("cpu")))
    with refused_in_one_line(advice):
        train.main(["--train-size", str(images)])
    assert not list(tmp_path.iterdir())


def test_flags_that_do_not_exist_are_told_with_status_2(capsys):
    for flags in ("--optimizer adam", "--group affine", "--lr fast", "--gro rot", "--loss"):
        with pytest.raises(SystemExit) as stop:
            train.parse(flags.split())
        assert stop.value.code == 2 and flags.split()[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_itself_refuses_in_one_line(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "train.py"), "--tau", "0"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == "train.py: --tau 0 is out of range: take 0.0001 or more, below 1e9\n"


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "torchrun --nproc_per_node=8" in text
    for name in vars(train.parse([])):
        assert "--" + name.replace("_", "-") in text


# ----------------------------------------------------------------------------------- memory
@pytest.fixture
def memory(monkeypatch):
    """Say how many bytes this machine has, and put the layers' switch back."""
    monkeypatch.setattr(gconv.GConv, "recompute", None)

    def has(size):
        names = dict(SC_PHYS_PAGES=1, SC_PAGE_SIZE=size)
        monkeypatch.setattr(os, "sysconf", lambda name: int(names[name]))

    return has


def needed(model, batch, recompute):
    """Bytes that autograd keeps for a batch, counted on the whole batch."""
    seen, held = {}, []

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)  # so that no address is used twice
        return tensor

    gconv.GConv.recompute = recompute
    drawn = model.pairs.draw(batch, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.rand(batch, 3, 31, 31), None, None, *drawn)
    return sum(seen.values())


@pytest.mark.slow
def test_jets_are_computed_again_only_where_memory_is_small(memory):
    """A count for four images decides, with a margin: seven tenths of the memory are used."""
    images = digits()._replace(train_x=torch.zeros(4, 3, 31, 31).byte(), kind="cifar10")
    args = train.parse("--loss assl --batch-size 16 --width 0.25".split())
    model = train.Objective(args, *probe.network(vars(args), images)[:4])
    much, little = [needed(model, 16, recompute) for recompute in (False, True)]
    assert 1.1 * little < 0.9 * much

    def fit(size, batch=16):
        memory(size / 0.7)
        device = torch.device("cpu")
        train.fit_into_memory(model, args, torch.rand(4, 3, 31, 31), batch, device, None)
        return gconv.GConv.recompute

    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fit(1.1 * much) is False
    assert fit(0.9 * much) is fit(1.1 * little) is True
    with pytest.raises(train.UsageError) as caught:
        fit(0.7 * little)
    told = str(caught.value)
    number = int(told.split("--batch-size ")[1].split(",")[0])
    assert "\n" not in told and 8 < number < 13
    fit(0.7 * little, number)  # it fits
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_preset_that_can_not_run_here_is_refused_before_it_writes(tmp_path, monkeypatch, memory):
    monkeypatch.chdir(tmp_path)
    memory(2**20)
    monkeypatch.setattr(data, "load", lambda *chosen: digits())
    monkeypatch.setattr(train, "note_signals", None)
    with refused_in_one_line("take --batch-size"):
        train.main(["--batch-size", "64", "--out", "r"])
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- training learns
@pytest.mark.slow
def test_training_learns(nursery, tmp_path):
    """H-SSL on 2,000 real digits with scales, 50 steps: the loss falls far below chance, and a
    linear layer reads more off one slot than it does untrained, by three standard errors."""
    flags = (
        "--group scale --width 0.125 --functions 3 --train-size 2000 --test-size 600 --lr 4 "
        "--probe-size 800 --batch-size 200 --epochs 5 --warmup-epochs 1 --amp off --out r"
    )
    status, said, stderr = live(tmp_path, flags.split())
    assert status == 0, stderr
    last = log_of(tmp_path / "r")[-1]
    result = json.loads((tmp_path / "r/result.json").read_text())
    after, before = result["linear_one"] / 100, result["untrained"]["linear_one"] / 100
    error = math.sqrt((after * (1 - after) + before * (1 - before)) / 600)
    print(said)  # see -s
    assert last["loss"] < last["chance"] - 1.5
    assert after - before > 3 * error
