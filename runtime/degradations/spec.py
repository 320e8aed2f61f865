"""Degradations as records: kind and parameters in JSON, made into objects for a batch of pictures.

What a manifest or a training checkpoint says of a degradation. What depends on the pictures (their size, what is drawn
for them, a second picture) is not in the record but given to `DegradationSpec.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, cast, get_args

import numpy as np

from ...engines.binding import Array
from ...engines.strict import JSON, Node
from ...errors import ParameterError
from ..degradation import Degradation
from ..rng import Noise
from .animorphosis import Animorphosis
from .blur import Blur
from .decolor import Decolor
from .inpaint import ColourFade, Inpaint, Uniform
from .noise import HotNoise
from .resolution import Resolution
from .snow import Snow

__all__ = ["DegradationSpec", "Kind", "Random", "Value"]

Kind: TypeAlias = Literal["blur", "inpaint", "fade", "resolution", "snow", "decolor", "noise", "animorphosis"]
Value: TypeAlias = "bool | int | float | str"


class Random(Noise, Uniform, Protocol):
    """Normals and uniforms; `rng.TorchGenerator` and `rng.PhiloxGenerator` are."""


def _defaults(family: type, *left_out: str, **added: Value) -> dict[str, Value | None]:
    """Parameters of a family's dataclass with their defaults; None stands for "has to be given"."""
    own = {f.name: None if f.default is MISSING else cast(Value, f.default) for f in fields(family) if f.init}
    return {name: value for name, value in own.items() if name not in left_out} | added


_PARAMETERS: Mapping[str, Mapping[str, Value | None]] = {
    "blur": _defaults(Blur),
    "inpaint": _defaults(Inpaint, "size", "offsets"),
    "fade": _defaults(ColourFade, "size", "colour"),
    "resolution": _defaults(Resolution),
    "snow": _defaults(Snow, "size", "images", random=False, single=False),
    "decolor": _defaults(Decolor),
    "noise": {"steps": None, "estimated": False},
    "animorphosis": {"steps": None, "estimated": True},
}


