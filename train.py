"""Train one network with one loss, on a laptop, a GPU or many: A-SSL (Eq. 2), H-SSL (Eq. 3), supervised or frozen.

    python train.py                                              # 5,000 real digits, two CPU cores, minutes
    python train.py --dataset mnist --data-dir data --loss assl  # one GPU if there is one
    torchrun --nproc_per_node=8 train.py --dataset mnist --group rot --loss hssl
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train.py --dataset cifar10

Keller, Suau & Zappella (2022), Appendix B: its values are the presets of mnist, cifar10 and tiny-imagenet.
Reads from top to bottom in the order it runs.  Writes into one folder: config.json, metrics.jsonl (one JSON object a
line), curves.png, checkpoint.pt and the one before it, lock, and at the end result.json.

Everything random in step t (the shuffle, g0, g1, g2) is drawn for the whole batch from a generator seeded with
(seed, t), and each process takes its share.  So a run does not depend on how many processes it has, and a resumed
run goes on (on a CPU bit for bit) without a random state in the checkpoint.

Whatever the user can mend (a flag, the data, a full disk) is told in one line, with exit status 2; 143 or 130 is a run
that SIGTERM or Ctrl-C stopped.
"""
import argparse
import contextlib
import copy
import ctypes
import datetime
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
import zlib

try:
    import fcntl
except ImportError:  # not on Windows: nothing keeps two runs out of one folder there
    fcntl = None

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import backbones
import data
import losses
import probe

# ---------------------------------------------------------------- the command line
PAPER = dict(batch_size=4096, lr=0.1, warmup_epochs=10, width=1.0)  # Appendix B; the learning rate at batch 256
PRESETS = {
    "mnist5k": dict(epochs=20, batch_size=256, lr=2.0, warmup_epochs=1, width=1.0),  # made for two CPU cores
    "mnist": dict(PAPER, epochs=500),
    "cifar10": dict(PAPER, epochs=1300),
    "tiny-imagenet": dict(PAPER, epochs=1300),
    "folder": dict(PAPER, epochs=100, batch_size=256),
}
EXAMPLES = """examples
  a laptop       python train.py
  one GPU        python train.py --dataset mnist --batch-size 1024
  eight GPUs     torchrun --nproc_per_node=8 train.py --dataset mnist --group rot --loss hssl
  two nodes      torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train.py --dataset cifar10
  a short look   python train.py --dataset mnist --data-dir data --train-size 5000 --epochs 2 --batch-size 256 --lr 0.5
  go on          python train.py --out runs/NAME --resume"""


SMALLER = "take a smaller --lr, more --warmup-epochs, or --amp off"  # what to do about numbers that are not finite


class UsageError(Exception):
    """Something the user can mend; the message is one line that says how."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message} (python train.py --help lists the flags)")


def number(kind, low, high=math.inf, open_low=False):
    """An argparse type: a finite int or float in [low, high], or (low, high]."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wants {'a whole number' if kind is int else 'a number'}, not {text!r}") from None
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            bound = f"{'more than' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value
    return convert


