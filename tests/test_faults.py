"""What can go wrong in days, done on purpose: kills, full disks, lost processes, half precision, foreign files, bad input.

The command runs here in processes that are forked from one that has imported train.py already, so that a life costs
tenths of a second.  Each writes its stdout and stderr to files, dies where the test says, and can't harm the others.
"""
import argparse
import gc
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from conftest import ROOT, blobs, relative
from torchvision.transforms.v2.functional import to_pil_image

import backbones
import checkpoint as ckpt
import data
import launch
import losses
import probe
import train

fork = multiprocessing.get_context("forkserver")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nursery")]
STEPS = 24  # of a run with six epochs of the images below


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags of a run on 128 images of 16 px, 32 a batch: four steps an epoch, a few milliseconds each."""
    root = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    for split, n in (("train", 64), ("test", 8)):
        for c in range(2):
            (root / split / str(c)).mkdir(parents=True)
            images = (blobs(n, 16, 3).clamp(max=1) * (255 - 100 * c)).to(torch.uint8)  # (n, 3, 16, 16)
            for i, image in enumerate(images):
                to_pil_image(image).save(root / split / str(c) / f"{i}.png")
    return ["--dataset", "folder", "--data-dir", str(root), "--group", "trans", "--width", "0.125", "--batch-size", "32",
            "--lr", "2", "--warmup-epochs", "0.5", "--checkpoint-minutes", "0"]


# ---------------------------------------------------------------- a life of the command
def life(folder, flags, die=None, limit=None, env=(), curves=False, **streams):
    """What happens in a forked process: train.py's command, alone in a folder, with a fault.

    die: see `die_at`; limit: no file may grow beyond so many bytes; curves: draw them, which takes a while; streams: for stdout and stderr, the file to write it to,
    "|" for a pipe that nobody reads, or None if it is closed, as the interpreter then finds it."""
    os.chdir(folder)
    os.environ.update(env)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        path = streams.get(name, name)
        if path is None:
            os.close(fd)
            setattr(sys, name, None)
        elif path == "|":
            reader, writer = os.pipe()
            os.dup2(writer, fd)
            os.close(reader)
            setattr(sys, name, open(fd, "w", closefd=False))  # not the old stream, which can seek
        else:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    torch.set_num_threads(1)
    train.tqdm.set_lock(threading.RLock())  # its own would be shared memory, which a killed life leaves behind
    evaluate = probe.linear_accuracy
    probe.linear_accuracy = lambda *args, **more: evaluate(*args, **more, steps=20, epochs=1)  # 3,000 would teach these tests nothing
    if not curves:
        probe.draw_curves = lambda folder: None
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    die_at(**die or {})
    sys.exit(launch.command(lambda: train.main([str(flag) for flag in flags]), "train.py"))


def die_at(call=None, byte=None, rename=None, step=None, how=signal.SIGKILL):
    """Send this process a signal (kill -9): at its function call number `call`, after `byte` bytes of checkpoints, at the `rename`-th time that a
    checkpoint becomes .previous, or before step `step`."""
    def die():
        frame, names = sys._getframe(1), []
        while frame:
            if frame.f_code.co_filename in (train.__file__, ckpt.__file__):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        with open("deaths", "a") as file:
            file.write(json.dumps(names) + "\n")
        os.kill(os.getpid(), how)

    class Mortal(io.FileIO):
        written = 0

        def write(self, content):
            left = byte - Mortal.written
            Mortal.written += len(content)
            if len(content) > left:
                super().write(content[:left])
                die()
            return super().write(content)

    counts = Counter()

    def after(count, key, at, act=None):
        counts[key] += count
        if at and counts[key] >= at:
            sys.setprofile(None)
            die()
        return act

    replace, rate = os.replace, train.learning_rate
    if byte:
        ckpt.open = lambda path, *more, **named: (Mortal if path.endswith("checkpoint.pt.tmp") else open)(path, *more, **named)
    if rename:
        os.replace = lambda a, b: after(b.endswith(".previous"), "rename", rename, replace(a, b))
    if step is not None:
        train.learning_rate = lambda t, *more: (t == step and die(), rate(t, *more))[1]
    if call:
        sys.setprofile(lambda frame, event, arg: after("call" in event, "call", call))


def begin(folder, flags, **fault):
    folder.mkdir(exist_ok=True, parents=True)
    process = fork.Process(target=life, args=(str(folder), flags), kwargs=fault)
    process.start()
    return process


def live(folder, flags, **fault):
    """One life to its end: → exit status (negative: the signal), stdout, stderr."""
    process = begin(folder, flags, **fault)
    process.join(120)
    return (process.exitcode, *((folder / name).read_text() for name in ("stdout", "stderr") if (folder / name).exists()))


def refused(folder, flags, *words, **fault):
    """The command must say it in one line, with status 2, and leave no file half-written."""
    status, *_, stderr = live(folder, flags, **fault)
    assert status == 2 and stderr.startswith("train.py: ") and stderr.count("\n") == 1, (status, stderr)
    assert all(word in stderr for word in words), stderr
    assert not [path for path in folder.rglob("*.tmp") if path.read_text() != "mine"]
    return stderr


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(a, b):
    """Two checkpoints' weights, momenta and scaler, bit for bit."""
    flat = lambda state: {**state["model"], **dict(enumerate(state["momentum"]))}
    a_all, b_all = flat(a), flat(b)
    return (a_all.keys() == b_all.keys() and all(torch.equal(a_all[k], b_all[k]) for k in a_all)
            and a["step"] == b["step"] and a["scaler"] == b["scaler"])


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The checkpoint of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, _, stderr = live(folder, [*tiny, "--epochs", 6, "--out", "r"])
    assert status == 0 and stderr == "", stderr
    state = checkpoint(folder / "r")
    assert state["step"] == STEPS
    return state


