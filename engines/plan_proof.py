"""The proof of a plan: its types read back from the bytes, where there is a driver to open them with."""

from __future__ import annotations

import json
from typing import Any, cast

from ..errors import EngineError
from .builder_library import Api
from .manifest import NetworkSpec
from .nvidia import devices
from .precision import Precision

__all__ = ["float_products", "prove_plan"]

_BOUNDARY = {"float32": "FLOAT", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
_PRODUCTS = ("convolution", "deconvolution", "matrixmultiply", "gemm", "matmul")


def prove_plan(api: Api, logger: Any, data: memoryview, spec: NetworkSpec, precision: Precision) -> str:
    """Read a plan's types back and refuse one that is not what was asked.

    Returns:
        "network" where there is no GPU, so that only the types of the network that was built are proved; "engine" where
        the types of the plan's inputs and outputs were read back; "layers" where those of its layers were too.

    Raises:
        EngineError: They are not what was asked.
    """
    if not devices():
        return "network"
    engine = api.trt.Runtime(logger).deserialize_cuda_engine(data)
    if engine is None:
        # A plan for other GPUs cannot be opened on this one; the network's types stand.
        return "network"
    wanted = {b.name: _BOUNDARY[b.dtype] for b in (*spec.inputs, *spec.outputs)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: str(engine.get_tensor_dtype(name)).rpartition(".")[2] for name in names}
    if found != wanted:
        raise EngineError(f"{spec.name}: the plan's inputs and outputs are {found}, asked were {wanted}; report it")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(api.trt.LayerInformationFormat.JSON)
    floats, halves = float_products(text)
    if precision != "fp32" and floats and not halves:
        raise EngineError(
            f"{spec.name}: {precision} was asked, but every product of the plan computes in float32 "
            f"({', '.join(floats[:3])}); report it, or build with precision='fp32' if that is meant"
        )
    return "layers" if floats or halves else "engine"


def float_products(text: str) -> tuple[list[str], list[str]]:
    """Names of the products that compute in float32, and in fewer bits, out of the inspector's JSON.

    The form of that JSON is not promised: what cannot be understood is left out.
    """
    floats: list[str] = []
    halves: list[str] = []
    try:
        layers = cast("list[Any]", json.loads(text).get("Layers", []))
    except (ValueError, AttributeError):
        return floats, halves
    for layer in layers:
        if not isinstance(layer, dict):
            continue
        facts = cast("dict[str, Any]", layer)
        kind = str(facts.get("ParameterType", facts.get("LayerType", ""))).lower().replace("_", "")
        if any(product in kind for product in _PRODUCTS):
            formats = " ".join(str(i.get("Format/Datatype", "")) for i in facts.get("Inputs", []))
            lower = formats.lower()
            if any(word in lower for word in ("half", "fp16", "bf16", "int8")):
                halves.append(str(facts.get("Name", "")))
            elif "float" in lower or "fp32" in lower:
                floats.append(str(facts.get("Name", "")))
    return floats, halves
