"""Backends: the libraries that run networks, which of them work here, and which is taken."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ..errors import EngineError, MissingDependency, ParameterError
from .builder_library import LIBRARIES, BuilderKind, load_library
from .doctor import environment
from .doctor_states import states
from .nvidia import devices
from .plan import Plan, find_plans
from .precision import Precision, check_precision

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["Backend", "automatic_plan", "available_backends", "check_options"]

_log = logging.getLogger(__name__)

Backend: TypeAlias = Literal["auto", "openvino", "onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"]

_CPU: Mapping[str, tuple[str, str]] = {"openvino": ("cpu", "OpenVINO"), "onnxruntime": ("ort", "ONNX Runtime")}
"""Backends that run anywhere, best first: the import name, with the extra that installs it and its proper name."""

_GPU: Mapping[str, tuple[str, str, str]] = {
    **{kind: (row.module, row.extra, row.title) for kind, row in LIBRARIES.items()},
    "onnxruntime_cuda": ("onnxruntime", "cuda", "ONNX Runtime for CUDA"),
}
"""Backends for NVIDIA GPUs: the import name, the extra, the proper name."""


def available_backends() -> dict[str, str | None]:
    """Every backend with None where it can be used, else the reason why not. Imports none of them."""
    result: dict[str, str | None] = {}
    found = {state.name: state for state in states(environment())}
    for name in get_args(Backend)[1:]:
        if name == "torch":
            result[name] = "for gradients alone, such as that of an edit along a direction"
        elif name in _CPU:
            result[name] = _cpu_reason(name)
        else:
            state = found[name]
            mend = f"; mend it: {state.mend}" if state.mend else ""
            result[name] = None if state.state == "ready" else f"{state.reason}{mend}"
    return result


def _cpu_reason(name: str) -> str | None:
    return None if _installed(name) else f"not installed; run: pip install 'sfumato[{_CPU[name][0]}]'"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent is missing; or it was put into sys.modules by hand
        return sys.modules.get(module) is not None


def check_options(backend: str, precision: str | None, threads: int | None) -> str:
    """The backend that `open_engine` takes for these options; imports and opens nothing.

    For "auto" it is the one for networks that have no plan for this GPU (see `automatic_plan`).

    Raises:
        ParameterError: The precision or the number of threads is none.
        MissingDependency: The library is not installed.
        EngineError: The backend is unknown or cannot work here.
    """
    if precision is not None:
        check_precision(precision)
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise ParameterError(f"threads is {threads}, need 1 or more; leave it out for one a core")
    if backend == "auto":
        return _automatic()
    if backend not in get_args(Backend):
        raise EngineError(f"backend is {backend!r}, need one of {', '.join(get_args(Backend))}")
    if backend == "torch":
        raise EngineError(f"backend 'torch' is {available_backends()['torch']}; use {' or '.join(_CPU)}, or a GPU's")
    if backend in _CPU:
        extra, title = _CPU[backend]
        if not _installed(backend):
            raise MissingDependency(backend, extra, f"the {title} engine")
        return backend
    module, extra, title = _GPU[backend]
    if not _installed(module):
        raise MissingDependency(module, extra, f"the {title} engine")
    reason = available_backends()[backend]
    if reason is not None:
        raise EngineError(
            f"backend {backend!r} cannot work here: {reason}; see sfumato doctor, or use {' or '.join(_CPU)}"
        )
    return backend


def _automatic() -> str:
    for name in _CPU:
        if _installed(name):
            return name
    ready = available_backends()
    for name in _GPU:  # a device may have nothing else
        if ready[name] is None:
            return name
    raise MissingDependency("openvino", "cpu", "running a network")


def automatic_plan(bundle: Bundle, network: str, precision: Precision | None) -> tuple[BuilderKind, Plan] | None:
    """The library and plan that backend "auto" takes for a network, None where it runs on the processor.

    Nothing is imported unless the bundle has a plan of the network, the driver names a GPU, and the doctor finds
    nothing against the library.
    """
    if not any(_plan_of(path) for path in find_plans(bundle, network)):
        return None
    gpus = devices()
    if not gpus:
        return None
    from .tensorrt_plan import choose_plan

    ready = available_backends()
    for name in LIBRARIES:
        if ready[name] is not None or not _installed(LIBRARIES[name].module):
            continue
        try:
            api = load_library(name)
            return name, choose_plan(api, bundle, network, gpus[0].sm, precision=precision)
        except EngineError as error:
            _log.info("%s does not run on %s: %s", network, LIBRARIES[name].title, error)
    return None


def _plan_of(path: Path) -> bool:
    return path.is_file() and path.with_suffix(".json").is_file()
