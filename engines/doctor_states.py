"""The state of every backend: what can be done with it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .doctor import RTX, TENSORRT, Environment, Finding
from .doctor_rules import diagnose

__all__ = ["BackendState", "State", "states"]

State: TypeAlias = Literal["ready", "builds", "unusable", "absent"]


@dataclass(frozen=True)
class BackendState:
    """What can be done with one backend here.

    Arguments:
        name: The backend, e.g. "tensorrt_rtx".
        state: "ready" runs networks; "builds" makes plans, which this version of sfumato does not run yet;
            "unusable" is installed and cannot work; "absent" is not installed.
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
    errors = {f.subject: f for f in reversed(diagnose(env)) if f.level == "error"}
    return [
        _state(env, errors, "openvino", ("openvino",), "cpu", "ready"),
        _state(env, errors, "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "ort", "ready"),
        _state(env, errors, "tensorrt_rtx", RTX, "rtx", "builds"),
        _state(env, errors, "tensorrt", TENSORRT, "tensorrt", "builds"),
    ]


def _state(
    env: Environment, errors: dict[str, Finding], name: str, packages: tuple[str, ...], extra: str, best: State
) -> BackendState:
    package = env.first(*packages)
    found = None if package is None else env.packages[package]
    if found is None and name == "tensorrt" and env.nvidia.system_tensorrt is not None:
        found = "JetPack's"
    error = errors.get(name)
    if error is not None:
        return BackendState(name, "unusable", found, error.problem, error.mend)
    if found is None:
        return BackendState(name, "absent", None, "not installed", f"pip install 'sfumato[{extra}]'")
    if best == "builds":
        if not env.has("onnx"):
            return BackendState(name, "unusable", found, "building needs onnx, which is not installed", _ONNX)
        return BackendState(name, "builds", found, "sfumato build makes plans; this version does not run them yet")
    return BackendState(name, best, found)


_ONNX = "pip install 'onnx>=1.19'"
