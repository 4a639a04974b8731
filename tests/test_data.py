"""Images as users have them: what is read, and what is refused; shift and jitter by hand."""

import io
import math
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, folder, noise, refused_in_one_line, write_images
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_pil_image

import data


def refuse(*words, dataset="folder", root):
    with refused_in_one_line(*words):
        data.load(dataset, str(root))


# ----------------------------------------------------------------------------- whole data sets
def test_mnist5k_is_the_whole_five_thousand_stratified():
    d = data.load("mnist5k")
    assert d.train_x.shape == (4000, 1, 29, 29) and d.test_x.shape == (1000, 1, 29, 29)
    assert d.train_x.dtype == torch.uint8 and d.kind == "mnist" and d.classes == data.DIGITS
    assert (torch.bincount(d.train_y) == 400).all() and (torch.bincount(d.test_y) == 100).all()
    assert len(d.test_y[:50].unique()) > 5  # not in order of class
    assert not d.train_x[..., -1].any() and not d.train_x[..., -1, :].any()  # padded 28 → 29
    flat = torch.cat([d.train_x, d.test_x]).flatten(1)
    assert len(flat.unique(dim=0)) > 4990  # the two parts share no image
    few = data.load("mnist5k", train_size=100, test_size=50)
    assert torch.equal(few.train_x, d.train_x[:100]) and torch.equal(few.test_x, d.test_x[:50])
    other = data.load("mnist5k", train_size=100, seed=1)
    assert not torch.equal(other.train_x, few.train_x) and torch.equal(other.test_x, d.test_x)
    assert data.fingerprint(other.train_x) != data.fingerprint(few.train_x)


