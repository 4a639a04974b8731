"""The paper's networks f, heads h and classifiers (Appendix B), and Table 2's without structure.

Needs two siblings: gconv.py and groups.py.

    f = MNISTNet(rotations=4)
    x = torch.rand(2, 1, 29, 29)
    f(x)                                   # (2, 128, 4, 8, 8) = (B, C, G, H', W')
    base = torch.tensor([[0, 3], [1, 1]])  # two slots of each image
    f(x, base)                             # (2, 128, 2, 8, 8)
    f.bundle(x, base)                      # (2, 2·128), the two fibers
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

import groups
from gconv import GConv, fold, unfold


# ---- what all backbones share
class Backbone(nn.Module):
    """A network f: images (B, C_in, H, W) → z (B, C, G, H', W'), and the fibers read off z.

    group        the group that acts on z, or Numbered(n): n slots on which none acts
    channels     C
    pool         how a fiber is pooled over space: "mean" (Appendix B) or "max"
    independent  whether f(x, slots) can compute some slots alone
    sampled      True: `bundle` computes only the slots that are asked for.  False: all, and it
                 picks.  BatchNorm learns from what is computed
    """

    pool = "mean"
    independent = False
    sampled = False

    def bundle(self, x, base):
        """The fiber bundle f(x)(base).

        x     (B, C_in, H, W)
        base  (B, n) long → (B, n·C).  Or (B, v, n), v base spaces for each image → (B, v, n·C)
        ValueError if these do not fit.
        """
        order = self.group.order
        if base.dim() not in (2, 3) or len(base) != len(x) or base.numel() == 0:
            raise ValueError(f"{len(x)} images, but base spaces of shape {[*base.shape]}")
        if base.min() < 0 or base.max() >= order:
            asked = f"{base.min()} … {base.max()}"
            raise ValueError(f"slots {asked} of 0 … {order - 1}: see groups.pairs")
        slots = base.flatten(1)  # (B, m), in training on the CPU
        if self.sampled:
            bundles = self.read(self(x, slots)).flatten(1)  # (B, m·C)
        else:
            fibers = self.read(self(x))  # (B, |G|, C)
            if fibers.shape[1] != order:
                raise ValueError(f"{fibers.shape[1]} fibers, and the group {order} elements")
            bundles = groups.bundle(fibers, slots.to(x.device))  # (B, m·C)
        return bundles.unflatten(1, (*base.shape[1:-1], -1))

    def read(self, z):
        """The fibers of z (B, C, n, H', W'), those that were computed: (B, n, C)."""
        return groups.fibers(z, self.group, self.pool)


class ConvNet(Backbone):
    """A network of convolutions that sees the slots as a part of the batch, see gconv.fold.

    A subclass makes its layers, sets `channels`, calls `finish`, and has
    folded(y, axis): (N, C_in, H, W) → (N, C, H', W').  stride: pixels from position to position.
    """

    def finish(self, lifting, extent, group, normalise, pool, size):
        """Set the rest, once the layers are there.  lifting: the first of them."""
        self.normalise = normalise or nn.Identity()
        self.pool = pool
        self.geometry = geometry_of(self)
        self.stride = math.prod(stride for _, stride, _ in self.geometry)
        self.lifted = lifting.order  # G, the length of the lifted axis
        self.turns = lifting.turns
        if group is not None:
            self.group = group
        elif self.turns and len(lifting.scales) > 1:
            self.group = groups.RotationScale(lifting.scales)
        elif self.turns:
            self.group = groups.Rotation()
        elif len(lifting.scales) > 1:
            self.group = groups.Scale(lifting.scales)
        else:
            self.group = self.translations(size)
        if self.lifted != (1 if self.group.spatial else self.group.order):
            raise ValueError(f"{self.lifted} slots, but a group of {self.group.order} elements")
        self.independent = extent == 1 and not self.group.spatial
        self.sampled = self.independent

    def translations(self, size):
        """The translations of z for images of size × size px: one for each position."""
        positions, _ = passes(size, self.geometry)
        return groups.Translation(positions, positions, self.stride)

    def forward(self, x, slots=None):
        """x (B, C_in, H, W), slots (B, n) long or None for all → z (B, C, n, H', W').

        ValueError for slots if f needs all of them.  Warns of sizes at which a stride is not
        exact: it takes other positions from the turned image.
        """
        if slots is not None and not self.independent:
            raise ValueError("this network needs all slots: call f(x), and set f.sampled = False")
        for size in x.shape[-2:]:
            fits = passes(size, self.geometry)[1]
            if self.turns and not fits and not torch.compiler.is_compiling():
                near = range(size - self.stride, size + self.stride)
                exact = [n for n in near if passes(n, self.geometry)[1]]
                text = f"{size} px breaks equivariance: the nearest exact sizes are {exact}"
                warnings.warn(text, stacklevel=4)  # the line that calls the network
        y, axis = fold(self.normalise(x), self.lifted, slots)  # (N, C_in, H, W), N = B·n
        return unfold(self.folded(y, axis), axis)


def geometry_of(*modules):
    """(kernel, stride, padding) of all group and plain convolutions in these modules."""
    found = []
    for m in nn.ModuleList(modules).modules():
        if isinstance(m, GConv):
            found.append((m.kernel_size, m.stride, m.padding))
        elif isinstance(m, PlainConv):
            found.append((m.kernel_size[0], m.stride[0], m.padding[0]))
    return found


def passes(size, geometry):
    """How many positions are left of `size` pixels (0: a layer has nothing to look at), and whether
    every stride is exact: it takes the same positions from the turned image.
    """
    exact = True
    for kernel, stride, padding in geometry:
        steps, rest = divmod(size + 2 * padding - kernel, stride)
        if steps < 0:
            return 0, False
        size = steps + 1
        exact = exact and rest == 0
    return size, exact


# ---- the networks of Appendix B
class MNISTNet(ConvNet):
    """Three group convolutions, each with BatchNorm and ReLU: 29 px → z (B, 128·width, G, 8, 8).

    scales, rotations, extent, conv  of the layers, and their class: see GConv
    width, c_in, normalise           factor for all channels; channels of the images; first module
    functions    basis functions of the first layer along each axis, by default all 11.  The two
                 smallest of the six scales have 7 pixels, where only seven are independent
    pool, group  see Backbone.  None: the group of scales and rotations, or else the translations
                 for 29 px (for other sizes set f.group = f.translations(size))
    """

    def __init__(
        self,
        scales=(1.0,),
        rotations=1,
        width=1.0,
        c_in=1,
        extent=1,
        normalise=None,
        functions=None,
        pool="mean",
        conv=GConv,
        group=None,
    ):
        super().__init__()
        c1, c2, c3 = [scaled(c, width) for c in (32, 64, 128)]
        lift = dict(scales=scales, rotations=rotations)
        then = dict(stride=2, padding=3, extent=extent, **lift)
        first = conv(c_in, c1, 11, functions, stride=1, padding=5, **lift)
        self.convs = nn.ModuleList([first, conv(c1, c2, 7, 3, **then), conv(c2, c3, 7, 3, **then)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (c1, c2, c3)])
        self.channels = c3
        self.finish(first, extent, group, normalise, pool, size=29)

    def folded(self, y, axis):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = F.relu(norm(conv(y, axis)))  # (N, 32, 29, 29), (N, 64, 15, 15), (N, 128, 8, 8)
        return y


class BasicBlock(nn.Module):
    """Pre-activation block with two 7 × 7 (effective 3) layers (SESN, models/stl_ses.py)."""

    def __init__(self, c_in, c_out, stride, conv=GConv, **options):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv1 = conv(c_in, c_out, 7, 3, stride=stride, padding=3, **options)
        self.conv2 = conv(c_out, c_out, 7, 3, padding=3, **options)
        self.stride = stride
        self.shortcut = None
        if c_in != c_out or stride != 1:
            # 1 × 1, one matrix for all g: equivariant to every group.
            self.shortcut = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, y, axis):
        """y (N, c_in, H, W), folded → (N, c_out, H', W')."""
        a = F.relu(self.norm1(y))
        skip = y
        if self.shortcut is not None:
            # The stride is a pooling of 1 × 1: faster on a CPU, where torch's own can crash.
            skip = self.shortcut(F.avg_pool2d(a, 1, self.stride))
        a = F.relu(self.norm2(self.conv1(a, axis)))  # (N, c_out, H', W')
        return self.conv2(a, axis) + skip


class ResNet20(ConvNet):
    """The CIFAR-10 and Tiny ImageNet network: a lifting layer, a group layer, then blocks.

    "cifar10": 31 px → z (B, 512·width, G, 7, 7).  "tiny-imagenet": z (B, 512·width, G, 4, 4).
    The paper pads the lifting layer by 3, and z would be 8 × 8.  Its 7 × 7 follows without padding:
    31 → 25 → 25 → 13 → 7 (→ 4), and every stride is exact.
    Other arguments as in MNISTNet.
    """

    blocks_of = {  # outputs, stride of the first block, number of blocks
        "cifar10": [(128, 1, 3), (256, 2, 3), (512, 2, 3)],
        "tiny-imagenet": [(64, 1, 2), (128, 2, 2), (256, 2, 2), (512, 2, 2)],
    }

    def __init__(
        self,
        kind="cifar10",
        scales=(1.0,),
        rotations=1,
        width=1.0,
        c_in=3,
        extent=1,
        normalise=None,
        functions=None,
        pool="mean",
        conv=GConv,
        group=None,
    ):
        super().__init__()
        lift = dict(scales=scales, rotations=rotations)
        then = dict(extent=extent, **lift)
        c = scaled(64, width)
        c0 = max(9, scaled(9, width))  # not narrower: this layer costs little
        self.lifting = conv(c_in, c0, 7, functions, **lift)
        self.conv = conv(c0, c, 7, 3, padding=3, **then)
        self.norm = nn.BatchNorm2d(c)
        self.blocks = nn.ModuleList()
        for outputs, stride, number in self.blocks_of[kind]:
            for b in range(number):
                c_out = scaled(outputs, width)
                self.blocks.append(BasicBlock(c, c_out, stride if b == 0 else 1, conv, **then))
                c = c_out
        self.channels = c
        self.finish(self.lifting, extent, group, normalise, pool, size=31)

    def folded(self, y, axis):
        y = F.relu(self.norm(self.conv(self.lifting(y, axis), axis)))  # (N, 64, 25, 25)
        for block in self.blocks:
            y = block(y, axis)  # (N, 128, 25, 25) … (N, 512, 7, 7)
        return y


class Normalise(nn.Module):
    """(x - mean)/std for each channel: a part of f, since T_g acts on raw intensities (0 … 1)."""

    def __init__(self, mean=(0.0,), std=(1.0,)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])  # (C_in, 1, 1)
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x):
        if not x.is_floating_point():
            raise ValueError(f"images are floats in 0 … 1, not {x.dtype}: x.float() / 255")
        return (x - self.mean) / self.std


# ---- Table 2: without structure
class MLP(Backbone):
    """Fully connected 784, 1024, 2048 (times the width), read as 16 slots: z (B, 128, 16, 1, 1).

    pixels: C_in·H·W.
    """

    def __init__(self, pixels, normalise=None, width=1.0):
        super().__init__()
        self.group = groups.Numbered(16)
        self.channels = scaled(128, width)
        layers = Head(pixels, (scaled(784, width), scaled(1024, width), 16 * self.channels))
        self.layers = nn.Sequential(normalise or nn.Identity(), nn.Flatten(), *layers, nn.ReLU())

    def forward(self, x):
        z = self.layers(x).unflatten(1, (16, self.channels))  # (B, 16, 128)
        return z.transpose(1, 2)[..., None, None]


class CNN(Backbone):
    """The CNN of Table 2 (there 6 × CHW): MNISTNet or ResNet20 with full k × k kernels, no group
    and `order` times the channels, read as `order` slots: z as theirs, with G = order.
    """

    def __init__(self, kind="mnist", width=1.0, c_in=1, normalise=None, order=6):
        super().__init__()
        c = 128 if kind == "mnist" else 512
        width = order * scaled(c, width) / c  # so that `order` divides the channels
        self.net = network(kind, width=width, c_in=c_in, normalise=normalise, conv=PlainConv)
        self.group = groups.Numbered(order)
        self.channels = self.net.channels // order

    def forward(self, x):
        z = self.net(x)[:, :, 0].unflatten(1, (self.group.order, self.channels))
        return z.transpose(1, 2)  # (B, C, order, H', W')


class PlainConv(nn.Conv2d):
    """An ordinary convolution with GConv's arguments; it ignores its basis, group and axis."""

    order = 1
    turns = False
    scales = (1.0,)

    def __init__(self, c_in, c_out, kernel_size, functions=None, stride=1, padding=0, **ignored):
        super().__init__(c_in, c_out, kernel_size, stride, padding, bias=False)

    def forward(self, y, axis=None):
        return super().forward(y)


