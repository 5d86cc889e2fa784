"""Products in registers, as functions that compiled code can call: they are written in LLVM's code,
since numba has no vectors.

Each gets addresses, and distances in bytes from one row or summand to the next. Numbers have four
bytes: fp32, or two bf16 as a uint32, of which the first has the lower half.
"""

from typing import Any

from llvmlite import ir
from llvmlite.binding import initialize_native_asmparser
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
VECTOR_BYTES = 4 * LANES
ROWS = 8
VECTORS = 2
"""A tile is `ROWS` by `VECTORS` vectors at most: its sums take 16 of AVX-512's 32 registers."""

_WORD, _INDEX = ir.IntType(64), ir.IntType(32)
# Without it LLVM does not read the one instruction that is written out below.
initialize_native_asmparser()


def _tile(rows: int, vectors: int) -> Any:
    @intrinsic
    def tile(context, like, mask, a, a_row, a_step, b, b_step, steps, out, out_row):
        def generate(context, builder, signature, arguments):
            name = f"torch_crl_tile_{rows}_{vectors}_{like.dtype}"
            function = builder.module.globals.get(name)
            if function is None:
                kind = ir.FunctionType(ir.VoidType(), [_WORD] * 9)
                function = ir.Function(builder.module, kind, name)
                function.linkage = "linkonce_odr"
                function.attributes.add("noinline")
                _generate_tile(function, rows, vectors, like.dtype)
            builder.call(function, arguments[1:])
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 9), generate

    return tile


eight_rows = _tile(ROWS, VECTORS)
"""eight_rows(like, mask, a, a_row, a_step, b, b_step, steps, out, out_row) writes a tile of a b.

`like` is an array of what a and b are, and the bits of `mask` say which numbers of the last vector
of a row there are. Each sum is one chain of multiply-adds in the order of the summands, so it
depends neither on the sizes of the product nor on its place in it.
"""

eight_short_rows, one_row, one_short_row = _tile(ROWS, 1), _tile(1, VECTORS), _tile(1, 1)
"""The same for rows of one vector, and for one row, with the same sums."""


@intrinsic
def transpose(context, a, a_row, out):
    """Writes the transpose of a square of `LANES` numbers into a strip."""

    def generate(context, builder, signature, arguments):
        a, a_row, out = arguments
        vector = ir.VectorType(ir.IntType(32), LANES)
        rows = [builder.load(_at(builder, vector, a, a_row, i), align=4) for i in range(LANES)]
        # Squares of 1, 2, 4, ... numbers change places across the diagonal.
        for size in (1 << n for n in range(LANES.bit_length() - 1)):
            upper = [LANES + k - size if k & size else k for k in range(LANES)]
            lower = [LANES + k if k & size else k + size for k in range(LANES)]
            for i in (i for i in range(LANES) if not i & size):
                pair = rows[i], rows[i + size]
                rows[i] = builder.shuffle_vector(*pair, _numbers(upper))
                rows[i + size] = builder.shuffle_vector(*pair, _numbers(lower))
        strip_bytes = _WORD(VECTORS * VECTOR_BYTES)
        for i, row in enumerate(rows):
            builder.store(row, _at(builder, vector, out, strip_bytes, i), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _generate_tile(function: ir.Function, rows: int, vectors: int, dtype: Any) -> None:
    operand, total, add = _arithmetic(function.module, dtype)
    entry, loop, end = map(function.append_basic_block, ("entry", "loop", "end"))
    mask, a, a_row, a_step, b, b_step, steps, out, out_row = function.args
    builder = ir.IRBuilder(entry)
    bits = ir.IntType(LANES)
    last = builder.bitcast(builder.trunc(mask, bits), ir.VectorType(ir.IntType(1), LANES))
    whole = ir.Constant(last.type, [1] * LANES)
    masks = [whole] * (vectors - 1) + [last]
    builder.branch(loop)

    builder.position_at_end(loop)
    step, from_a, from_b = (builder.phi(_WORD) for _ in range(3))
    sums = [builder.phi(total) for _ in range(rows * vectors)]
    variables = [
        (step, _WORD(0), builder.add(step, _WORD(1))),
        (from_a, a, builder.add(from_a, a_step)),
        (from_b, b, builder.add(from_b, b_step)),
    ]
    vector_bytes = _WORD(VECTOR_BYTES)
    load, store = (
        _masked(function.module, *each) for each in (("load", operand), ("store", total))
    )
    of_b = [
        builder.call(
            load,
            [_at(builder, operand, from_b, vector_bytes, j), _INDEX(4), masks[j], operand(None)],
        )
        for j in range(vectors)
    ]
    for i in range(rows):
        one = builder.load(_at(builder, operand.element, from_a, a_row, i), align=4)
        of_a = builder.insert_element(operand(ir.Undefined), one, _INDEX(0))
        of_a = builder.shuffle_vector(of_a, of_a, _numbers([0] * operand.count))
        for j, x in enumerate(sums[i * vectors : (i + 1) * vectors]):
            variables.append((x, total(None), builder.call(add, [of_a, of_b[j], x])))
    for variable, first, following in variables:
        variable.add_incoming(first, entry)
        variable.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", variables[0][2], steps), loop, end)

    builder.position_at_end(end)
    for number, (_, _, x) in enumerate(variables[3:]):
        i, j = divmod(number, vectors)
        to = builder.add(out, builder.mul(out_row, _WORD(i)))
        builder.call(store, [x, _at(builder, total, to, vector_bytes, j), _INDEX(4), masks[j]])
    builder.ret_void()


def _arithmetic(module: ir.Module, dtype: Any) -> tuple[ir.VectorType, ir.VectorType, Any]:
    """Vectors of operands and of sums, and what adds the products of two of the first to a sum."""
    total = ir.VectorType(ir.FloatType(), LANES)
    if dtype == types.float32:
        kind = ir.FunctionType(total, [total] * 3)
        return total, total, cgutils.get_or_insert_function(module, kind, f"llvm.fma.v{LANES}f32")
    pairs = ir.VectorType(ir.IntType(32), LANES)
    kind = ir.FunctionType(total, [pairs, pairs, total])
    # LLVM's own function for it has other types from version to version.
    return pairs, total, ir.InlineAsm(kind, "vdpbf16ps $2, $1, $0", "=v,v,v,0")


def _masked(module: ir.Module, what: str, vector: ir.VectorType) -> Any:
    """LLVM's load(pointer, alignment, mask, otherwise) or store(x, pointer, alignment, mask)."""
    element = f"{'f' if isinstance(vector.element, ir.FloatType) else 'i'}32"
    mask, pointer = ir.VectorType(ir.IntType(1), LANES), vector.as_pointer()
    kind = (
        ir.FunctionType(vector, [pointer, _INDEX, mask, vector])
        if what == "load"
        else ir.FunctionType(ir.VoidType(), [vector, pointer, _INDEX, mask])
    )
    name = f"llvm.masked.{what}.v{LANES}{element}.p0v{LANES}{element}"
    return cgutils.get_or_insert_function(module, kind, name)


def _at(builder: ir.IRBuilder, what: Any, start: Any, distance: Any, count: int) -> Any:
    """A pointer to `what`, `count` times a distance in bytes behind an address."""
    address = builder.add(start, builder.mul(distance, _WORD(count)))
    return builder.inttoptr(address, what.as_pointer())


def _numbers(numbers: list[int]) -> ir.Constant:
    return ir.VectorType(_INDEX, len(numbers))(numbers)
