"""Two and three real processes do what one does: loss, gradients, statistics, in float64."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import relative
from test_train import objective
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from losses import AllGather, info_nce
from syncnorm import synchronise

pytestmark = pytest.mark.slow
BATCH = 12
CASES = [
    "--loss hssl --group rot",
    "--loss assl --group trans",
    "--loss hssl --group scale",
    "--loss supervised --group rot",
    "--loss hssl --group scale --augment shift --objective bilinear",
    "--loss hssl --group rot --objective byol",
    "--loss assl --group rot --objective simsiam",
]


def one_step(rank, world, flags):
    """One training step of one process: its loss, and gradients, weights and buffers after it."""
    torch.set_num_threads(1)
    model = objective(flags).double()  # and the same random numbers from here on
    x, x2 = torch.rand(2, BATCH, 1, 29, 29, dtype=torch.float64)
    labels = torch.randint(3, (BATCH,))
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    x2 = x2[mine] if "--augment" in flags else None
    drawn = [g[mine] for g in model.pairs.draw(BATCH, torch.Generator().manual_seed(0))]
    if world > 1:
        model = synchronise(model)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss, _, _ = wrapped(x[mine], x2, labels[mine], *drawn)
    loss.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    loss = loss.detach()
    if world > 1:
        dist.all_reduce(loss)
        loss /= world
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return loss, grads, state


def worker(rank, world, folder):
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    for flags in CASES:
        torch.save(one_step(rank, world, flags), f"{folder}/{flags}-{rank}.pt")
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    torch.save([gathered_loss(*form, part) for form in FORMS], f"{folder}/gathered-{rank}.pt")
    torch.save(shared_gradient(rank), f"{folder}/shared-{rank}.pt")
    for name in NORMS:
        torch.save(norm_step(*norm_case(name), part), f"{folder}/{name}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def many(request, nursery, tmp_path_factory):
    """The number of processes, and the folder with what each of them found in each case."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    args = (request.param, str(folder))
    mp.start_processes(worker, args, nprocs=request.param, start_method="forkserver")
    return request.param, folder


@functools.cache
def alone(flags):
    return one_step(0, 1, flags)


def close(ours, theirs, floor=1e-12):
    """Relative to 1e-10, or absolutely to `floor` (a gradient that is zero but for rounding, before
    a BatchNorm)."""
    return relative(ours, theirs) < 1e-10 or float((ours - theirs).norm()) < floor


@pytest.mark.parametrize("flags", CASES)
def test_many_processes_equal_one(many, flags):
    world, folder = many
    expected_loss, grads, state = alone(flags)
    for rank in range(world):
        found = torch.load(folder / f"{flags}-{rank}.pt", weights_only=True)
        got_loss, got_grads, got_state = found
        assert abs(float(got_loss - expected_loss)) < 1e-10
        assert grads.keys() == got_grads.keys()
        for k in grads:
            assert close(got_grads[k], grads[k]), k
        for k in state:
            assert close(got_state[k], state[k]), k


# ---------------------------------------------------------------- the gather
def gathered_loss(denominator, bilinear, part=slice(None)):
    """InfoNCE on a part of one batch of views: the loss and its gradient."""
    torch.manual_seed(0)
    y = torch.randn(2, BATCH, 5, dtype=torch.float64)
    W = torch.randn(5, 5, dtype=torch.float64)  # not symmetric
    y = y[:, part].clone().requires_grad_()
    loss = info_nce(y[0], y[1], 0.1, denominator, W if bilinear else None)
    loss.backward()
    return loss.detach(), y.grad


FORMS = [("paper", False), ("ntxent", False), ("ntxent", True)]


def test_negatives_are_gathered_with_gradient(many):
    """The mean of the ranks' losses is the one-process loss, and its gradient is theirs over the
    number of ranks."""
    world, folder = many
    ranks = [torch.load(folder / f"gathered-{rank}.pt", weights_only=True) for rank in range(world)]
    for form, *parts in zip(FORMS, *ranks, strict=True):
        loss, grad = gathered_loss(*form)
        assert abs(float(sum(p[0] for p in parts) / world - loss)) < 1e-12
        assert relative(torch.cat([p[1] for p in parts], 1) / world, grad) < 1e-12


