"""Two and three real processes do what one does: loss, gradients, running statistics and one LARS step, in float64."""
import argparse
import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import relative
from torch.nn.parallel import DistributedDataParallel

import train
from backbones import build
from launch import synchronise
from losses import Draws, info_nce

pytestmark = pytest.mark.slow
BATCH = 12


def one_step(rank, world, loss, group, objective):
    """One training step of one process: its loss, and gradients, weights and buffers after it."""
    args = argparse.Namespace(loss=loss, group=group, tau=0.1, objective=objective)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    f, h, classifier = build("mnist", args.group, width=1 / 16)
    draws = Draws(args.loss, args.group, True, f.order, 29, 8, f.stride)
    model = train.Objective(args, f, h, classifier, draws).double().train()
    x, labels = torch.rand(BATCH, 1, 29, 29, dtype=torch.float64), torch.randint(10, (BATCH,))
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    drawn = [g[mine] for g in draws(BATCH, train.seeded(0, 0, 2))]
    if world > 1:
        model = synchronise(model)
    optimizer = train.LARS([p for p in model.parameters() if p.requires_grad], lr=1.0)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    loss, _, _ = wrapped(x[mine], labels[mine], *drawn)
    loss.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    loss = loss.detach()
    if world > 1:
        dist.all_reduce(loss)
        loss /= world
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return loss, grads, state


CASES = [("hssl", "rot", "infonce"), ("assl", "trans", "infonce"), ("hssl", "scale", "infonce"), ("supervised", "rot", "infonce"),
         ("hybrid", "scale", "bilinear"), ("hssl", "rot", "byol"), ("assl", "rot", "simsiam")]

LEARNS = dict(supervised={"f", "classifier"}, bilinear={"f", "h", "W"}, byol={"f", "h", "q"}, simsiam={"f", "h", "q"})  # others: f and h


def worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for case in CASES:
        torch.save(one_step(rank, world, *case), f"{folder}/{'-'.join(case)}-{rank}.pt")
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    torch.save([gathered_loss(*form, part) for form in FORMS], f"{folder}/gathered-{rank}.pt")
    for name in SHAPES:
        torch.save(norm_step(*norm_case(name), part), f"{folder}/{name}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def many(request, tmp_path_factory, nursery):
    """The number of processes, and the folder with what each of them found in each case."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    mp.start_processes(worker, (request.param, str(folder)), nprocs=request.param, start_method="forkserver")
    return request.param, folder


@functools.cache
def alone(*case):
    return one_step(0, 1, *case)


def close(ours, theirs, floor=1e-12):
    """Relative to 1e-10, or absolutely to `floor` (a gradient that is zero but for rounding, before a BatchNorm)."""
    return relative(ours, theirs) < 1e-10 or float((ours - theirs).norm()) < floor


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_many_processes_equal_one(many, case):
    world, folder = many
    expected_loss, grads, state = alone(*case)
    for rank in range(world):
        got_loss, got_grads, got_state = torch.load(folder / f"{'-'.join(case)}-{rank}.pt", weights_only=True)
        assert abs(float(got_loss - expected_loss)) < 1e-10
        assert grads.keys() == got_grads.keys() and {k.split(".")[0] for k in grads} == LEARNS.get(case[0], LEARNS.get(case[2], {"f", "h"}))
        for k in grads:
            assert close(got_grads[k], grads[k]), k
        for k in state:
            assert close(got_state[k], state[k]), k


def gathered_loss(denominator, bilinear, part=slice(None)):
    """InfoNCE on a part of one batch of views: the loss and its gradient."""
    torch.manual_seed(0)
    y, W = torch.randn(2, BATCH, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)  # W is not symmetric
    y = y[:, part].clone().requires_grad_()
    loss = info_nce(y[0], y[1], 0.1, denominator, W if bilinear else None)
    loss.backward()
    return loss.detach(), y.grad


FORMS = [("paper", False), ("ntxent", False), ("ntxent", True)]


def test_negatives_are_gathered_with_gradient(many):
    """The mean of the ranks' losses is the one-process loss, and its gradient is theirs over the number of ranks."""
    world, folder = many
    ranks = [torch.load(folder / f"gathered-{rank}.pt", weights_only=True) for rank in range(world)]
    for form, *parts in zip(FORMS, *ranks, strict=True):
        loss, grad = gathered_loss(*form)
        assert abs(float(sum(p[0] for p in parts) / world - loss)) < 1e-12
        assert relative(torch.cat([p[1] for p in parts], 1) / world, grad) < 1e-12


# ---------------------------------------------------------------- BatchNorm by itself
SHAPES = {"maps": (BATCH, 5, 3, 3), "vectors": (BATCH, 5)}


def norm_case(name):
    """x with means far from 0 and different on each process, the weights of its output in the loss, and a BatchNorm."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    x = torch.randn(shape, dtype=torch.float64) * 3 + torch.arange(BATCH).view(-1, *[1] * (len(shape) - 1)) + 50
    norm = (torch.nn.BatchNorm2d if len(shape) > 2 else torch.nn.BatchNorm1d)(5).double()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    return x, torch.randn(shape, dtype=torch.float64), norm


def norm_step(x, weight, norm, part=slice(None)):
    """Two forward and backward passes of a part of x: what can be compared, the output in evaluation mode, and the state."""
    if dist.is_initialized():
        norm = synchronise(torch.nn.Sequential(norm))[0]
    x = x[part].requires_grad_()
    for _ in range(2):  # statistics move twice
        x.grad = norm.weight.grad = norm.bias.grad = None
        y = norm(x)
        (y * weight[part]).sum().backward()
    if dist.is_initialized():
        for p in norm.parameters():
            dist.all_reduce(p.grad)
    found = [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return found, norm.eval()(x).detach(), norm.state_dict()


@pytest.mark.parametrize("name", SHAPES)
def test_batchnorm_of_many_processes_is_that_of_one(many, name):
    """Outputs, all gradients and running statistics to 1e-10."""
    world, folder = many
    ranks = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]
    found, evaluated, state = norm_step(*norm_case(name))
    joined = [torch.cat([r[0][i] for r in ranks]) for i in (0, 1)]
    assert relative(joined[0], found[0]) < 1e-10 and relative(joined[1], found[1]) < 1e-10
    for theirs, _, their_state in ranks:
        assert all(relative(a.double(), b.double()) < 1e-10 for a, b in zip(theirs[2:], found[2:], strict=True))
        assert list(their_state) == list(state)
    assert relative(torch.cat([r[1] for r in ranks]), evaluated) < 1e-10
