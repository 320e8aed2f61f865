"""Gradients: the derivative of a loss by x, and whoever computes it.

A gradient comes from an engine whose graph carries its own backward pass (`EngineGradient`, the default), or from
torch's autograd over the same network (`autograd.AutogradGradient`: the reference, and the way out where no such graph
was exported). Both are called in the same way, and a test holds them equal.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from ..engines.binding import Array, Binding, resolve
from ..engines.engine import Backend, Engine, open_engine
from ..engines.manifest import NetworkSpec
from ..engines.precision import Precision
from ..errors import BindingError, EngineError, NonFiniteError

if TYPE_CHECKING:
    from ..engines.bundle import Bundle
    from .autograd import AutogradGradient

__all__ = [
    "Condition",
    "EngineGradient",
    "Feeds",
    "Gradient",
    "check_input",
    "first_input",
    "gradient_name",
    "gradient_output",
    "open_gradient",
]

Condition: TypeAlias = "Array | float"
"""An input of the network, or a number that fills it."""


@runtime_checkable
class Gradient(Protocol):
    """The derivative of a loss by x. **The arrays belong to it: its next call overwrites them.**"""

    def __call__(self, x: Array, **condition: Array) -> tuple[float, Array]:
        """The loss, and its derivative by x (shape of x).

        Raises:
            NonFiniteError: Either holds NaN or infinity, or any other output of the network does.
        """
        ...


class Feeds:
    """The inputs of a network from what a caller has: numbers fill buffers, arrays are read where they lie.

    Buffers are made at the first call of a shape and used again. What speaks DLPack and is not NumPy's passes as it is.
    """

    def __init__(self, spec: NetworkSpec, fixed: dict[str, Condition]) -> None:
        self._spec = spec
        self._bindings = {binding.name: binding for binding in spec.inputs}
        self._fixed = fixed
        self._buffers: dict[str, Array] = {}
        for name in fixed:
            self._binding(name)

    def __call__(self, name: str, x: Array, condition: dict[str, Condition]) -> dict[str, Array]:
        """Feeds by name; `name` is that of x, whose extents give those of inputs that a number fills."""
        given: dict[str, Condition] = {**self._fixed, **condition, name: x}
        known = dict(zip(self._binding(name).shape, x.shape, strict=False))
        symbols = {symbol: extent for symbol, extent in known.items() if isinstance(symbol, str)}
        return {key: self._array(self._binding(key), value, symbols) for key, value in given.items()}

    def _binding(self, name: str) -> Binding:
        if name not in self._bindings:
            raise BindingError(
                f"{self._spec.name}: no input is named {name!r}, it takes {', '.join(self._bindings)}; leave it out"
            )
        return self._bindings[name]

    def _array(self, binding: Binding, value: Condition, symbols: dict[str, int]) -> Array:
        if isinstance(value, np.ndarray):
            if value.dtype == binding.dtype and value.flags.c_contiguous:
                return value
            if not np.can_cast(value.dtype, binding.dtype, "same_kind"):
                raise BindingError(
                    f"{self._spec.name}: input {binding.name!r} is {value.dtype}, the graph has {binding.dtype}; "
                    f"pass it as {binding.dtype}"
                )
            buffer = self._buffer(binding, value.shape)
            np.copyto(buffer, value)
        elif isinstance(value, numbers.Real):
            buffer = self._buffer(binding, resolve(binding, symbols))
            buffer.fill(value)
        elif hasattr(value, "__dlpack__"):
            foreign: Array = cast(Any, value)
            return foreign
        else:
            raise BindingError(
                f"{self._spec.name}: input {binding.name!r} is a {type(value).__name__}, need {binding}; "
                "pass a NumPy array or a number"
            )
        return buffer

    def _buffer(self, binding: Binding, shape: tuple[int, ...]) -> Array:
        buffer = self._buffers.get(binding.name)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[binding.name] = np.empty(shape, binding.dtype)
        return buffer


class EngineGradient:
    """The gradient of an engine with outputs ``loss`` and ``gradient``.

    Arguments:
        engine: The network, as `export.gradient` makes it.
        of: The input to differentiate by, where the network has several gradients. Calls begin with the input ``x`` all
            the same, if there is one.
        fixed: Inputs that are the same in every call, e.g. ``context``; a call may give others.

    Attributes:
        prediction: The output ``prediction`` of the last call, None before one or if the network has none.
        outputs: All outputs of the last call by name.
        step: Index of the sampling step, for the message of `NonFiniteError`; set it as the loop goes.
    """

    def __init__(self, engine: Engine, *, of: str = "x", **fixed: Condition) -> None:
        self._engine = engine
        self._name = gradient_output(engine.spec, of)
        self._first = first_input(engine.spec, of)
        self._feeds = Feeds(engine.spec, fixed)
        self._finite: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self.step: int | None = None

    @property
    def network(self) -> str:
        """The engine's name, for messages."""
        return self._engine.spec.name

    @property
    def prediction(self) -> Array | None:
        return self.outputs.get("prediction")

    def __call__(self, x: Array, **condition: Condition) -> tuple[float, Array]:
        """See `Gradient`; a number, e.g. ``t=981``, fills an input. Arrays are NumPy's: the engine brings them over."""
        feeds = self._feeds(self._first, x, condition)
        for name, value in feeds.items():
            if not isinstance(cast(object, value), np.ndarray):
                raise BindingError(
                    f"{self.network}: input {name!r} is a {type(value).__name__}, compiled gradients take NumPy "
                    "arrays; copy it to the host, or open the gradient with backend='torch'"
                )
        outputs = self._engine(**feeds)
        for name in dict.fromkeys(("loss", self._name, *outputs)):
            self._check(name, outputs[name])
        self.outputs = outputs
        return float(outputs["loss"].reshape(-1)[0]), outputs[self._name]

    def _check(self, name: str, array: Array) -> None:
        if array.dtype.kind == "f":
            finite = self._finite.get(name)
            if finite is None or finite.shape != array.shape:
                finite = self._finite[name] = np.empty(array.shape, dtype=np.bool_)
            if not np.isfinite(array, out=finite).all():
                raise NonFiniteError(self.network, self.step, name)

    def close(self) -> None:
        """Close the engine."""
        self.outputs = {}
        self._engine.close()

    def __enter__(self) -> EngineGradient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_input(spec: NetworkSpec, of: str) -> str:
    """The input that a call begins with: ``x`` if the network has it, else the one to differentiate by."""
    return "x" if any(binding.name == "x" for binding in spec.inputs) else of


