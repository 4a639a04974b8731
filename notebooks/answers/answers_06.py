"""Answers to the exercises of notebook 06: python notebooks/answers/answers_06.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import torch

import data
import show
from backbones import MNISTNet
from homomorphism import C4, Gamma, cycle, equation1, four_fibers, learn, measure, network

digits = data.load("mnist5k")
torch.manual_seed(0)


# ---------------------------------------------------------------- the fill-in
def my_Gamma(A, v, g):
    moved = v.clone()
    for b in range(len(v)):
        for _ in range(int(g[b])):
            moved[b] = A @ moved[b]
    return moved


A = torch.randn(4, 4).double()
v = torch.randn(5, 4, 3).double()
g = torch.tensor([0, 1, 2, 3, 1])
assert torch.allclose(my_Gamma(A, v, g), Gamma(A, v, g), atol=1e-12)
print("fill-in: my_Gamma is right")


# ---------------------------------------------------------------- 1. find the bug
def backwards(A, v, g):
    return Gamma(A, v, C4.inverse(g))


x = digits.test_x[:64].double() / 255  # (64, 1, 29, 29)
built = show.fed(MNISTNet(rotations=4, width=0.25).double(), x)
C = cycle().double()
with torch.no_grad():
    turns = [torch.full((64,), k) for k in range(4)]
    exact = torch.stack([four_fibers(built, C4.T(x, g)) for g in turns])  # (4, 64, 4, C)
errors = {}
for name, act in (("A^g", Gamma), ("A^(4-g)", backwards)):
    errors[name] = []
    for k in (1, 2, 3):
        errors[name].append(show.equation1(exact[k], act(C, exact[0], turns[k]), exact[0]))
    print(f"1: {name:8}", " ".join(f"{error:.2f}" for error in errors[name]))
a, b = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T  # (16,) each
v = torch.randn(1, 4, 3).double().expand(16, -1, -1)
law = backwards(C, backwards(C, v, b), a) - backwards(C, v, C4.product(a, b))
assert law.abs().max() < 1e-12  # the law shows nothing
assert max(errors["A^g"]) < 1e-10
assert errors["A^(4-g)"][1] < 1e-10 < 0.1 < min(errors["A^(4-g)"][0], errors["A^(4-g)"][2])
# If f learns too, nothing shows it: f with slots 1 and 3 exchanged fits the wrong Γ as well.
g = torch.arange(64) % 3 + 1
swap = torch.tensor([0, 3, 2, 1])
moved = exact[g, torch.arange(64)][:, swap]
assert equation1(moved, exact[0][:, swap], C.inverse(), g) < 1e-10

# ---------------------------------------------------------------- 2. predict, then run
x = digits.test_x[:256].float() / 255
found = {}
loss = {}
for share in (None, 0, 0.1):  # None: untrained
    torch.manual_seed(0)
    f, h = network(digits, width=0.25)
    if share is None:
        f = show.fed(f, digits.train_x[:256].float() / 255)
    else:
        loss[share] = learn(f, h, cycle(), digits.train_x, share, epochs=10)
    found[share] = measure(f.eval(), cycle(), x)
    print("2: untrained" if share is None else f"2: share {share}, loss {loss[share]:.2f}")
    for key, name in (("over_null", "error of Eq. 1"), ("invariance", "change under g")):
        print(f"     {name}", " ".join(f"{value:.2f}" for value in found[share][key]))
assert min(found[0]["over_null"]) > 1 > 0.5 > max(found[0.1]["over_null"])
assert loss[0] < loss[0.1]  # one term fewer; two losses of two settings do not compare
