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
    system: str | None = None,
) -> System:
    """Open a bundle and get its system ready. Files are verified now; networks are opened on first use.

    Arguments:
        path: The bundle's folder.
        backend: Library that runs the networks; "auto" is OpenVINO if installed, else ONNX Runtime.
        precision: What to compute in; None is the backend's default.
        threads: Threads of the backend; None is one a core.
        system: What to run the bundle as; None is what its manifest says. A latent-diffusion bundle that has the
            networks for it can also be run as "pix2pix-zero".

    Raises:
        BundleError: The folder is not a bundle, or a broken one.
        ManifestError: Its system is not known here, or its settings are not those of the system.
    """
    bundle = Bundle.open(os.fspath(path))
    match _system(bundle, system):
        case "latent-diffusion":
            from .latent_diffusion import LatentDiffusion

            return LatentDiffusion.from_bundle(bundle, backend=backend, precision=precision, threads=threads)
        case "pix2pix-zero":
            from .pix2pix_zero import Pix2PixZero

            return Pix2PixZero.from_bundle(bundle, backend=backend, precision=precision, threads=threads)
        case "cold-diffusion":
            from .cold_diffusion import ColdDiffusion

            return ColdDiffusion.from_bundle(bundle, backend=backend, precision=precision, threads=threads)
        case other:
            raise ManifestError(
                f"$.system: is {other!r}, this sfumato runs 'latent-diffusion' and 'cold-diffusion'; "
                "use the sfumato that wrote the bundle"
            )


def _system(bundle: Bundle, wanted: str | None) -> str:
    """The system to run a bundle as."""
    own = bundle.manifest.system
    if wanted is None or wanted == own or (own, wanted) == ("latent-diffusion", "pix2pix-zero"):
        return wanted or own
    raise ManifestError(
        f"$.system: is {own!r}, which cannot be run as {wanted!r}; leave the system out, or open another bundle"
    )
