"""Train one network with one loss, on a laptop, one GPU or many GPUs: A-SSL (Eq. 2), H-SSL (Eq. 3), supervised or untrained.

    python train.py                                              # 4,000 real digits, two CPU cores, one to four minutes
    python train.py --dataset mnist --data-dir data --loss assl  # 500 epochs, as in the paper; uses a GPU if there is one
    torchrun --nproc_per_node=8 train.py --dataset mnist --group rot --loss hssl

The presets of mnist, cifar10 and tiny-imagenet are the values of Keller, Suau & Zappella (2022), Appendix B.
Needs all other modules except homomorphism.py.  A run is a folder: config.json, metrics.jsonl (one JSON object on each line),
checkpoint.pt, and at the end curves.png (if it trained) and result.json.

The batches come from a generator seeded with (seed, epoch), and g0, g1, g2 from one seeded with (seed, step).  Both are drawn for
the whole batch, and each process takes its share.  So a run does not depend on the number of processes, up to rounding (the log
has the loss of the first process's share).  A resumed run equals an unbroken one: bit for bit on a CPU with the same number of threads.
"""
import argparse
import copy
import json
import math
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
import data
import launch
import losses
import probe
from checkpoint import UsageError

# ---------------------------------------------------------------- the command line
SMALL = dict(epochs=20, batch_size=256, lr=2.0, warmup_epochs=1.0)  # for two CPU cores
# SMALL on a folder (2,000 images of CIFAR-10, --width 0.25, one seed): top-1 20.3 % untrained, 34.9 % after H-SSL, each ± 1.5
PAPER = dict(epochs=1300, batch_size=4096, lr=0.1, warmup_epochs=10.0)  # Appendix B
PRESETS = {"mnist5k": SMALL, "mnist": dict(PAPER, epochs=500), "cifar10": PAPER, "tiny-imagenet": PAPER, "folder": SMALL}
EXAMPLES = """examples
  python train.py                                                         # a laptop: 4,000 digits, one to four minutes
  python train.py --dataset mnist --train-size 5000 --epochs 2 --batch-size 256 --lr 2 --warmup-epochs 0.25  # a quick test
  python train.py --dataset mnist --batch-size 1024                       # one GPU, 500 epochs
  torchrun --nproc_per_node=8 train.py --dataset mnist --loss hssl        # eight GPUs
  torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train.py --dataset cifar10  # two machines
  python train.py --out runs/NAME --resume                                # continue; add the flags of the run's start

defaults of --epochs, --batch-size, --lr, --warmup-epochs
""" + "\n".join(f"  {name:14} " + ", ".join(f"{value:g}" for value in preset.values()) for name, preset in PRESETS.items())
NOT_CONFIG = ("out", "resume", "data_dir", "checkpoint_minutes", "probe_epochs")  # may differ when a run continues


