"""`norm_act` for one CPU core, as loops over rows that the tower's kernel calls.

B rows, D width.
"""

import numpy as np

from torch_crl.kernels.cpu import exp_minus, loops
from torch_crl.kernels.norm_act.reference import EPSILON


@loops
def forward_rows(x, before, weight, bias, residual, has_residual, relu, scale, stats, out):
    """out = [residual + scale *] activation(LayerNorm(x + before)).

    `before` [D] is the bias of the dense layer that made x. stats [B, 2] get mean and 1 / std.
    """
    rows, width = x.shape
    zero, one = x.dtype.type(0.0), x.dtype.type(1.0)
    share = one / x.dtype.type(width)
    # In loops of their own: a processor goes on with other rows while one waits for its sums.
    for i in range(rows):
        total = zero
        for j in range(width):
            total += x[i, j] + before[j]
        stats[i, 0] = total * share
    for i in range(rows):
        mean, squares = stats[i, 0], zero
        for j in range(width):
            centred = x[i, j] + before[j] - mean
            squares += centred * centred
        stats[i, 1] = one / np.sqrt(squares * share + x.dtype.type(EPSILON))
    for i in range(rows):
        mean, root = stats[i, 0], stats[i, 1]
        if relu:
            for j in range(width):
                z = (x[i, j] + before[j] - mean) * root * weight[j] + bias[j]
                out[i, j] = zero if z < zero else z
        else:
            for j in range(width):
                z = (x[i, j] + before[j] - mean) * root * weight[j] + bias[j]
                out[i, j] = z / (one + exp_minus(z))
        if has_residual:
            for j in range(width):
                out[i, j] = residual[i, j] + scale * out[i, j]


@loops
def backward_rows(
    dout, x, before, weight, bias, relu, scale, stats, live, sums, dx, dbefore, dweight, dbias
):
    """Gradients of `forward_rows` from that of its output, without the residual's.

    Only the first `live` rows count for those of the parameters. `sums` [B, 2] gets two means of
    each row.
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
                dx[i, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed
        else:
            for j in range(width):
                normed = (x[i, j] + before[j] - mean) * root
                z = normed * weight[j] + bias[j]
                sigmoid = one / (one + exp_minus(z))
                slope = scale * dout[i, j] * sigmoid * (one + z * (one - sigmoid))
                dx[i, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed
        sums[i, 0] = of_ones * share
        sums[i, 1] = of_normed * share
    for i in range(rows):
        mean, root, of_ones, of_normed = stats[i, 0], stats[i, 1], sums[i, 0], sums[i, 1]
        if i < live:
            for j in range(width):
                normed = (x[i, j] + before[j] - mean) * root
                slope = dx[i, j]
                dx[i, j] = root * (slope * weight[j] - of_ones - normed * of_normed)
                dbefore[j] += dx[i, j]
                dweight[j] += slope * normed
                dbias[j] += slope
        else:
            for j in range(width):
                normed = (x[i, j] + before[j] - mean) * root
                dx[i, j] = root * (dx[i, j] * weight[j] - of_ones - normed * of_normed)
