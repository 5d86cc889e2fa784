"""`norm_act` for one CPU core, as loops over rows that the tower's kernel calls.

B rows, D width.
"""

import numpy as np

from torch_crl.kernels.cpu import exponential, loops
from torch_crl.kernels.norm_act.reference import EPSILON


@loops
def forward_rows(x, before, weight, bias, residual, has_residual, relu, scale, stats, out):
    """out = [residual + scale *] activation(LayerNorm(x + before)).

    `before` [D] is the bias of the dense layer that made x. stats [B, 2] get mean and 1 / std.
    """
    rows, width = x.shape
    zero, one = x.dtype.type(0.0), x.dtype.type(1.0)
    share = one / x.dtype.type(width)
    for i in range(rows):
        total = zero
        for j in range(width):
            total += x[i, j] + before[j]
        mean = total * share
        squares = zero
        for j in range(width):
            centred = x[i, j] + before[j] - mean
            squares += centred * centred
        root = one / np.sqrt(squares * share + x.dtype.type(EPSILON))
        stats[i, 0] = mean
        stats[i, 1] = root
        if relu:
            for j in range(width):
                z = (x[i, j] + before[j] - mean) * root * weight[j] + bias[j]
                out[i, j] = zero if z < zero else z
        else:
            for j in range(width):
                z = (x[i, j] + before[j] - mean) * root * weight[j] + bias[j]
                out[i, j] = z / (one + exponential(-z))
        if has_residual:
            for j in range(width):
                out[i, j] = residual[i, j] + scale * out[i, j]


@loops
def backward_rows(
    dout, x, before, weight, bias, relu, scale, stats, live, scratch, dx, dbefore, dweight, dbias
):
    """Gradients of `forward_rows` from that of its output, without the residual's.

    Only the first `live` rows count for those of the parameters. scratch is [2, D].
    """
    rows, width = x.shape
    zero, one = x.dtype.type(0.0), x.dtype.type(1.0)
    share = one / x.dtype.type(width)
    for j in range(width):
        dbefore[j] = zero
        dweight[j] = zero
        dbias[j] = zero
    for i in range(rows):
        mean, root = stats[i, 0], stats[i, 1]
        of_ones, of_normed = zero, zero
        if relu:
            for j in range(width):
                normed = (x[i, j] + before[j] - mean) * root
                z = normed * weight[j] + bias[j]
                slope = scale * dout[i, j] if z > zero else zero
                scratch[0, j] = normed
                scratch[1, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed
        else:
            for j in range(width):
                normed = (x[i, j] + before[j] - mean) * root
                z = normed * weight[j] + bias[j]
                sigmoid = one / (one + exponential(-z))
                slope = scale * dout[i, j] * sigmoid * (one + z * (one - sigmoid))
                scratch[0, j] = normed
                scratch[1, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed
        of_ones *= share
        of_normed *= share
        for j in range(width):
            dx[i, j] = root * (scratch[1, j] * weight[j] - of_ones - scratch[0, j] * of_normed)
        if i < live:
            for j in range(width):
                dbefore[j] += dx[i, j]
                dweight[j] += scratch[1, j] * scratch[0, j]
                dbias[j] += scratch[1, j]
