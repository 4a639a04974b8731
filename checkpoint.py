"""The files of a run: one locked folder for each run, complete files only, and checkpoints that are checked before use.

Needs no sibling: you can copy this file alone.

    lock = open_run("runs/a", config, resume=False)     # a new folder, or this run's own; other processes are kept out
    good = save("runs/a", state, None)                  # state: a dict of `step` and tensors, numbers, strings, None, lists, dicts
    state, good, warning = load("runs/a", fresh=state)  # the newest undamaged checkpoint that fits `fresh`, or None

For an optimiser save the tensors of its state as a list: optimizer.state_dict() has no entries before the first step, and so
does not fit.  Every problem that the user can fix raises a UsageError with a message of one line.  The last good checkpoint is always kept.
"""
import contextlib
import io
import json
import math
import os
import zipfile

import torch

OURS = ("checkpoint.pt", "curves.png", "metrics.jsonl", "result.json")  # a run's files, besides config.json


class UsageError(Exception):
    """A problem that the user can fix.  The message is one line that says how."""


@contextlib.contextmanager
def atomic_write(path, mode="w", keep=None):
    """Yield a temporary file, path.tmp; when the block ends, flush it to the disk and rename it to `path`.

    So `path` is never half-written.  keep: the old file is first renamed to this path.  After an error path.tmp is removed."""
    try:
        with open(path + ".tmp", mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep:
            os.replace(path, keep)
        os.replace(path + ".tmp", path)
    finally:
        with contextlib.suppress(OSError):  # after a success it is no longer there
            os.remove(path + ".tmp")


def is_file(path):
    """Whether the file exists.  Raises UsageError for a pipe, a folder or a device, since reading one could block forever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is not a regular file: move it away, or choose another --out")
    return os.path.exists(path)


def read_lines(path):
    """The JSON objects of a file, one on each line: a list of dicts.  Incomplete lines and other lines are skipped."""
    rows = []
    for line in open(path, errors="replace") if is_file(path) else ():
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def open_run(folder, config, resume, **more):
    """Make the folder of a new run, or check that this run may continue in it → the lock's file descriptor, or None.

    config: the settings that must be equal for a run to continue, a dict; `more` is also written.  Raises UsageError."""
    path = os.path.join(folder, "config.json")
    there = is_file(path)
    if resume and not there:
        raise UsageError(f"{folder} holds no run to go on with: leave out --resume")
    if there and not resume:
        raise UsageError(f"{folder} already holds a run: add --resume to go on with it, or take --out {free_name(folder)}")
    try:
        old = json.load(open(path))["config"] if there else config
        differ = [f"--{k.replace('_', '-')} was {old.get(k)}, is {config.get(k)}" for k in sorted({*old, *config}) if old.get(k) != config.get(k)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is not a run's configuration: choose another --out") from None
    if differ:
        raise UsageError("can't resume with other flags: " + ", ".join(differ))
    try:
        os.makedirs(folder, exist_ok=True)
        found = [name for name in sorted(os.listdir(folder)) if name.startswith(OURS) or name.endswith(".tmp")]
        if found and not there:
            raise UsageError(f"{folder} holds {found[0]} but no config.json: take --out {free_name(folder)}")
        lock = lock_folder(folder)
        if not there:
            with atomic_write(path) as file:
                json.dump(dict(config=config, **more), file, indent=1)
    except OSError as error:
        raise UsageError(f"can't write into {folder} ({error.strerror}): choose another --out") from None
    return lock


def free_name(folder):
    """folder-2, or -3, …: the first that does not exist."""
    return next(name for i in range(2, 10 ** 9) if not os.path.exists(name := f"{folder.rstrip('/')}-{i}"))


def lock_folder(folder):
    """Lock the folder until this process ends or is killed → a file descriptor, or None.  Raises UsageError."""
    with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks: there, two runs could use one folder
        import fcntl
        lock = os.open(folder, os.O_RDONLY)  # the folder itself, so there is no lock file
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UsageError(f"another process is using {folder}: wait for it, or choose another --out") from None
        return lock


def difference(saved, fresh, name="it"):
    """The first reason why `saved` can't replace `fresh`, as text; "" if there is none.

    Required: the same types, keys, lengths, shapes and dtypes; equal strings; finite tensors and numbers."""
    if not isinstance(saved, dict if isinstance(fresh, dict) else type(fresh)):  # an OrderedDict is a dict
        return f"{name} is a {type(saved).__name__}, not a {type(fresh).__name__}"
    if isinstance(fresh, (list, tuple)):
        saved, fresh = dict(enumerate(saved)), dict(enumerate(fresh))
    if isinstance(fresh, dict):
        if saved.keys() != fresh.keys():
            return f"{name} has other entries"
        return next(filter(None, (difference(saved[k], fresh[k], f"{name}.{k}" if isinstance(k, int) else str(k)) for k in fresh)), "")
    if isinstance(fresh, torch.Tensor):
        if (saved.shape, saved.dtype) != (fresh.shape, fresh.dtype):
            return f"{name} is {tuple(saved.shape)} {saved.dtype}, not {tuple(fresh.shape)} {fresh.dtype}"
        return "" if saved.isfinite().all() else f"{name} is not finite"
    if isinstance(fresh, (str, type(None))):
        return "" if saved == fresh else f"{name} is another run's ({saved[:20]}, not {fresh[:20]})"
    return "" if math.isfinite(saved) else f"{name} is {saved}"


def save(folder, state, good):
    """Write folder/checkpoint.pt → its path.  state must hold `step`.

    good: the path of the last checkpoint known to be readable, or None.  If it is checkpoint.pt, it becomes checkpoint.pt.previous.
    So a readable checkpoint exists at all times.  Raises UsageError if the state is not finite or can't be written."""
    path, buffer = os.path.join(folder, "checkpoint.pt"), io.BytesIO()
    problem = difference(state, state)
    if problem:
        raise UsageError(f"{problem} after step {state['step']}, the last checkpoint is kept: start again with a smaller --lr or more --warmup-epochs and another --out")
    torch.save(state, buffer)
    try:
        with atomic_write(path, "wb", keep=path + ".previous" if good == path else None) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}): the last checkpoint is kept; make room, then add --resume") from None
    return path


