"""The paper's networks f, heads h and classifiers (Appendix B), and the structureless ones of Table 2.

Needs two siblings: gconv.py, and groups.py (for the list of scales).

    import torch
    from backbones import MNISTNet
    f = MNISTNet(rotations=4)
    z = f(torch.rand(2, 1, 29, 29))                            # (2, 128, 4, 8, 8) = (B, C, G, H', W')
    f(torch.rand(2, 1, 29, 29), torch.tensor([[0, 3], [1, 1]]))  # (2, 128, 2, 8, 8): two elements of each image

Every backbone is called as f(x, elements=None): images (B, C_in, H, W) and, if only some elements of the
lifted axis are wanted, their numbers (B, n).  It returns z (B, C, G, H', W'), or n in the place of G.
Attributes: `order` = G, `channels` = C, `stride` = pixels between two positions of z, `independent` = whether fewer
elements cost less, `pool` = how fibers are read off space ("mean" as the paper, or "max"; see groups.fibers).

Input sizes (see README, "What is exact"): MNIST 29 px, CIFAR-10 and Tiny ImageNet 31 px.  With these every
stride lands alike on the image and on the turned image, and z has the shapes that the paper states.
"""
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from gconv import GConv, PointwiseGConv, lift, unlift
from groups import SCALES


class Normalise(nn.Module):
    """(x - mean)/std, a number a channel.  Inside f, so that T_g acts on raw intensities and background stays 0."""

    def __init__(self, mean=(0.0,), std=(1.0,)):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])  # (C_in, 1, 1)

    def forward(self, x):
        return (x - self.mean) / self.std  # (B, C_in, H, W)


class MNISTNet(nn.Module):
    """Three group convolutions, each with BatchNorm and ReLU: 29 × 29 px → z (B, 128·width, G, 8, 8).

    functions: of the basis of the first layer, along each axis.  The paper's 11 on 11 pixels reach past their support at
    the larger scales and are cut there; 3 are not.  pool: "mean" (the paper) or "max"."""

    def __init__(self, scales=(1.0,), rotations=1, width=1.0, c_in=1, extent=1, normalise=nn.Identity(), functions=11, pool="mean"):
        super().__init__()
        self.pool = pool
        self.normalise = normalise
        c1, c2, c3 = (scaled(c, width) for c in (32, 64, 128))
        group = dict(scales=scales, rotations=rotations)
        self.convs = nn.ModuleList([
            GConv(c_in, c1, 11, functions, stride=1, padding=5, **group),
            GConv(c1, c2, 7, 3, stride=2, padding=3, extent=extent, **group),
            GConv(c2, c3, 7, 3, stride=2, padding=3, extent=extent, **group)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (c1, c2, c3)])
        self.order, self.channels, self.stride, self.independent = len(scales) * rotations, c3, 4, extent == 1

    def forward(self, x, elements=None):
        y, counts, back = lift(self.normalise(x), elements, self.order)  # (N, C_in, 29, 29), N = B·n
        for conv, norm in zip(self.convs, self.norms):
            y = F.relu(norm(conv(y, counts)), inplace=True)  # (N, 32, 29, 29), (N, 64, 15, 15), (N, 128, 8, 8)
        return unlift(y, back, self.order if elements is None else elements.shape[1])  # (B, C, n, H', W')


class BasicBlock(nn.Module):
    """Pre-activation residual block with two 7 × 7 (effective 3) group convolutions (SESN, models/stl_ses.py)."""

    def __init__(self, c_in, c_out, stride, extent=1, **group):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = GConv(c_in, c_out, 7, 3, stride=stride, padding=3, extent=extent, **group)
        self.conv2 = GConv(c_out, c_out, 7, 3, stride=1, padding=3, extent=extent, **group)
        self.shortcut = None if c_in == c_out and stride == 1 else PointwiseGConv(c_in, c_out, stride)

    def forward(self, y, counts):
        a = F.relu(self.norm1(y), inplace=True)  # (N, c_in, H, W)
        skip = y if self.shortcut is None else self.shortcut(a)  # (N, c_out, H', W')
        a = F.relu(self.norm2(self.conv1(a, counts)), inplace=True)  # (N, c_out, H', W')
        return self.conv2(a, counts) + skip  # (N, c_out, H', W')


