"""All runs of train.py behind the tables, as lists of flags.  You can interrupt it; the same command then continues.

    python results/run.py --data-dir data                       # everything, in the order of EXPERIMENTS
    python results/run.py --data-dir data learned knob --hours 2.5
    python results/run.py --list                                # the commands that are left, and their hours; runs nothing
    python results/run.py table1 --budget paper --list          # the same at the paper's settings

Two runs at a time, one CPU thread each (two threads each are 5 to 30 times slower on two cores).  A run is a folder in
runs/.  When it ends, its result.json becomes one line of results/EXPERIMENT.jsonl.  A run is skipped if a line of any
experiment has the same flags.  If a run fails, no further run starts, and its message is printed.
"""
import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import checkpoint  # noqa: E402
import train  # noqa: E402

TUNED = "--batch-size 256 --lr 2 --warmup-epochs 0.25 "
MNIST = "--dataset mnist --epochs 5 " + TUNED
SHORT = "--dataset mnist --train-size 10000 --test-size 5000 --epochs 6 " + TUNED
CIFAR = "--dataset cifar10 --width 0.25 --epochs 2 " + TUNED  # until pilot_cifar10 has decided
TINY = "--dataset tiny-imagenet --width 0.25 --epochs 10 " + TUNED  # until pilot_tiny has decided
SIZES = {"mnist5k": 4000, "mnist": 60000, "cifar10": 50000, "tiny-imagenet": 20000, "folder": 0}  # training images
SPEED = {"mnist5k": 480, "mnist": 480, "cifar10": 60, "tiny-imagenet": 180, "folder": 60}  # images a CPU second, the last three at a quarter of the width
BUDGETS = {  # flags for each data set, appended to a line to override its budget
    "gpu": {"mnist": "--batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 500", "cifar10": "--batch-size 1024 --width 1 --epochs 50"},
    "paper": {"mnist": "--batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 500",
              "cifar10": "--batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 1300 --width 1",
              "tiny-imagenet": "--batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 1300 --width 1"}}


def each(text, **choices):
    """The text with each {name} replaced, once for every combination of the choices: a list."""
    lines = [text]
    for name, values in choices.items():
        lines = [line.replace(f"{{{name}}}", str(v)) for v in values for line in lines]
    return lines


