"""The network as a builder sees it: the bundle's graph with its types moved, read, and held against what was asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineError
from .builder_library import Api
from .bundle import Bundle
from .compute_types import Retyped, retype
from .half_weights import HalfWeights
from .islands import ISLANDS
from .manifest import NetworkSpec
from .onnx_model import read_model
from .precision import Precision

__all__ = ["BuilderNetwork", "prepare_graph", "prove_types", "read_network"]

_HALF = {"fp16": "HALF", "bf16": "BF16"}
_BOUNDARY = {"float32": "FLOAT", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}


@dataclass
class BuilderNetwork:
    """A parsed network, with what must live as long as it.

    Arguments:
        definition: The library's INetworkDefinition.
        parser: Owns the weights that it read.
    """

    definition: Any
    parser: Any


def prepare_graph(
    bundle: Bundle, spec: NetworkSpec, precision: Precision, folder: Path, *, hard: bool = False
) -> tuple[Path, Retyped]:
    """Write the graph for a builder into `folder`; its path, and what was done to it.

    Stored weights are not copied: the folder holds links to them, and one file of those that had to be turned.

    Arguments:
        hard: Link hard where the file system can, for a reader that does not follow links out of the folder. onnx reads
            no file with several hard links, the bundle's own included, so the folder should not live long.
    """
    source = bundle.file(spec.graph)
    weights = HalfWeights(source.parent, folder / "turned.weights")
    done = retype(read_model(source), precision, weights, products_only=ISLANDS in spec.precision.keep_fp32)
    for relative in spec.weights:
        stored = bundle.file(relative).resolve()
        target = folder / Path(relative).name
        if hard:
            with contextlib.suppress(OSError):  # another file system
                os.link(stored, target)
                continue
        os.symlink(stored, target)
    path = folder / f"{spec.name}.onnx"
    path.write_bytes(done.model.SerializeToString())
    return path, done


def read_network(api: Api, builder: Any, logger: Any, graph: Path, spec: NetworkSpec) -> BuilderNetwork:
    """Parse a graph into a strongly typed network.

    Raises:
        EngineError: An operator is not supported, or is used in a way that is not; the message names every such node.
    """
    definition = builder.create_network(api.strongly_typed)
    parser = api.trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(graph)):
        problems = dict.fromkeys(_problem(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineError(
            f"{spec.name}: {api.library.title} {api.version} cannot read {spec.graph!r}: "
            f"{'; '.join(problems) or 'no reason given'}; run this network on OpenVINO, or export it otherwise"
        )
    return BuilderNetwork(definition, parser)


def _problem(error: Any) -> str:
    """One error of the parser: node, operator, reason."""
    name, operator = (_text(error, key) for key in ("node_name", "node_operator"))
    reason = " ".join(str(error.desc()).split())[:300]
    where = f"node {name or error.node()!r}" if error.node() >= 0 or name else "the graph"
    return f"{where} ({operator}): {reason}" if operator else f"{where}: {reason}"


def _text(error: Any, key: str) -> str:
    found = getattr(error, key, None)
    return "" if found is None else str(found())


def prove_types(network: BuilderNetwork, spec: NetworkSpec, precision: Precision, done: Retyped) -> int:
    """Hold the types of the network against what was asked; how many products compute in `precision`.

    A strongly typed builder keeps to the types of the network, so this is what the plan will compute in.

    Raises:
        EngineError: An input or output has another type than the manifest says, or a product computes in float32
            where fewer bits were asked for.
    """
    definition = network.definition
    found = {
        **_types(definition.get_input(index) for index in range(definition.num_inputs)),
        **_types(definition.get_output(index) for index in range(definition.num_outputs)),
    }
    wanted = {b.name: _BOUNDARY[b.dtype] for b in (*spec.inputs, *spec.outputs)}
    if found != wanted:
        wrong = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        facts = ", ".join(f"{n} is {found.get(n, 'absent')} and should be {wanted.get(n, 'absent')}" for n in wrong)
        raise EngineError(f"{spec.name}: the network that was read is not the manifest's: {facts}; export it again")
    products = [layer for layer in _layers(definition) if _kind(layer.type) in _PRODUCT_LAYERS]
    if precision == "fp32":
        return 0
    floats = [layer.name for layer in products if _kind(layer.get_output(0).dtype) == "FLOAT"]
    halves = sum(_kind(layer.get_output(0).dtype) == _HALF[precision] for layer in products)
    if len(floats) > len(done.kept) or (done.halves and not halves):
        raise EngineError(
            f"{spec.name}: {precision} was asked, but {len(floats)} of {len(products)} products compute in float32 "
            f"({', '.join(floats[:3])}); report it, or build with precision='fp32' if that is meant"
        )
    return halves


_PRODUCT_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")


def _types(tensors: Iterable[Any]) -> dict[str, str]:
    return {tensor.name: _kind(tensor.dtype) for tensor in tensors}


def _layers(definition: Any) -> Iterable[Any]:
    return (definition.get_layer(index) for index in range(definition.num_layers))


def _kind(value: Any) -> str:
    """The bare name of an enumeration's value: "DataType.HALF" -> "HALF"."""
    return str(value).rpartition(".")[2]
