"""Lives: train.py's command in processes of their own, which die where a test says.

A life is forked from a process that has imported train.py and has never run a thread of torch (the
fixture `nursery`), so that it costs tenths of a second."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

import torch

import probe
import train

fork = multiprocessing.get_context("forkserver")


def life(folder, flags, die=None, how=(signal.SIGKILL,), hang=False, env=None, **world):
    """The command, alone in a folder, with stdout and stderr in files.

    die   ("call", n): at its n-th call of a function.  ("byte", n): after n bytes of checkpoints.
          ("replace", n): before the n-th checkpoint replaces an older one.  ("step", n): before
          step n.  ("measuring", n): before it measures for the n-th time.  Then this process gets
          the signals `how`, each a second after the one before
    hang  … while it hangs in a call in C, in which Python hears no signal
    env   variables of the environment
    world what else is different, see `change`"""
    os.chdir(folder)
    os.environ.update(env or {})
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    torch.set_num_threads(1)
    train.tqdm.set_lock(threading.RLock())  # its own is shared memory, which a kill leaves behind
    change(**world)
    came = []
    note_signals = train.note_signals

    def note(say):
        came.append(note_signals(say))
        return came[0]

    def send():
        for i, number in enumerate(how):
            time.sleep(1.1 if i else 0)
            os.kill(os.getpid(), number)
            while signal.getsignal(number) != signal.SIG_IGN and not came[0]:
                time.sleep(0.001)  # a thread hears the signal

    def fault():
        sys.setprofile(None)
        open("fault", "w").close()  # for a test that waits for it
        if hang:
            threading.Thread(target=send, daemon=True).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # takes many minutes
        else:
            send()

    train.note_signals = note
    if die:
        FAULTS[die[0]](die[1], fault)
    try:
        train.run(train.parse([str(flag) for flag in flags]))
    except train.UsageError as error:  # as at the end of train.py
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


def change(curves=False, ignored=(), double=False, cpu=None, memory=None):
    """Change the world of a life.

    curves   draw curves.png, which takes a while
    ignored  signals that its parent ignores
    double   everything is float64
    cpu      what torch.cpu.get_capabilities says
    memory   how many bytes this machine has"""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # else as without nohup and &
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    measure = train.measure
    train.measure = lambda *more: measure(*more[:-1], more[-1][:8])  # 8 images instead of 32
    if not curves:
        probe.draw_curves = lambda folder: None
    if cpu is not None:
        torch.cpu.get_capabilities = lambda: cpu
    if memory is not None:
        os.sysconf = dict(SC_PHYS_PAGES=1, SC_PAGE_SIZE=memory).get


# --------------------------------------------------------------------------------- its faults
def at_call(n, fault):
    calls = 0

    def profile(frame, event, arg):
        nonlocal calls
        calls += event == "call"
        if calls >= n:
            fault()

    sys.setprofile(profile)


def at_byte(n, fault):
    left = n

    class Mortal(io.FileIO):
        def write(self, content):
            nonlocal left
            content = bytes(content)
            left -= len(content)
            if left >= 0:
                return super().write(content)
            super().write(content[:left])
            fault()

    def mortal_open(path, *more):
        return (Mortal if str(path).endswith("checkpoint.pt.tmp") else open)(path, *more)

    train.open = mortal_open


def before(module, name, comes, fault):
    """Die before that call of module.name for whose arguments `comes` is true."""
    act = getattr(module, name)

    def mortal(*more, **named):
        if comes(*more):
            fault()
        return act(*more, **named)

    setattr(module, name, mortal)


def at_replace(n, fault):
    number = itertools.count(1)

    def comes(source, target):
        return target.endswith("checkpoint.pt") and next(number) == n

    before(os, "replace", comes, fault)


def at_step(n, fault):
    before(train, "learning_rate", lambda step, *more: step == n, fault)


def at_measuring(n, fault):
    number = itertools.count(1)
    before(probe, "evaluate", lambda *more: next(number) == n, fault)


FAULTS = dict(call=at_call, byte=at_byte, replace=at_replace, step=at_step, measuring=at_measuring)


# ---------------------------------------------------------------------------- from the outside
def begin(folder, flags, **fault):
    """Start a life → its process."""
    folder.mkdir(exist_ok=True, parents=True)
    process = fork.Process(target=life, args=(str(folder), flags), kwargs=fault)
    process.start()
    return process


def end(process, folder):
    """Wait for a life → exit status (negative: a signal ended it), stdout, stderr."""
    process.join(400)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("this life does not end")
    status = process.exitcode
    process.close()
    return status, (folder / "stdout").read_text(), (folder / "stderr").read_text()


def live(folder, flags, **fault):
    """One life to its end → exit status, stdout, stderr."""
    return end(begin(folder, flags, **fault), folder)


def live_together(folder, flags, faults=None, **fault):
    """The command in two processes that meet on a free port, in folder/0 and folder/1, with
    --out folder/r → (exit status, stdout, stderr) of each.

    fault   what both have;  faults: {rank: what this one has}"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        env = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        env |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        there = folder / str(rank)
        own = fault | (faults or {}).get(rank, {})
        processes.append(begin(there, [*flags, "--out", folder / "r"], env=env, **own))
    return [end(process, folder / str(rank)) for rank, process in enumerate(processes)]


def refused(result, *words):
    """The result of a life: it said in one line, with status 2, what can be mended."""
    status, _, stderr = result
    assert status == 2 and stderr.startswith("train.py: ") and stderr.count("\n") == 1, result
    assert all(word in stderr for word in words), stderr


# ------------------------------------------------------------------------------ what it leaves
def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def tensors(state):
    """All tensors of a checkpoint, weights, buffers and momenta: {name: tensor}."""
    found = dict(state["model"])
    for i, values in state["optimizer"]["state"].items():
        found |= {f"{i} {name}": value for name, value in values.items()}
    return found


def same(a, b):
    """Whether two checkpoints hold the same tensors, scaler, rates and step, bit for bit."""
    for name in ("step", "steps", "scaler", "precision"):
        if a[name] != b[name]:
            return False
    if a["optimizer"]["param_groups"] != b["optimizer"]["param_groups"]:
        return False
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log_of(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder, name):
    """The values with this name in metrics.jsonl, in order."""
    return [line[name] for line in log_of(folder) if name in line]


def contents(folder):
    """{path: bytes} of all files in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