# ---------------------------------------------------------------- kills
def test_killed_at_twenty_random_moments_and_resumed(tiny, tmp_path, unbroken):
    """Six at any function call of the first steps, eight in the middle of writing a checkpoint, four between its two
    renames, and two late ones, in the curves and the probe (a life starts with 50,000 calls, a step is 12,000)."""
    draw = random.Random(0)
    moments = ([dict(call=draw.randrange(1, 100_000)) for _ in range(6)] + [dict(byte=draw.randrange(1, 150_000)) for _ in range(8)]
               + [dict(rename=1)] * 4)
    draw.shuffle(moments)
    moments += [dict(call=draw.randrange(250_000, 400_000)), dict(call=draw.randrange(52_000, 58_000))]
    flags = [*tiny, "--epochs", 6, "--out", "r"]
    for moment in moments:
        status = live(tmp_path, flags + ["--resume"] * (tmp_path / "r/config.json").exists(), die=moment, curves=True)[0]
        assert status == -signal.SIGKILL, f"{moment} came after the end"
    status, _, stderr = live(tmp_path, [*flags, "--resume"])
    assert status == 0, stderr
    deaths = [json.loads(line) for line in open(tmp_path / "deaths")]
    print(Counter(names[0] for names in deaths))
    assert len(deaths) == 20 and sum("save" in names for names in deaths) >= 12
    assert same(checkpoint(tmp_path / "r"), unbroken)
    steps = [json.loads(line).get("step") for line in open(tmp_path / "r/metrics.jsonl")][1:]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_stopped_by_a_signal_and_resumed(tiny, tmp_path, unbroken):
    flags = [*tiny, "--epochs", 6, "--out", "r"]
    for step, how in ((6, signal.SIGTERM), (7, signal.SIGINT), (15, signal.SIGHUP)):
        status, _, stderr = live(tmp_path, flags + ["--resume"] * (step > 6), die=dict(step=step, how=how))
        assert (status, stderr) == (128 + how, f"stopped after step {step + 1} of {STEPS}: add --resume to go on\n")
    assert live(tmp_path, [*flags, "--resume"])[0] == 0 and same(checkpoint(tmp_path / "r"), unbroken)
    steps = [json.loads(line).get("step") for line in open(tmp_path / "r/metrics.jsonl")][1:]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS  # no line twice


def test_a_signal_in_the_last_step_is_not_lost(tiny, tmp_path):
    """It comes while the last checkpoint is written."""
    flags = [*tiny, "--epochs", 1, "--out", "r"]
    status, _, stderr = live(tmp_path, flags, die=dict(rename=4, how=signal.SIGTERM))
    assert (status, stderr) == (128 + signal.SIGTERM, "stopped after step 4 of 4: add --resume to go on\n")
    assert not (tmp_path / "r/result.json").exists()
    assert live(tmp_path, [*flags, "--resume"])[0] == 0 and (tmp_path / "r/result.json").exists()


def test_killed_after_the_first_log_line_and_before_the_first_saving(tiny, tmp_path):
    """The log then has a step that no checkpoint has, but the initial weights are saved.  A checkpoint of another precision is refused."""
    flags = [*tiny, "--epochs", 1, "--batch-size", 2, "--checkpoint-minutes", 10, "--out", "r"]
    assert live(tmp_path, flags, die=dict(step=52))[0] == -signal.SIGKILL
    assert checkpoint(tmp_path / "r")["step"] == 0 and '"step": 50' in (tmp_path / "r/metrics.jsonl").read_text()
    ours = checkpoint(tmp_path / "r")["precision"]  # bfloat16 where the CPU has it
    torch.save(checkpoint(tmp_path / "r") | dict(precision="float16"), tmp_path / "r/checkpoint.pt")
    refused(tmp_path, [*flags, "--resume"], f"precision is another run's (float16, not {ours})")
    torch.save(checkpoint(tmp_path / "r") | dict(precision=ours), tmp_path / "r/checkpoint.pt")
    assert live(tmp_path, [*flags, "--amp", "auto", "--resume"])[0] == 0 and checkpoint(tmp_path / "r")["step"] == 64


