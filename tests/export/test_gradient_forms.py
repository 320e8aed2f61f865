"""Forms of operators and of recomputing: values and gradients are torch's own, and what has no form is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.errors import BindingError, EngineError, ExportError
from sfumato.export.gradient import Differentiated, Objective, differentiate
from sfumato.export.gradient_forward import DifferentiableForms
from sfumato.export.network import Network
from sfumato.export.untie import untie_square_weights
from sfumato.export.write import export_network
from sfumato.networks.resample import resize_matrix
from sfumato.runtime.gradient import open_gradient

HIDDEN = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
CLASSES = torch.tensor([1, 0, 3])
torch.manual_seed(0)
HEADS = nn.MultiheadAttention(8, 2).eval().requires_grad_(False)


def heads(x: Tensor, **options: Any) -> Tensor:
    out, seen = HEADS(x, x * 2, x - 1, **options)
    return out if seen is None else out + seen.sum()


FORMS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "linear": ((2, 3, 8), lambda x: functional.linear(x, HEADS.out_proj.weight, HEADS.out_proj.bias)),
    "linear of itself": ((4, 8), lambda x: functional.linear(x, x)),
    "linear with a made bias": ((8, 8), lambda x: functional.linear(x, HEADS.out_proj.weight, x[0])),
    "attention": ((2, 2, 3, 4), lambda x: functional.scaled_dot_product_attention(x, x + 1, x * x)),
    "causal attention": ((2, 3, 4), lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "a row that sees nothing": ((2, 3, 4), lambda x: functional.scaled_dot_product_attention(x, x, x, HIDDEN)),
    "heads": ((5, 2, 8), lambda x: heads(x, need_weights=False)),
    "heads and weights": (
        (3, 2, 8),
        lambda x: heads(x, attn_mask=~(HIDDEN | torch.eye(3, dtype=torch.bool))),
    ),
    "heads with a mask": (
        (3, 2, 8),
        lambda x: heads(x, need_weights=False, attn_mask=torch.full((3, 3), -9.0).triu(1)),
    ),
    "cross-entropy": ((3, 5), lambda x: functional.cross_entropy(x, CLASSES)),
    "cross-entropy, summed": ((3, 5), lambda x: functional.cross_entropy(x, CLASSES, reduction="sum")),
    "cross-entropy as a module": ((3, 5), lambda x: nn.CrossEntropyLoss()(x, CLASSES)),
    "nearest": ((1, 2, 4, 6), lambda x: functional.interpolate(x, scale_factor=3)),
    "nearest to a size": ((1, 2, 4, 6), lambda x: functional.interpolate(x, size=(12, 18))),
    "bilinear by a factor": ((1, 2, 7, 5), lambda x: functional.interpolate(x, scale_factor=1.5, mode="bilinear")),
    "bicubic by two factors": (
        (1, 2, 7, 9),
        lambda x: functional.interpolate(x, scale_factor=(1.7, 0.6), mode="bicubic"),
    ),
    "bicubic, factor again": (
        (1, 2, 7, 9),
        lambda x: functional.interpolate(x, scale_factor=1.3, mode="bicubic", recompute_scale_factor=True),
    ),
    "bicubic, smooth": ((1, 2, 9, 8), lambda x: functional.interpolate(x, size=(4, 5), mode="bicubic", antialias=True)),
    "group norm": ((2, 8, 3, 4), lambda x: functional.group_norm(x, 2)),
    "layer norm": ((2, 3, 8), lambda x: functional.layer_norm(x, (8,), HEADS.out_proj.weight[0])),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_gives_torchs_value_and_gradient(name: str) -> None:
    shape, function = FORMS[name]
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    results = []
    for mode in (False, True):
        x = given.clone().requires_grad_(True)
        if mode:
            with DifferentiableForms():
                y = function(x)
        else:
            y = function(x)
        cotangent = torch.linspace(-1, 2, y.numel()).reshape(y.shape)
        results.append((y.detach(), *torch.autograd.grad((y * cotangent).sum(), x)))
    for ours, torchs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "function", "why"),
    [
        ((1, 1, 4, 6), lambda x: functional.interpolate(x, size=(8, 18)), "no whole factor"),
        ((1, 1, 4, 6), lambda x: functional.interpolate(x, scale_factor=(2, 3)), "one whole factor"),
        ((1, 1, 4, 6), lambda x: functional.interpolate(x, scale_factor=1.5), "one whole factor"),
        ((3, 5), lambda x: functional.cross_entropy(x, CLASSES, label_smoothing=0.1), "smoothing"),
        ((3, 5), lambda x: functional.cross_entropy(x, CLASSES, ignore_index=1), "no form"),
        ((3, 8), lambda x: heads(x, need_weights=False), "a batch"),
        ((2, 1, 8), lambda x: heads(x, key_padding_mask=torch.zeros(1, 2, dtype=torch.bool)), "padding masks"),
    ],
)
def test_what_has_no_form_is_refused(shape: tuple[int, ...], function: Callable[[Tensor], Tensor], why: str) -> None:
    with DifferentiableForms(), pytest.raises(ExportError, match=why):
        function(torch.ones(shape))


def test_a_resize_matrix_steps_by_what_it_is_told() -> None:
    x = torch.randn(1, 1, 1, 7)
    expected = functional.interpolate(x, scale_factor=(1, 1.5), mode="bilinear")[0, 0, 0]
    torch.testing.assert_close(resize_matrix(10, 7, scale=1 / 1.5) @ x[0, 0, 0], expected)


class ResBlock(nn.Module):
    """A block, by its name, that takes its second input from a container, and may hide a dependency."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.hidden: list[Tensor] | None = [] if hidden else None

    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        other = options["by"][0] if self.hidden is None else self.hidden[0]
        return torch.tanh(x * other)