LEARN, THREE = ("frozen", "hssl", "assl"), ("rot", "scale", "trans")
EXPERIMENTS = {
    "learned": each(SHORT + "--group {group} --loss {loss} --seed {seed}", loss=LEARN, group=THREE, seed=range(5)),
    "unfed": each(SHORT + "--loss frozen {network} {fed} --seed {seed}", fed=("", "--unfed"), seed=range(3), network=(
        *(f"--group {g}" for g in THREE), "--group trans --backbone mlp", "--group scale --backbone cnn --width 0.25")),
    "knob": each(SHORT + "--group rot --epsilon {epsilon} --loss {loss} --seed {seed}", loss=LEARN, epsilon=(0, 0.03, 0.1, 0.3, 1, 3), seed=range(3)),
    "scale_repaired": each(SHORT + "--group scale {network} --loss {loss} --seed {seed}", loss=LEARN, seed=range(3),
                           network=("", "--functions 3", "--pool max", "--functions 3 --pool max")),
    # the paper's number of steps (500 epochs of 60,000 in batches of 4,096: 7,324) at its peak rate (0.1·4096/256), in batches of 128
    "rotation_long": [f"--dataset mnist --test-size 5000 --epochs 16 --batch-size 128 --lr {lr} --warmup-epochs 0.3 --probe-epochs 2 "
                      f"--group {group} --loss {loss} --seed {seed}" for group, loss, lr, seed in (
                          ("rot", "hssl", 3.2, 0), ("rot", "assl", 3.2, 0), ("rot", "frozen", 3.2, 0), ("rot", "hssl", 0.2, 0),
                          ("scale", "hssl", 3.2, 0), ("scale", "frozen", 3.2, 0), ("rot", "hssl", 3.2, 1), ("rot", "assl", 3.2, 1),
                          ("rot", "frozen", 3.2, 1), ("rot", "hssl", 3.2, 2), ("rot", "frozen", 3.2, 2))],
    "strength": each(SHORT + "--group trans {what} --seed {seed}", seed=range(3), what=(
        *each("--loss assl --strength {s}", s=(0.04, 0.07, 0.11, 0.2, 0.3, 0.45)), *each("--loss hssl --max-distance {d}", d=(1, 2, 4, 8, 18, 32, 98)),
        *each("--loss {loss} --objective bilinear", loss=("hssl", "assl")), "--loss assl --base-size 64", "--loss frozen")),
    # for comparison with homomorphism.py: the same digits and epochs, with the structure built in, and the MLP without Γ
    "structure": each("{what} --seed {seed}", seed=range(3), what=(
        *each("--loss {loss}", loss=LEARN), "--backbone mlp --loss frozen", "--backbone mlp --loss hssl", "--backbone mlp --loss assl --base-size 16")),
    # one price for each run, what learns most above the untrained network of its width?
    "pilot_cifar10": each("--dataset cifar10 --test-size 5000 --group scale --batch-size 256 --warmup-epochs 0.25 {what} --seed 0", what=(
        "--width 0.25 --loss frozen", "--width 0.25 --epochs 2 --lr 2", "--width 0.25 --epochs 2 --lr 4", "--width 0.25 --epochs 8 --lr 2 --train-size 12500",
        "--width 0.125 --loss frozen", "--width 0.125 --epochs 4 --lr 2", "--width 0.125 --epochs 4 --lr 4")),
    "pilot_tiny": each("--dataset tiny-imagenet --group scale --batch-size 256 --warmup-epochs 0.25 {what} --seed 0", what=(
        "--width 0.25 --loss frozen", "--width 0.25 --epochs 10 --lr 2", "--width 0.25 --epochs 10 --lr 4", "--width 0.125 --epochs 20 --lr 2")),
    "table1": [line for text, groups, seeds in ((MNIST, ("scale", "rot", "trans"), 5), (CIFAR, ("scale", "rot", "trans"), 3), (TINY, ("scale", "rot"), 3))
               for line in each(text + "--group {group} --loss {loss} --seed {seed}", group=groups, loss=LEARN, seed=range(seeds))
               + each(text + "--group {group} --loss supervised --seed {seed}", group=groups, seed=range(3 if text is MNIST else 1))],
    "table2": [line for loss, mlp, cnn in (("frozen", 1, 1), ("hssl", 1, 1), ("assl", 16, 6), ("supervised", 1, 1)) for seeds in (5 if loss != "supervised" else 3,)
               for line in each(MNIST + f"--group trans --backbone mlp --base-size {mlp} --loss {loss} --seed {{seed}}", seed=range(seeds))
               + each(MNIST + f"--group scale --backbone cnn --width 0.25 --base-size {cnn} --loss {loss} --seed {{seed}}", seed=range(seeds))
               + each(CIFAR + f"--group scale --backbone cnn --width 0.0625 --train-size 12500 --base-size {cnn} --loss {loss} --seed {{seed}}", seed=range(2))],
    "figure2_right": each(MNIST + "--group trans --max-distance {d} --distance {metric} --seed {seed}", d=(1, 2, 4, 8, 18, 32, 98), metric=("euclidean", "topological"), seed=range(5)),
    "figure2_left": each(CIFAR + "--train-size 12500 {base} --seed {seed}", seed=range(3), base=(
        *each("--group rot --base-size {n}", n=(1, 2, 3)), *each("--group scale --base-size {n}", n=(1, 3, 5)), *each("--group trans --base-size {n}", n=(1, 4, 16, 36)))),
}


def rows_of(folder="results"):
    """[(experiment, row)] of every results/*.jsonl; incomplete lines are skipped."""
    rows = []
    for name in sorted(n for n in os.listdir(os.path.join(ROOT, folder)) if n.endswith(".jsonl")):
        rows += [(name[:-6], row) for row in checkpoint.read_lines(os.path.join(ROOT, folder, name))]
    return rows


def left(experiments, budget="cpu", seeds=math.inf):
    """[(experiment, flags)] of runs that have no line yet, and [(experiment, row)] of lines to copy from another experiment."""
    rows, jobs, shared, defaults = rows_of(), {}, [], vars(train.parse([]))
    for experiment in experiments:
        for flags in EXPERIMENTS[experiment]:
            flags = " ".join(flags.split())
            if budget != "cpu":
                flags += " " + BUDGETS[budget].get(train.parse(shlex.split(flags)).dataset, "")
            config = train.config_of(train.parse(shlex.split(flags)))
            if config["seed"] >= seeds:
                continue
            found = [(name, row) for name, row in rows if all(row.get(k, defaults[k]) == v for k, v in config.items())]
            if not found:
                jobs.setdefault(json.dumps(config), (experiment, flags))
            elif experiment not in (name for name, _ in found):
                shared.append((experiment, found[0][1]))
    return list(jobs.values()), shared