def load(folder, fresh):
    """The newest undamaged checkpoint that fits `fresh` → (state, its path, a warning or ""); (None, None, "") if the run
    has no checkpoint and no results yet.

    fresh: the state of the same run at its start, with `step` and, if there is one, the upper bound `steps`.  Raises UsageError if there are
    checkpoints but none can be used, or if there are results but no checkpoint."""
    refused, path = [], os.path.join(folder, "checkpoint.pt")
    for candidate in filter(is_file, (path, path + ".previous")):
        try:
            damaged = zipfile.ZipFile(candidate).testzip()  # a checkpoint is a zip file: every part has a checksum
            state = {} if damaged else torch.load(candidate, map_location="cpu", weights_only=True)
            problem = f"{damaged} is damaged" if damaged else difference(state, fresh)
            problem = problem or ("" if 0 <= state["step"] <= fresh.get("steps", math.inf) else f"its step is {state['step']}")
        except Exception as error:  # truncated, foreign or malicious: torch raises many types
            problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
        if not problem:
            return state, candidate, f"warning: refused {refused[0]}; going on from {candidate}, step {state['step']}" if refused else ""
        refused.append(f"{candidate} ({problem})")
    if refused:
        raise UsageError(f"can't resume: refused {' and '.join(refused)}; nothing was changed, choose another --out to start again")
    if is_file(os.path.join(folder, "result.json")) or any("step" in row for row in read_lines(os.path.join(folder, "metrics.jsonl"))):
        raise UsageError(f"{folder} has results but no checkpoint, so it can't go on: choose another --out to start again")
    return None, None, ""
