"""Do the runs of experiments.py, two at a time.  You can interrupt it; the same command continues.

    python results/run.py --data-dir data                        # all, in the order of EXPERIMENTS
    python results/run.py --data-dir data taught knob --hours 2.5
    python results/run.py --list                                 # what is left; runs nothing
    python results/run.py taught --budget paper --list           # the same at the paper's settings

Each run has one CPU thread and a folder in runs/.  When it ends, its result.json becomes one line
of results/EXPERIMENT.jsonl.  A run that has a line is not done again.  If two experiments share a
run, it is done once, and both get the line.  Other budgets have files of their own, which no table
reads.  If a run fails, no further run starts, and the end of its output is printed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "results")
sys.path.insert(0, ROOT)
import train
from results.experiments import EXPERIMENTS, NOT_RUNS

# Flags that override those of a line, for each data set
PAPER = "--train-size {} --batch-size 4096 --lr 0.1 --warmup-epochs 10 --width 1 --epochs {}"
BUDGETS = {
    "cpu": {},
    "gpu": {
        "mnist": PAPER.format(60000, 500) + " --test-size 10000",
        "cifar10": "--train-size 50000 --test-size 10000 --batch-size 1024 --width 1 --epochs 50",
    },
    "paper": {
        "mnist": PAPER.format(60000, 500) + " --test-size 10000",
        "cifar10": PAPER.format(50000, 1300) + " --test-size 10000",
        "tiny-imagenet": PAPER.format(100000, 1300),
    },
}
DEFAULTS = train.config_of(train.parse([]))


def key(settings):
    """What makes a run the same run: its settings as text.  A row also holds its results."""
    return json.dumps({k: settings.get(k, v) for k, v in DEFAULTS.items()}, sort_keys=True)


def wanted(names, budget):
    """→ {key: (flags, the files in results/ that want the row)}, in order, each run once."""
    runs = {}
    for name in names:
        file = f"{name}.jsonl" if budget == "cpu" else f"{name}-{budget}.jsonl"
        for line in EXPERIMENTS[name]:
            args = train.parse(shlex.split(line))
            flags = " ".join(f"{line} {BUDGETS[budget].get(args.dataset, '')}".split())
            if args.dataset in BUDGETS[budget]:
                args = train.parse(shlex.split(flags))
            config = train.config_of(args)
            files = runs.setdefault(key(config), (flags, []))[1]
            if file not in files:
                files.append(file)
    return runs


def rows(folder=RESULTS):
    """Every row of results/: [(file, row)]."""
    found = []
    for name in sorted(os.listdir(folder)):
        experiment, ending = os.path.splitext(name)
        if ending == ".jsonl" and experiment not in NOT_RUNS:
            with open(os.path.join(folder, name)) as file:
                found += [(name, json.loads(line)) for line in file]
    return found


def append(file, row):
    with open(os.path.join(RESULTS, file), "a") as lines:
        lines.write(json.dumps(row) + "\n")


def start(flags, name, data_dir):
    """Start train.py → its process, with its run folder and its output as attributes."""
    folder = os.path.join(ROOT, "runs", f"{name}-{zlib.crc32(flags.encode()):08x}")
    command = [sys.executable, os.path.join(ROOT, "train.py"), *shlex.split(flags)]
    command += ["--data-dir", os.path.abspath(data_dir), "--out", folder]
    output = tempfile.TemporaryFile("w+")
    one_thread = dict(os.environ, OMP_NUM_THREADS="1")
    # a session of its own: Ctrl-C reaches only this program, which then passes it on
    process = subprocess.Popen(
        command, stdout=output, stderr=output, env=one_thread, start_new_session=True
    )
    process.folder, process.output = folder, output
    return process


def work(jobs, options):
    """Do the jobs, a list of (flags, files).  Returns whether all that were started succeeded."""
    signals = []

    def git(*command):
        done = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True)
        return done.stdout.strip()

    code = git("describe", "--always")
    if git("diff", "HEAD", "--name-only", "--", "*.py"):  # lines of results/ may have come
        code += "-dirty"

    def note(number, frame):
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends this program at once

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, note)
    until = time.time() + 3600 * options.hours
    running, told, failed = {}, False, False
    while running or (jobs and not (signals or failed or time.time() > until)):
        stop = signals or time.time() > until
        while jobs and len(running) < options.workers and not (stop or failed):
            flags, files = jobs.pop(0)
            name = files[0].removesuffix(".jsonl")
            print(f"{time.strftime('%H:%M')} {name}: {flags}   ({len(jobs)} left)", flush=True)
            running[start(flags, name, options.data_dir)] = files
        if stop and not told:
            told = True
            for process in running:
                process.terminate()  # it saves, and the next start goes on from there
        time.sleep(0.1)
        for process in [p for p in running if p.poll() is not None]:
            files = running.pop(process)
            if process.returncode == 0:
                with open(os.path.join(process.folder, "result.json")) as file:
                    row = json.load(file) | dict(code=code)
                for name in files:
                    append(name, row)
            elif not told:
                failed = True
                process.output.seek(0)
                end = process.output.read()[-2000:]
                print(
                    f"run.py: this run failed\n{shlex.join(process.args)}\n{end}", file=sys.stderr
                )
    return not failed


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ", ".join(EXPERIMENTS)
    p.add_argument("experiments", nargs="*", metavar="NAME", help=f"default all: {names}")
    p.add_argument("--data-dir", default="data", help="folder of the images (default data)")
    p.add_argument("--hours", type=float, default=1e4, help="stop then; unfinished runs save")
    p.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    p.add_argument("--budget", choices=BUDGETS, default="cpu", help="default: as in experiments.py")
    p.add_argument("--list", action="store_true", help="print what is left, and run nothing")
    options = p.parse_args(argv)
    for name in options.experiments:
        if name not in EXPERIMENTS:
            p.error(f"no experiment is called {name}: take {names}")

    runs = wanted(options.experiments or EXPERIMENTS, options.budget)
    there = [(file, key(row), row) for file, row in rows()]
    known = {name: row for _, name, row in there}
    have = {(file, name) for file, name, _ in there}
    jobs = [job for name, job in runs.items() if name not in known]
    if options.list:
        for flags, _ in jobs:
            print("python train.py " + flags)
        print(f"# {len(jobs)} of {len(runs)} runs are left")
        return
    for name, (_, files) in runs.items():  # rows that another experiment has already
        for file in files:
            if name in known and (file, name) not in have:
                append(file, known[name])
    done = work(jobs, options)
    print(f"{len(jobs)} runs were not started", flush=True)
    sys.exit(not done)


if __name__ == "__main__":
    main()