class ResNet20(nn.Module):
    """The CIFAR-10 and Tiny ImageNet network: a lifting layer, a group layer, then blocks.

    CIFAR-10 ("cifar10"): outputs (128, 256, 512), strides (1, 2, 2), 3 blocks each: z (B, 512, G, 7, 7).
    Tiny ImageNet: outputs (64, 128, 256, 512), strides (1, 2, 2, 2), 2 blocks each: z (B, 512, G, 4, 4).
    The paper pads the lifting layer by 3 and states these z, which follow from 31 px only without that
    padding: 31 → 25 → 25 → 13 → 7 (→ 4).  So it is unpadded here, and every map but the last is odd.
    """

    def __init__(self, kind="cifar10", scales=(1.0,), rotations=1, width=1.0, c_in=3, extent=1, normalise=nn.Identity(),
                 functions=7, pool="mean"):
        super().__init__()
        self.pool = pool
        self.normalise = normalise
        outputs, strides, blocks = {"cifar10": ((128, 256, 512), (1, 2, 2), 3),
                                    "tiny-imagenet": ((64, 128, 256, 512), (1, 2, 2, 2), 2)}[kind]
        group = dict(scales=scales, rotations=rotations)
        c = scaled(64, width)
        c0 = max(9, scaled(9, width))  # nine, however narrow the rest
        self.lifting = GConv(c_in, c0, 7, functions, stride=1, padding=0, **group)  # 31 → 25
        self.conv = GConv(c0, c, 7, 3, stride=1, padding=3, extent=extent, **group)
        self.norm, self.blocks = nn.BatchNorm2d(c), nn.ModuleList()
        for c_out, stride in zip((scaled(o, width) for o in outputs), strides):
            for b in range(blocks):
                self.blocks.append(BasicBlock(c, c_out, stride if b == 0 else 1, extent, **group))
                c = c_out
        self.order, self.channels, self.stride, self.independent = len(scales) * rotations, c, math.prod(strides), extent == 1

    def forward(self, x, elements=None):
        y, counts, back = lift(self.normalise(x), elements, self.order)  # (N, C_in, 31, 31), N = B·n
        y = self.conv(self.lifting(y, counts), counts)  # (N, 64, 25, 25)
        y = F.relu(self.norm(y), inplace=True)
        for block in self.blocks:
            y = block(y, counts)  # (N, 128, 25, 25) … (N, 512, 7, 7)
        return unlift(y, back, self.order if elements is None else elements.shape[1])  # (B, C, n, H', W')


# ---------------------------------------------------------------- Table 2: no structure
class MLP(nn.Module):
    """Fully connected 784, 1024, 2048, read as 16 'fibers' of 128: z (B, 128, 16, 1, 1).  No group acts on it."""

    independent, order, channels, stride, pool = False, 16, 128, 1, "mean"

    def __init__(self, pixels, normalise=nn.Identity()):
        super().__init__()
        sizes = (pixels, 784, 1024, 2048)
        self.layers = nn.Sequential(normalise, nn.Flatten(), *(
            layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())))

    def forward(self, x, elements=None):
        z = self.layers(x).unflatten(1, (16, 128)).transpose(1, 2)[..., None, None]  # (B, 128, 16, 1, 1)
        return z if elements is None else take(z, elements)


