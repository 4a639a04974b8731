"""The paper's networks f, heads h and classifiers (Appendix B), and the networks without structure of Table 2.

Needs two siblings: gconv.py and groups.py.

    import torch
    from backbones import MNISTNet
    f = MNISTNet(rotations=4)
    z = f(torch.rand(2, 1, 29, 29))                            # (2, 128, 4, 8, 8) = (B, C, G, H', W')
    f(torch.rand(2, 1, 29, 29), torch.tensor([[0, 3], [1, 1]]))  # (2, 128, 2, 8, 8): two elements of each image

Every backbone computes f(x): images (B, C_in, H, W) → z (B, C, G, H', W').  If f is `independent`, f(x, elements) computes
only some elements of the lifted axis: their numbers (B, n) → z (B, C, n, H', W').
Attributes: `order` = G, `channels` = C, `stride` = pixels between neighbouring positions of z, `independent` = whether f can
compute only some elements, `pool` = how fibers are pooled over space ("mean" as in the paper, or "max"; see groups.fibers),
`geometry` = (kernel, stride, padding) of the convolutions, from which `legal_sizes` follow.
"""
import functools
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from gconv import GConv, lift, unlift
from groups import SCALES


class Normalise(nn.Module):
    """(x - mean)/std for each channel.  It is part of f, so that T_g acts on raw intensities and fills in 0."""

    def __init__(self, mean=(0.0,), std=(1.0,)):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])  # (C_in, 1, 1)

    def forward(self, x):
        if not x.is_floating_point():
            raise ValueError(f"images are floating point numbers in 0 … 1, not {x.dtype}: x.float() / 255")
        return (x - self.mean) / self.std  # (B, C_in, H, W)


class MNISTNet(nn.Module):
    """Three group convolutions, each with BatchNorm and ReLU: 29 × 29 px → z (B, 128·width, G, 8, 8).

    functions: basis functions of the first layer along each axis.  With the six scales b_9 is almost 0 on the 7 pixels of scale 1, so
    the norm of 1 there makes it five times too large at the others (notebook 02).  Nine or fewer functions avoid this.  pool: "mean" (the paper) or "max".  conv: the class of the layers."""

    geometry = ((11, 1, 5), (7, 2, 3), (7, 2, 3))

    def __init__(self, scales=(1.0,), rotations=1, width=1.0, c_in=1, extent=1, normalise=nn.Identity(), functions=11, pool="mean", conv=GConv):
        super().__init__()
        self.pool, self.rotations, self.normalise = pool, rotations, normalise
        c1, c2, c3 = (scaled(c, width) for c in (32, 64, 128))
        group = dict(scales=scales, rotations=rotations)
        self.convs = nn.ModuleList([
            conv(c_in, c1, 11, functions, stride=1, padding=5, **group),
            conv(c1, c2, 7, 3, stride=2, padding=3, extent=extent, **group),
            conv(c2, c3, 7, 3, stride=2, padding=3, extent=extent, **group)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (c1, c2, c3)])
        self.order, self.channels, self.stride, self.independent = len(scales) * rotations, c3, 4, extent == 1

    def forward(self, x, elements=None):
        check(self, x.shape[-1], elements)
        y, counts, back = lift(self.normalise(x), elements, self.order)  # (N, C_in, 29, 29), N = B·n
        for conv, norm in zip(self.convs, self.norms):
            y = F.relu(norm(conv(y, counts)), inplace=True)  # (N, 32, 29, 29), (N, 64, 15, 15), (N, 128, 8, 8)
        return unlift(y, back, self.order if elements is None else elements.shape[1])  # (B, C, n, H', W')


class BasicBlock(nn.Module):
    """Pre-activation residual block with two 7 × 7 (effective 3) group convolutions (SESN, models/stl_ses.py)."""

    def __init__(self, c_in, c_out, stride, conv=GConv, **group):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = conv(c_in, c_out, 7, 3, stride=stride, padding=3, **group)
        self.conv2 = conv(c_out, c_out, 7, 3, stride=1, padding=3, **group)
        # 1 × 1, one matrix for all g: equivariant to every group.  Its stride is a pooling of 1 × 1: faster on a CPU, and there torch's own stride can crash
        self.stride, self.shortcut = stride, None if c_in == c_out and stride == 1 else nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, y, counts):
        a = F.relu(self.norm1(y), inplace=True)  # (N, c_in, H, W)
        skip = y if self.shortcut is None else self.shortcut(F.avg_pool2d(a, 1, self.stride))  # (N, c_out, H', W')
        a = F.relu(self.norm2(self.conv1(a, counts)), inplace=True)  # (N, c_out, H', W')
        return self.conv2(a, counts) + skip  # (N, c_out, H', W')


