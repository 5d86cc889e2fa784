"""Products in fp32 and bf16 with vector instructions, for one CPU core: out [M, N] = a b.

They are compiled on their own and called by their address, as those of a BLAS are: as a part of all
that calls them they would take minutes to compile.
"""

import numpy as np
from numba import carray, types

from torch_crl.kernels.cpu import callable_by_address, products, room
from torch_crl.kernels.matmul.vectors import (
    LANES,
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    eight_rows,
    eight_short_rows,
    one_row,
    one_short_row,
    transpose,
)

_WIDTH = VECTORS * LANES
_STRIP_BYTES = VECTORS * VECTOR_BYTES


@products
def _copy_strip(b, start, strip):
    """strip [K, _WIDTH] gets columns of the transpose of b."""
    steps, columns = len(strip), min(_WIDTH, len(b) - start)
    done, whole = steps - steps % LANES, columns - columns % LANES
    source, to = np.intp(b.ctypes.data), np.intp(strip.ctypes.data)
    for j in range(0, whole, LANES):
        for k in range(0, done, LANES):
            square = source + ((start + j) * steps + k) * b.itemsize
            transpose(square, steps * b.itemsize, to + (k * _WIDTH + j) * b.itemsize)
    for k in range(steps):
        for j in range(whole if k < done else 0, columns):
            strip[k, j] = b[start + j, k]


@products
def _multiply(a, a_transposed, b, b_transposed, out):
    """Strip by strip of columns, tile by tile; the operands are of 4 bytes, as are the sums."""
    (rows, columns), size = out.shape, out.itemsize
    steps = len(a) if a_transposed else a.shape[1]
    a_row, a_step = (size, size * rows) if a_transposed else (size * steps, size)
    count = ROWS if rows >= ROWS else 1
    strip = room(steps if b_transposed else 0, _WIDTH, b)
    for start in range(0, columns, _WIDTH):
        is_short = columns - start <= LANES
        last = columns - start - (0 if is_short else _WIDTH - LANES)
        mask = (1 << min(last, LANES)) - 1
        from_b, b_step = np.intp(b.ctypes.data) + start * size, size * columns
        if b_transposed:
            _copy_strip(b, start, strip)
            from_b, b_step = np.intp(strip.ctypes.data), _STRIP_BYTES
        for first in range(0, rows, count):
            # The last rows are some of those before once more, unless their number fits.
            i = min(first, rows - count)
            from_a = np.intp(a.ctypes.data) + i * a_row
            to = np.intp(out.ctypes.data) + (i * columns + start) * size
            places = mask, from_a, a_row, a_step, from_b, b_step, steps, to, size * columns
            if count == ROWS:
                if is_short:
                    eight_short_rows(a, *places)
                else:
                    eight_rows(a, *places)
            elif is_short:
                one_short_row(a, *places)
            else:
                one_row(a, *places)


@products
def _pairs(x, in_rows, rows, columns):
    """Neighbours of a matrix [rows, columns] of bf16 as one uint32 each, with 0 for what lacks."""
    if in_rows and columns % 2 == 0:
        return carray(x, (rows, columns // 2), np.uint32)
    numbers, like = carray(x, (rows, columns), np.uint16), np.empty(0, np.uint32)
    half = np.uint32(16)
    if in_rows:
        out = room(rows, columns // 2 + 1, like)
        for i in range(rows):
            for j in range(columns // 2):
                first, second = np.uint32(numbers[i, 2 * j]), np.uint32(numbers[i, 2 * j + 1])
                out[i, j] = first | second << half
            out[i, columns // 2] = numbers[i, columns - 1]
    else:
        out = room((rows + 1) // 2, columns, like)
        for i in range(rows // 2):
            first, second, pairs = numbers[2 * i], numbers[2 * i + 1], out[i]
            for j in range(columns):
                pairs[j] = np.uint32(first[j]) | np.uint32(second[j]) << half
        if rows % 2:
            for j in range(columns):
                out[rows // 2, j] = numbers[rows - 1, j]
    return out


@products
def _shape(rows, columns, transposed):
    """How a matrix lies in memory."""
    return (columns, rows) if transposed else (rows, columns)


def _fp32_product(a, a_transposed, b, b_transposed, out, rows, columns, summands):
    a = carray(a, _shape(rows, summands, a_transposed), np.float32)
    b = carray(b, _shape(summands, columns, b_transposed), np.float32)
    _multiply(a, a_transposed, b, b_transposed, carray(out, (rows, columns), np.float32))


def _bf16_product(a, a_transposed, b, b_transposed, out, rows, columns, summands):
    a = _pairs(a, not a_transposed, *_shape(rows, summands, a_transposed))
    b = _pairs(b, b_transposed, *_shape(summands, columns, b_transposed))
    _multiply(a, a_transposed, b, b_transposed, carray(out, (rows, columns), np.float32))


_OPERANDS = types.voidptr, types.boolean, types.voidptr, types.boolean, types.voidptr
SIGNATURE = types.void(*_OPERANDS, types.intp, types.intp, types.intp)
"""Arguments of a product: a, whether it lies transposed, the same of b, out, and M, N, K."""


def fp32_product() -> int:
    """The address of the product of two matrices in fp32."""
    return callable_by_address(_fp32_product, SIGNATURE)


def bf16_product() -> int:
    """That of the product of two matrices in bf16, as uint16, with sums in fp32."""
    return callable_by_address(_bf16_product, SIGNATURE)
