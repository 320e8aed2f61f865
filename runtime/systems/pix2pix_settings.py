"""Settings of pix2pix-zero: what a bundle's ``pix2pix_zero.json`` says a model should be edited with.

The file is the asset with role `ROLE` of a latent-diffusion bundle that also has `MAPS` and `GRADIENT`; a bundle
without it is edited with the authors' values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from ...engines.strict import JSON, Node, parse
from ...errors import ParameterError

__all__ = ["GRADIENT", "MAPS", "ROLE", "Inversion", "Pix2PixZeroSettings"]

ROLE = "pix2pix_zero"
MAPS, GRADIENT = "unet_maps", "unet_gradient"

Inversion: TypeAlias = Literal["official", "diffusers", "plain"]
"""Which climbs lead up: see `runtime.inversion`."""


@dataclass(frozen=True)
class Pix2PixZeroSettings:
    """What an edit takes where the caller says nothing. The values here are the authors'.

    Arguments:
        steps: Of inversion and of sampling.
        guidance_scale: Above 1.
        attention_guidance: lambda_xa for pictures.
        synthetic_attention_guidance: lambda_xa for pictures from noise.
        inversion: How to invert.
        ac: lambda_ac of the noise regularisation, 0 for none.
        kl: lambda_kl, 0 for none.
        outer: Rounds of it at each step.
        rolls: Steps on the auto-correlation in each round.
        sentences: How many to average on either side of a direction between two words.
        templates: Sentences with ``{}`` or ``{a}`` for the thing, like the captions that the model was trained on;
            empty for the built-in grammar.
    """

    steps: int = 50
    guidance_scale: float = 5.0
    attention_guidance: float = 0.1
    synthetic_attention_guidance: float = 0.15
    inversion: Inversion = "official"
    ac: float = 20.0
    kl: float = 20.0
    outer: int = 5
    rolls: int = 5
    sentences: int = 500
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        amounts = (self.attention_guidance, self.synthetic_attention_guidance, self.ac, self.kl)
        counted = min(self.steps, self.outer, self.rolls, self.sentences) >= 1
        if not (counted and all(0 <= amount < math.inf for amount in amounts) and 1 < self.guidance_scale < math.inf):
            raise ParameterError(f"{self} needs counts >= 1, finite amounts >= 0 and a finite guidance_scale > 1")
        if self.inversion not in get_args(Inversion):
            raise ParameterError(f"inversion is {self.inversion!r}, need one of {', '.join(get_args(Inversion))}")

    @classmethod
    def from_json(cls, value: Mapping[str, JSON], path: str = "$") -> Pix2PixZeroSettings:
        """The settings in a parsed JSON object, every key there.

        Raises:
            ManifestError: A key is unknown or missing, or a value is out of place; the message names the JSON path.
        """
        root = Node(dict(value), path)
        nodes = root.fields(cls)
        fields: dict[str, Any] = {
            "inversion": nodes["inversion"].choice(get_args(Inversion)),
            "templates": tuple(item.string() for item in nodes["templates"].array()),
        }
        fields |= {name: nodes[name].integer(1) for name in ("steps", "outer", "rolls", "sentences")}
        for name in ("guidance_scale", "attention_guidance", "synthetic_attention_guidance", "ac", "kl"):
            fields[name] = nodes[name].number()
        return root.build(lambda: cls(**fields))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Pix2PixZeroSettings:
        """The settings in a JSON file."""
        value = parse(data, where)
        return cls.from_json(value if isinstance(value, dict) else {}, where)

    def to_json(self) -> dict[str, JSON]:
        """The JSON object that `from_json` reads."""
        return cast("dict[str, JSON]", {**asdict(self), "templates": list(self.templates)})

    def to_bytes(self) -> bytes:
        """The file that `from_bytes` reads."""
        return (json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n").encode()
