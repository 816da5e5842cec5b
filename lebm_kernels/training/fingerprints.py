"""What identifies a run: its config, and its data, model, loss and optimizer by value.

A description maps names to texts, such as ``model.regulariser.strength`` to ``0.1``, so that an
error can name what differs. The text of a tensor is its dtype, its shape and a hash of its values.
Functions and classes are compared by module and name, functions also by their code and defaults.
Lambdas, closures, functions within functions, hooks of modules and objects of unknown content
cannot be compared; their texts say so. Nor can the global variables that a function reads.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
import warnings
import weakref
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lebm_kernels.checks import is_real, plain

Description = dict[str, str]

T = TypeVar("T")

_NOT_COMPARED = " (not compared)"

_SHOWN = 3
"""Differences that an error names; it counts the others."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""What PyTorch keeps in a module. All else are the module's settings, and its mode is one."""


def identity(config: dict[str, Any], *, model: nn.Module, **parts: object) -> dict[str, Any]:
    """What must be equal for a run to resume from a checkpoint: the config, and parts by name."""
    restored = model.state_dict(keep_vars=True).values()
    descriptions = {name: describe(name, part, restored) for name, part in parts.items()}
    return {"config": config, **descriptions, "model": describe("model", model, restored)}


def check_identity(
    path: Path, state: dict[str, Any], mine: dict[str, Any], free: Collection[str]
) -> None:
    """Compare a checkpoint's identity with ``mine``, except the ``free`` fields of the config.

    Raises:
        ValueError: they differ; the message names the argument and what differs in it.

    Warns:
        UserWarning: something cannot be compared; the message names it.
    """
    for name, value in mine["config"].items():
        if name not in free and state["config"][name] != value:
            raise ValueError(
                f"{name} must be that of checkpoint {path} to resume, "
                f"{state['config'][name]!r}, got {value!r}"
            )
    parts = [name for name in mine if name != "config"]
    for name in parts:
        if found := list(_differences(state[name], mine[name])):
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ValueError(
                f"{name} must be that of checkpoint {path} to resume: "
                f"{'; '.join(found[:_SHOWN])}{more}"
            )
    texts = [item for name in parts for item in mine[name].items()]
    unknown = [f"{name}, {text}" for name, text in texts if text.endswith(_NOT_COMPARED)]
    if unknown:
        warnings.warn(
            f"checkpoint {path} may belong to a run that differs in {'; '.join(unknown)}",
            stacklevel=4,
        )


def describe(name: str, value: object, restored: Collection[object] = ()) -> Description:
    """The description of a value: its own text, and those of its parts under longer names.

    Args:
        name: of the value.
        value: of any type.
        restored: tensors that a checkpoint restores. They are described without their values.
    """
    texts: Description = {}
    kept = {id(tensor) for tensor in restored}

    def add(name: str, value: object, wholes: tuple[int, ...]) -> None:
        texts[name] = (
            _kind(value) if isinstance(value, Tensor) and id(value) in kept else _text(value)
        )
        if id(value) not in wholes:  # else an object refers to itself
            for suffix, part in _parts(value):
                add(name + suffix, part, (*wholes, id(value)))

    add(name, value, ())
    return texts


def instances(kind: type[T], *values: object) -> list[T]:
    """The objects of a type among the values and their parts: each once, in order."""
    found: dict[int, T] = {}

    def add(value: object, wholes: tuple[int, ...]) -> None:
        if isinstance(value, kind):
            found[id(value)] = value
        if id(value) not in wholes:
            for _, part in _parts(value):
                add(part, (*wholes, id(value)))

    for value in values:
        add(value, ())
    return list(found.values())