class CNN(nn.Module):
    """CNN (6 × CHW): full k × k kernels, six times the channels, read as six 'scales'.  Nothing makes them so.

    kind "mnist": z (B, 128·width, 6, 8, 8).  "cifar10": ResNet20 with z (B, 512·width, 6, 7, 7)."""

    independent, order, pool = False, 6, "mean"

    def __init__(self, kind="mnist", width=1.0, c_in=1, normalise=nn.Identity()):
        super().__init__()
        # The same network on the trivial group, six times as wide, with effective size = kernel size:
        # its basis is then complete, so every k × k kernel is within reach.
        self.net = (MNISTNet(width=6 * width, c_in=c_in, normalise=normalise) if kind == "mnist" else
                    ResNet20(kind, width=6 * width, c_in=c_in, normalise=normalise))
        for module in self.net.modules():
            for name, child in module.named_children():
                if isinstance(child, GConv):
                    setattr(module, name, plain_conv(child))
        self.channels, self.stride = self.net.channels // 6, self.net.stride

    def forward(self, x, elements=None):
        z = self.net(x)[:, :, 0].unflatten(1, (6, self.channels)).transpose(1, 2)  # (B, C, 6, H', W')
        return z if elements is None else take(z, elements)


class PlainConv(nn.Conv2d):
    """An ordinary convolution that takes, and ignores, GConv's `counts`."""

    def forward(self, y, counts=None):
        return super().forward(y)


def plain_conv(gconv):
    """The fully parameterised counterpart of a GConv, same sizes: every pixel of the kernel is free."""
    c_out, _, c_in = gconv.weight.shape[:3]
    return PlainConv(c_in, c_out, gconv.kernel_size, gconv.stride, gconv.padding, bias=False)


def take(z, elements):
    """z at the asked elements: z (B, C, G, H', W'), elements (B, n) → (B, C, n, H', W')."""
    b = torch.arange(len(z), device=z.device)[:, None]  # (B, 1)
    return z.transpose(1, 2)[b, elements].transpose(1, 2)


# ---------------------------------------------------------------- head and classifiers
class Head(nn.Sequential):
    """The projection head h: three linear layers, BatchNorm after each, ReLU between (not at the end).

    c: length of the bundle |g0|·C; sizes: of the three layers; norm_input: a BatchNorm before them, as for
    CIFAR-10 and Tiny ImageNet.  (B, c) → (B, sizes[-1])."""

    def __init__(self, c, sizes=(128, 128, 128), norm_input=False):
        layers = [nn.BatchNorm1d(c)] if norm_input else []
        for i, size in enumerate(sizes):
            layers += [nn.Linear(c, size, bias=False), nn.BatchNorm1d(size)] + [nn.ReLU()] * (i < 2)
            c = size
        super().__init__(*layers)


def as_channels(z):
    """All of z as the channels of one element: z (B, C, G, H', W') → (B, G·C, 1, H', W').

    How a classifier reads a network without structure, whose elements have no order to take a maximum over."""
    return z.transpose(1, 2).flatten(1, 2)[:, :, None]


class MNISTClassifier(nn.Module):
    """One more group convolution (7, effective 3, stride 2, unpadded), the maximum over the group, a linear layer.

    Detached, only the linear layer learns ("a detached linear classifier") and the convolution keeps its random
    weights; attached (supervised), both learn.  This reading gives the paper's frozen accuracies, see README.
    Where z has no space left to convolve (the MLP) there is only the linear layer.  structured=False: c counts all of z."""

    def __init__(self, c, classes, scales=(1.0,), rotations=1, positions=8, structured=True):
        super().__init__()
        self.structured = structured
        self.conv = GConv(c, c, 7, 3, scales=scales, rotations=rotations, stride=2) if positions >= 7 else None
        self.linear = nn.Linear(c, classes)

    def features(self, z):
        """z (B, C, G, 8, 8) → (B, c), what the linear layer sees."""
        z = z if self.structured else as_channels(z)  # (B, C, G, 8, 8) or (B, G·C, 1, 8, 8)
        if self.conv is not None:
            with warnings.catch_warnings():  # 8 - 7 is odd, so the paper's own layer is not exactly invariant to turns
                warnings.simplefilter("ignore")
                z = self.conv(z)  # (B, C, G, 1, 1)
        return z.amax(2).flatten(1)

    def forward(self, z):
        return self.linear(self.features(z))  # (B, classes)