class ResNet20(nn.Module):
    """The CIFAR-10 and Tiny ImageNet network: a lifting layer, a group layer, then blocks.

    "cifar10": outputs (128, 256, 512), strides (1, 2, 2), 3 blocks each: z (B, 512, G, 7, 7).
    "tiny-imagenet": outputs (64, 128, 256, 512), strides (1, 2, 2, 2), 2 blocks each: z (B, 512, G, 4, 4).
    The paper pads the lifting layer by 3.  With that padding z would be 8 × 8; its 7 × 7 follows without, from 31 to 34 px.
    So there is none here.  Of these sizes only 31 makes every stride exact: 31 → 25 → 25 → 13 → 7 (→ 4)."""

    def __init__(self, kind="cifar10", scales=(1.0,), rotations=1, width=1.0, c_in=3, extent=1, normalise=nn.Identity(), functions=7, pool="mean", conv=GConv):
        super().__init__()
        self.pool, self.rotations, self.normalise = pool, rotations, normalise
        outputs, strides, blocks = {"cifar10": ((128, 256, 512), (1, 2, 2), 3),
                                    "tiny-imagenet": ((64, 128, 256, 512), (1, 2, 2, 2), 2)}[kind]
        group = dict(scales=scales, rotations=rotations)
        c = scaled(64, width)
        c0 = max(9, scaled(9, width))  # not narrower: this layer costs little
        self.geometry = ((7, 1, 0), *((7, s, 3) for s in strides))  # the other layers keep the size
        self.lifting = conv(c_in, c0, 7, functions, stride=1, padding=0, **group)  # 31 → 25
        self.conv = conv(c0, c, 7, 3, stride=1, padding=3, extent=extent, **group)
        self.norm, self.blocks = nn.BatchNorm2d(c), nn.ModuleList()
        for c_out, stride in zip((scaled(o, width) for o in outputs), strides):
            for b in range(blocks):
                self.blocks.append(BasicBlock(c, c_out, stride if b == 0 else 1, conv, extent=extent, **group))
                c = c_out
        self.order, self.channels, self.stride, self.independent = len(scales) * rotations, c, math.prod(strides), extent == 1

    def forward(self, x, elements=None):
        check(self, x.shape[-1], elements)
        y, counts, back = lift(self.normalise(x), elements, self.order)  # (N, C_in, 31, 31), N = B·n
        y = self.conv(self.lifting(y, counts), counts)  # (N, 64, 25, 25)
        y = F.relu(self.norm(y), inplace=True)  # (N, 64, 25, 25)
        for block in self.blocks:
            y = block(y, counts)  # (N, 128, 25, 25) … (N, 512, 7, 7)
        return unlift(y, back, self.order if elements is None else elements.shape[1])  # (B, C, n, H', W')


@functools.lru_cache(maxsize=None)
def legal_sizes(geometry):
    """Image sizes up to 1024 px that pass through all layers → {size: whether every stride is exact}.

    geometry: (kernel, stride, padding) of each layer.  A stride is exact on n positions if it divides n + 2·padding - kernel.
    Then it takes the same positions from the image and from the turned image."""
    sizes = {}
    for size in range(1, 1025):
        n, exact = size, True
        for kernel, stride, padding in geometry:
            n, rest = divmod(n + 2 * padding - kernel, stride)
            n, exact = n + 1, exact and rest == 0
        if n >= 1:
            sizes[size] = exact
    return sizes


def check(f, size, elements):
    """Warn (Python shows it once) if strides are not exact at this image size, and name the nearest sizes at which they are.
    ValueError if only some elements are asked for and f needs all (extent > 1)."""
    if elements is not None and not f.independent:
        raise ValueError("a filter that spans several elements (extent > 1) needs all of them: call f(x)")
    sizes = legal_sizes(f.geometry)
    if f.rotations > 1 and not sizes.get(size, True):
        near = sorted((n for n in sizes if sizes[n]), key=lambda n: abs(n - size))[:2]
        warnings.warn(f"{size} px breaks rotation equivariance, since a stride takes other positions from the turned image: the nearest "
                      f"sizes that are exact for the whole network are {min(near)} and {max(near)} px", stacklevel=2)


# ---------------------------------------------------------------- Table 2: without structure
class MLP(nn.Module):
    """Fully connected 784, 1024, 2048 (times the width), read as 16 'fibers' of 128: z (B, 128, 16, 1, 1).  No group acts on it."""

    independent, order, stride, pool, geometry = False, 16, 1, "mean", ()

    def __init__(self, pixels, normalise=nn.Identity(), width=1.0):
        super().__init__()
        self.channels = scaled(128, width)
        layers = Head(pixels, (scaled(784, width), scaled(1024, width), 16 * self.channels))
        self.layers = nn.Sequential(normalise, nn.Flatten(), *layers, nn.ReLU())

    def forward(self, x):
        return self.layers(x).unflatten(1, (16, self.channels)).transpose(1, 2)[..., None, None]  # (B, 128, 16, 1, 1)


