"""Images from folders, as users have them: what is read, and what is refused."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

import data


def write(image, path):
    to_pil_image(image).save(path)


def folder(root, size=20, classes=("a", "b"), splits=("train", "test"), n=3):
    for split in splits:
        for c in classes:
            (root / split / c).mkdir(parents=True)
            for i in range(n):
                write(torch.randint(256, (3, size, size), dtype=torch.uint8), str(root / split / c / f"{i}.png"))
    return str(root)


@pytest.mark.slow
def test_digits_are_the_whole_five_thousand_stratified():
    d = data.load("mnist5k")
    assert d.train_x.shape == (4000, 1, 29, 29) and d.test_x.shape == (1000, 1, 29, 29) and d.train_x.dtype == torch.uint8
    assert (torch.bincount(d.train_y) == 400).all() and (torch.bincount(d.test_y) == 100).all()
    assert len(d.test_y[:50].unique()) > 5  # not in order of class
    assert (d.train_x[..., -1] == 0).all() and (d.train_x[..., -1, :] == 0).all()  # padded 28 → 29
    flat = torch.cat([d.train_x, d.test_x]).flatten(1)
    assert len(flat.unique(dim=0)) > 4990  # the two parts share no image
    again, few = data.load("mnist5k"), data.load("mnist5k", train_size=100)
    assert torch.equal(again.train_x, d.train_x) and torch.equal(few.train_x, d.train_x[:100])
    other = data.load("mnist5k", train_size=100, seed=1)
    assert not torch.equal(other.train_x, few.train_x) and torch.equal(other.test_x, few.test_x)


def test_mean_and_std_are_those_of_the_images():
    x = torch.randint(256, (50, 3, 9, 9), dtype=torch.uint8)
    mean, std = data.mean_std(x)
    y = x.double() / 255
    assert torch.allclose(torch.tensor(mean).double(), y.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(torch.tensor(std).double(), y.std((0, 2, 3), correction=0), atol=1e-6)


@pytest.mark.parametrize("size, legal, kind", [(20, 29, "mnist"), (29, 29, "mnist"), (32, 31, "cifar10"), (64, 31, "tiny-imagenet")])
def test_folders_choose_their_network_by_size(tmp_path, size, legal, kind):
    d = data.load("folder", folder(tmp_path, size))
    assert d.train_x.shape == (6, 3, legal, legal) and d.kind == kind and d.classes == 2


def test_val_serves_as_test_and_grey_images_become_three_channels(tmp_path):
    root = folder(tmp_path, 20, splits=("train", "val"))
    write(torch.randint(256, (1, 20, 20), dtype=torch.uint8), str(tmp_path / "train/a/grey.jpg"))
    d = data.load("folder", root)
    assert d.train_x.shape == (7, 3, 29, 29)


def test_what_is_refused_is_named(tmp_path):
    root = folder(tmp_path / "one")
    (tmp_path / "one/train/a/0.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match="0.png can't be read"):
        data.load("folder", root)
    root = folder(tmp_path / "two")
    whole = (tmp_path / "two/train/a/0.png").read_bytes()
    (tmp_path / "two/train/a/0.png").write_bytes(whole[:len(whole) // 2])  # truncated
    with pytest.raises(data.DataError, match="0.png can't be read"):
        data.load("folder", root)
    root = folder(tmp_path / "three")
    write(torch.zeros(3, 21, 20, dtype=torch.uint8), str(tmp_path / "three/train/b/odd.png"))
    with pytest.raises(data.DataError, match="odd.png is 21 × 20"):
        data.load("folder", root)
    root = folder(tmp_path / "four")
    (tmp_path / "four/train/c").mkdir()
    with pytest.raises(data.DataError, match="remove an empty class"):
        data.load("folder", root)
    root = folder(tmp_path / "five", 8)
    with pytest.raises(data.DataError, match="at least 16"):
        data.load("folder", root)
    with pytest.raises(data.DataError, match="no train folder"):
        data.load("folder", str(tmp_path / "none"))


def test_photographs_are_read_upright(tmp_path):
    """A camera may store the turn in EXIF and not in the pixels."""
    image = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° when shown
    image.save(tmp_path / "a.png", exif=exif)
    upright = torch.from_numpy(np.array(image)).rot90(-1)
    assert torch.equal(data._read([str(tmp_path / "a.png")])[0, 0], upright)


@pytest.mark.parametrize("values, mode", [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_images_of_more_than_8_bits_are_refused(tmp_path, values, mode):
    """Pillow turns all of them into RGB without a word, and everything above 255 into 255."""
    root, path = folder(tmp_path), tmp_path / "train/a/deep.tiff"
    Image.fromarray((np.arange(400).reshape(20, 20) * 100).astype(values)).save(path)
    assert Image.open(path).mode == mode
    with pytest.raises(data.DataError, match=r"deep.tiff has more than 8 bits a channel .*: convert it"):
        data.load("folder", root)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_other_modes_of_8_bits_are_read(tmp_path, mode):
    root = folder(tmp_path, classes=("a",), splits=("train", "test"), n=1)
    Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode).save(tmp_path / "train/a/0.tiff")
    (tmp_path / "train/a/0.png").unlink()
    assert (data.load("folder", root).train_x[..., :20, :20] == 255).all()


@pytest.mark.parametrize("x, y, told", [
    (4, [0, 1, 1], "4 test images and 3 labels"), (0, [], "0 test images and 0 labels"),
    (3, [0, 1, 2], "test labels from 0 to 2, not 0 … 1"), (3, [-1, 0, 1], "test labels from -1 to 1")])
def test_labels_are_checked(monkeypatch, x, y, told):
    good = torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1])
    bad = torch.zeros(x, 1, 28, 28, dtype=torch.uint8), torch.tensor(y, dtype=torch.long)
    monkeypatch.setattr(data, "_mnist", lambda data_dir: (good, good, 2, "mnist"))
    assert data.load("mnist").test_y.sort().values.tolist() == [0, 1]
    monkeypatch.setattr(data, "_mnist", lambda data_dir: (good, bad, 2, "mnist"))
    with pytest.raises(data.DataError, match=told):
        data.load("mnist")


def test_cifar10_from_torchvision_and_from_a_folder(tmp_path, monkeypatch):
    assert data.load("cifar10", folder(tmp_path, 32, ("airplane", "cat"))).train_x.shape == (6, 3, 31, 31)
    part = SimpleNamespace(data=np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8), targets=[3, 3])
    monkeypatch.setattr(data, "_torchvision", lambda *_: (part, part))
    x = data.load("cifar10", "elsewhere").train_x.permute(0, 2, 3, 1)  # (2, 31, 31, 3) in random order
    assert all(any(np.array_equal(image, original[:31, :31]) for image in x) for original in part.data)


def tiny(root):
    for wnid in ("n1", "n2"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            write(torch.randint(256, (3, 64, 64), dtype=torch.uint8), str(root / "train" / wnid / "images" / f"{i}.JPEG"))
    (root / "val/images").mkdir(parents=True)
    write(torch.randint(256, (1, 64, 64), dtype=torch.uint8), str(root / "val/images/v.JPEG"))  # grey, as some are
    (root / "wnids.txt").write_text("n2\nn1\n")
    (root / "val/val_annotations.txt").write_text("v.JPEG\tn1\t0\t0\t63\t63\n")


def test_tiny_imagenet_layout(tmp_path):
    tiny(tmp_path)
    d = data.load("tiny-imagenet", str(tmp_path))
    assert d.train_x.shape == (4, 3, 31, 31) and d.classes == 2 and d.test_y.tolist() == [1]


@pytest.mark.parametrize("break_it, told", [
    (lambda root: (root / "wnids.txt").write_text("n2\nn1\nn2\n"), "a wnid stands twice"),
    (lambda root: [p.unlink() for p in (root / "train/n1/images").iterdir()], "no image in .*n1"),
    (lambda root: (root / "val/val_annotations.txt").write_text(""), "0 test images"),
    (lambda root: (root / "val/val_annotations.txt").write_text("v.JPEG\tn3\t0\n"), "n3"),
    (lambda root: (root / "val/images/v.JPEG").unlink(), "v.JPEG can't be read")])
def test_a_broken_tiny_imagenet_is_refused(tmp_path, break_it, told):
    tiny(tmp_path)
    break_it(tmp_path)
    with pytest.raises(data.DataError, match=told) as error:
        data.load("tiny-imagenet", str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_canvas_is_padded_or_cropped_on_the_right_and_below(monkeypatch):
    part = torch.randint(1, 256, (3, 1, 28, 28), dtype=torch.uint8), torch.arange(3)
    monkeypatch.setattr(data, "_mnist", lambda data_dir: (part, part, 3, "mnist"))
    plain, small, large = (data.load("mnist", image_size=size).test_x for size in (None, 28, 32))
    assert plain.shape[-1] == 29 and small.shape[-2:] == (28, 28) and large.shape[-2:] == (32, 32)
    assert torch.equal(small, plain[..., :28, :28]) and torch.equal(large[..., :29, :29], plain)
    assert not large[..., 29:, :].any() and not large[..., 29:].any()