# ---- head and classifiers
class Head(nn.Sequential):
    """The projection head h: linear layers, BatchNorm after each, ReLU between them.

    c           length of the bundle, |g0|·C
    sizes       outputs of the layers
    norm_input  begin with a BatchNorm, as for CIFAR-10 and Tiny ImageNet
    (B, c) → (B, sizes[-1]).
    """

    def __init__(self, c, sizes=(128, 128, 128), norm_input=False):
        layers = [nn.BatchNorm1d(c)] if norm_input else []
        for size in sizes:
            layers += [nn.Linear(c, size, bias=False), nn.BatchNorm1d(size), nn.ReLU()]
            c = size
        super().__init__(*layers[:-1])


class Classifier(nn.Module):
    """z (B, C, G, H', W') → (B, classes): a linear layer on c features.

    c  channels C.  Where no group acts on z, set `structured` to False, and c is G·C: all of z, as
       channels of one slot
    """

    structured = True

    def forward(self, z):
        return self.linear(self.features(z))

    def features(self, z):
        """What the linear layer sees: (B, c)."""
        if not self.structured:
            z = z.transpose(1, 2).flatten(1, 2)[:, :, None]  # (B, G·C, 1, H', W')
        return self.pooled(z)


class MNISTClassifier(Classifier):
    """A group convolution (7, effective 3, stride 2), the maximum over the slots, a linear layer.

    Detached, only the linear layer learns, and the convolution keeps its random weights; attached
    (supervised), both learn.  Above 32 px there are several positions; their mean is used.
    convolve=False: no convolution (the MLP's z has no space).
    """

    def __init__(self, c, classes, scales=(1.0,), rotations=1, convolve=True):
        super().__init__()
        self.conv = None
        if convolve:
            self.conv = GConv(c, c, 7, 3, scales=scales, rotations=rotations, stride=2)
        self.linear = nn.Linear(c, classes)

    def pooled(self, z):
        if self.conv is not None:
            # Folded, since conv(z) would warn: 8 - 7 is odd, and the paper's layer is not exact.
            y, axis = fold(z, self.conv.order)
            z = unfold(self.conv(y, axis), axis)  # (B, c, G, 1, 1)
        return z.amax(2).mean((-2, -1))


