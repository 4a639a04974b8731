"""The runs of train.py behind the tables: EXPERIMENTS[name] is a list of flags, one text for each run.  results/run.py does them.

Each experiment becomes results/NAME.jsonl, from which tables.py and pictures.py work.
"""
TUNED = "--batch-size 256 --lr 2 --warmup-epochs 0.25 "
MNIST = "--dataset mnist --epochs 5 " + TUNED
SHORT = "--dataset mnist --train-size 10000 --test-size 5000 --epochs 6 " + TUNED
CIFAR = "--dataset cifar10 --width 0.125 --epochs 1 --batch-size 128 --lr 2 --warmup-epochs 0.25 "  # as pilot_cifar10 decided
TINY = "--dataset tiny-imagenet --train-size 20000 --width 0.125 --epochs 10 " + TUNED  # as pilot_tiny decided
EPOCH = "--dataset mnist --group scale --epochs 1 --batch-size 128 --warmup-epochs 0.1 "
LEARN, THREE = ("frozen", "hssl", "assl"), ("rot", "scale", "trans")


def each(text, **choices):
    """The text with each {name} replaced, once for every combination of the choices: a list."""
    lines = [text]
    for name, values in choices.items():
        lines = [line.replace(f"{{{name}}}", str(v)) for v in values for line in lines]
    return lines


