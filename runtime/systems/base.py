"""What every system shares: verbs, results, progress, warnings, opening networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from ...engines.binding import Array
from ...engines.engine import Backend, Engine, check_options, open_engine
from ...engines.manifest import Manifest
from ...engines.precision import Precision
from ...engines.strict import JSON
from ...errors import ParameterError
from .. import image as pictures
from .timings import Stage

if TYPE_CHECKING:
    from ...engines.bundle import Bundle

__all__ = ["Edit", "OnStep", "Progress", "SfumatoWarning", "System", "Verbs", "network_opener"]


class SfumatoWarning(UserWarning):
    """Something was done other than asked, and the run went on: a prompt was cut, an option had no effect."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One picture that a system made.

    Arguments:
        image: uint8 (H, W, 3).
        seed: The seed it was made with; with one seed for several pictures, that one.
        parameters: What makes it again, JSON: written into PNG files. Nothing of time or place is in it.
        reconstruction: uint8 (H, W, 3), the input through the first stage and back, where it was asked for; of an edit
            by inversion, what its noise leads back to without the edit.
        latents: float32 (C, h, w), what was decoded.
        timings: Stage by name, of the whole call that made it (shared by its pictures); seconds.
        warnings: What was done other than asked, one sentence each.
        original: uint8 (H, W, 3), the picture that it was made from at the size it was worked on, where that is told.
    """

    image: Array
    seed: int
    parameters: Mapping[str, JSON] = field(default_factory=dict)
    reconstruction: Array | None = None
    latents: Array | None = None
    timings: Mapping[str, Stage] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    original: Array | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture atomically, with its parameters; see `runtime.image.write`."""
        pictures.write(path, self.image, self.parameters)


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a call stands after a network call. **Later steps overwrite the arrays: copy what you keep.**

    Arguments:
        index: Number of this network call, from 0, over all batches.
        total: Number of network calls over all batches.
        t: Timestep index of the call.
        s: Timestep index that x stands at now, -1 when clean.
        images: Which pictures are being made in this batch.
        x: float32 (B, C, h, w), x at s.
        x0: float32 (B, C, h, w), the clean picture as predicted at t.
        project: See `preview`.
        decoder: See `decode`.
        stage: What the call is for, where a run has several: "inversion", "edit".
        calls: Number of network calls of this batch, 0 where that is not told.
    """

    index: int
    total: int
    t: float
    s: float
    images: range
    x: Array
    x0: Array
    project: Callable[[Array], Array] = field(repr=False)
    decoder: Callable[[Array], Array] = field(repr=False)
    stage: str = ""
    calls: int = 0

    def preview(self) -> Array:
        """The predicted pictures, small and cheap: uint8 (B, h, w, 3) by a linear map from latents to colours.

        The first call of a system decodes one test card to fit the map.
        """
        return self.project(self.x0)

    def decode(self) -> Array:
        """The predicted pictures in full, through the decoder: uint8 (B, H, W, 3)."""
        return self.decoder(self.x0)


OnStep = Callable[[Progress], Any]
"""Called after every network call; returning False (not None) stops the run with `Cancelled`."""


class System(Protocol):
    """A bundle that is ready to work."""

    manifest: Manifest

    @property
    def verbs(self) -> tuple[str, ...]:
        """The methods below that this bundle can do."""
        ...

    def generate(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Pictures from a condition or from nothing."""
        ...

    def edit(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Pictures from a picture."""
        ...

    def inpaint(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Pictures from a picture and a mask."""
        ...

    def upscale(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Larger pictures from a picture."""
        ...

    def restore(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Pictures as they were before they were degraded."""
        ...

    def close(self) -> None:
        """Free the engines."""
        ...

    def __enter__(self) -> System: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


S = TypeVar("S", bound="Verbs")


class Verbs:
    """What is the same in every system: refusing the verbs it does not have, and closing at the end of a ``with``."""

    manifest: Manifest

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs this bundle can do."""
        return ()

    def refuse(self, verb: str, why: str = "") -> NoReturn:
        """Raise `ParameterError` for a verb that this bundle cannot do."""
        reason = f" ({why})" if why else ""
        raise ParameterError(
            f"bundle {self.manifest.name!r} cannot {verb}{reason}; it can {', '.join(self.verbs)}: call one of these"
        )

    def generate(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Refused, unless the system has it; so are the other verbs."""
        self.refuse("generate")

    def edit(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Refused."""
        self.refuse("edit")

    def inpaint(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Refused."""
        self.refuse("inpaint")

    def upscale(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Refused."""
        self.refuse("upscale")

    def restore(self, *args: Any, **options: Any) -> Sequence[Edit]:
        """Refused."""
        self.refuse("restore")

    def close(self) -> None:
        """Free the engines; they open again on use."""
        raise NotImplementedError

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def network_opener(
    bundle: Bundle, backend: Backend, precision: Precision | None, threads: int | None
) -> Callable[[str], Engine]:
    """What opens the networks of a bundle by name; see `open_engine` for the options, which are checked now.

    Raises:
        ParameterError: The precision or the number of threads is none.
        MissingDependency: The backend's library is not installed.
        EngineError: The backend is unknown or unimplemented.
    """
    check_options(backend, precision, threads)

    def open_network(name: str) -> Engine:
        return open_engine(bundle, name, backend=backend, precision=precision, threads=threads)

    return open_network
