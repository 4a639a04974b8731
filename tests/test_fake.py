"""Where a GPU's tensors would meet a CPU's, found without a GPU.

Under FakeTensorMode a tensor has a shape and a device, and no numbers.  What is drawn stays real
and on the CPU, as in train.py.  All that happens to images and weights happens on a fake device:
"lazy", since without a GPU torch runs no backward pass on a fake "cuda"."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import data
import gconv
import probe
import train

DEVICE = torch.device("lazy", 0)


class CpuIsReal(TorchDispatchMode):
    """What has only to do with real CPU tensors is computed; the rest goes to FakeTensorMode."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        device = kwargs.get("device")
        moves = device is not None and torch.device(device).type != "cpu"
        if fake or moves:
            return func(*args, **kwargs)
        with _disable_current_modes():
            return func(*args, **kwargs)


SIZES = {"mnist": (1, 29, 1 / 16), "cifar10": (3, 31, 1 / 32), "tiny-imagenet": (3, 31, 1 / 32)}
COMBINATIONS = []
for group in ("rot", "scale", "trans", "rotscale"):
    for loss in ("hssl", "assl"):
        COMBINATIONS.append(("mnist", group, f"--loss {loss}"))
for objective in ("ntxent", "bilinear", "byol", "simsiam"):
    COMBINATIONS.append(("mnist", "rot", f"--loss hssl --objective {objective}"))
COMBINATIONS += [
    ("cifar10", "rot", "--loss hssl --augment jitter"),
    ("cifar10", "trans", "--loss assl --objective byol --augment shift"),
    ("cifar10", "scale", "--loss assl --backbone cnn"),
    ("cifar10", "rot", "--loss supervised --backbone mlp"),
    ("tiny-imagenet", "scale", "--loss supervised"),
    ("tiny-imagenet", "trans", "--loss assl"),
    ("mnist", "scale", "--backbone cnn --augment shift"),
    ("mnist", "trans", "--backbone mlp --loss supervised"),
    ("mnist", "rotscale", "--base-size 2 --slots all --augment jitter"),
    ("mnist", "trans", "--base-size 4 --max-distance 4 --distance topological"),
    ("mnist", "scale", "--epsilon 0.3 --pool max --functions 3"),
    ("mnist", "scale", "--loss assl --base-size 6"),
    ("mnist", "rot", "--extent 4"),
]
FAST = [COMBINATIONS[i] for i in (0, 3, 4, 10)]
MARKED = [c if c in FAST else pytest.param(*c, marks=pytest.mark.slow) for c in COMBINATIONS]


@pytest.mark.parametrize("kind, group, flags", MARKED)
def test_a_step_on_a_fake_device(kind, group, flags, monkeypatch):
    """Forward, backward, LARS, BYOL's update: on the device, and without looking at a number of
    it between them."""
    monkeypatch.setattr(torch, "autocast", lambda *more, **named: contextlib.nullcontext())
    monkeypatch.setattr(gconv.GConv, "recompute", True)  # as on CUDA
    c_in, size, width = SIZES[kind]
    args = train.parse(
        ["--group", group, "--width", str(width), "--batch-size", "8", *flags.split()]
    )
    x = torch.zeros(8, c_in, size, size, dtype=torch.uint8)
    labels = torch.arange(8) % 3
    images = data.Data(x, labels, x, labels, list("abc"), kind)
    f, h, classifier, pairs, _ = probe.network(vars(args), images)
    model = train.Objective(args, f, h, classifier, pairs).train()
    drawn = pairs.draw(8, train.seeded(0))
    u = torch.rand(2, 8, 9)
    with FakeTensorMode(allow_non_fake_inputs=True), CpuIsReal():
        model = model.to(DEVICE)
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = train.LARS(learned, weight_decay=args.weight_decay)
        x1 = x.to(DEVICE)[torch.arange(8).to(DEVICE)].float() / 255
        x2 = None
        if args.augment != "none":
            u1, u2 = u.to(x1)
            augment = getattr(data, args.augment)
            x2 = augment(x1, u2, args.strength)
            x1 = augment(x1, u1, args.strength)
        loss, y1, _ = model(x1, x2, labels.to(DEVICE), *drawn)
        loss.backward()
        optimizer.step()
        model.update_target()
    assert loss.shape == () and loss.device.type == "lazy" and loss.dtype == torch.float32
    assert y1 is None or y1.device.type == "lazy"
    for name, p in model.named_parameters():
        assert p.device.type == "lazy", name
        if p.requires_grad:
            assert p.grad is not None and p.grad.device.type == "lazy", name
    for name, value in model.named_buffers():
        assert value.device.type == "lazy", name
