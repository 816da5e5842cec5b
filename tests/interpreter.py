"""Triton's interpreter, made bearable.

It patches ``triton.language`` at every launch and at every call of one kernel function by another,
and takes it back after the launch: several times as long as what is computed. Here it is patched
once and stays so. Only for a process that compiles no kernels.
"""

from __future__ import annotations

import inspect
from typing import Any


class _Kept:
    def restore(self) -> None:
        pass


def patch_once() -> None:
    """Call before the first kernel runs."""
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def patch_unless_done(function: Any) -> _Kept:
        # It patches those of the language's modules that the function's module imports.
        modules = {id(x) for x in vars(interpreter.tl).values() if inspect.ismodule(x)}
        seen = frozenset(id(x) for x in function.__globals__.values() if inspect.ismodule(x))
        seen &= modules | {id(interpreter.tl)}
        if seen not in done:
            done.add(seen)
            patch(function)
        return _Kept()

    interpreter._patch_lang = patch_unless_done