def test_another_process_in_the_folder_is_not_disturbed(tiny, tmp_path):
    import fcntl
    flags = [*tiny, "--epochs", 1, "--out", "r"]
    assert live(tmp_path, flags)[0] == 0
    lock = os.open(tmp_path / "r", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(tmp_path, [*flags, "--resume"], "another process is using r")
    os.close(lock)
    assert live(tmp_path, [*flags, "--resume"])[0] == 0


# ---------------------------------------------------------------- full disks, and folders that can't be written
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(tiny, tmp_path, unbroken):
    """No room for the checkpoint, for the log, for the curves; then a device that really says "no space left"."""
    flags = [*tiny, "--epochs", 6, "--out", "r", "--resume"]
    assert live(tmp_path, flags[:-1], die=dict(step=6))[0] == -signal.SIGKILL
    folder, size = tmp_path / "r", lambda name: (tmp_path / "r" / name).stat().st_size
    for limit, words in ((size("checkpoint.pt") - 1, "can't write r/checkpoint.pt (File too large): the last checkpoint is kept"),
                         (size("metrics.jsonl") + 1, "File too large")):
        before = (folder / "checkpoint.pt").read_bytes()
        refused(tmp_path, flags, words, "--resume", limit=limit, curves=True)
        assert (folder / "checkpoint.pt").read_bytes() == before
    os.symlink("/dev/full", folder / "checkpoint.pt.tmp")
    refused(tmp_path, flags, "No space left on device", "make room, then add --resume")
    assert (folder / "checkpoint.pt").read_bytes() == before
    status, _, stderr = live(tmp_path, flags)
    assert status == 0 and stderr == "" and same(checkpoint(folder), unbroken)


def test_a_result_that_can_not_be_written_is_there_after_the_next_resume(tiny, tmp_path):
    flags = [*tiny, "--epochs", 0, "--out", "r"]
    assert live(tmp_path, flags)[0] == 0
    result = tmp_path / "r/result.json"
    size = result.stat().st_size
    result.unlink()
    refused(tmp_path, [*flags, "--resume"], "File too large", "--resume", limit=size - 1)
    assert not result.exists()
    assert live(tmp_path, [*flags, "--resume"])[0] == 0 and json.load(open(result))["top1"] >= 0


@pytest.mark.parametrize("out", ["file", "file/below", "x" * 300])
def test_a_folder_that_can_not_be_made_is_refused(tiny, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    refused(tmp_path, [*tiny, "--epochs", 0, "--out", out], "can't write into")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("streams", [dict(stdout=None), dict(stderr=None), dict(stdout="/dev/full"), dict(stderr="/dev/full"), dict(stdout="|"), dict(stderr="|")], ids=str)
def test_a_stream_that_is_closed_or_full_does_not_end_a_run(tiny, tmp_path, streams):
    """The result is in the folder; what can't be written is dropped."""
    status, *told = live(tmp_path, [*tiny, "--epochs", 0, "--out", "r"], **streams)
    assert status == 0 and not any("Traceback" in text or "Exception" in text for text in told), told
    assert json.load(open(tmp_path / "r/result.json"))["top1"] >= 0


def test_a_command_whose_streams_the_shell_closed_does_not_end_a_run(tiny, tmp_path):
    command = f"{sys.executable} {ROOT}/train.py {' '.join(tiny)} --epochs 0 --out r >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0 and json.load(open(tmp_path / "r/result.json"))["top1"] >= 0


def test_a_folder_that_holds_a_run_is_left_alone(tiny, tmp_path):
    flags = [*tiny, "--epochs", 1, "--out", "r"]
    assert live(tmp_path, flags)[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    refused(tmp_path, flags, "already holds a run", "take --out r-2")
    refused(tmp_path, [*flags, "--resume", "--tau", "0.2"], "--tau was 0.1, is 0.2")
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


def test_a_folder_with_another_ones_files_is_left_alone(tiny, tmp_path):
    flags, folder = [*tiny, "--epochs", 0, "--out", "r"], tmp_path / "r"
    folder.mkdir()
    for name in ("checkpoint.pt", "checkpoint.pt.previous", "metrics.jsonl", "result.json", "config.json.tmp"):
        (folder / name).write_text("mine")
        refused(tmp_path, flags, f"r holds {name} but no config.json: take --out r-2")
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
    for foreign in ("", "{", "[]", "{}", '{"config": 5}', '{"config": []}', '{"config": ["a"]}', '{"config": [[1, 2]]}', "[" * 10 ** 5, "\udcff"):
        (folder / "config.json").write_bytes(foreign.encode("utf-8", "surrogateescape"))
        refused(tmp_path, [*flags, "--resume"], "choose another --out")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(tmp_path, [*flags, "--resume"], "not a regular file")


# ---------------------------------------------------------------- many processes
def ranks(folder, flags, world=2, **faults):
    """The command in several forked processes that meet on a free port; faults: rank0=dict(…).  → (status, stderr) each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = dict(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    flags = [*flags, "--out", str(folder / "r")]
    processes = [begin(folder / str(r), flags, env=dict(env, RANK=str(r), LOCAL_RANK=str(r)), **faults.get(f"rank{r}", {}))
                 for r in range(world)]
    for process in processes:
        process.join(120)
    return [(p.exitcode, (folder / str(r) / "stderr").read_text()) for r, p in enumerate(processes)]


@pytest.fixture(scope="module")
def unbroken_pair(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    assert ranks(folder, [*tiny, "--epochs", 6]) == [(0, ""), (0, "")]
    return checkpoint(folder / "r")


def test_two_processes_train_as_one(tiny, tmp_path):
    """The momenta after four steps, since weights move little.  Float32 sums in another order: measured 7e-5 at most."""
    flags = [*tiny, "--epochs", 1, "--amp", "off"]
    assert live(tmp_path, [*flags, "--out", "one"])[0] == 0 and ranks(tmp_path, flags) == [(0, "")] * 2
    one, two = (checkpoint(tmp_path / name)["momentum"] for name in ("one", "r"))
    far = [relative(b, a) for a, b in zip(one, two, strict=True) if a.dim() > 1]
    assert max(far) < 1e-3, far


DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
import launch, train
rate = train.learning_rate
if os.environ["RANK"] == "1":
    train.learning_rate = lambda t, *more: os.kill(os.getpid(), signal.SIGKILL) if t == 6 else rate(t, *more)
sys.exit(launch.command(train.main, 'train.py'))
"""


def torchrun(folder, script, *flags, port=()):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *(port or ["--standalone"]), "--nproc_per_node=2", script,
                           *map(str, flags)], cwd=folder, text=True, capture_output=True, timeout=120, env=dict(os.environ, OMP_NUM_THREADS="1"))


def test_a_process_that_dies_under_torchrun_ends_the_job_and_resume_finishes_it(tiny, tmp_path, unbroken_pair):
    (tmp_path / "dies.py").write_text(DIES.format(root=ROOT))
    done = torchrun(tmp_path, "dies.py", *tiny, "--epochs", 6, "--out", "r")
    assert done.returncode != 0
    top = "\n".join(done.stderr.splitlines()[:6])
    assert "lost the other processes" in top or "exitcode: -9" in top, done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed")[0], done.stderr
    assert 1 <= checkpoint(tmp_path / "r")["step"] <= 6
    assert ranks(tmp_path, [*tiny, "--epochs", 6, "--resume"]) == [(0, ""), (0, "")]
    assert same(checkpoint(tmp_path / "r"), unbroken_pair)


def test_the_first_process_dies_and_the_other_says_so(tiny, tmp_path, unbroken_pair):
    flags = [*tiny, "--epochs", 6]
    (first, _), (second, stderr) = ranks(tmp_path, flags, rank0=dict(die=dict(step=6)))
    assert first == -signal.SIGKILL and second == 2
    assert stderr.startswith("train.py: lost the other processes") and stderr.count("\n") == 1 and "--resume" in stderr, stderr
    assert ranks(tmp_path, [*flags, "--resume"]) == [(0, ""), (0, "")]
    assert same(checkpoint(tmp_path / "r"), unbroken_pair)


def test_a_full_disk_ends_every_process(tiny, tmp_path):
    (first, stderr), (second, other) = ranks(tmp_path, [*tiny, "--epochs", 6], rank0=dict(limit=8000))
    assert first == 2 and "can't write" in stderr and stderr.count("\n") == 1
    assert second == 2 and "lost the other processes" in other and other.count("\n") == 1


def test_wrong_flags_under_torchrun_are_told_once(tmp_path):
    """One line of train.py's; torchrun adds its own report."""
    done = torchrun(tmp_path, os.path.join(ROOT, "train.py"), "--group", "affine")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(told) == 1 and "invalid choice: 'affine'" in told[0], done.stderr


def test_a_port_in_use(tiny, tmp_path):
    """By torchrun's own word where torchrun meets there, by train.py's where the variables were set by hand."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = torchrun(tmp_path, os.path.join(ROOT, "train.py"), "--epochs", 0, port=["--master-addr=127.0.0.1", f"--master-port={port}"])
        assert done.returncode != 0 and "EADDRINUSE" in done.stderr, done.stderr
        env = dict(LOCAL_RANK="0", RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        status, _, stderr = live(tmp_path, [*tiny, "--out", "r"], env=env)
        assert status == 2 and stderr.splitlines()[-1].startswith(f"train.py: the processes can't meet at 127.0.0.1:{port}"), stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("env, words", [
    (dict(LOCAL_RANK="0", RANK="0", WORLD_SIZE="2", MASTER_PORT="1"), "('MASTER_ADDR')"),
    (dict(LOCAL_RANK="one", RANK="0", WORLD_SIZE="2", MASTER_ADDR="h", MASTER_PORT="1"), "not a number"),
    (dict(LOCAL_RANK="0", RANK="0", WORLD_SIZE="0", MASTER_ADDR="h", MASTER_PORT="1"), "do not go together"),
    (dict(LOCAL_RANK="2", RANK="2", WORLD_SIZE="2", MASTER_ADDR="h", MASTER_PORT="1"), "do not go together"),
    (dict(LOCAL_RANK="0", RANK="0", WORLD_SIZE="2", MASTER_ADDR="h", MASTER_PORT="door"), "can't meet at h:door")])
def test_half_a_torchrun(tiny, tmp_path, env, words):
    refused(tmp_path, [*tiny, "--out", "r"], words, env=env)
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- half precision
def test_half_precision_loss_and_gradients_are_those_of_float64():
    """One step of the whole network on black and white strokes, with n bits of significand; the median of ten networks.

    The loss is rounded by a few units of 2⁻ⁿ.  The gradient by a few units of 2^(-n/2): rounding moves a share of about
    2⁻ⁿ of the ReLUs across zero, and each of those changes its gradient by all of it, so that the squares add up to 2⁻ⁿ."""
    x = torch.nn.functional.pad((blobs(32, 28) > 0.3).double(), (0, 1, 0, 1))  # (32, 1, 29, 29)
    args = argparse.Namespace(loss="hssl", objective="infonce", tau=0.1)

    def step(dtype, group, seed):
        torch.manual_seed(seed)
        f, h, classifier = backbones.build("mnist", group, width=0.125)
        draws = losses.Draws("hssl", group, True, f.order, 29, 8, f.stride)
        kept = torch.float64 if dtype == torch.float64 else torch.float32  # of the weights
        model = train.Objective(args, f, h, classifier, draws).train().to(kept)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float64):
            loss, _, _ = model(x.to(kept), None, *draws(32, train.seeded(seed, 0, 2)))
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    exact = {(group, seed): step(torch.float64, group, seed) for group in ("rot", "trans") for seed in range(5)}
    for dtype, n in ((torch.bfloat16, 8), (torch.float16, 11)):
        off = []
        for key, (true, right) in exact.items():
            loss, grad = step(dtype, *key)
            off.append((2 ** n * abs(loss - true) / true, 2 ** (n / 2) * relative(grad, right)))
        of_loss, of_grad = (float(torch.tensor(o).median()) for o in zip(*off))
        print(dtype, f"loss {of_loss:.2f} × 2⁻ⁿ, gradient {of_grad:.2f} × 2^(-n/2)", off)
        assert of_loss < 2 and of_grad < 6, (dtype, off)


def test_bf16_stays_near_float32(tiny, tmp_path):
    """100 steps, a line every fourth.  With a step of fixed length for each tensor (LARS) a run this small amplifies every
    rounding, so weights are not compared; but its curve must stay nearer to float32's than half the way to another
    seed's, the mean of two."""
    flags = [*tiny, "--group", "rot", "--epochs", 25, "--warmup-epochs", 1, "--checkpoint-minutes", 10]
    runs = dict(float32=["--amp", "off"], bf16=["--amp", "bf16"], seed1=["--amp", "off", "--seed", 1], seed2=["--amp", "off", "--seed", 2])
    for process in [begin(tmp_path / name, [*flags, *more, "--out", "r"]) for name, more in runs.items()]:  # side by side
        process.join(120)
        assert process.exitcode == 0
    logs = {name: ckpt.read_lines(str(tmp_path / name / "r/metrics.jsonl")) for name in runs}
    curve = {name: torch.tensor([row["loss"] for row in rows if "loss" in row]) for name, rows in logs.items()}  # (25,) each
    assert all(len(c) == 25 for c in curve.values())
    far = {name: (curve[name] - curve["float32"]).abs() for name in runs}
    final = {name: torch.cat([v.flatten() for k, v in checkpoint(tmp_path / name / "r")["model"].items() if k.startswith("f.convs")])
             for name in runs}
    said = "; ".join(f"{name}: loss differs by {far[name].mean():.3f} (mean), {far[name].max():.3f} (at most), at the end by "
                     f"{far[name][-6:].mean():.3f}, weights by {relative(final[name], final['float32']):.4f}" for name in runs)
    print(said)
    assert 0 < far["bf16"].mean() < (far["seed1"].mean() + far["seed2"].mean()) / 2 / 2, said
    assert far["bf16"].max() < (far["seed1"].max() + far["seed2"].max()) / 2 / 2, said


def test_fp16_with_its_scaler(tiny, tmp_path):
    """A scale that makes the first gradients inf: those steps are skipped and the scale halved, then it learns; the scale
    is in the checkpoint, and a resumed run goes on with it, bit for bit."""
    flags = [*tiny, "--amp", "fp16", "--epochs", 6]
    assert live(tmp_path, [*flags, "--out", "whole"])[0] == 0
    assert live(tmp_path, [*flags, "--out", "r"], die=dict(step=10))[0] == -signal.SIGKILL
    assert live(tmp_path, [*flags, "--out", "r", "--resume"])[0] == 0
    whole = checkpoint(tmp_path / "whole")
    print(whole["scaler"])
    assert same(checkpoint(tmp_path / "r"), whole) and 0 < whole["scaler"]["_growth_tracker"] <= STEPS

    assert live(tmp_path, [*flags, "--out", "high"], die=dict(step=1))[0] == -signal.SIGKILL
    state = checkpoint(tmp_path / "high")
    state["scaler"]["scale"] = 2.0 ** 24  # gradients of this size overflow fp16's 65,504
    torch.save(state, tmp_path / "high/checkpoint.pt")
    assert live(tmp_path, [*flags, "--out", "high", "--resume"], die=dict(step=2))[0] == -signal.SIGKILL
    skipped = checkpoint(tmp_path / "high")
    assert skipped["step"] == 2 and skipped["scaler"]["scale"] == 2.0 ** 23
    learned = [k for k in state["model"] if k.endswith(("weight", "bias"))]
    assert all(torch.equal(skipped["model"][k], state["model"][k]) for k in learned)
    assert live(tmp_path, [*flags, "--out", "high", "--resume"])[0] == 0
    end = checkpoint(tmp_path / "high")
    print(end["scaler"])
    assert end["step"] == STEPS and 1 <= end["scaler"]["scale"] < 2.0 ** 23 and end["scaler"]["_growth_tracker"] > 0
    assert not all(torch.equal(end["model"][k], state["model"][k]) for k in learned)


def test_skipping_that_never_ends_is_told(tiny, tmp_path):
    flags = [*tiny, "--amp", "fp16", "--epochs", 6, "--out", "r"]
    assert live(tmp_path, flags, die=dict(step=1))[0] == -signal.SIGKILL
    state = checkpoint(tmp_path / "r")
    state["scaler"]["scale"] = 2.0 ** -25
    torch.save(state, tmp_path / "r/checkpoint.pt")
    refused(tmp_path, [*flags, "--resume"], "not finite at step 1", "the last checkpoint is kept")


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path):
    """A finite gradient can still make an infinite step, and only the next loss would show it."""
    refused(tmp_path, [*tiny, "--epochs", 9, "--weight-decay", "1e6", "--lr", "1e6", "--out", "r"], "not finite", "smaller --lr", "the last checkpoint is kept")
    for file in (tmp_path / "r").glob("checkpoint*"):
        assert all(v.isfinite().all() for v in torch.load(file, weights_only=True)["model"].values())


