"""`norm_act` for one CPU core, as loops over rows that the tower's kernel calls.

In a block `pre_norm` the LayerNorm comes after the activation, before the next dense layer; these
loops are here too. B rows, D width.
"""

import numpy as np

from torch_crl.kernels.cpu import exp_minus, loops
from torch_crl.kernels.norm_act.reference import EPSILON


@loops
def forward_rows(x, before, weight, bias, residual, has_residual, relu, scale, roots, out):
    """out = [residual + scale *] activation(LayerNorm(x + before)), and x its normalised rows.

    `before` [D] is the bias of the dense layer that made x. roots [B] get 1 / std.
    """
    rows, width = x.shape
    zero, one = x.dtype.type(0.0), x.dtype.type(1.0)
    share = one / x.dtype.type(width)
    # In loops of their own: a processor goes on with other rows while one waits for its sums.
    for i in range(rows):
        total = zero
        for j in range(width):
            total += x[i, j] + before[j]
        roots[i] = total * share
    for i in range(rows):
        mean, squares = roots[i], zero
        for j in range(width):
            x[i, j] = x[i, j] + before[j] - mean
            squares += x[i, j] * x[i, j]
        roots[i] = one / np.sqrt(squares * share + x.dtype.type(EPSILON))
    for i in range(rows):
        root = roots[i]
        if relu:
            for j in range(width):
                x[i, j] *= root
                z = x[i, j] * weight[j] + bias[j]
                out[i, j] = zero if z < zero else z
        else:
            for j in range(width):
                x[i, j] *= root
                z = x[i, j] * weight[j] + bias[j]
                out[i, j] = z / (one + exp_minus(z))
        if has_residual:
            for j in range(width):
                out[i, j] = residual[i, j] + scale * out[i, j]


