"""The fake TensorRT against the classes of tensorrt_rtx: what runs on it calls nothing that the real one lacks."""

from __future__ import annotations

import inspect
import re

import fake_tensorrt
import fake_tensorrt_runtime as fake
import pytest

real = pytest.importorskip("tensorrt_rtx")

CLASSES = ["Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "Refitter"]
ENUMS = [
    *("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"),
    *("DynamicShapesKernelSpecializationStrategy",),
]
BUILDER_ENUMS = ["BuilderFlag", "HardwareCompatibilityLevel", "ComputeCapability", "ProfilingVerbosity"]


def members(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and name != "module"}


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_of_the_fake_is_one_of_the_real_class(name):
    mine, its = getattr(fake, name), getattr(real, name)
    assert members(mine)
    for member, value in members(mine).items():
        assert hasattr(its, member), f"{name} has no {member}"
        its_member = getattr(its, member)
        if isinstance(value, property):
            assert isinstance(its_member, property), f"{name}.{member} is no property"
            assert value.fset is None or its_member.fset is not None, f"{name}.{member} cannot be set"
        else:
            assert callable(its_member) and not isinstance(its_member, property)


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_have_the_real_names_and_order(name):
    for member, value in members(getattr(fake, name)).items():
        if isinstance(value, property):
            continue
        wanted = list(inspect.signature(value).parameters)[1:]
        text = getattr(getattr(real, name), member).__doc__ or ""
        found = [re.findall(r"(?:\(|, )(\w+): ", line)[1:] for line in re.findall(rf"{member}\(self: .*", text)]
        assert any(given[: len(wanted)] == wanted for given in found), (member, wanted, found)


@pytest.mark.parametrize("name", ENUMS)
def test_every_value_of_the_fakes_enumerations_is_a_real_one(name):
    assert {value.name for value in getattr(fake, name)} <= getattr(real, name).__members__.keys()


@pytest.mark.parametrize("name", BUILDER_ENUMS)
def test_so_are_those_of_the_builder(name):
    assert {value.name for value in getattr(fake_tensorrt, name)} <= getattr(real, name).__members__.keys()


def test_weights_are_made_of_a_type_an_address_and_a_count():
    assert re.search(r"type: [\w.]+DataType, ptr: \S+, count: ", real.Weights.__init__.__doc__)
    import numpy as np

    array = np.arange(6, dtype=np.float32)
    weights = real.Weights(real.DataType.FLOAT, array.ctypes.data, array.size)
    assert (weights.dtype, weights.size) == (real.DataType.FLOAT, 6)
    made = fake.Weights(fake.DataType.FLOAT, array.ctypes.data, array.size)
    assert (made.dtype, made.size) == (fake.DataType.FLOAT, 6)
    np.testing.assert_array_equal(made.read(), array)


def test_a_context_is_made_with_a_strategy_or_a_configuration():
    text = real.ICudaEngine.create_execution_context.__doc__
    assert "strategy: tensorrt_rtx_bindings" in text.replace("tensorrt_bindings", "tensorrt_rtx_bindings")
    assert "runtime_config: " in text


def test_plans_buffers_are_taken_by_the_buffer_protocol():
    assert "Buffer" in real.Runtime.deserialize_cuda_engine.__doc__
