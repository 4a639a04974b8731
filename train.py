"""Train one network with one loss, on a laptop, a GPU or many: A-SSL (Eq. 2), H-SSL (Eq. 3), supervised or frozen.

    python train.py                                              # 5,000 real digits, two CPU cores, minutes
    python train.py --dataset mnist --data-dir data --loss assl  # one GPU if there is one
    torchrun --nproc_per_node=8 train.py --dataset mnist --group rot --loss hssl
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train.py --dataset cifar10

Keller, Suau & Zappella (2022), Appendix B: its values are the presets of mnist, cifar10 and tiny-imagenet.
Reads from top to bottom in the order it runs.  Writes into one folder: config.json, metrics.jsonl (one JSON object a
line), curves.png, checkpoint.pt, and at the end result.json.

Everything random in step t (the shuffle, g0, g1, g2) is drawn for the whole batch from a generator seeded with
(seed, t), and each process takes its share.  So a run does not depend on how many processes it has, and a resumed
run goes on bit for bit without a random state in the checkpoint.
"""
import argparse
import contextlib
import copy
import ctypes
import datetime
import json
import math
import os
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


def parse(argv=None):
    """The command line → a namespace, presets filled in.  Raises UsageError."""
    p = Parser(description=__doc__.split("\n\n")[0], epilog=EXAMPLES, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", choices=PRESETS, default="mnist5k", help="mnist5k needs no download (default)")
    p.add_argument("--data-dir", default="data", help="where the images are, or go (default data)")
    p.add_argument("--train-size", type=number(int, 2), metavar="N", help="only the first N of a seeded shuffle")
    p.add_argument("--test-size", type=number(int, 1), metavar="N", help="the same of the test images, whatever the seed")
    p.add_argument("--group", choices=("trans", "rot", "scale", "rotscale"), default="scale", help="whose action is studied (default scale)")
    p.add_argument("--loss", choices=("hssl", "assl", "hybrid", "supervised", "frozen"), default="hssl",
                   help="Eq. 3 (default), Eq. 2, both (translated images, moved bundles), labels, or no training")
    p.add_argument("--objective", choices=("infonce", "ntxent", "bilinear", "byol", "simsiam"), default="infonce",
                   help="what compares the views: InfoNCE as Eq. 2 prints it (default), SimCLR's, DIM(L)'s, or no negatives")
    p.add_argument("--backbone", choices=("equivariant", "cnn", "mlp"), default="equivariant", help="cnn and mlp are Table 2's, without structure")
    p.add_argument("--epochs", type=number(int, 0), help="passes over the training images")
    p.add_argument("--batch-size", type=number(int, 2), help="global: shared among all processes")
    p.add_argument("--lr", type=number(float, 0), help="base learning rate; the one used is lr·batch/256, and is printed")
    p.add_argument("--warmup-epochs", type=number(float, 0), help="linear warm-up before the cosine")
    p.add_argument("--weight-decay", type=number(float, 0), default=1e-4, help="default 1e-4; never on biases and norms")
    p.add_argument("--tau", type=number(float, 0, open_low=True), default=0.1, help="temperature (default 0.1)")
    p.add_argument("--base-size", type=number(int, 1), default=1, help="|g0|, fibers in a bundle (default 1)")
    p.add_argument("--max-distance", type=number(float, 0), help="largest distance between the two bundles of a pair (hssl)")
    p.add_argument("--distance", choices=("euclidean", "topological"), default="euclidean", help="which distance (default euclidean, squared)")
    p.add_argument("--width", type=number(float, 0, 16, open_low=True), help="multiplies every number of channels")
    p.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="mixed precision (default auto: where the hardware has it)")
    p.add_argument("--seed", type=number(int, 0, 2 ** 31), default=0)
    p.add_argument("--out", help="run folder (default runs/<a readable name>)")
    p.add_argument("--experiment", metavar="NAME", help="add the result to results/NAME.jsonl, unless it is there; goes on with what was broken off")
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
    where = argparse.Namespace(rank=0, world=1)
    if "LOCAL_RANK" in os.environ:  # torchrun
        missing = [v for v in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]
        if missing:
            raise UsageError(f"LOCAL_RANK is set but {missing[0]} is not: start with torchrun, or unset LOCAL_RANK")
        where.rank, where.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.is_available()
    where.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where.device)
        good = torch.cuda.is_bf16_supported()
    else:
        good = any(torch.cpu.get_capabilities().get(k) for k in ("avx512_bf16", "amx_bf16"))
        keep_freed_memory()
    where.dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16,
                   "auto": torch.bfloat16 if good else torch.float16 if cuda else None}[args.amp]
    if where.world > 1:
        if args.batch_size % where.world:
            near = args.batch_size // where.world * where.world or where.world
            raise UsageError(f"--batch-size {args.batch_size} does not divide among {where.world} processes: take {near}")
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=30))
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
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = x if x.dtype == torch.float64 else x.float()
        count = torch.tensor([float(x.numel() // x.shape[1])], dtype=y.dtype)
        total = AllReduce.apply(torch.cat([y.sum(axes), count]))  # (C + 1,)
        n = total[-1]
        centred = y - (total[:-1] / n).view(shape)
        variance = AllReduce.apply(centred.pow(2).sum(axes)) / n  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_((total[:-1] / n).to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class AllReduce(torch.autograd.Function):
    """The sum over all processes, forward and backward."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


def synchronise(module):
    """Replace every BatchNorm by one over all processes (in place on the CPU)."""
    if torch.cuda.is_available():
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            norm = SyncBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            norm.load_state_dict(child.state_dict())
            norm.requires_grad_(child.weight.requires_grad)
            setattr(module, name, norm)
        else:
            synchronise(child)
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
            return losses.a_ssl(f, h, x, self.draws.images, *draws, self.draws.map)  # (B, D) twice
        if self.args.loss == "hybrid":
            return losses.hybrid(f, h, x, self.draws.map, *draws[:3], self.draws.images, *draws[3:])  # (B, D) twice
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
            loss = losses.regress(self.q(y1), self.q(y2), t1, t2)
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
def save(path, args, run, model, optimizer, scaler):
    """Write a checkpoint so that a whole one is there at every moment: write, fsync, keep the last, rename."""
    try:
        with open(path + ".tmp", "wb") as file:
            torch.save(dict(args=config_of(args), step=run.step, seconds=run.seconds, model=model.state_dict(),
                            optimizer=optimizer.state_dict(), scaler=scaler.state_dict()), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise UsageError(f"can't write {path} ({str(error).splitlines()[0]}): the last checkpoint is kept; make room, "
                         "then --resume") from None
    if os.path.exists(path):
        os.replace(path, path + ".previous")
    os.replace(path + ".tmp", path)


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
            scaler.load_state_dict(state["scaler"])
            run.step, run.seconds = int(state["step"]), float(state["seconds"])
            if refused and int(os.environ.get("RANK", 0)) == 0:
                print(f"warning: refused {refused[0]}; going on from {candidate}, step {run.step}", file=sys.stderr)
            return
        except Exception as error:  # torn, truncated, foreign, hostile: torch has many names for it
            refused.append(f"{candidate} ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})")
    if refused:
        raise UsageError(f"can't resume: refused {' and '.join(refused)}; nothing was changed, take another --out to start anew")


NOT_CONFIG = ("resume", "out", "data_dir", "checkpoint_minutes", "experiment", "defaults", "lock")


def config_of(args):
    """What must be equal for a run to go on: every flag but where it lies and how it is started."""
    return {k: v for k, v in sorted(vars(args).items()) if k not in NOT_CONFIG}


def open_folder(args):
    """Make the run folder, or check that this run may go on in it.  Raises UsageError."""
    config, path = config_of(args), os.path.join(args.out, "config.json")
    if args.resume and not os.path.exists(path):
        raise UsageError(f"{args.out} holds no run to go on with: take --resume away")
    try:
        os.makedirs(args.out, exist_ok=True)
        hold(args)
        if os.path.exists(path):
            if not args.resume:
                raise UsageError(f"{args.out} already holds a run: --resume to go on with it, or another --out")
            try:
                old = json.load(open(path))["config"]
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{path} can't be read: take another --out") from None
            differ = [k for k in sorted(set(config) | set(old)) if config.get(k) != old.get(k)]
            if differ:
                raise UsageError("can't resume with other flags: " + ", ".join(
                    f"--{k.replace('_', '-')} was {old.get(k)}, is {config.get(k)}" for k in differ))
        else:
            write_json(path, dict(config=config, argv=sys.argv, code=code_version(), torch=torch.__version__))
    except OSError as error:
        raise UsageError(f"can't write into {args.out} ({error.strerror}): take another --out") from None


def hold(args):
    """Keep the run folder to this process until it ends, however it ends.  Raises UsageError."""
    if fcntl:
        args.lock = open(os.path.join(args.out, "lock"), "w")
        try:
            fcntl.flock(args.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is at work in {args.out}: wait for it, or take another --out") from None


def results_of(experiment):
    """The finished runs of results/EXPERIMENT.jsonl: a list of dicts, one a line; a torn line counts for nothing."""
    path, rows = os.path.join("results", f"{experiment}.jsonl"), []
    for line in open(path) if os.path.exists(path) else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def listed(args):
    """Whether this run's result is in results/ already; one that another experiment has is listed here as well."""
    files = sorted(os.listdir("results")) if os.path.isdir("results") else []
    names = [args.experiment] + [n[:-6] for n in files if n.endswith(".jsonl") and n[:-6] != args.experiment]
    config = config_of(args)
    for name in names:
        for row in results_of(name):
            old = row["config"]  # a flag that is newer than the row had its default
            if all(old.get(k, args.defaults[k]) == v for k, v in config.items()):
                if name != args.experiment:
                    list_result(args, row)
                print(f"{args.experiment}: seed {args.seed} of {args.loss} is there, top-1 {row['top1']:.2f} %")
                return True
    return False


def list_result(args, result):
    """Append one line to results/EXPERIMENT.jsonl."""
    os.makedirs("results", exist_ok=True)
    with open(os.path.join("results", f"{args.experiment}.jsonl"), "a") as file:
        file.write(json.dumps(dict(result, experiment=args.experiment)) + "\n")


def write_json(path, value):
    with open(path + ".tmp", "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(path + ".tmp", path)


def code_version():
    """The git commit of this file, "-dirty" if it is changed; None outside a checkout."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=os.path.dirname(os.path.abspath(__file__)),
                              capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curves(folder):
    """curves.png from metrics.jsonl: the loss, and what shows a collapse."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    lines = [json.loads(line) for line in open(os.path.join(folder, "metrics.jsonl"))]
    lines = [line for line in lines if "loss" in line]
    if not lines:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    steps = [line["step"] for line in lines]
    axes[0].plot(steps, [line["loss"] for line in lines], label="loss")
    if "chance" in lines[0]:
        axes[0].axhline(lines[0]["chance"], color="grey", ls=":", label="at chance")
    for key in ("positive_similarity", "negative_similarity", "spread", "positive_rank"):
        if key in lines[0]:
            axes[1].plot(steps, [line[key] for line in lines], label=key.replace("_", " "))
    for ax in axes:
        ax.set_xlabel("step")
        if ax.lines:
            ax.legend(fontsize=8)
    figure.savefig(os.path.join(folder, "curves.tmp.png"), dpi=110)
    os.replace(os.path.join(folder, "curves.tmp.png"), os.path.join(folder, "curves.png"))
    plt.close(figure)


# ---------------------------------------------------------------- the run
def main(argv=None):
    args = parse(argv)
    if args.experiment and listed(args):
        return
    where = setup(args)
    images = data.load(args.dataset, args.data_dir, args.train_size, args.seed, args.test_size)
    n, c_in, size = len(images.train_x), images.train_x.shape[1], images.train_x.shape[-1]
    if args.batch_size > n:
        raise UsageError(f"--batch-size {args.batch_size} is more than the {n} training images: take at most {n}")

    # the networks: the same on every process, from the seed
    torch.manual_seed(args.seed)
    mean, std = data.mean_std(images.train_x)
    try:
        f, h, classifier = backbones.build(images.kind, args.group, args.backbone, args.width, images.classes,
                                           size, c_in, mean, std, args.base_size)
        with torch.no_grad():
            positions = f.eval()(torch.zeros(1, c_in, size, size)).shape[-1]  # H' of z
        draws = losses.Draws(args.loss, args.group, args.backbone == "equivariant", f.order, size, positions, f.stride,
                             args.base_size, args.max_distance, args.distance)
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = Objective(args, f.train(), h, classifier, draws).to(where.device)
    if where.world > 1:
        model = synchronise(model)
    optimizer = LARS((p for p in model.parameters() if p.requires_grad), weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(where.device.type, enabled=where.dtype == torch.float16)

    # how long, and from where
    run = argparse.Namespace(step=0, seconds=0.0, per_epoch=n // args.batch_size)  # what fills no batch waits a shuffle
    run.steps, run.warmup = args.epochs * run.per_epoch, round(args.warmup_epochs * run.per_epoch)
    run.peak = args.lr * args.batch_size / 256
    agree(lambda: open_folder(args), where)
    if args.resume:
        resume(args, run, model, optimizer, scaler)
    if where.rank == 0:
        print(f"{args.loss} on {args.dataset}: {n:,} images of {size} px, group {args.group}, backbone {args.backbone}, "
              f"{sum(p.numel() for p in f.parameters()):,} parameters; batch {args.batch_size} over {where.world} "
              f"process{'es' * (where.world > 1)}, learning rate {run.peak:.3g}, {run.steps} steps, "
              f"{str(where.dtype).split('.')[-1] if where.dtype else 'float32'} on {where.device.type}", flush=True)

    train(args, where, run, images, model, optimizer, scaler)

    started = time.time()
    if where.rank == 0:  # the detached classifier, on frozen features
        result = probe.evaluate(f, classifier, images, where.device, where.dtype, args.seed, quiet=False)
        result |= dict(equivariance_error=draws.equivariance(f, images.test_x[:256].to(where.device).float() / 255),
                       parameters=sum(p.numel() for p in f.parameters()), train_seconds=round(run.seconds, 2),
                       seconds=round(time.time() - started + run.seconds, 2), cpu_seconds=round(time.process_time(), 1), processes=where.world,
                       images_per_second=round(run.steps * args.batch_size / run.seconds, 1) if run.seconds else None,
                       code=code_version(), torch=torch.__version__, threads=torch.get_num_threads(), config=config_of(args))
        write_json(os.path.join(args.out, "result.json"), result)
        if args.experiment:
            list_result(args, result)
        print(f"top-1 {result['top1']:.2f} %   kNN {result['knn']:.2f} %   trained {run.seconds:.0f} s   {args.out}", flush=True)
    if where.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def train(args, where, run, images, model, optimizer, scaler):
    """The loop, from run.step to run.steps; adds the time it took to run.seconds."""
    first, checkpoint = where.rank == 0, os.path.join(args.out, "checkpoint.pt")
    x_all, y_all = images.train_x.to(where.device), images.train_y.to(where.device)
    share = args.batch_size // where.world
    mine = slice(where.rank * share, (where.rank + 1) * share)
    wrapped = DistributedDataParallel(model) if where.world > 1 and run.steps else model
    log, bar = (open_log(args, run.step), progress(run)) if first else (None, None)
    asked, before, epoch = catch_signals(), run.seconds, None
    started = saved = time.time()

    while run.step < run.steps:
        if run.step // run.per_epoch != epoch:
            epoch = run.step // run.per_epoch
            order = torch.randperm(len(x_all), generator=seeded(args.seed, epoch, 1))  # (N,)
        batch = order[run.step % run.per_epoch * args.batch_size:][:args.batch_size][mine].to(where.device)  # (B,)
        drawn = [g[mine].to(where.device) for g in model.draws(args.batch_size, seeded(args.seed, run.step, 2))]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, run.steps, run.warmup, run.peak)

        with torch.autocast(where.device.type, where.dtype, enabled=where.dtype is not None):
            loss, y1, y2 = wrapped(x_all[batch].float() / 255, y_all[batch], *drawn)  # x: raw intensities in 0 … 1
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if any_rank(not finite(loss, model, scaler), where):
            raise UsageError(f"loss or gradient is not finite at step {run.step} (epoch {epoch}); the last checkpoint is "
                             "kept: take a smaller --lr, more --warmup-epochs, or --amp off")
        scaler.step(optimizer)
        scaler.update()
        model.follow()
        run.step += 1
        run.seconds = before + time.time() - started
        stop, last = any_rank(asked["signal"], where), run.step == run.steps

        if first:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
            if run.step % min(run.per_epoch, 50) == 0 or last or stop:
                line = dict(step=run.step, epoch=round(run.step / run.per_epoch, 3), loss=loss.item(),
                            lr=optimizer.param_groups[0]["lr"], seconds=round(run.seconds, 2),
                            images_per_second=round(run.step * args.batch_size / run.seconds, 1))
                if y1 is not None:
                    line |= dict(losses.diagnostics(y1, y2), chance=2 if args.objective in ("byol", "simsiam") else losses.chance(args.batch_size, args.objective),
                                 equivariance_error=model.draws.equivariance(model.f, x_all[:32].float() / 255))
                log.write(json.dumps(line) + "\n")
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
    if first:
        bar.close()
        if not os.path.exists(checkpoint):
            save(checkpoint, args, run, model, optimizer, scaler)  # frozen, or --epochs 0: the weights as drawn


# ---------------------------------------------------------------- small parts of the loop
def seeded(*key):
    """A CPU generator that depends on nothing but the key (ints below 2³¹)."""
    mixed = 0
    for k in key:
        mixed = (mixed * 1_000_003 + k + 1) % (2 ** 63 - 25)
    return torch.Generator().manual_seed(mixed)


def finite(loss, model, scaler):
    """Whether loss and gradients are numbers (under fp16 the scaler sees to the gradients: it skips such a step)."""
    grads = [] if scaler.is_enabled() else [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.stack([loss.detach().float(), *(n.float() for n in torch._foreach_norm(grads))]).isfinite().all())


def agree(act, where):
    """Do on the first process what only it does; if it can't, all of them stop."""
    problem = None
    if where.rank == 0:
        try:
            act()
        except UsageError as error:
            problem = error
    if any_rank(problem is not None, where):
        raise problem or UsageError("the first process stopped")


def any_rank(flag, where):
    """The largest of all processes' flags (ints or bools), so that all of them stop at the same step."""
    if where.world == 1:
        return flag
    flag = torch.tensor(int(flag), device=where.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag)


def catch_signals():
    """SIGTERM and Ctrl-C ask the loop to stop after its step; a second one stops at once."""
    asked = {"signal": 0}

    def handler(number, frame):
        asked["signal"] = number
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    return asked


def open_log(args, step):
    """metrics.jsonl, opened to append, without lines of steps that a resumed run will do again."""
    path = os.path.join(args.out, "metrics.jsonl")
    lines = []
    if os.path.exists(path):
        for line in open(path):
            with contextlib.suppress(ValueError):  # a torn last line
                if json.loads(line).get("step", 0) <= step:
                    lines.append(line)
    with open(path + ".tmp", "w") as file:
        file.writelines(lines or [json.dumps(dict(argv=sys.argv, code=code_version(), config=config_of(args))) + "\n"])
    os.replace(path + ".tmp", path)
    return open(path, "a")


def progress(run):
    """A bar with loss and time left, silent when nobody watches."""
    return tqdm(total=run.steps, initial=run.step, unit="step", disable=None, dynamic_ncols=True)


if __name__ == "__main__":
    try:
        main()
    except (UsageError, data.DataError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