class Nested(nn.Module):
    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__()
        self.block = ResBlock(hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.block.hidden is not None:
            self.block.hidden[:] = [x.sin()]
        return self.block(x, {"by": [x.sin(), None], "unused": "text"})


class Half(Objective):
    """Half the squared norm of what a module gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        y = self.module(*inputs)
        return 0.5 * y.square().sum(), y


def test_recomputing_sees_tensors_in_containers() -> None:
    x = torch.randn(3, 4)
    kept, again = (Differentiated(Half(Nested()), (0,), recompute=recompute)(x) for recompute in (False, True))
    for ours, torchs in zip(again, kept, strict=True):
        torch.testing.assert_close(ours, torchs)


def network(build: Callable[[], nn.Module], shape: tuple[Any, ...] = ("n", 4), **more: Any) -> Network:
    x, y = Binding("x", "float32", shape), Binding("y", "float32", shape)
    return Network("net", build, (x,), (y,), {"n": more.pop("n", Dimension(1, 2, 8))}, **more)


def written(out: Path, made: Network) -> Bundle:
    with BundleWriter(out) as writer:
        return writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, {made.name: export_network(writer, made, "fp32")}))


def test_a_recomputed_gradient_is_held_against_torchs_own(tmp_path: Path) -> None:
    """A block that reads what is not among its arguments: its derivative by that is lost, and that is noticed."""
    made = differentiate(network(lambda: Nested(hidden=True)), Half, name="gradient", recompute=True)
    with pytest.raises(ExportError, match="disagree"):
        written(tmp_path / "b", made)


def test_there_must_be_something_to_recompute() -> None:
    with pytest.raises(ExportError, match="no block is one of"):
        Differentiated(Half(nn.Tanh()), (0,), recompute=True)(torch.ones(2))


def test_a_forward_of_an_instances_own_is_put_back() -> None:
    module = Nested()
    module.block.forward = own = module.block.forward  # type: ignore[method-assign]
    Differentiated(Half(module), (0,), recompute=True)(torch.ones(2, 4))
    assert vars(module.block)["forward"] is own


class Counted(nn.Module):
    """Multiplies by the number of rows, which tracing makes a number of."""

    def forward(self, x: Tensor) -> Tensor:
        return x * int(x.shape[0])


@pytest.mark.parametrize("sizes", [Dimension(1, 2, 8), Dimension(1, 1, 2)])
def test_a_dimension_that_became_a_number_is_refused(tmp_path: Path, sizes: Dimension) -> None:
    made = differentiate(network(Counted, n=sizes), Half, name="gradient")
    with pytest.raises(ExportError, match="takes n of 'x' for a number"):
        written(tmp_path / "b", made)


@pytest.mark.parametrize("largest", [1, 2, 3, 8])
def test_another_size_is_checked_than_is_traced(largest: int) -> None:
    made = network(nn.Tanh, n=Dimension(1, 1, largest))
    traced, checked = made.sizes(0)["n"], made.sizes(1)["n"]
    assert 1 <= checked <= largest and (checked != traced or largest == 1)


def test_only_the_derivative_by_x_is_named_gradient(tmp_path: Path) -> None:
    c = Network("c", nn.Identity, (Binding("c", "float32", ("n", 4)),), (), {"n": Dimension(1, 2, 8)})
    base = network(nn.Tanh)

    class Product(Objective):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            x, c = inputs
            y = self.module(x)
            return (y * c.square()).sum(), y

    bundle = written(tmp_path / "b", differentiate(base, Product, name="g", more=c, wrt=("c",)))
    x, given = np.full((2, 4), 0.5, np.float32), np.full((2, 4), 3.0, np.float32)
    for backend in ("onnxruntime", "torch"):
        with open_gradient(bundle, "g", backend=backend, of="c") as gradient:  # type: ignore[arg-type]
            np.testing.assert_allclose(gradient(x, c=given)[1], 6 * np.tanh(x), rtol=1e-5)
        with pytest.raises(BindingError, match="by 'z'"):
            open_gradient(bundle, "g", backend=backend, of="z")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="'gradient_x'"):
        open_gradient(bundle, "g", backend="onnxruntime")
    with pytest.raises(ExportError, match="several inputs are named x"):
        differentiate(base, Half, name="g", more=base)


class Constant(Objective):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.ones(()).sum(), inputs[0]


class First(Objective):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs[0].sum(), inputs[0]


def test_a_loss_that_does_not_depend_on_x_is_refused() -> None:
    with pytest.raises(ExportError, match="does not depend"):
        Differentiated(Constant(), (0,))(torch.ones(2))
    with pytest.raises(ExportError, match="does not depend"):
        Differentiated(First(), (0, 1))(torch.ones(2), torch.ones(2))


@pytest.mark.parametrize(("second", "apart"), [((1, 0, 2, 3), 0), ((0, 1, 3, 2), 1), (None, 1)])
def test_weights_read_in_another_order_are_told_apart(second: tuple[int, ...] | None, apart: int) -> None:
    """Two transposes are one use if they give one order, whatever their number."""
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((3, 3, 3, 3), np.float32)))
    x = ir.Value(name="x")
    nodes = []
    for order in ((1, 0, 2, 3), second):
        source = weight
        if order is not None:
            nodes.append(ir.node("Transpose", [weight], attributes={"perm": order}))
            source = nodes[-1].outputs[0]
        nodes.append(ir.node("Conv", [x, source]))
    outputs = [node.outputs[0] for node in nodes if node.op_type == "Conv"]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[weight], opset_imports={"": 20})
    assert untie_square_weights(ir.Model(graph, ir_version=10)) == apart
