"""Do the runs of experiments.py, two at a time.  You can interrupt it; the same command then continues.

    python results/run.py --data-dir data                       # everything, in the order of EXPERIMENTS
    python results/run.py --data-dir data learned knob --hours 2.5
    python results/run.py --list                                # the commands that are left, and their hours; runs nothing
    python results/run.py table1 --budget paper --list          # the same at the paper's settings

Two runs at a time, one CPU thread each (with two threads each they slow each other down).  A run is a folder in
runs/.  When it ends, its result.json becomes one line of results/EXPERIMENT.jsonl.  If a line of another experiment has the
same flags, the run is not done again; at the end that line is copied.  If a run fails, no further run starts, and its message is printed.
Other budgets have files of their own, results/EXPERIMENT-BUDGET.jsonl, which the tables do not read.
"""
import argparse
import concurrent.futures
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
import launch  # noqa: E402
import train  # noqa: E402
from results.experiments import EXPERIMENTS  # noqa: E402

SIZES = {"mnist5k": 4000, "mnist": 60000, "cifar10": 50000, "tiny-imagenet": 100000}  # training images
SPEED = {"mnist5k": 480, "mnist": 480, "cifar10": 60, "tiny-imagenet": 180}  # images a CPU second, the last two at a quarter of the width
BUDGETS = {  # flags for each data set, appended to a line to override its budget
    "gpu": {"mnist": "--train-size 60000 --test-size 10000 --batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 500",
            "cifar10": "--train-size 50000 --test-size 10000 --batch-size 1024 --width 1 --epochs 50"},
    "paper": {"mnist": "--train-size 60000 --test-size 10000 --width 1 --batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 500",
              "cifar10": "--train-size 50000 --test-size 10000 --batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 1300 --width 1",
              "tiny-imagenet": "--train-size 100000 --batch-size 4096 --lr 0.1 --warmup-epochs 10 --epochs 1300 --width 1"}}


def rows_of():
    """[(experiment, row)] of every results/*.jsonl; incomplete lines are skipped."""
    rows = []
    for name in sorted(n for n in os.listdir(os.path.join(ROOT, "results")) if n.endswith(".jsonl")):
        rows += [(name[:-6], row) for row in checkpoint.read_lines(os.path.join(ROOT, "results", name))]
    return rows


def left(experiments, seeds=math.inf):
    """Of experiments NAME or NAME-BUDGET: [(experiment, flags)] of runs that have no line yet, and [(experiment, row)] of lines to copy from another experiment."""
    rows, jobs, shared, defaults = rows_of(), {}, {}, vars(train.parse([]))
    for experiment in experiments:
        name, _, budget = experiment.partition("-")
        for flags in EXPERIMENTS[name]:
            flags = " ".join(flags.split())
            if budget:
                flags += " " + BUDGETS[budget].get(train.parse(shlex.split(flags)).dataset, "")
            args = train.parse(shlex.split(flags))
            config = train.config_of(args)
            if config["seed"] >= seeds:
                continue
            curve = args.probe_epochs and args.epochs  # then a row without one is not this run
            found = [(name, row) for name, row in rows if "epochs" in row and ("curve" in row or not curve) and all(row.get(k, defaults[k]) == v for k, v in config.items())]
            if not found:
                jobs.setdefault(json.dumps(config), (experiment, flags))
            elif experiment not in (name for name, _ in found):
                shared[experiment, json.dumps(config)] = experiment, found[0][1]
    return list(jobs.values()), list(shared.values())


def append(experiment, row):
    """Append a line to results/EXPERIMENT.jsonl, after a line break if the last line is incomplete."""
    with open(os.path.join(ROOT, "results", f"{experiment}.jsonl"), "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        file.write(b"\n" * (file.read() not in (b"", b"\n")) + json.dumps(row).encode() + b"\n")


def work(jobs, lock, running, options):
    """Do the next run, until there are no more, a run has failed, or the time is up."""
    while not options.failed:
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
                options.failed = True
                print(f"run.py: a run failed, no further run starts\n{shlex.join(command)}\n{told[-2000:]}", file=sys.stderr, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("experiments", nargs="*", metavar="NAME", help=f"experiments (default all): {', '.join(EXPERIMENTS)}")
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--hours", type=float, default=1e4, help="stop after this many hours; runs in progress save a checkpoint")
    p.add_argument("--seeds", type=int, default=10 ** 9, metavar="N", help="only seeds below N (default all)")
    p.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default 2)")
    p.add_argument("--budget", choices=("cpu", *BUDGETS), default="cpu", help="cpu: the flags of experiments.py (default), gpu: one GPU, paper: as the paper")
    p.add_argument("--list", action="store_true", help="print the commands that are left, and run nothing")
    options = p.parse_args()
    unknown = set(options.experiments) - set(EXPERIMENTS)
    if unknown:
        p.error(f"no experiment is called {', '.join(sorted(unknown))}: take {', '.join(EXPERIMENTS)}")
    names = [name + f"-{options.budget}" * (options.budget != "cpu") for name in options.experiments or EXPERIMENTS]  # another budget has files of its own
    jobs, _ = left(names, options.seeds)
    if options.list:
        print("\n".join(f"python train.py {flags}" for _, flags in jobs))
        slower = lambda a: 1 if "mnist" in a.dataset else (4 * a.width) ** 1.4  # ResNet20 is 7 times as slow at the full width (bench.json)
        seconds = lambda a: (a.train_size or SIZES[a.dataset]) * (a.epochs * (3 if a.loss == "supervised" else 1) + 2) / SPEED[a.dataset] * slower(a)  # the probe is 2 epochs
        hours = {name: [seconds(train.parse(shlex.split(flags))) / 3600 for e, flags in jobs if e == name] for name in names}
        for name, of in [*hours.items(), ("in all", [h for of in hours.values() for h in of])]:
            print(f"# {name}: {len(of)} runs left, about {sum(of):.1f} hours of one CPU core")
        return
    lock, running = threading.Lock(), set()
    options.until, options.stopping, options.failed = time.time() + 3600 * options.hours, False, False
    with launch.note_signals() as noted, concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        workers = [pool.submit(work, jobs, lock, running, options) for _ in range(options.workers)]
        while concurrent.futures.wait(workers, 0.5).not_done:
            options.failed |= any(worker.done() and worker.exception() for worker in workers)
            if (noted["signal"] or time.time() > options.until) and not options.stopping:
                options.stopping, options.until = True, 0
                for process in list(running):
                    process.send_signal(signal.SIGTERM)  # it saves a checkpoint, from which the next start continues
    for worker in workers:
        worker.result()  # raises what stopped it, a full disk, say
    jobs, shared = left(names, options.seeds)
    for experiment, row in shared:
        append(experiment, row)
    print(f"{len(jobs)} runs left", flush=True)
    sys.exit(options.failed)


if __name__ == "__main__":
    main()
