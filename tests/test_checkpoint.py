"""checkpoint.py: files that are whole or absent, folders that are a run's own, and checkpoints that fit or are refused."""
import io
import os

import pytest
import torch

import checkpoint
from checkpoint import UsageError, difference, load, open_run, save


def fresh():
    """A small state, as train.py's: step 0 of 10."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.BatchNorm1d(20))
    return dict(config="a run", images="its images", step=0, steps=10, seconds=0.0, model=model.state_dict(),
                momentum=[torch.zeros_like(p) for p in model.parameters()], scaler={})


def at(step):
    state = fresh()
    return state | dict(step=step, seconds=1.0 * step, model={k: v + step for k, v in state["model"].items()})


def test_a_saved_state_comes_back_and_the_one_before_it_is_kept(tmp_path):
    folder = str(tmp_path)
    assert load(folder, fresh()) == (None, None, "")
    good = save(folder, at(1), None)
    good = save(folder, at(2), good)
    state, path, warning = load(folder, fresh())
    assert warning == ""
    assert state["step"] == 2 and path == good and difference(state, at(2)) == ""
    assert all(torch.equal(state["model"][k], v) for k, v in at(2)["model"].items())
    os.remove(good)
    assert load(folder, fresh())[0]["step"] == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_state_of_another_script_comes_back(tmp_path):
    """No `steps`; a number below 0, a tuple, None."""
    state = dict(step=3, loss=-0.3, betas=(0.9, 0.99), best=None, moments=[torch.ones(2)])
    save(str(tmp_path), state, None)
    found, _, _ = load(str(tmp_path), fresh=state | dict(step=0))
    assert found["step"] == 3 and found["betas"] == (0.9, 0.99) and found["best"] is None and found["loss"] == -0.3


def test_damaged_foreign_and_hostile_checkpoints_are_refused(tmp_path, monkeypatch):
    """200 mutations, cuts, foreign files and a pickle that would run a command: the one before is used, the damaged file is
    left as it is, and no weight of it gets through."""
    monkeypatch.chdir(tmp_path)
    save(".", at(2), save(".", at(1), None))
    path, random = tmp_path / "checkpoint.pt", torch.Generator().manual_seed(0)
    sound = path.read_bytes()
    pick = lambda n: int(torch.randint(n, (1,), generator=random))
    buffer = io.BytesIO()
    torch.save({"step": 7, "model": {}}, buffer)
    damaged = [b"", b"not a checkpoint", b"cos\nsystem\n(S'touch hacked'\ntR.", sound[:len(sound) // 2], buffer.getvalue()]
    for _ in range(195):
        cut = bytearray(sound)
        for _ in range(1 + pick(3)):
            cut[pick(len(cut))] = pick(256)
        damaged.append(bytes(cut[:len(cut) - pick(2) * pick(len(cut))]))
    outcomes = {1: 0, 2: 0}
    for bad in damaged:
        path.write_bytes(bad)
        state, _, warning = load(".", fresh())
        assert bool(warning) == (state["step"] == 1)
        outcomes[state["step"]] += 1
        if state["step"] == 2:  # the mutation hit nothing that is read: then every weight must be the right one
            assert all(torch.equal(state["model"][k], v) for k, v in at(2)["model"].items())
        assert path.read_bytes() == bad and not (tmp_path / "hacked").exists()
    assert outcomes[1] > 100
    (tmp_path / "checkpoint.pt.previous").write_bytes(b"torn")
    path.write_bytes(b"torn")
    with pytest.raises(UsageError, match="nothing was changed"):
        load(".", fresh())
    assert path.read_bytes() == b"torn"


SPOILED = {  # what is wrong with a checkpoint that is a sound file, and a word of the answer
    "weights not finite": (lambda s: s["model"]["0.weight"].fill_(torch.nan), "0.weight is not finite"),
    "step below 0": (lambda s: s.update(step=-5), "step is -5"),
    "step past the end": (lambda s: s.update(step=10 ** 9), "step is 1000000000"),
    "seconds not finite": (lambda s: s.update(seconds=float("inf")), "seconds is inf"),
    "no momentum": (lambda s: s.update(momentum=[]), "momentum has other entries"),
    "momentum of another shape": (lambda s: s["momentum"].__setitem__(0, torch.zeros(3)), "momentum.0 is (3,)"),
    "momentum of another type": (lambda s: s["momentum"].__setitem__(0, torch.zeros(20, 20).double()), "torch.float64"),
    "a weight missing": (lambda s: s["model"].pop("0.bias"), "model has other entries"),
    "a weight too many": (lambda s: s["model"].update(extra=torch.zeros(1)), "model has other entries"),
    "a weight that is no tensor": (lambda s: s["model"].update({"0.bias": [1.0]}), "0.bias is a list"),
    "other images": (lambda s: s.update(images="others"), "images is another run's"),
    "other flags": (lambda s: s.update(config="another run"), "config is another run's"),
    "a step that is no number": (lambda s: s.update(step="1"), "step is a str"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, what):
    spoil, word = SPOILED[what]
    state = at(1)
    spoil(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path), fresh())
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_going_on_from_the_older_checkpoint_never_loses_it(tmp_path, monkeypatch):
    """The newest is damaged, the run goes on from the one before, and is killed at the first or the second rename of the next save."""
    folder, path = str(tmp_path), tmp_path / "checkpoint.pt"
    for kill_at in range(2):
        for file in tmp_path.iterdir():
            file.unlink()
        save(folder, at(2), save(folder, at(1), None))
        path.write_bytes(b"torn")
        state, good, _ = load(folder, fresh())
        assert state["step"] == 1
        calls, replace = [], os.replace

        def dies(a, b):
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            calls.append(replace(a, b))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "replace", dies)
            try:
                save(folder, at(3), good)
            except KeyboardInterrupt:
                pass
        assert load(folder, fresh())[0]["step"] in (1, 3)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    good = save(str(tmp_path), at(1), None)
    bad = at(2)
    bad["model"]["0.weight"][0, 0] = torch.inf
    with pytest.raises(UsageError, match="0.weight is not finite after step 2"):
        save(str(tmp_path), bad, good)
    assert load(str(tmp_path), fresh())[0]["step"] == 1


@pytest.mark.parametrize("left", ["result.json", "metrics.jsonl"])
def test_progress_without_a_checkpoint_is_not_started_over(tmp_path, left):
    (tmp_path / left).write_text('{"step": 4, "loss": 1.0}\n')
    with pytest.raises(UsageError, match="has results but no checkpoint"):
        load(str(tmp_path), fresh())


def test_a_folder_is_a_runs_own_or_new(tmp_path):
    folder = str(tmp_path / "r")
    os.close(open_run(folder, dict(lr=1.0), resume=False))
    with pytest.raises(UsageError, match=f"take --out {folder}-2"):
        open_run(folder, dict(lr=1.0), resume=False)
    with pytest.raises(UsageError, match="--lr was 1.0, is 2.0"):
        open_run(folder, dict(lr=2.0), resume=True)
    lock = open_run(folder, dict(lr=1.0), resume=True)
    with pytest.raises(UsageError, match="another process is using"):
        open_run(folder, dict(lr=1.0), resume=True)
    os.close(lock)


def test_lines_that_are_torn_or_foreign_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[]\n5\n\xff\xfe\n' + b"[" * 10 ** 5 + b'\n{"step": 2}\n{"torn')
    assert checkpoint.read_lines(str(path)) == [{"step": 1}, {"step": 2}]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        checkpoint.read_lines(str(path))
