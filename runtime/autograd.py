"""Gradients by torch's autograd: the reference for compiled ones, and the way out where there is none.

The only file of the runtime that meets torch. It needs nothing but the bundle: the forward part of a stored graph is
run operator by operator in torch, with the weights that lie beside it, and differentiated. The backward pass that the
graph itself carries is not looked at, so that both can be held against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..engines.binding import DTYPES, Array, check_feeds
from ..engines.manifest import NetworkSpec
from ..errors import BindingError, EngineError, MissingDependency, NonFiniteError, ParameterError
from .gradient import Condition, Feeds, check_input, first_input, gradient_name

if TYPE_CHECKING:
    from ..engines.bundle import Bundle

__all__ = ["AutogradGradient"]


class AutogradGradient:
    """The gradient of a network's loss, by autograd in float32; called as `gradient.EngineGradient` is.

    Arguments:
        bundle: The bundle.
        network: A network with the output ``loss``, or any other together with `loss`.
        of: The input to differentiate by.
        loss: Name in `networks.losses.LOSSES` of a loss of all outputs but ``prediction``; the call then takes
            ``reference_00``, ``reference_01``, … of their shapes.
        device: Where torch computes, e.g. "cuda"; None: where x lies.
        threads: Threads for torch in the whole process, None leaves them.
        fixed: Inputs that are the same in every call.

    Attributes:
        prediction, outputs, step: As `gradient.EngineGradient`'s.

    Raises:
        MissingDependency: torch or onnx is not installed.
        BindingError: The network has no such inputs.
        ParameterError: No loss has this name.
        EngineError: The network has no loss and none was named, or uses an operator that is not known.
    """

    backend = "torch"

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        *,
        of: str = "x",
        loss: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        **fixed: Condition,
    ) -> None:
        torch = _torch()
        from ..networks.losses import LOSSES

        spec = bundle.network(network)
        names = [binding.name for binding in spec.outputs]
        if loss is not None and loss not in LOSSES:
            raise ParameterError(f"no loss is named {loss!r}, there are {', '.join(LOSSES)}; use one of them")
        if loss is None and "loss" not in names:
            raise EngineError(
                f"{network}: has no output 'loss', it gives {', '.join(names)}; name a loss, e.g. loss='attention_maps'"
            )
        check_input(spec, of)
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch, self._of, self._device = torch, of, device
        self._first = first_input(spec, of)
        self._name = gradient_name(spec, of)
        self._loss = None if loss is None else LOSSES[loss]
        wanted = [n for n in names if n != "gradient" and not n.startswith("gradient_")]
        self._spec = spec if loss is None else _with_references(spec)
        self._graph = _load(bundle, spec, wanted)
        self._feeds = Feeds(self._spec, fixed)
        self.outputs: dict[str, Array] = {}
        self.step: int | None = None

    @property
    def network(self) -> str:
        """The network's name, for messages."""
        return self._spec.name

    @property
    def prediction(self) -> Array | None:
        return self.outputs.get("prediction")

    def __call__(self, x: Array, **condition: Condition) -> tuple[float, Array]:
        """See `gradient.Gradient`; a number, e.g. ``t=981``, fills an input.

        Arrays are NumPy's, or any that speak DLPack (tensors, `DeviceArray`s) once what writes them is done. The
        gradient is of the kind of x: an array, a `DeviceArray`, else a tensor. `outputs` are NumPy's in the first case
        and tensors in the others.
        """
        if self._graph is None:
            raise EngineError(f"{self.network}: the gradient was closed; open it again with open_gradient()")
        feeds = self._feeds(self._first, x, condition)
        torch = self._torch
        tensors = {name: self._tensor(name, array) for name, array in feeds.items()}
        check_feeds(self._spec, {name: _Facts(tensor) for name, tensor in tensors.items()}, also=(_Facts,))
        device = tensors[self._first].device if self._device is None else self._device
        self._graph = self._graph.to(device)
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        source = tensors[self._of] = tensors[self._of].detach().requires_grad_(True)
        with torch.enable_grad():
            outputs = self._graph(
                **{b.name: tensors[b.name] for b in self._spec.inputs if b.name in self._graph.inputs}
            )
            loss = outputs["loss"].sum() if self._loss is None else self._apply(outputs, tensors)
            (gradient,) = torch.autograd.grad(loss, source)
        found = {name: value.detach() for name, value in outputs.items()}
        for name, value in {"loss": loss.detach(), self._name: gradient, **found}.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(self.network, self.step, name)
        on_host = isinstance(cast(object, x), np.ndarray)
        self.outputs = {name: value.cpu().numpy() if on_host else value for name, value in found.items()}
        return float(loss.detach()), gradient.cpu().numpy() if on_host else _like(x, gradient)

    def close(self) -> None:
        """Free the weights; further calls raise `EngineError`."""
        self._graph = None
        self.outputs = {}

    def __enter__(self) -> AutogradGradient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tensor(self, name: str, array: Any) -> Any:
        """A host array without a copy, or whatever speaks DLPack (a buffer on the device)."""
        if isinstance(array, np.ndarray):
            return self._torch.from_numpy(array if array.flags.writeable else array.copy())
        try:
            return self._torch.from_dlpack(array)
        except (BufferError, RuntimeError, AssertionError) as error:
            raise BindingError(f"{self.network}: torch cannot take over the input {name!r} ({error})") from error

    def _apply(self, outputs: dict[str, Any], tensors: dict[str, Any]) -> Any:
        assert self._loss is not None
        names = _measured(self._spec)
        references = [tensors[f"reference_{i:02}"] for i in range(len(names))]
        return self._loss([outputs[name] for name in names], references)


class _Facts:
    """Of a tensor what `check_feeds` has to know."""

    def __init__(self, tensor: Any) -> None:
        self.shape, self.ndim = tuple(tensor.shape), tensor.ndim
        name = str(tensor.dtype).removeprefix("torch.")
        self.dtype = np.dtype(name) if name in DTYPES else name


def _like(x: Any, tensor: Any) -> Any:
    """The tensor as an array of the kind of x; its memory is not copied."""
    from ..engines.device_array import DeviceArray

    return DeviceArray.view(tensor.contiguous()) if isinstance(x, DeviceArray) else tensor


def _measured(spec: NetworkSpec) -> list[str]:
    """The outputs that a loss is taken of."""
    return [binding.name for binding in spec.outputs if binding.name != "prediction"]


def _with_references(spec: NetworkSpec) -> NetworkSpec:
    """`spec` with an input ``reference_NN`` for each output that a loss is taken of."""
    from dataclasses import replace

    from ..engines.binding import Binding, Dimension

    outputs = [binding for binding in spec.outputs if binding.name != "prediction"]
    more = tuple(Binding(f"reference_{i:02}", b.dtype, b.shape) for i, b in enumerate(outputs))
    free = {s for b in more for s in b.symbols if s not in spec.dimensions}
    anything = {symbol: Dimension(1, 1, 1 << 30) for symbol in free}
    return replace(spec, inputs=(*spec.inputs, *more), dimensions={**spec.dimensions, **anything})


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingDependency("torch", "export", "a gradient by autograd") from None
    return torch


def _load(bundle: Bundle, spec: NetworkSpec, outputs: list[str]) -> Any:
    try:
        from ..networks.onnx_graph import OnnxGraph
    except ImportError:
        raise MissingDependency("onnx_ir", "export", "a gradient by autograd") from None
    return OnnxGraph(bundle.file(spec.graph), outputs).eval().requires_grad_(False)
