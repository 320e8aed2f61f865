"""The plan that an engine runs: chosen among those of the bundle, opened, and held against the manifest."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any, cast

from ..errors import EngineError
from .build_options import BuildOptions, build_precision
from .builder_library import Api
from .engine import check_graph
from .manifest import NetworkSpec
from .plan import Plan, fitting_plans
from .precision import Precision

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["build_command", "check_ports", "choose_plan", "deserialize"]

_DTYPES = {"FLOAT": "float32", "INT64": "int64", "INT32": "int32", "UINT8": "uint8", "BOOL": "bool"}


def build_command(api: Api, bundle: Bundle, network: str, sm: str, *extra: str) -> str:
    """The command that builds a plan of a network for a GPU."""
    target = f"rtx:{sm}" if api.library.capabilities else "tensorrt"
    return " ".join(("sfumato build", str(bundle.path), "--network", network, "--target", target, *extra))


def choose_plan(
    api: Api, bundle: Bundle, network: str, sm: str, *, precision: Precision | None = None, refit: bool = False
) -> Plan:
    """The plan of a network that this library can run on this GPU; its bytes are checked.

    Of several, one in the asked precision (or else the one that a build takes by itself), then one that cannot be
    refitted unless that was asked, since its kernels may know their weights, then the one for the largest shapes.

    Raises:
        EngineError: There is none; the message says why for each, and which command builds one.
    """
    spec = bundle.network(network)
    passed, refused = fitting_plans(bundle, network, builder=api.kind, version=api.version, sm=sm)
    usual = precision or build_precision(spec, BuildOptions())
    fitting: list[tuple[Any, Plan]] = []
    for plan in passed:
        options = cast("dict[str, Any]", plan.key.get("options", {}))
        if precision is not None and plan.key.get("precision") != precision:
            refused[plan.path] = f"computes in {plan.key.get('precision')}, asked was {precision}"
        elif refit and not options.get("refit"):
            refused[plan.path] = "was not built to be refitted"
        else:
            rank = (plan.key.get("precision") != usual, bool(options.get("refit")) and not refit, -_extent(plan))
            fitting.append(((*rank, plan.path.name), plan))
    if fitting:
        return min(fitting, key=lambda item: item[0])[1]
    wanted = (*(("--precision", precision) if precision else ()), *(("--refit",) if refit else ()))
    listed = "; ".join(f"{path.relative_to(bundle.path)} {why}" for path, why in refused.items())
    raise EngineError(
        f"{network}: no plan of {bundle.path} runs with {api.library.title} {api.version} on this GPU ({sm}): "
        f"{listed or 'it has none of this network'}; run: {build_command(api, bundle, network, sm, *wanted)}"
    )


def _extent(plan: Plan) -> int:
    """How many elements the largest inputs have."""
    shapes = cast("dict[str, dict[str, list[int]]]", plan.key.get("profile", {}))
    return sum(math.prod(ends.get("max", [])) for ends in shapes.values())


def deserialize(api: Api, runtime: Any, logger: Any, plan: Plan, spec: NetworkSpec) -> Any:
    """The ICudaEngine of a plan.

    Raises:
        EngineError: The library refuses it; the message holds what it said.
    """
    logger.forget()
    try:
        with plan.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = runtime.deserialize_cuda_engine(data)
    except Exception as error:  # the library's exceptions have no common base; too little memory is one of them
        raise EngineError(_refusal(api, plan, spec, f"{logger.said()} {error}".strip())) from error
    if engine is None:
        raise EngineError(_refusal(api, plan, spec, logger.said() or "it gives no reason"))
    return engine


def _refusal(api: Api, plan: Plan, spec: NetworkSpec, why: str) -> str:
    return (
        f"{spec.name}: {api.library.title} {api.version} does not open {plan.path}, {plan.bytes} bytes ({why[:600]}); "
        "close other engines if memory is short, or build it again with sfumato build --again"
    )


def check_ports(api: Api, engine: Any, spec: NetworkSpec) -> None:
    """Hold the inputs and outputs of an engine against the manifest.

    Raises:
        EngineError: They disagree, or the library wants one of them in host memory.
    """
    ports: dict[str, list[tuple[str, str, int | None]]] = {"input": [], "output": []}
    for index in range(engine.num_io_tensors):
        name = str(engine.get_tensor_name(index))
        kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        mode = "input" if engine.get_tensor_mode(name) == api.trt.TensorIOMode.INPUT else "output"
        ports[mode].append((name, _DTYPES.get(kind, kind), len(tuple(engine.get_tensor_shape(name)))))
        if engine.get_tensor_location(name) != api.trt.TensorLocation.DEVICE:
            raise EngineError(
                f"{spec.name}: {api.library.title} takes {mode} {name!r} as the extents of a shape, in host memory; "
                "export the network so that shapes follow from the shapes of its inputs"
            )
    check_graph(spec, api.library.title, cast(Any, ports))
