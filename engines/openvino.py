"""The OpenVINO engine: the default on a CPU, and the only file that imports openvino."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import EngineError
from .binding import Array, check_feeds
from .blobs import BlobStore
from .engine import check_graph
from .islands import ISLANDS
from .manifest import NetworkSpec
from .openvino_faults import VERSION, avoid_faults
from .openvino_model import Turned, find_port, keep_compressed, port_facts, turn_weights, with_islands
from .openvino_request import Compiled
from .precision import Precision
from .resident import dropped
from .storage import cache_dir
from .target import Target, detect

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["BLOB_LIMIT", "OpenVinoEngine"]

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"

BLOB_LIMIT = 512 << 20
"""Networks with more bytes of graph and weights stay out of the cache: a blob holds the weights once more."""

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoEngine:
    """A network on OpenVINO's CPU plugin.

    Every set of input shapes is compiled once, with static shapes, and kept: the last `shapes` of them in memory, and
    on disk (below `BLOB_LIMIT`) under a key of weights, graph, OpenVINO, processor, precision, shapes and threads.

    Arguments:
        bundle: The bundle.
        spec: The network.
        precision: What to compute in; OpenVINO is told it always, since its own default depends on the processor.
        threads: Threads, None for one a core.
        shapes: How many sets of shapes stay compiled in memory; the longest unused goes first.
        cache: Keep compiled networks on disk. A bundle opened without verification reads the cache but adds nothing.
    """

    backend = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        spec: NetworkSpec,
        *,
        precision: Precision,
        threads: int | None = None,
        shapes: int = 4,
        cache: bool = True,
    ) -> None:
        self.spec = spec
        self.precision: Precision = precision
        self.cached: dict[Shapes, bool] = {}
        self._bundle = bundle
        self._shapes = max(1, shapes)
        self._cache = cache
        self._islands = precision != "fp32" and ISLANDS in spec.precision.keep_fp32
        self._compiled: OrderedDict[Shapes, Compiled] = OrderedDict()
        self._model: Any = None
        self._turned: Turned | None = None
        self._core: Any = _core()
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        """Run the network; see `Engine`. The first call with new shapes compiles."""
        check_feeds(self.spec, feeds)
        if self._core is None:
            raise EngineError(f"{self.spec.name}: the engine was closed; open it again with open_engine()")
        key = tuple(feeds[binding.name].shape for binding in self.spec.inputs)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compile(key)
        else:
            self._compiled.move_to_end(key)
        for name, array in feeds.items():
            compiled.feed(name, array)
        try:
            compiled.request.infer(share_outputs=True)  # else it copies every output into a dictionary of its own
        except RuntimeError as error:
            raise EngineError(f"{self.spec.name}: OpenVINO failed while running ({_brief(error)})") from error
        return {name: compiled.output(name) for name in compiled.outputs}

    def close(self) -> None:
        """Free the compiled networks; see `Engine`."""
        self._compiled.clear()
        self._model = self._core = self._turned = None

    def __enter__(self) -> OpenVinoEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compile(self, key: Shapes) -> Compiled:
        import openvino

        while len(self._compiled) >= self._shapes:
            self._compiled.popitem(last=False)
        store = self._store(key)
        try:
            if store is None:
                model, payload = self._build(key), None
            else:
                with store.lock():
                    model, payload = self._load(store) or (self._build_and_store(key, store), None)
            self._prove(model)
            check_graph(self.spec, "OpenVINO", port_facts(model, self.spec))
            compiled = Compiled.of(openvino, model, self.spec, payload)
        except RuntimeError as error:
            shapes = ", ".join(f"{b.name}={shape}" for b, shape in zip(self.spec.inputs, key, strict=True))
            raise EngineError(f"{self.spec.name}: OpenVINO cannot compile it for {shapes} ({_brief(error)})") from error
        self.cached[key] = payload is not None
        self._compiled[key] = compiled
        return compiled

    def _store(self, key: Shapes) -> BlobStore | None:
        files = self._bundle.manifest.files
        if not self._cache or sum(files[path].bytes for path in self.spec.files) > BLOB_LIMIT:
            return None
        facts, version = detect(), _version()
        content = {
            "format": 1,
            "network": self._bundle.digest(self.spec.name),
            "openvino": version,
            "cpu": facts.key,
            "cores": facts.cores,
            "config": self._config,
            "faults": VERSION,
            "islands": self._islands,
            "shapes": [[binding.name, *shape] for binding, shape in zip(self.spec.inputs, key, strict=True)],
        }
        return BlobStore(Target("openvino", ".".join(version.split(".")[:2]), "cpu").tag, content)

    def _load(self, store: BlobStore) -> tuple[Any, Array] | None:
        import openvino

        payload = store.load()
        if payload is None:
            return None
        try:
            return self._core.import_model(
                openvino.Tensor(payload, shared_memory=True), "CPU", dict(self._config)
            ), payload
        except RuntimeError:
            store.discard()
            return None

    def _build_and_store(self, key: Shapes, store: BlobStore) -> Any:
        model = self._build(key)
        if self._bundle.verified:
            store.store(_exported(model))
        return model

    def _build(self, key: Shapes) -> Any:
        import openvino

        if self._model is None:
            graph: Path = self._bundle.file(self.spec.graph)
            whole = self._core.read_model(graph)
            check_graph(self.spec, "OpenVINO", port_facts(whole, self.spec))
            if self._islands:
                try:
                    whole = with_islands(openvino, self._core, whole)
                except OSError as error:
                    folder = tempfile.gettempdir()
                    raise EngineError(
                        f"{self.spec.name}: its graph cannot be written to {folder} ({error}); "
                        "make room there or set TMPDIR"
                    ) from error
            self._turned = turn_weights(openvino, whole, cache_dir() / "build")
            keep_compressed(whole)
            self._model = whole  # not before all is done to it: whoever interrupts this calls again
        model = self._model.clone()
        model.reshape(
            {find_port(model.inputs, b.name): list(shape) for b, shape in zip(self.spec.inputs, key, strict=True)}
        )
        config = dict(self._config)
        if self.precision != "fp32":
            config |= avoid_faults(openvino, model)
        mapped = [self._bundle.file(path) for path in self.spec.weights]
        with dropped(mapped if self._turned is None else [*mapped, self._turned.path]):
            return self._core.compile_model(model, "CPU", config)

    def _prove(self, model: Any) -> None:
        """Refuse a silent change of precision."""
        told, done = _HINTS[self.precision], model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if told != done:
            raise EngineError(
                f"{self.spec.name}: OpenVINO was told {told} and computes in {done} on {detect().model}; "
                "open it with precision='fp32'"
            )


@cache
def _core() -> Any:
    """OpenVINO's core, one for as long as the process lasts.

    Each core's CPU plugin gives its thread a stack for signals, and takes it away when it is freed. With several, a
    freed stack stays in use, and the next signal, Ctrl-C say, ends the process (seen with OpenVINO 2026.4).
    """
    try:
        import openvino

        return openvino.Core()
    except (ImportError, RuntimeError) as error:
        raise EngineError(f"OpenVINO is installed but does not load ({_brief(error)}); reinstall openvino") from error


def _version() -> str:
    import openvino

    return str(openvino.get_version())


def _exported(model: Any) -> memoryview:
    stream = model.export_model()
    return memoryview(stream if isinstance(stream, bytes) else stream.getbuffer())


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return " ".join(lines)[:300] or type(error).__name__
