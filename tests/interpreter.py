"""Triton's interpreter, made bearable.

It patches ``triton.language`` at every launch and at every call of one kernel function by another,
and takes it back after the launch; and it works out the types of every operation anew: several
times as long as what is computed. Here it is patched once and stays so, and operations on operands
of one type skip what would leave them as they are. Only for a process that compiles no kernels.
"""

from __future__ import annotations

from typing import Any


class _Kept:
    def restore(self) -> None:
        pass


def patch_once() -> None:
    """Call before the first kernel runs."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    modules: set[int] = set()
    done: set[frozenset[int]] = set()

    def patch_unless_done(function: Any) -> _Kept:
        names = id(function.__globals__)
        if names not in modules:
            modules.add(names)
            # It patches those modules of the language that the function's own module imports.
            language = (interpreter.tl, interpreter.tl.core)
            seen = frozenset(
                i
                for i, x in enumerate(language)
                if any(x is y for y in function.__globals__.values())
            )
            if seen not in done:
                done.add(seen)
                patch(function)
        return _Kept()

    interpreter._patch_lang = patch_unless_done


def skip_what_changes_nothing() -> None:
    """Operands of the same type need neither a common one nor a cast."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    check, cast = TritonSemantic.binary_op_type_checking_impl, TritonSemantic.cast
    find, found = interpreter._get_np_dtype, {}

    def known_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = find(dtype)
        return found[name]

    def check_unless_same(self: Any, lhs: Any, rhs: Any, *args: Any, **options: Any) -> Any:
        same = isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor)
        if same and lhs.type == rhs.type and lhs.dtype in (core.float32, core.float64):
            return lhs, rhs
        return check(self, lhs, rhs, *args, **options)

    def cast_unless_same(self: Any, value: Any, dtype: Any, *args: Any) -> Any:
        return value if value.dtype == dtype else cast(self, value, dtype, *args)

    TritonSemantic.binary_op_type_checking_impl = check_unless_same
    TritonSemantic.cast = cast_unless_same
    interpreter._get_np_dtype = known_dtype
