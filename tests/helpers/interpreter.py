"""Triton's interpreter without what it does anew at every call.

At each call of a device function it replaces all functions of the language by interpreted ones,
although the launch of the kernel has done so already. That takes half of the time of a kernel.
"""

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
    """From now on a launch replaces the functions of a module when it first meets it."""
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
