"""Extending a bundle: all that it holds, with networks made anew or added."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..engines.bundle import Bundle, BundleWriter
from .assemble import add_files
from .network import Network
from .write import Progress, export_network, quiet

__all__ = ["extend"]


def extend(
    bundle: Bundle,
    out: Path | str,
    networks: Sequence[Network],
    *,
    files: Mapping[str, bytes | Path] | None = None,
    assets: Mapping[str, str] | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Write a bundle with what it has and with further networks, whose weights are stored as its UNet's are.

    Arguments:
        bundle: Open and verified.
        out: Folder to write; it may be the bundle's own, which is replaced at the very end.
        networks: To export; one replaces the bundle's network of its name.
        files: Further files by path in the bundle.
        assets: Paths of files by role; one replaces the bundle's asset of its role.
        on_progress: Told of every step.

    Raises:
        ExportError: A network cannot be exported.
        BundleError: `out` cannot be written.
    """
    manifest = bundle.manifest
    specs = {name: spec for name, spec in manifest.networks.items() if name not in {n.name for n in networks}}
    with BundleWriter(out) as writer:
        for path in sorted(_kept(bundle, specs, assets or {})):
            writer.copy(path, bundle.file(path))
        for network in networks:
            stored = specs["unet"].precision.default
            specs[network.name] = export_network(writer, network, stored, on_progress=on_progress)
        add_files(writer, files or {})
        return writer.commit(replace(manifest, networks=specs, assets={**manifest.assets, **(assets or {})}, files={}))


def _kept(bundle: Bundle, networks: Collection[str], renewed: Collection[str]) -> set[str]:
    """Paths of the files that stay: those of `networks`, of assets that are not renewed, and of the schedule."""
    manifest = bundle.manifest
    specs = [manifest.networks[name] for name in networks]
    kept = {path for spec in specs for path in (*spec.files, spec.reference) if path}
    kept |= {path for role, path in manifest.assets.items() if role not in renewed}
    if manifest.schedule is not None and manifest.schedule.alphas_bar is not None:
        kept.add(manifest.schedule.alphas_bar)
    return kept
