"""Helpers for a command: run in one or many processes, stop on a signal, choose a precision, and report an error in one line.

Needs two siblings: checkpoint.py and data.py (for their exceptions).

    rank, local, world, device = start_processes()     # one, or many under torchrun
    rank0_first(make_folder, rank, device)             # one process does it; all stop if it fails
    synchronise(model)                                 # BatchNorm over the samples of all processes
    with note_signals() as noted: ...                  # SIGTERM, Ctrl-C and SIGHUP set noted["signal"]
    precision("auto", device), code_version()          # the dtype for autocast, and the git commit
    Parser, number                                     # argparse, with errors as UsageError
    sys.exit(command(main, "train.py"))                # the exit status: 0, or 2 after one line on stderr
"""
import argparse
import contextlib
import ctypes
import datetime
import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from checkpoint import UsageError
from data import DataError


# ---------------------------------------------------------------- many processes
def start_processes():
    """Join the other processes if torchrun started this one → rank, rank on this machine, world size, device.
    Raises UsageError if torchrun's variables are wrong, a GPU is missing, or the processes can't meet."""
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
            raise UsageError(f"process {local} of this machine has no GPU: start at most {torch.cuda.device_count()} on a machine, or put CUDA_VISIBLE_DEVICES= before the command to use the CPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        keep_freed_memory()
    if world > 1:
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=30),
                                    device_id=device if device.type == "cuda" else None)  # NCCL then meets now, and not in the first step
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"the processes can't meet at {meeting} ({first_line(error)}): try another port (torchrun --master-port)") from None
    return rank, local, world, device


def keep_freed_memory():
    """Make glibc keep freed memory.  Otherwise every step returns it to the system and causes page faults again."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library: leave it as it is
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD


def max_over_ranks(device, *values):
    """The maxima of ints or bools over all processes, so that all of them take the same decisions: a list of ints."""
    values = torch.tensor([int(v) for v in values])  # (n,)
    if dist.is_initialized():
        values = values.to(device)  # (n,)
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def rank0_first(act, rank, device):
    """Call act() where `rank` is 0 → its result there, None elsewhere.  If it raises an Exception, all processes raise.

    rank: pass the rank on this machine for an act that each machine must do once, such as a download."""
    given = problem = None
    if rank == 0:
        try:
            given = act()
        except Exception as error:  # any: the other processes wait
            problem = error
    if max_over_ranks(device, problem is not None)[0]:
        raise problem or UsageError("the first process stopped")
    return given


@contextlib.contextmanager
def note_signals():
    """Yield a dict.  SIGTERM, SIGINT and SIGHUP then only set noted["signal"] to their number; the training loop reads it.

    torchrun may send a signal twice, and the second must not interrupt the saving."""
    noted = {"signal": 0}
    numbers = [signal.SIGTERM, signal.SIGINT] + [signal.SIGHUP] * (hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    before = {number: signal.signal(number, lambda number, frame: noted.update(signal=number)) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- BatchNorm over all processes
class SyncBatchNorm(_BatchNorm):
    """BatchNorm over all processes' samples, for the CPU (torch's own needs a GPU): N processes compute what one would."""

    def _check_input_dim(self, x):
        pass  # any number of dimensions is allowed

    def forward(self, x):
        """x (B, C, …), the same B on every process → the same shape and dtype; its buffers are updated as in BatchNorm."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        mean, variance = Moments.apply(x)  # (C,) twice
        m, v, n = mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size()  # (C,) twice, an int
        self.num_batches_tracked += 1
        self.running_mean.lerp_(m, self.momentum)  # (C,)
        self.running_var.lerp_(v * n / (n - 1), self.momentum)  # (C,)
        # F.batch_norm gives m and v no gradient.  So the weight gets a factor that is 1, and the bias a term that is 0, through which it flows
        weight = self.weight * ((v + self.eps) / (variance + self.eps)).sqrt()  # (C,)
        bias = self.bias + self.weight * (m - mean) * (v + self.eps).rsqrt()  # (C,)
        return F.batch_norm(x, m, v, weight, bias, False, 0.0, self.eps)  # (B, C, …)


