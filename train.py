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
import ctypes
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import backbones
import data
import groups
import losses
import probe

# ---------------------------------------------------------------- the command line
PAPER = dict(batch_size=4096, lr=0.1, warmup_epochs=10, width=1.0)  # Appendix B; the learning rate at batch 256
PRESETS = {
    "mnist5k": dict(epochs=20, batch_size=256, lr=0.5, warmup_epochs=1, width=1.0),  # made for two CPU cores
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
    p.add_argument("--group", choices=("trans", "rot", "scale", "rotscale"), default="scale", help="whose action is studied (default scale)")
    p.add_argument("--loss", choices=("hssl", "assl", "supervised", "frozen"), default="hssl", help="Eq. 3 (default), Eq. 2, labels, or no training")
    p.add_argument("--backbone", choices=("equivariant", "cnn", "mlp"), default="equivariant", help="cnn and mlp are Table 2's, without structure")
    p.add_argument("--epochs", type=number(int, 0), help="passes over the training images")
    p.add_argument("--batch-size", type=number(int, 2), help="global: shared among all processes")
    p.add_argument("--lr", type=number(float, 0), help="base learning rate; the one used is lr·batch/256, and is printed")
    p.add_argument("--warmup-epochs", type=number(float, 0), help="linear warm-up before the cosine")
    p.add_argument("--weight-decay", type=number(float, 0), default=1e-4, help="default 1e-4; never on biases and norms")
    p.add_argument("--tau", type=number(float, 0, open_low=True), default=0.1, help="temperature (default 0.1)")
    p.add_argument("--denominator", choices=("paper", "ntxent"), default="paper", help="of InfoNCE: as Eq. 2 prints it, or SimCLR's")
    p.add_argument("--base-size", type=number(int, 1), default=1, help="|g0|, fibers in a bundle (default 1)")
    p.add_argument("--max-distance", type=number(float, 0), help="largest distance between the two bundles of a pair (hssl)")
    p.add_argument("--distance", choices=("euclidean", "topological"), default="euclidean", help="which distance (default euclidean, squared)")
    p.add_argument("--width", type=number(float, 0, 16, open_low=True), help="multiplies every number of channels")
    p.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="mixed precision (default auto: where the hardware has it)")
    p.add_argument("--seed", type=number(int, 0, 2 ** 31), default=0)
    p.add_argument("--out", help="run folder (default runs/<a readable name>)")
    p.add_argument("--checkpoint-minutes", type=number(float, 0), default=10, help="and at every epoch's end (default 10)")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args = p.parse_args(argv)
    for name, value in PRESETS[args.dataset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.loss == "frozen":
        args.epochs = 0
    if args.max_distance is not None and args.loss != "hssl":
        raise UsageError("--max-distance is about H-SSL's two bundles: take it away, or take --loss hssl")
    args.out = args.out or os.path.join("runs", "-".join(
        [args.dataset, args.group, args.loss, args.backbone, f"seed{args.seed}"]))
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
        with contextlib.suppress(AttributeError, OSError):  # glibc: keep freed memory, or every step pays for page faults
            libc = ctypes.CDLL(None)
            libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    where.dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16,
                   "auto": torch.bfloat16 if good else torch.float16 if cuda else None}[args.amp]
    if where.world > 1:
        if args.batch_size % where.world:
            near = args.batch_size // where.world * where.world or where.world
            raise UsageError(f"--batch-size {args.batch_size} does not divide among {where.world} processes: take {near}")
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=30))
    return where


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
            norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
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