def plain_name(text):
    """An argparse type: what can be a file's name anywhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"wants a name of letters, digits, '.', '-' and '_', not {text!r}")
    return text


def parse(argv=None):
    """The command line → a namespace, presets filled in.  Raises UsageError."""
    p = Parser(description=__doc__.split("\n\n")[0], epilog=EXAMPLES, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", choices=PRESETS, default="mnist5k", help="mnist5k needs no download (default)")
    p.add_argument("--data-dir", default="data", help="where the images are, or go (default data)")
    p.add_argument("--train-size", type=number(int, 2), metavar="N", help="only the first N of a seeded shuffle")
    p.add_argument("--test-size", type=number(int, 1), metavar="N", help="the same of the test images, whatever the seed")
    p.add_argument("--image-size", type=number(int, 16, 1024), metavar="PX", help="pad with black, or crop, to so many px (default: where strides are exact)")
    p.add_argument("--group", choices=("trans", "rot", "scale", "rotscale"), default="scale", help="whose action is studied (default scale)")
    p.add_argument("--loss", choices=("hssl", "assl", "hybrid", "supervised", "frozen"), default="hssl",
                   help="Eq. 3 (default), Eq. 2, both (translated images, moved bundles), labels, or no training")
    p.add_argument("--objective", choices=("infonce", "ntxent", "bilinear", "byol", "simsiam"), default="infonce",
                   help="what compares the views: InfoNCE as Eq. 2 prints it (default), SimCLR's, DIM(L)'s, or no negatives")
    p.add_argument("--backbone", choices=("equivariant", "cnn", "mlp"), default="equivariant", help="cnn and mlp are Table 2's, without structure")
    p.add_argument("--epochs", type=number(int, 0, 10 ** 6), help="passes over the training images")
    p.add_argument("--batch-size", type=number(int, 2), help="global: shared among all processes")
    p.add_argument("--lr", type=number(float, 0), help="base learning rate; the one used is lr·batch/256, and is printed")
    p.add_argument("--warmup-epochs", type=number(float, 0, 10 ** 6), help="linear warm-up before the cosine")
    p.add_argument("--weight-decay", type=number(float, 0), default=1e-4, help="default 1e-4; never on biases and norms")
    p.add_argument("--tau", type=number(float, 0, open_low=True), default=0.1, help="temperature (default 0.1)")
    p.add_argument("--base-size", type=number(int, 1, 1000), default=1,
                   help="|g0|, fibers in a bundle (default 1; Table 2's A-SSL takes all of z: 16 for mlp, 6 for cnn)")
    p.add_argument("--max-distance", type=number(float, 0), help="largest distance between the two bundles of a pair (hssl, hybrid)")
    p.add_argument("--distance", choices=("euclidean", "topological"), default="euclidean", help="which distance (default euclidean, squared)")
    p.add_argument("--strength", type=number(float, 0, 0.5), default=0.2, help="translations of A-SSL, in parts of the image size (default 0.2)")
    p.add_argument("--functions", type=number(int, 1, 11), help="basis functions of the first layer along an axis (default: the paper's, 11 for MNIST, 7 otherwise)")
    p.add_argument("--pool", choices=("mean", "max"), default="mean", help="how fibers are read off space (default mean, as the paper)")
    p.add_argument("--epsilon", type=number(float, 0, 100), default=0.0, help="break equivariance: change each element's coefficients by ε·‖w‖ (default 0)")
    p.add_argument("--probe-epochs", type=number(int, 1), metavar="N", help="write the read-outs into metrics.jsonl every N epochs")
    p.add_argument("--width", type=number(float, 0, 16, open_low=True), help="multiplies every number of channels")
    p.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="mixed precision (default auto: where the hardware has it)")
    p.add_argument("--seed", type=number(int, 0, 2 ** 31 - 1), default=0)
    p.add_argument("--out", help="run folder (default runs/<a readable name>)")
    p.add_argument("--experiment", type=plain_name, metavar="NAME", help="add the result to results/NAME.jsonl, unless it is there; goes on with what was broken off")
    p.add_argument("--checkpoint-minutes", type=number(float, 0), default=10, help="and at every epoch's end (default 10)")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args = p.parse_args(argv)
    for name, value in PRESETS[args.dataset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.loss == "frozen":
        args.epochs = 0
    if args.max_distance is not None and args.loss not in ("hssl", "hybrid"):
        raise UsageError("--max-distance is about H-SSL's two bundles: take it away, or take --loss hssl")
    name = [args.dataset, args.group, args.loss, args.backbone, f"seed{args.seed}"]
    if args.experiment:  # many runs, told apart by all their flags
        name = [args.experiment, *name, f"{zlib.crc32(json.dumps(config_of(args)).encode()):08x}"]
    args.out = args.out or os.path.join("runs", "-".join(name))
    args.resume |= bool(args.experiment) and os.path.exists(os.path.join(args.out, "config.json"))
    args.defaults = {k: p.get_default(k) for k in config_of(args)}
    return args


# ---------------------------------------------------------------- where it runs
def setup(args):
    """Device, precision and process group → a namespace (device, dtype, rank, world).  Raises UsageError."""
    where, local = argparse.Namespace(rank=0, world=1), 0
    if "LOCAL_RANK" in os.environ:  # torchrun
        try:
            local, where.rank, where.world = (int(os.environ[v]) for v in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
            meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        except KeyError as error:
            raise UsageError(f"LOCAL_RANK is set but {error.args[0]} is not: start with torchrun, or unset LOCAL_RANK") from None
        except ValueError:
            raise UsageError("LOCAL_RANK, RANK and WORLD_SIZE want whole numbers: start with torchrun, or unset LOCAL_RANK") from None
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise UsageError(f"process {local} of this machine has no GPU: start at most {torch.cuda.device_count()} a machine")
    where.device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where.device)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, or an exact network would look inexact
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        good = any(torch.cpu.get_capabilities().get(k) for k in ("avx512_bf16", "amx_bf16"))
        keep_freed_memory()
    where.dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16,
                   "auto": torch.bfloat16 if good else torch.float16 if cuda else None}[args.amp]
    if args.batch_size % where.world:
        near = args.batch_size // where.world * where.world or where.world
        raise UsageError(f"--batch-size {args.batch_size} does not divide among {where.world} processes: take {near}")
    if where.world > 1:
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=30))
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"the processes can't meet at {meeting} ({first_line(error)}): another port may be free "
                             "(torchrun --master-port), and RANK must be below WORLD_SIZE") from None
    return where


def keep_freed_memory():
    """Have glibc keep what large tensors free; else every step gives it back and pays for page faults again."""
    with contextlib.suppress(AttributeError, OSError):  # another C library: leave it
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over all processes' examples, for the CPU (torch's own needs a GPU): statistics of the whole batch,
    so that N processes do what one does, and no process can tell its own examples by their statistics."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        """x (B, C, …) → the same shape and dtype; its buffers move as BatchNorm's do."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, n = BatchStatistics.apply(x, self.weight, self.bias, self.eps)  # (B, C, …), (C,), (C,), ()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)  # (C,)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), self.momentum)  # (C,)
        return y