def test_mean_and_std_are_those_of_the_images():
    x = noise(50, 9)
    mean, std = data.mean_std(x)
    y = x.double() / 255
    assert torch.allclose(torch.tensor(mean).double(), y.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(torch.tensor(std).double(), y.std((0, 2, 3), correction=0), atol=1e-6)
    assert data.mean_std(torch.zeros_like(x))[1] == [1 / 255] * 3  # a constant is not divided by 0


def test_a_canvas_is_padded_or_cropped_on_the_right_and_below(monkeypatch):
    part = torch.randint(1, 256, (3, 1, 28, 28), dtype=torch.uint8), torch.arange(3)
    monkeypatch.setattr(data, "_mnist", lambda _: (part, part, data.DIGITS, "mnist"))
    plain = data.load("mnist").test_x
    small = data.load("mnist", image_size=28).test_x
    large = data.load("mnist", image_size=32).test_x
    assert plain.shape[-2:] == (29, 29) and small.shape[-2:] == (28, 28)
    assert large.shape[-2:] == (32, 32)
    assert torch.equal(small, plain[..., :28, :28])
    assert torch.equal(large[..., :29, :29], plain)
    assert not large[..., 29:, :].any() and not large[..., 29:].any()


def test_a_larger_canvas_is_not_a_small_picture_in_a_black_frame(tmp_path):
    """Photographs are resized to the size that is asked for; 32 px ones are padded or cropped."""
    folder(tmp_path / "large", 64)
    assert data.load("folder", str(tmp_path / "large"), image_size=63).train_x[..., 40:, 40:].any()
    whole = data.load("folder", str(tmp_path / "large"), image_size=64).train_x
    files = sorted((tmp_path / "large/train").rglob("*.png"))
    pixels = {np.array(Image.open(file)).tobytes() for file in files}
    assert {x.permute(1, 2, 0).numpy().tobytes() for x in whole} == pixels
    small = data.load("folder", folder(tmp_path / "small", 32), image_size=35).train_x
    assert small.shape[-2:] == (35, 35) and not small[..., 32:].any() and small[..., 31].any()


@pytest.mark.parametrize("x, y", [(4, [0, 1, 1]), (0, []), (3, [0, 1, 2]), (3, [-1, 0, 1])])
def test_labels_are_checked(monkeypatch, x, y):
    good = noise(2, 28, 1), torch.tensor([0, 1])
    bad = noise(x, 28, 1), torch.tensor(y, dtype=torch.long)
    monkeypatch.setattr(data, "_mnist", lambda _: (good, good, ["a", "b"], "mnist"))
    assert data.load("mnist").test_y.sort().values.tolist() == [0, 1]
    monkeypatch.setattr(data, "_mnist", lambda _: (good, bad, ["a", "b"], "mnist"))
    refuse("do not go together", dataset="mnist", root="here")


def test_damaged_mnist_files_are_named(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    header = b"\0\0\x08\x03\0\0\0\x02"
    for content in (header + b"cut", header + b"\0\0\0\x1c\0\0\0\x1ccut"):
        for name in names:
            (raw / f"{name}-ubyte").write_bytes(content)
        refuse("could be read", "remove a damaged copy", dataset="mnist", root=tmp_path)


def test_cifar10_from_torchvision_and_from_a_folder(tmp_path, monkeypatch):
    d = data.load("cifar10", folder(tmp_path, 32, ("airplane", "cat")))
    assert d.train_x.shape == (6, 3, 31, 31) and d.classes == ["airplane", "cat"]
    pixels = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    part = SimpleNamespace(data=pixels, targets=[3, 3], classes=list("abcd"))
    monkeypatch.setattr(data, "_torchvision", lambda *_: (part, part))
    x = data.load("cifar10", "elsewhere").train_x.permute(0, 2, 3, 1)  # (2, 31, 31, 3), shuffled
    for original in pixels:
        assert any(np.array_equal(image, original[:31, :31]) for image in x)


def tiny_imagenet(root):
    for wnid in ("n1", "n2"):
        write_images(root / "train" / wnid / "images", noise(2, 64), "JPEG")
    write_images(root / "val/images", noise(1, 64, 1), "JPEG")  # grey, as some are
    (root / "wnids.txt").write_text("n2\nn1\n")
    (root / "val/val_annotations.txt").write_text("0.JPEG\tn1\t0\t0\t63\t63\n")


def test_tiny_imagenet_layout(tmp_path):
    tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for root in (tmp_path, tmp_path / "tiny-imagenet-200"):
        d = data.load("tiny-imagenet", str(root))
        assert d.train_x.shape == (4, 3, 31, 31) and d.kind == "tiny-imagenet"
        assert d.classes == ["n2", "n1"] and d.test_y.tolist() == [1]


@pytest.mark.parametrize(
    "path, text, told",
    [
        ("wnids.txt", "n2\nn1\nn2\n", "a wnid stands twice"),
        ("train/n1/images", None, "n1"),
        ("val/val_annotations.txt", "", "do not go together"),
        ("val/val_annotations.txt", "0.JPEG\tn3\t0\n", "n3"),
        ("val/images/0.JPEG", None, "0.JPEG can't be read"),
    ],
)
def test_a_broken_tiny_imagenet_is_refused(tmp_path, path, text, told):
    tiny_imagenet(tmp_path)
    if text is not None:
        (tmp_path / path).write_text(text)
    elif (tmp_path / path).is_dir():
        shutil.rmtree(tmp_path / path)
    else:
        (tmp_path / path).unlink()
    refuse(told, dataset="tiny-imagenet", root=tmp_path)


# ------------------------------------------------------------------------------- folders
@pytest.mark.parametrize(
    "size, legal, kind",
    [(16, 29, "mnist"), (29, 29, "mnist"), (30, 31, "cifar10"), (32, 31, "cifar10")]
    + [(64, 31, "tiny-imagenet")],
)
def test_folders_choose_their_network_by_size(tmp_path, size, legal, kind):
    d = data.load("folder", folder(tmp_path, size))
    assert d.train_x.shape == (6, 3, legal, legal) and d.kind == kind
    assert d.classes == ["a", "b"] and d.train_y.bincount().tolist() == [3, 3]


def test_each_image_keeps_its_label_and_its_pixels(tmp_path):
    d = data.load("folder", folder(tmp_path, 29))
    for x, y in zip(d.train_x, d.train_y):
        files = [tmp_path / f"train/{d.classes[y]}/{i}.png" for i in range(3)]
        found = [np.array(Image.open(file)) for file in files]
        assert sum(np.array_equal(x.permute(1, 2, 0), image) for image in found) == 1


def test_hidden_folders_and_files_do_not_count(tmp_path):
    root = folder(tmp_path)
    write_images(tmp_path / "train/.ipynb_checkpoints", noise(2))
    write_images(tmp_path / "train/a/.thumbnails", noise(2))
    (tmp_path / "train/a/.DS_Store").write_bytes(b"no image")
    (tmp_path / "train/.directory").write_bytes(b"no image")
    d = data.load("folder", root)
    assert d.classes == ["a", "b"] and len(d.train_x) == 6


def test_val_serves_as_test_and_grey_images_become_three_channels(tmp_path):
    root = folder(tmp_path, 20, splits=("train", "val"))
    grey = noise(1, 20, 1)
    write_images(tmp_path / "train/a/deeper", grey)
    x = data.load("folder", root).train_x
    assert x.shape == (7, 3, 29, 29)
    assert (x[..., :20, :20] == grey).flatten(1).all(1).sum() == 1


def test_a_flat_test_folder_beside_a_sorted_val(tmp_path):
    """As in many competitions: test/ has no labels."""
    root = folder(tmp_path, splits=("train", "val"))
    write_images(tmp_path / "test", noise(7))
    d = data.load("folder", root)
    assert len(d.test_x) == 6 and d.test_y.bincount().tolist() == [3, 3]


def test_images_without_classes(tmp_path):
    """A tenth is for testing; the same one for every seed."""
    write_images(tmp_path / "train", noise(40))
    d, other = [data.load("folder", str(tmp_path), seed=seed) for seed in (0, 1)]
    assert len(d.train_x) == 36 and len(d.test_x) == 4
    assert (d.train_y, d.test_y, d.classes) == (None, None, [])
    assert len(torch.cat([d.train_x, d.test_x]).flatten(1).unique(dim=0)) == 40
    assert torch.equal(d.test_x, other.test_x)
    few, fewer = [data.load("folder", str(tmp_path), 9, seed) for seed in (0, 1)]
    assert len(few.train_x) == 9 and not torch.equal(few.train_x, fewer.train_x)


@pytest.mark.parametrize("where", ["test", "val", "test/a"])
def test_images_without_classes_and_a_test_folder(tmp_path, where):
    write_images(tmp_path / "train", noise(40))
    write_images(tmp_path / where, noise(5))
    d = data.load("folder", str(tmp_path))
    assert len(d.train_x) == 40 and len(d.test_x) == 5 and d.test_y is None


def test_what_is_refused_is_named(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "one" / split / "a", noise(1))
    refuse("only one training image", root=tmp_path / "one")
    root = tmp_path / "none"
    refuse("no images found", "none", root=root)
    folder(root)
    (root / "train/a/0.png").write_bytes(b"no image")
    refuse("0.png can't be read", root=root)
    write_images(root / "train/a", noise(1))
    content = (root / "train/a/0.png").read_bytes()
    (root / "train/a/0.png").write_bytes(content[: len(content) // 2])
    refuse("0.png can't be read", root=root)
    write_images(root / "train/a", noise(1, (21, 20)))
    refuse("21 × 20", "make them one size", root=root)
    write_images(root / "train/a", noise(1))
    write_images(root / "train", noise(1))
    refuse("train/0.png lies beside folders of classes", root=root)
    (root / "train/0.png").unlink()
    (root / "train/c").mkdir()
    refuse("c is not in both folders", root=root)
    (root / "test/c").mkdir()
    refuse("class 'c'", "has no image", root=root)
    shutil.rmtree(root / "train/c")
    refuse("c is not in both folders", root=root)
    shutil.rmtree(root / "test")
    refuse("a, b is not in both folders", "needs train/", "test/", root=root)


@pytest.mark.parametrize(
    "sizes, told",
    [((8, 8), "enlarge"), ((20, 21), "make them one size"), (((20, 22),) * 2, "make them square")],
)
def test_sizes_that_no_network_takes_are_refused(tmp_path, sizes, told):
    for split, size in zip(("train", "test"), sizes):
        folder(tmp_path, size, splits=(split,))
    refuse(told, root=tmp_path)


@pytest.mark.parametrize(
    "sizes, told",
    [
        (dict(train_size=1), "--train-size 1: take 2 or more"),
        (dict(train_size=-5), "--train-size -5: take 2 or more"),
        (dict(test_size=0), "--test-size 0: take 1 or more"),
        (dict(test_size=1001), "there are 1000"),
        (dict(image_size=15), "15 px are too few"),
        (dict(image_size=-1), "-1 px are too few"),
    ],
    ids=str,
)
def test_sizes_out_of_range_are_refused(sizes, told):
    with refused_in_one_line(told):
        data.load("mnist5k", **sizes)


# -------------------------------------------------------------------------- single images
def test_photographs_are_read_upright(tmp_path):
    """A camera may store the turn in EXIF and not in the pixels."""
    image = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° when shown
    image.save(tmp_path / "a.png", exif=exif)
    upright = torch.from_numpy(np.array(image)).rot90(-1)
    assert torch.equal(data._read([str(tmp_path / "a.png")])[0, 0], upright)


def test_a_damaged_exif_tag_does_not_block_a_photograph(tmp_path):
    """Pillow reads the pixels; only asking for the orientation fails."""
    path = str(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A] = "camera", 6, 72.0
    content = bytearray(exif.tobytes())
    content[41] = 1  # the resolution is now said to be a list of bytes
    to_pil_image(blobs(1, 20, 3)[0]).save(path, exif=bytes(content))
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017
        ImageOps.exif_transpose(image)
    assert data._read([path]).shape == (1, 3, 20, 20)


@pytest.mark.parametrize(
    "mode, values, ending",
    [("I;16", "uint16", "tiff"), ("I", "int32", "tiff"), ("F", "float32", "tiff")]
    + [("I;16", "uint16", "png")],
)
def test_images_of_more_than_8_bits_are_refused(tmp_path, mode, values, ending):
    """Pillow turns all of them into RGB without a word, and everything above 255 into 255."""
    path = tmp_path / f"train/a/deep.{ending}"
    root = folder(tmp_path)
    Image.fromarray((np.arange(400).reshape(20, 20) * 100).astype(values)).save(path)
    assert Image.open(path).mode == mode
    refuse(f"deep.{ending} has more than 8 bits a channel ({mode})", root=root)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_of_8_bits_are_read(tmp_path, mode):
    path = str(tmp_path / "0.tiff")
    Image.new("RGB", (20, 20), (255, 255, 255)).convert("L").convert(mode).save(path)
    assert Image.open(path).mode == mode
    assert (data._read([path]) == 255).all()


@pytest.mark.filterwarnings("ignore:Palette images")
def test_transparent_images_are_refused(tmp_path):
    """Black strokes on a transparent ground would all be black."""
    root = folder(tmp_path)
    strokes = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    strokes.paste((0, 0, 0, 255), (5, 5, 15, 15))
    palette = strokes.quantize()
    assert palette.mode == "P"
    for name, image in (("rgba", strokes), ("la", strokes.convert("LA")), ("p", palette)):
        image.save(tmp_path / f"train/a/{name}.png")
        refuse(f"{name}.png is transparent in places", root=root)
        (tmp_path / f"train/a/{name}.png").unlink()


def test_spoiled_images_are_read_or_named(tmp_path):
    draw, path = random.Random(0), tmp_path / "x"
    ways = dict(read=0, named=0)
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        to_pil_image(noise(1, 16)[0]).save(buffer, kind)
        for _ in range(60):
            content = bytearray(buffer.getvalue())
            for _ in range(draw.randrange(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
            try:
                assert data._read([str(path)]).shape[:2] == (1, 3)
                ways["read"] += 1
            except data.UsageError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                ways["named"] += 1
    assert min(ways.values()) > 10, ways


# ------------------------------------------------------------------------- augmentations
@pytest.mark.parametrize("shape", [(5, 1, 29, 29), (5, 3, 20, 31)], ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_shift_against_a_loop(shape, strength):
    """By whole pixels, all of them as often, and 0 around; without a second image's numbers."""
    x, u = torch.rand(shape), torch.rand(shape[0], 9)
    most = int(strength * shape[-2])
    moved = data.shift(x, u, strength)
    for image, numbers, result in zip(x, u, moved):
        dy = int(numbers[0] * (2 * most + 1)) - most
        dx = int(numbers[1] * (2 * most + 1)) - most
        expected = torch.zeros_like(image)
        for i in range(shape[-2]):
            for k in range(shape[-1]):
                if 0 <= i + dy < shape[-2] and 0 <= k + dx < shape[-1]:
                    expected[:, i, k] = image[:, i + dy, k + dx]
        assert torch.equal(result, expected)
    corners = torch.tensor([[0.0] * 9, [1.0] * 9])  # 1 itself is not drawn, but may be rounded to
    assert data.shift(x[:2], corners, strength).shape == x[:2].shape
    assert torch.equal(data.shift(x[:2], torch.full((2, 9), 0.5), strength), x[:2])


PLAIN = [0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 0.5]  # numbers with which jitter does nothing


def plain_but(i, value, batch=1):
    u = torch.tensor(PLAIN, dtype=torch.float64).repeat(batch, 1)
    u[:, i] = value
    return u


@pytest.mark.parametrize("shape", [(64, 1, 29, 29), (64, 3, 17, 40), (64, 3, 16, 16)], ids=str)
def test_jitter_keeps_shape_range_and_dtype(shape):
    for dtype in (torch.float32, torch.float64):
        x = (torch.rand(shape, dtype=dtype) * 3 - 1).clamp(0, 1)
        u = torch.rand(shape[0], 9, dtype=dtype)
        u[0] = 0
        u[1] = 1
        y = data.jitter(x, u)
        assert y.shape == shape and y.dtype == dtype
        assert y.isfinite().all() and y.min() >= 0 and y.max() <= 1
        assert (y - x).abs().flatten(1).amax(1).min() > 0.05  # every image has changed


def test_jitter_that_does_nothing():
    for size in (29, 16):
        x = blobs(3, size).clamp(max=1)
        u = torch.tensor(PLAIN, dtype=torch.float64).repeat(3, 1)
        assert (data.jitter(x, u) - x).abs().max() < 1e-6
        half = data.jitter(x, torch.full((3, 9), 0.5, dtype=torch.float64))
        # the geometry stays: half a step of erosion, three quarters of the contrast
        thin = -F.max_pool2d(-x, 3, stride=1, padding=1)
        assert (half - 0.75 * (x + thin) / 2).abs().max() < 1e-6


def test_jitter_moves_along_each_axis_by_itself():
    x = blobs(2, 29).clamp(max=1)
    for i, dim in ((3, 3), (4, 2)):
        moved = data.jitter(x, plain_but(i, 1.0, 2))  # by two pixels of 29
        expected = torch.zeros_like(x)
        expected.narrow(dim, 0, 27).copy_(x.narrow(dim, 2, 27))
        assert (moved - expected).abs().max() < 1e-6


def centre_of_mass(x):
    """Of x (B, 1, H, H), from the middle of the image: (B, 2), to the right and down."""
    u = torch.arange(x.shape[-1], dtype=x.dtype) - (x.shape[-1] - 1) / 2
    columns, rows = x.sum((1, 2)), x.sum((1, 3))
    return torch.stack([(columns * u).sum(1), (rows * u).sum(1)], 1) / x.sum((1, 2, 3))[:, None]


def test_jitter_turns_scales_and_shears():
    """Two spots, 12 px to the right and 12 px down, go where the matrix says, which tells where to
    look in the old image: ±10°, e^±0.1 and ±0.15."""
    u = torch.arange(61, dtype=torch.float64) - 30
    spots = 12 * torch.eye(2, dtype=u.dtype)  # (2, 2), each a row: to the right and down
    x = torch.exp(-((u - spots[:, :1, None]) ** 2 + (u[:, None] - spots[:, 1:, None]) ** 2) / 18)
    for value, sign in ((0.0, -1), (1.0, 1)):
        angle, size = sign * math.pi / 18, math.exp(-0.1 * sign)
        cos, sin = math.cos(angle), math.sin(angle)
        matrices = [[cos, -sin], [sin, cos]], [[size, 0], [0, size]], [[1, 0.15 * sign], [0, 1]]
        for i, matrix in enumerate(matrices):
            found = centre_of_mass(data.jitter(x[:, None], plain_but(i, value, 2)))
            matrix = torch.tensor(matrix, dtype=u.dtype)
            assert (found @ matrix.T - spots).abs().max() < 0.02


def test_jitter_changes_strokes_and_grey_values():
    x = (0.1 + blobs(2, 29, 3)).clamp(max=0.9)
    thick = F.max_pool2d(x, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-x, 3, stride=1, padding=1)
    stroke = plain_but(6, 0.8, 2)
    assert (data.jitter(x, stroke) - (0.2 * x + 0.8 * thick)).abs().max() < 1e-6
    stroke[:, 5] = 0.9
    assert (data.jitter(x, stroke) - (0.2 * x + 0.8 * thin)).abs().max() < 1e-6
    assert (data.jitter(x, plain_but(7, 0.0, 2)) - 0.5 * x).abs().max() < 1e-6
    for value, gamma in ((0.0, math.exp(-0.7)), (1.0, math.exp(0.7))):
        assert (data.jitter(x, plain_but(8, value, 2)) - x**gamma).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["shift", "jitter"])
def test_every_image_has_its_own_numbers_and_so_have_the_shares_of_many_processes(name):
    augment = getattr(data, name)
    x, u = torch.rand(1, 3, 29, 29).expand(12, -1, -1, -1), torch.rand(12, 9)
    whole = augment(x, u, 0.2)
    assert len(whole.flatten(1).unique(dim=0)) == 12
    for world in (2, 3, 12):
        shares = [augment(a, b, 0.2) for a, b in zip(x.chunk(world), u.chunk(world))]
        assert torch.equal(torch.cat(shares), whole)