EXPERIMENTS = {
    "learned": each(SHORT + "--group {group} --loss {loss} --seed {seed}", loss=LEARN, group=THREE, seed=range(5))
               + each(SHORT + "--group trans --loss {loss} --seed {seed}", loss=LEARN, seed=range(5, 8)),  # undecided with five seeds
    "unfed": each(SHORT + "--loss frozen {network} {fed} --seed {seed}", fed=("", "--unfed"), seed=range(3), network=(
        *(f"--group {g}" for g in THREE), "--group trans --backbone mlp", "--group scale --backbone cnn --width 0.25")),
    "precision": each(SHORT + "--group rot --amp off --loss {loss} --seed {seed}", loss=("hssl", "assl"), seed=range(3)),  # the same as `learned`, in float32
    "knob": each(SHORT + "--group rot --epsilon {epsilon} --loss {loss} --seed {seed}", loss=LEARN, epsilon=(0, 0.03, 0.1, 0.3, 1, 3), seed=range(3))
            + each(SHORT + "--group rot --epsilon {epsilon} --loss {loss} --seed {seed}", loss=LEARN, epsilon=(0, 0.03, 3), seed=(3, 4))  # undecided with three seeds
            + each(SHORT + "--group rot --epsilon 3 --loss {loss} --seed {seed}", loss=LEARN, seed=(5, 6)),  # seven have an even chance to decide
    "scale_repaired": each(SHORT + "--group scale {network} --loss {loss} --seed {seed}", loss=LEARN, seed=range(3),
                           network=("", "--functions 3", "--pool max", "--functions 3 --pool max")),
    # the paper's number of steps (500 epochs of 60,000 in batches of 4,096: 7,324) at its peak rate (0.1·4096/256), in batches of 128
    "rotation_long": [f"--dataset mnist --test-size 5000 --epochs 16 --batch-size 128 --lr {lr} --warmup-epochs 0.3 --probe-epochs 2 "
                      f"--group {group} --loss {loss} --seed {seed}" for group, loss, lr, seed in (
                          ("rot", "hssl", 3.2, 0), ("rot", "assl", 3.2, 0), ("rot", "frozen", 3.2, 0), ("rot", "hssl", 0.2, 0),
                          ("scale", "hssl", 3.2, 0), ("scale", "frozen", 3.2, 0), ("rot", "hssl", 3.2, 1), ("rot", "assl", 3.2, 1),
                          ("rot", "frozen", 3.2, 1), ("rot", "hssl", 3.2, 2), ("rot", "frozen", 3.2, 2))],
    "strength": each(SHORT + "--group trans {what} --seed {seed}", seed=range(3), what=(
        *each("--loss assl --strength {s}", s=(0.04, 0.07, 0.11, 0.2, 0.3, 0.45)), "--loss hssl", *each("--loss hssl --max-distance {d}", d=(1, 2, 4, 8, 18, 32, 98)),
        *each("--loss {loss} --objective bilinear", loss=("hssl", "assl")), "--loss assl --base-size 64", "--loss frozen")),
    # for comparison with homomorphism.py: the same digits and epochs, with the structure built in, and the MLP without Γ
    "structure": each("{what} --seed {seed}", seed=range(3), what=(
        *each("--loss {loss}", loss=LEARN), "--backbone mlp --loss frozen", "--backbone mlp --loss hssl", "--backbone mlp --loss assl --base-size 16")),
    # at about one price (50,000 image passes at an eighth of the width), what learns most above the untrained network of its width?
    "pilot_cifar10": each("--dataset cifar10 --train-size 12500 --test-size 5000 --group scale --warmup-epochs 0.25 {what} --seed 0", what=(
        "--width 0.125 --loss frozen", "--width 0.25 --epochs 2 --batch-size 128 --lr 2", "--width 0.25 --loss frozen",
        *each("--width 0.125 --epochs 4 --batch-size 128 --lr {lr}", lr=(2, 4)))),
    "pilot_tiny": each("--dataset tiny-imagenet --train-size 20000 --group scale --batch-size 256 --warmup-epochs 0.25 {what} --seed 0", what=(
        "--width 0.25 --loss frozen", "--width 0.25 --epochs 10 --lr 2", "--width 0.125 --loss frozen", "--width 0.125 --epochs 10 --lr 2")),
    # what this network can learn with labels, at twice Table 1's width and epochs
    "supervised": each("--dataset cifar10 --width 0.25 --epochs 2 " + TUNED + "--group trans --loss {loss} --seed 0", loss=("frozen", "supervised")),
    # 98.3 % on whole MNIST in a minute of two cores: which setting of one epoch is nearest?  Then three seeds of it, and its untrained network
    "pilot_speed": each(EPOCH + "{what} --seed 0", what=("--lr 2", "--lr 4", "--lr 2 --loss hybrid", "--lr 2 --functions 3 --pool max"))
                   + each(EPOCH + "--lr 2 --loss hybrid --functions 3 --pool max --seed {seed}", seed=range(3))
                   + ["--dataset mnist --group scale --loss frozen --functions 3 --pool max --seed 0"],
    "table1": [line for seed in range(5) for text, groups, learned, supervised in ((MNIST, THREE, 5, 3), (CIFAR, THREE[::-1], 3, 1), (TINY, THREE[1::-1], 3, 1))
               for line in each(text + f"--group {{group}} --loss {{loss}} --seed {seed}", group=groups,
                                loss=LEARN * (seed < learned) + ("supervised",) * (seed < supervised))],
    "table2": [line for loss, mlp, cnn, seeds in (("frozen", 1, 1, 5), ("hssl", 1, 1, 5), ("assl", 16, 6, 5), ("supervised", 1, 1, 3))
               for line in each(MNIST + f"--group trans --backbone mlp --base-size {mlp} --loss {loss} --seed {{seed}}", seed=range(seeds))
               + each(MNIST + f"--group scale --backbone cnn --width 0.25 --base-size {cnn} --loss {loss} --seed {{seed}}", seed=range(seeds))
               + each(CIFAR + f"--group scale --backbone cnn --width 0.0625 --train-size 12500 --base-size {cnn} --loss {loss} --seed {{seed}}", seed=range(2))],
    "figure2_right": each(MNIST + "--group trans --max-distance {d} --distance {metric} --seed {seed}", d=(1, 2, 4, 8, 18, 32, 98), metric=("euclidean", "topological"), seed=range(5)),
    "figure2_left": each(CIFAR + "--train-size 12500 {base} --seed {seed}", seed=range(3), base=(
        *each("--group rot --base-size {n}", n=(1, 2, 3)), *each("--group scale --base-size {n}", n=(1, 3, 5)), *each("--group trans --base-size {n}", n=(1, 4, 16, 36)))),
}
