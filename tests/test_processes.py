"""The command in two real processes computes what one does, in float64; and what is wrong with it
ends both."""

from signal import SIGKILL, SIGTERM

import pytest
from conftest import folder
from lives import checkpoint, contents, live, live_together, logged, refused, tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nursery")]


def difference(a, b):
    """The largest relative difference of two checkpoints' weights, buffers and momenta."""
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    found = []
    for name, value in a.items():
        x, y = value.double(), b[name].double()
        # a bias before a BatchNorm has a gradient of 0 but for rounding, so 1e-3 is a floor
        found.append(float((x - y).norm() / y.norm().clamp(min=1e-3)))
    return max(found)


@pytest.mark.parametrize(
    "more",
    [
        "--loss hssl --group rot",
        "--loss hssl --group trans --augment jitter --max-distance 2",
        "--loss assl --group scale --functions 3 --train-size 64",
        "--loss hssl --group rot --objective byol --epsilon 0.1",
        "--loss supervised --group rot --augment shift",
        "--loss assl --group trans --objective bilinear",
    ],
)
def test_two_processes_train_as_one(tiny, tmp_path, more):
    """Weights, buffers and momenta after two epochs, at a rate at which they move."""
    flags = [*tiny, "--epochs", 2, *more.split()]
    assert live(tmp_path, [*flags, "--out", "one"], double=True)[0] == 0
    first, second = live_together(tmp_path, flags, double=True)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "over 2 process(es)" in first[1] and second[1] == ""
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "r")
    assert one["step"] == two["step"] == one["steps"] > 3
    assert difference(two, one) < 1e-10
    assert logged(tmp_path / "r", "lr") == logged(tmp_path / "one", "lr")


def test_a_run_moves_from_one_process_to_two(tiny, tmp_path):
    flags = [*tiny, "--epochs", 3]
    assert live(tmp_path, [*flags, "--out", "one"], double=True)[0] == 0
    cut = live(tmp_path, [*flags, "--out", "r"], die=("step", 6), double=True)
    assert cut[0] == -SIGKILL
    first, second = live_together(tmp_path, flags, double=True)
    assert first[0] == second[0] == 0 and "steps 4 … 12" in first[1], first[2] + second[2]
    assert difference(checkpoint(tmp_path / "r"), checkpoint(tmp_path / "one")) < 1e-10


def test_measuring_during_the_training_of_two_processes_changes_nothing(tiny, tmp_path):
    """It is done by the first one alone, also before the first step."""
    flags = [*tiny, "--epochs", 2]
    assert live(tmp_path, [*flags, "--probe-epochs", 1, "--out", "one"], double=True)[0] == 0
    first, second = live_together(tmp_path, [*flags, "--probe-epochs", 1], double=True)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert difference(checkpoint(tmp_path / "r"), checkpoint(tmp_path / "one")) < 1e-10
    ours, theirs = [logged(tmp_path / name, "retrieval") for name in ("r", "one")]
    assert len(ours) == 2 and ours == theirs


def test_a_signal_to_both_saves_and_ends_both(tiny, tmp_path):
    flags = [*tiny, "--epochs", 3]
    first, second = live_together(tmp_path, flags, die=("step", 6), how=[SIGTERM], double=True)
    assert first[0] == second[0] == 128 + SIGTERM
    assert checkpoint(tmp_path / "r")["step"] == 7
    assert [end[0] for end in live_together(tmp_path, flags, double=True)] == [0, 0]
    assert live(tmp_path, [*flags, "--out", "one"], double=True)[0] == 0
    assert difference(checkpoint(tmp_path / "r"), checkpoint(tmp_path / "one")) < 1e-10


def test_a_signal_to_one_saves_and_ends_both(tiny, tmp_path):
    """Whichever gets it: all stop after the same step."""
    die = dict(die=("step", 6), how=[SIGTERM])
    flags = [*tiny, "--epochs", 3]
    first, second = live_together(tmp_path, flags, faults={1: die}, double=True)
    assert second[0] == 128 + SIGTERM and first[0] == 1
    assert checkpoint(tmp_path / "r")["step"] == 7


WRONG = {
    "--tau 0": "--tau 0 is out of range",
    "--dataset tiny-imagenet --data-dir nowhere": "Tiny ImageNet in 'nowhere'",
    "--batch-size 31": "take 30",
    "--base-size 63": "no patch of 63 positions",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_is_wrong_ends_both_processes(tiny, tmp_path, flags):
    """With status 2, and at least one of them says why, in one line."""
    ends = live_together(tmp_path, [*tiny, "--epochs", 1, *flags.split()])
    assert [status for status, _, _ in ends] == [2, 2], ends
    told = [stderr for _, _, stderr in ends if stderr]
    assert told
    for stderr in told:
        refused((2, "", stderr), WRONG[flags])
    assert not (tmp_path / "r").exists()


def test_a_spoiled_image_ends_both_processes(tiny, tmp_path):
    root = folder(tmp_path / "images")
    (tmp_path / "images/train/b/2.png").write_bytes(b"no image")
    ends = live_together(tmp_path, [*tiny, "--data-dir", root, "--epochs", 1])
    assert [status for status, _, _ in ends] == [2, 2], ends
    refused(ends[0], "2.png can't be read")
    assert ends[1][2] == "" and not (tmp_path / "r").exists()


def test_other_settings_end_both_processes_and_touch_nothing(tiny, tmp_path):
    assert live(tmp_path, [*tiny, "--epochs", 1, "--out", "r"])[0] == 0
    before = contents(tmp_path / "r")
    ends = live_together(tmp_path, [*tiny, "--epochs", 1, "--tau", 0.2])
    assert [status for status, _, _ in ends] == [2, 2], ends
    refused(ends[0], "--tau 0.1", "take another --out")
    assert contents(tmp_path / "r") == before
    both = live_together(tmp_path, [*tiny, "--epochs", 1])  # finished
    assert [status for status, _, _ in both] == [0, 0] and "is finished" in both[0][1]
