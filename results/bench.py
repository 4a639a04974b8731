"""How fast is a training step?  H-SSL, A-SSL, one pass against two, two processes against one.

    python results/bench.py --json results/bench.json    # about two minutes on two CPU cores

What a line compares runs in turn in one process, so that a slow moment of the machine slows all.
Medians over rounds.  A step is train.py's own: its objective, LARS, half precision where the
hardware has it.  On a GPU the clock waits for the device.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import data
import probe
import train

KINDS = {  # two passes: with an augmentation H-SSL, too, computes two images
    "H-SSL": "--loss hssl",
    "A-SSL": "--loss assl",
    "H-SSL + jitter": "--loss hssl --augment jitter",
}


def prepare(flags, images, batch, device):
    """A training step on one batch, as a function of nothing."""
    args = train.parse(shlex.split(flags))
    torch.manual_seed(0)
    f, h, classifier, pairs, _ = probe.network(vars(args), images)
    model = train.Objective(args, f, h, classifier, pairs).to(device)
    optimizer = train.LARS([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    dtype = getattr(torch, train.precision(args.amp, device))
    amp = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    x = images.train_x[:batch].to(device) / 255  # (B, C_in, H, H)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step():
        x1, x2 = x, None
        if args.augment != "none":
            u = torch.rand(2, batch, 9, device=device)
            x1, x2 = data.jitter(x, u[0]), data.jitter(x, u[1])
        with amp:
            loss = model(x1, x2, labels, *pairs.draw(batch))[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def clock(steps, rounds, device):
    """Median seconds of each of {name: function}, called in turn."""
    seconds = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processes(rounds, folder):
    """train.py with one process of two threads, and with two of one thread: images a second."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    starts = {"one process": ([], "2"), "two processes": (torchrun, "1")}
    flags = "--device cpu --train-size 2560 --epochs 2 --test-size 100 --probe-size 100"
    flags = f"{flags} --no-before".split()
    speed = {name: [] for name in starts}
    for i in range(rounds):
        for name, (start, threads) in starts.items():
            out = os.path.join(folder, f"{len(start)}-{i}")
            command = [sys.executable, *start, train.__file__, *flags, "--out", out]
            env = dict(os.environ, OMP_NUM_THREADS=threads)
            subprocess.run(command, check=True, capture_output=True, env=env)
            with open(os.path.join(out, "result.json")) as file:
                result = json.load(file)
            passes = result["epochs"] * result["train_size"]  # images
            speed[name].append(passes / result["train_seconds"])
    return {name: statistics.median(values) for name, values in speed.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--json", metavar="FILE", help="write the lines there too")
    p.add_argument("--rounds", type=int, default=5, help="of each step (default 5)")
    args = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digits = data.load("mnist5k")
    noise = torch.randint(256, (32, 3, 31, 31), dtype=torch.uint8)
    noise = digits._replace(train_x=noise, kind="cifar10")
    groups = ("rot", "scale", "trans")
    todo = [(f"MNIST network, {g}, batch 256", f"--group {g}", digits, 256) for g in groups]
    resnet = "--group scale --width 0.25"
    todo.append(("ResNet20, a quarter as wide, scale, batch 32", resnet, noise, 32))
    rows = []
    for what, flags, images, batch in todo:
        steps = {
            name: prepare(f"{flags} {kind}", images, batch, device) for name, kind in KINDS.items()
        }
        times = clock(steps, args.rounds, device)
        row = dict(what=what, speed={name: batch / t for name, t in times.items()})
        row["ratio"] = times["A-SSL"] / times["H-SSL"]
        rows.append(row)
        print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        both = processes(2, folder)
    print(both)
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{torch.get_num_threads()} CPU threads"
    machine += f", {train.precision('auto', device)}, torch {torch.__version__}"
    found = dict(machine=machine, heads=list(KINDS), rows=rows, processes=both)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