def parse(argv=None):
    """The command line → a namespace, with the presets filled in.  Raises UsageError."""
    p = launch.Parser(description=__doc__.split("\n\n")[0], epilog=EXAMPLES, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = lambda add, name, values, text: add(name, choices=values, default=values[0], help=f"{text} (default {values[0]})")
    add = p.add_argument_group("the images").add_argument
    choice(add, "--dataset", list(PRESETS), "the images; mnist5k needs no download")
    add("--data-dir", default="data", help="folder of the images, also for downloads (default data)")
    add("--train-size", type=launch.number(int, 2, 1e9), metavar="N", help="use only N training images, chosen with --seed (default all)")
    add("--test-size", type=launch.number(int, 1, 1e9), metavar="N", help="use only N test images, the same for every seed (default all)")
    add("--image-size", type=launch.number(int, 16, 1024), metavar="PX", help="pad with black, or crop, to this size; images of more than 29 px are first resized to 32 and cropped to 31 (default: 29 for MNIST and for a folder of at most 29, 31 for the others)")
    add = p.add_argument_group("the loss").add_argument
    choice(add, "--group", ("rot", "scale", "trans", "rotscale"), "rotations (90°), scales, translations, or rotations and scales")
    choice(add, "--loss", ("hssl", "assl", "supervised", "frozen"), "hssl: Eq. 3, assl: Eq. 2, supervised: labels, frozen: an untrained network")
    choice(add, "--augment", ("none", "shift", "jitter"), "an ordinary augmentation of each view by itself, beside the group. shift: by up to --strength of the size (Appendix A); jitter: stroke, grey values and shape. H-SSL then makes two passes")
    choice(add, "--objective", ("infonce", "ntxent", "bilinear", "byol", "simsiam"), "how two views are compared; infonce: Eq. 2, ntxent: SimCLR, bilinear: DIM(L); byol and simsiam: without negatives")
    add("--tau", type=launch.number(float, 1e-4, 1e4), default=0.1, help="temperature of InfoNCE (default 0.1)")
    add("--base-size", type=launch.number(int, 1, 10000), default=1, metavar="N", help="|g0|, fibers in a bundle (default 1); SimCLR: --loss assl and all fibers")
    add("--max-distance", type=launch.number(float, 0, 1e9), metavar="D", help="largest --distance between the two bundles of a pair, for hssl (default: any). 0, with --augment: both views from the same slot, that is, the augmentation alone")
    choice(add, "--distance", ("euclidean", "topological"), "the unit of --max-distance. euclidean: squared steps; topological: around the edge (trans: squared; rot: steps; scale: log of the ratio, at most 0.56)")
    add("--strength", type=launch.number(float, 0, 0.5), default=0.2, help="largest shift (assl with trans; --augment shift), as a part of the image size (default 0.2)")
    add("--slots", choices=("sampled", "all"), help="sampled: compute only the slots that a loss reads; all: compute all, so that BatchNorm sees all (default: sampled for --base-size 1, else all)")
    add = p.add_argument_group("the network").add_argument
    choice(add, "--backbone", ("equivariant", "cnn", "mlp"), "the network; cnn and mlp are those of Table 2, without structure")
    add("--width", type=launch.number(float, 0, 16, above=True), default=1.0, help="factor for every number of channels (default 1)")
    add("--functions", type=launch.number(int, 1, 11), metavar="N", help="basis functions of the first layer along each axis (default: 11 for MNIST, 7 for the others)")
    choice(add, "--pool", ("mean", "max"), "how fibers are pooled over space")
    add("--epsilon", type=launch.number(float, 0, 100), default=0.0, help="break the equivariance: change each element's coefficients by epsilon * |w| (default 0)")
    add("--unfed", action="store_true", help="probe an untrained network with its BatchNorm left at mean 0 and variance 1")
    add = p.add_argument_group("the training (--loss frozen uses only --amp and --seed)").add_argument
    add("--epochs", type=launch.number(int, 0, 1e6), help="passes over the training images (default: see the end)")
    add("--batch-size", type=launch.number(int, 2, 1e6), help="images in each step, over all processes (default: see the end)")
    add("--lr", type=launch.number(float, 0, 1e6), help="base learning rate; the peak rate is lr * batch size / 256, and is printed (default: see the end)")
    add("--warmup-epochs", type=launch.number(float, 0, 1e6), help="epochs of linear warm-up before the cosine (default: see the end)")
    add("--weight-decay", type=launch.number(float, 0, 1e6), default=1e-4, help="weight decay; biases and norms have none (default 1e-4)")
    choice(add, "--amp", ("auto", "bf16", "fp16", "off"), "mixed precision; auto: bf16 or fp16 if the hardware has it")
    add("--seed", type=launch.number(int, 0, 2 ** 31 - 1), default=0, help="seed of weights, batches, group elements and --train-size (default 0)")
    add = p.add_argument_group("the run").add_argument
    add("--out", help="the run's folder (default runs/DATASET-GROUP-LOSS-BACKBONE-seedSEED)")
    add("--checkpoint-minutes", type=launch.number(float, 0, 1e9), default=10, metavar="M", help="save after each epoch and every M minutes (default 10)")
    add("--probe-epochs", type=launch.number(int, 1, 1e6), metavar="N", help="also write the read-outs into metrics.jsonl every N epochs (default never)")
    add("--resume", action="store_true", help="continue the run in --out")
    args = p.parse_args(argv)
    for name, value in PRESETS[args.dataset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.loss == "frozen":
        args.epochs = 0
    args.slots = args.slots or ("sampled" if args.base_size == 1 else "all")
    if args.max_distance == 0 and args.augment == "none":
        raise UsageError("--max-distance 0 compares a slot with itself, which teaches nothing without an augmentation: add --augment jitter, or take a larger distance")
    learns = args.loss not in ("supervised", "frozen")
    used = dict(max_distance=args.loss == "hssl", augment=args.loss != "frozen", distance=args.max_distance is not None and args.backbone == "equivariant", unfed=args.loss == "frozen", objective=learns,
                strength=args.augment == "shift" or args.loss == "assl" and args.group == "trans", base_size=learns,
                tau=learns and args.objective not in ("byol", "simsiam"),
                **dict.fromkeys(("functions", "pool", "epsilon"), args.backbone == "equivariant"))
    for name in used:
        if getattr(args, name) != p.get_default(name) and not used[name]:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for --group {args.group} --loss {args.loss} --backbone {args.backbone}: leave it out")
    args.out = args.out or os.path.join("runs", f"{args.dataset}-{args.group}-{args.loss}-{args.backbone}-seed{args.seed}")
    return args


def config_of(args):
    """The settings that must be equal for a run to continue: a dict."""
    return {k: v for k, v in sorted(vars(args).items()) if k not in NOT_CONFIG}


# ---------------------------------------------------------------- the optimiser and its schedule
class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), in FAIR's form:

        d = g + wd·p        the direction of the step
        q = η·‖p‖ / ‖d‖     the trust ratio of each tensor (1 if a norm is 0)
        v = m·v + q·d       momentum
        p = p - lr·v

    You et al. divide by ‖g‖ + wd·‖p‖; SimCLR puts lr inside v.  Tensors of one dimension (biases, norms) get q = 1, wd = 0.
    params: tensors, no groups.  torch._foreach_*: all tensors in one call, faster on a GPU.  Needs only torch: you can copy it."""

    def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=1e-4, eta=0.001):
        params = list(params)
        super().__init__([dict(params=[p for p in params if p.dim() > 1], adapt=True),
                          dict(params=[p for p in params if p.dim() <= 1], adapt=False)],
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta))
        for p in params:
            self.state[p]["v"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            d = [p.grad for p in params]
            if group["adapt"]:
                d = torch._foreach_add(d, params, alpha=group["weight_decay"])
                norms = zip(torch._foreach_norm(params), torch._foreach_norm(d))
                torch._foreach_mul_(d, [torch.where((p > 0) & (n > 0), group["eta"] * p / n, torch.ones_like(p)) for p, n in norms])
            v = [self.state[p]["v"] for p in params]
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_add_(v, d)
            torch._foreach_add_(params, v, alpha=-group["lr"])
        return loss


def learning_rate(step, steps, warmup, peak):
    """Linear warm-up to `peak` over `warmup` steps, then a cosine to 0 at `steps`.  It depends on the step alone."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---------------------------------------------------------------- what is learned
class Objective(nn.Module):
    """The loss of one process's share of a batch: x and x2 (B, C_in, H, W) in 0 … 1 (x2: None, or the images of the second view),
    labels (B,), elements (B, …) → loss (), y1, y2 (B, D), which are None if supervised."""

    def __init__(self, args, f, h, classifier, draws):
        super().__init__()
        self.args, self.draws, self.f, self.h, self.classifier = args, draws, f, h, classifier
        h.requires_grad_(args.loss not in ("supervised", "frozen"))
        classifier.requires_grad_(args.loss == "supervised")  # otherwise detached: probe.py trains its linear layer
        d = h[-1].num_features  # D
        if args.objective == "bilinear":
            self.W = nn.Parameter(torch.eye(d) / d)  # (D, D), initially the cosine, if y has unit variance
        if args.objective in ("byol", "simsiam"):
            self.q = nn.Sequential(nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d))  # predictor
        if args.objective == "byol":
            self.target = copy.deepcopy(nn.ModuleList([f, h])).requires_grad_(False)

    def forward(self, x, x2, labels, *elements):
        args = self.args
        if args.loss == "supervised":
            logits = self.classifier(self.f(x))  # (B, classes)
            return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels), None, None  # at least float32
        y1, y2 = self.draws.views(self.f, self.h, x, *elements, x2=x2)  # (B, D) twice
        if args.objective not in ("byol", "simsiam"):
            loss = losses.info_nce(y1, y2, args.tau, "ntxent" if args.objective == "ntxent" else "paper", getattr(self, "W", None))
            return loss, y1.detach(), y2.detach()
        t1, t2 = self.draws.views(*self.target, x, *elements, x2=x2) if args.objective == "byol" else (y1, y2)  # (B, D) twice
        return losses.cosine_regression(self.q(y1), self.q(y2), t1, t2), y1.detach(), y2.detach()

    @torch.no_grad()
    def update_target(self, momentum=0.99):
        """BYOL's slow copy: target ← m·target + (1 - m)·(f, h), after each step."""
        for slow, fast in zip(self.target.parameters() if hasattr(self, "target") else (), [*self.f.parameters(), *self.h.parameters()]):
            slow.lerp_(fast, 1 - momentum)


