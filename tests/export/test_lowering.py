"""Lowering without torch's decompositions, and the reshapes that it leaves."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from sfumato.export.graph import clean
from sfumato.export.lowering import direct_lowering, without_collection


class Heads(nn.Module):
    """Heads of an attention apart and together again, with a cast that changes nothing and one that does."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x.to(torch.float32).unflatten(-1, (4, -1)).transpose(1, 2)
        return h.transpose(1, 2).flatten(2) * t.to(torch.float32)[:, None, None]


class Unknown(nn.Module):
    """An operator that torch's exporter must decompose."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.special.entr(x) + torch.ops.aten.rsub.Scalar(x, 2.0) + t[:, None, None]


class InPlace(nn.Module):
    """A copy that is written to."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x.clone()
        h.mul_(2.0)
        return h + t[:, None, None]


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ir.Model:
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=2, max=32)
    program = torch.onnx.export(
        module,
        inputs,
        input_names=["x", "t"],
        opset_version=20,
        dynamo=True,
        dynamic_shapes=({0: batch, 1: length}, {0: batch}),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program.model


@pytest.fixture
def decompositions(monkeypatch):
    """How often torch decomposed a program."""
    from torch.onnx._internal.exporter import _fx_passes

    count, original = [0], _fx_passes.decompose_with_registry

    def counting(*arguments):
        count[0] += 1
        return original(*arguments)

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counting)
    return count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "decomposed"), [(Heads(), 0), (Unknown(), 1), (InPlace(), 1)])
def test_only_what_needs_it_is_decomposed_and_the_numbers_stay(module, decomposed, decompositions) -> None:
    example = torch.rand(2, 6, 32) + 0.5, torch.arange(2)
    with direct_lowering():
        model = exported(module, example)
    assert decompositions[0] == decomposed
    clean(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x, t = torch.rand(3, 10, 32) + 0.5, torch.arange(3)
    (result,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x.numpy(), "t": t.numpy()})
    np.testing.assert_allclose(result, module(x, t).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_heads_are_told_apart_by_reshapes_that_compute_nothing() -> None:
    with direct_lowering():
        model = exported(Heads(), (torch.rand(2, 6, 32), torch.arange(2)))
    clean(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Reshape") == 2
    assert not {"Shape", "Slice", "Concat"} & set(kinds)


def test_without_the_private_function_torch_goes_its_own_way(monkeypatch) -> None:
    from torch.onnx._internal.exporter import _fx_passes

    monkeypatch.delattr(_fx_passes, "decompose_with_registry")
    with direct_lowering():
        assert not hasattr(_fx_passes, "decompose_with_registry")
    assert not hasattr(_fx_passes, "decompose_with_registry")


@pytest.mark.parametrize("before", [True, False])
def test_cycles_are_collected_again_after_a_trace_that_fails(before) -> None:
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), without_collection():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()
