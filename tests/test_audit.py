"""results/audit.py on images and groups whose counts are known."""

import json

import pytest
import torch
from conftest import ROOT, as_bytes, blobs, write_images

import data
import groups
from results import audit

ACTS = dict(rot=groups.Rotation(), scale=groups.Scale(), trans=groups.Translation(29, 29))


def images(x, y=None, classes=()):
    """Data whose training and test images are the halves of x (N, C_in, 29, 29) in 0 … 1."""
    x = as_bytes(x)
    half = len(x) // 2
    labels = (None, None) if y is None else (y[:half], y[half:])
    return data.Data(x[:half], labels[0], x[half:], labels[1], list(classes), "mnist")


def strokes(n=200, c_in=1):
    """Small strokes so far from the frame that no shift loses any of them."""
    return blobs(n, 29, c_in, margin=6, dtype=torch.float32)


@pytest.mark.parametrize("c_in", [1, 3])
@pytest.mark.parametrize("group, rtol", [("rot", 1e-9), ("trans", 1e-9), ("scale", 0.3)])
def test_the_counts_do_not_change_under_g(group, rtol, c_in):
    """To rounding for turns and shifts; roughly for scale, and less than between images."""
    x = strokes(40, c_in).double()
    elements = ACTS[group].augmentations(0.2)[1:]
    g = elements[torch.randint(len(elements), (len(x),))]
    a, b = audit.counts(x, group), audit.counts(ACTS[group].T(x, g), group)
    spread = a.std(0) + 1e-9
    change = ((a - b) / spread).pow(2).mean().sqrt()
    other = ((a - a.roll(1, 0)) / spread).pow(2).mean().sqrt()
    assert change < rtol * other
    turned = audit.counts(ACTS["rot"].T(x, torch.ones(len(x), dtype=torch.long)), "trans")
    assert not torch.allclose(turned, audit.counts(x, "trans"))  # the moments know a turn


def test_what_g_keeps_finds_every_copy_and_jitter_hides_it():
    found = {a: audit.audit(images(strokes()), "rot", a) for a in ("none", "jitter")}
    assert found["none"] == (100, 100, 1)
    assert found["jitter"][0] < 60


def test_grey_bins_find_nothing_if_all_images_have_the_same_ones():
    """The same pixels in another order: bins are at chance, rings still find the turned copy."""
    pixels = torch.rand(29 * 29)
    x = torch.stack([pixels[torch.randperm(29 * 29)].view(1, 29, 29) for _ in range(200)])
    bins, counts, chance = audit.audit(images(x), "rot", "none")
    assert bins == chance == 1 and counts == 100


def test_counts_read_classes_only_where_they_differ():
    torch.manual_seed(0)
    x = strokes(400)
    y = torch.arange(400) % 2
    known = images(x * (1 - 0.6 * y.view(-1, 1, 1, 1)), y, "ab")
    unknown = images(x, y, "ab")
    bins, counts, most = audit.classes(known, "rot")
    assert min(bins, counts) > 90 and most == 50
    assert max(audit.classes(unknown, "rot")[:2]) < 65


@pytest.mark.slow
def test_the_command_on_a_folder_without_classes(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "train", as_bytes(strokes(60, 3)))
    flags = ["--dataset", "folder", "--data-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["audit.py", *flags])
    audit.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[1].split() == ["rot", "none", "100.0", "100.0", "16.7"]


def test_the_rows_on_the_page_are_whole():
    with open(f"{ROOT}/results/audit.jsonl") as file:
        rows = [json.loads(line) for line in file]
    keys = {(row["dataset"], row["group"], row["what"]) for row in rows}
    assert len(keys) == len(rows) == 24
