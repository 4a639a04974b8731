"""Two and three real processes do what one does: loss, gradients, statistics, in float64."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import relative
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from backbones import build
from groups import Rotation, Translation
from losses import ASSL, HSSL, AllGather, cosine_regression, info_nce
from syncnorm import synchronise

pytestmark = pytest.mark.slow
BATCH = 12
CASES = [
    ("hssl", "rot", "infonce"),
    ("assl", "trans", "infonce"),
    ("hssl", "scale", "infonce"),
    ("supervised", "rot", "infonce"),
    ("shifted", "scale", "bilinear"),
    ("hssl", "rot", "byol"),
    ("assl", "rot", "simsiam"),
]
LEARNS = dict(
    supervised={"f", "classifier"},
    bilinear={"f", "h", "W"},
    byol={"f", "h", "q"},
    simsiam={"f", "h", "q"},
)  # the others: f and h


class Model(nn.Module):
    """Everything that learns, and its loss, as a training needs them."""

    def __init__(self, loss, group, objective):
        super().__init__()
        self.f, self.h, self.classifier = build("mnist", group, width=1 / 16)
        self.loss, self.objective = loss, objective
        self.h.requires_grad_(loss != "supervised")
        self.classifier.requires_grad_(loss == "supervised")
        d = self.h[-1].num_features
        if objective == "bilinear":
            self.W = nn.Parameter(torch.eye(d) / d)
        if objective in ("byol", "simsiam"):
            self.q = nn.Sequential(nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU())
        if objective == "byol":
            self.target = copy.deepcopy(nn.ModuleList([self.f, self.h])).requires_grad_(False)
        self.draws = HSSL(self.f.group)
        if loss == "assl":
            images = Rotation() if group == "rot" else Translation(29, 29)
            self.draws = ASSL(self.f.group, images)

    def forward(self, x, labels, g0, g1, g2):
        if self.loss == "supervised":
            return F.cross_entropy(self.classifier(self.f(x)), labels)
        x2 = None
        if self.loss == "shifted":
            x2 = x.roll(2, -1)  # a change of the second view that is not drawn here
        y1, y2 = self.draws.views(self.f, self.h, x, g0, g1, g2, x2=x2)
        if self.objective == "simsiam":
            return cosine_regression(self.q(y1), self.q(y2), y1, y2)
        if self.objective == "byol":
            t1, t2 = self.draws.views(*self.target, x, g0, g1, g2)
            return cosine_regression(self.q(y1), self.q(y2), t1, t2)
        return info_nce(y1, y2, W=self.W if self.objective == "bilinear" else None)


def one_step(rank, world, loss, group, objective):
    """One training step of one process: its loss, and gradients, weights and buffers after it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Model(loss, group, objective).double().train()
    x = torch.rand(BATCH, 1, 29, 29, dtype=torch.float64)
    labels = torch.randint(10, (BATCH,))
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    drawn = [g[mine] for g in model.draws.draw(BATCH, torch.Generator().manual_seed(0))]
    if world > 1:
        model = synchronise(model)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = wrapped(x[mine], labels[mine], *drawn)
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
    for case in CASES:
        torch.save(one_step(rank, world, *case), f"{folder}/{'-'.join(case)}-{rank}.pt")
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    torch.save([gathered_loss(*form, part) for form in FORMS], f"{folder}/gathered-{rank}.pt")
    torch.save(shared_gradient(rank), f"{folder}/shared-{rank}.pt")
    for name in NORMS:
        torch.save(norm_step(*norm_case(name), part), f"{folder}/{name}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def many(request, tmp_path_factory):
    """The number of processes, and the folder with what each of them found in each case."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    mp.start_processes(worker, (request.param, str(folder)), nprocs=request.param)
    return request.param, folder


@functools.cache
def alone(*case):
    return one_step(0, 1, *case)


def close(ours, theirs, floor=1e-12):
    """Relative to 1e-10, or absolutely to `floor` (a gradient that is zero but for rounding, before
    a BatchNorm)."""
    return relative(ours, theirs) < 1e-10 or float((ours - theirs).norm()) < floor


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_many_processes_equal_one(many, case):
    world, folder = many
    expected_loss, grads, state = alone(*case)
    learns = LEARNS.get(case[0], LEARNS.get(case[2], {"f", "h"}))
    for rank in range(world):
        path = folder / f"{'-'.join(case)}-{rank}.pt"
        got_loss, got_grads, got_state = torch.load(path, weights_only=True)
        assert abs(float(got_loss - expected_loss)) < 1e-10
        assert grads.keys() == got_grads.keys() and {k.split(".")[0] for k in grads} == learns
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