def append(experiment, row):
    """Append a line to results/EXPERIMENT.jsonl, after a line break if the last line is incomplete."""
    with open(os.path.join(ROOT, "results", f"{experiment}.jsonl"), "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        file.write(b"\n" * (file.read() not in (b"", b"\n")) + json.dumps(row).encode() + b"\n")


def work(jobs, lock, running, options, problem):
    """Do the next run, until there are no more, a run has failed, or the time is up."""
    while not problem:
        with lock:
            if not jobs or time.time() > options.until:
                return
            experiment, flags = jobs.pop(0)
        print(f"{time.strftime('%H:%M')} {experiment}: {flags}   ({len(jobs)} left)", flush=True)
        out = os.path.join(ROOT, "runs", f"{experiment}-{zlib.crc32(flags.encode()):08x}")
        command = [sys.executable, os.path.join(ROOT, "train.py"), *shlex.split(flags), "--data-dir", os.path.abspath(options.data_dir), "--out", out]
        command += ["--resume"] * os.path.exists(os.path.join(out, "config.json"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   env=dict(os.environ, OMP_NUM_THREADS="1"))
        running.add(process)
        if options.stopping:  # the signal came after this job was taken
            process.send_signal(signal.SIGTERM)
        told = process.communicate()[1]
        running.discard(process)
        with lock:
            if process.returncode == 0 and os.path.exists(os.path.join(out, "result.json")):
                row = json.load(open(os.path.join(out, "result.json")))
                curve = [line for line in checkpoint.read_lines(os.path.join(out, "metrics.jsonl")) if "top1" in line]  # --probe-epochs
                append(experiment, row | dict(curve=curve) if curve else row)
            elif not options.stopping:
                problem.append(f"{shlex.join(command)}\n{told[-2000:]}")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("experiments", nargs="*", metavar="NAME", help=f"experiments (default all): {', '.join(EXPERIMENTS)}")
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--hours", type=float, default=1e4, help="stop after this many hours; runs in progress save a checkpoint")
    p.add_argument("--seeds", type=int, default=10 ** 9, metavar="N", help="only seeds below N (default all)")
    p.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default 2)")
    p.add_argument("--budget", choices=("cpu", *BUDGETS), default="cpu", help="cpu: as listed (default), gpu: one GPU, paper: as the paper")
    p.add_argument("--list", action="store_true", help="print the commands that are left, and run nothing")
    options = p.parse_args()
    unknown = set(options.experiments) - set(EXPERIMENTS)
    if unknown:
        p.error(f"no experiment is called {', '.join(sorted(unknown))}: take {', '.join(EXPERIMENTS)}")
    names = options.experiments or list(EXPERIMENTS)
    jobs, _ = left(names, options.budget, options.seeds)
    if options.list:
        print("\n".join(f"python train.py {flags}" for _, flags in jobs))
        seconds = lambda a: (a.train_size or SIZES[a.dataset]) * (a.epochs * (3 if a.loss == "supervised" else 1) + 2) / SPEED[a.dataset]  # the probe is 2 epochs
        hours = {name: [seconds(train.parse(shlex.split(flags))) / 3600 for e, flags in jobs if e == name] for name in names}
        for name, of in [*hours.items(), ("in all", [h for of in hours.values() for h in of])]:
            print(f"# {name}: {len(of)} runs left, about {sum(of):.1f} hours of one CPU core")
        return
    lock, running, problem = threading.Lock(), set(), []
    options.until, options.stopping = time.time() + 3600 * options.hours, False

    def stop(*_):
        options.stopping, options.until = True, 0
        for process in list(running):
            process.send_signal(signal.SIGTERM)  # it saves a checkpoint, from which the next start continues
    signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
    threads = [threading.Thread(target=work, args=(jobs, lock, running, options, problem)) for _ in range(options.workers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        if time.time() > options.until and not options.stopping:
            stop()
    jobs, shared = left(names, options.budget, options.seeds)
    for experiment, row in shared:
        append(experiment, row)
    print(f"{len(jobs)} runs left", flush=True)
    if problem:
        sys.exit("run.py: a run failed\n" + problem[0])


if __name__ == "__main__":
    main()
