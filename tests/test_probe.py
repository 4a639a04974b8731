"""The measures: against loops, scikit-learn called directly, and where the answer is known."""

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, as_bytes, blobs, refused_in_one_line, trained, write_images
from lives import checkpoint, live
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit
from sklearn.preprocessing import StandardScaler
from torch import nn

import backbones
import data
import groups
import probe
from backbones import CNN, MLP, MNISTNet
from groups import SCALES, Numbered, Rotation, Scale, Translation

CPU = torch.device("cpu")
DISTANCES = ("invariance", "equation1", "axis")


# ------------------------------------------------------------------------ distances, retrieval
def naive_distances(f, x, group, elements, g0):
    """The three distances word for word: loops over elements, images and pairs of images."""

    def read(image, base):  # (|g0|·C,)
        return groups.bundle(groups.fibers(f(image[None]), f.group), base[None])[0]

    def square(a, b):
        return float((a - b).pow(2).sum())

    n = len(x)
    here = [read(image, g0) for image in x]
    pairs = [square(here[i], here[k]) for i in range(n) for k in range(n) if i != k]
    two_images = sum(pairs) / (n * (n - 1))
    found = dict(invariance=[], equation1=[], axis=[])
    for g in elements[:, None]:
        moved = [read(group.T(image[None], g)[0], g0) for image in x]
        along = [read(image, f.group.shift_base(g, g0)[0]) for image in x]
        for name, a, b in (
            ("invariance", moved, here),
            ("equation1", moved, along),
            ("axis", along, here),
        ):
            found[name].append((sum(map(square, a, b)) / n / two_images) ** 0.5)
    return found


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    "group, net, base",
    [
        (Scale(), dict(scales=SCALES), [0]),
        (Rotation(), dict(rotations=4), [1, 2]),
        (Translation(7, 7, 4), {}, [24]),
    ],
    ids=["scale", "rot", "trans"],
)
def test_distances_against_loops(double, group, net, base, sampled):
    x = blobs(4, 25)
    f = MNISTNet(width=1 / 16, **net)
    if group.spatial:
        f.group = f.translations(25)
    f = trained(f, x, steps=1)
    f.sampled = sampled and f.independent
    elements = torch.tensor([1, 3] if group.order < 10 else [7, 14])
    with torch.no_grad():
        expected = naive_distances(f, x, group, elements, torch.tensor(base))
    found = probe.distances(f, x, group, elements, torch.tensor(base))
    for name in DISTANCES:
        assert found[name] == pytest.approx(expected[name], rel=1e-10, abs=1e-10), name


def test_an_exact_network_has_no_error_of_equation_1(double):
    """So T_g changes the features at g0 just as much as they change along the axis: not by 0."""
    f = trained(MNISTNet(rotations=4, width=1 / 16), torch.rand(4, 1, 29, 29))
    x = torch.rand(5, 1, 29, 29)
    found = probe.distances(f, x, Rotation(), torch.arange(1, 4), torch.tensor([2]))
    assert max(found["equation1"]) < 1e-10 < 1e-3 < min(found["invariance"])
    assert found["invariance"] == pytest.approx(found["axis"], abs=1e-10)


@pytest.mark.parametrize("weight, bias", [(0.0, 0.0), (1e-14, 1.0)], ids=["0", "rounding"])
def test_features_that_never_change_have_no_distances(double, weight, bias):
    """0/0 is None, not 0: a collapsed network is not an invariant one."""
    f, x = MNISTNet(rotations=4, width=1 / 16).eval(), torch.rand(3, 1, 29, 29)
    nn.init.constant_(f.norms[-1].weight, weight)
    nn.init.constant_(f.norms[-1].bias, bias)
    found = probe.distances(f, x, Rotation(), torch.arange(1, 4), torch.tensor([0]))
    assert [found[name] for name in DISTANCES] == [[None] * 3] * 3
    f = MNISTNet(rotations=4, width=1 / 16).eval()
    one = probe.distances(f, x[:1], Rotation(), torch.arange(1, 4), torch.tensor([0]))
    assert [one[name] for name in DISTANCES] == [[None] * 3] * 3


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_network_without_structure_has_only_invariance(double, kind):
    f = MLP(29 * 29, width=1 / 8) if kind == "mlp" else CNN("mnist", width=1 / 16)
    f = trained(f, torch.rand(4, 1, 29, 29))
    x = torch.rand(3, 1, 29, 29)
    group, elements, g0 = probe.study(f, Rotation(), 29)
    found = probe.distances(f, x, group, elements, g0)
    assert found["equation1"] is None and found["axis"] is None
    with torch.no_grad():  # all of z
        here, turned = [f(y).mean((-2, -1)).flatten(1) for y in (x, x.rot90(1, (-2, -1)))]
    two_images = torch.cdist(here, here).pow(2).sum() / 6
    expected = math.sqrt((here - turned).pow(2).sum(1).mean() / two_images)
    assert found["invariance"][0] == pytest.approx(expected, abs=1e-10)
    assert len(found["invariance"]) == 3 and min(found["invariance"]) > 1e-3