def shared_gradient(rank):
    """Two gathers whose sum is used get one and the same gradient tensor."""
    a = torch.full((3,), float(rank), requires_grad=True)
    b = torch.full((3,), float(rank), requires_grad=True)
    total = AllGather.apply(a) + AllGather.apply(b)  # (R, 3)
    total.backward(torch.full_like(total, 2.0))
    return a.grad, b.grad


def test_two_gathers_may_share_a_gradient(many):
    """Each is the sum over the processes, 2 from each of them: neither changes the other's."""
    world, folder = many
    for rank in range(world):
        for grad in torch.load(folder / f"shared-{rank}.pt", weights_only=True):
            assert torch.equal(grad, torch.full((3,), 2.0 * world))


# ---------------------------------------------------------------- BatchNorm by itself
MAPS = (BATCH, 5, 3, 3)
NORMS = {  # the shape of x, and the options of BatchNorm
    "maps": (MAPS, {}),
    "vectors": ((BATCH, 5), {}),
    "volumes": ((BATCH, 5, 2, 2, 2), {}),
    "momentum None": (MAPS, dict(momentum=None)),
    "momentum 0.3, eps": (MAPS, dict(momentum=0.3, eps=0.1)),
    "affine False": (MAPS, dict(affine=False)),
    "track_running_stats False": (MAPS, dict(track_running_stats=False)),
    "none of them": (MAPS, dict(affine=False, track_running_stats=False, momentum=None)),
}


def norm_case(name):
    """x with means far from 0 and different on each process, the weights of its output in the loss,
    and a BatchNorm."""
    torch.manual_seed(0)
    shape, options = NORMS[name]
    far = torch.arange(BATCH).view(-1, *[1] * (len(shape) - 1)) + 50
    x = torch.randn(shape, dtype=torch.float64) * 3 + far
    kinds = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    norm = kinds[len(shape)](5, **options).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    return x, torch.randn(shape, dtype=torch.float64), norm


def norm_step(x, weight, norm, part=slice(None)):
    """Two forward and backward passes of a part of x: output and gradient of x, what must be equal
    everywhere, the output in evaluation mode (without statistics: of this part), and the names."""
    if dist.is_initialized():
        norm = synchronise(norm)  # the module itself
    x = x[part].requires_grad_()
    for _ in range(2):  # statistics move twice
        x.grad = None
        norm.zero_grad()
        y = norm(x)
        (y * weight[part]).sum().backward()
    grads = [p.grad for p in norm.parameters()]
    if dist.is_initialized():
        for grad in grads:
            dist.all_reduce(grad)
    same = [*grads, *norm.buffers()]
    return [y.detach(), x.grad], same, norm.eval()(x).detach(), list(norm.state_dict())


@pytest.mark.parametrize("name", NORMS)
def test_batchnorm_of_many_processes_is_that_of_one(many, name):
    """Outputs, all gradients and running statistics to 1e-10, with every option."""
    world, folder = many
    ranks = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]
    (y, grad), same, evaluated, names = norm_step(*norm_case(name))
    assert relative(torch.cat([r[0][0] for r in ranks]), y) < 1e-10
    assert relative(torch.cat([r[0][1] for r in ranks]), grad) < 1e-10
    for _, theirs, _, their_names in ranks:
        assert their_names == names
        for a, b in zip(theirs, same, strict=True):
            assert relative(a.double(), b.double()) < 1e-10
    if "running_mean" in names:
        assert relative(torch.cat([r[2] for r in ranks]), evaluated) < 1e-10


def test_another_class_of_batchnorm_is_refused_by_name():
    class Mine(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="Mine"):
        synchronise(nn.Sequential(Mine(3)))
    with pytest.raises(ValueError, match="LazyBatchNorm2d"):
        synchronise(nn.LazyBatchNorm2d())
    norm = synchronise(synchronise(nn.BatchNorm2d(3)))  # twice is once
    assert isinstance(synchronise(nn.Sequential(norm))[0], type(norm))
