"""An engine on a fake or a real GPU whose network is a function on the host, worked out in stream order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Network = Callable[..., "dict[str, np.ndarray[Any, Any]]"]


def network(x: Any, t: Any, context: Any = None, **_: Any) -> dict[str, Any]:
    """Smooth and bounded; depends on everything that is fed."""
    shift = 0.0 if context is None else context.reshape(len(x), -1).mean(axis=1)[:, None, None, None]
    return {"prediction": (0.8 * np.sin(1.3 * x + 0.002 * t[:, None, None, None] + shift)).astype(np.float32)}


class HostEngine:
    """A network given as a function of its feeds, on NumPy arrays alone."""

    backend, precision = "host", "fp32"

    def __init__(self, network: Network) -> None:
        self.spec: Any = SimpleNamespace(name="unet")
        self.network = network

    def __call__(self, **feeds: Any) -> dict[str, Any]:
        return self.network(**feeds)

    def close(self) -> None:
        pass


class DeviceEngine(HostEngine):
    """The same with `cuda` and `stream`, as engines on a GPU have them: arrays on the GPU in and out.

    Arguments:
        network: The function.
        cuda: The GPU.
        machine: The fake GPU, which runs the function when its stream comes to it; None on a real one, where the call
            waits for the feeds instead.
    """

    def __init__(self, network: Network, cuda: Any, machine: Any = None) -> None:
        super().__init__(network)
        self.cuda, self.stream = cuda, cuda.stream()
        self._machine = machine
        self._outputs: dict[tuple[int, ...], dict[str, Any]] = {}

    def __call__(self, **feeds: Any) -> dict[str, Any]:
        if all(isinstance(array, np.ndarray) for array in feeds.values()):
            return self.network(**feeds)
        assert not any(isinstance(array, np.ndarray) for array in feeds.values()), "feeds are in two places"
        outputs = self._outputs.get(feeds["x"].shape)
        if outputs is None:
            like = self.network(**{name: np.zeros(array.shape, array.dtype) for name, array in feeds.items()})
            outputs = {name: self.cuda.empty(array.shape, np.float32) for name, array in like.items()}
            self._outputs[feeds["x"].shape] = outputs
        if self._machine is None:
            found = self.network(**{name: array.numpy(self.stream) for name, array in feeds.items()})
            for name, array in found.items():
                outputs[name].copy_from(np.ascontiguousarray(array, np.float32), self.stream)
            self.stream.synchronize()
        else:
            self._machine.enqueue(self.stream.handle, lambda: self._run(feeds, outputs))
        return dict(outputs)

    def _run(self, feeds: dict[str, Any], outputs: dict[str, Any]) -> None:
        found = self.network(**{name: self._machine.array(array).copy() for name, array in feeds.items()})
        for name, array in found.items():
            self._machine.array(outputs[name])[...] = array
