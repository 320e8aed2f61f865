"""Bindings: the named, typed and shaped inputs and outputs of a network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from ..errors import BindingError, ParameterError

__all__ = ["DTYPES", "Array", "Binding", "Dimension", "FeedSpec", "Profile", "check_feeds", "resolve"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DTYPES: Mapping[str, np.dtype[Any]] = {name: np.dtype(name) for name in ("float32", "int64", "int32", "uint8", "bool")}
"""The types that may cross an engine's boundary; floating point is always float32, whatever runs inside."""


@dataclass(frozen=True)
class Binding:
    """One input or output of a network.

    Arguments:
        name: Its name in the graph, a Python identifier so that it can be passed by keyword.
        dtype: NumPy name of its type, one of `DTYPES`.
        shape: An extent (int) or the name of a dimension (str) for each axis, e.g. ``("batch", 4, "height", "width")``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ParameterError(f"binding {self.name!r} is not a Python identifier; rename it in the graph")
        if self.dtype not in DTYPES:
            raise ParameterError(
                f"binding {self.name!r} has dtype {self.dtype!r}, need one of {', '.join(DTYPES)}; cast in the graph"
            )
        for axis, extent in enumerate(self.shape):
            if isinstance(extent, str) and not extent.isidentifier():
                raise ParameterError(f"binding {self.name!r} axis {axis}: {extent!r} is not a dimension's name")
            if not isinstance(extent, str) and extent < 1:
                raise ParameterError(f"binding {self.name!r} axis {axis} has extent {extent}, need 1 or more")

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of its symbolic dimensions, in order."""
        return tuple(extent for extent in self.shape if isinstance(extent, str))

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))}{',' if len(self.shape) == 1 else ''})"


@dataclass(frozen=True)
class Dimension:
    """The extents that a symbolic dimension may take: multiples of `multiple` in [min, max], tuned for `opt`."""

    min: int
    opt: int
    max: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1 or not 1 <= self.min <= self.opt <= self.max:
            raise ParameterError(f"{self} needs 1 <= min <= opt <= max and multiple >= 1")
        if any(extent % self.multiple for extent in (self.min, self.opt, self.max)):
            raise ParameterError(f"{self}: min, opt and max must be multiples of {self.multiple}")


@dataclass(frozen=True)
class Profile:
    """Concrete minimal, optimal and maximal shapes of every binding, by name."""

    min: Mapping[str, tuple[int, ...]]
    opt: Mapping[str, tuple[int, ...]]
    max: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, bindings: Sequence[Binding], dimensions: Mapping[str, Dimension]) -> Profile:
        """The profile of `bindings` over `dimensions`; an unknown dimension raises `BindingError`."""
        ends = ("min", "opt", "max")
        values = {end: {name: int(getattr(d, end)) for name, d in dimensions.items()} for end in ends}
        shapes = [{b.name: resolve(b, values[end]) for b in bindings} for end in ends]
        return cls(*shapes)


class FeedSpec(Protocol):
    """What `check_feeds` has to know of a network (a `NetworkSpec` is one)."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Binding, ...]: ...
    @property
    def dimensions(self) -> Mapping[str, Dimension]: ...


def resolve(binding: Binding, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of `binding` once its dimensions have the values `symbols`."""
    missing = [s for s in binding.symbols if s not in symbols]
    if missing:
        raise BindingError(
            f"{binding.name!r} is {binding}, but no value is known for {', '.join(missing)}; give the dimension a range"
        )
    return tuple(symbols[e] if isinstance(e, str) else e for e in binding.shape)


def check_feeds(spec: FeedSpec, feeds: Mapping[str, Any], *, also: tuple[type[Any], ...] = ()) -> dict[str, int]:
    """Hold `feeds` against the inputs of a network.

    Arguments:
        spec: The network.
        feeds: Array by input name.
        also: Types of arrays that are taken beside NumPy's: an engine on a GPU takes `DeviceArray`.

    Returns:
        The value of every symbolic dimension, e.g. ``{"batch": 2, "height": 32, "width": 32}``.

    Raises:
        BindingError: A name is unknown or missing; a dtype, rank or extent differs; two inputs disagree on a
            dimension; an extent is out of range or not a multiple. The message holds the fix.
    """
    names = [binding.name for binding in spec.inputs]
    if len(feeds) != len(names) or any(name not in feeds for name in names):
        _check_names(spec, names, feeds)
    symbols: dict[str, int] = {}
    origin: dict[str, str] = {}
    for binding in spec.inputs:
        array = feeds[binding.name]
        _check_array(spec.name, binding, array, also)
        for axis, (need, got) in enumerate(zip(binding.shape, array.shape, strict=True)):
            if isinstance(need, str):
                if symbols.setdefault(need, got) != got:
                    raise BindingError(
                        f"{spec.name}: {need} is {symbols[need]} in {origin[need]!r} but {got} in {binding.name!r} "
                        f"(axis {axis} of {array.shape}); give both the same {need}"
                    )
                origin.setdefault(need, binding.name)
            elif need != got:
                raise BindingError(
                    f"{spec.name}: input {binding.name!r} has {got} along axis {axis}, the graph has {need}; "
                    f"pass {binding}, not {array.shape}"
                )
    for name, value in symbols.items():
        if name in spec.dimensions:
            _check_extent(spec.name, name, value, spec.dimensions[name], origin[name])
    return symbols


def _check_names(spec: FeedSpec, names: list[str], feeds: Mapping[str, Any]) -> None:
    for name in feeds:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"leave {name!r} out"
            raise BindingError(
                f"{spec.name}: no input is named {name!r}, it takes {', '.join(names) or 'none'}; {hint}"
            )
    for binding in spec.inputs:
        if binding.name not in feeds:
            given = ", ".join(feeds) or "nothing"
            raise BindingError(
                f"{spec.name}: input {binding.name!r} is missing, given {given}; pass {binding.name}={binding}"
            )


def _check_array(network: str, binding: Binding, value: object, also: tuple[type[Any], ...]) -> None:
    dtype = DTYPES[binding.dtype]
    kind = type(value).__name__
    if not isinstance(value, (np.ndarray, *also)):
        raise BindingError(
            f"{network}: input {binding.name!r} is a {kind}, need a NumPy array {binding}; "
            f"pass np.asarray(value, dtype=np.{binding.dtype})"
        )
    array = cast(Array, value)
    if array.dtype != dtype:
        raise BindingError(
            f"{network}: input {binding.name!r} is {array.dtype}, the graph takes {dtype}; "
            f"pass {binding.name}.astype(np.{binding.dtype})"
        )
    if array.ndim != len(binding.shape):
        raise BindingError(
            f"{network}: input {binding.name!r} has {array.ndim} axes {array.shape}, the graph has "
            f"{len(binding.shape)}; reshape it to {binding}"
        )


def _check_extent(network: str, name: str, value: int, allowed: Dimension, origin: str) -> None:
    if not allowed.min <= value <= allowed.max:
        nearest = min(max(value, allowed.min), allowed.max)
        raise BindingError(
            f"{network}: {name} is {value} in {origin!r}, the bundle allows {allowed.min} to {allowed.max}; "
            f"use {nearest}, or export with a wider range"
        )
    if value % allowed.multiple:
        low = value - value % allowed.multiple
        choices = [e for e in (low, low + allowed.multiple) if allowed.min <= e <= allowed.max]
        raise BindingError(
            f"{network}: {name} is {value} in {origin!r}, it must be a multiple of {allowed.multiple}; "
            f"use {' or '.join(map(str, choices))}"
        )
