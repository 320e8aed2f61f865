"""An ONNX graph as a torch module, so that a bundle can be differentiated without the code that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..errors import EngineError
from .onnx_ops import OPERATORS

__all__ = ["OnnxGraph"]


class OnnxGraph(nn.Module):
    """The part of a graph that some of its outputs need.

    Weights are widened to float32. What depends on no input is computed once, here.

    Arguments:
        path: The ONNX file, with its external data beside it.
        outputs: Names of the outputs, all by default.

    Attributes:
        inputs: Names of the inputs that these outputs depend on.

    Raises:
        EngineError: An operator is not known.
    """

    def __init__(self, path: Path, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        graph = ir.load(path).graph
        results = {str(value.name): value for value in graph.outputs}
        self.outputs = tuple(results if outputs is None else outputs)
        needed = _needed(results[name] for name in self.outputs)
        self._nodes = [_Step(node) for node in graph if node in needed]
        unknown = sorted({step.kind for step in self._nodes} - OPERATORS.keys())
        if unknown:
            raise EngineError(
                f"{path.name}: torch has no form for the operator {', '.join(unknown)}; use a backend but 'torch'"
            )
        read = {name for step in self._nodes for name in step.inputs} | set(self.outputs)
        self.inputs = tuple(str(value.name) for value in graph.inputs if str(value.name) in read)
        known = {
            str(name): _tensor(value.const_value)
            for name, value in graph.initializers.items()
            if value.const_value is not None and name in read
        }
        self._fold(known)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name, of inputs by name."""
        at: dict[str, Tensor] = {**inputs, **{name: getattr(self, slot) for name, slot in self._slots.items()}}
        for step in self._nodes:
            step.run(at)
            for name in step.dead:
                del at[name]
        return {name: at[name] for name in self.outputs}

    def _fold(self, known: dict[str, Tensor]) -> None:
        """Run the nodes of which all inputs are known; keep as buffers what the others read."""
        left: list[_Step] = []
        with torch.no_grad():
            for step in self._nodes:
                if all(not name or name in known for name in step.inputs):
                    step.run(known)
                else:
                    left.append(step)
        self._nodes = left
        read = {name for step in left for name in step.inputs} | set(self.outputs)
        self._slots: dict[str, str] = {}
        for index, (name, tensor) in enumerate((n, t) for n, t in known.items() if n in read):
            self._slots[name] = f"constant_{index}"
            self.register_buffer(self._slots[name], tensor)
        kept = {*self.outputs}
        for step in reversed(left):
            step.dead = [n for n in {*step.inputs, *step.outputs} if n and n not in kept]
            kept.update(step.dead)


class _Step:
    """A node: its operator, names of what it reads and writes, and names that nobody reads after it."""

    def __init__(self, node: ir.Node) -> None:
        self.kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.inputs = ["" if value is None else str(value.name) for value in node.inputs]
        self.outputs = [str(value.name) for value in node.outputs]
        self.dead: list[str] = []
        self.attributes: dict[str, Any] = {name: _plain(a.value) for name, a in node.attributes.items()}
        if self.kind == "Split":
            self.attributes.setdefault("num_outputs", len(self.outputs))

    def run(self, at: dict[str, Tensor]) -> None:
        values = [at[name] if name else None for name in self.inputs]
        result = OPERATORS[self.kind](*values, **self.attributes)
        for name, value in zip(self.outputs, result if isinstance(result, tuple) else (result,), strict=False):
            at[name] = value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _needed(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that `values` depend on."""
    found: set[ir.Node] = set()
    stack = [node for value in values if (node := value.producer()) is not None]
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return found


def _tensor(tensor: ir.TensorProtocol) -> Tensor:
    """A stored tensor; half precision, which NumPy may not know, is widened."""
    array = tensor.numpy()
    if tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return torch.from_numpy(array.astype("float32"))
    return torch.from_numpy(array.copy())