def check_input(spec: NetworkSpec, of: str) -> None:
    """Raise `BindingError` if a network has no input `of` to differentiate by."""
    inputs = [binding.name for binding in spec.inputs if binding.dtype == "float32"]
    if of not in inputs:
        raise BindingError(
            f"{spec.name}: cannot differentiate by {of!r}, its inputs are {', '.join(inputs)}; name one of them"
        )


def gradient_name(spec: NetworkSpec, of: str) -> str:
    """What the derivative by the input `of` is called: ``gradient`` by x, if no other has an output beside it."""
    several = any(binding.name.startswith("gradient_") for binding in spec.outputs)
    return "gradient" if of == "x" and not several else f"gradient_{of}"


def gradient_output(spec: NetworkSpec, of: str) -> str:
    """The output of a network that is the derivative of its ``loss`` by the input `of`: ``gradient`` is by x.

    Raises:
        BindingError: It has no such input.
        EngineError: It has no such output.
    """
    check_input(spec, of)
    names = {binding.name for binding in spec.outputs}
    name = gradient_name(spec, of)
    if "loss" not in names or name not in names:
        raise EngineError(
            f"{spec.name}: has no outputs 'loss' and {name!r}, it gives {', '.join(sorted(names))}; "
            "export the bundle with gradient graphs, or open its forward network with backend='torch'"
        )
    return name


def open_gradient(
    bundle: Bundle,
    network: str,
    *,
    backend: Backend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
    of: str = "x",
    loss: Literal["attention_maps"] | None = None,
    **fixed: Condition,
) -> EngineGradient | AutogradGradient:
    """The gradient that a network of a bundle gives.

    Arguments:
        bundle: The bundle.
        network: Its name, e.g. "unet_gradient".
        backend: As `open_engine`'s; "torch" differentiates the network's forward part by autograd.
        precision: As `open_engine`'s; "torch" computes in fp32.
        threads: As `open_engine`'s.
        of: The input to differentiate by.
        loss: For "torch" and a network without a loss of its own ("unet_maps"): which to take of its outputs. A
            compiled gradient has its own, and ignores this.
        fixed: Inputs that are the same in every call.

    Raises:
        BundleError: The bundle has no such network.
        BindingError: The network has no such inputs.
        ParameterError: No loss has this name.
        MissingDependency: The backend is not installed.
        EngineError: The network has no gradient and the backend cannot make one.
    """
    if backend == "torch":
        from .autograd import AutogradGradient

        return AutogradGradient(bundle, network, of=of, loss=loss, threads=threads, **cast(Any, fixed))
    gradient_output(bundle.network(network), of)
    engine = open_engine(bundle, network, backend=backend, precision=precision, threads=threads)
    return EngineGradient(engine, of=of, **fixed)
