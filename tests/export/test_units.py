"""Sides traced in units: the stored graph takes whole sides, and computes for every multiple what torch computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sfumato.engines.binding import Binding, Dimension
from sfumato.errors import ExportError
from sfumato.export.graph import clean, name_dimensions
from sfumato.export.network import Network
from sfumato.export.trace import trace
from sfumato.export.units import join, place, split


class Halves(nn.Module):
    """A skip connection around half the size, tokens of pixels, and a plain axis beside the sides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.mix = nn.Conv2d(2, 8, 3, 2, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        h = self.down(torch.cat([x, x * row[:, None, :, None]], dim=1))
        tokens = self.mix(h.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(h.shape)
        return nn.functional.interpolate(tokens, scale_factor=2.0, mode="nearest") + x


NETWORK = Network(
    "halves",
    Halves,
    (Binding("x", "float32", ("batch", 1, "height", "width")), Binding("row", "float32", ("batch", "height"))),
    (Binding("y", "float32", ("batch", 8, "height", "width")),),
    {"batch": Dimension(1, 1, 8), "height": Dimension(4, 8, 64, 4), "width": Dimension(2, 8, 64, 2)},
)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    module = NETWORK.build()
    before = set(vars(module))
    made = trace(NETWORK, module, NETWORK.example(module, NETWORK.sizes(0)))
    assert set(vars(module)) == before
    assert [len(given.shape or ()) for given in made.graph.inputs] == [4, 2]
    clean(made)
    name_dimensions(made, NETWORK.inputs, NETWORK.outputs)
    return made


@pytest.mark.parametrize("size", [(1, 4, 2), (2, 12, 6), (3, 4, 64)])
def test_a_network_is_the_same_at_every_multiple(model: ir.Model, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    x, row = torch.randn(batch, 1, height, width), torch.randn(batch, height)
    (result,) = session.run(None, {"x": x.numpy(), "row": row.numpy()})
    with torch.no_grad():
        wanted = NETWORK.build()(x, row).numpy()
    np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-5)


def test_weights_keep_their_names(model: ir.Model) -> None:
    assert {"down.weight", "down.bias"} <= set(model.graph.initializers)


def test_axes_are_taken_apart_in_their_places() -> None:
    x = torch.arange(2 * 6 * 8).reshape(2, 6, 8)
    parts = split(x, {1: 3, 2: 4})
    assert parts.shape == (2, 2, 3, 2, 4)
    assert [place(axis, {1: 3, 2: 4}) for axis in range(3)] == [0, 1, 3]
    assert torch.equal(parts.reshape(x.shape), x)


def test_a_graph_that_looks_at_the_parts_is_refused() -> None:
    def graph(operator: str, **attributes: Any) -> ir.Graph:
        x = ir.Value(name="x", shape=ir.Shape([2, 4]), type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node(operator, [x], attributes=attributes)
        return ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20})

    with pytest.raises(ExportError, match="parts of 'x' in Relu"):
        join(graph("Relu"), [{0: 4}])
    with pytest.raises(ExportError, match="axes 0 to 2 of 'x' at once"):
        join(graph("Shape", start=0, end=2), [{0: 4}])
