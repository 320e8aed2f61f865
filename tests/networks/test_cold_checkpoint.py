"""Cold Diffusion's checkpoints: every wrapper, the right half, kernels that must agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.networks.checkpoint import build
from sfumato.networks.cold_checkpoint import ColdCheckpoint, check_kernels, read_cold_checkpoint, unwrap
from sfumato.networks.convnext import ConvNextConfig, ConvNextUNet
from sfumato.runtime.degradations import Blur


def test_the_average_is_read_and_fills_the_network(goldens) -> None:
    path = goldens.path("cold_blur_model.pt")
    ema, model = read_cold_checkpoint(path), read_cold_checkpoint(path, weights="model")
    for name, weight in ema.network.items():
        torch.testing.assert_close(2 * weight, model.network[name])
    network = build(lambda: ConvNextUNet(ConvNextConfig.from_state(ema.network)), ema.network, "cold")
    assert network.config.dim == 16


def test_saved_kernels_are_compared_with_the_configured_ones(goldens) -> None:
    saved = read_cold_checkpoint(goldens.path("cold_blur_model.pt")).kernels()
    check_kernels(saved, Blur(6, "Exponential", 7, 0.2).kernels(), "Blur")
    with pytest.raises(CheckpointError, match="checkpoint has 6 blur kernels, Blur has 5"):
        check_kernels(saved, Blur(5, "Exponential", 7, 0.2).kernels(), "Blur")
    with pytest.raises(CheckpointError, match=r"kernel 0 is \(7, 7\) in the checkpoint and \(9, 9\) in Blur"):
        check_kernels(saved, Blur(6, "Exponential", 9, 0.2).kernels(), "Blur")
    with pytest.raises(
        CheckpointError, match=r"kernel 1 has 0\.\d+ at its centre in the checkpoint and 0\.\d+ in Blur"
    ):
        check_kernels(saved, Blur(6, "Exponential", 7, 0.3).kernels(), "Blur")


@pytest.mark.parametrize(
    "prefix", ["module.denoise_fn.", "denoise_fn.module.", "denoise_fn.", "module.defade_fn.", "defade_fn.module.", ""]
)
def test_every_wrapper_is_taken_off(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}final_conv.1.weight": torch.ones(2), f"{prefix}time_mlp.1.bias": torch.zeros(3)}
    torch.save({"step": 4, "model": {}, "ema": state}, tmp_path / "model.pt")
    result = read_cold_checkpoint(tmp_path / "model.pt")
    assert sorted(result.network) == ["final_conv.1.weight", "time_mlp.1.bias"] and result.buffers == {}
    torch.save(state, tmp_path / "bare.pt")
    assert sorted(read_cold_checkpoint(tmp_path / "bare.pt").network) == sorted(result.network)


def test_buffers_go_apart() -> None:
    state = {"module.denoise_fn.a": torch.ones(1), "module.alphas_cumprod": torch.ones(2)}
    result = unwrap(state, "x")
    assert list(result.network) == ["a"] and list(result.buffers) == ["alphas_cumprod"] and result.kernels() == ()


def test_what_is_no_checkpoint_of_cold_diffusion_is_named(tmp_path: Path) -> None:
    torch.save({"step": 4, "model": {"a": torch.ones(1)}}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name but step, model"):
        read_cold_checkpoint(tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="there twice"):
        unwrap({"module.denoise_fn.a": torch.ones(1), "denoise_fn.module.a": torch.ones(1)}, "x")
    kernel = torch.ones(3, 1, 5, 5)
    with pytest.raises(CheckpointError, match=r"blur kernels \[1\] are not one for each step"):
        ColdCheckpoint({}, {"gaussian_kernels.1.weight": kernel}).kernels()
    with pytest.raises(CheckpointError, match="the same for each channel"):
        ColdCheckpoint({}, {"gaussian_kernels.0.weight": kernel * torch.arange(3)[:, None, None, None]}).kernels()
