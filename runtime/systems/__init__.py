"""The systems: one file a paper, each opened from a bundle by `load`."""

from __future__ import annotations

import os

from ...engines.bundle import Bundle
from ...engines.engine import Backend
from ...engines.precision import Precision
from ...errors import ManifestError
from .base import Edit, Progress, SfumatoWarning, System

__all__ = ["Edit", "Progress", "SfumatoWarning", "System", "load"]


def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
) -> System:
    """Open a bundle and get its system ready. Files are verified now; networks are opened on first use.

    Arguments:
        path: The bundle's folder.
        backend: Library that runs the networks; "auto" is OpenVINO if installed, else ONNX Runtime.
        precision: What to compute in; None is the backend's default.
        threads: Threads of the backend; None is one a core.

    Raises:
        BundleError: The folder is not a bundle, or a broken one.
        ManifestError: Its system is not known here, or its settings are not those of the system.
    """
    bundle = Bundle.open(os.fspath(path))
    match bundle.manifest.system:
        case "latent-diffusion":
            from .latent_diffusion import LatentDiffusion

            return LatentDiffusion.from_bundle(bundle, backend=backend, precision=precision, threads=threads)
        case other:
            raise ManifestError(
                f"$.system: is {other!r}, this sfumato runs 'latent-diffusion'; use the sfumato that wrote the bundle"
            )