# ---------------------------------------------------------------- every objective, and resumed
@pytest.mark.parametrize("flags", [["--objective", "ntxent", "--backbone", "cnn", "--group", "scale"], ["--objective", "bilinear"], ["--objective", "byol"],
                                   ["--objective", "simsiam", "--backbone", "mlp"], ["--loss", "hybrid", "--group", "rotscale"]], ids=lambda flags: flags[1])
def test_every_objective_runs_and_resumes_bit_for_bit(tiny, tmp_path, flags):
    flags = [*tiny, "--epochs", 2, *flags]
    status, said, stderr = live(tmp_path, [*flags, "--out", "whole"])
    assert status == 0 and stderr == "" and "8 steps" in said, stderr
    assert live(tmp_path, [*flags, "--out", "r"], die=dict(step=5))[0] == -signal.SIGKILL
    assert live(tmp_path, [*flags, "--out", "r", "--resume"])[0] == 0
    whole = checkpoint(tmp_path / "whole")
    assert whole["step"] == 8 and same(checkpoint(tmp_path / "r"), whole)
    result, line = json.load(open(tmp_path / "r/result.json")), ckpt.read_lines(str(tmp_path / "r/metrics.jsonl"))[-1]
    assert result["top1"] >= 0 and {"spread", "positive_rank", "chance"} <= line.keys() and abs(line["loss"]) < 20
    slow = [k for k in whole["model"] if k.startswith("target.") and k.endswith("weight")]
    assert bool(slow) == ("byol" in flags)
    if slow:  # follows f slowly: it is neither f nor where it was
        fast = whole["model"][slow[0].replace("target.0.", "f.")]
        assert 0 < relative(whole["model"][slow[0]], fast) < 0.1


