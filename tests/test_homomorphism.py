"""The learned homomorphism: Γ and its gradient, what the loss is at known networks, and what it says where it means nothing."""
import functools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, blobs
from torch import nn

import data
import losses
import probe
from backbones import CNN, SCALES, MNISTNet
from checkpoint import UsageError
from groups import Rotation, Scale
from homomorphism import Gamma, cycle, equation1, as_fibers, learn, main, measure, start, views

pytestmark = pytest.mark.slow
C4 = Rotation()


def exact(width=0.125):
    """A network for rotations in float64, whose BatchNorm has statistics of its own."""
    f = MNISTNet(rotations=4, width=width)
    f(blobs(8, 29))
    return f.eval()


# ---------------------------------------------------------------- Γ
def test_the_cycle_is_what_a_quarter_turn_does_to_the_fibers_of_a_structured_network(double):
    v, g = torch.randn(5, 4, 3), torch.tensor([0, 1, 2, 3, 1])  # (5, 4, 3), (5,)
    z = v.transpose(1, 2)[..., None, None]  # (5, 3, 4, 1, 1): without space, Γ only moves the fibers
    assert torch.equal(Gamma(cycle().double(), v, g), as_fibers(C4.Gamma(z, g)))


def test_gamma_is_an_action_of_the_cycle_only(double):
    v, a, b = torch.randn(6, 4, 3), torch.randint(4, (6,)), torch.tensor([1, 2, 3, 3, 2, 1])  # (6, 4, 3), (6,) twice
    composed = lambda A: (Gamma(A, Gamma(A, v, a), b) - Gamma(A, v, C4.product(a, b))).abs().max()
    a[0] = 3  # with b = 1: a product that wraps round
    assert composed(cycle().double()) < 1e-14
    assert composed(torch.randn(4, 4)) > 1e-3, "of no other matrix is A⁴ = 1"


def test_gradients_of_A_through_its_powers(double):
    A, v, moved = torch.randn(4, 4, requires_grad=True), torch.randn(6, 4, 2, requires_grad=True), torch.randn(6, 4, 2, requires_grad=True)
    g = torch.tensor([1, 2, 3, 3, 2, 1])  # (6,)
    assert torch.autograd.gradcheck(lambda A, v: Gamma(A, v, g), (A, v))
    assert torch.autograd.gradcheck(lambda moved, v, A: equation1(moved, v, A, g), (moved, v, A))
    assert torch.autograd.gradcheck(lambda moved, v, A: equation1(moved, v, A, g, one_way=True), (moved, v, A))


def test_the_sixteen_fibers_of_the_mlp_become_four_blocks():
    z = torch.arange(16.0).view(1, 1, 16, 1, 1)  # (1, 1, 16, 1, 1)
    assert as_fibers(z).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]]


# ---------------------------------------------------------------- scale, which is no group
def test_the_shift_is_what_shrinking_does_to_the_fibers_of_a_structured_network(double):
    v, g = torch.randn(6, 6, 3), torch.arange(6)  # (6, 6, 3), (6,)
    group = Scale()
    expected = torch.stack([torch.cat([v[b, b:], torch.zeros(b, 3)]) for b in range(6)])  # (6, 6, 3): (Γ_g v)(i) = v(i + g)
    assert torch.equal(Gamma(cycle(group).double(), v, g), expected)
    assert torch.equal(group.shift_base(g, torch.arange(6)) >= 0, expected.any(2))


def test_scale_given_the_shift_the_views_are_those_of_h_ssl(double):
    f, h, x, group = MNISTNet(scales=SCALES, width=0.125).eval(), nn.Linear(16, 5), blobs(6, 29), Scale()
    g0, g1, g2 = torch.zeros(6, 1, dtype=torch.long), torch.randint(6, (6,)), torch.randint(6, (6,))
    ours, theirs = views(as_fibers(f(x), order=6), h, cycle(group).double(), g0, g1, g2), losses.h_ssl(f, h, x, group, g0, g1, g2)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs)) and (ours[0] - ours[1]).abs().max() > 1e-3


