"""sfumato: diffusion image editing on the edge.

Published diffusion editing systems, compiled with the gradients of their guidance, run from a bundle without PyTorch::

    import sfumato

    system = sfumato.load("bundles/emoji-ldm")
    edit = system.generate("a red apple", seed=1)[0]
    edit.image    # uint8 (H, W, 3)

Importing this module imports nothing else: engines and systems come with the first `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .engines.engine import Backend
    from .engines.precision import Precision
    from .runtime.systems import System

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(
    path: Path | str,
    *,
    backend: Backend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
    system: str | None = None,
) -> System:
    """Open the bundle in the folder `path` as the system that it holds.

    Arguments:
        path: The folder that `sfumato export` wrote.
        backend: Library that runs the networks; "auto" is OpenVINO if installed, else ONNX Runtime.
        precision: What to compute in; None is the fastest that the processor and the bundle's tolerances allow.
        threads: Threads to use; None is one for each core of the process.
        system: What to run the bundle as, e.g. "pix2pix-zero"; None is what its manifest says.

    Raises:
        BundleError: The folder is not an intact bundle, or its system is unknown to this version.
        MissingDependency: No library is installed that could run it.
    """
    from .runtime import systems

    return systems.load(path, backend=backend, precision=precision, threads=threads, system=system)