class BatchStatistics(torch.autograd.Function):
    """y = w·(x - μ)/√(σ² + ε) + b, with the mean μ and variance σ² of all processes' examples.

    Each process does what torch's BatchNorm does, in torch's kernels; what they tell each other is 4·C numbers, as each has as many examples."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        unused = torch.zeros_like(weight)  # (C,)
        here, spread = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)  # (C,), (C,): this process's μ and σ²
        world = dist.get_world_size()
        n = here.new_tensor(x.numel() // x.shape[1] * world)  # ()
        mean = all_reduce(here.clone()) / world  # (C,)
        variance = all_reduce(spread + (here - mean) ** 2) / world  # (C,)
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, n)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, n

    @staticmethod
    def backward(ctx, dy, *_):
        """With x̂ = (x - μ)/√(σ² + ε):  dx = w/√(σ² + ε)·(dy - Σdy/n - x̂·Σ(dy·x̂)/n), the two sums over all processes."""
        x, weight, mean, variance, n = ctx.saved_tensors
        rate = (variance + ctx.eps).rsqrt()  # (C,)
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, mean, rate, False, ctx.eps, [True] * 3)  # (B, C, …), (C,), (C,)
        sums = all_reduce(torch.cat([dw, db])) * (weight * rate / n).repeat(2)  # (2·C,)
        dx -= F.batch_norm(x, mean, variance, *sums.chunk(2), False, 0.0, ctx.eps)  # (B, C, …)
        return dx, dw, db, None


def all_reduce(x):
    """The sum over all processes, in place: any shape → the same."""
    dist.all_reduce(x)
    return x


def synchronise(module, but=None):
    """Replace every BatchNorm inside the module by one over all processes, in place; leave the part `but` alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if child.weight.is_cuda:
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
            else:
                child.__class__ = SyncBatchNorm  # the same weights and buffers
        elif child is not but:
            synchronise(child, but)
    return module


# ---------------------------------------------------------------- the optimiser and its schedule
class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), in the form of SimCLR and FAIR:

        d = g + wd·p        the step's direction
        q = η·‖p‖ / ‖d‖     the trust ratio (1 where a norm is 0), one a tensor
        v = m·v + q·d       momentum
        p = p - lr·v

    Biases and norms (tensors of one dimension) get q = 1 and wd = 0.  params: an iterable of tensors."""

    def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=1e-4, eta=0.001):
        params = list(params)
        super().__init__([dict(params=[p for p in params if p.dim() > 1], adapt=True),
                          dict(params=[p for p in params if p.dim() <= 1], adapt=False)],
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            d = [p.grad for p in params]
            if group["adapt"]:
                d = torch._foreach_add(d, params, alpha=group["weight_decay"])
                norms = zip(torch._foreach_norm(params), torch._foreach_norm(d))
                q = [torch.where((p > 0) & (n > 0), group["eta"] * p / n, torch.ones_like(p)) for p, n in norms]
                torch._foreach_mul_(d, q)
            for p in params:
                self.state[p].setdefault("v", torch.zeros_like(p))
            v = [self.state[p]["v"] for p in params]
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_add_(v, d)
            torch._foreach_add_(params, v, alpha=-group["lr"])


def learning_rate(step, steps, warmup, peak):
    """Linear from 0 to `peak` over `warmup` steps, then a cosine to 0 at `steps`.  A pure function of the step."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---------------------------------------------------------------- what is learned
