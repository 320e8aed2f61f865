"""The attention-map loss, and maps as extra outputs, against the official code's numbers."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.networks.losses import LOSSES, attention_map_loss, attention_map_losses
from sfumato.networks.maps import record_maps
from sfumato.networks.unet import UNet, UNetConfig


def test_the_loss_is_the_mean_over_rows_and_heads_of_squared_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 4, 5, generator=generator), torch.rand(2, 1, 2, 5, generator=generator)]
    references = [torch.rand(m.shape, generator=generator) for m in maps]
    distances = [((m - r) ** 2).sum() / (m.shape[0] * m.shape[1]) for m, r in zip(maps, references, strict=True)]
    expected = torch.stack(distances)
    torch.testing.assert_close(attention_map_losses(maps, references), expected)
    torch.testing.assert_close(LOSSES["attention_maps"](maps, references), expected.sum())


def test_the_gradient_of_a_row_does_not_depend_on_the_others_but_for_the_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    m = torch.rand(2, 3, 4, 5, generator=generator).requires_grad_(True)
    r = torch.rand(2, 3, 4, 5, generator=generator)
    (both,) = torch.autograd.grad(attention_map_loss([m], [r]), m)
    (alone,) = torch.autograd.grad(attention_map_loss([m[:1]], [r[:1]]), m)
    torch.testing.assert_close(both[:1], alone[:1] / 2)


def test_our_unet_records_a_map_for_each_cross_attention() -> None:
    torch.manual_seed(0)
    unet = UNet(UNetConfig(4, 32, 4, 1, (1,), (1, 2), num_heads=4, use_spatial_transformer=True, context_dim=8)).eval()
    recorder = record_maps(unet)
    with torch.no_grad():
        unet(torch.randn(2, 4, 4, 6), torch.tensor([3.0, 8.0]), torch.randn(2, 5, 8))
    maps = recorder.take()
    assert recorder.items == []
    assert [tuple(m.shape) for m in maps] == [(2, 4, 24, 5), (2, 4, 6, 5), (2, 4, 24, 5), (2, 4, 24, 5)]
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones(m.shape[:-1]))


def test_recording_needs_written_out_attention() -> None:
    module = torch.nn.ModuleDict({"attn2": torch.nn.Linear(2, 2)})
    with pytest.raises(TypeError, match="cannot record"):
        record_maps(module)


@pytest.fixture(scope="module")
def published(goldens: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The tiny diffusers UNet of the official run, and its numbers."""
    from sfumato.export.recipes.diffusers_attention import write_out_attention
    from sfumato.export.recipes.diffusers_modules import ContextUNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of diffusers on its own deprecations
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel(**json.loads(goldens.path("p2p_configs.json").read_text())["unet"])
    weights = {k: torch.from_numpy(v) for k, v in goldens("p2p_unet_weights.npz").items()}
    unet.load_state_dict(weights)
    write_out_attention(unet)
    golden = goldens("p2p_guidance_step.npz")
    numbers = {k: torch.from_numpy(v) for k, v in golden.items() if v.dtype.kind in "fi"}
    return ContextUNet(unet).eval().requires_grad_(False), numbers | {"names": golden["module_names"]}


def test_the_official_guidance_step(published: Any) -> None:
    module, golden = published
    recorder = record_maps(module)
    names = [str(name) for name in golden["names"]]
    t = golden["t"].float().expand(2)
    with torch.no_grad():
        module(golden["x_ref"], t, golden["embeds_ref"])
    references = recorder.take()
    x = golden["x"].clone().requires_grad_(True)
    prediction = module(x, t, golden["embeds_edit"])
    maps = recorder.take()
    order = _execution_order(names)
    for name, m, r in zip(order, maps, references, strict=True):
        _close(r.flatten(0, 1), golden[f"ref__{name}"])
        _close(m.flatten(0, 1), golden[f"cur__{name}"])
    losses = attention_map_losses(maps, references)
    _close(losses, torch.stack([golden["module_loss"][names.index(name)] for name in order]))
    loss = attention_map_loss(maps, references)
    _close(loss, golden["loss"])
    (gradient,) = torch.autograd.grad(loss, x)
    _close(prediction, golden["eps"])
    _close(gradient, golden["grad"])


def _execution_order(names: list[str]) -> list[str]:
    """Down, middle, up: the official code lists modules in the order of their definition."""
    return sorted(names, key=lambda n: ("down", "mid", "up").index(n.split("_")[0]))


def _close(result: torch.Tensor, reference: torch.Tensor) -> None:
    np.testing.assert_allclose(
        result.detach().numpy(), reference.numpy(), rtol=0, atol=2e-5 * float(reference.abs().max())
    )
