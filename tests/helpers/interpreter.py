"""Triton's interpreter, quicker, and with masks that any version takes."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from triton import language
from triton.runtime import interpreter


@functools.cache
def _languages(function: Callable[..., Any]) -> frozenset[str]:
    """The modules of the language that a function of a kernel sees."""
    seen = function.__globals__.values()
    return frozenset(
        module.__name__
        for module in (language, language.core)
        if any(each is module for each in seen)
    )


def quicken() -> None:
    """From now on a launch replaces the functions of a module when it first meets it.

    At each call of a device function the interpreter replaces all functions of the language by
    interpreted ones, although the launch of the kernel has done so already. That takes half of the
    time of a kernel.
    """
    replace: Callable[[Any], Any] = interpreter._patch_lang
    replaced: set[str] = set()

    launch = interpreter.GridExecutor.__call__.__code__

    def once(function: Callable[..., Any]) -> Any:
        is_launch = sys._getframe(1).f_code is launch
        if not is_launch and not replaced:
            # A call outside of any launch, after which nothing is put back.
            return replace(function)
        if not is_launch and _languages(function) <= replaced:
            return interpreter._LangPatchScope()
        replaced.update(_languages(function))
        scope = replace(function)
        if is_launch:
            put_back = scope.restore

            def restore() -> None:
                put_back()
                replaced.clear()

            scope.restore = restore
        return scope

    interpreter._patch_lang = once


def remember_types() -> None:
    """From now on equal types of blocks of numbers are one object that keeps what follows from it.

    Otherwise every operation makes several, checks their shapes and writes out their names.
    """
    core = language.core
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    find_dtype: Callable[[Any], Any] = interpreter._get_np_dtype
    # By the identity of the type of the elements, which is kept beside, and the shape.
    made: dict[tuple[int, tuple[int, ...]], tuple[Any, Any]] = {}

    def one_of_a_kind(kind: type, element: Any, shape: Any, *rest: Any) -> Any:
        new: Any = object.__new__(kind)
        of_numbers = kind is core.block_type and not isinstance(element, core.pointer_type)
        if not of_numbers or not all(type(size) is int for size in shape):
            return new
        return made.setdefault((id(element), tuple(shape)), (element, new))[1]

    def type_once(self: Any, element: Any, shape: Any) -> None:
        if "numel" not in vars(self):
            make_type(self, element, shape)

    def tensor_of_type(self: Any, handle: Any, of: Any) -> None:
        kept = vars(of).get("_of_tensor")
        if kept is None:
            make_tensor(self, handle, of)
            of._of_tensor = {name: x for name, x in vars(self).items() if name != "handle"}
        else:
            self.__dict__ |= kept
            self.handle = handle

    def dtype_of_type(of: Any) -> Any:
        found = vars(of).get("_of_array")
        if found is None:
            found = of._of_array = find_dtype(of)
        return found

    core.block_type.__new__ = one_of_a_kind
    core.block_type.__init__ = type_once
    core.tensor.__init__ = tensor_of_type
    interpreter._get_np_dtype = dtype_of_type


def cast_masks() -> None:
    """From now on all masks are truth values.

    The interpreter makes numbers of a comparison of numbers where it is combined with a tensor, as
    in `o < stop & (i_group < 2)`, and from Triton 3.9 on refuses these as masks.
    """
    builder = interpreter.InterpreterBuilder

    def cast(method: Callable[..., Any], position: int) -> Callable[..., Any]:
        def with_truth_values(self: Any, *arguments: Any) -> Any:
            given = list(arguments)
            mask = given[position]
            given[position] = interpreter.TensorHandle(mask.data.astype(bool), mask.dtype)
            return method(self, *given)

        return with_truth_values

    builder.create_masked_load = cast(builder.create_masked_load, 1)
    builder.create_masked_store = cast(builder.create_masked_store, 2)