def _differences(theirs: Description, mine: Description) -> Iterator[str]:
    """Each difference in words. Where a whole differs, its parts are not compared."""
    differing: list[str] = []
    for name in {**theirs, **mine}:
        was, now = theirs.get(name, "absent"), mine.get(name, "absent")
        within = any(name.startswith((f"{whole}.", f"{whole}[")) for whole in differing)
        if was != now and not within:
            differing.append(name)
            yield f"{name} was {was}, is {now}"


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """What a value consists of, each with the suffix of its name."""
    if isinstance(value, nn.Module):
        for name, part in vars(value).items():
            if name not in _OF_EVERY_MODULE:
                yield f".{name}", part
        derived = getattr(value, "derived_buffers", ())
        for name, tensor in (*value._parameters.items(), *value._buffers.items()):
            if name not in derived:
                yield f".{name}", tensor
        for name, module in value.named_children():
            yield f".{name}", module
        for kind in (value._forward_pre_hooks, value._forward_hooks):
            yield from ((".hook", hook) for hook in kind.values())
    elif isinstance(value, torch.optim.Optimizer):
        for i, group in enumerate(value.param_groups):
            # The config decides the rate, and the checkpoint has the parameters.
            options = {k: v for k, v in group.items() if k not in ("params", "lr")}
            yield f".param_groups[{i}]", options
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        yield ".__code__", value.__code__
        if value.__defaults__:
            yield ".__defaults__", value.__defaults__
        if value.__kwdefaults__:
            yield ".__kwdefaults__", value.__kwdefaults__
    elif isinstance(value, types.CodeType):
        for i, constant in enumerate(value.co_consts):
            yield f".co_consts[{i}]", constant
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield f"[{i}]", part
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield f".{field.name}", getattr(value, field.name)
    elif _is_callable_object(value):
        for name, part in vars(value).items():
            yield f".{name}", part


def _kind(tensor: Tensor) -> str:
    """A tensor in words, without its values."""
    frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    shape = "" if nn.parameter.is_lazy(tensor) else f" {list(tensor.shape)}"
    return f"{tensor.dtype}{shape}{' without gradient' if frozen else ''}"


def _text(value: Any) -> str:
    """A value in words, without its parts."""
    if isinstance(value, Tensor) and (
        nn.parameter.is_lazy(value)
        or value.layout != torch.strided
        or value.is_nested
        or value.is_meta
    ):
        return f"{value.dtype} tensor{_NOT_COMPARED}"
    if isinstance(value, Tensor) and value.dim():
        # Viewed as bytes, because NumPy has no bfloat16.
        values = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        content = values.view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {_hash(content)}"
    if isinstance(value, np.ndarray) and value.ndim and not value.dtype.hasobject:
        return f"{value.dtype} {list(value.shape)} {_hash(value.tobytes())}"
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
        name = f"{value.__module__}.{value.__qualname__}"
        compared = "<" not in name and getattr(value, "__closure__", None) is None
        return name if compared else name + _NOT_COMPARED
    if isinstance(value, types.CodeType):
        # Without line numbers and file names: comments do not count.
        return f"code {_hash(value.co_code + repr(value.co_names).encode())}"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__} of {', '.join(sorted(map(repr, value)))}"
    value = plain(value)  # NumPy's number and the equal number of Python have one text
    if is_real(value):
        whole = isinstance(value, float) and value.is_integer()
        return repr(int(value) if whole else value)
    simple = (bool, str, bytes, complex, range, slice, torch.dtype, torch.device, enum.Enum)
    if value is None or isinstance(value, simple):
        return repr(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    # A weak reference is to what has a name of its own.
    known = (nn.Module, torch.optim.Optimizer, torch.Generator, functools.partial, weakref.ref)
    compared = isinstance(value, known) or is_dataclass(value) or _is_callable_object(value)
    return kind if compared else kind + _NOT_COMPARED


def _is_callable_object(value: object) -> bool:
    """Whether it is an object that a class in Python makes callable: a loss, a sampler."""
    function = getattr(type(value), "__call__", None)  # noqa: B004, where it is defined counts
    return isinstance(function, types.FunctionType) and hasattr(value, "__dict__")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