class CNN(nn.Module):
    """The CNN of Table 2 (there written 6 × CHW): full k × k kernels, `order` times the channels, read as `order` elements on which no group acts.

    kind "mnist": z (B, 128·width, order, 8, 8).  Other kinds: ResNet20, z (B, 512·width, order, 7, 7) or 4, 4."""

    independent, pool = False, "mean"

    def __init__(self, kind="mnist", width=1.0, c_in=1, normalise=nn.Identity(), order=6):
        super().__init__()
        # the same network without a group, `order` times as wide; every pixel of its kernels is a parameter
        c = 128 if kind == "mnist" else 512
        width = scaled(c, width) / c  # so that `order` divides the channels
        self.net = (MNISTNet(width=order * width, c_in=c_in, normalise=normalise, conv=PlainConv) if kind == "mnist" else
                    ResNet20(kind, width=order * width, c_in=c_in, normalise=normalise, conv=PlainConv))
        self.order, self.channels, self.stride, self.geometry = order, self.net.channels // order, self.net.stride, self.net.geometry

    def forward(self, x):
        return self.net(x)[:, :, 0].unflatten(1, (self.order, self.channels)).transpose(1, 2)  # (B, C, order, H', W')


class PlainConv(nn.Conv2d):
    """An ordinary convolution with GConv's arguments; it ignores the basis, the group and `counts`."""

    def __init__(self, c_in, c_out, kernel_size, effective_size=None, stride=1, padding=0, **group):
        super().__init__(c_in, c_out, kernel_size, stride, padding, bias=False)

    def forward(self, y, counts=None):
        return super().forward(y)  # (N, C_out, H', W')


# ---------------------------------------------------------------- head and classifiers
class Head(nn.Sequential):
    """The projection head h: three linear layers, BatchNorm after each, ReLU between (not at the end).

    c: length of the bundle, |g0|·C; sizes: outputs of the three layers; norm_input: adds a BatchNorm before them,
    as for CIFAR-10 and Tiny ImageNet.  (B, c) → (B, sizes[-1])."""

    def __init__(self, c, sizes=(128, 128, 128), norm_input=False):
        layers = [nn.BatchNorm1d(c)] if norm_input else []
        for i, size in enumerate(sizes):
            layers += [nn.Linear(c, size, bias=False), nn.BatchNorm1d(size)] + [nn.ReLU()] * (i < len(sizes) - 1)
            c = size
        super().__init__(*layers)


def as_channels(z):
    """All of z as the channels of one element: z (B, C, G, H', W') → (B, G·C, 1, H', W').

    A classifier reads a network without structure in this way: a maximum over its elements would have no meaning."""
    return z.transpose(1, 2).flatten(1, 2)[:, :, None]  # (B, G·C, 1, H', W')


class MNISTClassifier(nn.Module):
    """One more group convolution (7, effective 3, stride 2, unpadded), the maximum over the group, a linear layer.

    If it is detached ("a detached linear classifier"), only the linear layer learns and the convolution keeps its random
    weights.  If it is attached (supervised), both learn.  Images of more than 32 px give several positions; their mean is used.
    convolve=False: only the linear layer (the MLP's z has no space).  structured=False: c counts all of z."""

    def __init__(self, c, classes, scales=(1.0,), rotations=1, convolve=True, structured=True):
        super().__init__()
        self.structured, self.geometry = structured, ((7, 2, 0),) if convolve else ()
        self.conv = GConv(c, c, 7, 3, scales=scales, rotations=rotations, stride=2) if convolve else None
        self.linear = nn.Linear(c, classes)

    def features(self, z):
        """z (B, C, G, 8, 8) → (B, c), what the linear layer sees."""
        z = z if self.structured else as_channels(z)  # (B, C, G, 8, 8) or (B, G·C, 1, 8, 8)
        if self.conv is not None:  # with counts: no warning, although 8 - 7 is odd and the paper's layer is not exactly invariant
            y = self.conv(z.permute(2, 0, 1, 3, 4).flatten(0, 1), [len(z)] * z.shape[2])  # (G·B, c, 1, 1)
            z = unlift(y, None, z.shape[2])  # (B, c, G, 1, 1)
        return z.amax(2).mean((-2, -1))  # (B, c)

    def forward(self, z):
        return self.linear(self.features(z))  # (B, classes)


