"""Settings of the system "latent-diffusion": what a manifest says of it beyond networks and schedule.

A bundle's ``settings`` object has exactly the keys of `LatentDiffusionSettings`; ``defaults`` has exactly those
of `Defaults`. Export writes them with `to_json`, `LatentDiffusion` reads them with `from_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, cast, get_args

from ...engines.strict import JSON, Node
from ...errors import ParameterError
from ..sampler import SAMPLERS
from ..spacings import Spacing

__all__ = ["Conditioning", "Defaults", "FirstStage", "LatentDiffusionSettings", "Task", "Tokenizer"]

Task: TypeAlias = Literal["text", "class", "unconditional", "layout", "inpaint", "upscale", "semantic"]
Conditioning: TypeAlias = Literal["none", "crossattn", "concat", "hybrid", "adm"]
FirstStage: TypeAlias = Literal["kl", "vq"]
Tokenizer: TypeAlias = Literal["clip", "bert"]

_CONDITIONINGS: Mapping[str, tuple[str, ...]] = {
    "text": ("crossattn",),
    "class": ("crossattn", "adm"),
    "unconditional": ("none",),
    "layout": ("crossattn",),
    "inpaint": ("concat", "hybrid"),
    "upscale": ("concat",),
    "semantic": ("concat",),
}
"""How each task may reach the UNet."""


@dataclass(frozen=True)
class Defaults:
    """What a run takes where the caller says nothing.

    Arguments:
        steps: Sampling steps, 1 or more.
        guidance_scale: s of classifier-free guidance e_u + s (e_c - e_u); 1 is none.
        sampler: Name for `make_sampler`, e.g. "ddim".
        eta: DDIM's η in [0, 1].
        spacing: Name for `Schedule.timesteps`, e.g. "leading".
    """

    steps: int = 50
    guidance_scale: float = 1.0
    sampler: str = "ddim"
    eta: float = 0.0
    spacing: str = "leading"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance_scale < 0 or not 0 <= self.eta <= 1:
            raise ParameterError(f"{self} needs steps >= 1, guidance_scale >= 0 and eta in [0, 1]")
        if self.sampler not in SAMPLERS:
            raise ParameterError(f"sampler is {self.sampler!r}, need one of {', '.join(SAMPLERS)}")
        if self.spacing not in get_args(Spacing):
            raise ParameterError(f"spacing is {self.spacing!r}, need one of {', '.join(get_args(Spacing))}")


@dataclass(frozen=True)
class LatentDiffusionSettings:
    """The record ``settings`` of a latent-diffusion bundle.

    Arguments:
        task: What the model was trained for.
        conditioning: How its condition reaches the UNet: as ``context``, as channels beside x ("concat"), as both
            ("hybrid"), as label ``y`` ("adm"), or not.
        latent_channels: Channels of a latent.
        factor: Pixels to one latent along a side.
        scale_factor: The UNet's latent is scale_factor · z, where z is the first stage's.
        first_stage: "kl" encodes to mean and log-variance; "vq" to a latent that decode quantises.
        image_size: Default height and width in pixels.
        size_multiple: Heights and widths are multiples of this many pixels.
        null_class: The class that stands for "no class" in guidance (`class` task), else None.
        max_tokens: Tokens of a prompt or a layout, those around it included; None for models that take neither.
        tokenizer: Its family; the asset with role "tokenizer" is its ``tokenizer.json``. None where tokens are given.
        defaults: Steps, scale, sampler …
    """

    task: Task
    conditioning: Conditioning
    latent_channels: int
    factor: int
    scale_factor: float
    first_stage: FirstStage
    image_size: tuple[int, int]
    size_multiple: int
    null_class: int | None = None
    max_tokens: int | None = None
    tokenizer: Tokenizer | None = None
    defaults: Defaults = field(default_factory=Defaults)

    def __post_init__(self) -> None:
        allowed = _CONDITIONINGS.get(self.task)
        if allowed is None:
            raise ParameterError(f"task is {self.task!r}, need one of {', '.join(_CONDITIONINGS)}")
        if self.conditioning not in allowed:
            raise ParameterError(
                f"task {self.task!r} has conditioning {self.conditioning!r}, need {' or '.join(allowed)}"
            )
        if min(self.latent_channels, self.factor, self.size_multiple) < 1 or not self.scale_factor > 0:
            raise ParameterError(f"{self} needs latent_channels, factor, size_multiple >= 1 and scale_factor > 0")
        if self.size_multiple % self.factor:
            raise ParameterError(f"size_multiple is {self.size_multiple}, need a multiple of factor {self.factor}")
        if len(self.image_size) != 2 or any(n < 1 or n % self.size_multiple for n in self.image_size):
            raise ParameterError(f"image_size is {self.image_size}, need two multiples of {self.size_multiple}")
        if self.prompted and (self.tokenizer is None or self.max_tokens is None):
            raise ParameterError(
                f"task {self.task!r} with conditioning {self.conditioning!r} needs a tokenizer and max_tokens"
            )
        if self.task == "layout" and self.max_tokens is None:
            raise ParameterError("task 'layout' needs max_tokens")
        if (self.null_class is not None and self.null_class < 0) or (
            self.max_tokens is not None and self.max_tokens < 3
        ):
            raise ParameterError(
                f"null_class is {self.null_class} (need 0 or more), max_tokens {self.max_tokens} (need 3)"
            )

    @property
    def prompted(self) -> bool:
        """Whether the model takes a prompt."""
        return self.task == "text" or self.conditioning == "hybrid"

    @classmethod
    def from_json(cls, value: Mapping[str, JSON], path: str = "$.settings") -> LatentDiffusionSettings:
        """The settings in a parsed JSON object.

        Raises:
            ManifestError: A key is unknown or missing, or a value is out of place; the message names the JSON path.
        """
        root = Node(dict(value), path)
        nodes = root.fields(cls)
        fields: dict[str, Any] = {
            "task": nodes["task"].choice(get_args(Task)),
            "conditioning": nodes["conditioning"].choice(get_args(Conditioning)),
            "first_stage": nodes["first_stage"].choice(get_args(FirstStage)),
            "scale_factor": nodes["scale_factor"].number(),
            "image_size": tuple(item.integer(1) for item in nodes["image_size"].array()),
            "tokenizer": None if nodes["tokenizer"].is_null else nodes["tokenizer"].choice(get_args(Tokenizer)),
            "defaults": _defaults(nodes["defaults"]),
        }
        fields |= {name: nodes[name].integer(1) for name in ("latent_channels", "factor", "size_multiple")}
        for name in ("null_class", "max_tokens"):
            fields[name] = None if nodes[name].is_null else nodes[name].integer(0)
        return root.build(lambda: cls(**fields))

    def to_json(self) -> dict[str, JSON]:
        """The JSON object that `from_json` reads."""
        return cast("dict[str, JSON]", {**asdict(self), "image_size": list(self.image_size)})


def _defaults(node: Node) -> Defaults:
    steps, scale, sampler, eta, spacing = node.record("steps", "guidance_scale", "sampler", "eta", "spacing")
    return node.build(
        lambda: Defaults(steps.integer(1), scale.number(), sampler.string(), eta.number(), spacing.string())
    )
