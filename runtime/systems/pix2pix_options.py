"""Options of pix2pix-zero, checked against a bundle's defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ...engines.strict import JSON
from ...errors import DirectionError, ParameterError
from ..attention_guidance import Kept, check_guidance
from ..direction import Direction
from .base import OnStep
from .options import number, stated, whole
from .pix2pix_settings import Pix2PixZeroSettings

__all__ = ["EditOptions", "Pix2PixOptions", "make_options"]


class Pix2PixOptions(TypedDict, total=False):
    """Options of every edit; what is left out comes from the bundle's `Pix2PixZeroSettings`.

    Arguments:
        source_word: What is in the picture, e.g. "red apple".
        target_word: What it should become; both words together make a direction.
        direction: A direction, or the path of one, in place of the words.
        attention_guidance: lambda_xa, how firmly attention keeps to the picture's; more keeps more of it. 0 leaves the
            gradient out. For models that predict v, diffusers advises 0.01 and less.
        edit_multiplier: Factor on the direction; more changes more.
        steps: Of inversion and of sampling.
        guidance_scale: Above 1; it too multiplies the direction.
        kept: "negative" (the authors') or "shared"; see `attention_guidance.Kept`.
        apart: One row at a time, by two networks instead of three: half the memory, the same edit, a tenth slower.
        size: Height and width to work at, multiples of the bundle's.
        seed: Of all that is drawn; 0 by default.
        official: Picture squashed to the bundle's size and truncated to 8 bits, as the authors' scripts do.
        on_step: Called with `Progress` after every step of inversion and of sampling; returning False stops.
    """

    source_word: str
    target_word: str
    direction: Direction | str | os.PathLike[str]
    attention_guidance: float
    edit_multiplier: float
    steps: int
    guidance_scale: float
    kept: Kept
    apart: bool
    size: tuple[int, int]
    seed: int
    official: bool
    on_step: OnStep


@dataclass(frozen=True)
class EditOptions:
    """Checked options; see `Pix2PixOptions`. ``amount`` is lambda_xa, ``multiplier`` that of the direction."""

    steps: int
    guidance_scale: float
    amount: float
    multiplier: float
    kept: Kept
    apart: bool
    official: bool
    seed: int
    on_step: OnStep | None
    size: tuple[int, int] | None
    words: tuple[str, str] | None
    direction: Direction | str | os.PathLike[str] | None

    def parameters(self) -> dict[str, JSON]:
        """What of it makes the picture, as JSON."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "attention_guidance": self.amount,
            "edit_multiplier": self.multiplier,
            "kept": self.kept,
            "official": self.official,
        }


def make_options(options: Pix2PixOptions, defaults: Pix2PixZeroSettings, amount: float) -> EditOptions:
    """Options checked and completed.

    Arguments:
        options: As given; None is as good as nothing.
        defaults: The bundle's.
        amount: lambda_xa where none is given.

    Raises:
        ParameterError: A value is out of range or of the wrong kind.
        DirectionError: The direction is none, nor a path.
        TypeError: An option does not exist.
    """
    given = stated(options, Pix2PixOptions)
    scale = number("guidance_scale", given.get("guidance_scale", defaults.guidance_scale))
    amount = number("attention_guidance", given.get("attention_guidance", amount))
    kept = given.get("kept", "negative")
    check_guidance(scale, amount, kept)
    return EditOptions(
        steps=whole("steps", given.get("steps", defaults.steps)),
        guidance_scale=scale,
        amount=amount,
        multiplier=number("edit_multiplier", given.get("edit_multiplier", 1.0)),
        kept=kept,
        apart=bool(given.get("apart", False)),
        official=bool(given.get("official", False)),
        seed=whole("seed", given.get("seed", 0)),
        on_step=given.get("on_step"),
        size=given.get("size"),
        words=_words(given),
        direction=_direction(given),
    )


def _words(given: Mapping[str, Any]) -> tuple[str, str] | None:
    """The words that make a direction, if it is not given itself."""
    words = [given[name] for name in ("source_word", "target_word") if name in given]
    if "direction" in given:
        if words:
            raise ParameterError(f"a direction and the words {words} were given; pass one or the other")
        return None
    if len(words) != 2:
        raise ParameterError(
            f"an edit needs a direction, or a source word and a target word, and {words or 'neither'} was given; pass "
            "source_word='cat' and target_word='dog', or the file that `sfumato direction` wrote"
        )
    for word in words:
        if not isinstance(word, str):
            raise ParameterError(
                f"a word of the edit is of type {type(word).__name__}, need text; pass source_word='cat' and "
                "target_word='dog', or a direction of sentences"
            )
    return words[0], words[1]


def _direction(given: Mapping[str, Any]) -> Direction | str | os.PathLike[str] | None:
    direction = given.get("direction")
    if direction is None or isinstance(direction, (Direction, str, os.PathLike)):
        return direction
    raise DirectionError(
        f"the direction is of type {type(direction).__name__}, need a Direction, or the path of its .npz file; "
        "make one with `sfumato direction`, or of an array with Direction(delta)"
    )
