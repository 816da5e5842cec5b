"""Triton's interpreter, made bearable.

It patches ``triton.language`` at every launch and at every call of one kernel function by another,
and takes it back after the launch; and it works out the types of every operation anew, one builtin
calling the next: many times as long as NumPy takes for what is computed. Here it is patched once
and stays so, and the usual operations, on operands whose types leave nothing to convert, go to
NumPy at once, which broadcasts as Triton does. Only for a process that compiles no kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np


class _Kept:
    def restore(self) -> None:
        pass


def make_bearable() -> None:
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
                _take_short_cuts()
        return _Kept()

    interpreter._patch_lang = patch_unless_done
    _keep_dtypes()
    _keep_types_of_tuples_for_later()


def _keep_dtypes() -> None:
    """Casts to what a value is already, and NumPy's names of dtypes, are asked for everywhere."""
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    cast = TritonSemantic.cast
    find, found = interpreter._get_np_dtype, {}

    def known_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = find(dtype)
        return found[name]

    def cast_unless_same(self: Any, value: Any, dtype: Any, *args: Any) -> Any:
        return value if value.dtype == dtype else cast(self, value, dtype, *args)

    TritonSemantic.cast = cast_unless_same
    interpreter._get_np_dtype = known_dtype


def _keep_types_of_tuples_for_later() -> None:
    """Kernels grow tuples value by value, and the interpreter hardly ever asks for their types."""
    from triton.language import core

    start = core.tuple.__init__

    def start_without_type(self: Any, args: Any, type: Any = None) -> None:
        if type is None:
            self.values = list(args)
        else:
            start(self, args, type)

    def find_type(self: Any) -> Any:
        if "_type" not in self.__dict__:
            self._type = core._type_for_tuple_values(self.values)
        return self._type

    core.tuple.__init__ = start_without_type
    core.tuple.type = property(find_type, lambda self, type: self.__dict__.update(_type=type))


def _take_short_cuts() -> None:
    """Whatever is not usual goes the interpreter's own way, called ``slow`` here."""
    from triton import language
    from triton.language import core

    for name in ("add", "sub", "mul"):
        of = getattr(operator, name)
        _set(core.tensor, f"__{name}__", of, method=True)
        _set(core.tensor, f"__r{name}__", lambda x, y, of=of: of(y, x), method=True)
    _set(core.tensor, "__truediv__", operator.truediv, floats_only=True, method=True)
    _set(core.tensor, "__rtruediv__", lambda x, y: y / x, floats_only=True, method=True)
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        of = getattr(operator, name)
        _set(core.tensor, f"__{name}__", of, method=True, result=core.int1)
    core.tensor.__neg__ = _negated(core.tensor.__neg__)
    core.tensor.__floordiv__ = _divided(core.tensor.__floordiv__)
    core.tensor.__and__ = _of_flags(core.tensor.__and__, operator.and_)
    core.tensor.__or__ = _of_flags(core.tensor.__or__, operator.or_)
    core.tensor.__add__ = _pointer_shifted(core.tensor.__add__)
    core.tensor.__getitem__ = _with_new_axes(core.tensor.__getitem__)
    core.tensor.to = _converted(core.tensor.to)
    for module in (language, core, language.math):
        for name, of in _FUNCTIONS.items():
            if hasattr(module, name):
                _set(module, name, of, floats_only=name not in ("minimum", "maximum"))
        if module is not language.math:
            module.where = _where(module.where)
            module.full = _full(module.full)
            module.arange = _arange(module.arange)
            module.load = _load(module.load)
            module.store = _store(module.store)


def _fma(x: Any, y: Any, z: Any) -> Any:
    """Rounded twice; but a finite product that is too large to be rounded leaves infinity as is."""
    found = x * y + z
    lost = np.isnan(found)
    if lost.any():
        lost &= np.isfinite(x) & np.isfinite(y) & np.isinf(z)
        found = np.where(lost, z, found).astype(found.dtype)
    return found


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "fma": _fma,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "exp2": np.exp2,
    "log2": np.log2,
    "log": np.log,
    "floor": np.floor,
    "abs": np.abs,
}
_FLOATS, _INTEGERS = ("fp32", "fp64"), ("int32", "int64")
_ARRAYS = {
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}
_TYPES: dict[Any, Any] = {}


