"""The exceptions of sfumato.

::

    SfumatoError
     ├─ BundleError              a bundle cannot be read or written
     │   ├─ ManifestError        manifest.json breaks the schema (names the JSON path)
     │   └─ IntegrityError       a file is missing, altered, truncated, unlisted, or lies outside the bundle
     ├─ BindingError             an engine was fed a wrong name, dtype, rank or extent
     ├─ EngineError              a backend cannot be opened, or cannot compile or run a network
     ├─ CheckpointError          a checkpoint is foreign, incomplete or unsafe
     ├─ ExportError              a network cannot be exported, or its export disagrees with torch
     ├─ ImageError               a picture cannot be read or written
     ├─ PromptError              a prompt cannot be used
     ├─ DirectionError           an edit direction cannot be read, or is another text encoder's
     ├─ EndpointError            a service that the user named does not answer as it should
     ├─ ParameterError           a size, step count, scale … is out of range      (also ValueError)
     ├─ MissingDependency        an optional library is not installed             (also ImportError)
     ├─ NonFiniteError           a result holds NaN or infinity
     └─ Cancelled                the caller stopped the run

Messages say what failed, the two facts that disagree, and the call that mends it.
"""

from __future__ import annotations

__all__ = [
    "BindingError",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "DirectionError",
    "EndpointError",
    "EngineError",
    "ExportError",
    "ImageError",
    "IntegrityError",
    "ManifestError",
    "MissingDependency",
    "NonFiniteError",
    "ParameterError",
    "PromptError",
    "SfumatoError",
]


class SfumatoError(Exception):
    """The root: everything that sfumato raises on purpose."""


class BundleError(SfumatoError):
    """A bundle cannot be read or written."""


class ManifestError(BundleError):
    """``manifest.json`` breaks the schema; the message begins with the JSON path, e.g.
    ``$.networks.unet.graph``."""


class IntegrityError(BundleError):
    """A file of a bundle is missing, altered, truncated, unlisted, or lies outside the bundle."""


class BindingError(SfumatoError):
    """An engine was fed a wrong name, dtype, rank or extent."""


class EngineError(SfumatoError):
    """A backend cannot be opened, or cannot compile or run a network."""


class CheckpointError(SfumatoError):
    """A checkpoint is foreign, incomplete or unsafe."""


class ExportError(SfumatoError):
    """A network cannot be exported, or its export disagrees with torch."""


class ImageError(SfumatoError):
    """A picture cannot be read or written."""


class PromptError(SfumatoError):
    """A prompt cannot be used."""


class DirectionError(SfumatoError):
    """An edit direction cannot be read, or belongs to another text encoder."""


class EndpointError(SfumatoError):
    """A service that the user named cannot be reached, or does not answer as it should."""


class ParameterError(SfumatoError, ValueError):
    """A size, step count, scale or choice is out of range."""


class MissingDependency(SfumatoError, ImportError):
    """An optional library is not installed.

    Arguments:
        library: Import name of the library, e.g. "openvino".
        extra: The extra of sfumato that brings it, e.g. "cpu".
        why: What wanted it, as a noun phrase, e.g. "the OpenVINO engine".
    """

    def __init__(self, library: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs {library}, which is not installed; run: pip install 'sfumato[{extra}]'")
        self.library = library
        self.extra = extra
        self.why = why

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str, str]]:
        return type(self), (self.library, self.extra, self.why)


class NonFiniteError(SfumatoError):
    """A result holds NaN or infinity.

    Arguments:
        network: Name of the network that produced it, e.g. "unet".
        step: Index of the sampling step, or None outside a loop.
        tensor: Name of the tensor, e.g. "prediction".
    """

    def __init__(self, network: str, step: int | None, tensor: str) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(
            f"{network}: {tensor!r} is not finite{where}; "
            "a lower precision overflowed or an input was already broken: run it again with precision='fp32'"
        )
        self.network = network
        self.step = step
        self.tensor = tensor

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, int | None, str]]:
        return type(self), (self.network, self.step, self.tensor)


class Cancelled(SfumatoError):
    """The caller stopped the run between two steps."""
