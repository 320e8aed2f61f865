"""The UNet of a bundle as a torch module again, from the weights that its graph stores.

A graph keeps the names that the module's weights had, and changes three things:

- linear layers without bias became products with the weight turned;
- group norms became instance norm, product and sum, with nameless weights, in the order in which the module runs them;
- the number of attention heads left no trace. It is found by trying: only one division into heads gives the outputs
  that torch gave at export, which lie in the bundle as its reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ...engines.bundle import Bundle
from ...errors import CheckpointError, ExportError
from ...networks.checkpoint import build
from ...networks.unet import UNet, UNetConfig
from ..network import Network, timesteps
from .inference import unet_params

__all__ = ["unet_of"]

_HEADS = (1, 2, 4, 5, 8, 10, 16, 20)
_HEAD_CHANNELS = (64, 32, 40, 80, 16, 8, 4, 24, 48, 128)
_LIMIT = 0.02
"""Largest relative error against the reference, which torch computed from weights that were not yet rounded."""


def unet_of(bundle: Bundle) -> Network:
    """The network ``unet`` of a bundle, with the weights as they are stored.

    Raises:
        ExportError: It is not sfumato's own UNet (but diffusers'), has no cross-attention or no reference, or no number
            of heads gives the reference's outputs.
    """
    spec = bundle.network("unet")
    if bundle.manifest.schedule is None or spec.reference is None:
        raise ExportError(f"{bundle.path}: has no schedule, or no reference of its UNet; export it from its checkpoint")
    what = f"{bundle.path} (unet)"
    model = onnx.load(str(bundle.file(spec.graph)))
    state = _weights(model)
    try:
        params = unet_params(state, what)
    except CheckpointError as error:
        raise ExportError(
            f"{what}: its weights do not have CompVis' names, so its module cannot be built from the bundle; "
            "export it with the new networks from its checkpoint"
        ) from error
    config = UNetConfig.from_dict({**params, "num_head_channels": params["model_channels"]})
    state |= _group_norms(model, config, what)
    config = _heads(config, state, bundle, what)
    return Network(
        "unet",
        lambda: build(lambda: UNet(config), state, what),
        spec.inputs,
        spec.outputs,
        dict(spec.dimensions),
        {"t": timesteps(bundle.manifest.schedule.steps)},
    )


def _weights(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The initializers that are weights of a module, in float32 and turned as a module has them."""
    turned = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    turned |= {node.input[0] for node in model.graph.node if node.op_type == "Cast" and node.output[0] in turned}
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".weight", ".bias")):
            value = _tensor(tensor)
            found[tensor.name] = value.t().contiguous() if tensor.name in turned else value
    return found


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor), dtype=np.float32))


def _group_norms(model: onnx.ModelProto, config: UNetConfig, what: str) -> dict[str, Tensor]:
    """Weights and biases of the group norms: what follows each instance norm of the graph, in the order of a run."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type == "InstanceNormalization":
            pair = []
            for op in ("Reshape", "Mul", "Add"):
                (node,) = users[node.output[0]]
                weights = [stored[name] for name in node.input if name in stored]
                if node.op_type != op or (op != "Reshape" and len(weights) != 1):
                    raise ExportError(f"{what}: its group norms are stored in another form; export its checkpoint")
                pair += [_tensor(weights[0]).flatten()] if op != "Reshape" else []
            found.append(pair)
    names = _norms_in_order(config)
    if len(names) != len(found):
        raise ExportError(f"{what}: holds {len(found)} group norms, its module has {len(names)}; export its checkpoint")
    pairs = list(zip(names, found, strict=True))
    return {f"{name}.{part}": pair[i] for name, pair in pairs for i, part in enumerate(("weight", "bias"))}


def _norms_in_order(config: UNetConfig) -> list[str]:
    """Names of the group norms of a UNet in the order in which they run."""
    order: list[str] = []
    with torch.device("meta"):
        module = UNet(config).eval()
        for name, part in module.named_modules():
            if isinstance(part, nn.GroupNorm):
                part.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        side = 2 ** len(config.channel_mult)
        context = None if config.context_dim is None else torch.zeros(1, 1, config.context_dim)
        module(torch.zeros(1, config.in_channels, side, side), torch.zeros(1), context)
    return order


def _heads(config: UNetConfig, state: Mapping[str, Tensor], bundle: Bundle, what: str) -> UNetConfig:
    """The configuration with the heads whose outputs are the reference's."""
    spec = bundle.network("unet")
    stored = bundle.tensors(spec.reference or "")
    inputs = [torch.from_numpy(stored[f"in/{binding.name}"].copy()) for binding in spec.inputs]
    wanted = torch.from_numpy(stored["out/prediction"].copy())
    errors: dict[UNetConfig, float] = {}
    for candidate in _candidates(config):
        module = build(lambda made=candidate: UNet(made), state, what).eval()  # type: ignore[misc]
        with torch.no_grad():
            found = module(*inputs)
        errors[candidate] = float((found - wanted).norm() / wanted.norm())
        if errors[candidate] < _LIMIT:
            return candidate
    best = min(errors.values(), default=float("inf"))
    raise ExportError(
        f"{what}: no number of attention heads gives the reference's outputs (best relative error {best:.2g}); "
        "export it from its checkpoint"
    )


def _candidates(config: UNetConfig) -> Iterator[UNetConfig]:
    widths = [int(mult * config.model_channels) for mult in config.channel_mult]
    for channels in _HEAD_CHANNELS:
        if all(width % channels == 0 for width in widths):
            yield replace(config, num_head_channels=channels, num_heads=-1)
    for heads in _HEADS:
        if all(width % heads == 0 for width in widths):
            yield replace(config, num_heads=heads, num_head_channels=-1)