def test_looking_during_training_changes_nothing(tiny, tmp_path, unbroken):
    assert live(tmp_path, [*tiny, "--epochs", 6, "--probe-epochs", 2, "--out", "r"])[0] == 0
    assert same(checkpoint(tmp_path / "r"), unbroken)
    assert [row["step"] for row in ckpt.read_lines(str(tmp_path / "r/metrics.jsonl")) if "top1" in row] == [8, 16, 24]


def test_one_image_is_no_batch_for_an_untrained_batchnorm(tiny, tmp_path):
    """The training images would end in a batch of one, and BatchNorm over one vector has no variance."""
    data_dir = shutil.copytree(tiny[3], tmp_path / "images")
    for i in range(129):
        shutil.copy(data_dir / "train/0/0.png", data_dir / f"train/0/more{i}.png")
    flags = ["--dataset", "folder", "--data-dir", data_dir, "--group", "trans", "--backbone", "mlp", "--width", "0.02", "--loss", "frozen", "--out", "r"]
    assert live(tmp_path, flags)[0] == 0
    assert json.load(open(tmp_path / "r/result.json"))["train_images"] == 257


def test_unfed_reaches_the_probe(tiny, tmp_path):
    found = []
    for more in ([], ["--unfed"]):
        assert live(tmp_path, [*tiny, "--loss", "frozen", *more, "--out", f"r{len(more)}"])[0] == 0
        found.append(json.load(open(tmp_path / f"r{len(more)}/result.json"))["invariance"])
    assert relative(*map(torch.tensor, found)) > 1e-3