def test_distances_need_evaluation_mode():
    f = MNISTNet(scales=SCALES, width=1 / 8).train()
    with pytest.raises(ValueError, match="evaluation mode"):
        probe.distances(f, torch.rand(4, 1, 29, 29), Scale(), torch.arange(4), torch.tensor([0]))


def test_what_is_studied():
    rot, plain = MNISTNet(rotations=4, width=1 / 16), MNISTNet(width=1 / 16)
    group, elements, g0 = probe.study(rot, Rotation(), 29)
    assert (elements.tolist(), g0.tolist()) == ([1, 2, 3], [0])
    group, elements, g0 = probe.study(plain, Translation(29, 29), 29)
    assert group.stride == 4 and elements.tolist() == [8, 16, 24, 32] and g0.tolist() == [36]
    x = torch.zeros(1, 1, 29, 29)
    x[..., 10, 10] = 1
    assert group.T(x, elements[1:2])[..., 18, 10] == 1  # downwards, by whole strides
    mlp = MLP(29 * 29, width=1 / 16)
    group, elements, g0 = probe.study(mlp, Translation(29, 29), 29)
    assert group.stride == 4 and len(elements) == 3 and g0.tolist() == list(range(16))


class Pixels(nn.Module):
    """The features of an image are its pixels, which no group permutes."""

    group = Numbered(1)

    def bundle(self, x, base):
        return x.flatten(1)


class Swap:
    """T_g exchanges the first 2g images of a batch pairwise."""

    def T(self, x, g):
        order = torch.arange(len(x))
        order[: 2 * g[0]] = order[: 2 * g[0]].view(-1, 2).flip(1).flatten()
        return x[order]


def test_retrieval_with_a_known_answer():
    """Of 20 images 2g are exchanged, so each of these finds another one."""
    x = torch.rand(20, 1, 16, 16)
    elements, g0 = torch.arange(0, 11, 5), torch.tensor([0])
    found = probe.distances(Pixels().eval(), x, Swap(), elements, g0)
    assert found["retrieval"] == found["bins"] == [100.0, 50.0, 0.0]
    # by cosine: the length of the features does not matter, and that of counts does
    brighter = SimpleNamespace(T=lambda x, g: 0.5 * x)
    found = probe.distances(Pixels().eval(), x, brighter, elements[:1], g0)
    assert found["retrieval"] == [100.0] and found["bins"][0] < 50


def test_grey_bins_against_a_loop():
    x = torch.rand(3, 2, 5, 6)
    x[0, 0, 0, :3] = torch.tensor([0.0, 1.0, 0.125])  # the ends, and a border
    expected = torch.zeros(3, 2, 8)
    for b in range(3):
        for c in range(2):
            for value in x[b, c].flatten().tolist():
                expected[b, c, min(7, int(8 * value))] += 1
    assert torch.equal(probe.grey_bins(x), expected.flatten(1).double())


def test_eight_grey_values_find_turned_digits():
    """Among 1,000, every one, without a network: the null of a rotation's retrieval."""
    x = data.load("mnist5k").test_x / 255
    f = MNISTNet(rotations=4, width=1 / 32).eval()
    found = probe.distances(f, x, Rotation(), torch.tensor([1, 2]), torch.tensor([0]))
    assert found["bins"] == [100.0, 100.0]
    shrunk = probe.grey_bins(Scale().T(x[:200], torch.ones(200, dtype=torch.long)))
    wrong = probe.share_found(-torch.cdist(shrunk, probe.grey_bins(x[:200]), p=1))
    assert wrong < 50  # shrinking is not free