class Moments(torch.autograd.Function):
    """Mean μ and variance σ² of all processes' x (B, C, …), (C,) each: ∂μ/∂x = 1/n and ∂σ²/∂x = 2·(x - μ)/n."""

    @staticmethod
    def forward(ctx, x):
        zero = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # (C,)
        here = torch.stack(torch.batch_norm_update_stats(x, zero, zero.clone(), 0.0))  # (2, C): of this process, in one fast kernel
        ctx.world = dist.get_world_size()
        everyone = [torch.empty_like(here) for _ in range(ctx.world)]
        dist.all_gather(everyone, here)
        means, variances = torch.stack(everyone, 1)  # (R, C) twice
        mean = means.mean(0)  # (C,)
        ctx.save_for_backward(x, mean)
        return mean, (variances + (means - mean) ** 2).mean(0)  # (C,) twice

    @staticmethod
    def backward(ctx, dmean, dvariance):
        x, mean = ctx.saved_tensors
        d = torch.stack([2 * dvariance, dmean]) * (x.shape[1] / x.numel() / ctx.world)  # (2, C)
        dist.all_reduce(d)
        return F.batch_norm(x, mean, torch.ones_like(mean), *d, False, 0.0, 0.0)  # (x - μ)·2·dσ²/n + dμ/n: (B, C, …)


def synchronise(module, but=None):
    """Replace every BatchNorm in the module by one over all processes, in place, except in the submodule `but`."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child.weight.is_cuda:
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        elif isinstance(child, _BatchNorm):
            child.__class__ = SyncBatchNorm  # the same weights, buffers and names
        elif child is not but:
            synchronise(child, but)
    return module


# ---------------------------------------------------------------- the machine and the code
def precision(amp, device):
    """The dtype for autocast that --amp asks for, or None for float32.  auto: half precision if the hardware has it."""
    if device.type == "cuda":
        best = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    else:
        found = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
        best = torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": best}[amp]


def code_version():
    """The git commit of this file, with -dirty if a Python file is changed; None outside a checkout."""
    git = lambda *words: subprocess.run(["git", *words], cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True, timeout=10)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = git("describe", "--always").stdout.strip()
        return commit + "-dirty" * bool(git("diff", "--quiet", "HEAD", "--", "*.py").returncode) if commit else None


# ---------------------------------------------------------------- flags and messages
class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message} (python {self.prog} --help lists the flags)")


def number(kind, low, high, above=False):
    """An argparse type: an int or float in low … high.  above: low itself is not allowed."""
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
    """Print and flush.  A full or closed stream must not end a run: this text and all later text for it is dropped."""
    file = getattr(sys, stream)
    try:
        print(text, file=file, end=end, flush=True)
    except (OSError, ValueError):  # full, broken or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def command(main, name):
    """Run main() → the exit status, 0 or 2.  A problem that the user can fix becomes one line on stderr; others are raised."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # TF32 would make an exact network look inexact
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell (>&-)
            setattr(sys, stream, open(os.devnull, "w"))
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without '…', and file names that are not valid text
    try:
        main()
        return 0
    except (UsageError, DataError) as error:
        told = str(error)
    except OSError as error:
        told = f"{error.strerror or error} ({error.filename or 'while writing'}): fix that and start again; train.py continues with --resume"
    except (RuntimeError, MemoryError) as error:
        told = explain(error)
        if told is None:
            raise
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        say("", end="")  # a reader may have closed the pipe: --help | head -1
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK") != "0":
        time.sleep(5)  # let the first process report first; if it is gone, this one reports
    say(f"{name}: " + " ".join(told.splitlines()), "stderr")
    return 2


def explain(error):
    """What the user can do about a RuntimeError or MemoryError, as text; None if unknown."""
    text = first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return "not enough memory: train.py needs a smaller --batch-size or --width (and another --out), or --resume with more processes"
    if "LOCAL_RANK" in os.environ and (isinstance(error, dist.DistError) or "gloo" in text or "onnection" in text):
        return f"lost the other processes ({text}): start all of them again, with --resume"
    return None


def first_line(error):
    return (str(error).splitlines() or [""])[0][:120]
