"""What every reader of checkpoints gives: networks to export, a schedule, settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.systems.latent_settings import LatentDiffusionSettings
from ..network import Network
from .schedules import Noise

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A system read from a checkpoint, ready to be packed.

    Arguments:
        networks: To export, in turn.
        noise: The schedule.
        settings: What the manifest says of it.
        tokenizer: ``tokenizer.json`` or its bytes, where prompts are text.
        name: Its name, "" if the checkpoint does not say.
        license: Its terms, "" if the checkpoint does not say.
    """

    networks: tuple[Network, ...]
    noise: Noise
    settings: LatentDiffusionSettings
    tokenizer: Path | bytes | None = None
    name: str = ""
    license: str = ""