def _made(data: Any, dtype: Any, block: bool) -> Any:
    """A tensor of Triton's with that array; a scalar's array has one element."""
    from triton.language import core
    from triton.runtime.interpreter import TensorHandle

    key = (dtype.name, data.shape, block)
    known = _TYPES.get(key)
    if known is None:
        whole = core.tensor(
            TensorHandle(data, dtype), core.block_type(dtype, list(data.shape)) if block else dtype
        )
        known = _TYPES[key] = (whole.type, whole.shape, whole.numel)
    new = core.tensor.__new__(core.tensor)
    new.type, new.shape, new.numel = known
    new.dtype = dtype
    new.handle = handle = TensorHandle.__new__(TensorHandle)
    handle.data, handle.dtype, handle.attr = data, dtype, {}
    return new


def _number(x: Any) -> Any:
    """The plain number that it is, or None."""
    x = getattr(x, "value", x)
    return x if type(x) in (int, float) else None


def _operands(given: tuple[Any, ...]) -> tuple[list[Any], Any, bool] | None:
    """Arrays and numbers, the dtype they meet in, and whether there is a block; None: not usual.

    A block decides over scalars, and of equals the wider.
    """
    decides, block = None, False
    for x in given:
        if hasattr(x, "handle"):
            kind = x.dtype.name
            if kind not in _ARRAYS:
                return None
            its_block = x.type is not x.dtype
            if decides is None or (its_block and not block):
                decides, block = x, its_block
            elif its_block == block and _ARRAYS[kind].itemsize > decides.handle.data.itemsize:
                decides = x
    if decides is None:
        return None
    name = decides.dtype.name
    wanted, floating = _ARRAYS[name], name in _FLOATS
    arrays = []
    for x in given:
        if hasattr(x, "handle"):
            data = x.handle.data
            if data.dtype != wanted:
                if (x.dtype.name in _FLOATS) != floating:
                    return None
                data = data.astype(wanted)
            arrays.append(data)
            continue
        x = _number(x)
        if x is None or not (floating or (type(x) is int and abs(x) < 1 << 31)):
            return None
        arrays.append(x)
    return arrays, decides.dtype, block


def _set(
    owner: Any,
    name: str,
    of: Callable[..., Any],
    floats_only: bool = False,
    method: bool = False,
    result: Any = None,
) -> None:
    """Let NumPy's ``of`` stand for an operator or a function."""
    slow = getattr(owner, name)

    def quick(*given: Any, **options: Any) -> Any:
        found = None if options and not method else _operands(given)
        if found is None or (floats_only and found[1].name not in _FLOATS):
            return slow(*given, **options)
        return _made(of(*found[0]), result or found[1], found[2])

    setattr(owner, name, quick)


def _negated(slow: Any) -> Any:
    def quick(self: Any, **options: Any) -> Any:
        if self.dtype.name not in _ARRAYS:
            return slow(self, **options)
        return _made(-self.handle.data, self.dtype, self.type.is_block())

    return quick


def _divided(slow: Any) -> Any:
    """Triton's quotients of integers are cut towards zero, as NumPy's are of none below it."""

    def quick(self: Any, other: Any, **options: Any) -> Any:
        found = _operands((self, other)) if self.dtype.name in _INTEGERS else None
        if found is None or any(np.less(x, 0).any() for x in found[0]):
            return slow(self, other, **options)
        return _made(operator.floordiv(*found[0]), found[1], found[2])

    return quick


def _full(slow: Any) -> Any:
    from triton.language import core

    def quick(shape: Any, value: Any, dtype: Any, **options: Any) -> Any:
        number, wanted = _number(value), getattr(dtype, "value", dtype)
        known = type(shape) in (tuple, list, core.tuple)
        sizes = [_number(x) for x in shape] if known else []
        if number is None or not sizes or None in sizes or wanted.name not in _ARRAYS:
            return slow(shape, value, dtype, **options)
        return _made(np.full(sizes, number, dtype=_ARRAYS[wanted.name]), wanted, True)

    return quick


