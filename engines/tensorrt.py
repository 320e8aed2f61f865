"""The TensorRT engine: runs the plans that `sfumato build` makes, with TensorRT or TensorRT for RTX."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ..errors import EngineError, ParameterError, SfumatoError
from .binding import Array, check_feeds
from .builder_library import BuilderKind, load_library
from .cuda import Cuda, DeviceArray, Stream, open_cuda
from .manifest import NetworkSpec
from .plan import Plan, check_key
from .precision import Precision
from .refit import Origin, origins_of, refit
from .tensorrt_plan import build_command, check_ports, choose_plan, deserialize
from .tensorrt_run import Run, choose_profile
from .tensorrt_shared import share

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["TensorRTEngine"]

T = TypeVar("T")


class TensorRTEngine:
    """A network on an NVIDIA GPU, from a plan of its bundle.

    Feeds are NumPy arrays or arrays on the GPU. If all are NumPy arrays so are the outputs: one copy there, one back,
    through pinned memory, and the call waits. If any is on the GPU the outputs are `DeviceArray`s, written on `stream`
    later; nothing waits. Outputs belong to the engine: the next call with the same shapes writes them again.

    Engines of one bundle share `stream` and the memory of their activations, so they do their work one after another,
    in the order of the calls. Shapes that were seen before run as a CUDA graph.

    Arguments:
        bundle: The bundle.
        spec: The network.
        library: "tensorrt" or "tensorrt_rtx".
        precision: What products have to compute in; None takes any plan, see `choose_plan`.
        plan: The plan, as `choose_plan` or `preflight` gave it; None chooses one of the bundle's.
        refit: Take only a plan that was built to be refitted.
        cuda_graphs: Record runs as CUDA graphs. Plans that cannot be recorded run without, and so do those whose
            weights are streamed.
        shapes: How many sets of input shapes keep context, buffers and graph; the longest unused goes first.
        weight_budget: Bytes of weights that stay on the GPU, for a plan built with weight streaming; None lets the
            library choose by the memory that is free.
        device: Number of the GPU.

    Raises:
        MissingDependency: The library or cuda-core is not installed.
        EngineError: There is no GPU, no plan that fits, or the library refuses it; the message says why.
        ParameterError: A weight budget was given for a plan without weight streaming.
    """

    def __init__(
        self,
        bundle: Bundle,
        spec: NetworkSpec,
        library: BuilderKind,
        *,
        precision: Precision | None = None,
        plan: Plan | None = None,
        refit: bool = False,
        cuda_graphs: bool = True,
        shapes: int = 4,
        weight_budget: int | None = None,
        device: int = 0,
    ) -> None:
        api = load_library(library)
        self.spec = spec
        self.backend: str = library
        self.cuda: Cuda = open_cuda(device)
        sm = self.cuda.sm
        if plan is None:
            plan = choose_plan(api, bundle, spec.name, sm, precision=precision, refit=refit)
        else:
            check_key(plan, bundle, spec.name, builder=library, version=api.version, sm=sm)
        self.plan = plan
        self.precision: Precision = cast(Precision, plan.key["precision"])
        self._command = build_command(api, bundle, spec.name, sm)
        self._shapes = max(1, shapes)
        self._runs: OrderedDict[tuple[tuple[int, ...], ...], Run] = OrderedDict()
        self._broken = ""
        self._shared = share(bundle, api, self.cuda)
        self.stream: Stream = self._shared.stream
        with self._shared.lock:
            self.cuda.activate()
            self._engine: Any = deserialize(api, self._shared.runtime, self._shared.logger, plan, spec)
            check_ports(api, self._engine, spec)
            self._graphs = cuda_graphs and not self._stream_weights(weight_budget)
        self._shared.join()

    def __call__(self, **feeds: Array | DeviceArray) -> dict[str, Any]:
        """Run the network; see the class.

        Raises:
            BindingError: The feeds do not fit the network, or lie outside every profile of the plan.
            EngineError: The engine was closed, memory is short, or the library fails.
        """
        given = {name: _on_gpu(feed) for name, feed in feeds.items()}
        check_feeds(self.spec, given, also=(DeviceArray,))
        with self._shared.lock:
            self._check_usable()
            return self._guarded("running", lambda: self._call(given))

    @property
    def refittable(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Stored dtype and shape of every weight that the plan was made of, by its name in the bundle's graph.

        Empty for a plan that was not built with ``--refit``.
        """
        return {source: (dtype, shape) for source, dtype, shape in self._origins.values()}

    def refit(self, weights: Mapping[str, Array]) -> None:
        """Replace weights, such as by those of another fine-tuned model. Waits for what is enqueued.

        Arguments:
            weights: By their names in the bundle's graph, in its dtypes and shapes; `refit.stored_weights` reads
                them from another bundle of the same architecture. Those that are not given keep their values.

        Raises:
            EngineError: The plan was not built to be refitted, or the weights do not fit; it is as it was. Or the
                library gave up halfway: then the engine refuses to run, since it holds some of both.
        """
        with self._shared.lock:
            self._check_usable()
            if not self._origins or not self._engine.refittable:
                raise EngineError(
                    f"{self.spec.name}: {self.plan.path.name} was not built to be refitted; "
                    f"run: {self._command} --refit"
                )
            self._guarded("being refitted", lambda: self._refit(weights))

    def close(self) -> None:
        """Free contexts, buffers, graphs and the plan; see `Engine`."""
        with self._shared.lock:
            if self._engine is None:
                return
            self.cuda.activate()
            for run in self._runs.values():
                outputs = list(run.outputs.values())
                run.close()
                for array in outputs:
                    array.close()
            self._runs.clear()
            self._engine = None  # contexts first: the library frees an engine under them otherwise
            self._shared.leave()

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _origins(self) -> dict[str, Origin]:
        return origins_of(self.plan.built)

    def _call(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Any]:
        run = self._run(tuple(tuple(feeds[binding.name].shape) for binding in self.spec.inputs))
        run.stage(feeds)
        run.enqueue()
        if any(isinstance(feed, DeviceArray) for feed in feeds.values()):
            return dict(run.outputs)
        return run.fetch()

    def _run(self, key: tuple[tuple[int, ...], ...]) -> Run:
        found = self._runs.get(key)
        if found is not None:
            self._runs.move_to_end(key)
            return found
        shapes = {binding.name: shape for binding, shape in zip(self.spec.inputs, key, strict=True)}
        profile = choose_profile(self._engine, self.spec, shapes, self._command)
        while len(self._runs) >= self._shapes:
            self._runs.popitem(last=False)[1].close()
        made = Run(self._shared, self._engine, self.spec, shapes, profile, self._graphs)
        self._runs[key] = made
        return made

    def _refit(self, weights: Mapping[str, Array]) -> None:
        self.stream.synchronize()
        shared = self._shared
        shared.logger.forget()
        done = refit(shared.api, self._engine, shared.logger, self.spec.name, self._origins, weights)
        for run in self._runs.values():
            run.forget()  # a graph may know where the old weights were
        if not done:
            self._broken = shared.logger.said() or "it gives no reason"
            self._check_usable()

    def _stream_weights(self, budget: int | None) -> bool:
        """Set how many bytes of weights stay on the GPU; whether some do not."""
        options = cast("dict[str, Any]", self.plan.key.get("options", {}))
        if not options.get("weight_streaming"):
            if budget is not None:
                raise ParameterError(
                    f"{self.spec.name}: a weight budget was given, but its plan does not stream weights; "
                    f"leave it out, or run: {self._command} --weight-streaming"
                )
            return False
        chosen = self._engine.get_weight_streaming_automatic_budget() if budget is None else budget
        # Before the first context: those that exist hold weights where they are.
        self._engine.weight_streaming_budget_v2 = chosen
        return bool(chosen < self._engine.streamable_weights_size)

    def _check_usable(self) -> None:
        if self._engine is None:
            raise EngineError(f"{self.spec.name}: the engine was closed; open it again with open_engine()")
        if self._broken:
            raise EngineError(
                f"{self.spec.name}: refitting failed halfway ({self._broken}), so the engine holds some of the old "
                "weights and some of the new; close it and open it again"
            )

    def _guarded(self, doing: str, work: Callable[[], T]) -> T:
        try:
            self.cuda.activate()
            return work()
        except SfumatoError:
            raise
        except Exception as error:  # the library's exceptions have no common base but Exception
            title = self._shared.api.library.title
            raise EngineError(f"{self.spec.name}: {title} failed while {doing} ({str(error)[:300]})") from error


def _on_gpu(feed: Any) -> Any:
    """Another library's array on a GPU as ours, over the same memory; anything else as it is."""
    if isinstance(feed, (np.ndarray, DeviceArray)) or not hasattr(feed, "__cuda_array_interface__"):
        return cast(Any, feed)
    return DeviceArray.view(feed)