class ResNetClassifier(nn.Module):
    """The maximum over the group, BatchNorm, ReLU, the average over space, a linear layer.  structured=False: c counts all of z."""

    def __init__(self, c, classes, structured=True):
        super().__init__()
        self.structured, self.geometry = structured, ()
        self.norm, self.linear = nn.BatchNorm2d(c), nn.Linear(c, classes)

    def features(self, z):
        """z (B, C, G, H', W') → (B, c), what the linear layer sees."""
        z = z if self.structured else as_channels(z)  # (B, C, G, H', W') or (B, G·C, 1, H', W')
        return F.relu(self.norm(z.amax(2))).mean((-2, -1))  # (B, c)

    def forward(self, z):
        return self.linear(self.features(z))  # (B, classes)


# ---------------------------------------------------------------- building and changing networks
def build(kind, group, backbone="equivariant", width=1.0, classes=10, size=29, c_in=1, mean=(0.0,), std=(1.0,), base_size=1, functions=None, pool="mean"):
    """The backbone f, head h and classifier that Appendix B gives for a data set and a group.

    kind "mnist" | "cifar10" | "tiny-imagenet"; group "trans" | "rot" | "scale" | "rotscale"; backbone "equivariant" |
    "cnn" | "mlp"; size, c_in, mean, std: of the images; base_size: |g0|, h's input has |g0|·C numbers; functions, pool: see
    MNISTNet (None: the paper's; only for "equivariant").  Raises ValueError for other names, a "cnn" without scale, too
    many functions, and an image size that does not fit."""
    for name, known in ((kind, ("mnist", "cifar10", "tiny-imagenet")), (group, ("trans", "rot", "scale", "rotscale")), (backbone, ("equivariant", "cnn", "mlp"))):
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
    most = 11 if kind == "mnist" else 7  # the width of the first layer's kernel
    if functions and functions > most:
        raise ValueError(f"{functions} functions are too many for the first layer of {kind}: take at most {most}")
    axis = dict(scales=SCALES if "scale" in group else (1.0,), rotations=4 if group.startswith("rot") else 1)
    inside = dict(width=width, normalise=Normalise(mean, std))
    choices = dict(c_in=c_in, pool=pool, **axis, **({} if functions is None else dict(functions=functions)))
    structured = backbone == "equivariant"
    if structured:
        f = MNISTNet(**inside, **choices) if kind == "mnist" else ResNet20(kind, **inside, **choices)
    elif backbone == "mlp":
        f = MLP(c_in * size * size, **inside)
    elif group == "scale":
        f = CNN(kind, c_in=c_in, **inside)
    else:
        raise ValueError("the backbone 'cnn' emulates six scales: it goes with --group scale")
    read = dict(c=f.channels, **axis) if structured else dict(c=f.order * f.channels)  # without structure: all of z
    if kind == "mnist" or backbone == "mlp":
        h = Head(base_size * f.channels, [scaled(128, width)] * 3)
        classifier = MNISTClassifier(classes=classes, convolve=backbone != "mlp", structured=structured, **read)
    else:
        h = Head(base_size * f.channels, [scaled(c, width) for c in (512, 2048, 512)], norm_input=True)
        classifier = ResNetClassifier(read["c"], classes, structured)
    sizes = legal_sizes(f.geometry + classifier.geometry)
    if size not in sizes:
        exact = [f"{n}" for n in sizes if legal_sizes(f.geometry)[n]][:3]
        raise ValueError(f"images of {size} px do not pass through this network and its classifier: take {min(sizes)} … {max(sizes)} px "
                         f"(strides are exact at {', '.join(exact)} … px)")
    return f, h, classifier


def perturb(f, epsilon, seed=0):
    """Break f's equivariance by a known amount, in place.  In each group convolution each element g gets its own fixed change
    δ_g of the coefficients, ‖δ_g‖ = ε·‖w‖ with the current w.  ε = 0 changes nothing.  The state dict holds δ, so a new f
    needs `perturb` before it can load it.  Raises ValueError for a convolution with extent > 1."""
    generator = torch.Generator().manual_seed(seed)
    for conv in (m for m in f.modules() if isinstance(m, GConv)):
        if conv.extent > 1:
            raise ValueError("δ is one change for each element, so a filter must span one element (extent 1)")
        delta = torch.randn(conv.order, *conv.weight[:, 0].shape, generator=generator)  # (|G|, C_out, C_in, e, e)
        delta *= epsilon * conv.weight.norm().item() / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)  # ‖δ_g‖ = ε·‖w‖
        conv.register_buffer("delta", delta.to(conv.weight))


def scaled(channels, width):
    """A number of channels times the width multiplier, at least one."""
    return max(1, round(channels * width))
