"""Notebook 06: Γ and its gradient, the loss at known networks, and where it has no meaning."""

import math
import os
import sys

import pytest
import torch
from conftest import ROOT, as_bytes, blobs
from torch import nn

import groups
import losses
import probe
from backbones import CNN, MNISTNet

sys.path.append(os.path.join(ROOT, "notebooks"))
from homomorphism import C4, Gamma, cycle, equation1, four_fibers, learn, measure, views

pytestmark = pytest.mark.slow
G = torch.tensor([1, 2, 3, 1, 2, 3])  # (6,)


def exact(width=0.125):
    """A network for rotations in float64, whose BatchNorm has statistics of its own."""
    f = MNISTNet(rotations=4, width=width)
    f(blobs(8, 29))
    return f.eval()


# ---------------------------------------------------------------- Γ
def test_the_cycle_is_what_a_quarter_turn_does_to_a_structured_network(double):
    v = torch.randn(5, 4, 3)
    g = torch.tensor([0, 1, 2, 3, 1])
    z = v.transpose(1, 2)[..., None, None]  # (5, 3, 4, 1, 1): without space, Γ only moves the slots
    assert torch.equal(Gamma(cycle().double(), v, g), groups.fibers(C4.Gamma(z, g), C4))
    assert cycle().det() == -1


def test_gamma_is_an_action_for_the_cycle_and_not_for_another_matrix(double):
    v = torch.randn(6, 4, 3)
    a = torch.tensor([3, 0, 2, 3, 1, 2])
    b = torch.tensor([1, 2, 3, 3, 2, 1])
    for A, is_action in ((cycle().double(), True), (torch.randn(4, 4), False)):
        gap = (Gamma(A, Gamma(A, v, a), b) - Gamma(A, v, C4.product(a, b))).abs().max()
        assert (gap < 1e-14) == is_action


def test_gradients(double):
    A = torch.randn(4, 4, requires_grad=True)
    v = torch.randn(6, 4, 2, requires_grad=True)
    moved = torch.randn(6, 4, 2, requires_grad=True)
    for one_way in (False, True):

        def error(moved, v, A, one_way=one_way):
            return equation1(moved, v, A, G, one_way)

        assert torch.autograd.gradcheck(error, (moved, v, A))


def test_the_sixteen_slots_of_the_mlp_become_four_blocks():
    f = nn.Identity()  # its images are its fibers
    f.read = lambda z: z
    v = four_fibers(f, torch.arange(16.0).view(1, 16, 1))
    assert v.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]]


# ---------------------------------------------------------------- the first term
def test_with_the_cycle_the_views_are_those_of_h_ssl(double):
    f = exact()
    h = nn.Linear(32, 5)
    x = blobs(6, 29)
    g0 = torch.tensor([[0, 1]]).expand(6, -1)
    g1, g2 = torch.randint(4, (2, 6))
    ours = views(four_fibers(f, x), h, cycle().double(), g0, g1, g2)
    theirs = losses.h_ssl(f, h, x, g0, g1, g2)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs))
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_with_the_identity_the_views_are_equal_and_only_negatives_are_left(double):
    g1, g2 = torch.randint(4, (2, 6))
    g0 = torch.zeros(6, 1, dtype=torch.long)
    y1, y2 = views(torch.randn(6, 4, 3), nn.Linear(3, 5), torch.eye(4), g0, g1, g2)
    assert (y1 - y2).abs().max() < 1e-12
    y = nn.functional.normalize(y1, dim=1)  # (6, 5)
    others = (y @ y.T / 0.1).fill_diagonal_(-torch.inf).logsumexp(1) + math.log(4)  # each image 4 ×
    assert torch.allclose(losses.info_nce(y1, y2), (others - 1 / 0.1).mean())


# ---------------------------------------------------------------- the second term
def test_a_structured_network_with_the_cycle_is_a_fixed_point(double):
    f = exact()
    x = blobs(6, 29)
    A = cycle().double().requires_grad_()
    v = four_fibers(f, x)
    moved = four_fibers(f, C4.T(x, G))
    assert (moved - v).pow(2).sum() > 1e-3 * v.pow(2).sum(), "the null is not 0"
    error = equation1(moved, v, A, G)
    gradients = torch.autograd.grad(error, [A, *f.parameters()])
    assert error < 1e-10 and max(d.abs().max() for d in gradients) < 1e-10
    assert equation1(moved, v, torch.eye(4), G) == 1, "Γ_g = 1 is the null"
    found = measure(f, cycle(), x)
    assert max(found["over_null"] + found["orbit"]) < 1e-6 < 1e-2 < min(found["invariance"])