class ResNetClassifier(nn.Module):
    """The maximum over the group, BatchNorm, ReLU, the average over space, a linear layer.  structured=False: c counts all of z."""

    def __init__(self, c, classes, structured=True):
        super().__init__()
        self.structured = structured
        self.norm, self.linear = nn.BatchNorm2d(c), nn.Linear(c, classes)

    def features(self, z):
        """z (B, C, G, H', W') → (B, c), what the linear layer sees."""
        z = z if self.structured else as_channels(z)  # (B, C, G, H', W') or (B, G·C, 1, H', W')
        return F.relu(self.norm(z.amax(2))).mean((-2, -1))

    def forward(self, z):
        return self.linear(self.features(z))  # (B, classes)


# ---------------------------------------------------------------- one network for each question
def build(kind, group, backbone="equivariant", width=1.0, classes=10, size=29, c_in=1, mean=(0.0,), std=(1.0,),
          base_size=1, extent=1, functions=None, pool="mean"):
    """The backbone f, head h and classifier that Appendix B gives for a data set and a group.

    kind "mnist" | "cifar10" | "tiny-imagenet"; group "trans" | "rot" | "scale" | "rotscale"; backbone "equivariant" |
    "cnn" | "mlp"; size, c_in, mean, std: of the images; base_size: |g0|, by which h's input grows; functions, pool: see
    MNISTNet (None: the paper's).  Raises ValueError where Table 2 has no such network."""
    axis = dict(scales=SCALES if "scale" in group else (1.0,), rotations=4 if group.startswith("rot") else 1)
    inside = dict(c_in=c_in, normalise=Normalise(mean, std))
    choices = dict(pool=pool) if functions is None else dict(pool=pool, functions=functions)
    structured = backbone == "equivariant"
    if structured and kind == "mnist":
        f = MNISTNet(width=width, extent=extent, **axis, **inside, **choices)
    elif structured:
        f = ResNet20(kind, width=width, extent=extent, **axis, **inside, **choices)
    elif backbone == "mlp":
        f = MLP(c_in * size * size, inside["normalise"])
    elif group == "scale":
        f = CNN(kind, width=width, **inside)
    else:
        raise ValueError("the backbone 'cnn' emulates six scales: it goes with --group scale")
    read = dict(c=f.channels, **axis) if structured else dict(c=f.order * f.channels)  # without structure: all of z
    if kind == "mnist" or backbone == "mlp":
        h = Head(base_size * f.channels, [scaled(128, width)] * 3)
        classifier = MNISTClassifier(classes=classes, positions=1 if backbone == "mlp" else math.ceil(size / 4), structured=structured, **read)
    else:
        h = Head(base_size * f.channels, [scaled(c, width) for c in (512, 2048, 512)], norm_input=True)
        classifier = ResNetClassifier(read["c"], classes, structured)
    return f, h, classifier


def perturb(f, epsilon, seed=0):
    """Break f's equivariance by a known amount, in place: each element g of each group convolution (extent 1) gets its own
    fixed change δ_g of the coefficients, ‖δ_g‖ = ε·‖w‖ (w as it is now).  ε = 0: f as it was.  It is part of the state dict."""
    generator = torch.Generator().manual_seed(seed)
    for conv in (m for m in f.modules() if isinstance(m, GConv)):
        delta = torch.randn(conv.order, *conv.weight.shape, generator=generator)  # (|G|, C_out, 1, C_in, e, e)
        delta *= epsilon * conv.weight.detach().norm() / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1, 1)
        conv.register_buffer("delta", delta[:, :, 0].to(conv.weight))  # (|G|, C_out, C_in, e, e)


def scaled(channels, width):
    """A number of channels times the width multiplier, at least one."""
    return max(1, round(channels * width))
