"""Assembling a bundle: every network in turn, then assets, manifest, hashes and one rename."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..engines.binding import Array
from ..engines.bundle import Bundle, BundleWriter
from ..engines.manifest import Manifest, NetworkSpec, ScheduleSpec
from ..engines.precision import Precision, check_precision
from ..engines.strict import JSON
from .network import Network
from .write import Progress, quiet, trace_network, write_network

__all__ = ["UNSTATED", "add_files", "assemble", "schedule_file"]

UNSTATED = "LicenseRef-unstated"
"""What stands for a license that nobody named: the checkpoint's own terms hold, whatever they are."""

_TOOLS = ("torch", "onnx", "onnxscript", "diffusers", "transformers")


def assemble(
    out: Path | str,
    system: str,
    networks: Sequence[Network],
    *,
    settings: Mapping[str, JSON],
    schedule: ScheduleSpec | None = None,
    files: Mapping[str, bytes | Path] | None = None,
    assets: Mapping[str, str] | None = None,
    precision: Precision = "fp16",
    name: str = "",
    license: str = "",
    on_progress: Progress | None = None,
) -> Bundle:
    """Write a bundle; an error or Ctrl-C leaves nothing of it.

    Arguments:
        out: Its folder, see `BundleWriter`.
        system: Which system runs it.
        networks: What to export, one after the other.
        settings: The system's own record.
        schedule: The noise schedule.
        files: Further files by path in the bundle, as bytes or as files to copy.
        assets: Paths of files by role.
        precision: How large weights are stored.
        name: Its name for people; by default that of the folder.
        license: Terms of the weights; `UNSTATED` if nobody says.
        on_progress: Told of every step.

    Raises:
        ExportError: A network cannot be exported.
        BundleError: `out` is something else, or the disk is full.
    """
    check_precision(precision)
    out = Path(out)
    with BundleWriter(out) as writer:
        specs = _export(writer, networks, precision, on_progress or quiet)
        add_files(writer, files or {})
        manifest = Manifest(
            system=system,
            name=name or out.absolute().name,
            license=license or UNSTATED,
            producer=_producer(),
            networks=specs,
            schedule=schedule,
            assets=dict(assets or {}),
            settings=dict(settings),
        )
        return writer.commit(manifest)


def _export(
    writer: BundleWriter, networks: Sequence[Network], precision: Precision, on_progress: Progress
) -> dict[str, NetworkSpec]:
    """Every network by name; while one is written and checked, the next one is traced."""
    pending: list[Future[NetworkSpec]] = []
    with ThreadPoolExecutor(1) as second:  # one after another: networks may read the weights of those before them
        try:
            for index, network in enumerate(networks):

                def say(message: str, at: str = f"[{index + 1}/{len(networks)}]") -> None:
                    on_progress(f"{at} {message}")

                traced = trace_network(network, on_progress=say)
                if pending:
                    pending[-1].result()  # at most two networks are in memory, and a fault is said early
                pending.append(second.submit(write_network, writer, traced, precision, on_progress=say))
                del traced
            return {network.name: task.result() for network, task in zip(networks, pending, strict=True)}
        except BaseException:
            second.shutdown(cancel_futures=True)
            raise


def add_files(writer: BundleWriter, files: Mapping[str, bytes | Path]) -> None:
    """Write files by their path in the bundle: bytes as they are, and copies of what lies elsewhere."""
    for path, content in files.items():
        if isinstance(content, bytes):
            writer.write(path, content)
        else:
            writer.copy(path, content)


def schedule_file(alphas_bar: Array) -> bytes:
    """The safetensors file of an ``explicit`` schedule: float64 ``alphas_bar`` (T,)."""
    from safetensors.numpy import save

    return save({"alphas_bar": np.ascontiguousarray(alphas_bar, dtype=np.float64)})


def _producer() -> dict[str, str]:
    from .. import __version__

    versions = {"sfumato": __version__}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