def test_eq1_for_scale_reads_only_the_fibers_that_exist(double):
    group, v, g = Scale(), torch.randn(5, 6, 3), torch.tensor([1, 2, 3, 4, 5])  # (5, 6, 3), (5,)
    A = cycle(group).double()
    past = (group.shift_base(g, torch.arange(6)) < 0)[..., None]  # (5, 6, 1)
    moved = Gamma(A, v, g) + past * torch.randn(5, 6, 3)  # anything at i + g >= 6
    assert equation1(moved, v, A, g, group=group) < 1e-24 and equation1(moved, v, torch.eye(6), g, group=group) == 1

    class Known(nn.Module):  # images are v itself, T_g is the shift with rubbish past the end
        pool = "mean"

        def forward(self, x):
            return x.transpose(1, 2)[..., None, None]  # (B, 3, 6, 1, 1)
    group.T = lambda x, g: Gamma(A, x, g) + (group.shift_base(g, torch.arange(6)) < 0)[..., None]
    found = measure(Known(), A, v, group)
    assert max(found["over_null"] + found["best"]) < 1e-7 and found["orbit"] == found["over_null"] and min(found["invariance"]) > 0.1
    assert found["axis"] == pytest.approx(found["invariance"])
    group.T = lambda x, g: x * (g == 0)[:, None, None]  # every shrunk image is the same
    assert max(measure(Known(), A, v, group)["kept"]) == 0


# ---------------------------------------------------------------- the first term
def test_given_the_cycle_the_views_are_those_of_h_ssl(double):
    f, h, x = exact(), nn.Linear(32, 5), blobs(6, 29)  # x (6, 1, 29, 29)
    g0, g1, g2 = torch.tensor([[0, 1]]).expand(6, -1), torch.randint(4, (6,)), torch.randint(4, (6,))
    ours, theirs = views(as_fibers(f(x)), h, cycle().double(), g0, g1, g2), losses.h_ssl(f, h, x, C4, g0, g1, g2)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs))
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_with_the_identity_the_views_are_equal_and_only_negatives_are_left(double):
    v, h, g1, g2 = torch.randn(6, 4, 3), nn.Linear(3, 5), torch.randint(4, (6,)), torch.randint(4, (6,))
    y1, y2 = views(v, h, torch.eye(4), torch.zeros(6, 1, dtype=torch.long), g1, g2)  # (6, 5) twice
    assert torch.equal(y1, y2)
    y = nn.functional.normalize(y1, dim=1)  # (6, 5)
    others = (y @ y.T / 0.1).fill_diagonal_(-torch.inf).logsumexp(1) + math.log(4)  # (6,): each other image four times
    assert torch.allclose(losses.info_nce(y1, y2), (others - 1 / 0.1).mean())


# ---------------------------------------------------------------- the second term
def test_a_structured_network_with_the_cycle_is_a_fixed_point(double):
    f, x, g = exact(), blobs(6, 29), torch.tensor([1, 2, 3, 1, 2, 3])  # x (6, 1, 29, 29)
    A = cycle().double().requires_grad_()
    v, moved = as_fibers(f(x)), as_fibers(f(C4.T(x, g)))  # (6, 4, C) twice
    assert (moved - v).pow(2).sum() > 1e-3 * v.pow(2).sum(), "the null is not 0"
    error = equation1(moved, v, A, g)
    gradients = torch.autograd.grad(error, [A, *f.parameters()])
    assert error < 1e-10 and max(d.abs().max() for d in gradients) < 1e-10
    assert equation1(moved, v, torch.eye(4), g) == 1, "Γ_g = 1 is the null"
    found = measure(f, cycle(), x)
    assert max(found["over_null"] + found["orbit"] + found["best"]) < 1e-6 < 1e-2 < min(found["invariance"]) and found["cyclic"] == 0


