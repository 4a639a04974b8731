#!/bin/sh
# Every run behind the README's tables and figures:  DATA=data sh results/run.sh table1 table2 …   (no names: all)
# A run that is in results/*.jsonl is skipped and one that was broken off goes on, so stop and start it as you like.
# Start it twice, with OMP_NUM_THREADS=1, to use two cores better: a run that another process holds is passed over.
# The budget is two CPU cores'; the paper's is  torchrun --nproc_per_node=8 train.py --dataset D --group G --loss L --seed S
DATA=${DATA:-data}
TUNED="--lr 2 --warmup-epochs 0.25 --batch-size 256"
MNIST="--dataset mnist   --train-size 10000 --test-size 5000 --epochs 3 $TUNED"
CIFAR="--dataset cifar10 --train-size 4096  --test-size 2000 --epochs 2 $TUNED --width 0.125"
TIN="--dataset tiny-imagenet --train-size 4096 --test-size 2000 --epochs 2 $TUNED --width 0.125"

run() {  # one that a signal stopped stops them all
    python train.py --data-dir "$DATA" --experiment $name --seed $seed "$@"
    status=$?; [ $status -lt 128 ] || exit $status
}

table1() {
    for loss in hssl assl frozen supervised; do
        for group in scale rot trans; do run $CIFAR --group $group --loss $loss; done
        for group in scale rot trans; do run $MNIST --group $group --loss $loss; done
        for group in scale rot;       do run $TIN   --group $group --loss $loss; done
    done
}

table2() {  # "in the H-SSL setting, we 'emulate' a group dimension" (App. B): A-SSL takes all 16, or 6, fibers at once
    for loss in hssl assl frozen supervised; do
        mlp=1; cnn=1; [ $loss != assl ] || { mlp=16; cnn=6; }
        run $MNIST --group trans --loss $loss --backbone mlp --base-size $mlp
        run $MNIST --group scale --loss $loss --backbone cnn --width 0.25 --base-size $cnn
        run $CIFAR --group scale --loss $loss --backbone cnn --width 0.0625 --base-size $cnn
    done
}

figure2_left() {
    for n in 1 2 3;             do run $CIFAR --group rot   --base-size $n; done
    for n in 1 2 3 4 5;         do run $CIFAR --group scale --base-size $n; done
    for n in 1 4 9 16 25 36 42; do run $CIFAR --group trans --base-size $n; done
}

figure2_right() {
    for d in 1 2 4 8 18 32 98; do run $MNIST --group trans --max-distance $d; done
    for d in 1 2 4 8 18 32;    do run $MNIST --group trans --max-distance $d --distance topological; done
}

gap_sizes() {  # MNIST rotation where strides are exact (29 px, table1) and where one or both are not
    for px in 30 31 32; do for loss in hssl assl; do run $MNIST --group rot --image-size $px --loss $loss; done; done
}

rotation_epochs() {  # does H-SSL for rotations lose what the random network had, as in Table 1's MNIST row?
    for e in 0 2 10 30; do for loss in hssl assl; do run --dataset mnist5k --group rot --warmup-epochs 0.25 --epochs $e --loss $loss; done; done
}

mlp_epochs() {  # how Table 2's MLP comes to differ from the frozen network, and what A-SSL does with one fiber
    for e in 1 3 10 30; do
        run $MNIST --epochs $e --group trans --backbone mlp --loss hssl
        for n in 16 1; do run $MNIST --epochs $e --group trans --backbone mlp --loss assl --base-size $n; done
    done
}

quickstart() { for loss in hssl assl frozen; do run --dataset mnist5k --loss $loss; done; }

mnist_whole() { for loss in hssl assl; do run --dataset mnist --epochs 5 $TUNED --loss $loss; done; }

objectives() {  # beyond the paper, on MNIST: other objectives in both forms, both at once, rotation × scale
    for loss in hssl assl; do
        for objective in ntxent bilinear byol simsiam; do run $MNIST --group scale --loss $loss --objective $objective; done
        run $MNIST --group rotscale --loss $loss
    done
    for group in rot scale; do run $MNIST --group $group --loss hybrid; done
    run $MNIST --group rotscale --loss frozen
}

for name in ${@:-table1 table2 figure2_right gap_sizes figure2_left objectives quickstart mnist_whole rotation_epochs mlp_epochs}; do
    for seed in ${SEEDS:-0 1 2}; do $name; done
done