# ---------------------------------------------------------------- the run, in order
def main(argv=None):
    """Train, then probe.  Raises UsageError and data.DataError, and SystemExit if a signal stopped the run."""
    args = parse(argv)
    rank, local, world, device = launch.start_processes()
    code = launch.code_version()
    dtype = launch.precision(args.amp, device)
    precision = str(dtype or torch.float32).removeprefix("torch.")
    load = lambda: data.load(args.dataset, args.data_dir, args.train_size, args.seed, args.test_size, args.image_size)
    images = launch.rank0_first(load, local, device) or load()  # first one process of each machine, which may download
    n = len(images.train_x)
    if args.epochs and (args.batch_size > n or args.batch_size % world):
        fits = min(args.batch_size, n) // world * world
        raise UsageError(f"--batch-size {args.batch_size} does not fit {n} training images and {world} process{'es' * (world > 1)}: "
                         + (f"take {fits}" if fits > 1 else "take a larger batch, more images or fewer processes"))

    # ---- networks: the same on every process, from the seed
    torch.manual_seed(args.seed)
    try:
        model = Objective(args, *probe.network(vars(args), images)).to(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if world > 1:  # a detached classifier is not trained here, and only the first process probes with it
        launch.synchronise(model, but=None if args.loss == "supervised" else model.classifier)
    optimizer = LARS((p for p in model.parameters() if p.requires_grad), weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # ---- how long, and from where
    per_epoch = n // args.batch_size  # images beyond the last full batch are not used in this epoch
    steps, warmup, peak = args.epochs * per_epoch, round(args.warmup_epochs * per_epoch), args.lr * args.batch_size / 256
    step, seconds, cpu, good = 0, 0.0, 0.0, None
    pixels = data.fingerprint(images.train_x)  # a run may only continue with the same images
    momentum = [optimizer.state[p]["v"] for group in optimizer.param_groups for p in group["params"]]  # the shape of each p
    state = lambda: dict(config=json.dumps(config_of(args)), images=pixels, precision=precision, step=step, steps=steps, seconds=seconds, cpu=cpu + time.process_time(),
                         model=model.state_dict(), momentum=momentum, scaler=scaler.state_dict())
    lock = launch.rank0_first(lambda: checkpoint.open_run(args.out, config_of(args), args.resume, argv=sys.argv, code=code, torch=torch.__version__), rank, device)
    if args.resume:
        saved, good, warning = checkpoint.load(args.out, state())
        if warning and rank == 0:
            launch.say(warning, "stderr")
        if saved:
            model.load_state_dict(saved["model"])
            torch._foreach_copy_(momentum, [v.to(device) for v in saved["momentum"]])
            scaler.load_state_dict(saved["scaler"])
            step, seconds, cpu = saved["step"], saved["seconds"], saved["cpu"]
        if launch.max_over_ranks(device, step) != [step]:
            raise UsageError(f"this process found step {step} in {args.out}, another process a later one: --out must be on a disk that all processes share")
    if 0 < steps <= warmup and rank == 0:
        launch.say(f"warning: --warmup-epochs {args.warmup_epochs:g} of --epochs {args.epochs}: the learning rate never reaches {peak:g}", "stderr")
    if rank == 0:
        launch.say(f"{args.loss} on {args.dataset}: {n:,} images of {images.train_x.shape[-1]} px, group {args.group}, backbone {args.backbone}, "
                   f"{sum(p.numel() for p in model.f.parameters()):,} parameters; batch {args.batch_size} over {world} process{'es' * (world > 1)}, "
                   f"learning rate {peak:.3g}, {steps} steps, {precision} on {device.type}")
        log = open_log(args, step, code)
        good = good or checkpoint.save(args.out, state(), None)  # before the first log line, so that this run can always go on

    # ---- the loop
    x, y = images.train_x.to(device), images.train_y.to(device)  # (N, C_in, H, H), (N,)
    share = slice(rank * args.batch_size // world, (rank + 1) * args.batch_size // world)  # the part of a batch for this process
    wrapped = DistributedDataParallel(model) if world > 1 and steps else model
    bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, disable=rank > 0 or not sys.stderr.isatty())
    earlier, started, saved_at = seconds, time.time(), time.time()
    with launch.note_signals() as noted:
        stop = 0  # or the number of a signal
        while step < steps and not stop:
            order = torch.randperm(n, generator=seeded(args.seed, step // per_epoch, 1))  # (N,): the same for all steps of an epoch
            batch = order[step % per_epoch * args.batch_size:][:args.batch_size][share].to(device)  # (B,)
            elements = [g[share].to(device) for g in model.draws(args.batch_size, seeded(args.seed, step, 2))]  # (B, …) each
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, warmup, peak)
            x1, x2 = x[batch].float() / 255, None  # (B, C_in, H, H): intensities in 0 … 1
            if args.augment != "none":  # each view is changed by itself, with numbers drawn for the whole batch
                u1, u2 = torch.rand(2, args.batch_size, 9, generator=seeded(args.seed, step, 3))[:, share].to(device)  # (B, 9) twice
                augment = getattr(data, args.augment)
                x1, x2 = augment(x1, u1, args.strength), augment(x1, u2, args.strength)  # (B, C_in, H, H) twice
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss, y1, y2 = wrapped(x1, x2, y[batch], *elements)  # (), (B, D) twice
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            bad, stop = launch.max_over_ranks(device, not finite(loss, model, scaler), noted["signal"])
            if bad:
                raise UsageError(f"loss or gradient is not finite at step {step} (epoch {step // per_epoch}), the last checkpoint is kept: "
                                 "start again with a smaller --lr, more --warmup-epochs or --amp off, and another --out")
            scaler.step(optimizer)
            scaler.update()
            model.update_target()
            step, seconds = step + 1, earlier + time.time() - started

            last, epoch_ends = step == steps, step % per_epoch == 0
            if rank == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
                if step % min(per_epoch, 50) == 0 or last or stop:
                    line = dict(step=step, epoch=round(step / per_epoch, 3), loss=loss.item(), lr=optimizer.param_groups[0]["lr"],
                                seconds=round(seconds, 2), images_per_second=round(step * args.batch_size / seconds, 1))
                    log.write(json.dumps(line | measure(args, model, y1, y2, x[:32])) + "\n")
                if args.probe_epochs and step % (args.probe_epochs * per_epoch) == 0:
                    paused, copies = time.time(), copy.deepcopy((model.f, model.classifier))  # the probe changes modes and BatchNorm
                    log.write(json.dumps(dict(step=step) | probe.evaluate(*copies, model.draws, images, device, dtype, args.seed, feed=not args.unfed)) + "\n")
                    started += time.time() - paused  # only the training counts
                log.flush()
                if stop or last or epoch_ends or time.time() - saved_at > 60 * args.checkpoint_minutes:
                    good, saved_at = checkpoint.save(args.out, state(), good), time.time()
        stop = stop or noted["signal"]  # it may have come during the last step
    bar.close()
    if world > 1:
        dist.destroy_process_group()
    if stop:
        if rank == 0:
            launch.say(f"stopped after step {step} of {steps}: add --resume to go on", "stderr")
        raise SystemExit(128 + stop)
    if rank > 0:
        return

    # ---- the read-outs: only the first process
    probe.draw_curves(args.out)
    result = probe.evaluate(model.f, model.classifier, model.draws, images, device, dtype, args.seed, quiet=False, feed=not args.unfed)
    result |= dict(parameters=sum(p.numel() for p in model.f.parameters()), train_seconds=round(seconds, 2), cpu_seconds=round((cpu + time.process_time()) * world, 1),
                   images_per_second=round(steps * args.batch_size / seconds, 1) if seconds else None, processes=world,
                   threads=torch.get_num_threads(), precision=precision, code=code, torch=torch.__version__, **config_of(args))
    with checkpoint.atomic_write(os.path.join(args.out, "result.json")) as file:
        json.dump(result, file, indent=1)
    launch.say(f"{probe.report(result)}\ntrained {seconds:.0f} s   {args.out}")


# ---------------------------------------------------------------- small parts
def seeded(*key):
    """A CPU generator that depends only on the key (ints below 2³¹)."""
    mixed = 0  # below 2⁶³ - 25, a prime; torch uses its lowest 32 bits, so two keys can share a stream, but seldom do
    for k in key:
        mixed = (mixed * 1_000_003 + k + 1) % (2 ** 63 - 25)
    return torch.Generator().manual_seed(mixed)


def finite(loss, model, scaler):
    """Whether loss and gradients are finite.  Under fp16 the scaler skips steps whose gradients are not finite and halves
    its scale; then only the loss is checked, and that the scale is above 2⁻²⁴."""
    if scaler.is_enabled():
        return bool(loss.isfinite()) and scaler.get_scale() > 2 ** -24
    return bool((loss.detach() + nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])).isfinite())


def measure(args, model, y1, y2, x):
    """Diagnostics for metrics.jsonl, of two views y1, y2 (B, D) and of f on a few training images x (M, C_in, H, H) uint8: a dict."""
    if y1 is None:
        return {}  # supervised
    chance = 2 if args.objective in ("byol", "simsiam") else losses.chance(args.batch_size, args.objective)
    found = model.draws.distances(model.f, x.float() / 255).items()
    means = {name: sum(values) / len(values) if values and None not in values else None for name, values in found}  # over g
    return losses.diagnostics(y1, y2) | dict(chance=chance) | means


def open_log(args, step, code):
    """Open metrics.jsonl to append, after removing the lines of steps that will be repeated."""
    path = os.path.join(args.out, "metrics.jsonl")
    kept = [row for row in checkpoint.read_lines(path) if isinstance(row.get("step", 0), int) and row.get("step", 0) <= step]
    with checkpoint.atomic_write(path) as file:
        for row in kept or [dict(argv=sys.argv, code=code, config=config_of(args))]:
            file.write(json.dumps(row) + "\n")
    return open(path, "a")


if __name__ == "__main__":
    sys.exit(launch.command(main, "train.py"))