@dataclass(frozen=True)
class DegradationSpec:
    """A degradation's kind and parameters; use `of`, which fills in what is left out.

    Parameters have the names and meanings of the family's class; besides, for ``snow``, ``random`` draws the field anew
    for each call and ``single`` for each picture; for ``noise`` and ``animorphosis``, ``estimated`` forgets the end
    picture after degrading and estimates it at each step (the original's ``sample``), where False keeps it (its
    ``gen_sample``).

    Arguments:
        kind: Which family.
        parameters: All of its parameters by name.
    """

    kind: Kind
    parameters: Mapping[str, Value]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ParameterError(f"no degradation is named {self.kind!r}; use one of {', '.join(get_args(Kind))}")
        known = _PARAMETERS[self.kind]
        if self.parameters.keys() != known.keys():
            self._refuse(self.parameters.keys() ^ known.keys())
        for name, value in self.parameters.items():
            kind = _type(known[name])
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                raise ParameterError(f"{self.kind}'s {name} is {value!r}, need {_article(kind)}; pass {name}=VALUE")
        self.build((2, 3, 64, 64), bare=True)

    @classmethod
    def of(cls, kind: str, **given: Value) -> DegradationSpec:
        """With the family's defaults for all that is not given; ``steps`` has none.

        Raises:
            ParameterError: A name or value is not one of the family's.
        """
        known = _PARAMETERS.get(kind, {})
        whole = {**known, **given}
        for name, value in whole.items():  # 3 stands for 3.0
            if name in known and _type(known[name]) is float and type(value) is int:
                whole[name] = float(value)
        missing = [name for name, value in whole.items() if value is None]
        if missing:
            raise ParameterError(f"{kind} lacks {', '.join(missing)}; pass {missing[0]}=NUMBER")
        return cls(cast(Kind, kind), cast("dict[str, Value]", whole))

    @classmethod
    def parse(cls, kind: str, assignments: Iterable[str]) -> DegradationSpec:
        """Of words like ``steps=30``, as a command line gives them.

        Raises:
            ParameterError: A word is no such assignment, or see `of`.
        """
        given: dict[str, Value] = {}
        for word in assignments:
            name, equals, text = word.partition("=")
            if not equals:
                raise ParameterError(f"{word!r} assigns nothing; write NAME=VALUE, as in steps=30")
            given[name.strip()] = _value(text.strip(), _PARAMETERS.get(kind, {}).get(name.strip(), ""))
        return cls.of(kind, **given)

    @classmethod
    def from_node(cls, node: Node) -> DegradationSpec:
        """Of a JSON object ``{"kind": …, …}`` with every parameter.

        Raises:
            ManifestError: A key is unknown or missing, or a value is out of place; names the JSON path.
        """
        value = node.value
        kind = Node(value.get("kind") if isinstance(value, dict) else None, f"{node.path}.kind").choice(get_args(Kind))
        names = tuple(_PARAMETERS[kind])
        read = dict(zip(names, list(node.record("kind", *names))[1:], strict=True))
        return node.build(lambda: cls.of(kind, **{name: _read(n, _PARAMETERS[kind][name]) for name, n in read.items()}))

    def to_json(self) -> dict[str, JSON]:
        """The JSON object that `from_node` reads."""
        return {"kind": self.kind, **self.parameters}

    @property
    def steps(self) -> int:
        """T."""
        return cast(int, self.parameters["steps"])

    @property
    def needs_picture(self) -> bool:
        """Whether degrading takes a second picture."""
        return self.kind == "animorphosis"

    @property
    def mixes(self) -> bool:
        """Whether the picture is mixed with an end picture or noise."""
        return self.kind in ("noise", "animorphosis")

    @property
    def square(self) -> bool:
        """Whether pictures have to be square with an even side."""
        return self.kind in ("inpaint", "fade")

    @property
    def fixed(self) -> bool:
        """Whether nothing is drawn or given for a batch: one object serves all batches of a size."""
        p = self.parameters
        return {
            "inpaint": p.get("routine") != "Random_Incremental",
            "snow": not (p.get("random") or p.get("single")),
        }.get(self.kind, self.kind in ("blur", "resolution", "decolor"))

    def build(
        self,
        shape: tuple[int, int, int, int],
        rng: Random | None = None,
        *,
        end: Array | None = None,
        offsets: Array | None = None,
        bare: bool = False,
    ) -> Degradation:
        """The degradation for a batch.

        Arguments:
            shape: Of the pictures, (B, C, H, W).
            rng: Draws what is drawn: holes, snow, colours, noise. Not asked where nothing is.
            end: The second picture, noise or colours (B, C), instead of drawing them.
            offsets: Where the holes of "Random_Incremental" are, (B, 2), instead of drawing them; see `Inpaint`.
            bare: Leave out what would be drawn or given: to try parameters, or to estimate an end that is not known.

        Raises:
            ParameterError: The pictures do not fit, something to be given was not, or a parameter is out of range.
        """
        p: dict[str, Any] = dict(self.parameters)
        batch, _, height, width = shape
        if self.square and (height != width or height % 2):
            raise ParameterError(
                f"pictures have {height}x{width} pixels, {self.kind} takes squares with an even side; "
                f"resize to size=({_even(height, width)}, {_even(height, width)})"
            )
        make: Callable[..., Any]
        match self.kind:
            case "blur":
                return Blur(**p)
            case "resolution":
                return Resolution(**p)
            case "decolor":
                return Decolor(**p)
            case "inpaint":
                hole = Inpaint(size=height, offsets=offsets, **p)
                return hole if hole.deterministic or offsets is not None or bare else hole.drawn(batch, _need(rng))
            case "fade":
                if end is None:
                    end = np.zeros((1, 3)) if bare else ColourFade.colours(batch, _need(rng), shape[1])
                return ColourFade(size=height, colour=end, **p)
            case "snow":
                random, single = p.pop("random"), p.pop("single")
                if (random or single) and not bare:
                    p["seed"] = int(_need(rng).rand((1,))[0] * 2**24)
                return Snow(size=(8, 8) if bare else (height, width), images=batch if single else 0, **p)
            case "noise" | "animorphosis":
                make = HotNoise if self.kind == "noise" else Animorphosis
                if end is None and not bare:
                    if self.kind == "animorphosis":
                        raise ParameterError(
                            "animorphosis turns a picture into a second one and none was given; pass second=PICTURE"
                        )
                    end = _need(rng).randn(shape)
                return cast(Degradation, make(p["steps"], end))

    def _refuse(self, names: Iterable[str]) -> NoReturn:
        known = ", ".join(_PARAMETERS[self.kind])
        raise ParameterError(f"{self.kind} disagrees on {', '.join(sorted(names))}; its parameters are {known}")


def _type(default: Value | None) -> type:
    return int if default is None else type(default)


def _article(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}[kind]


def _value(text: str, default: Value | None) -> Value:
    """Text as the type of the default; what cannot be read stays text, for the message."""
    kind = _type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return cast(Value, kind(text))
    except (KeyError, ValueError):
        return text


def _read(node: Node, default: Value | None) -> Value:
    kind = _type(default)
    if kind is bool:
        return node.boolean()
    if kind is str:
        return node.string()
    return node.integer() if kind is int else node.number()


def _even(height: int, width: int) -> int:
    side = min(height, width)
    return max(2, side - side % 2)


def _need(rng: Random | None) -> Random:
    if rng is None:
        raise ParameterError("this degradation draws something for its pictures; pass rng")
    return rng