class Objective(nn.Module):
    """What one process does to its share of a batch: images, labels and draws → (loss, y1, y2)."""

    def __init__(self, args, f, h, classifier, draws):
        super().__init__()
        self.args, self.draws, self.f, self.h, self.classifier = args, draws, f, h, classifier
        h.requires_grad_(args.loss not in ("supervised", "frozen"))
        classifier.requires_grad_(args.loss == "supervised")  # otherwise detached: probe.py trains its linear layer
        if args.loss in ("supervised", "frozen"):
            return
        d = h[-1].num_features  # D
        if args.objective == "bilinear":
            self.W = nn.Parameter(torch.eye(d) / d)  # at first a cosine, of y with unit variance
        if args.objective in ("byol", "simsiam"):
            self.q = nn.Sequential(nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d))  # predictor
        if args.objective == "byol":
            self.target = copy.deepcopy(nn.ModuleList([f, h])).requires_grad_(False)

    def views(self, f, h, x, draws):
        if self.args.loss == "assl":
            return losses.a_ssl(f, h, x, self.draws.moves, *draws, self.draws.map)  # (B, D) twice
        if self.args.loss == "hybrid":
            return losses.hybrid(f, h, x, self.draws.map, *draws[:3], self.draws.moves, *draws[3:])  # (B, D) twice
        return losses.h_ssl(f, h, x, self.draws.map, *draws)  # (B, D) twice

    def forward(self, x, labels, *draws):
        args = self.args
        if args.loss == "supervised":
            logits = self.classifier(self.f(x))  # (B, classes)
            return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels), None, None
        y1, y2 = self.views(self.f, self.h, x, draws)  # (B, D) twice
        if args.objective in ("byol", "simsiam"):
            t1, t2 = y1, y2
            if args.objective == "byol":
                with torch.no_grad():
                    t1, t2 = self.views(*self.target, x, draws)  # (B, D) twice
            loss = losses.cosine_regression(self.q(y1), self.q(y2), t1, t2)
        else:
            loss = losses.info_nce(y1, y2, args.tau, "ntxent" if args.objective == "ntxent" else "paper", getattr(self, "W", None))
        return loss, y1.detach(), y2.detach()

    @torch.no_grad()
    def follow(self, momentum=0.99):
        """BYOL's slow copy: target ← m·target + (1 - m)·(f, h), after each step."""
        if hasattr(self, "target"):
            pairs = zip(self.target.parameters(), [*self.f.parameters(), *self.h.parameters()])
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - momentum)


# ---------------------------------------------------------------- the run folder
@contextlib.contextmanager
def whole(path, mode="w", previous=False):
    """A file to write that is there whole or not at all: written beside its place, on the disk, then renamed.

    previous: the file that was in its place stays, as path.previous.  Raises OSError, and then nothing is left behind."""
    try:
        with open(path + ".tmp", mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        raise
    if previous and os.path.exists(path):
        os.replace(path, path + ".previous")
    os.replace(path + ".tmp", path)


def save(path, args, run, model, optimizer, scaler):
    """Write a checkpoint so that a whole one is there at every moment.  Raises UsageError: disk full, weights not finite."""
    state = dict(args=config_of(args), step=run.step, seconds=run.seconds, cpu=run.cpu + time.process_time(), model=model.state_dict(),
                 optimizer=optimizer.state_dict(), scaler=scaler.state_dict())
    if not all(v.isfinite().all() for v in state["model"].values()):
        raise UsageError(f"weights are not finite after step {run.step}; the last checkpoint is kept: {SMALLER}")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        with whole(path, "wb", previous=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}): the last checkpoint is kept; make room, then --resume") from None


def resume(args, run, model, optimizer, scaler):
    """Go on from the newest checkpoint that is whole; from the start if there is none.  Raises UsageError."""
    path, refused = os.path.join(args.out, "checkpoint.pt"), []
    for candidate in (path, path + ".previous"):
        if not os.path.exists(candidate):
            continue
        try:
            damaged = zipfile.ZipFile(candidate).testzip()  # a checkpoint is a zip: every part has its checksum
            if damaged:
                raise ValueError(f"{damaged} is damaged")
            state = torch.load(candidate, map_location="cpu", weights_only=True)
            if state["args"] != config_of(args):
                raise ValueError("another run's")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty where the run began without fp16
                scaler.load_state_dict(state["scaler"])
            run.step, run.seconds = int(state["step"]), float(state["seconds"])
            run.cpu = float(state.get("cpu", 0))  # of the processes before this one
            if refused and is_first():
                print(f"warning: refused {refused[0]}; going on from {candidate}, step {run.step}", file=sys.stderr)
            return
        except Exception as error:  # torn, truncated, foreign, hostile: torch has many names for it
            refused.append(f"{candidate} ({type(error).__name__}: {first_line(error)})")
    if refused:
        raise UsageError(f"can't resume: refused {' and '.join(refused)}; nothing was changed, take another --out to start anew")