# ---------------------------------------------------------------- command lines, data, other people's folders
VALUES = {  # what a hand may type: good ones, then bad ones
    "--dataset": (["folder"], ["svhn", "", "Folder", "tiny-imagenet"]),
    "--data-dir": ([], ["nowhere", "", "\udcff", "a\nb", "/dev/null"]),
    "--train-size": (["64", "32", "１２０"], ["1", "1e2", "10000000000000000000000", "-4", ""]),
    "--test-size": (["1", "9"], ["0", "17", "ten"]),
    "--group": (["trans", "rot"], ["TRANS", "affine", "é"]),
    "--loss": (["hssl", "assl", "frozen", "supervised", "hybrid"], ["nt-xent", "🙂"]),
    "--objective": (["infonce", "ntxent", "bilinear", "byol", "simsiam"], ["moco"]),
    "--backbone": (["equivariant", "cnn", "mlp"], ["resnet"]),
    "--epochs": (["0", "1", "1_0"], ["-1", "1.5", "nan", "", "٣x", "9" * 5000]),
    "--batch-size": (["2", "32", "31"], ["0", "1", "999", "0x20", "None"]),
    "--lr": (["0", "1e-3", "2"], ["nan", "inf", "-1", "1,5", "1e400"]),
    "--warmup-epochs": (["0", "0.5", "100"], ["1e308", "-0.1", "a few"]),
    "--weight-decay": (["0", "1e-4"], ["-1e-4", "1e38", ""]),
    "--tau": (["0.1", "1e-3"], ["0", "-1", "nan", "1e-45"]),
    "--base-size": (["1", "2"], ["0", "63", "999999999", "1.0"]),
    "--max-distance": (["4", "1e9"], ["0", "0.5", "nan"]),
    "--distance": (["euclidean", "topological"], ["cosine"]),
    "--width": (["0.125", "0.1", "1e-9"], ["0", "17", "wide", "-inf"]),
    "--amp": (["off", "bf16", "fp16"], ["on", "float8"]),
    "--seed": (["0", "2147483647"], ["-1", "2147483648", "π"]),
    "--checkpoint-minutes": (["0", "1e300"], ["-1", "soon"]),
    "--strength": (["0.1"], ["0.6", "-1"]), "--functions": (["3"], ["0", "12"]), "--pool": (["max"], ["median"]), "--epsilon": (["0.1"], ["-1", "1e9"]),
    "--out": (["new", "ü 🙂", "\udcff", "a\nb", "deep/er"], ["r", "file", "file/x", "x" * 300]),
    "--resume": ([], []), "--help": ([], []), "--no-such": (["1"], [""]), "-1": ([], []), "--": ([], []), "stray": ([], []),
}


