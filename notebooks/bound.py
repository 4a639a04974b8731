"""A bound on |Eq. 2 - Eq. 3|: a constant times the largest distance of the sides of Eq. 1.

For notebook 03, where the proof stands, and its test.  Needs backbones.py and losses.py.
"""

import torch
from torch import nn

from losses import a_ssl, h_ssl, info_nce


def lipschitz(h):
    """A Lipschitz constant of a projection head in evaluation mode: the product over its layers.

    ‖h(a) - h(b)‖ <= lipschitz(h)·‖a - b‖.  A linear layer has its largest singular value, a
    BatchNorm its largest factor weight/√(variance + eps), a ReLU 1."""
    constant = 1.0
    for layer in h:
        if isinstance(layer, nn.Linear):
            constant *= torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
        elif isinstance(layer, nn.BatchNorm1d):
            factor = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
            constant *= factor.abs().max().item()
    return constant


@torch.no_grad()
def gap_and_bound(f, h, x, g0, g1, g2, tau=0.1):
    """|L_A - L_H| and its bound 4·Lip(h)·e/(τ·m), two floats.

    e is the largest ‖f(T_g x)(g0) - f(x)(g⁻¹·g0)‖ among all images and both g;
    m is the smallest mean length of an output of h in Eq. 2 and its partner in Eq. 3.

    f, h    in evaluation mode
    x       (B, C_in, H, W) images
    g0, g1, g2   as for `h_ssl`"""
    a = torch.cat(a_ssl(f, h, x, f.group, g0, g1, g2))  # (2B, D)
    b = torch.cat(h_ssl(f, h, x, g0, g1, g2))  # (2B, D)
    errors = []
    for g in (g1, g2):
        moved = f.bundle(f.group.T(x, g), g0)  # (B, |g0|·C)
        along = f.bundle(x, f.group.shift_base(g, g0))  # (B, |g0|·C)
        errors.append((moved - along).norm(dim=1))
    e = float(torch.cat(errors).max())
    m = float((a.norm(dim=1) + b.norm(dim=1)).min()) / 2
    gap = info_nce(*a.chunk(2), tau) - info_nce(*b.chunk(2), tau)
    return abs(float(gap)), 4 * lipschitz(h) * e / (tau * m)