def _arange(slow: Any) -> Any:
    from triton.language import core

    def quick(start: Any, end: Any, **options: Any) -> Any:
        first, last = _number(start), _number(end)
        # What it refuses, it refuses in its own words.
        if first is None or last is None or last <= first or (last - first) & (last - first - 1):
            return slow(start, end, **options)
        return _made(np.arange(first, last, dtype=np.int32), core.int32, True)

    return quick


def _of_flags(slow: Any, of: Callable[..., Any]) -> Any:
    def quick(self: Any, other: Any, **options: Any) -> Any:
        if not (hasattr(other, "handle") and self.dtype.name == other.dtype.name == "int1"):
            return slow(self, other, **options)
        block = self.type.is_block() or other.type.is_block()
        return _made(of(self.handle.data, other.handle.data), self.dtype, block)

    return quick


def _pointer_shifted(slow: Any) -> Any:
    def quick(self: Any, other: Any, **options: Any) -> Any:
        number = _number(other)
        if not self.dtype.is_ptr() or (number is None and not hasattr(other, "handle")):
            return slow(self, other, **options)
        size = max(1, self.dtype.element_ty.primitive_bitwidth // 8)
        block = self.type.is_block()
        if number is None:
            offset = other.handle.data.astype(np.uint64) * np.uint64(size)
            block = block or other.type.is_block()
        else:
            offset = np.uint64(number * size % (1 << 64))
        return _made(self.handle.data + offset, self.dtype, block)

    return quick


def _with_new_axes(slow: Any) -> Any:
    def quick(self: Any, places: Any, **options: Any) -> Any:
        found = tuple(getattr(x, "value", x) for x in places) if type(places) is tuple else ()
        if not found or any(not (x is None or x == slice(None)) for x in found):
            return slow(self, places, **options)
        return _made(self.handle.data[found], self.dtype, True)

    return quick


def _converted(slow: Any) -> Any:
    def quick(self: Any, dtype: Any, *given: Any, **options: Any) -> Any:
        wanted = getattr(dtype, "value", dtype)
        known = not given and self.dtype.name in _ARRAYS and wanted.name in _ARRAYS
        # To a float and back to an integer are rules of their own.
        if not known or (self.dtype.name in _FLOATS and wanted.name in _INTEGERS):
            return slow(self, dtype, *given, **options)
        data = self.handle.data.astype(_ARRAYS[wanted.name])
        return _made(data, wanted, self.type.is_block())

    return quick


def _where(slow: Any) -> Any:
    def quick(condition: Any, x: Any, y: Any, **options: Any) -> Any:
        found = _operands((x, y))
        if found is None or not hasattr(condition, "handle") or condition.dtype.name != "int1":
            return slow(condition, x, y, **options)
        (a, b), dtype, block = found
        data = np.where(condition.handle.data, a, b)
        return _made(data, dtype, block or condition.type.is_block())

    return quick


def _flags(mask: Any, shape: tuple[int, ...]) -> Any:
    """Of a mask, or of none, an array of that shape."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    return mask.handle.data if mask.handle.data.shape == shape else None


def _load(slow: Any) -> Any:
    from triton.runtime.interpreter import _interpreter

    def quick(at: Any, mask: Any = None, other: Any = None, **options: Any) -> Any:
        kind = at.dtype.element_ty if at.dtype.is_ptr() else None
        places = at.handle.data
        flags = None if options or kind is None else _flags(mask, places.shape)
        number = 0 if other is None else _number(other)
        if flags is None or number is None or kind.name not in _ARRAYS:
            return slow(at, mask, other, **options)
        blank = np.full(places.shape, number, dtype=_ARRAYS[kind.name])
        data = _interpreter.load(places, flags, blank, blank.dtype)
        return _made(data, kind, at.type.is_block())

    return quick


def _store(slow: Any) -> Any:
    from triton.runtime.interpreter import _interpreter

    def quick(at: Any, value: Any, mask: Any = None, **options: Any) -> Any:
        places = at.handle.data
        flags = None if options else _flags(mask, places.shape)
        same = hasattr(value, "handle") and value.dtype == at.dtype.element_ty
        if flags is None or not same or value.handle.data.shape != places.shape:
            return slow(at, value, mask, **options)
        return _interpreter.store(places, value.handle.data, flags)

    return quick
