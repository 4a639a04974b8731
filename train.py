"""Train one network with H-SSL (Eq. 3), A-SSL (Eq. 2) or labels: on a CPU, one GPU or many GPUs.

    python train.py                                              # 4,000 real digits, two CPU cores
    python train.py --dataset mnist --data-dir data --loss assl  # 500 epochs, as in the paper
    torchrun --nproc_per_node=8 train.py --dataset mnist --group rot --loss hssl

A run is a folder: metrics.jsonl (one JSON object a line), checkpoint.pt, and at the end result.json
and curves.png.  Stop it as you like (Ctrl-C, kill -9, a lost machine): the same command goes on
from its last checkpoint.  The presets of mnist, cifar10 and tiny-imagenet are those of Keller,
Suau & Zappella (2023), Appendix B.

Batches are drawn with (seed, epoch), everything else with (seed, step), for the whole batch, and
each process takes its share.  BatchNorm and negatives are over all processes.  So N processes
compute what one would (the log shows the first one's share), and a continued run what an unbroken
one would (bit for bit on a CPU with the same number of threads).  Needs all siblings.
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
import sys
import threading
import time
import zipfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import data
import gconv
import losses
import probe
from data import UsageError
from syncnorm import synchronise

# ---- the command line
SMALL = dict(epochs=20, batch_size=256, lr=2.0, warmup_epochs=1.0)  # for two CPU cores
PAPER = dict(epochs=1300, batch_size=4096, lr=0.1, warmup_epochs=10.0)
PRESETS = {
    "mnist5k": SMALL,
    "mnist": PAPER | dict(epochs=500),
    "cifar10": PAPER,
    "tiny-imagenet": PAPER,
    "folder": SMALL,
}
CHOICES = {  # the first is the default
    "dataset": (tuple(PRESETS), "the images; mnist5k needs no download"),
    "group": (("rot", "scale", "trans", "rotscale"), "turns by 90°, scales, translations"),
    "loss": (("hssl", "assl", "supervised", "frozen"), "Eq. 3, Eq. 2, labels, or untrained"),
    "augment": (("none", "shift", "jitter"), "change each view by itself (hssl: two passes)"),
    "objective": (
        ("infonce", "ntxent", "bilinear", "byol", "simsiam"),
        "how views are compared: Eq. 2, SimCLR, DIM(L), and two without negatives",
    ),
    "pairs": (("own", "matched"), "matched: the same g0, g1, g2 for assl and hssl (trans)"),
    "draw": (("image", "batch"), "slots: new ones for each image, or one draw for a batch"),
    "distance": (("euclidean", "topological"), "unit of --max-distance, see groups.py"),
    "backbone": (("equivariant", "cnn", "mlp"), "cnn, mlp: Table 2, without structure"),
    "pool": (("mean", "max"), "how a fiber is pooled over space"),
    "amp": (("auto", "bf16", "fp16", "off"), "auto: half precision where it is fast"),
}
NUMBERS = {  # type, default, smallest, meaning
    "train-size": (int, None, 2, "use N training images, chosen with --seed"),
    "test-size": (int, None, 1, "use N test images, the same for every seed"),
    "image-size": (int, None, 16, "pad, crop or resize to N px"),
    "tau": (float, 0.1, 1e-4, "temperature of InfoNCE"),
    "base-size": (int, 1, 1, "|g0|, slots in a bundle (SimCLR and Table 2's assl: all)"),
    "max-distance": (float, None, 0, "hssl: how far apart two slots may be; 1: neighbours, 0: one"),
    "strength": (float, 0.2, 0, "largest shift, of the size (assl, --pairs matched, shift)"),
    "width": (float, 1.0, 1e-3, "factor for every number of channels"),
    "functions": (int, None, 1, "basis functions of the first layer (default all)"),
    "extent": (int, 1, 1, "slots that a filter spans, 1 … all (Eq. 4 as it is)"),
    "epsilon": (float, 0.0, 0, "break Eq. 1 by so much, relative to the weights"),
    "epochs": (int, None, 0, "passes over the images (default of these four: see below)"),
    "batch-size": (int, None, 2, "images in a step, over all processes"),
    "lr": (float, None, 0, "the peak rate is lr * batch size / 256"),
    "warmup-epochs": (float, None, 0, "epochs of linear warm-up"),
    "weight-decay": (float, 1e-4, 0, "not for biases and norms"),
    "seed": (int, 0, 0, "of weights, batches, group elements and --train-size"),
    "probe-epochs": (int, 0, 0, "also measure before every N epochs, for metrics.jsonl"),
    "probe-size": (int, None, 2, "learn the read-outs on N training images (default all)"),
}
SIGNALS = [getattr(signal, s) for s in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, s)]
# may differ when a run goes on: where it runs, and what is measured
FREE = ("out", "data_dir", "device", "probe_epochs", "probe_size", "before")


def parse(argv=None):
    """The command line → a namespace, with the presets filled in.  Raises UsageError."""
    p = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(f"{name:14} {preset}" for name, preset in PRESETS.items()),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, (values, text) in CHOICES.items():
        text = f"{text} (default {values[0]})"
        p.add_argument(f"--{name}", choices=values, default=values[0], help=text)
    for name, (kind, default, _, text) in NUMBERS.items():
        if default is not None:
            text = f"{text} (default {default})"
        p.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    add = p.add_argument
    add("--data-dir", default="data", help="folder of the images, also for downloads")
    text = "compute the slots that a loss reads, or all (default with |g0| or extent > 1)"
    add("--slots", choices=("sampled", "all"), help=text)
    add("--device", choices=("cuda", "cpu"), help="default: cuda if it is there")
    add("--out", help="the run's folder (default: runs/ and dataset, group, loss, backbone, seed)")
    text = "also measure the untrained network (default for mnist5k and folder)"
    add("--before", action=argparse.BooleanOptionalAction, help=text)

    args = p.parse_args(argv)
    for name, value in PRESETS[args.dataset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, (_, _, smallest, _) in NUMBERS.items():
        value = getattr(args, name.replace("-", "_"))
        if value is not None and not smallest <= value < 1e9:
            wanted = f"take {smallest} or more, below 1e9"
            raise UsageError(f"--{name} {value:g} is out of range: {wanted}")
    if args.loss == "frozen":
        args.epochs = 0
    if args.before is None:
        args.before = args.dataset in ("mnist5k", "folder")
    if args.out is None:
        name = f"{args.dataset}-{args.group}-{args.loss}-{args.backbone}-seed{args.seed}"
        args.out = os.path.join("runs", name)

    learns = args.loss in ("hssl", "assl")
    structured = args.backbone == "equivariant"
    lifted = structured and args.group != "trans"
    shifts = args.group == "trans" and (args.loss == "assl" or args.pairs == "matched")
    used = dict(  # a flag of the loss or network that would change nothing is refused
        augment=args.loss != "frozen",
        objective=learns,
        tau=learns and args.objective not in ("byol", "simsiam"),
        pairs=learns and args.group == "trans" and structured,
        base_size=learns and args.pairs == "own",
        draw=learns and args.pairs == "own",
        max_distance=args.loss == "hssl" and args.pairs == "own",
        distance=args.max_distance is not None,
        strength=args.augment == "shift" or shifts,
        functions=structured,
        extent=structured,
        pool=lifted,
        epsilon=lifted,
        slots=args.slots == "all" or (learns and lifted and args.extent == 1),
    )
    for name, is_used in used.items():
        if not is_used and getattr(args, name) != p.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} changes nothing with these other flags: leave it out")
    args.slots = args.slots or ("sampled" if args.base_size == args.extent == 1 else "all")
    return args


def config_of(args):
    """The settings that must be equal for a run to go on: a dict."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in FREE}


