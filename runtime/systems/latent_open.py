"""Opening a latent-diffusion bundle: its schedule and tokenizer now, its networks on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...engines.engine import Backend, Engine
from ...engines.precision import Precision
from ...errors import ManifestError, ParameterError
from ..schedule import Schedule
from ..tokenizer import Tokenizer, open_tokenizer
from .base import network_opener
from .latent_settings import LatentDiffusionSettings

if TYPE_CHECKING:
    from ...engines.bundle import Bundle

__all__ = ["Sources"]


class Sources(NamedTuple):
    """What `LatentDiffusion` is made of besides the manifest; the fields are its arguments."""

    open_network: Callable[[str], Engine]
    schedule: Schedule | None
    tokenizer: Callable[[LatentDiffusionSettings], Tokenizer]

    @classmethod
    def of(cls, bundle: Bundle, backend: Backend, precision: Precision | None, threads: int | None) -> Sources:
        """The sources of an open bundle. What every verb will need is looked for here, networks apart.

        Raises:
            ManifestError: The settings or the schedule cannot be used.
            BundleError: The tokenizer is missing or is none.
            MissingDependency: A library is not installed, be it for the tokenizer or for the networks.
            EngineError: The backend is unknown or unimplemented.
            ParameterError: The precision or the number of threads is none.
        """
        open_network = network_opener(bundle, backend, precision, threads)
        settings = LatentDiffusionSettings.from_json(bundle.manifest.settings)
        family, tokens = settings.tokenizer, settings.max_tokens or 0
        opened = None if family is None else open_tokenizer(family, bundle.asset("tokenizer"), tokens)

        def tokenizer(_: LatentDiffusionSettings) -> Tokenizer:
            if opened is None:
                raise ManifestError(
                    "$.settings.tokenizer: is null, so prompts cannot be read; export the bundle with one"
                )
            return opened

        return cls(open_network, _schedule(bundle), tokenizer)


def _schedule(bundle: Bundle) -> Schedule | None:
    spec = bundle.manifest.schedule
    try:
        return None if spec is None else Schedule.from_spec(spec, bundle)
    except ParameterError as error:
        raise ManifestError(f"$.schedule: {error}") from error