NOT_CONFIG = ("probe_epochs", "resume", "out", "data_dir", "checkpoint_minutes", "experiment", "defaults", "lock")


def config_of(args):
    """What must be equal for a run to go on: every flag but where it lies and how it is started."""
    return {k: v for k, v in sorted(vars(args).items()) if k not in NOT_CONFIG}


def open_folder(args):
    """Make the run folder, or check that this run may go on in it.  Raises UsageError."""
    path = os.path.join(args.out, "config.json")
    if args.resume and not os.path.exists(path):
        raise UsageError(f"{args.out} holds no run to go on with: take --resume away")
    try:
        os.makedirs(args.out, exist_ok=True)
        hold(args)
        if os.path.exists(path):
            check_config(args, path)
        elif os.path.exists(os.path.join(args.out, "checkpoint.pt")):
            raise UsageError(f"{args.out} holds a checkpoint but no config.json: take another --out")
        else:
            write_json(path, dict(config=config_of(args), argv=sys.argv, code=code_version(), torch=torch.__version__))
    except OSError as error:
        raise UsageError(f"can't write into {args.out} ({error.strerror}): take another --out") from None


def claim(args):
    """Open the run folder → whether another process has ended this run of an experiment meanwhile.  Raises UsageError."""
    open_folder(args)
    return bool(args.experiment) and listed(args)


def check_config(args, path):
    """Refuse a folder whose run should not be resumed, or had other flags.  Raises UsageError."""
    if not args.resume:
        raise UsageError(f"{args.out} already holds a run: --resume to go on with it, or another --out")
    try:
        old, new = dict(json.load(open(path))["config"]), config_of(args)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} can't be read: take another --out") from None
    differ = [k for k in sorted({*new, *old}) if new.get(k) != old.get(k)]
    if differ:
        raise UsageError("can't resume with other flags: " + ", ".join(
            f"--{k.replace('_', '-')} was {old.get(k)}, is {new.get(k)}" for k in differ))


