"""The networks of a latent-diffusion bundle, opened on first use, with what the manifest says of them."""

from __future__ import annotations

from collections.abc import Callable

from ...engines.binding import Array
from ...engines.engine import Engine
from ...engines.manifest import Manifest
from ...errors import ManifestError, ParameterError
from ..denoiser import PredictionKind
from ..schedule import Schedule
from ..tokenizer import Tokenizer
from .first_stage import ColorMap, fit_colors
from .latent_settings import LatentDiffusionSettings
from .tiles import TiledEngine
from .timings import TimedEngine, Timings

__all__ = ["Models"]

_SPATIAL = ("unet", "vae_encoder", "vae_decoder")
_OVERLAP = {"unet": 2, "vae_encoder": 4, "vae_decoder": 4}
"""Neighbouring tiles share one part in so many: half for the UNet as in Latent Diffusion, a quarter else."""


class Models:
    """Settings, schedule and networks.

    Arguments:
        manifest: The bundle's.
        open_network: Opens a network by name.
        schedule: The noise schedule.
        tokenizer: Opens the tokenizer with that many tokens, if the bundle has one.
    """

    def __init__(
        self,
        manifest: Manifest,
        open_network: Callable[[str], Engine],
        schedule: Schedule,
        tokenizer: Callable[[LatentDiffusionSettings], Tokenizer] | None = None,
    ) -> None:
        if manifest.schedule is None:
            raise ManifestError("$.schedule: is null, latent diffusion needs one; export the bundle again")
        self.manifest = manifest
        self.settings = LatentDiffusionSettings.from_json(manifest.settings)
        for name in ("unet", "vae_decoder"):
            if name not in manifest.networks:
                raise ManifestError(
                    f"$.networks: lacks {name!r}, which latent diffusion needs; export the bundle again"
                )
        self.schedule = schedule
        self.prediction: PredictionKind = manifest.schedule.prediction
        self.learned_variance = manifest.schedule.learned_variance
        self._open = open_network
        self._engines: dict[str, Engine] = {}
        self._open_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._colors: ColorMap | None = None

    def engine(self, name: str) -> Engine:
        """The network `name`, opened at the first call."""
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = self._open(name)
        return engine

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, opened at the first call."""
        if self._tokenizer is None:
            if self._open_tokenizer is None:
                raise ManifestError(
                    "$.settings.tokenizer: is null, so prompts cannot be read; export the bundle with one"
                )
            self._tokenizer = self._open_tokenizer(self.settings)
        return self._tokenizer

    def colors(self, decode: Callable[[Array], Array], shape: tuple[int, ...]) -> ColorMap:
        """The map from latents to colours, fitted at the first call."""
        if self._colors is None:
            self._colors = fit_colors(decode, shape)
        return self._colors

    def limits(self, network: str) -> tuple[int, int, int]:
        """Least and largest height or width that a network takes, and their multiple, in latents; (1, 0, 1) if any."""
        spec = self.manifest.networks[network]
        least, most, multiple = 1, 0, 1
        for name, dimension in spec.dimensions.items():
            if name.removeprefix("image_") in ("height", "width"):
                scale = self.settings.factor if name.startswith("image_") else 1
                least = max(least, -(-dimension.min // scale))
                most = min(most or dimension.max, dimension.max // scale)
                multiple = max(multiple, dimension.multiple // scale)
        return least, most - most % multiple, multiple

    def tiled(self, name: str, timings: Timings | None, tile: int | None) -> Engine:
        """The network `name`, counted in `timings`, in tiles of `tile` latents (None: the largest; 0: never)."""
        engine: Engine = self.engine(name)
        if timings is not None:
            engine = TimedEngine(engine, timings)
        if name not in _SPATIAL or tile == 0:
            return engine
        least, most, multiple = self.limits(name)
        size = tile or most
        if not size:
            return engine
        if not least <= size <= (most or size) or size % multiple:
            raise ParameterError(
                f"tile is {size}, {name!r} takes {least} to {most or 'any number of'} latents in "
                f"multiples of {multiple}; "
                "pass such a one, or leave tile out"
            )
        return TiledEngine(engine, size, factor=self.settings.factor, overlap=size // _OVERLAP[name])

    def close(self) -> None:
        """Close every open network; they open again on use."""
        engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            engine.close()
