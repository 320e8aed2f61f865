"""pix2pix-zero: pictures led from one thing to another along an edit direction, their layout kept.

References:
    Parmar, Singh, Zhang, Li, Lu, Zhu, "Zero-shot Image-to-Image Translation", 2023, https://arxiv.org/abs/2302.03027

``docs/pix2pix_zero.md`` leads from each equation to its function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Backend, Engine
from ...engines.manifest import Manifest
from ...engines.precision import Precision
from ...engines.strict import JSON
from ...errors import BundleError, ManifestError, ParameterError, PromptError
from .. import image as pictures
from ..attention_guidance import Guide
from ..direction import Direction
from ..rng import TorchGenerator
from ..schedule import Schedule
from ..sentences import from_grammar
from ..tokenizer import Tokenizer
from .base import Edit, Verbs
from .latent_models import Models
from .latent_open import Sources
from .latent_settings import LatentDiffusionSettings
from .latent_sizes import check_size
from .latent_start import Posterior
from .pix2pix_call import Pix2PixCall, climbs, scaled
from .pix2pix_open import captioner_of, guide_opener, read_settings
from .pix2pix_options import EditOptions, Pix2PixOptions, make_options
from .pix2pix_settings import MAPS, Inversion, Pix2PixZeroSettings
from .pix2pix_size import fit_picture
from .text_states import TextStates

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...engines.bundle import Bundle

__all__ = ["Pix2PixZero"]


class Pix2PixZero(Verbs):
    """A text-to-picture bundle with the networks ``unet_maps`` and ``unet_gradient``, ready to edit with.

    Arguments:
        manifest: The bundle's manifest, of system "latent-diffusion".
        open_network: Opens a network by name.
        open_guide: Opens the gradient of the attention loss, at the first edit that needs it.
        schedule: The noise schedule; by default the manifest's.
        tokenizer: Opens the tokenizer.
        defaults: What an edit takes where the caller says nothing.
        digest: What the text encoder is known by in directions.
        captioner: Says what a picture shows, where the bundle can.

    Raises:
        ManifestError: The bundle is no text-to-picture model.
        BundleError: It has no network that shows its attention maps.
    """

    kind = "pix2pix-zero"
    options = Pix2PixOptions

    def __init__(
        self,
        manifest: Manifest,
        open_network: Callable[[str], Engine],
        open_guide: Callable[[], Guide],
        *,
        schedule: Schedule | None = None,
        tokenizer: Callable[[LatentDiffusionSettings], Tokenizer] | None = None,
        defaults: Pix2PixZeroSettings | None = None,
        digest: str = "",
        captioner: Callable[[Array], str] | None = None,
    ) -> None:
        if manifest.schedule is None:
            raise ManifestError("$.schedule: is null, pix2pix-zero needs one; export the bundle again")
        self.manifest = manifest
        self.models = Models(manifest, open_network, schedule or Schedule.from_spec(manifest.schedule), tokenizer)
        settings = self.models.settings
        if settings.task != "text" or settings.conditioning != "crossattn":
            raise ManifestError(
                f"$.settings.task: is {settings.task!r} with conditioning {settings.conditioning!r}, "
                "pix2pix-zero edits with text-to-picture models; use such a bundle"
            )
        if MAPS not in manifest.networks:
            raise BundleError(
                f"bundle {manifest.name!r} has no network {MAPS!r}, so pix2pix-zero cannot keep to its attention maps; "
                "make one with `sfumato export pix2pix-zero`, or edit it with a prompt alone"
            )
        self.settings = settings
        self.defaults = defaults or Pix2PixZeroSettings()
        self._open_guide = open_guide
        self._guide: Guide | None = None
        self._digest = digest
        self._captioner = captioner

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        backend: Backend = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> Pix2PixZero:
        """The system of an open bundle; see `load`. With the backend "torch" the gradient is torch's autograd."""
        engines: Backend = "auto" if backend == "torch" else backend
        open_network, schedule, tokenizer = Sources.of(bundle, engines, precision, threads)
        return cls(
            bundle.manifest,
            open_network,
            guide_opener(bundle, backend, precision, threads),
            schedule=schedule,
            tokenizer=tokenizer,
            defaults=read_settings(bundle),
            digest=bundle.digest("text_encoder") if "text_encoder" in bundle.manifest.networks else "",
            captioner=captioner_of(bundle, open_network),
        )

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs this bundle can do."""
        return ("generate", "edit") if "vae_encoder" in self.manifest.networks else ("generate",)

    def edit(
        self,
        image: pictures.Source,
        prompt: str | None = None,
        *,
        inversion: Inversion | None = None,
        regularize: bool = True,
        posterior: Posterior = "sample",
        **options: Unpack[Pix2PixOptions],
    ) -> list[Edit]:
        """A picture with one thing turned into another: inverted under its caption, and sampled along the direction.

        Without a ``size`` the picture is scaled so that its longer side is the bundle's, sides rounded to the bundle's
        multiple (`official`: squashed to the bundle's size); it is said in the warnings.

        Arguments:
            image: The picture; see `runtime.image.read`.
            prompt: Its caption. It is the negative prompt too, so that guidance acts along the direction alone.
            inversion: "official" (pix2pix-zero's code), "diffusers" or "plain"; see `runtime.inversion`.
            regularize: Make the predicted noise white while inverting, by the bundle's weights.
            posterior: "sample" the latent from the encoder's posterior, as the authors do, or take its "mode".
            options: See `Pix2PixOptions`.

        Returns:
            One `Edit`; its ``reconstruction`` is what the inverted noise leads back to without the edit, its
            ``original`` the picture as it was worked on.

        Raises:
            ImageError: The picture cannot be read.
            PromptError: There is no caption and no captioner, or no text.
            DirectionError: The direction is another text encoder's, or no direction.
            ParameterError: An option is out of range, a size does not fit, or noise regularisation or attention
                guidance diverges.
            BundleError: The bundle has no gradient.
            NonFiniteError: A network made NaN or infinity; it, the step and the tensor are named.
            Cancelled: `on_step` returned False.
        """
        if "edit" not in self.verbs:
            self.refuse("edit", "it has no 'vae_encoder'")
        chosen = make_options(options, self.defaults, self.defaults.attention_guidance)
        if posterior not in get_args(Posterior):
            raise ParameterError(f"posterior is {posterior!r}, need 'sample' or 'mode'; pass one of these")
        method = inversion or self.defaults.inversion
        path = climbs(self.models, method, chosen.steps)
        picture = pictures.read(image)
        original, resized = fit_picture(self.models, picture, chosen.size, official=chosen.official)
        caption = self._caption(prompt, picture)
        call = Pix2PixCall(self.models, self._guidance, chosen, len(path))
        states, cut = self._texts(call.engine).prompts([caption])
        led = self._direction(chosen)
        delta = scaled(led.fit(states.shape[1:], self._digest), chosen.multiplier)

        code = call.first_stage.encode(pictures.to_float(original))
        draws = posterior == "sample" and code.deviation is not None
        x0 = code.latents(TorchGenerator(chosen.seed).randn(code.mean.shape) if draws else None)
        d = self.defaults
        weights = (d.ac, d.kl, d.outer, d.rolls) if regularize else None
        noise = call.invert(x0, states, path, weights, torch=method == "diffusers")
        reference, edited = call.edit(noise, np.repeat(states, 2, axis=0), delta)

        told: dict[str, JSON] = {"verb": "edit", "prompt": caption, "inversion": method}
        told |= {"regularize": regularize, "posterior": posterior, **_told(led)}
        return [call.result(reference, edited, told, (*resized, *cut), original)]

    def generate(
        self, prompt: str | None = None, *, negative_prompt: str = "", **options: Unpack[Pix2PixOptions]
    ) -> list[Edit]:
        """A picture from noise and its edit: the ``reconstruction`` of the `Edit` is the picture without the edit.

        Arguments:
            prompt: What to show.
            negative_prompt: What to lead away from.
            options: See `Pix2PixOptions`; the size is by default the bundle's.

        Raises:
            As `edit`.
        """
        chosen = make_options(options, self.defaults, self.defaults.synthetic_attention_guidance)
        if prompt is None:
            raise PromptError("a picture from noise needs a prompt; pass prompt='red apple'")
        height, width = check_size(self.models, chosen.size or self.settings.image_size, tile=0)
        call = Pix2PixCall(self.models, self._guidance, chosen)
        states, cut = self._texts(call.engine).prompts([negative_prompt, prompt])
        led = self._direction(chosen)
        delta = scaled(led.fit(states.shape[1:], self._digest), chosen.multiplier)

        grid = height // self.settings.factor, width // self.settings.factor
        noise = TorchGenerator(chosen.seed).randn((1, self.settings.latent_channels, *grid))
        reference, edited = call.edit(noise, states, delta)

        told: dict[str, JSON] = {"verb": "generate", "prompt": prompt, "negative_prompt": negative_prompt}
        return [call.result(reference, edited, {**told, **_told(led)}, cut, None)]

    def direction(
        self,
        source: str | Sequence[str] | Array | None,
        target: str | Sequence[str] | Array | None,
        *,
        labels: tuple[str, str] | None = None,
        sentences: int | None = None,
        templates: Sequence[str] | None = None,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Direction:
        """The edit direction from one thing to another.

        Arguments:
            source: A word, for which sentences are made by templates; or sentences; or states (n, tokens, D).
            target: Likewise.
            labels: Names of both; by default the words.
            sentences: How many to make of a word; by default the bundle's.
            templates: Their templates; by default the bundle's, else the built-in grammar.
            on_progress: Told (sentences done, sentences in all).
        """
        texts = self._texts(self.models.engine)
        forms = self.defaults.templates if templates is None else tuple(templates)
        count = self.defaults.sentences if sentences is None else sentences
        sides: list[Sequence[str] | Array] = []
        for side in (source, target):
            if side is None:
                raise ParameterError("a direction needs a source and a target; pass both")
            sides.append(from_grammar(side, count, templates=forms) if isinstance(side, str) else side)
        named = tuple(side if isinstance(side, str) else "" for side in (source, target))
        return texts.direction(*sides, labels=labels or (named[0], named[1]), on_progress=on_progress)

    def close(self) -> None:
        """Close the networks; they open again on use."""
        self.models.close()
        guide, self._guide = self._guide, None
        close = getattr(guide, "close", None)
        if close is not None:
            close()

    def _guidance(self) -> Guide:
        if self._guide is None:
            self._guide = self._open_guide()
        return self._guide

    def _texts(self, engine: Callable[[str], Engine]) -> TextStates:
        return TextStates(engine("text_encoder"), self.models.tokenizer(), self._digest)

    def _direction(self, options: EditOptions) -> Direction:
        if options.words is not None:
            return self.direction(*options.words)
        given = options.direction
        return given if isinstance(given, Direction) else Direction.load(given or "")

    def _caption(self, prompt: str | None, picture: Array) -> str:
        if prompt is not None:
            return prompt
        if self._captioner is None:
            raise PromptError(
                f"the picture has no caption and bundle {self.manifest.name!r} no captioner; "
                "say what the picture shows: pass prompt='red apple'"
            )
        return self._captioner(picture)


def _told(direction: Direction) -> dict[str, JSON]:
    return {"source": direction.source, "target": direction.target, "sentences": list(direction.sentences)}