# ---- the optimiser, its schedule
class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), in FAIR's form:

        d = g + wd·p        the direction of the step
        q = η·‖p‖ / ‖d‖     the trust ratio of each tensor (1 if a norm is 0)
        v = m·v + q·d       momentum
        p = p - lr·v

    Tensors of one dimension (biases, norms) get q = 1 and wd = 0.  Needs only torch."""

    def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=1e-4, eta=0.001):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta))

    @torch.no_grad()
    def step(self, closure=None):
        """Move every tensor that has a gradient, in place → closure(), if there is one."""
        loss = torch.enable_grad()(closure)() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                d = p.grad
                if d is None:
                    continue
                if p.dim() > 1:
                    d = d.add(p, alpha=group["weight_decay"])
                    size = p.norm()
                    length = d.norm()
                    q = group["eta"] * size / length
                    d = d * torch.where((size > 0) & (length > 0), q, 1.0)
                if not self.state[p]:
                    self.state[p]["v"] = torch.zeros_like(p)
                v = self.state[p]["v"]
                v.mul_(group["momentum"]).add_(d)
                p.add_(v, alpha=-group["lr"])
        return loss


def learning_rate(step, steps, warmup, peak):
    """Linear warm-up to `peak` over `warmup` steps, then a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---- what is learned
