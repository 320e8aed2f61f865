"""The module onnxruntime with a CUDA provider that is none: the real library on the processor, on `fake_cuda`'s memory.

Sessions are real ones on the CPU provider. What the CUDA provider is told is held to the options that the real one
takes (read by handing them to ``libonnxruntime_providers_cuda.so`` of onnxruntime-gpu 1.31.1). A run is enqueued on the
stream that the options name. With `enable_cuda_graph` a run is recorded under its ``gpu_graph_id`` with the addresses
that it was bound to then, and replayed with those ever after, whatever it is bound to later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np

OPTIONS = (
    *("device_id", "user_compute_stream", "enable_cuda_graph", "use_tf32", "cudnn_conv_algo_search"),
    *("arena_extend_strategy", "gpu_mem_limit", "prefer_nhwc", "do_copy_in_default_stream"),
)
PROVIDER = "CUDAExecutionProvider"
UNGRAPHED = "This session cannot use the graph capture feature as requested by the user"


class Log:
    """What the library was asked, for tests to look at."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.runs: list[tuple[str, str]] = []
        """Every run: "run", "record" or "replay", and its graph's number."""


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        assert isinstance(value, str)
        self.entries[key] = value


class OrtValue:
    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def shape(self) -> list[int]:
        return list(self._array.shape)


class Binding:
    """An IOBinding: addresses by name, as the library keeps them."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.made: list[OrtValue] = []

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.inputs[name] = _place(element_type, shape, buffer_ptr)

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.outputs[name] = None if buffer_ptr is None else _place(element_type, shape or (), buffer_ptr)

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()

    def get_outputs(self) -> list[OrtValue]:
        return self.made


class Session:
    """A session on the fake provider, or on the real CPU provider with all that it has."""

    def __init__(self, fake: FakeOnnxRuntime, path: str, options: Any, providers: Sequence[Any]) -> None:
        self._fake = fake
        self._real = fake.real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._providers = ["CPUExecutionProvider"]
        self.model = Path(path).read_bytes()
        self.options = options
        self.told: dict[str, str] = {}
        self._recorded: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        fake.log.sessions.append(self)
        for provider in providers:
            if provider[0] != PROVIDER:
                continue
            self.told = dict(provider[1])
            for key, value in self.told.items():
                if key not in OPTIONS or not isinstance(value, str):
                    raise RuntimeError(f'Unknown provider option: "{key}".')
            if fake.loads:
                self._providers.insert(0, PROVIDER)
        self.graphs = self.told.get("enable_cuda_graph") == "1"
        if self.graphs and fake.on_cpu:
            raise RuntimeError(f"{UNGRAPHED} as all compute graph nodes have not been partitioned to the {PROVIDER}")

    def get_providers(self) -> list[str]:
        return self._providers

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, iobinding: Binding, run_options: RunOptions) -> None:
        entries = run_options.entries
        number = entries.get("gpu_graph_id", "0")
        inputs, outputs = dict(iobinding.inputs), dict(iobinding.outputs)
        kind = "run"
        if self.graphs and number != "-1":
            kind = "replay" if number in self._recorded else "record"
            inputs, outputs = self._recorded.setdefault(number, (inputs, outputs))
        self._fake.log.runs.append((kind, number))
        stream = int(self.told["user_compute_stream"])
        if any(place is None for place in outputs.values()):  # the library allocates: its results have to be known
            fake_cuda.current().streams[stream].sync()
            iobinding.made = [OrtValue(value) for value in self._compute(inputs, list(outputs))]
            return

        def work() -> None:
            for name, value in zip(outputs, self._compute(inputs, list(outputs)), strict=True):
                target = _array(outputs[name])
                if target.shape != value.shape:
                    raise RuntimeError(f"output {name} is bound to {target.shape}, it has {value.shape}")
                target[...] = value

        fake_cuda.current().enqueue(stream, work)
        if entries.get("disable_synchronize_execution_providers") != "1":
            fake_cuda.current().streams[stream].sync()

    def _compute(self, inputs: dict[str, Any], names: list[str]) -> Any:
        return self._real.run(names, {name: _array(place).copy() for name, place in inputs.items()})


class FakeOnnxRuntime(ModuleType):
    """The module.

    Arguments:
        real: The real one.
        loads: The CUDA provider's libraries load; else sessions fall back to the processor without a word.
        built: The distribution has a CUDA provider.
        on_cpu: Some operator has no kernel for the GPU.
    """

    def __init__(self, real: Any, *, loads: bool = True, built: bool = True, on_cpu: bool = False) -> None:
        super().__init__("onnxruntime")
        self.real, self.loads, self.built, self.on_cpu = real, loads, built, on_cpu
        self.log = Log()
        self.preloaded = 0
        self.__file__ = real.__file__
        self.__version__ = real.__version__
        self.SessionOptions = real.SessionOptions
        self.GraphOptimizationLevel = real.GraphOptimizationLevel
        self.RunOptions = RunOptions

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self.built else ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        if not self.loads:
            print("Failed to load libcublasLt.so.13: cannot open shared object file")

    def InferenceSession(self, path: str, options: Any, *, providers: Sequence[Any], enable_fallback: int = 1) -> Any:
        if any(provider[0] == PROVIDER for provider in providers):
            assert enable_fallback == 0, "a provider that fails would be replaced with a word on stdout"
            return Session(self, path, options, providers)
        return self.real.InferenceSession(path, options, providers=list(providers))


def _place(dtype: Any, shape: Sequence[int], pointer: int) -> Any:
    place = SimpleNamespace(dtype=np.dtype(dtype), shape=tuple(shape), pointer=pointer)
    size = int(np.prod(place.shape)) * place.dtype.itemsize
    assert fake_cuda.current().kind(pointer, size) == "device", "the provider was given memory that is not the device's"
    return place


def _array(place: Any) -> np.ndarray[Any, Any]:
    size = int(np.prod(place.shape)) * place.dtype.itemsize
    assert fake_cuda.current().kind(place.pointer, size) == "device", "the device memory was freed"
    raw = (ctypes.c_uint8 * size).from_address(place.pointer)
    return np.frombuffer(raw, dtype=np.uint8).view(place.dtype).reshape(place.shape)
