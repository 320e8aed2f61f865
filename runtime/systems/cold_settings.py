"""Settings of the system "cold-diffusion": what a manifest says of it beyond its one network.

A bundle's ``settings`` object has exactly the keys of `ColdDiffusionSettings`; ``generation`` is null or has exactly
those of `Generation`. Export writes them with `to_json`, `ColdDiffusion` reads them with `from_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from ...engines.strict import JSON, Node
from ...errors import ParameterError
from ..degradations.spec import DegradationSpec

__all__ = ["ColdDiffusionSettings", "Generation", "Start"]

Start: TypeAlias = Literal["means", "thumbnails", "colour", "noise", "picture"]

_STARTS: Mapping[str, tuple[str, ...]] = {
    "blur": ("means", "thumbnails"),
    "resolution": ("means", "thumbnails"),
    "fade": ("colour",),
    "noise": ("noise",),
    "animorphosis": ("picture",),
}
"""What each degradation can generate from; the others leave too much of a picture to begin with."""


@dataclass(frozen=True)
class Generation:
    """How pictures are made from nothing; see `runtime.cold_generation`.

    Arguments:
        start: "means", one colour a picture from a mixture of pictures' means; "thumbnails", from a mixture of small
            pictures (the asset with role "mixture" for both); "colour", drawn from U(-0.5, 0.5); "noise"; "picture", a
            second picture is given.
        side: Side of a thumbnail in pixels, 1 for all else.
        upscale: How thumbnails are enlarged.
        severity: Severity that the start is at, T if None.
        noise: Level of the noise that breaks the symmetry; the paper has 0.002.
        remove_noise: Subtract that noise at the end.
    """

    start: Start
    side: int = 1
    upscale: Literal["bilinear", "nearest"] = "bilinear"
    severity: int | None = None
    noise: float = 0.0
    remove_noise: bool = False

    def __post_init__(self) -> None:
        if self.side < 1 or self.noise < 0 or (self.severity is not None and self.severity < 1):
            raise ParameterError(f"{self} needs side >= 1, noise >= 0 and severity >= 1")
        if (self.start == "thumbnails") != (self.side > 1):
            raise ParameterError(
                f"generation from {self.start} has side {self.side}; thumbnails have 2 or more, else 1"
            )

    @property
    def from_mixture(self) -> bool:
        """Whether the asset "mixture" is needed."""
        return self.start in ("means", "thumbnails")


@dataclass(frozen=True)
class ColdDiffusionSettings:
    """The record ``settings`` of a cold-diffusion bundle.

    Arguments:
        degradation: What the network undoes.
        channels: Channels of a picture: 3, or 1 for grey ones.
        image_size: Height and width in pixels that it was trained on.
        size_multiple: Heights and widths are multiples of this many pixels.
        quantised: Degraded pictures are cut to 8 bits before they are restored, as in training.
        algorithm: Of a restoration unless told, 1 or 2.
        generation: How pictures are generated; None if they cannot be.
    """

    degradation: DegradationSpec
    channels: int
    image_size: tuple[int, int]
    size_multiple: int
    quantised: bool = False
    algorithm: Literal[1, 2] = 2
    generation: Generation | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.algorithm not in (1, 2) or self.size_multiple < 1:
            raise ParameterError(
                f"channels are {self.channels} (need 1 or 3), algorithm {self.algorithm} (1 or 2), "
                f"size_multiple {self.size_multiple} (1 or more)"
            )
        if len(self.image_size) != 2 or any(n < 1 or n % self.size_multiple for n in self.image_size):
            raise ParameterError(f"image_size is {self.image_size}, need two multiples of {self.size_multiple}")
        kind, steps = self.degradation.kind, self.degradation.steps
        if self.degradation.square and (self.image_size[0] != self.image_size[1] or self.image_size[0] % 2):
            raise ParameterError(f"image_size is {self.image_size}, {kind} takes squares with an even side")
        if self.degradation.parameters.get("lab") and self.channels != 3:
            raise ParameterError(f"channels are {self.channels}, Lab pictures have 3")
        if self.generation is not None:
            if self.generation.start not in _STARTS.get(kind, ()):
                allowed = " or ".join(_STARTS.get(kind, ())) or "nothing"
                raise ParameterError(f"{kind} generates from {allowed}, not from {self.generation.start}")
            if (self.generation.severity or 1) > steps:
                raise ParameterError(
                    f"generation starts at severity {self.generation.severity}, {kind} has 1 … {steps}"
                )

    @classmethod
    def from_json(cls, value: Mapping[str, JSON], path: str = "$.settings") -> ColdDiffusionSettings:
        """The settings in a parsed JSON object.

        Raises:
            ManifestError: A key is unknown or missing, or a value is out of place; the message names the JSON path.
        """
        root = Node(dict(value), path)
        nodes = root.fields(cls)
        given: dict[str, Any] = {
            "degradation": DegradationSpec.from_node(nodes["degradation"]),
            "image_size": tuple(item.integer(1) for item in nodes["image_size"].array()),
            "quantised": nodes["quantised"].boolean(),
            "generation": None if nodes["generation"].is_null else _generation(nodes["generation"]),
        }
        given |= {name: nodes[name].integer(1) for name in ("channels", "size_multiple", "algorithm")}
        return root.build(lambda: cls(**given))

    def to_json(self) -> dict[str, JSON]:
        """The JSON object that `from_json` reads."""
        generation = None if self.generation is None else asdict(self.generation)
        return {
            "degradation": self.degradation.to_json(),
            "channels": self.channels,
            "image_size": list(self.image_size),
            "size_multiple": self.size_multiple,
            "quantised": self.quantised,
            "algorithm": self.algorithm,
            "generation": cast(JSON, generation),
        }


def _generation(node: Node) -> Generation:
    nodes = node.fields(Generation)
    given: dict[str, Any] = {
        "start": nodes["start"].choice(get_args(Start)),
        "side": nodes["side"].integer(1),
        "upscale": nodes["upscale"].choice(("bilinear", "nearest")),
        "severity": None if nodes["severity"].is_null else nodes["severity"].integer(1),
        "noise": nodes["noise"].number(),
        "remove_noise": nodes["remove_noise"].boolean(),
    }
    return node.build(lambda: Generation(**given))
