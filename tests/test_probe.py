"""The read-outs against what they must give where the answer is known."""
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import blobs
from torch import nn

import backbones
import data
import losses
import probe
import train


def test_nearest_neighbours_against_loops():
    train_v, test_v = torch.randn(40, 5), torch.randn(30, 5)
    train_y, test_y = torch.randint(3, (40,)), torch.randint(3, (30,))
    right = 0
    for v, y in zip(test_v, test_y):
        cosine = [float(v @ w / v.norm() / w.norm()) for w in train_v]
        votes = [0.0] * 3
        for i in sorted(range(40), key=lambda i: -cosine[i])[:7]:
            votes[train_y[i]] += math.exp(cosine[i] / 0.07)
        right += votes.index(max(votes)) == int(y)
    assert 0 < right < 30
    assert probe.knn_accuracy(train_v, train_y, test_v, test_y, k=7, batch=11) == pytest.approx(100 * right / 30)


def test_a_linear_layer_on_classes_that_a_plane_separates():
    """Every test image is on the right side; with a quarter of the labels exchanged the accuracy is 75 % exactly."""
    y = torch.arange(400) % 2
    x = torch.randn(400, 3) + 20.0 * torch.stack([y, 1 - y, y], 1)  # (400, 3), classes 20 standard deviations apart
    train, test = slice(0, 200), slice(200, 400)
    exchanged = torch.where(torch.arange(200) % 4 < 1, 1 - y[test], y[test])  # (200,): labels 0 of every other pair
    accuracy = lambda labels: probe.linear_accuracy(x[train], y[train], x[test], labels, 2, steps=100, epochs=1)
    assert accuracy(y[test]) == 100.0 and accuracy(exchanged) == 75.0


def test_a_linear_layer_learns_nothing_from_noise():
    """Its null: 10 classes, features that know nothing of them.  3 standard errors of 2,000 images."""
    y = torch.randint(10, (4000,))
    x = torch.randn(4000, 4)
    found = probe.linear_accuracy(x[:2000], y[:2000], x[2000:], y[2000:], 10, steps=200, epochs=1)
    assert abs(found - 10) < 3 * 100 * math.sqrt(0.1 * 0.9 / 2000)


@pytest.mark.parametrize("group", ("rot", "trans"))
def test_the_features_are_those_of_the_equations(group):
    """pooled: the maximum of z's mean over space; one: z at g0, element 0 or the centre; the same for changed images, of which f may
    compute only this."""
    network = backbones.MNISTNet(width=0.25, rotations=4 if group == "rot" else 1).eval()
    z = network(torch.zeros(1, 1, 29, 29))
    draws = losses.Draws("hssl", group, True, network.order, 29, z.shape[-1], network.stride)
    x = (255 * blobs(6, 29, dtype=torch.float32)).clamp(0, 255).to(torch.uint8)
    features = SimpleNamespace(features=lambda z: z.flatten(1))
    whole, pooled, one = probe.encode(network, features, draws, x, torch.device("cpu"), batch=4)
    _, _, changed = probe.encode(network, features, draws, x, torch.device("cpu"), generator=torch.Generator().manual_seed(1), batch=6)
    with torch.no_grad():
        z = network(x.float() / 255)  # (6, C, G, H', W')
        of_changed = network(draws.moved(x.float() / 255, torch.Generator().manual_seed(1)))  # (6, C, G, H', W')
    middle = z.shape[-1] // 2
    fiber = lambda z: z[:, :, 0, middle, middle] if group == "trans" else z[:, :, 0].mean((2, 3))  # (6, C)
    assert torch.allclose(whole, z.flatten(1), atol=1e-5)
    assert torch.allclose(pooled, z.mean((3, 4)).amax(2), atol=1e-5)
    assert torch.allclose(one, fiber(z), atol=1e-5)
    assert torch.allclose(changed, fiber(of_changed), atol=1e-5) and not torch.allclose(changed, one, atol=1e-3)


class Averaged(nn.Module):
    """f averaged over the four turns of its input: exactly invariant to them, so no fiber changes."""

    order, stride, pool, independent = 4, 4, "mean", False

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return torch.stack([self.f(torch.rot90(x, k, (2, 3))).mean(2, keepdim=True) for k in range(4)]).mean(0).expand(-1, -1, 4, -1, -1)