# --------------------------------------------------------------------------- read-outs
def spread(n, seed, classes=5, dimensions=6, noise=1.5):
    """Features of classes that overlap, on unequal scales (n, dimensions), and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(9))
    y = torch.randint(classes, (n,), generator=generator)
    v = centres[y] + noise * torch.randn(n, dimensions, generator=generator)
    return v * 10.0 ** torch.arange(-3, dimensions - 3) + 7, y


def by_scikit_learn(train_v, train_y, test_v, test_y, seed=0):
    """Logistic regression word for word: standardise, choose C, learn on all."""

    def accuracy(c, v, y, on_v, on_y):
        mean, std = v.mean(0), v.std(0)
        model = LogisticRegression(C=c, max_iter=5000).fit((v - mean) / std, y)
        return float((model.predict((on_v - mean) / std) == on_y).mean())

    train_v, test_v = [v.double().numpy() for v in (train_v, test_v)]
    train_y, test_y = train_y.numpy(), test_y.numpy()
    learn, check = next(ShuffleSplit(1, test_size=0.2, random_state=seed).split(train_v))
    grid = (0.001, 0.01, 0.1, 1.0, 10.0)
    parts = train_v[learn], train_y[learn], train_v[check], train_y[check]
    found = [accuracy(c, *parts) for c in grid]
    best = grid[int(np.argmax(found))]
    return best, 100 * accuracy(best, train_v, train_y, test_v, test_y)


def test_linear_accuracy_against_scikit_learn_called_directly():
    """On data where the choice of C, and so the fifth that it is chosen on, decides."""
    few, test, moved = spread(60, 1), spread(500, 2), spread(500, 3, noise=3)
    found = probe.linear_accuracy(*few, test, moved)
    best, expected = by_scikit_learn(*few, *test)
    assert found == pytest.approx([expected, by_scikit_learn(*few, *moved)[1]], abs=1e-9)
    others = {by_scikit_learn(*few, *test, seed)[0] for seed in range(1, 6)}
    assert others - {best}, "another fifth chooses another C"
    assert probe.linear_accuracy(*few, test, moved) == found


@pytest.mark.parametrize("seed", range(4))
def test_with_fewer_than_five_images_a_class_C_is_one(seed):
    torch.manual_seed(seed)
    v, y, test_v = torch.randn(11, 5).double(), torch.arange(11) % 3, torch.randn(500, 5).double()
    scale = StandardScaler().fit(v)
    model = LogisticRegression(C=1.0, max_iter=5000).fit(scale.transform(v), y)
    guess = torch.from_numpy(model.predict(scale.transform(test_v)))
    assert probe.linear_accuracy(v, y, (test_v, guess)) == [100]


@pytest.mark.parametrize("n, k", [(40, 7), (15, 20)])
def test_nearest_neighbours_against_loops(n, k):
    train_v, test_v = torch.randn(n, 5), torch.randn(60, 5)
    train_y, test_y = torch.randint(3, (n,)), torch.randint(3, (60,))
    right = [0, 0]
    for v, y in zip(test_v, test_y):
        cosine = [float(v @ w / v.norm() / w.norm()) for w in train_v]
        votes = [0.0] * 3
        for i in sorted(range(n), key=lambda i: -cosine[i])[:k]:
            votes[train_y[i]] += math.exp(cosine[i] / 0.07)
        right[0] += votes.index(max(votes)) == int(y)
        right[1] += votes.index(max(votes)) == 0
    assert 0 < right[0] < 60
    tests = (test_v, test_y), (3 * test_v, torch.zeros_like(test_y))
    found = probe.knn_accuracy(train_v, train_y, *tests, k=k)
    assert found == pytest.approx([100 * hits / 60 for hits in right])


@pytest.mark.parametrize("group", ["rot", "scale", "trans"])
def test_the_features_are_those_of_the_equations(group):
    """One: z at g0, the first slot or the centre.  Every: the maximum over the slots.  Both of a
    mean over space, and of images changed by a g other than e, drawn for each."""
    f = MNISTNet(width=0.25, **backbones.AXES[group]).eval()
    image_group = dict(rot=Rotation(), scale=Scale(), trans=Translation(29, 29))[group]
    x = as_bytes(blobs(6, 29, dtype=torch.float32))
    classifier = SimpleNamespace(features=lambda z: z.flatten(1))
    whole, one, every = probe.encode(f, classifier, x, CPU, batch=4)
    _, changed, _ = probe.encode(f, classifier, x, CPU, image_group=image_group, batch=4)
    generator = torch.Generator().manual_seed(0)
    elements = image_group.augmentations()
    assert elements[0] == 0
    drawn = [torch.randint(len(elements) - 1, (n,), generator=generator) for n in (4, 2)]
    g = elements[1 + torch.cat(drawn)]
    assert (g > 0).all() and len(g.unique()) > 1
    with torch.no_grad():
        z = f(x / 255)  # (6, C, G, H', W')
        of_changed = f(image_group.T(x / 255, g))
    middle = z.shape[-1] // 2

    def at_g0(z):
        return z[:, :, 0, middle, middle] if group == "trans" else z[:, :, 0].mean((2, 3))

    pooled = z.amax((2, 3, 4)) if group == "trans" else z.mean((3, 4)).amax(2)
    assert torch.allclose(whole, z.flatten(1), atol=1e-5)
    assert torch.allclose(one, at_g0(z), atol=1e-5)
    assert torch.allclose(every, pooled, atol=1e-5)
    assert torch.allclose(changed, at_g0(of_changed), atol=1e-5)
    assert not torch.allclose(changed, one, atol=1e-3)


def test_without_a_group_all_of_z_is_read():
    f = MLP(29 * 29, width=0.1).eval()
    x = as_bytes(blobs(6, 29, dtype=torch.float32))
    classifier = SimpleNamespace(features=lambda z: z.flatten(1))
    whole, one, every = probe.encode(f, classifier, x, CPU, image_group=Rotation())
    assert one.shape == (6, f.channels) and torch.equal(every[:, : f.channels], one)
    assert torch.equal(every.view(6, 16, -1).transpose(1, 2).flatten(1), whole)


def digits(train_size, test_size):
    return data.load("mnist5k", train_size=train_size, test_size=test_size)


@pytest.mark.slow
def test_pooled_read_outs_of_an_exact_network_are_the_same_on_turned_images(double):
    """To the last digit, trained or not: the free baseline."""
    images = digits(120, 60)
    f = MNISTNet(rotations=4, width=1 / 8)
    classifier = backbones.MNISTClassifier(f.channels, 10, rotations=4)
    found = probe.evaluate(f, classifier, Rotation(), images, CPU)
    for name in ("linear", "knn"):
        assert found[f"{name}_all"] == found[f"{name}_all_changed"] > 20
        assert found[f"{name}_one"] > found[f"{name}_one_changed"]
    assert max(found["equation1"]) < 1e-10 and found["bins"] == [100.0] * 3
    assert (found["train_images"], found["test_images"]) == (120, 60)


@pytest.fixture
def no_readouts(monkeypatch):
    """Not asked here."""
    for name in ("linear_accuracy", "knn_accuracy"):
        monkeypatch.setattr(probe, name, lambda *more, **named: (0.0, 0.0))


def test_feed_gives_fresh_batchnorm_statistics_and_changes_no_weight(no_readouts):
    """Those of the training images; and a trained one's stay what they were."""
    images = digits(512, 50)
    f, classifier = MNISTNet(width=0.25, rotations=4), backbones.ResNetClassifier(32, 10)
    norm = f.norms[0]
    weights = [p.detach().clone() for p in f.parameters()]

    def look():
        probe.evaluate(f, classifier, Rotation(), images, CPU)

    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    inputs = []
    hook = norm.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        f.eval()(images.train_x / 255)
    hook.remove()
    look()
    # two batches of equal size: the mean of their means is the mean of all
    expected = inputs[0].transpose(0, 1).flatten(1).mean(1)
    assert torch.allclose(norm.running_mean, expected, atol=1e-4)
    assert expected.abs().max() > 1e-3
    before = norm.running_mean.clone()
    look()
    assert int(classifier.norm.num_batches_tracked) == 2  # 512 images in batches of 256, once
    assert norm.momentum == 0.1 and torch.equal(before, norm.running_mean)
    assert not f.training and not classifier.training
    assert all(torch.equal(a, b) for a, b in zip(weights, f.parameters()))


