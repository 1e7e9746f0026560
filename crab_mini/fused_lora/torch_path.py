"""The operation in torch, with a hand-written backward pass. It runs where no compiled kernel does.

- Autograd would keep one tensor of the size of the output per head. The hand-written backward pass
  keeps x, z (r, N) and g (E, N).
- A and W_r are stacked, so that one product gives z and the router's logits.
- The branch is added into the memory of the base product.
- Small matrices are stored with the N rows along the last axis. A softmax over the first axis is
  then vectorised: 7 µs for 4000 rows and 3 heads on one CPU core. Over the last axis it takes 240
  µs.
- Products run in the dtype of x, the softmax in float32.
"""

import torch
import torch.nn.functional as F


def forward(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale):
    """y (N, out) and z (r, N) in the dtype of x; g (E, N) in float32 (float64 for float64).

    Arguments as in `reference.fused`, all of one dtype and device.
    """
    rank = len(A)
    # A and W_r are multiplied by the same x, unless a mask hides part of x from A.
    if dropout_mask is None:
        z_and_logits = torch.cat([A, W_r]) @ x.t()          # (r + E, N)
        z, logits = z_and_logits[:rank], z_and_logits[rank:]
    else:
        z, logits = A @ (x * dropout_mask).mul_(mask_scale).t(), W_r @ x.t()
    g = F.softmax(logits, dim=0, dtype=wide(x))             # (E, N)
    y = F.linear(x, weight, bias)                           # (N, out)
    y.addmm_(spread(z, g, scaling).t(), B.flatten(0, 1))
    return y, z, g


def backward(gy, x, weight, A, W_r, B, z, g, scaling, dropout_mask, mask_scale, need_x):
    """The gradients (gx, gA, gW_r, gB) of `forward`. gx is empty when need_x is false.

    gy (N, out): the gradient of y. z and g: as `forward` returned them. weight is frozen and gets
    no gradient.
    """
    (E, N), rank = g.shape, len(A)
    # Through the last product: u is computed again, which is cheaper than keeping it.
    gB = (spread(z, g, scaling) @ gy).view_as(B)
    gu = (B.flatten(0, 1) @ gy.t()).view(E, rank, N)

    # Through u = scaling · g ⊗ z, then through the softmax.
    gz = (g.unsqueeze(1) * gu).sum(0).mul_(scaling)         # (r, N)
    gg = (z * gu).sum(1, dtype=g.dtype).mul_(scaling)       # (E, N)
    glogits = g * (gg - (g * gg).sum(0))                    # (E, N)

    # Through the products with x. Without a mask, A and W_r are one stacked matrix again.
    gx = gy @ weight if need_x else x.new_empty(0)
    if dropout_mask is None:
        g_both = torch.cat([gz, glogits]).to(x.dtype)       # (r + E, N)
        g_stacked = g_both @ x                              # (r + E, in)
        if need_x:
            gx.addmm_(g_both.t(), torch.cat([A, W_r]))
        return gx, g_stacked[:rank].clone(), g_stacked[rank:].clone(), gB
    gz, glogits = gz.to(x.dtype), glogits.to(x.dtype)
    if need_x:
        gx.addmm_(glogits.t(), W_r).add_((gz.t() @ A).mul_(dropout_mask), alpha=mask_scale)
    return gx, gz @ (x * dropout_mask).mul_(mask_scale), glogits @ x, gB


def spread(z, g, scaling):
    """u = scaling · g ⊗ z, (E·r, N) in the dtype of z: per head one copy of z, times its g."""
    return ((g * scaling).to(z.dtype).unsqueeze(1) * z).flatten(0, 1)


def wide(x):
    """The dtype of the softmax and of sums: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