def hold(args):
    """Keep the run folder to this process until it ends, however it ends.  Raises UsageError."""
    if fcntl:
        args.lock = open(os.path.join(args.out, "lock"), "w")
        try:
            fcntl.flock(args.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is at work in {args.out}: wait for it, or take another --out") from None
        except OSError:
            pass  # a file system that knows no locks


def read_lines(path):
    """The JSON objects of a file with one on each line; what is torn or foreign counts for nothing.  → list of dicts."""
    rows = []
    for line in open(path, errors="replace") if os.path.exists(path) else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def listed(args):
    """Whether this run's result is in results/ already; one that another experiment has is listed here as well."""
    names = sorted(n[:-6] for n in os.listdir("results") if n.endswith(".jsonl")) if os.path.isdir("results") else []
    for name in sorted(names, key=lambda n: n != args.experiment):  # this experiment first
        for row in read_lines(os.path.join("results", f"{name}.jsonl")):
            if "dataset" in row and all(row.get(k, args.defaults[k]) == v for k, v in config_of(args).items()):  # a flag newer than the row had its default
                if is_first():
                    if name != args.experiment:
                        list_result(args, row)
                    print(f"{args.experiment}: seed {args.seed} of {args.loss} is there, top-1 {row.get('top1')} %")
                return True
    return False


def list_result(args, result):
    """Append one line to results/EXPERIMENT.jsonl; a torn line before it stays by itself."""
    os.makedirs("results", exist_ok=True)
    with open(os.path.join("results", f"{args.experiment}.jsonl"), "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read() not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(dict(result, experiment=args.experiment)).encode() + b"\n")


def write_json(path, value):
    with whole(path) as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def code_version():
    """The git commit of this file, "-dirty" where a Python file is changed; None outside a checkout."""
    git = lambda *what: subprocess.run(["git", *what], cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True, timeout=10)
    try:
        commit = git("describe", "--always").stdout.strip()
        return commit + "-dirty" * (git("diff", "--quiet", "HEAD", "--", "*.py").returncode != 0) if commit else None
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curves(folder):
    """curves.png from metrics.jsonl: the loss, and what shows a collapse."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    lines = [line for line in read_lines(os.path.join(folder, "metrics.jsonl")) if "loss" in line]
    if not lines:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    steps = [line["step"] for line in lines]
    axes[0].plot(steps, [line["loss"] for line in lines], label="loss")
    if "chance" in lines[0]:
        axes[0].axhline(lines[0]["chance"], color="grey", ls=":", label="at chance")
    for key in ("positive_similarity", "negative_similarity", "spread", "positive_rank", "invariance", "equation1", "axis"):
        if lines[0].get(key) is not None:
            axes[1].plot(steps, [line[key] for line in lines], label=key.replace("_", " "))
    for ax in axes:
        ax.set_xlabel("step")
        if ax.lines:
            ax.legend(fontsize=8)
    with whole(os.path.join(folder, "curves.png"), "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


# ---------------------------------------------------------------- the run
def main(argv=None):
    """Train, then probe.  Raises UsageError and data.DataError, and SystemExit where a signal stopped it."""
    args = parse(argv)
    if args.experiment and listed(args):
        return
    where = setup(args)
    load = lambda: data.load(args.dataset, args.data_dir, args.train_size, args.seed, args.test_size, args.image_size)
    images = agree(load, where) or load()  # the first process goes first: it may have to download them
    n = len(images.train_x)
    if args.batch_size > n:
        raise UsageError(f"--batch-size {args.batch_size} is more than the {n} training images: take at most {n}")
    model = networks(args, where, images)
    optimizer = LARS((p for p in model.parameters() if p.requires_grad), weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(where.device.type, enabled=where.dtype == torch.float16)

    # how long, and from where
    run = argparse.Namespace(step=0, seconds=0.0, cpu=0.0, per_epoch=n // args.batch_size)  # what fills no batch waits a shuffle
    run.steps, run.warmup = args.epochs * run.per_epoch, round(args.warmup_epochs * run.per_epoch)
    run.peak = args.lr * args.batch_size / 256
    if any_rank(bool(agree(lambda: claim(args), where)), where):
        return
    if args.resume:
        resume(args, run, model, optimizer, scaler)
        if any_rank(run.step, where) != run.step:
            raise UsageError(f"this process found step {run.step} in {args.out}, another a later one: --out must be on a disk that all share")
    run.parameters = sum(p.numel() for p in model.f.parameters())
    if where.rank == 0:
        print(f"{args.loss} on {args.dataset}: {n:,} images of {images.train_x.shape[-1]} px, group {args.group}, backbone {args.backbone}, "
              f"{run.parameters:,} parameters; batch {args.batch_size} over {where.world} process{'es' * (where.world > 1)}, "
              f"learning rate {run.peak:.3g}, {run.steps} steps, "
              f"{str(where.dtype).split('.')[-1] if where.dtype else 'float32'} on {where.device.type}", flush=True)

    train(args, where, run, images, model, optimizer, scaler)

    if where.world > 1:
        dist.destroy_process_group()  # the others are done; the first one needs nobody for the rest
    if where.rank == 0:
        finish(args, where, run, images, model)


def networks(args, where, images):
    """What learns, on its device: an Objective, the same on every process, from the seed.  Raises UsageError."""
    torch.manual_seed(args.seed)
    size = images.train_x.shape[-1]
    try:
        f, h, classifier, draws = probe.network(vars(args), images)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except RuntimeError as error:
        raise UsageError(f"no {args.backbone} network is {args.width:g} wide for {size} px ({first_line(error)}): take another --width or --image-size") from None
    model = Objective(args, f, h, classifier, draws).to(where.device)
    if where.world > 1:  # a detached classifier sees no batch in training, and the first process alone probes with it
        synchronise(model, but=None if args.loss == "supervised" else classifier)
    return model


def train(args, where, run, images, model, optimizer, scaler):
    """The loop, from run.step to run.steps; adds the time it took to run.seconds.  Raises UsageError, SystemExit."""
    first, checkpoint = where.rank == 0, os.path.join(args.out, "checkpoint.pt")
    x, y = images.train_x.to(where.device), images.train_y.to(where.device)  # (N, C_in, H, H), (N,)
    wrapped = DistributedDataParallel(model) if where.world > 1 and run.steps else model
    log = open_log(args, run.step) if first else None
    bar = tqdm(total=run.steps, initial=run.step, unit="step", dynamic_ncols=True, disable=None if first else True)  # None: where nobody watches
    before, started = run.seconds, time.time()
    saved = started
    with signals_noted() as asked:
        while run.step < run.steps:
            loss, y1, y2 = update(args, where, run, wrapped, model, optimizer, scaler, x, y)  # (), (B, D) twice or None
            run.step += 1
            run.seconds = before + time.time() - started
            stop, last = any_rank(asked["signal"], where), run.step == run.steps

            if first:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
                if run.step % min(run.per_epoch, 50) == 0 or last or stop:
                    log.write(json.dumps(measured(args, run, model, optimizer, loss, y1, y2, x[:32])) + "\n")
                    log.flush()
                if args.probe_epochs and run.step % (args.probe_epochs * run.per_epoch) == 0:
                    parts = copy.deepcopy(model.f), copy.deepcopy(model.classifier)  # so that the run does not notice
                    found = probe.evaluate(*parts, model.draws, images, where.device, where.dtype, args.seed)
                    log.write(json.dumps(dict(step=run.step, **found)) + "\n")
                    log.flush()
                if stop or last or run.step % run.per_epoch == 0 or time.time() - saved > 60 * args.checkpoint_minutes:
                    save(checkpoint, args, run, model, optimizer, scaler)
                    if stop or last or time.time() - saved > 10:
                        draw_curves(args.out)
                    saved = time.time()
            if stop:
                if first:
                    print(f"stopped after step {run.step} of {run.steps}: --resume goes on from there", file=sys.stderr)
                raise SystemExit(128 + stop)
        if asked["signal"]:  # after the last step
            raise SystemExit(128 + asked["signal"])
    bar.close()
    if first and not os.path.exists(checkpoint):
        save(checkpoint, args, run, model, optimizer, scaler)  # frozen, or --epochs 0: the weights as drawn


def update(args, where, run, wrapped, model, optimizer, scaler, x, y):
    """One step on all training images x (N, C_in, H, H) uint8 and labels y (N,) → loss (), views (B, D) twice or None.

    Raises UsageError where loss or gradient (fp16: or its scale) is not finite; no weight has then changed."""
    batch, drawn = share(args, where, run, model, len(x))  # (B,), a list of (B, …)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run.step, run.steps, run.warmup, run.peak)
    with torch.autocast(where.device.type, where.dtype, enabled=where.dtype is not None):
        loss, y1, y2 = wrapped(x[batch].float() / 255, y[batch], *drawn)  # x: raw intensities in 0 … 1
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if any_rank(not finite(loss, model, scaler), where):
        raise UsageError(f"loss or gradient is not finite at step {run.step} (epoch {run.step // run.per_epoch}); "
                         f"the last checkpoint is kept: {SMALLER}")
    scaler.step(optimizer)
    scaler.update()
    model.follow()
    return loss, y1, y2


def finish(args, where, run, images, model):
    """The detached classifier on frozen features → result.json, and a line in results/ for an experiment."""
    started = time.time()
    result = probe.evaluate(model.f, model.classifier, model.draws, images, where.device, where.dtype, args.seed, quiet=False)
    result |= dict(parameters=run.parameters, train_seconds=round(run.seconds, 2),
                   seconds=round(time.time() - started + run.seconds, 2), cpu_seconds=round((run.cpu + time.process_time()) * where.world, 1), processes=where.world,
                   images_per_second=round(run.steps * args.batch_size / run.seconds, 1) if run.seconds else None,
                   code=code_version(), torch=torch.__version__, threads=torch.get_num_threads(), **config_of(args))
    write_json(os.path.join(args.out, "result.json"), result)
    if args.experiment:
        list_result(args, result)
    print(f"{probe.report(result)}\ntrained {run.seconds:.0f} s   {args.out}", flush=True)


# ---------------------------------------------------------------- small parts of the loop
def seeded(*key):
    """A CPU generator that depends on nothing but the key (ints below 2³¹)."""
    mixed = 0
    for k in key:
        mixed = (mixed * 1_000_003 + k + 1) % (2 ** 63 - 25)
    return torch.Generator().manual_seed(mixed)


def share(args, where, run, model, n):
    """This process's part of the step's batch: numbers of images (B,), and what is drawn for them, a list of (B, …)."""
    epoch, position = divmod(run.step, run.per_epoch)
    order = torch.randperm(n, generator=seeded(args.seed, epoch, 1))  # (N,): the same in every step of an epoch
    batch = order[position * args.batch_size:][:args.batch_size]  # (B·processes,)
    size = args.batch_size // where.world
    mine = slice(where.rank * size, (where.rank + 1) * size)
    drawn = model.draws(args.batch_size, seeded(args.seed, run.step, 2))
    return batch[mine].to(where.device), [g[mine].to(where.device) for g in drawn]


def finite(loss, model, scaler):
    """Whether loss and gradients are numbers.  Under fp16 the scaler sees to the gradients: it skips a step where they
    are not, and halves its scale, so that this says no if that never ends."""
    if scaler.is_enabled():
        return bool(loss.isfinite()) and scaler.get_scale() > 2 ** -24
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return bool(torch.stack([loss.detach().float(), *(n.float() for n in norms)]).isfinite().all())


def measured(args, run, model, optimizer, loss, y1, y2, x):
    """A line of metrics.jsonl, as a dict.  loss (), views y1, y2 (B, D) or None, some images x (B', C_in, H, H) uint8."""
    line = dict(step=run.step, epoch=round(run.step / run.per_epoch, 3), loss=loss.item(), lr=optimizer.param_groups[0]["lr"],
                seconds=round(run.seconds, 2), images_per_second=round(run.step * args.batch_size / run.seconds, 1))
    if y1 is not None:
        line |= losses.diagnostics(y1, y2)
        line["chance"] = 2 if args.objective in ("byol", "simsiam") else losses.chance(args.batch_size, args.objective)
        for name, values in model.draws.distances(model.f, x.float() / 255).items():
            line[name] = sum(values) / len(values) if values and None not in values else None  # the mean over g
    return line


def agree(act, where):
    """Do on the first process what only it does, or does first → what that gave, None on the others.  If it can't, all
    of them stop: raises UsageError or data.DataError."""
    given = problem = None
    if where.rank == 0:
        try:
            given = act()
        except (UsageError, data.DataError) as error:
            problem = error
    if any_rank(problem is not None, where):
        raise problem or UsageError("the first process stopped")
    return given


def any_rank(flag, where):
    """The largest of all processes' flags (ints or bools), so that all of them stop at the same step."""
    if where.world == 1:
        return flag
    flag = torch.tensor(int(flag), device=where.device)  # ()
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag)


@contextlib.contextmanager
def signals_noted():
    """SIGTERM, Ctrl-C and a closed terminal are but noted in the dict that this gives; a second one stops at once."""
    asked, heard = {"signal": 0}, [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows, not under nohup
        heard.append(signal.SIGHUP)

    def handler(number, frame):
        asked["signal"] = number
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def open_log(args, step):
    """metrics.jsonl, opened to append, without lines of steps that a resumed run will do again."""
    path = os.path.join(args.out, "metrics.jsonl")
    kept = [row for row in read_lines(path) if isinstance(row.get("step", 0), int) and row.get("step", 0) <= step]
    with whole(path) as file:
        for row in kept or [dict(argv=sys.argv, code=code_version(), config=config_of(args))]:
            file.write(json.dumps(row) + "\n")
    return open(path, "a")


# ---------------------------------------------------------------- what the user is told
def command(argv=None):
    """main, and whatever the user can mend in one line on stderr → the exit status, 0 or 2.  Anything else is raised."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no '…', a file name that is no text
    try:
        main(argv)
        return 0
    except (UsageError, data.DataError) as error:
        told = str(error)
    except OSError as error:
        told = f"{error.strerror or error} ({error.filename or 'while writing'}): mend that, then --resume goes on from the last checkpoint"
        sys.stdout = None  # if it was stdout that can't be written: it won't be tried again
    except (RuntimeError, MemoryError) as error:
        told = in_words(error)
        if told is None:
            raise
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    if not is_first():
        time.sleep(5)  # the first process says it, and torchrun then ends this one; if it has nothing to say, this one speaks
    print("train.py: " + " ".join(told.splitlines()), file=sys.stderr, flush=True)
    return 2


def in_words(error):
    """What the user can do about a RuntimeError or MemoryError; None where there is no such thing."""
    text = first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return "not enough memory: take a smaller --batch-size or --width, or more processes; --resume goes on from the last checkpoint"
    if isinstance(error, dist.DistError) or "gloo" in text or "onnection" in text:
        return f"lost the other processes ({text}): start all of them again, with --resume"
    return None


def is_first():
    """Whether this process speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def first_line(error):
    """The first line of an error's text, not too long."""
    return (str(error).splitlines() or [""])[0][:120]


if __name__ == "__main__":
    sys.exit(command())