class Objective(nn.Module):
    """The loss of a share of a batch.

    x, x2   (B, C_in, H, W) images in 0 … 1; x2: those of the second view, or None for the same
    labels  (B,)
    drawn   g0 (B, |g0|), g1 and g2 (B,)
    Returns the loss, and y1, y2 (B, D), which are None if supervised."""

    def __init__(self, args, f, h, classifier, pairs):
        super().__init__()
        self.args = args
        self.pairs = pairs
        self.f = f
        self.h = h
        self.classifier = classifier
        h.requires_grad_(args.loss not in ("supervised", "frozen"))
        classifier.requires_grad_(args.loss == "supervised")  # else probe.py fits a linear layer
        self.regresses = args.objective in ("byol", "simsiam")
        self.chance = 2 if self.regresses else losses.chance(args.batch_size, args.objective)
        d = h[-1].num_features  # D
        self.W = None
        if args.objective == "bilinear":
            self.W = nn.Parameter(torch.eye(d) / d)  # (D, D)
        if self.regresses:
            hidden = (nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU())
            self.q = nn.Sequential(*hidden, nn.Linear(d, d))  # the predictor
        if args.objective == "byol":
            self.target = copy.deepcopy(nn.ModuleList([f, h])).requires_grad_(False)

    def forward(self, x, x2, labels, *drawn):
        objective = self.args.objective
        if self.args.loss == "supervised":
            logits = self.classifier(self.f(x))  # (B, classes)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(logits, labels), None, None
        y1, y2 = self.pairs.views(self.f, self.h, x, *drawn, x2=x2)  # (B, D) twice
        if self.regresses:
            t1, t2 = y1, y2
            if objective == "byol":
                t1, t2 = self.pairs.views(*self.target, x, *drawn, x2=x2)  # (B, D) twice
            loss = losses.cosine_regression(self.q(y1), self.q(y2), t1, t2)
        else:
            denominator = "ntxent" if objective == "ntxent" else "paper"
            loss = losses.info_nce(y1, y2, self.args.tau, denominator, self.W)
        return loss, y1.detach(), y2.detach()

    @torch.no_grad()
    def update_target(self, momentum=0.99):
        """BYOL's slow copy: target ← m·target + (1 - m)·(f, h), after each step."""
        if self.args.objective == "byol":
            fast = [*self.f.parameters(), *self.h.parameters()]
            for slow, p in zip(self.target.parameters(), fast, strict=True):
                slow.lerp_(p, 1 - momentum)


