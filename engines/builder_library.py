"""The libraries: tensorrt 10.3 to 11 and tensorrt_rtx behind one interface. The only file that imports them.

Both have the same Python interface. What differs stands in `LIBRARIES`, and nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from ..errors import EngineError, MissingDependency
from .doctor import version

__all__ = ["LIBRARIES", "Api", "BuilderKind", "Library", "load_library"]

BuilderKind: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True)
class Library:
    """Where one builder differs from the other.

    Arguments:
        module: What is imported.
        title: Its name for people.
        extra: The extra of sfumato that brings it.
        oldest: The oldest version that is known to have what is called here.
        newest: The newest major version.
        needs_gpu: It times kernels on the GPU that the plan is for; else it compiles for any that it is told.
        capabilities: The architectures that it can be told; empty where it only builds for the GPU at hand.
        timing_cache: It times kernels, and can keep what it measured.
        hardware_levels: Plans can be made for GPUs other than the one at hand.
        version_compatible: Plans can be made that later versions of the same library run.
        refit_at_gpu: Plans that can be refitted are built with the driver's help, for one architecture at a time.
        compiles_at_run: Kernels are compiled where the plan runs. So that one shape has one kernel, contexts are told
            to compile before they run. For CUDA graphs a plan must be built to use the caller's memory alone, and its
            context is asked whether a run can be recorded.
    """

    module: str
    title: str
    extra: str
    oldest: tuple[int, ...]
    newest: int
    needs_gpu: bool
    capabilities: tuple[str, ...]
    timing_cache: bool
    hardware_levels: bool
    version_compatible: bool
    refit_at_gpu: bool
    compiles_at_run: bool


LIBRARIES: Mapping[BuilderKind, Library] = {
    "tensorrt": Library("tensorrt", "TensorRT", "tensorrt", (10, 3), 11, True, (), True, True, True, False, False),
    "tensorrt_rtx": Library(
        "tensorrt_rtx",
        "TensorRT for RTX",
        "rtx",
        (1, 2),
        1,
        False,
        ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
        False,
        False,
        False,
        True,
        True,
    ),
}
"""The differences between the two builders."""


@dataclass(frozen=True)
class Api:
    """A loaded builder.

    Arguments:
        kind: Which one.
        trt: Its module.
        library: Its row of `LIBRARIES`.
        version: Its version, e.g. "1.7.1.116".
    """

    kind: BuilderKind
    trt: Any
    library: Library
    version: str

    @property
    def short(self) -> str:
        """The version as far as plans depend on it: "10.3", "1.7"."""
        return ".".join(map(str, version(self.version)[:2]))

    @property
    def strongly_typed(self) -> int:
        """The flags of a network: TensorRT 10 has to be told, 11 and RTX ignore it, and a later one may not have it."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def flag(self, name: str) -> Any:
        """A flag of the builder by name; `EngineError` if this version has none of that name."""
        found = getattr(self.trt.BuilderFlag, name, None)
        if found is None:
            raise EngineError(f"{self.library.title} {self.version} has no {name}; leave that option out")
        return found

    def capability(self, sm: str) -> Any:
        """The value of "sm89"; `EngineError` if this version does not know it."""
        found = getattr(self.trt.ComputeCapability, sm.upper(), None)
        if found is None:
            raise EngineError(f"{self.library.title} {self.version} does not build for {sm}; install a newer one")
        return found


@lru_cache(maxsize=2)
def load_library(kind: BuilderKind) -> Api:
    """Import a builder.

    Raises:
        MissingDependency: It is not installed.
        EngineError: It does not load, or is of a version that was never tried.
    """
    library = LIBRARIES[kind]
    try:
        trt = importlib.import_module(library.module)
    except ModuleNotFoundError as error:
        raise MissingDependency(library.module, library.extra, f"building for {library.title}") from error
    except Exception as error:  # a missing shared library is an OSError, a RuntimeError or an ImportError
        raise EngineError(f"{library.title} is installed but does not load ({error}); run: sfumato doctor") from error
    found = str(trt.__version__)
    if version(found) < library.oldest or version(found)[0] > library.newest:
        oldest = ".".join(map(str, library.oldest))
        raise EngineError(
            f"{library.title} {found} is installed, sfumato builds with {oldest} to {library.newest}; "
            f"run: pip install 'sfumato[{library.extra}]'"
        )
    return Api(kind, trt, library, found)