def command_line(draw):
    """Up to five random flags: good and bad values, none, one too many, given twice."""
    line = []
    for _ in range(draw.randrange(6)):
        flag = draw.choice([f for f in VALUES if f not in ("--help", "--no-such", "-1", "--", "stray")] if draw.random() < 0.95 else list(VALUES))
        good, bad = VALUES[flag]
        values = good if good and draw.random() < 0.7 else good + bad
        style = draw.random()
        if not values or style < 0.03:
            line.append(flag)
        else:
            value = draw.choice(values)
            line += [f"{flag}={value}"] if style < 0.3 else [flag, value]
    return line


def many_lives(folder, lines):
    """In a forked process: the command once for each line; one JSON object each, the exit status and what it said."""
    os.chdir(folder)
    torch.set_num_threads(1)
    evaluate = probe.linear_accuracy
    probe.linear_accuracy = lambda *args, **more: evaluate(*args, **more, steps=20, epochs=1)
    with open("lives", "w") as log:
        for line in lines:
            os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            try:
                status = launch.command(lambda: train.main(line), "train.py")
            except SystemExit as stop:
                status = stop.code
            except BaseException as error:  # what would be a traceback
                status = repr(error)
            gc.collect()  # of what it left, the lock on its folder
            sys.stdout.flush()
            log.write(json.dumps(dict(line=line, status=status, stderr=open("stderr", newline="").read())) + "\n")
            log.flush()


def test_a_hundred_random_command_lines(tiny, tmp_path):
    """Each ends with status 0, or with 2 and one line; and the run that is there in r stays as it is."""
    assert live(tmp_path, [*tiny, "--epochs", 1, "--out", "r"])[0] == 0
    (tmp_path / "file").write_text("mine")
    kept = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    draw = random.Random(0)
    lines = [[*tiny, "--epochs", draw.choice("0001"), *draw.choice([[], ["--out", "r"], *[["--out", f"new{i}"]] * 3]), *command_line(draw)]
             for i in range(100)]
    process = fork.Process(target=many_lives, args=(str(tmp_path), lines))
    process.start()
    process.join()
    lives = [json.loads(line) for line in open(tmp_path / "lives")]
    assert len(lives) == 100 and process.exitcode == 0
    for one in lives:
        flags = one["line"][len(tiny):]
        assert one["status"] in (0, 2), (flags, one)
        if one["status"] == 2:
            assert one["stderr"].startswith("train.py: ") and one["stderr"].count("\n") == 1 == len(one["stderr"].splitlines()), (flags, one)
    print(Counter(one["status"] for one in lives), *sorted({one["stderr"].strip()[:150] for one in lives}), sep="\n")
    assert Counter(one["status"] for one in lives)[0] > 20 < Counter(one["status"] for one in lives)[2]
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == kept and (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.rglob("*.tmp"))