# ---- processes, precision, checkpoints
def start(wanted=None):
    """Join the other processes, if torchrun started this one → rank, rank on this machine, number
    of processes, device."""
    rank = int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda is not there: take cpu")
    device = torch.device(name)
    if name == "cpu":
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            # Else glibc gives freed memory back after each step, and faults its pages again.
            ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
            ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    if name == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(f"process {local} has no GPU: start one per GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        probe.full_float32()  # --amp off means float32
    if world > 1:
        wait = datetime.timedelta(days=1)  # the first process may download, or measure
        if name == "cuda":
            dist.init_process_group("nccl", timeout=wait, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=wait)
    return rank, local, world, device


def precision(amp, device):
    """The dtype for autocast, by name.  auto: half precision if the hardware has it."""
    if amp == "auto" and device.type == "cuda":
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif amp == "auto":
        found = getattr(torch.cpu, "get_capabilities", dict)()
        amp = "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "off"
    return {"off": "float32", "bf16": "bfloat16", "fp16": "float16"}[amp]


def largest(device, *values):
    """The maxima of ints over all processes, so that all decide alike."""
    values = torch.tensor(values)
    if dist.is_initialized():
        values = values.to(device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def in_turn(act, rank, local, device):
    """act() on every process: first the first of all, then the first of each machine, then the
    others, since it may download files.  If one of them fails, all end."""
    given = problem = None
    for turn in (rank == 0, rank > 0 and local == 0, local > 0):
        try:
            given = act() if turn else given
        except UsageError as error:
            problem = error
        if largest(device, problem is not None)[0]:
            raise problem or SystemExit(2)
    return given


def load_run(args):
    """The checkpoint in the run's folder, or None.  Raises UsageError if the folder is not ours."""
    path = os.path.join(args.out, "checkpoint.pt")
    if not os.path.exists(path):
        for name in ("metrics.jsonl", "result.json", "curves.png"):
            if os.path.exists(os.path.join(args.out, name)):
                raise UsageError(f"{args.out} has a {name} of something else: take another --out")
        return None
    try:
        if zipfile.ZipFile(path).testzip():  # a zip file: each part has a checksum
            raise ValueError("damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        old = dict(saved["config"])
    except Exception as error:  # truncated or foreign: torch raises many types
        raise UsageError(
            f"{path} can't be used ({type(error).__name__}): it is kept, take another --out"
        ) from None
    differ = []
    for name, value in config_of(args).items():
        if old.get(name) != value:
            differ.append(f"--{name.replace('_', '-')} {old.get(name)}")
    if differ:
        raise UsageError(f"{args.out} is a run with {', '.join(differ)}: take another --out")
    return saved


def save(path, write):
    """Write a whole file or none, with write(file): a kill at any moment leaves the old one."""
    with open(path + ".tmp", "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def lock(folder):
    """Keep other commands out of the folder as long as the file that is returned is open."""
    file = open(os.path.join(folder, "lock"), "w")
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is using {folder}: wait for it") from None
    return file


def note_signals(say):
    """A list that gets the number and time of each TERM, INT or HUP.  More than a second later
    another one ends the process at once, even in a hanging collective: so a thread hears them."""
    came = []
    hear, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen():
        while True:
            number = os.read(hear, 1)[0]
            if came and time.monotonic() - came[0][1] > 1:  # torchrun may send it twice
                os._exit(128 + number)
            if not came:
                say("stopping after this step; another signal ends the process at once")
            came.append((number, time.monotonic()))

    for n in SIGNALS:
        if signal.getsignal(n) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(n, lambda *_: None)
    signal.set_wakeup_fd(tell)
    threading.Thread(target=listen, daemon=True).start()
    return came


def fit_into_memory(model, args, x, share, device, dtype, world=1):
    """Let the layers compute again, in the backward pass, what would not fit if it were kept.

    x      (M, C_in, H, W); we count what a copy of the model keeps for these, once and twice
    share  images of a batch for this process
    Raises UsageError if they don't fit at all."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]  # that is free
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory /= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the processes of this machine
    else:
        return

    drawn = model.pairs.draw(len(x), seeded(args.seed))
    labels = x.new_zeros(len(x)).long()

    def kept(times):
        x1, *given = [torch.cat([t] * times) for t in (x, labels, *drawn)]
        x2 = None if args.augment == "none" else x1
        held = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                copy.deepcopy(model)(x1, x2, *given)
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    for recompute in (False, True):
        gconv.GConv.recompute = recompute
        once = kept(1)
        each = (kept(2) - once) / len(x)  # bytes for one image more
        too_much = once + each * (share - len(x)) > 0.7 * memory
        if not largest(device, too_much)[0]:  # the same on every process
            return
    fits = max(2, int((0.7 * memory - once) / each) + len(x))
    raise UsageError(
        f"{share} images in each process need {each * share / 2**30:.1f} GiB, and there are "
        f"{memory / 2**30:.1f}: take --batch-size {fits * world}, or a smaller --width"
    )


def seeded(*key):
    """A CPU generator that depends only on the key (ints below 2³¹)."""
    mixed = 0  # below 2⁶³ - 25, a prime
    for k in key:
        mixed = (mixed * 1_000_003 + k + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)


# ---- the run, in order
def main(argv=None):
    """The command inside Python.  Afterwards signals do what they did before."""
    args = parse(argv)
    fd = signal.set_wakeup_fd(-1)
    before = [(n, signal.getsignal(n)) for n in SIGNALS]
    try:
        run(args)
    finally:
        for each in before:
            signal.signal(*each)
        signal.set_wakeup_fd(fd)


def run(args):  # noqa: C901
    """From the loop on it keeps SIGNALS; while it measures, one ends it."""
    rank, local, world, device = start(args.device)

    def say(text):
        if rank == 0:
            print(text, flush=True)

    # ---- what is there: a finished run, one to go on with, or nothing
    saved = in_turn(lambda: load_run(args), rank, local, device)
    finished = os.path.join(args.out, "result.json")
    old = {}
    done = None  # the report, if all is finished and measured as asked
    if saved and saved["step"] == saved["steps"] and os.path.exists(finished):
        with open(finished) as file:
            old = json.load(file)
        if (old.get("probe_size"), old.get("before")) == (args.probe_size, args.before):
            done = f"{args.out} is finished\n{probe.report(old)}"
    if done and saved["data_dir"] == os.path.abspath(args.data_dir):
        say(done)
        return
    rounding = saved["precision"] if saved else precision(args.amp, device)  # a run keeps its own
    dtype = None if rounding == "float32" else getattr(torch, rounding)
    chosen = (args.train_size, args.seed, args.test_size, args.image_size)
    images = in_turn(lambda: data.load(args.dataset, args.data_dir, *chosen), rank, local, device)
    pixels = data.fingerprint(images.train_x)
    if saved and saved["images"] != pixels:
        raise UsageError(f"{args.out} is a run on other images than {args.data_dir}: take another")
    if done:  # the same images in another place
        say(done)
        return
    n = len(images.train_x)
    if args.epochs and (args.batch_size > n or args.batch_size % world):
        fits = min(args.batch_size, n) // world * world
        raise UsageError(
            f"--batch-size {args.batch_size} does not fit {n} images and {world} process(es): "
            f"take {fits or 'fewer processes'}"
        )
    if args.loss == "supervised" and images.train_y is None:
        raise UsageError(f"the images in {args.data_dir} have no classes: take another --loss")

    # ---- networks: the same on every process, from the seed
    torch.manual_seed(args.seed)
    f, h, classifier, pairs, image_group = probe.network(vars(args), images)
    untrained = copy.deepcopy((f, classifier))  # with the BatchNorm of one process
    model = Objective(args, f, h, classifier, pairs).to(device)
    if world > 1:
        synchronise(model, but=None if args.loss == "supervised" else classifier)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = LARS(learned, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    parameters = sum(p.numel() for p in f.parameters())

    # ---- how long, and from where
    per_epoch = n // args.batch_size  # images left over wait for the next epoch
    steps = args.epochs * per_epoch
    warmup = round(args.warmup_epochs * per_epoch)
    peak = args.lr * args.batch_size / 256
    step = 0
    seconds = 0.0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        step = saved["step"]
        seconds = saved["seconds"]
    if largest(device, step) != [step]:
        raise UsageError(f"--out {args.out} must be on a disk that all processes share")
    x = images.train_x.to(device)  # (N, C_in, H, H) uint8
    y = torch.zeros(n).long() if images.train_y is None else images.train_y
    y = y.to(device)  # (N,)
    share = slice(rank * args.batch_size // world, (rank + 1) * args.batch_size // world)
    if step < steps:
        fit_into_memory(model, args, x[:8] / 255, share.stop - share.start, device, dtype, world)
    say(
        f"{args.loss} on {args.dataset}: {n:,} images of {x.shape[-1]} px, group {args.group}, "
        f"{args.backbone}, {parameters:,} parameters; batch {args.batch_size} over {world} "
        f"process(es), learning rate {peak:.3g}, steps {step} … {steps}, {rounding} on {device}"
    )
    if 0 < steps <= warmup:
        say(f"note: --warmup-epochs {args.warmup_epochs:g}: the rate never reaches {peak:.3g}")

    advice = "the last checkpoint is kept: take a smaller --lr or --amp off, and another --out"

    def save_run():
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise UsageError(f"weights are not finite at step {step}; {advice}")
        state = dict(config=config_of(args), images=pixels, precision=rounding)
        state["data_dir"] = os.path.abspath(args.data_dir)
        state |= dict(step=step, steps=steps, seconds=seconds, model=model.state_dict())
        state |= dict(optimizer=optimizer.state_dict(), scaler=scaler.state_dict())
        path = os.path.join(args.out, "checkpoint.pt")
        save(path, lambda file: torch.save(state, file))

    if rank == 0:
        os.makedirs(args.out, exist_ok=True)
        held = lock(args.out)  # noqa: F841  open until the end
        there = load_run(args)
        if (there["step"] if there else 0) != step:
            raise UsageError(f"another process has just gone on with {args.out}: start again")
        if not saved:
            save_run()  # before the log: a folder with a log can always go on
        log = open_log(os.path.join(args.out, "metrics.jsonl"), step)

    # ---- the loop
    signals = note_signals(say)
    wrapped = DistributedDataParallel(model) if world > 1 and steps else model
    bar = tqdm(total=steps, initial=step, unit="step", disable=rank > 0 or not sys.stderr.isatty())
    started = time.perf_counter() - seconds  # as if unbroken
    saved_at = time.perf_counter()
    shuffled = None
    stop = 0
    while step < steps and not stop:
        if rank == 0 and args.probe_epochs and step % (args.probe_epochs * per_epoch) == 0:
            paused = time.perf_counter()
            copies = copy.deepcopy(untrained)  # measuring changes modes and BatchNorm
            for part, now in zip(copies, (f, classifier)):
                part.to(device).load_state_dict(now.state_dict())
            found = probe.evaluate(*copies, image_group, images, device, dtype, args.probe_size)
            log.write(json.dumps(dict(step=step) | found) + "\n")
            started += time.perf_counter() - paused  # only the training counts
        epoch = step // per_epoch
        if shuffled is None or step % per_epoch == 0:
            shuffled = torch.randperm(n, generator=seeded(args.seed, epoch, 1)).to(device)  # (N,)
        batch = shuffled[step % per_epoch * args.batch_size :][: args.batch_size][share]
        drawn = pairs.draw(args.batch_size, seeded(args.seed, step, 2))
        drawn = [g[share] for g in drawn]  # (B, …) each, still on the CPU
        x1 = x[batch] / 255  # (B, C_in, H, H) in 0 … 1
        x2 = None
        if args.augment != "none":  # each view is changed by itself
            u = torch.rand(2, args.batch_size, 9, generator=seeded(args.seed, step, 3))
            u1, u2 = u[:, share].to(x1)  # (B, 9) twice
            augment = getattr(data, args.augment)
            x2 = augment(x1, u2, args.strength)
            x1 = augment(x1, u1, args.strength)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, peak)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss, y1, y2 = wrapped(x1, x2, y[batch], *drawn)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        bad, stop = largest(device, not finite(loss, model, scaler), len(signals))
        if bad:
            raise UsageError(f"loss or gradient is not finite at step {step}; {advice}")
        scaler.step(optimizer)
        scaler.update()
        model.update_target()
        step += 1
        seconds = time.perf_counter() - started

        ends = step % per_epoch == 0
        if rank > 0:
            continue
        bar.update()
        if ends or stop or step % 50 == 0:
            line = dict(step=step, epoch=step / per_epoch, loss=loss.item(), seconds=seconds)
            line["lr"] = optimizer.param_groups[0]["lr"]
            log.write(json.dumps(line | measure(model, image_group, y1, y2, x)) + "\n")
            log.flush()
            os.fsync(log.fileno())  # before the checkpoint: what it has seen is in the log
        if ends or stop or time.perf_counter() - saved_at > 600:
            save_run()
            saved_at = time.perf_counter()
        if ends and bar.disable and not stop:
            say(f"epoch {epoch + 1} of {args.epochs}   loss {loss.item():.3f}   {seconds:.0f} s")
    bar.close()
    if world > 1:
        dist.destroy_process_group()
    if stop or signals:
        say(f"stopped after step {step} of {steps}: the same command goes on")
        sys.exit(128 + signals[0][0] if signals else 1)
    if rank > 0:
        return
    signals.append((0, -math.inf))  # all is saved: one ends it

    # ---- the end: only the first process
    log.close()
    probe.draw_curves(args.out)
    measured = (image_group, images, device, dtype, args.probe_size)
    result = probe.evaluate(f, classifier, *measured)
    if args.before and steps:
        before = [part.to(device) for part in untrained]
        result["untrained"] = probe.evaluate(*before, *measured)
    result |= config_of(args) | dict(probe_size=args.probe_size, before=args.before)
    result |= dict(classes=images.classes, parameters=parameters, train_seconds=round(seconds, 2))
    where = dict(processes=world, threads=torch.get_num_threads(), precision=rounding)
    where |= dict(device=str(device), torch=torch.__version__)
    result |= where | {name: old[name] for name in where if name in old}  # of the training
    save(finished, lambda file: file.write(json.dumps(result, indent=1).encode()))
    say(f"{probe.report(result)}\ntrained {seconds:.0f} s   {args.out}")


# ---- small parts
def finite(loss, model, scaler):
    """Whether loss and gradients are finite.  Under fp16 the scaler skips a step that is not and
    halves its scale; then only the loss is checked, and that the scale is above 2⁻²⁴."""
    if scaler.is_enabled():
        return bool(loss.isfinite()) and scaler.get_scale() > 2**-24
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return bool((loss + nn.utils.get_total_norm(grads)).isfinite())


def measure(model, image_group, y1, y2, x):
    """What the log shows beside the loss: of two views y1, y2 (B, D), and of f on 32 images."""
    if y1 is None:
        return {}  # supervised
    model.f.eval()
    x = x[:32] / 255
    group, elements, g0 = probe.study(model.f, image_group, x.shape[-1])
    found = probe.distances(model.f, x, group, elements.to(x.device), g0.to(x.device))
    model.f.train()
    means = {name: probe.mean_over_g(found, name) for name in ("invariance", "equation1")}
    return losses.diagnostics(y1, y2) | means | dict(chance=model.chance)


def open_log(path, step):
    """Open metrics.jsonl to append, without the lines that will be written again."""
    kept = []
    if os.path.exists(path):
        with open(path) as file:
            lines = [line for line in file if line.endswith("\n")]
        for line in lines:
            row = json.loads(line)
            # at `step` itself the loss has been logged, and --probe-epochs measures again
            if row.get("step", -1) < step or (row["step"] == step and "loss" in row):
                kept.append(line)
    kept = kept or [json.dumps(dict(argv=sys.argv)) + "\n"]
    save(path, lambda file: file.write("".join(kept).encode()))
    return open(path, "a")


if __name__ == "__main__":
    try:
        run(parse())
    except (UsageError, OSError) as error:  # what the user can mend
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
