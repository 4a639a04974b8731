"""results/riddle.py on features of which the answer is known, and which networks it reads."""

import json
import shlex

import pytest
import torch
from conftest import as_bytes, blobs

import data
from results import riddle, run
from results.audit import counts


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    x = as_bytes(blobs(600, 29, dtype=torch.float32))
    y = torch.arange(600) % 3
    return data.Data(x[:400], y[:400], x[400:], y[400:], ["a", "b", "c"], "mnist")


def test_features_that_are_made_of_counts_are_found_out_and_random_ones_are_not(images):
    both = [images.train_x / 255, images.test_x / 255]
    known = [torch.cat([counts(x, "rot"), counts(x, "scale")], 1).float() for x in both]
    mixed = torch.randn(known[0].shape[1], 40)
    found = riddle.components([z @ mixed for z in known], images)
    assert found["hand_made"] > 99
    noise = [torch.randn(len(x), 40) for x in both]
    assert riddle.components(noise, images)["hand_made"] < 20
    ink = [x.sum((1, 2, 3)).view(-1, 1) * torch.ones(40) for x in both]
    found = riddle.components([z + 1e-3 * n for z, n in zip(ink, noise)], images)
    assert found["ink"] > 99.9 and found["three_directions"] > 99


def test_whitened_neighbours_see_small_components(images):
    """One large component without a class, and small ones with it."""
    features = []
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        large = 100 * torch.randn(len(x), 1)
        features.append(torch.cat([large, torch.eye(3)[y] + 0.1 * torch.randn(len(x), 3)], 1))
    assert riddle.components(features, images)["knn_whitened"] > 90


def test_few_labels_are_drawn_apart_and_equally_many_of_each_class(monkeypatch):
    y = torch.arange(300) % 3
    z = torch.arange(300.0).view(-1, 1)  # a feature is the number of its image
    drawn = []

    def accuracy(chosen, labels, *tests):
        assert labels.bincount().tolist() == [4, 4, 4]
        drawn.extend(chosen.flatten().tolist())
        return [float(len(drawn)), 0.0]

    monkeypatch.setattr(riddle.probe, "linear_accuracy", accuracy)
    assert riddle.few_labels(12, z, y, None, None) == [36, 0]  # the mean of 12, 24, …, 60
    assert len(drawn) == len(set(drawn)) == 60


def test_only_the_finished_runs_that_were_asked_for_are_read_and_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(riddle, "FOLDER", str(tmp_path))
    flags = run.EXPERIMENTS["taught"][0]
    row = run.train.config_of(run.train.parse(shlex.split(flags)))
    for name, more in (("distance-1", {}), ("taught-2", dict(epochs=500)), ("taught-3", None)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if more is not None:  # the third is not finished
            (tmp_path / "runs" / name / "result.json").write_text(json.dumps(row | more))
    monkeypatch.setattr("sys.argv", ["riddle.py", "--runs", str(tmp_path / "runs")])
    for _ in range(2):
        riddle.main("About.\n\nMore.", "some.jsonl", ("taught",), lambda *given: dict(a=given[1]))
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [line["a"] for line in lines] == [row]
    assert (lines[0]["group"], lines[0]["seed"]) == (row["group"], row["seed"])