# ---------------------------------------------------------------- what is drawn, and what is learned
class Draws:
    """g0, g1, g2 for A-SSL and H-SSL: the two groups (of images, of the map) and which of their elements meet."""

    def __init__(self, args, f, size):
        self.args, self.hssl = args, args.loss == "hssl"
        positions = f(torch.zeros(2, f_channels(f), size, size)).shape[-1]  # H' of z
        self.images = {"trans": groups.Translation(size, size), "rot": groups.Rotation(),
                       "scale": groups.Scale(), "rotscale": groups.RotationScale()}[args.group]
        if args.backbone != "equivariant":  # an emulated axis: its elements are only numbered
            self.map = groups.Scale(tuple(1.0 + i for i in range(f.order)))
        else:
            stride = max(1, size // positions)
            self.map = groups.Translation(positions, positions, stride) if args.group == "trans" else self.images
        self.g0 = self.map.base_space(args.base_size)  # (|g0|,)
        self.places, self.allowed = groups.pairs(self.map, self.g0, args.max_distance, args.distance)
        self.augmentations = torch.arange(self.images.order)
        if args.group == "trans":  # up to ±20 % of the size (Appendix B)
            dy, dx = self.images.signed(self.augmentations)
            self.augmentations = self.augmentations[torch.maximum(dy.abs(), dx.abs()) <= int(0.2 * size)]

    def __call__(self, batch, generator):
        """→ g0 (B, |g0|), g1 (B,), g2 (B,) for a whole batch."""
        if self.hssl:
            return self.g0.expand(batch, -1), *groups.sample(self.places, self.allowed, batch, generator)
        where = self.places[torch.randint(len(self.places), (batch,), generator=generator)]  # (B,) one place for both views
        g1, g2 = (self.augmentations[torch.randint(len(self.augmentations), (batch,), generator=generator)] for _ in range(2))
        return self.map.shift_base(where, self.g0), g1, g2


def f_channels(f):
    """C_in of a backbone, from its normalisation."""
    return next(f.buffers()).shape[0]


class Objective(nn.Module):
    """What one process does to its share of a batch: images and draws → (loss, y1, y2)."""

    def __init__(self, args, f, h, classifier, draws):
        super().__init__()
        self.f, self.args, self.draws = f, args, draws
        self.h = None if args.loss == "supervised" else h
        self.classifier = classifier if args.loss == "supervised" else None

    def forward(self, x, labels, g0, g1, g2):
        args, draws = self.args, self.draws
        if args.loss == "supervised":
            logits = self.classifier(self.classifier.fixed(self.f(x)))  # (B, classes)
            return F.cross_entropy(logits.float(), labels), None, None
        if args.loss == "assl":
            y1, y2 = losses.a_ssl(self.f, self.h, x, draws.images, g0, g1, g2, draws.map)  # (B, D) twice
        else:
            y1, y2 = losses.h_ssl(self.f, self.h, x, draws.map, g0, g1, g2)  # (B, D) twice
        return losses.info_nce(y1, y2, args.tau, args.denominator), y1.detach(), y2.detach()


@torch.no_grad()
def diagnostics(y1, y2):
    """What shows a collapse: similarity of positives and negatives, the positive's rank, the spread of y.

    spread is the standard deviation of normalised y over the batch times √D: 1 on a sphere filled evenly, 0 collapsed.
    positive_rank: the share of the batch's other images that are nearer than the positive (0 best, 0.5 chance)."""
    y1, y2 = F.normalize(y1.float(), dim=1), F.normalize(y2.float(), dim=1)  # (B, D)
    similarity = y1 @ y2.T  # (B, B)
    positive = similarity.diagonal()  # (B,)
    n = len(y1)
    return dict(positive_similarity=float(positive.mean()),
                negative_similarity=float((similarity.sum() - positive.sum()) / max(1, n * (n - 1))),
                positive_rank=float((similarity > positive[:, None]).sum() / max(1, n * (n - 1))),
                spread=float(y1.std(0).mean() * y1.shape[1] ** 0.5))


# ---------------------------------------------------------------- the run folder
def save(path, state):
    """Write a checkpoint so that a good one is there at every moment: write, fsync, keep the last, rename."""
    torch.save(state, path + ".tmp")
    with open(path + ".tmp", "rb") as file:
        os.fsync(file.fileno())
    if os.path.exists(path):
        os.replace(path, path + ".previous")
    os.replace(path + ".tmp", path)


def load(path, args):
    """The newest checkpoint that is whole and of this configuration; None if there is none yet.  Raises UsageError."""
    refused = []
    for candidate in (path, path + ".previous"):
        if not os.path.exists(candidate):
            continue
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
            if not (isinstance(state, dict) and {"args", "step", "model", "optimizer", "scaler"} <= set(state)):
                raise ValueError("not a checkpoint of train.py")
        except Exception as error:  # torn, truncated, foreign or hostile: torch names many kinds
            refused.append(f"{candidate} ({type(error).__name__})")
            continue
        if refused and int(os.environ.get("RANK", 0)) == 0:
            print(f"warning: refused {refused[0]}, going on from {candidate}", file=sys.stderr)
        return state
    if refused:
        raise UsageError(f"can't resume: refused {' and '.join(refused)}; nothing was overwritten")
    return None


def config_of(args):
    """What must be equal for a run to go on: every flag but where it lies and how it is started."""
    return {k: v for k, v in sorted(vars(args).items()) if k not in ("resume", "out", "data_dir", "checkpoint_minutes")}


def open_folder(args):
    """Make the run folder, or check that this run may go on in it.  Raises UsageError."""
    config, path = config_of(args), os.path.join(args.out, "config.json")
    try:
        os.makedirs(args.out, exist_ok=True)
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
        elif args.resume:
            raise UsageError(f"{args.out} holds no run to go on with: take --resume away")
        else:
            write_json(path, dict(config=config, argv=sys.argv, code=code_version(), torch=torch.__version__))
    except OSError as error:
        raise UsageError(f"can't write into {args.out} ({error.strerror}): take another --out") from None


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
    where = setup(args)
    first = where.rank == 0
    images = data.load(args.dataset, args.data_dir, args.train_size, args.seed)
    n, size = len(images.train_x), images.train_x.shape[-1]
    if args.batch_size > n:
        raise UsageError(f"--batch-size {args.batch_size} is more than the {n} training images: take at most {n}")

    # the networks: the same on every process, from the seed
    torch.manual_seed(args.seed)
    mean, std = data.mean_std(images.train_x)
    try:
        f, h, classifier = backbones.build(images.kind, args.group, args.backbone, args.width, images.classes,
                                           size, images.train_x.shape[1], mean, std, args.base_size)
        with torch.random.fork_rng(), torch.no_grad():
            draws = Draws(args, f.eval(), size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    f.train()
    if first:
        open_folder(args)
    model = Objective(args, f, h, classifier, draws).to(where.device)
    if where.world > 1:
        model = synchronise(model)
    optimizer = LARS(model.parameters(), weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(where.device.type, enabled=where.dtype == torch.float16)

    # how long, and from where
    per_epoch = n // args.batch_size  # what doesn't fill a batch waits for the next epoch's shuffle
    steps, warmup = args.epochs * per_epoch, round(args.warmup_epochs * per_epoch)
    peak = args.lr * args.batch_size / 256
    checkpoint, step, seconds = os.path.join(args.out, "checkpoint.pt"), 0, 0.0
    state = load(checkpoint, args) if args.resume else None
    if state:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            step, seconds = state["step"], state["seconds"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"can't resume: {checkpoint} is of another network ({str(error).splitlines()[0]})") from None
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if where.world > 1 and steps else model
    if first:
        print(f"{args.loss} on {args.dataset}: {n:,} images of {size} px, group {args.group}, backbone {args.backbone}, "
              f"{sum(p.numel() for p in f.parameters()):,} parameters; batch {args.batch_size} over {where.world} "
              f"process{'es' * (where.world > 1)}, learning rate {peak:.3g}, {steps} steps, "
              f"{str(where.dtype).split('.')[-1] if where.dtype else 'float32'} on {where.device.type}", flush=True)

    seconds = train(args, where, images, wrapped, model, optimizer, scaler, checkpoint, step, seconds, steps, per_epoch, warmup, peak)
    if first:  # the detached classifier, on frozen features
        result = probe.evaluate(f, classifier, images, where.device, where.dtype, args.seed, quiet=False)
        write_json(os.path.join(args.out, "result.json"), dict(
            result, dataset=args.dataset, group=args.group, loss=args.loss, backbone=args.backbone, epochs=args.epochs,
            seed=args.seed, parameters=sum(p.numel() for p in f.parameters()), train_seconds=round(seconds, 2),
            images_per_second=round(steps * args.batch_size / seconds, 1) if seconds else None,
            processes=where.world, code=code_version()))
        print(f"top-1 {result['top1']:.2f} %   kNN {result['knn']:.2f} %   trained {seconds:.0f} s   {args.out}", flush=True)
    if where.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def train(args, where, images, wrapped, model, optimizer, scaler, checkpoint, step, seconds, steps, per_epoch, warmup, peak):
    """The loop.  Returns the seconds spent in it, earlier parts of a resumed run included."""
    first, share = where.rank == 0, args.batch_size // where.world
    mine = slice(where.rank * share, (where.rank + 1) * share)
    x_all, y_all = images.train_x.to(where.device), images.train_y.to(where.device)
    log = open_log(args, step) if first else None
    bar = progress(steps, step, first)
    stopping = catch_signals()
    drawn = saved = started = time.time()
    lasted = seconds

    def state(step):
        return dict(args=config_of(args), step=step, seconds=seconds, model=model.state_dict(),
                    optimizer=optimizer.state_dict(), scaler=scaler.state_dict())

    while step < steps:
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or step == 0 or "order" not in locals():
            order = torch.randperm(len(x_all), generator=seeded(args.seed, epoch, 1))  # (N,)
        index = order[batch * args.batch_size:(batch + 1) * args.batch_size][mine].to(where.device)  # (B,)
        drawn_g = [g[mine].to(where.device) for g in model.draws(args.batch_size, seeded(args.seed, step, 2))]
        x = x_all[index].float() / 255  # (B, C_in, H, W) raw intensities
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, peak)

        with torch.autocast(where.device.type, where.dtype, enabled=where.dtype is not None):
            loss, y1, y2 = wrapped(x, y_all[index], *drawn_g)
        if not all_finite(loss, where):
            raise UsageError(f"the loss is not finite at step {step} (epoch {epoch}): the last good checkpoint is kept; "
                             "take a smaller --lr, a longer --warmup-epochs, or --amp off")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        step += 1
        seconds = lasted + time.time() - started

        stop = any_rank(stopping["signal"], where)
        if first:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
            if step % max(1, min(per_epoch, 50)) == 0 or step == steps or stop:
                line = dict(step=step, epoch=round(step / per_epoch, 3), loss=loss.item(), lr=optimizer.param_groups[0]["lr"],
                            seconds=round(seconds, 2), images_per_second=round((step * args.batch_size) / seconds, 1))
                if y1 is not None:
                    line |= dict(diagnostics(y1, y2), chance=chance(args), equivariance_error=equivariance(model, x_all))
                log.write(json.dumps(line) + "\n")
                log.flush()
        if first and (stop or step == steps or step % per_epoch == 0 or time.time() - saved > 60 * args.checkpoint_minutes):
            save(checkpoint, state(step))
            saved = time.time()
            if saved - drawn > 20 or step == steps or stop:
                draw_curves(args.out)
                drawn = time.time()
        if stop:
            if first:
                print(f"stopped at step {step} of {steps}: go on with --resume --out {args.out}", file=sys.stderr)
            raise SystemExit(128 + stop)
    if first:
        bar.close()
        log.close()
        if not os.path.exists(checkpoint):
            save(checkpoint, state(step))
    return seconds


# ---------------------------------------------------------------- small parts of the loop
def seeded(*key):
    """A CPU generator that depends on nothing but the key (ints below 2³¹)."""
    mixed = 0
    for k in key:
        mixed = (mixed * 1_000_003 + k + 1) % (2 ** 63 - 25)
    return torch.Generator().manual_seed(mixed)


def chance(args):
    """InfoNCE when nothing is learned and every similarity is alike: the log of the number of candidates."""
    return math.log(4 * (args.batch_size - 1) if args.denominator == "paper" else 2 * args.batch_size - 1)


def equivariance(model, x_all):
    """Eq. 1's error on 32 training images at the step's weights, BatchNorm as in evaluation (None without a group)."""
    draws, f = model.draws, model.f
    if model.args.backbone != "equivariant":
        return None
    f.eval()
    g0 = draws.map.base_space(1)
    if model.args.group == "trans":  # the centre, one step down: away from the border
        g0 = g0 + draws.map.order // 2
    g = torch.full((32,), min(draws.map.width if model.args.group == "trans" else 1, draws.map.order - 1))
    x = x_all[:32].float() / 255  # (32, C_in, H, W)
    error = losses.equivariance_error(f, x, draws.map, g.to(x.device), g0.to(x.device))
    f.train()
    return error


def all_finite(loss, where):
    return not any_rank(int(not math.isfinite(loss.item())), where)


def any_rank(flag, where):
    """The largest of all processes' flags (ints), so that all of them stop at the same step."""
    if where.world == 1:
        return flag
    flag = torch.tensor(flag, device=where.device)
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


def progress(steps, step, first):
    """A bar with time left on the first process, silent when nobody watches."""
    from tqdm import tqdm
    return tqdm(total=steps, initial=step, unit="step", disable=None if first else True, dynamic_ncols=True)


if __name__ == "__main__":
    try:
        main()
    except (UsageError, data.DataError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
