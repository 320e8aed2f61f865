"""The state of every backend: what can be done with it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .builder_library import LIBRARIES, BuilderKind
from .doctor import RTX, TENSORRT, Environment, Finding
from .doctor_rules import diagnose

__all__ = ["BackendState", "State", "states"]

State: TypeAlias = Literal["ready", "builds", "unusable", "absent"]


@dataclass(frozen=True)
class BackendState:
    """What can be done with one backend here.

    Arguments:
        name: The backend, e.g. "tensorrt_rtx".
        state: "ready" runs networks; "builds" makes plans for GPUs, which cannot be run here; "unusable" is installed
            and cannot work; "absent" is not installed.
        version: The installed version, None without one.
        reason: Why it is not ready; "" if it is.
        mend: The command that mends it; "" where none is needed or none helps.
    """

    name: str
    state: State
    version: str | None = None
    reason: str = ""
    mend: str = ""


def states(env: Environment) -> list[BackendState]:
    """Every backend, with what can be done with it."""
    found = diagnose(env)
    errors = {f.subject: f for f in reversed(found) if f.level == "error"}
    warnings = {f.subject: f for f in reversed(found) if f.level == "warning"}
    return [
        _installed(env, errors, "openvino", ("openvino",), "cpu"),
        _installed(env, errors, "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "ort"),
        _onnxruntime_cuda(env, errors, warnings),
        _tensorrt(env, errors, warnings, "tensorrt_rtx", RTX, "rtx"),
        _tensorrt(env, errors, warnings, "tensorrt", TENSORRT, "tensorrt"),
    ]


def _installed(
    env: Environment, errors: Mapping[str, Finding], name: str, packages: tuple[str, ...], extra: str
) -> BackendState:
    """Absent, unusable because of an error, or else ready."""
    package = env.first(*packages)
    found = None if package is None else env.packages[package]
    if found is None and name == "tensorrt" and env.nvidia.system_tensorrt is not None:
        found = "JetPack's"
    error = errors.get(name)
    if error is not None:
        return BackendState(name, "unusable", found, error.problem, error.mend)
    if found is None:
        return BackendState(name, "absent", None, "not installed", f"pip install 'sfumato[{extra}]'")
    return BackendState(name, "ready", found)


def _onnxruntime_cuda(env: Environment, errors: Mapping[str, Finding], warnings: Mapping[str, Finding]) -> BackendState:
    state = _installed(env, {}, "onnxruntime_cuda", ("onnxruntime-gpu",), "cuda")
    if state.state == "absent" and env.has("onnxruntime"):  # both would be installed over each other
        return replace(state, mend=f"pip uninstall -y onnxruntime && {state.mend}")
    if state.state != "ready":
        return state
    against = errors.get("onnxruntime") or warnings.get("onnxruntime-gpu") or warnings.get("driver")
    if against is not None:
        return replace(state, state="unusable", reason=against.problem, mend=against.mend)
    if not env.gpus:
        return replace(state, state="unusable", reason=_NO_GPU, mend=_DRIVER)
    if not env.has("cuda-core"):
        return replace(state, state="unusable", reason=_NO_CORE, mend=_core(env))
    return state


def _tensorrt(
    env: Environment,
    errors: Mapping[str, Finding],
    warnings: Mapping[str, Finding],
    name: BuilderKind,
    packages: tuple[str, ...],
    extra: str,
) -> BackendState:
    """Ready where there is a GPU that it knows, with cuda-core to feed it; else it builds, if it can do that here."""
    state = _installed(env, errors, name, packages, extra)
    if state.state != "ready":
        return state
    reason, mend = "", ""
    known = LIBRARIES[name].capabilities
    if not env.gpus:
        reason, mend = f"{_NO_GPU}: plans are built here, not run", ""
    elif known and env.gpus[0].sm not in known:
        reason = f"{env.gpus[0].name} is {env.gpus[0].sm}, it knows {', '.join(known)}: plans are built here, not run"
    elif name == "tensorrt_rtx" and name in warnings:
        reason, mend = warnings[name].problem, warnings[name].mend
    elif not env.has("cuda-core"):
        reason, mend = f"{_NO_CORE}: plans are built here, not run", _core(env)
    if not reason:
        return state
    if LIBRARIES[name].needs_gpu and not env.gpus:
        return replace(state, state="unusable", reason=_NO_GPU, mend=_DRIVER)
    if not env.has("onnx"):
        return replace(state, state="unusable", reason="building needs onnx, which is not installed", mend=_ONNX)
    return replace(state, state="builds", reason=reason, mend=mend)


_NO_GPU = "the driver names no GPU"
_NO_CORE = "running on a GPU needs cuda-core, which is not installed"
_ONNX = "pip install 'onnx>=1.19'"
_DRIVER = "look at nvidia-smi; in a container: docker run --gpus all"


def _core(env: Environment) -> str:
    """cuda-core works with the bindings of the driver's CUDA only: 12 on JetPack 6 and before the branch 580."""
    branch = env.nvidia.branch
    old = env.nvidia.jetpack == 6 or (branch is not None and branch < 580)
    return f"pip install 'cuda-core[{'cu12' if old else 'cu13'}]>=1.0'"
