"""The operation in torch with a hand-written backward: what runs where no compiled kernel does.

What autograd would keep for backward is of the output's size once per head; written by hand it is x, z (R, N) and
g (E, N). Two things make it quick on a CPU. A and R are stacked, so that one skinny product gives z and the router's
logits, and the branch is accumulated into the base product's memory. And everything small lies transposed, with the
N rows along the last axis: a softmax over E = 3 neighbours in memory is scalar code (240 µs for 4000 rows), the same
over the first axis is vectorised (7 µs). Products run in the dtype of x, the softmax in float32.
"""

import torch
import torch.nn.functional as F


def forward(x, weight, bias, A, R, B, scaling, keep, keep_scale):
    """Returns y (N, out), z (R, N) in the dtype of x and g (E, N) in float32 (float64 for float64).

    Arguments as in `reference.fused`; all of one dtype and device.
    """
    rank = len(A)
    if keep is None:
        zl = torch.cat([A, R]) @ x.t()                      # (R + E, N)
        z, logits = zl[:rank], zl[rank:]
    else:
        z, logits = A @ (x * keep).mul_(keep_scale).t(), R @ x.t()
    g = F.softmax(logits, dim=0, dtype=wide(x))             # (E, N)
    y = F.linear(x, weight, bias)                           # (N, out)
    y.addmm_(spread(z, g, scaling).t(), B.flatten(0, 1))
    return y, z, g


def backward(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x):
    """Gradients (gx, gA, gR, gB) of `forward`; gx is empty when need_x is false.

    gy (N, out) is the gradient of y; z, g as `forward` returned them. weight is frozen: it has none.
    """
    (E, N), rank = g.shape, len(A)
    gB = (spread(z, g, scaling) @ gy).view_as(B)
    gu = (B.flatten(0, 1) @ gy.t()).view(E, rank, N)
    gz = (g.unsqueeze(1) * gu).sum(0).mul_(scaling)         # (R, N)
    gg = (z * gu).sum(1, dtype=g.dtype).mul_(scaling)       # (E, N)
    gl = g * (gg - (g * gg).sum(0))                         # (E, N): through the softmax
    gx = gy @ weight if need_x else x.new_empty(0)
    if keep is None:
        gzl = torch.cat([gz, gl]).to(x.dtype)               # (R + E, N)
        gAR = gzl @ x
        if need_x:
            gx.addmm_(gzl.t(), torch.cat([A, R]))
        return gx, gAR[:rank].clone(), gAR[rank:].clone(), gB
    gz, gl = gz.to(x.dtype), gl.to(x.dtype)
    if need_x:
        gx.addmm_(gl.t(), R).add_((gz.t() @ A).mul_(keep), alpha=keep_scale)
    return gx, gz @ (x * keep).mul_(keep_scale), gl @ x, gB


def spread(z, g, scaling):
    """u = scaling · g ⊗ z, (E·R, N) in the dtype of z: E copies of z, each weighted by its head's g."""
    return ((g * scaling).to(z.dtype).unsqueeze(1) * z).flatten(0, 1)


def wide(x):
    """The dtype of softmax and sums: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
