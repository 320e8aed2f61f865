"""TensorRT as far as it differs from TensorRT for RTX: a builder that records what it was told and makes no plan.

It has the names and signatures of the published Python interface that ``docs/tensorrt.md`` lists, which says against
what each was checked.
"""

from __future__ import annotations

import enum
import json
from types import SimpleNamespace
from typing import Any


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 2


class LayerType(enum.Enum):
    CONVOLUTION = 0


class BuilderFlag(enum.Enum):
    WEIGHT_STREAMING = 0
    VERSION_COMPATIBLE = 1


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


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
        self.profiles: list[Any] = []
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.cache: TimingCache | None = None
        self.refused = 0

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
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
    """What the tiny UNet comes to, in whichever precision the module was told."""

    def __init__(self, flags: int, dtype: DataType) -> None:
        self.creation_flags = flags
        self.inputs = [tensor("x", DataType.FLOAT), tensor("t", DataType.FLOAT)]
        self.outputs = [tensor("prediction", DataType.FLOAT)]
        convolution = SimpleNamespace(name="conv", type=LayerType.CONVOLUTION, get_output=lambda _: tensor("y", dtype))
        self.layers = [convolution]
        self.num_inputs, self.num_outputs, self.num_layers = 2, 1, 1

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    def get_layer(self, index: int) -> Any:
        return self.layers[index]


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class Fake:
    """The module ``tensorrt``.

    Arguments:
        version: What it says it is.
        network: What the convolution of its networks computes in.
        plan: What the inspector says the plan computes in.
        says: What the logger is told before a build fails; "" builds.
    """

    def __init__(self, version: str, network: str = "HALF", plan: str = "Half", says: str = "") -> None:
        self.__version__ = version
        self.configs: list[Config] = []
        self.networks: list[Network] = []
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
                return b"a plan"

        class OnnxParser:
            num_errors = 0

            def __init__(self, made: Network, logger: Any) -> None:
                pass

            def parse_from_file(self, path: str) -> bool:
                return True

        class Runtime:
            def __init__(self, logger: Any) -> None:
                pass

            def deserialize_cuda_engine(self, data: Any) -> Any:
                layer = {"Name": "conv", "LayerType": "Convolution", "Inputs": [{"Format/Datatype": plan}]}
                names = ["x", "t", "prediction"]
                inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": [layer]}))
                return SimpleNamespace(
                    num_io_tensors=3,
                    get_tensor_name=names.__getitem__,
                    get_tensor_dtype=lambda name: DataType.FLOAT,
                    create_engine_inspector=lambda: inspector,
                )

        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime
        self.ILogger, self.IProgressMonitor = ILogger, IProgressMonitor
        self.BuilderFlag, self.MemoryPoolType = BuilderFlag, MemoryPoolType
        self.HardwareCompatibilityLevel, self.ProfilingVerbosity = HardwareCompatibilityLevel, ProfilingVerbosity
        self.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
        self.LayerInformationFormat = LayerInformationFormat
