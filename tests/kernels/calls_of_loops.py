"""Prints a digest of what `norm_act`'s loops compute where another compiled function calls them.

With the argument `alone` they are called on their own before.
"""

import hashlib
import sys
from typing import Any

import numpy as np

from torch_crl.kernels.cpu import entry, products
from torch_crl.kernels.norm_act.cpu import backward_rows, forward_rows


@entry
@products
def both(dout, x, vectors, residual, roots, out, sums, dx, dvectors):  # type: ignore[no-untyped-def]
    """Forward and backward pass of one layer."""
    one = x.dtype.type(1.0)
    before, weight, bias = vectors[0], vectors[1], vectors[2]
    forward_rows(x, before, weight, bias, residual, True, False, one, roots, out)
    backward_rows(
        dout, x, weight, bias, out, True, False, one, roots, len(x), sums,
        dx, dvectors[0], dvectors[1], dvectors[2],
    )  # fmt: skip


def main() -> None:
    """Compile, or read compiled code from the disk, and print."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return draw.standard_normal(shape).astype(np.float32)

    x, dout, residual, vectors = normal(64, 64), normal(64, 64), normal(64, 64), normal(3, 64)
    kept = normal(64), normal(64, 64), normal(64, 2), normal(64, 64), normal(3, 64)
    if "alone" in sys.argv:
        one, (roots, out, sums, dx, dvectors) = np.float32(1.0), (part.copy() for part in kept)
        normed, (_, *affine) = x.copy(), vectors
        entry(forward_rows)(normed, *vectors, residual, True, False, one, roots, out)
        entry(backward_rows)(
            *(dout, normed, *affine, out, True, False, one, roots, 64, sums, dx, *dvectors)
        )
    both(dout, x, vectors, residual, *kept)
    print(hashlib.sha256(b"".join(part.tobytes() for part in kept)).hexdigest())


if __name__ == "__main__":
    main()
