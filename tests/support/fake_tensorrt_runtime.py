"""The runtime half of the fake TensorRT: executes plans by ONNX Runtime, on the memory of the fake GPU.

It refuses what the real one refuses or leaves undefined: an address, a shape or memory that was not given, shapes
outside the profile, memory that is too small or was freed, recording a run that was never run, work on a plan of
another version, and weights of another name, type or size. Work is enqueued and done later, as on a GPU.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np

MAGIC = b"FAKETRT1"


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 7
    INT8 = 2
    INT32 = 3
    INT64 = 8
    BOOL = 4
    UINT8 = 5


ONNX_TYPES = {
    1: DataType.FLOAT,
    2: DataType.UINT8,
    3: DataType.INT8,
    6: DataType.INT32,
    7: DataType.INT64,
    9: DataType.BOOL,
    10: DataType.HALF,
    16: DataType.BF16,
}
NUMPY = {
    DataType.FLOAT: "float32",
    DataType.HALF: "float16",
    DataType.INT8: "int8",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.BOOL: "bool",
    DataType.UINT8: "uint8",
}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Weights:
    """A type and, but for a prototype, an address and a number of values."""

    def __init__(self, type: DataType, ptr: int = 0, count: int = 0) -> None:
        self.dtype, self.pointer, self.size = type, ptr, count

    def read(self) -> np.ndarray[Any, Any]:
        kind = np.dtype(NUMPY[self.dtype])
        return np.frombuffer(ctypes.string_at(self.pointer, self.size * kind.itemsize), kind)


def load(path: str) -> Any:
    """A graph with its weights inside; they may be links, which onnx does not follow."""
    import onnx

    from sfumato.engines.onnx_model import external

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        place = external(tensor)
        if place is not None:
            data = (Path(path).parent / place.location).read_bytes()
            tensor.raw_data = data[place.offset : place.offset + place.length]
            tensor.ClearField("external_data")
            tensor.data_location = 0
    return model


def serialize(version: str, flags: list[str], profiles: list[dict[str, Any]], model: Any) -> bytes:
    """A plan: what it is, and the graph with its weights."""
    header = json.dumps({"version": version, "flags": flags, "profiles": profiles}).encode()
    return b"".join((MAGIC, len(header).to_bytes(8, "little"), header, model.SerializeToString()))


class Runtime:
    module: Any = None

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        import onnx

        data = bytes(serialized_engine)
        if data[:8] != MAGIC:
            self._logger.log("Severity.ERROR", "Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None
        size = int.from_bytes(data[8:16], "little")
        header = json.loads(data[16 : 16 + size])
        if header["version"] != self.module.__version__ and "VERSION_COMPATIBLE" not in header["flags"]:
            self._logger.log("Severity.ERROR", f"The engine plan file is of version {header['version']}")
            return None
        return ICudaEngine(self.module, self._logger, header, onnx.load_model_from_string(data[16 + size :]))


class ICudaEngine:
    def __init__(self, module: Any, logger: Any, header: dict[str, Any], model: Any) -> None:
        self._module, self._logger, self._header, self._model = module, logger, header, model
        graph = model.graph
        self._ports = {value.name: value for value in (*graph.input, *graph.output)}
        self._modes = {v.name: TensorIOMode.INPUT for v in graph.input}
        self._modes |= {v.name: TensorIOMode.OUTPUT for v in graph.output}
        self._session: Any = None
        self._budget = self.streamable_weights_size
        self._contexts = 0
        self._locations: dict[str, TensorLocation] = {}

    def _run(self, feeds: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        names = [value.name for value in self._model.graph.output]
        return dict(zip(names, self._loaded().run(names, feeds), strict=True))

    def _loaded(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self._session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._session

    @property
    def num_io_tensors(self) -> int:
        return len(self._ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self._ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._modes[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return ONNX_TYPES[self._ports[name].type.tensor_type.elem_type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._ports[name].type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self._locations.get(name, TensorLocation.DEVICE)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._header["profiles"])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._header["profiles"][profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        high = [shapes[2] for shapes in self._header["profiles"][profile_index].values()]
        return 64 * sum(math.prod(shape) for shape in high)

    @property
    def refittable(self) -> bool:
        return "REFIT" in self._header["flags"]

    @property
    def streamable_weights_size(self) -> int:
        if "WEIGHT_STREAMING" not in self._header["flags"]:
            return 0
        return sum(len(tensor.raw_data) for tensor in self._model.graph.initializer)

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if self._contexts:
            raise RuntimeError("the budget cannot be changed while there are contexts")
        self._budget = budget

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size

    def create_engine_inspector(self) -> Any:
        layer = {
            "Name": "conv",
            "LayerType": "Convolution",
            "Inputs": [{"Format/Datatype": self._module.inspector_says}],
        }
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": [layer]}))

    def create_runtime_config(self) -> IRuntimeConfig:
        if not self._module.rtx:
            raise AttributeError("create_runtime_config")
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        managed = strategy._strategy if isinstance(strategy, IRuntimeConfig) else strategy
        self._contexts += 1
        made = IExecutionContext(self, managed is ExecutionContextAllocationStrategy.USER_MANAGED)
        made.kernels = getattr(strategy, "dynamic_shapes_kernel_specialization_strategy", None)
        self._module.contexts.append(made)
        return made


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._kernels = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> DynamicShapesKernelSpecializationStrategy:
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: DynamicShapesKernelSpecializationStrategy) -> None:
        self._kernels = value


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, managed: bool) -> None:
        self._engine, self._managed = engine, managed
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._need: int | None = None
        self._runs = 0
        self._outputs: dict[str, tuple[int, ...]] = {}
        self.kernels: Any = None
        self.recorded = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._error(f"Supplied binding dimension {shape} for {name} is not within the optimization profile")
        self._shapes[name], self._need, self._outputs = tuple(shape), None, {}
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._ports:
            return self._error(f"Given invalid tensor name: {name}")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        missing = [n for n, mode in self._engine._modes.items() if mode is TensorIOMode.INPUT and n not in self._shapes]
        if not missing and not self._outputs:
            feeds = {n: np.zeros(s, NUMPY[self._engine.get_tensor_dtype(n)]) for n, s in self._shapes.items()}
            with np.errstate(all="ignore"):
                self._outputs = {n: a.shape for n, a in self._engine._run(feeds).items()}
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        return self._engine.get_tensor_shape(name) if self.infer_shapes() else self._outputs[name]

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes(), "every shape has to be set before"
        self._need = 16 * sum(math.prod(shape) for shape in (*self._shapes.values(), *self._outputs.values()))
        return self._need

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._managed:
            raise RuntimeError("the context brings its own memory")
        self._memory = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        if not self._engine._module.rtx:
            raise AttributeError("is_stream_capturable")
        return "REQUIRE_USER_ALLOCATION" in self._engine._header["flags"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, machine = self._engine, fake_cuda.current()
        recording = machine.streams[stream_handle].recorded is not None
        unset = [name for name in engine._ports if name not in self._addresses]
        if self.infer_shapes() or unset:
            return self._error(f"Address is not set for {', '.join(unset)} or a shape is missing")
        if self._managed and (self._need is None or not self._memory[0] or self._memory[1] < self._need):
            return self._error(f"needs {self._need} bytes of device memory, was given {self._memory[1]}")
        if recording and not self._runs:
            return self._error("a run that loads kernels cannot be captured")
        if recording and engine._budget < engine.streamable_weights_size:
            return self._error("streamed weights cannot be captured")
        if recording and engine._module.rtx and "REQUIRE_USER_ALLOCATION" not in engine._header["flags"]:
            return self._error("the context allocates while it runs")
        self._runs += 1
        self.recorded += recording
        # What a graph keeps: the addresses, the memory, the shapes, and the weights where they are now.
        shapes, addresses, memory = dict(self._shapes), dict(self._addresses), self._memory
        outputs, session = dict(self._outputs), engine._loaded()
        machine.enqueue(stream_handle, lambda: self._work(session, shapes, outputs, addresses, memory))
        return True

    def _work(
        self, session: Any, shapes: Any, outputs: Any, addresses: dict[str, int], memory: tuple[int, int]
    ) -> None:
        if self._managed:
            arena = _array(memory[0], (memory[1],), "uint8")  # fails if it was freed
            arena[:] = 0xAB
        feeds = {n: _array(addresses[n], s, NUMPY[self._engine.get_tensor_dtype(n)]).copy() for n, s in shapes.items()}
        for name, result in zip(outputs, session.run(list(outputs), feeds), strict=True):
            _array(addresses[name], outputs[name], result.dtype)[...] = result

    def _error(self, text: str) -> bool:
        self._engine._logger.log("Severity.ERROR", f"IExecutionContext: {text}")
        return False


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Device memory as an array; an error of the GPU where there is none."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if fake_cuda.current().kind(address, size) != "device":
        raise fake_cuda.CUDAError(f"CUDA_ERROR_ILLEGAL_ADDRESS: {address:#x}")
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self._engine, self._logger = engine, logger
        self._given: dict[str, Weights] = {}

    def _tensors(self) -> dict[str, Any]:
        floats = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT8)
        kept = [t for t in self._engine._model.graph.initializer if ONNX_TYPES.get(t.data_type) in floats]
        return {t.name: t for t in kept if self._engine.refittable and t.name not in self._engine._module.fixed}

    def get_all_weights(self) -> list[str]:
        return list(self._tensors())

    def get_weights_prototype(self, weights_name: str) -> Weights:
        tensor = self._tensors()[weights_name]
        return Weights(ONNX_TYPES[tensor.data_type], 0, math.prod(tensor.dims))

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        prototype = self.get_weights_prototype(name) if name in self._tensors() else None
        if prototype is None or (prototype.dtype, prototype.size) != (weights.dtype, weights.size):
            self._logger.log("Severity.ERROR", f"weights {name} do not fit")
            return False
        self._given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        groups = [g for g in self._engine._module.combined if g & self._given.keys()]
        return sorted(name for group in groups for name in group - self._given.keys())

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        tensors, stop = self._tensors(), self._engine._module.refit_stops_after
        self._engine._session = None
        for index, (name, weights) in enumerate(self._given.items()):
            if stop is not None and index >= stop:
                self._logger.log("Severity.ERROR", "out of memory while refitting")
                return False
            for typed in ("float_data", "int32_data"):
                tensors[name].ClearField(typed)
            tensors[name].raw_data = weights.read().tobytes()
        return True