@loops
def backward_rows(
    dout, normed, weight, bias, out, has_residual, relu, scale, roots, live, sums,
    dx, dbefore, dweight, dbias,
):  # fmt: skip
    """Gradients of `forward_rows` from that of its output, without the residual's.

    `normed` is what became of its x. Only the first `live` rows count for the gradients of the
    parameters. `sums` [B, 2] gets two means of each row.
    """
    rows, width = normed.shape
    zero, one = normed.dtype.type(0.0), normed.dtype.type(1.0)
    half, share = normed.dtype.type(0.5), one / normed.dtype.type(width)
    for j in range(width):
        dbefore[j] = zero
        dweight[j] = zero
        dbias[j] = zero
    for i in range(rows):
        of_ones, of_normed = zero, zero
        if relu:
            for j in range(width):
                z = normed[i, j] * weight[j] + bias[j]
                slope = scale * dout[i, j] if z > zero else zero
                dx[i, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed[i, j]
        elif has_residual:
            for j in range(width):
                z = normed[i, j] * weight[j] + bias[j]
                sigmoid = one / (one + exp_minus(z))
                slope = scale * dout[i, j] * sigmoid * (one + z * (one - sigmoid))
                dx[i, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed[i, j]
        else:
            # swish(z) = z sigmoid(z), and z is to the bit that of the forward pass; if a compiler
            # should round it otherwise, the slopes of numbers near zero remain between 0 and 1.
            for j in range(width):
                z = normed[i, j] * weight[j] + bias[j]
                sigmoid = half if z == zero else out[i, j] / z
                sigmoid = zero if sigmoid < zero else sigmoid
                sigmoid = one if sigmoid > one else sigmoid
                slope = scale * dout[i, j] * (sigmoid + out[i, j] * (one - sigmoid))
                dx[i, j] = slope
                of_ones += slope * weight[j]
                of_normed += slope * weight[j] * normed[i, j]
        sums[i, 0] = of_ones * share
        sums[i, 1] = of_normed * share
    for i in range(rows):
        root, of_ones, of_normed = roots[i], sums[i, 0], sums[i, 1]
        if i < live:
            for j in range(width):
                slope = dx[i, j]
                dx[i, j] = root * (slope * weight[j] - of_ones - normed[i, j] * of_normed)
                dbefore[j] += dx[i, j]
                dweight[j] += slope * normed[i, j]
                dbias[j] += slope
        else:
            for j in range(width):
                dx[i, j] = root * (dx[i, j] * weight[j] - of_ones - normed[i, j] * of_normed)


@loops
def forward_pre_norm(
    dense, before, residual, has_residual, activates, relu, scale, weight, bias, normed, roots, out
):
    """out = LayerNorm([activation] dense), after dense = [residual + scale *] (dense + before).

    `before` [D] is the bias of the dense layer that made `dense`. normed gets the normalised rows
    and roots [B] their 1 / std.
    """
    rows, width = dense.shape
    zero, one = dense.dtype.type(0.0), dense.dtype.type(1.0)
    share = one / dense.dtype.type(width)
    for i in range(rows):
        if has_residual:
            for j in range(width):
                dense[i, j] = residual[i, j] + scale * (dense[i, j] + before[j])
        else:
            for j in range(width):
                dense[i, j] += before[j]
        if not activates:
            for j in range(width):
                normed[i, j] = dense[i, j]
        elif relu:
            for j in range(width):
                normed[i, j] = zero if dense[i, j] < zero else dense[i, j]
        else:
            for j in range(width):
                normed[i, j] = dense[i, j] / (one + exp_minus(dense[i, j]))
    for i in range(rows):
        total = zero
        for j in range(width):
            total += normed[i, j]
        roots[i] = total * share
    for i in range(rows):
        mean, squares = roots[i], zero
        for j in range(width):
            normed[i, j] -= mean
            squares += normed[i, j] * normed[i, j]
        roots[i] = one / np.sqrt(squares * share + dense.dtype.type(EPSILON))
    for i in range(rows):
        root = roots[i]
        for j in range(width):
            normed[i, j] *= root
            out[i, j] = normed[i, j] * weight[j] + bias[j]


@loops
def backward_pre_norm(
    dout, normed, dense, activates, relu, scale, weight, roots, live, sums, upstream,
    ddense, dbefore, dweight, dbias,
):  # fmt: skip
    """Gradients of `forward_pre_norm` from that of its output.

    Without an activation, dense is the sum of all blocks so far, and upstream [B, D] the gradient
    of this sum; this one's part is added to it, and ddense gets scale times the whole. Only the
    first `live` rows count for the gradients of the parameters. `sums` [B, 2] gets two means of
    each row.
    """
    rows, width = normed.shape
    zero, one = normed.dtype.type(0.0), normed.dtype.type(1.0)
    share = one / normed.dtype.type(width)
    for j in range(width):
        dbefore[j] = zero
        dweight[j] = zero
        dbias[j] = zero
    for i in range(rows):
        of_ones, of_normed = zero, zero
        for j in range(width):
            slope = dout[i, j] * weight[j]
            of_ones += slope
            of_normed += slope * normed[i, j]
        sums[i, 0] = of_ones * share
        sums[i, 1] = of_normed * share
    for i in range(rows):
        root, of_ones, of_normed = roots[i], sums[i, 0], sums[i, 1]
        for j in range(width):
            slope = dout[i, j] * weight[j]
            ddense[i, j] = root * (slope - of_ones - normed[i, j] * of_normed)
        if not activates:
            for j in range(width):
                upstream[i, j] += ddense[i, j]
                ddense[i, j] = scale * upstream[i, j]
        elif relu:
            for j in range(width):
                ddense[i, j] = ddense[i, j] if dense[i, j] > zero else zero
        else:
            for j in range(width):
                z = dense[i, j]
                sigmoid = one / (one + exp_minus(z))
                ddense[i, j] *= sigmoid * (one + z * (one - sigmoid))
        if i < live:
            for j in range(width):
                dbefore[j] += ddense[i, j]
                dweight[j] += dout[i, j] * normed[i, j]
                dbias[j] += dout[i, j]
