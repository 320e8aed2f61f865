"""Latent Diffusion: pictures from prompts, labels, layouts or nothing; edited, filled in, enlarged.

References:
    Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752
    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598
    Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022 (`edit`),
    https://arxiv.org/abs/2108.01073

``docs/latent_diffusion.md`` leads from each equation to its function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...engines.engine import Backend, Engine
from ...engines.manifest import Manifest
from ...engines.precision import Precision
from ...errors import ManifestError
from .. import image as pictures
from ..schedule import Schedule
from ..tokenizer import Tokenizer
from .base import Edit, Verbs
from .latent_call import Call
from .latent_condition import Given, segmentation_size
from .latent_inpaint import begin_inpaint, check_strength
from .latent_masks import Hole
from .latent_models import Models
from .latent_open import Sources
from .latent_run import RunOptions, make_plan
from .latent_settings import LatentDiffusionSettings
from .latent_sizes import Frame, check_size
from .latent_start import Posterior, begin_at, from_noise, from_picture

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...engines.bundle import Bundle

__all__ = ["LatentDiffusion"]


class LatentDiffusion(Verbs):
    """A latent-diffusion bundle, ready to work. Networks open on first use and stay open; one call at a time.

    Every verb takes the options of `RunOptions` (steps, guidance_scale, sampler, eta, spacing, seed, num_images,
    batch_size, tile, official, on_step) and returns an `Edit` for each picture.

    Arguments:
        manifest: The bundle's manifest.
        open_network: Opens a network by name.
        schedule: The noise schedule; by default the manifest's.
        tokenizer: Opens the tokenizer, where the bundle has one.
    """

    def __init__(
        self,
        manifest: Manifest,
        open_network: Callable[[str], Engine],
        *,
        schedule: Schedule | None = None,
        tokenizer: Callable[[LatentDiffusionSettings], Tokenizer] | None = None,
    ) -> None:
        if manifest.schedule is None:
            raise ManifestError("$.schedule: is null, latent diffusion needs one; export the bundle again")
        self.manifest = manifest
        self.models = Models(manifest, open_network, schedule or Schedule.from_spec(manifest.schedule), tokenizer)
        self.settings = self.models.settings

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        backend: Backend = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> LatentDiffusion:
        """The system of an open bundle; see `load`."""
        open_network, schedule, tokenizer = Sources.of(bundle, backend, precision, threads)
        return cls(bundle.manifest, open_network, schedule=schedule, tokenizer=tokenizer)

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs this bundle can do."""
        encodes = "vae_encoder" in self.manifest.networks
        match self.settings.task:
            case "upscale":
                return ("upscale",)
            case "inpaint":
                return ("inpaint",) if encodes else ()
            case "semantic":
                return ("generate",)
        return ("generate", "edit", "inpaint") if encodes else ("generate",)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] = "",
        label: int | Sequence[int] | None = None,
        tokens: Any = None,
        segmentation: Any = None,
        size: tuple[int, int] | None = None,
        **options: Unpack[RunOptions],
    ) -> list[Edit]:
        """Pictures from noise.

        Arguments:
            prompt: A prompt or several (task "text"); "" is a prompt.
            negative_prompt: What to lead away from; one, or one for each prompt.
            label: A class or several (task "class").
            tokens: Whole numbers (max_tokens,) or (N, max_tokens) (task "layout").
            segmentation: Classes (H, W), or float (classes, H, W) (task "semantic"); its size is the picture's.
            size: Height and width in pixels; by default the bundle's.
            options: See `RunOptions`.

        Returns:
            ``num_images`` pictures for each prompt, label or layout, in their order.

        Raises:
            ParameterError: A size, option or condition does not fit the bundle.
            PromptError: A prompt is not text.
            NonFiniteError: A network made NaN or infinity.
            Cancelled: `on_step` returned False.
        """
        if "generate" not in self.verbs:
            self.refuse("generate", f"its task is {self.settings.task!r}")
        plan = make_plan(options, self.settings.defaults, self.models.schedule)
        if segmentation is not None:
            size = segmentation_size(segmentation, size)
        height, width = check_size(self.models, size or self.settings.image_size, tile=plan.tile)
        call = Call(self.models, plan)
        given = Given(prompt, negative_prompt, label, tokens, segmentation)
        condition = call.conditions(given, repeat=plan.num_images, guided=plan.guided)
        grid = (height // self.settings.factor, width // self.settings.factor)

        return call.run(condition, grid, from_noise(self.models, plan, grid), parameters={"verb": "generate"})

    def edit(
        self,
        image: pictures.Source,
        prompt: str | Sequence[str] | None = None,
        *,
        strength: float = 0.75,
        negative_prompt: str | Sequence[str] = "",
        label: int | Sequence[int] | None = None,
        tokens: Any = None,
        size: tuple[int, int] | None = None,
        posterior: Posterior = "sample",
        reconstruct: bool = False,
        **options: Unpack[RunOptions],
    ) -> list[Edit]:
        """Pictures from a picture: noised part of the way and sampled back under the condition (SDEdit, "img2img").

        Arguments:
            image: The picture; see `runtime.image.read`.
            prompt: As in `generate`; so are `negative_prompt`, `label` and `tokens`.
            strength: How far to noise, above 0 to 1. The last ``int(steps · strength)`` steps are run. With
                ``official`` the latent is noised a step further than sampling starts, as in the authors' script.
            size: Height and width to resize to first; by default the picture keeps its size, and is padded to the
                bundle's multiple while it is worked on.
            posterior: "sample" the latent from the encoder's posterior, as diffusers does, or take its "mode".
            reconstruct: Also decode the picture unchanged, into `Edit.reconstruction`.
            options: See `RunOptions`.

        Raises:
            ImageError: The picture cannot be read.
            Further ones as `generate`.
        """
        self._need("edit")
        plan = make_plan(options, self.settings.defaults, self.models.schedule)
        begin_at(plan, strength)
        frame = Frame.of(self.models, pictures.read(image), size, tile=plan.tile)
        call = Call(self.models, plan)
        given = Given(prompt, negative_prompt, label, tokens)
        condition = call.conditions(given, repeat=plan.num_images, guided=plan.guided)
        code = call.first_stage.encode(frame.tensor())
        again = call.reconstruct(code.latents()) if reconstruct else None

        return call.run(
            condition,
            code.mean.shape[2:],
            from_picture(self.models, plan, code, strength, posterior),
            finish=lambda x: frame.crop(pictures.from_float(x, official=plan.official)),
            parameters={"verb": "edit", "strength": float(strength), "posterior": posterior},
            reconstruction=None if again is None else frame.crop(again),
        )

    def inpaint(
        self,
        image: pictures.Source,
        mask: pictures.Source,
        prompt: str | Sequence[str] | None = None,
        *,
        strength: float = 1.0,
        negative_prompt: str | Sequence[str] = "",
        label: int | Sequence[int] | None = None,
        tokens: Any = None,
        size: tuple[int, int] | None = None,
        paste: bool = True,
        **options: Unpack[RunOptions],
    ) -> list[Edit]:
        """Pictures with a hole filled in. **White is repainted**, whatever kind of model does it.

        A bundle trained for it (task "inpaint") sees the masked picture as further channels. With any other, the known
        part is put back, noised to the step's level, before every step. See `latent_inpaint`.

        Arguments:
            image: The picture.
            mask: Of the picture's size; white (above one half) is the hole. See `runtime.image.read_mask`.
            prompt: As in `generate`; so are `negative_prompt`, `label` and `tokens`.
            strength: As in `edit`; 1 starts from noise. Below 1 the hole keeps traces of what it held. Not for
                models trained to inpaint without a prompt.
            size: Height and width to resize picture and mask to first.
            paste: Put the known pixels back at the end, exactly.
            options: See `RunOptions`.
        """
        self._need("inpaint")
        plan = make_plan(options, self.settings.defaults, self.models.schedule)
        check_strength(self.models, plan, strength)
        picture = pictures.read(image)
        frame = Frame.of(self.models, picture, size, tile=plan.tile)
        hole = Hole.of(frame, pictures.read_mask(mask), picture.shape[:2], self.settings.factor)
        call = Call(self.models, plan)
        given = Given(prompt, negative_prompt, label, tokens)
        condition = call.conditions(given, repeat=plan.num_images, guided=plan.guided)

        return call.run(
            condition,
            frame.grid(self.settings.factor),
            begin_inpaint(self.models, plan, call.first_stage, hole, strength),
            finish=lambda x: hole.fill(x, paste=paste, official=plan.official),
            parameters={"verb": "inpaint", "strength": float(strength), "paste": paste},
            told=("the mask has no white, so nothing is repainted",) if hole.empty else (),
        )

    def upscale(
        self, image: pictures.Source, *, size: tuple[int, int] | None = None, **options: Unpack[RunOptions]
    ) -> list[Edit]:
        """Larger pictures from a picture, which the UNet sees as further channels (task "upscale").

        Arguments:
            image: The picture; it comes back `factor` times as high and wide.
            size: Height and width of the result to resize the picture for first, multiples of the bundle's.
            options: See `RunOptions`.
        """
        self._need("upscale")
        plan = make_plan(options, self.settings.defaults, self.models.schedule)
        factor = self.settings.factor
        frame = Frame.of(self.models, pictures.read(image), size, tile=plan.tile, scale=factor)
        call = Call(self.models, plan)
        condition = call.conditions(Given(), repeat=plan.num_images, guided=plan.guided)
        grid = frame.padded.shape[:2]
        return call.run(
            replace(condition, concat=frame.tensor()),
            grid,
            from_noise(self.models, plan, grid),
            finish=lambda x: frame.crop(pictures.from_float(x, official=plan.official), factor),
            parameters={"verb": "upscale"},
        )

    def close(self) -> None:
        """Close the networks; they open again on use."""
        self.models.close()

    def _need(self, verb: str) -> None:
        if verb not in self.verbs:
            encodes = "vae_encoder" in self.manifest.networks
            self.refuse(verb, f"its task is {self.settings.task!r}" if encodes else "it has no 'vae_encoder'")