def test_the_network_without_structure_can_meet_eq1_exactly(double):
    """CNN holds every network for rotations: one setting of its weights has the same features."""
    f = exact()
    plain = CNN(width=0.125, order=4).eval()
    x = blobs(4, 29)
    for layer, (conv, norm) in enumerate(zip(f.convs, f.norms)):
        kernels = torch.stack([conv.kernel(r).detach() for r in range(4)])  # (4, C_out, C_in, k, k)
        _, c_out, c_in, k, _ = kernels.shape
        weight = kernels.flatten(0, 1)  # (4·C_out, C_in, k, k)
        if layer:
            weight = torch.zeros(4, c_out, 4, c_in, k, k)  # zero between different slots
            weight[range(4), :, range(4)] = kernels
            weight = weight.flatten(2, 3).flatten(0, 1)  # (4·C_out, 4·C_in, k, k)
        plain.net.convs[layer].weight.data = weight
        state = {name: t.repeat(4) if t.dim() else t for name, t in norm.state_dict().items()}
        plain.net.norms[layer].load_state_dict(state)
    assert torch.allclose(plain(x), f(x), atol=1e-12)
    assert max(measure(plain, cycle(), x)["orbit"]) < 1e-6


def test_one_way_is_met_by_a_projection_that_is_no_action_and_both_ways_is_not(double):
    """A = 0 with f = 0 on turned images: why the inverse is asked for too."""
    v = torch.randn(6, 4, 3)
    moved = torch.zeros_like(v)
    A = torch.zeros(4, 4)
    assert equation1(moved, v, A, G, one_way=True) == 0
    assert equation1(moved, v, A, G) == 0.5


def test_neither_a_smaller_nor_an_invariant_f_is_rewarded(double):
    v, moved = torch.randn(2, 6, 4, 3)
    c = torch.ones((), requires_grad=True)  # f → c·f
    A = cycle().double()
    (grad,) = torch.autograd.grad(equation1(c * moved, c * v, A, G), c)
    assert abs(grad) < 1e-12
    nearly = v + 1e-3 * (moved - v)  # f(T_g x) nearly f(x)
    assert equation1(nearly, v, A, G) > 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_or_invariant_network_is_told(dtype):
    x = blobs(6, 29, dtype=dtype)
    invariant = [t.mean((-2, -1))[..., None].expand(-1, 4, 3) for t in (C4.T(x, G), x)]
    for moved, v in (invariant, [x.new_ones(6, 4, 3)] * 2, [x.new_zeros(6, 4, 3)] * 2):
        with pytest.raises(ValueError, match="0/0"):
            equation1(moved, v, cycle().to(dtype), G)


def test_measure_agrees_with_probe(double):
    """With a structured network and the cycle, also if the network is broken."""
    f = exact()
    x = blobs(6, 29)
    f.convs[0].register_buffer("delta", 0.1 * torch.randn(4, *f.convs[0].weight[:, 0].shape))
    theirs = probe.distances(f, x, C4, torch.arange(1, 4), torch.arange(4))
    found = measure(f, cycle(), x)
    assert min(theirs["equation1"]) > 1e-3
    for name in ("invariance", "equation1", "axis"):
        assert found[name] == pytest.approx(theirs[name], rel=1e-9)


# ---------------------------------------------------------------- learning
class Small(nn.Sequential):
    """A linear map with a BatchNorm that remembers how many images it was given: v (B, 4, 3)."""

    def __init__(self):
        flat = nn.Flatten(), nn.Linear(841, 12), nn.BatchNorm1d(12), nn.Unflatten(1, (4, 3))
        super().__init__(*flat)
        self.seen = []

    def read(self, v):
        return v

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


def pixels():
    return as_bytes(blobs(32, 29, dtype=torch.float32))  # (32, 1, 29, 29)


@pytest.mark.parametrize("share, extra", [(0, 0), (0.25, 4), (1, 16)])
def test_the_share_is_the_number_of_images_that_are_turned(share, extra):
    f = Small()
    A = nn.Parameter(nn.init.orthogonal_(torch.empty(4, 4)))
    before = A.detach().clone()
    steps = []
    learn(f, nn.Linear(3, 4), A, pixels(), share, epochs=2, batch_size=16, watch=steps.append)
    assert f.seen == [16 + extra] * 4 and steps == [0, 1, 2, 3]
    assert torch.equal(A, before) == (share == 0), "A learns from the turned images alone"


def test_a_given_A_does_not_learn_and_a_run_repeats():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        f = Small()
        A = cycle()
        learn(f, nn.Linear(3, 4), A, pixels(), epochs=2, batch_size=16)
        assert torch.equal(A, cycle())
        found.append(f[1].weight.detach())
    assert torch.equal(*found)


def test_learning_lowers_the_error_of_eq1():
    torch.manual_seed(0)
    f = Small()
    x = pixels()
    error = []
    for epochs in (0, 20):
        if epochs:
            learn(f, nn.Linear(3, 4), cycle(), x, 1, epochs=epochs, batch_size=16)
        error.append(sum(measure(f.eval(), cycle(), x.float() / 255)["over_null"]))
    assert error[1] < 0.8 * error[0], error
