"""How fast, and against what: python results/bench.py [--json FILE] [--quick] [--only PART ...]

Most rows time their competitors in turn in one process, and print medians and their ratios, so that a slow moment of the machine
slows all of them.  Competitors of a training step (H-SSL, batch in the row):

    ours      train.py's step: sampled fibers, W·(B∗x), channels last, bf16 where the CPU has it
    usual     the usual way, written here: maps (B, C, G, H, W), one grouped convolution a layer with every kernel padded
              to the largest support, all |G| elements, float32
    usual bf16  the same under autocast
    bare      only the step's convolutions, (W·B)∗x at each element's own support, forward and backward, on the sampled
              fibers, with nothing around them: the limit of a design that convolves with synthesised kernels

Written for a CPU; on a GPU it would need synchronisation around the clock.
"""
import argparse
import json
import multiprocessing
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import checkpoint  # noqa: E402
import launch  # noqa: E402
import train  # noqa: E402
from backbones import Head, MNISTNet, ResNet20  # noqa: E402
from gconv import GConv  # noqa: E402
from groups import SCALES, Rotation, RotationScale, Scale, Translation, pairs, sample  # noqa: E402
from losses import a_ssl, h_ssl, info_nce  # noqa: E402

CPU = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
BF16 = launch.precision("auto", torch.device("cpu")) is not None
AXES = {"trans": {}, "rot": dict(rotations=4), "scale": dict(scales=SCALES)}


def group_of(name, positions=8):
    return {"trans": Translation(positions, positions), "rot": Rotation(), "scale": Scale()}[name]


# ---------------------------------------------------------------- the usual way
class Usual(nn.Module):
    """A network of ours with every GConv run as one grouped convolution over (B, C, G, H, W), kernels padded alike."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def conv(self, conv, y):
        b, c, g, height, width = y.shape
        kernels = [conv.kernel(i) for i in range(g)]
        kernels = torch.cat([F.pad(k, [(conv.kernel_size - k.shape[-1]) // 2] * 4) for k in kernels])  # (G·C', C, k, k)
        y = F.conv2d(y.transpose(1, 2).reshape(b, g * c, height, width), kernels, None, conv.stride, conv.padding, groups=g)
        return y.unflatten(1, (g, -1)).transpose(1, 2)  # (B, C', G, H', W')

    def norm(self, norm, y):
        return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, norm.momentum))

    def forward(self, x):
        f = self.f
        y = x[:, :, None].expand(-1, -1, f.order, -1, -1)  # (B, C_in, G, H, W)
        if isinstance(f, MNISTNet):
            for conv, norm in zip(f.convs, f.norms):
                y = self.norm(norm, self.conv(conv, y))
            return y
        y = self.norm(f.norm, self.conv(f.conv, self.conv(f.lifting, y)))
        for block in f.blocks:
            a = self.norm(block.norm1, y)
            skip = y if block.shortcut is None else block.shortcut(a)
            y = self.conv(block.conv2, self.norm(block.norm2, self.conv(block.conv1, a))) + skip
        return y


# ---------------------------------------------------------------- what is timed
def drawn(group, loss, base=1):
    """A function of the batch size B → g0 (B, |g0|), g1, g2 (B,), with the cost of train.py's: H-SSL moves one base space, A-SSL draws it too."""
    g0 = group.base_space(base)  # (|g0|,)
    elements, allowed = pairs(group, g0)
    pick = lambda batch: elements[torch.randint(len(elements), (batch,))]  # (B,)
    return lambda batch: ((g0.expand(batch, -1), *sample(elements, allowed, batch)) if loss is h_ssl else
                          (group.shift_base(pick(batch), g0), pick(batch), pick(batch)))


def steps_of(f, h, group, batch, size, c_in, loss=h_ssl, base=1):
    """The training step, ours and usual, as functions of nothing."""
    x = torch.rand(batch, c_in, size, size)
    draw = drawn(group, loss, base)
    optimizer = train.LARS([*f.parameters(), *h.parameters()])
    usual = Usual(f)

    def step(f, amp):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            value = info_nce(*loss(f, h, x, group, *draw(batch)))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return {"ours": lambda: step(f, BF16), "ours float32": lambda: step(f, False),
            "usual": lambda: step(usual, False), "usual bf16": lambda: step(usual, True)}