def png(path, size=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(torch.randint(256, (3, *([size] * 2 if isinstance(size, int) else size)), dtype=torch.uint8)).save(path)


BAD_DATA = {  # what is done to the folder, flags, words of the answer
    "test images of another size": (lambda root: [png(p, 20) for p in root.glob("test/*/*.png")], [], ["test images 20 × 20"]),
    "not square": (lambda root: [png(p, (16, 18)) for p in root.glob("*/*/*.png")], [], ["make them square"]),
    "no test folder": (lambda root: shutil.rmtree(root / "test"), [], ["no test or val folder"]),
    "a class of the test images that is in no training image": (lambda root: png(root / "test/zebra/0.png"), [], ["zebra"]),
    "more test images than there are": (lambda root: None, ["--test-size", 5], ["has 4 test images"]),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_are_named_before_anything_is_written(tiny, tmp_path, what):
    spoil, flags, words = BAD_DATA[what]
    root = tmp_path / "images"
    for part, n in (("train", 6), ("test", 2)):
        for c in "01":
            for i in range(n):
                png(root / part / c / f"{i}.png")
    spoil(root)
    line = [*tiny, "--data-dir", root, "--batch-size", 4, "--epochs", 1, "--out", "r"]
    refused(tmp_path, [*line, *flags], *words)
    assert not (tmp_path / "r").exists()


def test_mutated_images_are_read_or_named(tmp_path):
    draw, path = random.Random(0), tmp_path / "x"
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        to_pil_image(torch.randint(256, (3, 16, 16), dtype=torch.uint8)).save(buffer, kind)
        for _ in range(100):
            content = bytearray(buffer.getvalue())
            for _ in range(draw.randrange(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(content[:draw.choice([len(content), draw.randrange(len(content))])])
            try:
                assert data._read([str(path)]).shape[:2] == (1, 3)
            except data.DataError as error:
                assert "can't be read" in str(error)


def test_damaged_mnist_files_are_named(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for content in (b"\0\0\x08\x03\0\0\0\x02cut", b"\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1ccut"):  # in the header, and in the images
        for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (raw / f"{name}-ubyte").write_bytes(content)
        with pytest.raises(data.DataError, match="can't be read"):
            data.load("mnist", str(tmp_path))


@pytest.mark.parametrize("spoil", [
    lambda r: shutil.rmtree(r), lambda r: (r / "config.json").unlink(), lambda r: (r / "checkpoint.pt").unlink(),
    lambda r: os.truncate(r / "config.json", 100), lambda r: (r / "config.json").write_text("[]"),
    lambda r: (r / "config.json").write_text('{"config": 5}'), lambda r: (r / "config.json").write_text('{"config": {"dataset": "folder"}}'),
    lambda r: (r / "config.json").write_bytes(b"\xff\xfe"), lambda r: os.truncate(r / "checkpoint.pt", 1000),
    lambda r: (r / "checkpoint.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR."), lambda r: torch.save([1], r / "checkpoint.pt"),
    lambda r: torch.save({"model": [1]}, r / "checkpoint.pt"), lambda r: torch.save({"model": {1: 2}}, r / "checkpoint.pt"),
    lambda r: torch.save({"model": {"f.x": torch.ones(1)}}, r / "checkpoint.pt"),
    lambda r: torch.save(checkpoint(r) | dict(images="0"), r / "checkpoint.pt"),
    lambda r: (r / "config.json").write_text((r / "config.json").read_text().replace('"width": 0.125', '"width": 0.25')),
    lambda r: (r / "config.json").write_text((r / "config.json").read_text().replace('"width": 0.125', '"width": "wide"')),
    lambda r: (r / "config.json").write_text((r / "config.json").read_text().replace('"dataset": "folder"', '"dataset": "svhn"')),
], ids=["no folder", "no config", "no checkpoint", "cut config", "a list", "a number", "half a config", "no text", "cut checkpoint", "hostile",
        "foreign", "no dict", "no names", "other weights", "other images", "other shapes", "no width", "no data set"])
def test_a_folder_that_can_not_be_probed_is_told(tiny, tmp_path, finished, spoil):
    folder = tmp_path / "r"
    shutil.copytree(finished / "r", folder)
    spoil(folder)
    with pytest.raises((ckpt.UsageError, data.DataError)) as caught:
        probe.open_network(str(folder), tiny[3])
    assert "\n" not in str(caught.value) and not (tmp_path / "hacked").exists()


def test_the_probe_of_an_unfinished_run_says_so(tiny, tmp_path, capsys):
    assert live(tmp_path, [*tiny, "--epochs", 2, "--out", "r"], die=dict(step=5))[0] == -signal.SIGKILL
    probe.main([str(tmp_path / "r"), "--data-dir", tiny[3]])
    assert capsys.readouterr().err == "warning: this run has done 5 of 8 steps: train.py --resume goes on with it\n"
    found = json.load(open(tmp_path / "r/probe.json"))
    assert (found["step"], found["steps"]) == (5, 8)


def test_the_probe_says_it_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "probe.py"), "nowhere"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith("probe.py: nowhere holds no run") and done.stderr.count("\n") == 1
    with pytest.raises(ckpt.UsageError, match="there is no folder no"):
        probe.main(["nowhere", "--weights", "no/w.pt"])


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A folder with a finished run r."""
    folder = tmp_path_factory.mktemp("finished")
    assert live(folder, [*tiny, "--epochs", 1, "--out", "r"])[0] == 0
    return folder
