"""Refit: other weights in a plan that is loaded, such as those of another fine-tuned model of one architecture."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from ..errors import EngineError
from .binding import Array
from .compute_types import Retyped
from .half_weights import to_bits
from .manifest import NetworkSpec
from .onnx_model import read_array, read_model, type_name
from .strict import JSON

if TYPE_CHECKING:
    from .builder_library import Api
    from .bundle import Bundle

_log = logging.getLogger(__name__)

__all__ = ["Origin", "Origins", "origins_of", "refit", "stored_weights", "weight_origins"]

Origin: TypeAlias = "tuple[str, str, tuple[int, ...]]"
"""The stored weight that one of a plan's was made of: its name, its dtype as it is stored, its shape."""

Origins: TypeAlias = Mapping[str, Origin]
"""For each of a plan's weights, by the builder's name for it, where it comes from."""

_FLOATS = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def weight_origins(bundle: Bundle, spec: NetworkSpec, done: Retyped) -> dict[str, JSON]:
    """Where the weights of a graph made for a builder come from, as the receipt keeps it; see `Origins`."""
    stored = {tensor.name: tensor for tensor in read_model(bundle.file(spec.graph)).graph.initializer}
    result: dict[str, JSON] = {}
    for tensor in done.model.graph.initializer:
        source = done.sources.get(tensor.name, tensor.name)
        origin = stored.get(source)
        if origin is not None:
            result[tensor.name] = [source, type_name(origin), list(origin.dims)]
    return result


def origins_of(built: Mapping[str, Any]) -> dict[str, Origin]:
    """`Origins` out of what a receipt says of the build; empty for a plan that cannot be refitted."""
    table = cast("Mapping[str, tuple[str, str, list[int]]]", built.get("weights", {}))
    return {name: (source, dtype, tuple(shape)) for name, (source, dtype, shape) in table.items()}


def stored_weights(bundle: Bundle, network: str) -> dict[str, Array]:
    """The weights of a network as its bundle stores them, by the names in its graph: what `refit` takes.

    Those of bfloat16 are given as float32, which holds them exactly. Needs onnx.
    """
    graph = bundle.file(bundle.network(network).graph)
    return {tensor.name: read_array(tensor, graph.parent) for tensor in read_model(graph).graph.initializer}


def refit(api: Api, engine: Any, logger: Any, network: str, origins: Origins, weights: Mapping[str, Array]) -> bool:
    """Put weights into a deserialised plan.

    Arguments:
        api: The library.
        engine: Its ICudaEngine, on which no work is pending.
        logger: Its logger.
        network: Name of the network, for messages.
        origins: From the plan's receipt.
        weights: By their names in the bundle's graph, in its dtypes (those of bfloat16 as float32) and shapes. Those
            that are not given keep their values.

    Returns:
        True if all are in; False if the library gave up halfway, so that the plan holds some of both.

    Raises:
        EngineError: The weights do not fit the plan, which is as it was.
    """
    refitter = api.trt.Refitter(engine, logger)
    names = set(cast("list[str]", refitter.get_all_weights()))
    held: list[Array] = []  # the library reads them until the refit is done
    taken = _targets(network, names, origins, weights)
    for name, array in taken.items():
        prototype = refitter.get_weights_prototype(name)
        made = _convert(network, name, array, prototype)
        held.append(made)
        if not refitter.set_named_weights(name, api.trt.Weights(prototype.dtype, made.ctypes.data, made.size)):
            raise EngineError(
                f"{network}: {api.library.title} refuses weight {name!r} ({logger.said() or 'no reason'})"
            )
    missing = sorted(set(cast("list[str]", refitter.get_missing_weights())))
    if missing:
        sources = sorted({origins[name][0] if name in origins else name for name in missing})
        raise EngineError(
            f"{network}: the plan has combined what was given with {', '.join(map(repr, sources[:5]))}"
            f"{' and others' if len(sources) > 5 else ''}, which was not; give these weights too"
        )
    try:
        return bool(refitter.refit_cuda_engine())
    except Exception as error:  # the library's exceptions have no common base; whatever it was, it had begun
        _log.info("%s: %s", network, error)
        return False


def _targets(network: str, names: set[str], origins: Origins, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The plan's weights that are made of those given, by the builder's names; `EngineError` if these do not fit."""
    by_source: dict[str, list[str]] = {}
    for name, (source, _, _) in origins.items():
        by_source.setdefault(source, []).append(name)
    taken: dict[str, Array] = {}
    for source, array in weights.items():
        if source not in by_source:
            close = difflib.get_close_matches(source, by_source, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(by_source)[:5])}"
            raise EngineError(f"{network}: has no weight {source!r}; {hint}")
        _, dtype, shape = origins[by_source[source][0]]
        given = str(array.dtype)
        if array.shape != shape or given != ("float32" if dtype == "bfloat16" else dtype):
            raise EngineError(
                f"{network}: weight {source!r} is {given} {array.shape}, the graph has {dtype} {shape}; "
                "give weights of the same architecture, as stored_weights() reads them"
            )
        fixed = [name for name in by_source[source] if name not in names]
        if fixed:
            raise EngineError(
                f"{network}: weight {source!r} cannot be replaced in this plan, which was made with its value "
                f"({', '.join(fixed)}); leave it out, or build the other network as a plan of its own"
            )
        taken |= dict.fromkeys(by_source[source], array)
    return taken


def _convert(network: str, name: str, array: Array, prototype: Any) -> Array:
    """A weight in the type that the plan holds it in, contiguous; bfloat16 as its bits."""
    kind = str(prototype.dtype).rpartition(".")[2]
    wanted = _FLOATS.get(kind)
    if wanted is None or array.dtype.kind != "f":  # integers are not converted
        made = np.ascontiguousarray(array)
    elif wanted == "bfloat16":
        made = to_bits(array.astype(np.float32), 16)
    else:
        with np.errstate(over="ignore"):
            made = np.ascontiguousarray(array, wanted)
        if not np.isfinite(made).all() and np.isfinite(array).all():
            raise EngineError(f"{network}: weight {name!r} does not fit {wanted}, in which the plan holds it")
    if made.size != prototype.size:
        raise EngineError(f"{network}: weight {name!r} has {made.size} values, the plan's {prototype.size}; report it")
    return made