class ResNetClassifier(Classifier):
    """The maximum over the slots, BatchNorm, ReLU, the mean over space, a linear layer."""

    def __init__(self, c, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(c)
        self.linear = nn.Linear(c, classes)

    def pooled(self, z):
        return F.relu(self.norm(z.amax(2))).mean((-2, -1))


# ---- building and changing networks
AXES = {  # the lifted axis of each group
    "trans": {},
    "rot": dict(rotations=4),
    "scale": dict(scales=groups.SCALES),
    "rotscale": dict(scales=groups.SCALES, rotations=4),
}
HEADS = {  # sizes and norm_input of each data set's h
    "mnist": ((128, 128, 128), False),
    "cifar10": ((512, 2048, 512), True),
    "tiny-imagenet": ((512, 2048, 512), True),
}


def network(kind, **options):
    """The network of a data set: MNISTNet or ResNet20."""
    return MNISTNet(**options) if kind == "mnist" else ResNet20(kind, **options)


def build(
    kind,
    group,
    backbone="equivariant",
    width=1.0,
    classes=10,
    size=29,
    c_in=1,
    mean=(0.0,),
    std=(1.0,),
    base_size=1,
    functions=None,
    extent=1,
    pool="mean",
):
    """The backbone f, head h and classifier that Appendix B gives for a data set and a group.

    kind              "mnist" | "cifar10" | "tiny-imagenet"
    group             "trans" | "rot" | "scale" | "rotscale"
    backbone          "equivariant" | "cnn" (only with "scale") | "mlp" (with MNIST's h)
    width, classes    factor for every number of channels; outputs of the classifier
    size              of the images: height = width in pixels
    c_in, mean, std   their channels, and the mean and standard deviation of each
    base_size         |g0|: h reads |g0|·C numbers
    functions, pool   see MNISTNet.  Only for "equivariant"
    extent            likewise; of f, not of its classifier
    ValueError for values that do not go together.
    """
    backbones = ("equivariant", "cnn", "mlp")
    for name, known in ((kind, HEADS), (group, AXES), (backbone, backbones)):
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
    inside = dict(width=width, normalise=Normalise(mean, std))
    structured = backbone == "equivariant"
    axis = AXES[group] if structured else {}
    if structured:
        f = network(
            kind, c_in=c_in, functions=functions, extent=extent, pool=pool, **axis, **inside
        )
    elif backbone == "mlp":
        f = MLP(c_in * size * size, **inside)
    elif group == "scale":
        f = CNN(kind, c_in=c_in, **inside)
    else:
        raise ValueError("the backbone 'cnn' emulates six scales: it goes with --group scale")

    like = "mnist" if backbone == "mlp" else kind  # whose head and classifier
    sizes, norm_input = HEADS[like]
    h = Head(base_size * f.channels, [scaled(n, width) for n in sizes], norm_input)
    c = f.channels if structured else f.group.order * f.channels
    if like == "mnist":
        classifier = MNISTClassifier(c, classes, **axis, convolve=backbone != "mlp")
    else:
        classifier = ResNetClassifier(c, classes)
    classifier.structured = structured

    geometry = geometry_of(f, classifier)
    if passes(size, geometry)[0] == 0:
        good = [n for n in range(100) if passes(n, geometry)[0] > 0]
        exact = [str(n) for n in good if passes(n, geometry_of(f))[1]]
        raise ValueError(
            f"images of {size} px do not pass through this network and its classifier: take "
            f"{good[0]} px or more (strides are exact at {', '.join(exact[:3])} … px)"
        )
    if f.group.spatial:
        f.group = f.translations(size)
    return f, h, classifier


def perturb(f, epsilon, seed=0):
    """Break f's equivariance by a known amount, in place.

    In each group convolution each element g gets its own fixed change δ_g of the coefficients,
    ‖δ_g‖ = ε·‖w‖ with the current w.  ε = 0 changes nothing.  The state dict holds δ, so a new f
    needs `perturb` before it can load it.  ValueError unless f has group convolutions, all with
    several elements and extent 1.
    """
    generator = torch.Generator().manual_seed(seed)
    convs = [m for m in f.modules() if isinstance(m, GConv)]
    if not convs or any(conv.order == 1 or conv.extent > 1 for conv in convs):
        raise ValueError("δ is one change for each of several elements, so it needs extent 1")
    for conv in convs:
        delta = torch.randn(conv.order, *conv.weight[:, 0].shape, generator=generator)
        norms = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        delta *= epsilon * conv.weight.norm().item() / norms  # (|G|, C_out, C_in, e, e)
        conv.register_buffer("delta", delta.to(conv.weight))


def scaled(channels, width):
    """A number of channels times the width multiplier, at least one."""
    return max(1, round(channels * width))