def bare(f, fibers, size, c_in, backward=True):
    """The convolutions of the network alone, on `fibers` fibers spread evenly over the elements."""
    dtype = torch.bfloat16 if BF16 else torch.float32
    shapes, hooks = [], []
    for m in f.modules():
        if isinstance(m, GConv):
            hooks.append(m.register_forward_hook(lambda m, i, o: shapes.append((m, i[0].shape[-1]))))
    with torch.no_grad():
        f.eval()(torch.rand(2, c_in, size, size))
    f.train()
    for hook in hooks:
        hook.remove()
    work = []
    for conv, height in shapes:
        for g in range(conv.order):
            n = max(1, fibers // conv.order)
            k = conv.kernel(g).detach().to(dtype).requires_grad_(backward)
            y = torch.randn(n, height, height, k.shape[1]).to(dtype).permute(0, 3, 1, 2)
            y = y.as_strided(y.shape, (height * height * k.shape[1], 1, height * k.shape[1], k.shape[1]))
            pad = conv.padding - (conv.kernel_size - k.shape[-1]) // 2
            if pad < 0:
                y, pad = F.pad(y, [pad] * 4), 0
            y = y.detach().requires_grad_(backward and k.shape[1] > 3)  # an image needs no gradient
            out = F.conv2d(y, k, stride=conv.stride, padding=pad)
            work.append((y, k, conv.stride, pad, torch.randn_like(out)))

    def run():
        for y, k, stride, pad, grad in work:
            out = F.conv2d(y, k, stride=stride, padding=pad)
            if backward:
                torch.autograd.grad(out, [k] + [y] * y.requires_grad, grad)
    return run


def clock(functions, rounds, warm=1):
    """Median seconds of each function, run in turn, `rounds` times after a warm-up."""
    times = {name: [] for name in functions}
    for r in range(rounds + warm):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if r >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def report(rows, row):
    rows.append(row)
    ratio = "".join(f"   {k} {v:.2f}" for k, v in row.get("ratios", {}).items())
    speed = "".join(f"   {k} {v:,.0f}" for k, v in row["images_per_second"].items())
    print(f"{row['what']:<44}{speed}{' images/s' * bool(speed)}{ratio}", flush=True)


def versus(times):
    return {f"ours/{name}": t / times["ours"] for name, t in times.items() if name != "ours"}


# ---------------------------------------------------------------- the parts
def part_steps(rows, quick):
    """The training step and its competitors."""
    for name, network, batch, rounds in (("scale", "mnist", 256, 5), ("rot", "mnist", 256, 5), ("trans", "mnist", 256, 5),
                                         ("scale", "resnet 1/4", 32, 3), ("rot", "resnet 1/4", 32, 3), ("scale", "resnet 1", 32, 2)):
        if quick and network == "resnet 1":
            continue
        if network == "mnist":
            f, h, size, c_in, positions = MNISTNet(**AXES[name]), Head(128), 29, 1, 8
        else:
            width = 0.25 if network.endswith("4") else 1.0
            f, size, c_in, positions = ResNet20("cifar10", width=width, **AXES[name]), 31, 3, 7
            h = Head(f.channels, [f.channels, 4 * f.channels, f.channels], norm_input=True)
        group = group_of(name, positions)
        functions = steps_of(f, h, group, batch, size, c_in)
        functions["bare"] = bare(f, 2 * batch if name != "trans" else batch, size, c_in)
        times = clock(functions, 2 if quick else rounds)
        report(rows, dict(what=f"step, {network.replace('resnet', 'ResNet20 of width')}, {name}, batch {batch}", images_per_second={k: batch / t for k, t in times.items()},
                          ratios=versus(times)))


def part_one_pass(rows, quick):
    """H-SSL's one pass against A-SSL's two.  For a lifted group both compute two fibers of each image."""
    for name in ("trans", "rot", "scale"):
        f, h, group = MNISTNet(**AXES[name]), Head(128), group_of(name)
        functions = {"hssl": steps_of(f, h, group, 512, 29, 1)["ours"], "assl": steps_of(f, h, group, 512, 29, 1, a_ssl)["ours"]}
        times = clock(functions, 3 if quick else 7)
        report(rows, dict(what=f"one pass (H-SSL) against two (A-SSL), mnist {name}, batch 512", images_per_second={k: 512 / t for k, t in times.items()},
                          ratios={"hssl/assl": times["assl"] / times["hssl"]}))


def part_group_size(rows, quick):
    """A step's cost against |G|, one fiber for each view: it should grow little."""
    functions = {}
    for order, axis in ((2, dict(scales=SCALES[:2])), (4, dict(scales=SCALES[:4])), (6, dict(scales=SCALES)),
                        (12, dict(scales=SCALES[:3], rotations=4)), (24, dict(scales=SCALES, rotations=4))):
        group = Scale(axis["scales"]) if "rotations" not in axis else RotationScale(axis["scales"])
        functions[f"|G|={order}"] = steps_of(MNISTNet(**axis), Head(128), group, 512, 29, 1)["ours"]
    times = clock(functions, 3 if quick else 15)
    report(rows, dict(what="step against |G|, batch 512", images_per_second={k: 512 / t for k, t in times.items()},
                      ratios={"time at |G|=24 / at |G|=2": times["|G|=24"] / times["|G|=2"]}))


def part_batch(rows, quick):
    """… against the batch, and against |g0|."""
    f, h = MNISTNet(scales=SCALES), Head(128)
    sizes = (64, 256, 1024) if quick else (64, 256, 1024, 4096)
    times = {b: clock({"ours": steps_of(f, h, Scale(), b, 29, 1)["ours"]}, 2)["ours"] for b in sizes}
    report(rows, dict(what="step against batch, mnist scale", images_per_second={str(b): b / t for b, t in times.items()}))
    functions = {str(n): steps_of(f, Head(128 * n), Scale(), 256, 29, 1, base=n)["ours"] for n in range(1, 6)}
    times = clock(functions, 2 if quick else 4)
    report(rows, dict(what="step against |g0|, mnist scale, batch 256", images_per_second={k: 256 / t for k, t in times.items()}))


def part_forms(rows, quick):
    """W·(B∗x) against (W·B)∗x, forward and backward, on every 7 × 7 layer shape of the networks, and some of width 1/4."""
    shapes = {(9, 64, 25, 1), (32, 64, 29, 2), (64, 128, 15, 2), (16, 32, 25, 1), (32, 32, 25, 1), (32, 64, 25, 2), (64, 64, 13, 1)}
    for kind in ("cifar10", "tiny-imagenet"):
        size, c = 25, 64
        for block in ResNet20(kind).blocks:
            c_out, stride = block.conv1.weight.shape[0], block.conv1.stride
            shapes |= {(c, c_out, size, stride), (c_out, c_out, (size - 1) // stride + 1, 1)}
            size, c = (size - 1) // stride + 1, c_out
    dtype = torch.bfloat16 if BF16 else torch.float32
    for c, c_out, size, stride in sorted(shapes):
        n = max(8, 200_000 // (size * size * c) * 4)
        for g, k in ((1, 7), (0, 5)):
            conv = GConv(c, c_out, 7, 3, scales=(1.0, 1.75), stride=stride, padding=3)
            y = torch.randn(n, size, size, c).to(dtype).permute(0, 3, 1, 2).requires_grad_()

            mixes, conv.jets_above = conv.mixes(g), 0  # what a layer would do; then the one form whatever it costs

            def mixed():
                return conv.one(y, conv.mixer(g).to(dtype), g)

            def synthesised():
                return F.conv2d(y, conv.kernel(g).to(dtype), stride=stride, padding=k // 2)
            grad = torch.randn_like(mixed())
            times = clock({"W(B*x)": lambda: torch.autograd.grad(mixed(), [y, conv.weight], grad),
                           "(WB)*x": lambda: torch.autograd.grad(synthesised(), [y, conv.weight], grad)}, 3 if quick else 7)
            report(rows, dict(what=f"form, {c}→{c_out}, {size} px, stride {stride}, support {k}",
                              images_per_second={key: n / t for key, t in times.items()}, mixes=mixes,
                              ratios={"W(B*x)/(WB)*x": times["(WB)*x"] / times["W(B*x)"]}))


def part_profile(rows, quick):
    """Where a step's time goes (each part clocked by itself): nothing but the network may take more than a few per cent."""
    f, h, group = MNISTNet(scales=SCALES), Head(128), Scale()
    for loss in (h_ssl, a_ssl):
        x, draw, optimizer = torch.rand(512, 1, 29, 29), drawn(group, loss), train.LARS([*f.parameters(), *h.parameters()])

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                value = info_nce(*loss(f, h, x, group, *draw(512)))
            value.backward()
            optimizer.step()
        parts = {"step": step, "T_g twice": lambda: [group.T(x, g) for g in draw(512)[1:]], "draws": lambda: draw(512),
                 "info_nce": lambda: nce(512), "lars": optimizer.step}
        optimizer.zero_grad()
        times = clock(parts, 3 if quick else 7)
        share = {k: 100 * t / times["step"] for k, t in times.items() if k != "step"}
        report(rows, dict(what=f"share of a step in per cent, {loss.__name__}, mnist scale, batch 512", images_per_second={"step": 512 / times["step"]}, ratios=share))


def nce(batch):
    y1, y2 = (torch.randn(batch, 128, requires_grad=True) for _ in range(2))
    info_nce(y1, y2).backward()


def peak_mib():
    """The most memory that this process has had; not getrusage's number, which starts with the parent's."""
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024


def grown(name, kind, pipe):
    """Sends the MiB by which two steps let a fresh process grow."""
    launch.keep_freed_memory()
    step = (lambda: nce(4096)) if name == "nce" else steps_of(MNISTNet(**AXES[name]), Head(128), group_of(name), 256, 29, 1)[kind]
    before = peak_mib()
    step(), step()
    pipe.send(peak_mib() - before)


def part_memory(rows, quick):
    """Peak memory of a training step and of InfoNCE at the paper's batch, each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    for name, what in (("scale", "mnist scale, batch 256"), ("rot", "mnist rot, batch 256"), ("nce", "InfoNCE, batch 4096")):
        peak = {}
        for kind in ("ours",) if name == "nce" else ("ours", "ours float32", "usual", "usual bf16"):
            here, there = spawn.Pipe(False)
            process = spawn.Process(target=grown, args=(name, kind, there))
            process.start(), there.close()
            peak[kind] = here.recv()
            process.join()
        told = ", ".join(f"{k} {v:,.0f}" for k, v in peak.items())
        report(rows, dict(what=f"peak MiB, {what}: {told}", images_per_second={}, ratios={}, mib=peak))


def noise_as_mnist(folder, n):
    """MNIST's four files, with n training images of noise: only the time counts."""
    os.makedirs(f"{folder}/MNIST/raw")
    for name, count in (("train", n), ("t10k", 10)):
        for kind, magic, shape in (("images-idx3", 2051, (count, 28, 28)), ("labels-idx1", 2049, (count,))):
            with open(f"{folder}/MNIST/raw/{name}-{kind}-ubyte", "wb") as file:
                file.write(struct.pack(f">{1 + len(shape)}i", magic, *shape) + torch.randint(10, shape, dtype=torch.uint8).numpy().tobytes())


def part_processes(rows, quick):
    """train.py itself: two processes of one thread (gloo, SyncBatchNorm, gathered negatives) against one of two threads."""
    speed = {"1 × 2 threads": [], "2 × 1 thread": []}
    with tempfile.TemporaryDirectory() as folder:
        noise_as_mnist(folder, 50 * 512)
        flags = ["--dataset", "mnist", "--data-dir", folder, "--batch-size", "512", "--epochs", "2"]
        for i in range(2 if quick else 4):
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if i % 2 else []
            subprocess.run([sys.executable, *start, train.__file__, *flags, "--out", f"{folder}/{i}"], check=True, capture_output=True,
                           env=dict(os.environ, OMP_NUM_THREADS="1" if i % 2 else "2"))
            first, last = [line for line in checkpoint.read_lines(f"{folder}/{i}/metrics.jsonl") if "step" in line]  # after 50 and 100 steps
            speed[list(speed)[i % 2]].append(512 * 50 / (last["seconds"] - first["seconds"]))
    speed = {name: statistics.median(values) for name, values in speed.items()}
    report(rows, dict(what="train.py with two processes against one, mnist rot, batch 512", images_per_second=speed,
                      ratios={"two/one": speed["2 × 1 thread"] / speed["1 × 2 threads"]}))


def main():
    parts = {k.removeprefix("part_"): v for k, v in globals().items() if k.startswith("part_")}
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--json", help="write the rows there too")
    p.add_argument("--quick", action="store_true", help="fewer rounds, no full-width ResNet20")
    p.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    args = p.parse_args()
    launch.keep_freed_memory()
    torch.manual_seed(0)
    machine = dict(cpu=CPU.get("cpu_name"), threads=torch.get_num_threads(), bf16=BF16, torch=torch.__version__)
    print(machine)
    rows = []
    for name in args.only:
        parts[name](rows, args.quick)
    peak = peak_mib()
    print(f"peak memory {peak:,.0f} MiB")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(dict(machine=machine, rows=rows, peak_mib=peak), file, indent=1)


if __name__ == "__main__":
    main()