def test_moved_equals_fiber_if_and_only_if_f_is_invariant(monkeypatch):
    monkeypatch.setattr(probe, "linear_accuracy", lambda *_, **__: 0.0)  # not asked here
    digits = data.load("mnist5k", train_size=600, test_size=300)
    f = backbones.MNISTNet(width=0.25, rotations=4)
    draws = losses.Draws("hssl", "rot", True, 4, 29, 8, 4)
    classifier = backbones.MNISTClassifier(f.channels, 10, rotations=4)
    found = {name: probe.evaluate(network, classifier, draws, digits, torch.device("cpu")) for name, network in (("f", f), ("averaged", Averaged(f)))}
    assert found["averaged"]["moved"] == pytest.approx(found["averaged"]["fiber"], abs=0.4)  # one image of 300: float32
    assert found["f"]["fiber"] - found["f"]["moved"] > 12.3  # three standard errors of the difference, 300 images
    assert all(v < 1e-5 for v in found["averaged"]["invariance"]) and all(v > 0.1 for v in found["f"]["invariance"])


def test_the_probe_feeds_fresh_batchnorm_and_changes_no_weight(monkeypatch):
    """Fed, an untrained network's statistics are those of the training images; a trained one's stay what they were."""
    monkeypatch.setattr(probe, "linear_accuracy", lambda *_, **__: 0.0)
    digits = data.load("mnist5k", train_size=512, test_size=50)
    f, classifier = backbones.MNISTNet(width=0.25, rotations=4), backbones.ResNetClassifier(32, 10)
    draws = losses.Draws("frozen", "rot", True, 4, 29, 8, 4)
    norm = next(m for m in f.modules() if isinstance(m, probe._BatchNorm))
    weights = [p.detach().clone() for p in f.parameters()]
    look = lambda **more: probe.evaluate(f, classifier, draws, digits, torch.device("cpu"), **more)
    look(feed=False)
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    inputs = []
    hook = norm.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        f.eval()(digits.train_x.float() / 255)
    hook.remove()
    look()
    # two batches of equal size: the mean of their means is the mean of all
    expected = inputs[0].transpose(0, 1).flatten(1).mean(1)
    assert torch.allclose(norm.running_mean, expected, atol=1e-4) and not torch.allclose(expected, torch.zeros_like(expected), atol=1e-3)
    before = norm.running_mean.clone()
    look()
    assert int(classifier.norm.num_batches_tracked) == 2  # 512 images in batches of 256, once
    assert norm.momentum == 0.1 and torch.equal(before, norm.running_mean) and all(torch.equal(a, b) for a, b in zip(weights, f.parameters()))


def test_the_flags_reach_the_network_and_the_draws():
    flags = "--loss hybrid --functions 3 --pool max --epsilon 0.3 --strength 0.1 --base-size 2 --max-distance 1 --distance topological"
    f, _, _, draws = probe.network(vars(train.parse(flags.split())), data.load("mnist5k", train_size=64))
    assert f.convs[0].weight.shape[-1] == 3 and f.pool == "max" and f.convs[0].delta.any()
    assert draws.strength == 0.1 and len(draws.g0) == 2 and draws.allowed.sum() == 12  # each place with itself and two others; euclidean: 10


def test_the_report_prints_five_read_outs_and_three_distances():
    found = dict(top1=80.0, linear=50.0, knn=50.0, fiber=50.0, moved=20.0, test_images=400, invariance=[0.25, 1.5], equation1=[3e-7, 0.0], axis=[0.25, 1.5])
    lines = probe.report(found).splitlines()
    assert lines[0] == "top1 80.00 ± 2.00 %   linear 50.00 ± 2.50 %   knn 50.00 ± 2.50 %   fiber 50.00 ± 2.50 %   moved 20.00 ± 2.00 %"  # √(p(1 - p)/n)
    assert [line.split("‖")[-1].split() for line in lines[2:]] == [["0.250", "1.500"], ["3e-07", "0.000"], ["0.250", "1.500"]]
    without = probe.report(found | dict(invariance=[None, None], equation1=None, axis=None)).splitlines()
    assert "undefined: one image, or f gives all images the same features" in without[2] and all("no Γ_g acts on this network" in line for line in without[3:])
