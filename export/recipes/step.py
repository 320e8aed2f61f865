"""Whole steps for latent-diffusion models: the network ``step`` beside a model's others, or added to a bundle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...engines.bundle import Bundle
from ...errors import ExportError
from ..extend import extend
from ..network import Network
from ..step import step_network
from ..write import Progress, quiet
from .rebuild import unet_of

__all__ = ["add_step", "step_of_bundle", "with_step"]


def with_step(networks: Sequence[Network]) -> tuple[Network, ...]:
    """The networks of a model, ``unet`` among them, and after them ``step``."""
    unet = next((network for network in networks if network.name == "unet"), None)
    if unet is None:
        raise ExportError(f"there is no network 'unet' among {', '.join(n.name for n in networks)}; pass one")
    return (*networks, step_network(unet))


def add_step(bundle: Bundle, out: Path | str, *, on_progress: Progress = quiet) -> Bundle:
    """Write a latent-diffusion bundle with the network ``step``, made from its UNet's weights.

    Arguments:
        bundle: Open and verified.
        out: Folder to write; it may be the bundle's own, which is replaced at the very end.
        on_progress: Told of every step.

    Raises:
        ExportError: It is another system's, its UNet has no such step, or is one that `unet_of` cannot build.
        BundleError: `out` cannot be written.
    """
    system = bundle.manifest.system
    if system != "latent-diffusion":
        raise ExportError(f"{bundle.path}: its system is {system!r}, a step is one of latent diffusion; pass such one")
    return extend(bundle, out, [step_network(unet_of(bundle))], on_progress=on_progress)


def step_of_bundle(
    source: Path, out: Path | str, stated: Mapping[str, object], *, step: bool, on_progress: Progress = quiet
) -> Bundle:
    """`add_step` where a bundle stands for a checkpoint.

    Arguments:
        source: The bundle's folder.
        out: Folder to write.
        stated: Options by name, of which a bundle takes none.
        step: Whether the step was asked for, which is all that there is to export from a bundle.
        on_progress: Told of every step.

    Raises:
        ExportError: It was not, an option is given, or see `add_step`.
        BundleError: The bundle is broken, or `out` cannot be written.
    """
    if not step:
        raise ExportError(f"{source}: is a bundle; pass a checkpoint, or pass step=True (--step) to add whole steps")
    if any(stated.values()):
        names = ", ".join(key for key, value in stated.items() if value)
        raise ExportError(f"{source}: is a bundle, which has its own {names}; leave out what it has")
    return add_step(Bundle.open(source), out, on_progress=on_progress)