def test_the_network_without_structure_can_meet_eq1_exactly(double):
    """CNN holds every network for rotations: one setting of its weights has the same features."""
    f, plain, x = exact(), CNN(width=0.125, order=4).eval(), blobs(4, 29)
    for layer, (conv, norm) in enumerate(zip(f.convs, f.norms)):
        kernels = [conv.kernel(r).detach() for r in range(4)]  # four of (C_out, C_in, k, k)
        weight = torch.zeros_like(plain.net.convs[layer].weight)  # (C_out', C_in', k, k), zero between different fibers
        out = len(kernels[0])
        for r, kernel in enumerate(kernels):
            seen = slice(None) if layer == 0 else slice(r * kernel.shape[1], (r + 1) * kernel.shape[1])
            weight[r * out:(r + 1) * out, seen] = kernel
        plain.net.convs[layer].weight.data = weight
        plain.net.norms[layer].load_state_dict({k: t.repeat(4) if t.dim() else t for k, t in norm.state_dict().items()})
    assert torch.allclose(plain(x), f(x), atol=1e-12)
    assert max(measure(plain, cycle(), x)["orbit"]) < 1e-6


def test_over_images_an_invariant_f_is_a_solution_and_over_the_null_it_is_not(double):
    v, g = torch.randn(6, 4, 3).mean(1, keepdim=True).expand(-1, 4, -1), torch.tensor([1, 2, 3, 1, 2, 3])  # (6, 4, 3): four equal fibers
    moved = v + 1e-3 * torch.randn(6, 4, 3)
    assert equation1(moved, v, cycle().double(), g, over="images") < 1e-5 < 0.5 < equation1(moved, v, cycle().double(), g)
    apart = torch.pdist(torch.cat([v, moved]).flatten(1)).pow(2).mean()  # ‖a - b‖² of two different rows
    expected = ((moved - v).pow(2).sum((1, 2)) + (v - moved).pow(2).sum((1, 2))).mean() / 2 / apart
    assert torch.allclose(equation1(moved, v, torch.eye(4), g, over="images"), expected)


def test_one_way_is_met_by_a_projection_that_is_no_action_and_both_ways_is_not(double):
    """A = 0 with f = 0 on turned images: why the inverse is asked for too."""
    v, g = torch.randn(6, 4, 3), torch.tensor([1, 2, 3, 1, 2, 3])  # (6, 4, 3), (6,)
    moved, A = torch.zeros_like(v), torch.zeros(4, 4)  # (6, 4, 3), (4, 4)
    assert equation1(moved, v, A, g, one_way=True) == 0
    assert equation1(moved, v, A, g) == 0.5


def test_the_null_with_gradient_rewards_neither_a_smaller_nor_a_more_invariant_f(double):
    v, moved, g, A = torch.randn(6, 4, 3), torch.randn(6, 4, 3), torch.tensor([1, 2, 3, 1, 2, 3]), cycle().double()
    c = torch.ones((), requires_grad=True)  # f → c·f
    grad, = torch.autograd.grad(equation1(c * moved, c * v, A, g), c)
    assert abs(grad) < 1e-12
    nearly = v + 1e-3 * (moved - v)  # (6, 4, 3): f(T_g x) nearly f(x)
    assert equation1(nearly, v, A, g) > 1e3, "an invariant f is no solution unless Γ_g f = f"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_or_invariant_network_is_told(dtype):
    x, g = blobs(6, 29, dtype=dtype), torch.tensor([1, 2, 3, 1, 2, 3])  # (6, 1, 29, 29), (6,)
    invariant = lambda x: x.mean((-2, -1))[..., None].expand(-1, 4, 3)  # (6, 4, 3): equal but for the order of the sum
    for f in (lambda x: x.new_ones(len(x), 4, 3), lambda x: x.new_zeros(len(x), 4, 3), invariant):
        with pytest.raises(ValueError, match="0/0"):
            equation1(f(C4.T(x, g)), f(x), cycle().to(dtype), g)


def test_measure_has_no_number_for_a_constant_network():
    class Constant(nn.Module):
        pool = "mean"

        def forward(self, x):
            return x.new_ones(len(x), 3, 4, 1, 1)  # (B, 3, 4, 1, 1)
    found = measure(Constant(), cycle(), blobs(6, 29, dtype=torch.float32))
    assert all(found[name] == [None] * 3 for name in ("invariance", "equation1", "axis", "over_null", "orbit", "best"))


def test_measure_agrees_with_the_distances_of_losses(double):
    """With a structured network and the cycle: the same three distances, whatever the network's error (here it is broken)."""
    f, x = exact(), blobs(6, 29)
    f.convs[0].register_buffer("delta", 0.1 * torch.randn(4, *f.convs[0].weight[:, 0].shape))
    theirs = losses.distances(f, x, C4, torch.arange(1, 4), torch.arange(4))
    found = measure(f, cycle(), x)
    assert min(theirs["equation1"]) > 1e-3
    assert all(found[name] == pytest.approx(theirs[name], rel=1e-9) for name in theirs)


