"""A command that runs alone or on many processes, can be stopped, and tells its user what is wrong in one line.

Needs two siblings: checkpoint.py and data.py (for their exceptions).

    rank, local, world, device = start_processes()     # alone, or under torchrun
    rank0_first(make_folder, rank, device)             # what only one process may do; all stop if it fails
    with note_signals() as noted: ...                  # SIGTERM and Ctrl-C set noted["signal"]
    Parser, number                                     # argparse, with its complaints as one UsageError
    sys.exit(command(main, "train.py"))                # the exit status: 0, or 2 after one line on stderr
"""
import argparse
import contextlib
import ctypes
import datetime
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from checkpoint import UsageError
from data import DataError


# ---------------------------------------------------------------- many processes
def start_processes():
    """Meet the other processes, if torchrun started this one → rank, rank on this machine, world size, device.
    Raises UsageError."""
    local, rank, world = 0, 0, 1
    if "LOCAL_RANK" in os.environ:
        try:
            local, rank, world = (int(os.environ[v]) for v in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
            meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        except (KeyError, ValueError) as error:
            raise UsageError(f"LOCAL_RANK is set, but one of RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is missing or not a number ({error}): "
                             "start with torchrun, or unset LOCAL_RANK") from None
        if not 0 <= local <= rank < world:
            raise UsageError(f"LOCAL_RANK {local}, RANK {rank} and WORLD_SIZE {world} do not go together: start with torchrun, or unset LOCAL_RANK")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UsageError(f"process {local} of this machine has no GPU: start at most {torch.cuda.device_count()} on a machine")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # or an exact network would look inexact in float32
    else:
        device = torch.device("cpu")
        keep_freed_memory()
    if world > 1:
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=30))
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"the processes can't meet at {meeting} ({first_line(error)}): try another port (torchrun --master-port)") from None
    return rank, local, world, device


def keep_freed_memory():
    """Let glibc keep what large tensors free; otherwise every step gives it back and pays for page faults again."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library: leave it as it is
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD


def max_over_ranks(value, device):
    """The largest of all processes' ints or bools, so that all of them do the same."""
    if dist.is_initialized():
        value = torch.tensor(int(value), device=device)  # ()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def rank0_first(act, rank, device):
    """What act() returns where `rank` is 0, None elsewhere.  If it raises there, all processes stop.

    rank: the rank on this machine for what each machine does once, such as a download."""
    given = problem = None
    if rank == 0:
        try:
            given = act()
        except (UsageError, DataError) as error:
            problem = error
    if max_over_ranks(problem is not None, device):
        raise problem or UsageError("the first process stopped")
    return given


@contextlib.contextmanager
def note_signals():
    """A signal that asks the run to stop only sets a number in the dict that this gives; the training loop looks at it.

    torchrun may send a signal twice; the second must change nothing."""
    noted = {"signal": 0}
    numbers = [signal.SIGTERM, signal.SIGINT] + [signal.SIGHUP] * (hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    before = {number: signal.signal(number, lambda number, frame: noted.update(signal=number)) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- what the user is told
class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message} (python {self.prog} --help lists the flags)")


def number(kind, low, high, above=False):
    """An argparse type: an int or float in low … high; above: more than low."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number, not {text!r}") from None
        if not low <= value <= high or above and value == low:
            raise argparse.ArgumentTypeError(f"must be {'more than' if above else 'at least'} {low:g} and at most {high:g}, not {text}")
        return value
    return convert


def say(text, stream="stdout", end="\n"):
    """Print at once.  A stream that is full or that nobody reads must not end a run: what can't be written is dropped."""
    file = getattr(sys, stream)
    try:
        print(text, file=file, end=end, flush=True)
    except (OSError, ValueError):  # full, broken or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def command(main, name):
    """Run main() → the exit status, 0 or 2.  A problem that the user can mend becomes one line on stderr; others are raised."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell (>&-)
            setattr(sys, stream, open(os.devnull, "w"))
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without '…', and names that are not text
    try:
        main()
        return 0
    except (UsageError, DataError) as error:
        told = str(error)
    except OSError as error:
        told = f"{error.strerror or error} ({error.filename or 'while writing'}): mend that and start again; train.py goes on with --resume"
    except (RuntimeError, MemoryError) as error:
        told = explain(error)
        if told is None:
            raise
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        say("", end="")  # --help | head -1
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK") != "0":
        time.sleep(5)  # gives the first process time to tell it; if that one is gone, this one does
    say(f"{name}: " + " ".join(told.splitlines()), "stderr")
    return 2


def explain(error):
    """What the user can do about a RuntimeError or MemoryError, as text; None if nothing."""
    text = first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return "not enough memory: start again with a smaller --batch-size or --width and another --out, or go on with more processes"
    if "LOCAL_RANK" in os.environ and (isinstance(error, dist.DistError) or "gloo" in text or "onnection" in text):
        return f"lost the other processes ({text}): start all of them again, with --resume"
    return None


def first_line(error):
    return (str(error).splitlines() or [""])[0][:120]
