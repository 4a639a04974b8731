"""The runs of train.py behind the tables: EXPERIMENTS[name] is a list of flags, one for each run.

results/run.py does them, in this order.  Each experiment becomes results/NAME.jsonl.  Primary
claims (CLAIMS.md) are tested on seeds 10 … 14; a pilot has seed 0.
"""

NOT_RUNS = ("audit", "riddle", "where")  # results/NAME.jsonl whose lines are not runs
SEEDS = range(10, 15)
THREE = range(10, 13)
GROUPS = ("rot", "scale", "trans")
BATCHES = "--batch-size 256 --warmup-epochs 0.25 "
MNIST = "--dataset mnist --train-size 10000 --test-size 5000 --epochs 9 " + BATCHES
PLAIN = "--lr 2 "  # set before all runs on these seeds; compare pilot_rates and rates
JITTER = "--augment jitter --lr 4 "  # likewise
TWICE = "--loss hssl --max-distance 0 "  # one slot twice: the null of what slots add
ALONE = JITTER + TWICE  # jitter alone.  Without jitter the views are equal: negatives alone
NEAR = "--loss hssl --max-distance 1 "  # translation: neighbours only
TINY = "--dataset tiny-imagenet --train-size 20000 --width 0.125 --epochs 10 --lr 2 " + BATCHES
EPOCH = "--dataset mnist --group scale --epochs 1 --batch-size 128 --lr 2 --warmup-epochs 0.1 "
CIFAR = (
    "--dataset cifar10 --train-size 12500 --test-size 5000 --batch-size 128 --warmup-epochs 0.25 "
)
EIGHTH = CIFAR + "--width 0.125 --epochs 4 "
SIXTEENTH = CIFAR + "--width 0.0625 --epochs 2 --group scale "


def each(text, **choices):
    """The text with each {name} replaced, once for every combination of the choices: a list."""
    lines = [text]
    for name, values in choices.items():
        lines = [line.replace(f"{{{name}}}", str(v)) for v in values for line in lines]
    return lines


def arms(*flags, seeds=SEEDS):
    """Each of the flags with every seed, seed by seed: a list."""
    return [f"{text} --seed {seed}" for seed in seeds for text in flags]


LEARN = ("--loss frozen", PLAIN + "--loss hssl", PLAIN + "--loss assl")
LABELS = PLAIN + "--loss supervised"
TAUGHT = (*LEARN, ALONE, JITTER + "--loss hssl", JITTER + "--loss assl")
SIZES = dict(rot=(1, 2, 3), scale=(1, 3, 5), trans=(1, 4, 16, 36))  # |g0| of Fig. 2 left


def bundle_sizes(start, seeds):
    """Fig. 2 left: every size computes all slots, or BatchNorm would differ along the curve."""
    lines = []
    for group, sizes in SIZES.items():
        text = start + f"--group {group} --loss hssl {PLAIN}--slots all --base-size {{n}}"
        lines += each(text, n=sizes)
    return arms(*lines, seeds=seeds)


