"""Total variation with any linear operator: the classical peer of all restoration benchmarks."""

import math

import torch


def total_variation(A, A_adjoint, y, weight, iterations=300, ratio=10.0, floor=None):
    """min |A x - y|^2 / 2 + weight |grad x| (Chambolle and Pock 2011, Algorithm 1).

    The problem is stated for A / |A|, which balances the two terms' steps: it converges much sooner.
    `floor`: least value of x, if there is one.
    """
    x = torch.zeros_like(A_adjoint(y))
    probe = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        probe = A_adjoint(A(probe))
        norm = float(probe.norm())
        probe = probe / norm
    scale = math.sqrt(norm)
    y, weight = y / scale, weight / norm
    step = 0.95 / math.sqrt(1 + 8)
    primal, dual = step * ratio, step / ratio
    ahead, p, q = x, torch.zeros_like(y), torch.zeros(2, *x.shape)
    for _ in range(iterations):
        p = (p + dual * (A(ahead) / scale - y)) / (1 + dual)
        q = q + dual * gradient(ahead)
        q = q / q.norm(dim=0).div(weight).clamp(min=1)
        new = x - primal * (A_adjoint(p) / scale - divergence(q))
        new = new if floor is None else new.clamp(min=floor)
        ahead, x = 2 * new - x, new
    return x


def gradient(x):
    g = torch.zeros(2, *x.shape)
    g[0, ..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    g[1, ..., :, :-1] = x[..., :, 1:] - x[..., :, :-1]
    return g


def divergence(q):
    d = torch.zeros_like(q[0])
    d[..., :-1, :] += q[0][..., :-1, :]
    d[..., 1:, :] -= q[0][..., :-1, :]
    d[..., :, :-1] += q[1][..., :, :-1]
    d[..., :, 1:] -= q[1][..., :, :-1]
    return d