# ---------------------------------------------------------------- learning
class Small(nn.Sequential):
    """A linear map with a BatchNorm, which remembers how many images it was given: z (B, 3, 4, 1, 1)."""

    pool = "mean"

    def forward(self, x):
        self.seen = getattr(self, "seen", []) + [len(x)]
        return super().forward(x)


def small():
    return Small(nn.Flatten(), nn.Linear(841, 12), nn.BatchNorm1d(12), nn.Unflatten(1, (3, 4, 1, 1)))


@pytest.mark.parametrize("share, extra", [(0, 0), (0.25, 4), (1, 16)])
def test_the_share_is_the_number_of_images_that_are_turned(share, extra):
    x = (255 * blobs(32, 29, dtype=torch.float32)).clamp(0, 255).byte()  # (32, 1, 29, 29)
    f, h, A = small(), nn.Sequential(nn.Linear(3, 4)), nn.Parameter(start("random"))
    before = A.detach().clone()
    learn(f, h, A, x, share, epochs=2, batch_size=16)
    assert f.seen == [16 + extra] * 4
    assert torch.equal(A, before) == (share == 0), "A learns from the turned images, and from nothing else"


def test_given_A_does_not_learn_and_a_run_repeats():
    x = (255 * blobs(32, 29, dtype=torch.float32)).clamp(0, 255).byte()  # (32, 1, 29, 29)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        f, h, A = small(), nn.Sequential(nn.Linear(3, 4)), cycle()
        learn(f, h, A, x, epochs=2, batch_size=16)
        assert torch.equal(A, cycle())
        found.append(f[1].weight.detach())
    assert torch.equal(*found)


def test_the_starts():
    A = start("random")  # (4, 4)
    assert torch.allclose(A @ A.T, torch.eye(4), atol=1e-5) and not torch.equal(A, start("random"))
    assert (start("identity") - torch.eye(4)).abs().max() < 0.1 and not torch.equal(start("identity"), torch.eye(4))
    assert torch.equal(start("cycle"), cycle()) and cycle().det() == -1


@pytest.mark.parametrize("flags, told", [
    ("--share 2", "--share"), ("--lam -1", "--lam"), ("--seed x", "--seed"), ("--nothing", "--nothing"), ("--given --start cycle", "--given"), ("--share 0 --over images", "--over"),
    ("--share 0.001", "no image"), ("--share 0 --one-way", "--one-way"), ("--batch-size 5000", "4000"), ("--group scale", "--backbone cnn"), ("--group scale --backbone cnn --one-way", "one way")])
def test_bad_flags_are_usage_errors(flags, told):
    with pytest.raises(UsageError, match=told):
        main(flags.split())


def test_a_bad_flag_is_told_in_one_line():
    done = subprocess.run([sys.executable, os.path.join(ROOT, "homomorphism.py"), "--share", "2"], text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "--share" in done.stderr, done.stderr


def test_the_command_appends_one_row(tmp_path, monkeypatch, capsys):
    """On 64 digits made of arithmetic: the flags, what was found, and the same for the untrained network."""
    x, y = (255 * blobs(64, 29, dtype=torch.float32)).clamp(0, 255).byte(), torch.arange(64) % 4  # (64, 1, 29, 29), (64,)
    monkeypatch.setattr(probe, "linear_accuracy", functools.partial(probe.linear_accuracy, steps=3, epochs=1))  # seconds, not minutes
    monkeypatch.setattr(data, "load", lambda *args: data.Data(x, y, x, y, 4, "mnist"))
    for seed in "01":
        main(f"--width 0.05 --epochs 1 --batch-size 32 --seed {seed} --out {tmp_path / 'rows'}".split())
    rows = [json.loads(line) for line in open(tmp_path / "rows")]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows and [row["seed"] for row in rows] == [0, 1]
    assert set(rows[0]["untrained"]) < set(rows[0]) and rows[0]["untrained"]["invariance"] != rows[0]["invariance"]