def test_one_image_that_is_left_over_is_not_fed(no_readouts):
    """BatchNorm over one vector has no variance."""
    images = digits(257, 20)
    f, classifier = MLP(29 * 29, width=0.02), backbones.MNISTClassifier(48, 10, convolve=False)
    f.eval()
    probe.feed(f, classifier, images.train_x, CPU)
    norms = [m for m in f.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms and all(int(norm.num_batches_tracked) == 1 for norm in norms)


def test_most_limits_the_images_that_the_read_outs_learn_on(monkeypatch):
    images = digits(60, 20)
    f = MNISTNet(rotations=4, width=1 / 16)
    classifier = backbones.MNISTClassifier(f.channels, 10, rotations=4)
    sizes = []

    def watch(train_v, train_y, *tests, **more):
        sizes.append((len(train_v), len(train_y), *[len(v) for v, _ in tests]))
        return [0.0] * len(tests)

    monkeypatch.setattr(probe, "linear_accuracy", watch)
    monkeypatch.setattr(probe, "knn_accuracy", watch)
    found = probe.evaluate(f, classifier, Rotation(), images, CPU, most=30)
    assert sizes == [(30, 30, 20)] + [(30, 30, 20, 20)] * 4 and found["train_images"] == 30


def test_images_without_labels_have_distances_alone():
    images = digits(60, 20)._replace(train_y=None, test_y=None, classes=[])
    f = MNISTNet(rotations=4, width=1 / 16)
    classifier = backbones.MNISTClassifier(f.channels, 2, rotations=4)
    found = probe.evaluate(f, classifier, Rotation(), images, CPU)
    assert set(found) == {*probe.CHANGE, "train_images", "test_images"}


# -------------------------------------------------------------------------------- the report
FOUND = dict(
    **dict(invariance=[0.5, 1.5], equation1=[0.05, 0.3], axis=[0.2, 0.2]),
    **dict(retrieval=[60.0, 70.0], bins=[100.0, 99.0], top1=80.0, linear_one=50.0),
    **dict(linear_one_changed=20.0, linear_all=60.0, linear_all_changed=61.0),
    **dict(knn_one=1.0, knn_all=2.0, test_images=400, epochs=3),
)


def test_the_means_over_g():
    assert probe.mean_over_g(FOUND, "invariance") == 1.0
    assert probe.mean_over_g(FOUND, "error") == pytest.approx((0.1 + 0.2) / 2)
    assert probe.mean_over_g(dict(invariance=[0.0], equation1=[2.0]), "error") == 2.0  # not hidden
    assert probe.mean_over_g(FOUND, "top1") == 80.0
    for name in ("knn", "linear"):
        assert probe.mean_over_g(FOUND, name) is None
    broken = dict(invariance=[None, 1.0], equation1=None)
    assert probe.mean_over_g(broken, "invariance") is None
    assert probe.mean_over_g(broken, "error") is None
    assert probe.mean_over_g(dict(invariance=[None] * 2, equation1=[None] * 2), "error") is None


TABLE = """\
                      untrained    trained   null
error of Eq. 1          2.0e-09       0.15   1
change under g             1.00       1.00   1
finds its copy, %          1.50      65.00   0.25 by chance; eight grey values: 99.5
linear, one slot, %       50.00      50.00
  changed by g            20.00      20.00
linear, all slots, %      60.00      60.00
  changed by g            61.00      61.00
top-1, %                  70.00      80.00"""


def test_the_report_is_a_table_beside_the_untrained_network():
    untrained = FOUND | dict(top1=70.0, equation1=[1e-9, 3e-9], retrieval=[1.0, 2.0])
    assert probe.report(FOUND | dict(untrained=untrained)) == TABLE
    alone = probe.report(FOUND | dict(epochs=0)).splitlines()
    assert alone[0].split() == ["untrained", "null"]


def test_the_report_leaves_out_what_has_no_meaning():
    without_group = probe.report(FOUND | dict(equation1=None, axis=None))
    assert "error of Eq. 1" not in without_group and "top-1" in without_group
    names = (*probe.CHANGE, "test_images", "epochs")
    unlabelled = probe.report({name: FOUND[name] for name in names}).splitlines()
    assert [line[:8] for line in unlabelled[1:]] == ["error of", "change u", "finds it"]


def test_the_report_says_so_if_all_features_are_equal():
    collapsed = FOUND | dict(invariance=[None] * 2, equation1=[None] * 2)
    lines = probe.report(collapsed | dict(untrained=FOUND)).splitlines()
    assert lines[1].split() == ["error", "of", "Eq.", "1", "0.15", "-", "1"]
    assert lines[-1] == "collapsed: all test images have the same features"
    assert "collapsed" in probe.report(collapsed)
    assert "collapsed" not in probe.report(FOUND | dict(untrained=collapsed))


# ------------------------------------------------------------------------------ a run's folder
@pytest.fixture(scope="module")
def unlabelled(nursery, tmp_path_factory):
    """A run on images without classes, r, and a labelled folder, labelled."""
    root = tmp_path_factory.mktemp("unlabelled")
    torch.manual_seed(0)
    write_images(root / "data/train", as_bytes(blobs(70, 16, 3)))
    for split, n in (("train", 30), ("test", 10)):
        for c in range(3):
            images = as_bytes(blobs(n, 16, 3) * (1 - 0.3 * c))
            write_images(root / "labelled" / split / f"class{c}", images)
    flags = "--dataset folder --width 0.125 --batch-size 30 --amp off --out r --epochs 1"
    status, said, stderr = live(root, flags.split())
    assert status == 0 and "linear" not in said and "finds its copy" in said, stderr
    return root


@pytest.mark.slow
def test_a_run_on_unlabelled_images_is_read_out_on_a_labelled_folder(unlabelled, capsys):
    trained_on = json.loads((unlabelled / "r/result.json").read_text())
    assert "top1" not in trained_on and trained_on["classes"] == []
    assert "untrained" in trained_on and trained_on["train_images"] == 63
    probe.main([str(unlabelled / "r"), "--data-dir", str(unlabelled / "labelled")])
    told = capsys.readouterr()
    assert told.err == "note: these are not the images of the training\n"
    found = json.loads((unlabelled / "r/probe.json").read_text())
    assert found["train_images"] == 90 and found["top1"] > 50 and found["linear_one"] > 50
    assert told.out == probe.report(found) + "\n" and "top-1" in told.out


@pytest.mark.slow
def test_the_probe_measures_what_the_run_did(unlabelled, capsys):
    probe.main([str(unlabelled / "r"), "--data-dir", str(unlabelled / "data")])
    assert capsys.readouterr().err == ""
    result = json.loads((unlabelled / "r/result.json").read_text())
    found = json.loads((unlabelled / "r/probe.json").read_text())
    for name in probe.CHANGE:
        assert found[name] == result[name], name


@pytest.mark.slow
def test_the_probe_of_an_unfinished_run_says_so(unlabelled, tmp_path, capsys):
    shutil.copytree(unlabelled / "r", tmp_path / "r")
    torch.save(checkpoint(tmp_path / "r") | dict(step=1), tmp_path / "r/checkpoint.pt")
    probe.main([str(tmp_path / "r"), "--data-dir", str(unlabelled / "data")])
    told = capsys.readouterr().err
    assert told == "note: 1 of 2 steps are done; train.py goes on with it\n"


SPOIL = {
    "no checkpoint": lambda r: (r / "checkpoint.pt").unlink(),
    "cut": lambda r: os.truncate(r / "checkpoint.pt", 1000),
    "hostile": lambda r: (r / "checkpoint.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR."),
    "a list": lambda r: torch.save([1], r / "checkpoint.pt"),
    "half": lambda r: torch.save(dict(config={}, step=1), r / "checkpoint.pt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOIL)
def test_a_folder_that_holds_no_run_is_told(unlabelled, tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(unlabelled / "r", "r")
    SPOIL[spoil](tmp_path / "r")
    with refused_in_one_line("r holds no run"):
        probe.open_run("r", str(unlabelled / "data"))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.slow
def test_images_of_another_size_do_not_fit(unlabelled, tmp_path):
    write_images(tmp_path / "train", as_bytes(blobs(20, 40, 3)))
    with refused_in_one_line("does not fit the images"):
        probe.open_run(str(unlabelled / "r"), str(tmp_path))


def test_a_size_that_learns_nothing_is_refused():
    with refused_in_one_line("--probe-size -5 is out of range"):
        probe.main(["nowhere", "--probe-size", "-5"])


@pytest.mark.slow
def test_the_probe_says_it_in_one_line(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "probe.py"), "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("probe.py: nowhere holds no run")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["full", "supervised", "none yet", "collapsed"])
def test_curves_are_drawn(tmp_path, kind):
    line = dict(loss=2.0)
    if kind in ("full", "collapsed"):
        line |= dict(positive_similarity=0.5, negative_similarity=0.1, spread=0.9, chance=2)
        distance = 0.1 if kind == "full" else None
        line |= dict(invariance=distance, equation1=distance)
    steps = [] if kind == "none yet" else range(1, 5)
    lines = [dict(argv=["train.py"]), *[line | dict(step=step) for step in steps]]
    lines.append(dict(step=4, top1=80.0))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    probe.draw_curves(str(tmp_path))
    from matplotlib import pyplot as plt

    assert plt.get_fignums() == []
    image = plt.imread(tmp_path / "curves.png")
    assert image.shape[1] > 1000 and image.std() > 0.05
