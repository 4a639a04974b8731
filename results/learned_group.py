"""Can a network without structure learn Γ_g, and from how few turned images?  Interrupt it as you like; the same command goes on.

    python results/learned_group.py           # the rows that results/learned_group.jsonl lacks, two at a time, one thread each
    python results/learned_group.py --list    # their commands; runs nothing

Table 2's MLP, 20 epochs, and its CNN at an eighth of the width, 10 epochs, on 4,000 digits; see homomorphism.py.  If a command fails, no further one starts, and its error is printed.
"""
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

FOLDER = os.path.dirname(os.path.abspath(__file__))
ROWS = os.path.join(FOLDER, "learned_group.jsonl")
sys.path.insert(0, os.path.dirname(FOLDER))
import checkpoint  # noqa: E402
import homomorphism  # noqa: E402

SHARES = (0.1, 0.004, 0.01, 0.03, 0.3, 1)  # of 256 images: 26, 1, 3, 8, 77, 256
COMMANDS = [f"--share {share} {gamma} --seed {seed}" for share in SHARES for gamma in ("--given", "") for seed in range(3)]
COMMANDS += [f"--share 0 --given --seed {seed}" for seed in range(3)]
COMMANDS += [f"--share 0.1 --seed {seed}" for seed in range(3, 10)]  # how often is a cycle found?
COMMANDS += [f"--share 0.1 {what} --seed {seed}" for what in ("--lam 1", "--lam 100", "--start identity", "--one-way") for seed in range(3)]
COMMANDS += [f"--group {group} --backbone cnn --width 0.125 --epochs 10 {gamma} --seed {seed}" for seed in range(3) for group in ("scale", "rot")
             for gamma in ("--share 0.1 --given", "--share 0.1", "--share 0 --given")]
COMMANDS += [f"--share 0.1 --over images --given {start} --seed {seed}" for seed in range(3) for start in ("", "--start identity")]


def left():
    """The commands that have no row yet."""
    rows = checkpoint.read_lines(ROWS)
    config = lambda flags: {k: v for k, v in vars(homomorphism.parse(shlex.split(flags))).items() if k not in ("data_dir", "out")}
    return [flags for flags in COMMANDS if not any(config(flags).items() <= row.items() for row in rows)]


def work(flags):
    command = [sys.executable, os.path.join(os.path.dirname(FOLDER), "homomorphism.py"), *shlex.split(flags), "--out", ROWS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS="1"))
    print(flags, flush=True)


if __name__ == "__main__":
    commands = left()
    if "--list" in sys.argv:
        print("\n".join(f"python homomorphism.py {flags}" for flags in commands) + f"\n{len(commands)} runs left")
    else:
        with ThreadPoolExecutor(2) as pool:
            try:
                for done in as_completed([pool.submit(work, flags) for flags in commands]):
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)
