"""TensorRT without a GPU: a builder whose plans carry the ONNX graph, and a runtime that executes them on a processor.

It has the names and signatures of the published Python interface that ``docs/tensorrt.md`` lists, which says against
what each was checked; `test_tensorrt_api.py` holds them to the classes of `tensorrt_rtx`. The builder records what it
was told. The runtime is in `fake_tensorrt_runtime.py`.
"""

from __future__ import annotations

import enum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import fake_tensorrt_runtime as runtime
from fake_tensorrt_runtime import DataType, Weights


class LayerType(enum.Enum):
    CONVOLUTION = 0


class BuilderFlag(enum.Enum):
    WEIGHT_STREAMING = 0
    VERSION_COMPATIBLE = 1
    REFIT = 2
    REQUIRE_USER_ALLOCATION = 3


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class ComputeCapability(enum.Enum):
    SM86 = 86
    SM89 = 89


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class LayerInformationFormat(enum.Enum):
    JSON = 1


class ILogger:
    pass


class IProgressMonitor:
    pass


class TimingCache:
    """Bytes, of which the first eight name the device."""

    def __init__(self, data: bytes, device: bytes) -> None:
        self.device = data[:8] or device
        self.timings = data[8:]

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        self.timings += other.timings
        return True

    def serialize(self) -> bytes:
        return self.device + self.timings


class Config:
    def __init__(self) -> None:
        self.flags: list[BuilderFlag] = []
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[Profile] = []
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.cache: TimingCache | None = None
        self.refused = 0

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool] = size

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        return 0 <= index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data, b"device-0")

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.device != b"device-0" and not ignore_mismatch:
            self.refused += 1
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


def tensor(name: str, dtype: DataType) -> Any:
    return SimpleNamespace(name=name, dtype=dtype)


class Network:
    """What a graph comes to: its inputs and outputs, and a convolution for every product, in whichever precision."""

    def __init__(self, flags: int, dtype: DataType) -> None:
        self.creation_flags, self.dtype = flags, dtype
        self.model: Any = None
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.layers: list[Any] = []

    def read(self, model: Any) -> None:
        self.model = model
        self.inputs = [_port(value) for value in model.graph.input]
        self.outputs = [_port(value) for value in model.graph.output]
        products = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
        self.layers = [
            SimpleNamespace(
                name=n.name or "conv", type=LayerType.CONVOLUTION, get_output=lambda _: tensor("y", self.dtype)
            )
            for n in products
        ]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    def get_layer(self, index: int) -> Any:
        return self.layers[index]


def _port(value: Any) -> Any:
    return tensor(value.name, runtime.ONNX_TYPES[value.type.tensor_type.elem_type])


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class Fake:
    """The module ``tensorrt``, or ``tensorrt_rtx``.

    Arguments:
        version: What it says it is.
        network: What the products of its networks compute in.
        plan: What the inspector says the plan computes in.
        says: What the logger is told before a build fails; "" builds.
        rtx: It is TensorRT for RTX.
    """

    def __init__(
        self, version: str, network: str = "HALF", plan: str = "Half", says: str = "", rtx: bool = False
    ) -> None:
        self.__version__, self.rtx = version, rtx
        self.__spec__ = ModuleSpec("tensorrt_rtx" if rtx else "tensorrt", None)
        self.configs: list[Config] = []
        self.networks: list[Network] = []
        self.contexts: list[runtime.IExecutionContext] = []
        """Every context that was created."""
        self.inspector_says = plan
        self.refit_stops_after: int | None = None
        """Of the weights of a refit, how many are taken before it fails; None takes all."""
        self.combined: list[set[str]] = []
        """Weights that were combined into one, which can only be replaced together."""
        self.fixed: set[str] = set()
        """Weights that cannot be replaced."""
        fake = self

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Network:
                fake.networks.append(Network(flags, DataType[network]))
                return fake.networks[-1]

            def create_builder_config(self) -> Config:
                fake.configs.append(Config())
                return fake.configs[-1]

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, made: Network, config: Any) -> bytes | None:
                config.progress_monitor.phase_start("Building engine", None, 2)
                config.progress_monitor.step_complete("Building engine", 0)
                if config.cache is not None:
                    config.cache.timings += b"1"
                config.progress_monitor.phase_finish("Building engine")
                if says:
                    self.logger.log("Severity.ERROR", says)
                    return None
                flags = [flag.name for flag in config.flags]
                if {"REQUIRE_USER_ALLOCATION", "WEIGHT_STREAMING"} <= set(flags):
                    self.logger.log("Severity.ERROR", "REQUIRE_USER_ALLOCATION is not compatible with WEIGHT_STREAMING")
                    return None
                return runtime.serialize(version, flags, [p.shapes for p in config.profiles], made.model)

        class OnnxParser:
            num_errors = 0

            def __init__(self, made: Network, logger: Any) -> None:
                self.made = made

            def parse_from_file(self, path: str) -> bool:
                self.made.read(runtime.load(path))
                return True

        class Runtime(runtime.Runtime):
            module = fake

        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime
        self.Refitter, self.Weights = runtime.Refitter, Weights
        self.ILogger, self.IProgressMonitor = ILogger, IProgressMonitor
        self.BuilderFlag, self.MemoryPoolType = BuilderFlag, MemoryPoolType
        self.HardwareCompatibilityLevel, self.ProfilingVerbosity = HardwareCompatibilityLevel, ProfilingVerbosity
        self.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
        self.LayerInformationFormat, self.ComputeCapability = LayerInformationFormat, ComputeCapability
        self.DataType, self.TensorIOMode, self.TensorLocation = DataType, runtime.TensorIOMode, runtime.TensorLocation
        self.ExecutionContextAllocationStrategy = runtime.ExecutionContextAllocationStrategy
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = runtime.DynamicShapesKernelSpecializationStrategy
