"""Strict JSON: duplicate keys, NaN, unknown and missing keys and wrong types are refused by their path."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, Union, cast

from ..errors import ManifestError, ParameterError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["JSON", "Node", "parse"]

JSON: TypeAlias = Union[None, bool, int, float, str, "list[JSON]", "dict[str, JSON]"]
T = TypeVar("T")


def parse(data: bytes, where: str) -> JSON:
    """The value of a JSON text.

    Arguments:
        data: UTF-8 text without byte order mark.
        where: What it is, for messages, e.g. the path of the file.

    Raises:
        ManifestError: It is not UTF-8 or not JSON, repeats a key, holds NaN or an infinity, or nests too deep.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ManifestError(f"{where}: the key {twice!r} appears twice in one object; keep one")
        return result

    def constant(text: str) -> NoReturn:
        raise ManifestError(f"{where}: holds {text}, JSON has no such number; write a finite one")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    try:
        value: JSON = json.loads(
            data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=number
        )
        if b"\\u" in data:  # an escape may spell half a character, which no file or terminal can hold
            json.dumps(value, ensure_ascii=False).encode()
    except ManifestError:
        raise
    except RecursionError:
        raise ManifestError(f"{where}: nested too deep for a manifest; is it one?") from None
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON ({error}); was it cut short, or is it another file?") from error
    return value


class Node:
    """A JSON value that knows its path and is read with the type that it must have.

    Arguments:
        value: The parsed value.
        path: Where it stands, e.g. ``$.networks.unet``.
    """

    def __init__(self, value: Any, path: str = "$") -> None:
        self.value = value
        self.path = path

    def fail(self, message: str) -> NoReturn:
        """Raise `ManifestError` with this path."""
        raise ManifestError(f"{self.path}: {message}")

    def _need(self, kind: str) -> NoReturn:
        names: dict[type, str] = {
            type(None): "null",
            bool: "a boolean",
            int: "an integer",
            float: "a number",
            str: "a string",
        }
        found = names.get(type(cast(object, self.value)), "an array" if isinstance(self.value, list) else "an object")
        self.fail(f"is {found}, need {kind}")

    @property
    def is_null(self) -> bool:
        return self.value is None

    def string(self) -> str:
        return self.value if isinstance(self.value, str) else self._need("a string")

    def boolean(self) -> bool:
        return self.value if isinstance(self.value, bool) else self._need("a boolean")

    def integer(self, minimum: int | None = None) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self._need("an integer")
        if minimum is not None and self.value < minimum:
            self.fail(f"is {self.value}, need {minimum} or more")
        return self.value

    def number(self) -> float:
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            self._need("a number")
        try:
            return float(self.value)
        except OverflowError:
            self.fail("is too large for a double; write a smaller number")

    def choice(self, options: tuple[str, ...]) -> str:
        text = self.string()
        return text if text in options else self.fail(f"is {text!r}, need one of {', '.join(options)}")

    def array(self) -> list[Node]:
        value: object = self.value
        if not isinstance(value, list):
            self._need("an array")
        return [Node(item, f"{self.path}[{i}]") for i, item in enumerate(cast("list[object]", value))]

    def mapping(self) -> dict[str, Node]:
        """An object with free keys."""
        value: object = self.value
        if not isinstance(value, dict):
            self._need("an object")
        return {key: Node(item, f"{self.path}.{key}") for key, item in cast("dict[str, object]", value).items()}

    def record(self, *keys: str) -> Iterator[Node]:
        """An object with exactly `keys`, as nodes in that order."""
        nodes = self.mapping()
        for key in nodes:
            if key not in keys:
                self.fail(
                    f"has an unknown key {key!r}, allowed are {', '.join(keys)}; a newer sfumato may have written it"
                )
        for key in keys:
            if key not in nodes:
                self.fail(f"lacks the key {key!r}")
        return iter([nodes[key] for key in keys])

    def fields(self, record: type[DataclassInstance]) -> dict[str, Node]:
        """An object with exactly the fields of a dataclass, as nodes by name."""
        names = [field.name for field in dataclasses.fields(record)]
        return dict(zip(names, self.record(*names), strict=True))

    def build(self, make: Callable[[], T]) -> T:
        """``make()``, with its `ParameterError` told as a fault of this value."""
        try:
            return make()
        except ParameterError as error:
            self.fail(str(error))