EXPERIMENTS = {
    # the quick start of the front page; each run also measures its untrained network
    "quick": arms("--group rot", "--group scale", seeds=range(3)),
    # one rate for plain runs and one for jitter, the same for all groups
    "pilot_rates": each(
        MNIST + "--group {group} --loss hssl {lr} --seed 0",
        group=("rot", "scale"),
        lr=("--lr 2", "--lr 4"),
    )
    + each(MNIST + "--group trans " + NEAR + "{lr} --seed 0", lr=("--lr 2", "--lr 4"))
    + each(
        MNIST + "--group {group} " + TWICE + "--augment jitter --lr {lr} --seed 0",
        group=("scale", "trans"),
        lr=(2, 4),
    ),
    "taught": arms(
        *each(MNIST + "--group {group} {arm}", arm=(*TAUGHT, PLAIN + TWICE), group=GROUPS),
        *each(MNIST + "--group trans {arm}", arm=(PLAIN + NEAR, JITTER + NEAR)),
    ),
    # one slot twice spoils the features at the rate of the others: also at lower rates?
    "pilot_negatives": each(
        MNIST + "--group {group} " + TWICE + "--lr {lr} --seed 0",
        group=GROUPS,
        lr=(0.05, 0.2, 0.6, 2),
    )
    + each(MNIST + "--group {group} --loss frozen --seed 0", group=GROUPS),
    # jitter at the rate of plain runs, and plain runs at that of jitter: is it about the rate?
    "rates": arms(
        *each(
            MNIST + "--augment jitter --lr 2 --group {arm}",
            arm=("rot " + TWICE, "rot --loss hssl", "trans " + TWICE, "trans " + NEAR),
        ),
        *each(
            MNIST + "--lr 4 --group {arm}",
            arm=("rot --loss hssl", "scale --loss hssl", "trans " + NEAR),
        ),
        seeds=THREE,
    ),
    # a slot drawn for each image tells images apart, if a network knows where its slots are.  So:
    # one draw for all images of a batch
    "draw": arms(
        *each(
            MNIST + "--group trans --draw batch {arm}",
            arm=(JITTER + NEAR, ALONE, LEARN[2], PLAIN + NEAR, PLAIN + TWICE),
        ),
        seeds=THREE,
    ),
    "knob": arms(
        *each(MNIST + "--group rot --epsilon {epsilon} {arm}", arm=LEARN, epsilon=(0.1, 0.3, 1, 3))
    ),
    "table2": arms(
        *each(
            MNIST + "--group trans --backbone mlp {arm}",
            arm=(*LEARN[:2], LEARN[2] + " --base-size 16"),
        ),
        *each(
            MNIST + "--group scale --backbone cnn --width 0.25 {arm}",
            arm=(*LEARN[:2], LEARN[2] + " --base-size 6"),
        ),
        *each(MNIST + "--group scale --width 0.25 {arm}", arm=LEARN),
    )
    + arms(
        MNIST + "--group trans --backbone mlp " + LABELS,
        MNIST + "--group scale --backbone cnn --width 0.25 " + LABELS,
        MNIST + "--group scale --width 0.25 " + LABELS,
        seeds=THREE,
    ),
    "labels": arms(*each(MNIST + "--group {group} " + LABELS, group=GROUPS), seeds=THREE),
    "distance": arms(
        *each(MNIST + "--group trans --loss hssl --lr 2 --max-distance {d}", d=(1, 2, 8, 32, 98)),
        *each(
            MNIST + "--group trans --loss assl --lr 2 --strength {s}",
            s=(0.04, 0.07, 0.11, 0.2, 0.3, 0.45),
        ),
        # 1, 2 and 3 strides of 4 px
        *each(
            MNIST + "--group trans --loss {loss} --lr 2 --pairs matched --strength {s}",
            loss=("hssl", "assl"),
            s=(0.125, 0.25, 0.375),
        ),
    ),
    "bundle": bundle_sizes(MNIST, SEEDS),
    # does training beat pooling, which is free?  Extent 1 (our default) and 4 (all of Eq. 4), with
    # about as many weights
    "pooling": arms(
        *each(
            MNIST + "--group rot {size} {arm}",
            arm=("--loss frozen", *(TAUGHT[i] for i in (1, 3, 4, 5)), LABELS),
            size=("--width 0.5", "--width 0.25 --extent 4"),
        )
    ),
    "nearer": arms(*each(MNIST + "--group scale --functions 3 --pool max {arm}", arm=TAUGHT)),
    # whole MNIST in a minute on two CPU cores, beside its untrained network and the augmentation
    # alone
    "minute": arms(
        EPOCH + "--loss frozen --functions 3 --pool max",
        *each(
            EPOCH + "--loss hssl --functions 3 --pool max --augment {augment} {slots}",
            augment=("shift", "jitter"),
            slots=("", "--max-distance 0"),
        ),
        seeds=THREE,
    ),
    "cifar10": arms(
        *each(EIGHTH + "--group {group} {arm}", arm=LEARN, group=GROUPS),
        *each(EIGHTH + "--group trans {arm}", arm=(ALONE, PLAIN + NEAR, JITTER + NEAR)),
    )
    + arms(*each(EIGHTH + "--group {group} " + LABELS, group=GROUPS), seeds=THREE)
    # added when turns had gained 14 points on two seeds: what do they gain over the nulls?  And,
    # added when these nulls had run: do they add to jitter?  (Any two positions came last.)
    + arms(
        *each(EIGHTH + "--group {group} " + PLAIN + TWICE, group=GROUPS),
        *each(EIGHTH + "--group {group} " + ALONE, group=GROUPS[:2]),
        *each(EIGHTH + "--group {group} " + JITTER + "--loss hssl", group=GROUPS),
        seeds=THREE,
    ),
    "table2_cifar10": arms(
        *each(
            SIXTEENTH + "--backbone cnn {arm}",
            arm=(*LEARN[:2], LEARN[2] + " --base-size 6", LABELS),
        ),
        *each(SIXTEENTH + "{arm}", arm=(*LEARN, LABELS)),
        seeds=THREE,
    ),
    "bundle_cifar10": bundle_sizes(CIFAR + "--width 0.125 --epochs 2 ", THREE),
    "tiny": arms(
        *each(TINY + "--group rot --loss {loss}", loss=("frozen", "hssl", "assl")), seeds=(10,)
    ),
}
