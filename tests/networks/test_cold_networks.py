"""Cold Diffusion's networks against the official numbers, alone and in whole restorations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.networks.checkpoint import build
from sfumato.networks.convnext import ConvNextConfig, ConvNextUNet, sinusoidal
from sfumato.networks.ddpm import DDPM, DDPMConfig
from sfumato.runtime.degradation import degrade, severities
from sfumato.runtime.degradations import Blur, HotNoise
from sfumato.runtime.restoration import restore


def tensors(arrays: Any) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def close(result: Any, reference: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(result), reference, rtol=0, atol=tolerance * np.abs(reference).max())


@pytest.fixture(scope="module")
def unet(goldens) -> ConvNextUNet:
    state = tensors(goldens("cold_unet_weights.npz"))
    return build(lambda: ConvNextUNet(ConvNextConfig.from_state(state)), state, "cold")


def test_the_convnext_unet_gives_the_official_outputs(goldens, unet) -> None:
    io = goldens("cold_unet.npz")
    given = tensors(io)
    close(unet(given["x"], given["t"]), io["y"])
    close(unet(given["x"], given["t2"]), io["y2"])
    close(sinusoidal(given["t2"], 16), io["time_emb"])


def test_the_unet_without_time_and_with_residual_gives_the_official_output(goldens) -> None:
    io, state = goldens("cold_unet.npz"), tensors(goldens("cold_unet_notime_residual_weights.npz"))
    config = ConvNextConfig.from_state(state, residual=True)
    assert not config.with_time_emb
    network = build(lambda: ConvNextUNet(config), state, "cold")
    given = tensors(io)
    close(network(given["x"], given["t"]), io["y_notime_residual"])


def test_the_ddpm_model_gives_the_official_outputs(goldens) -> None:
    io = goldens("cold_model_ddpm.npz")
    config = DDPMConfig(resolution=32, ch=32, ch_mult=(1, 2), num_res_blocks=1)
    network = build(lambda: DDPM(config), tensors(goldens("cold_model_ddpm_weights.npz")), "cold")
    given = tensors(io)
    close(network(given["x"], given["t"]), io["y"])
    close(network(given["x"], given["t2"]), io["y2"])


def test_the_weights_tell_the_configuration(goldens) -> None:
    expected = ConvNextConfig(16, (1, 2), 3, True, False)
    assert ConvNextConfig.from_state(tensors(goldens("cold_unet_weights.npz"))) == expected
    with pytest.raises(CheckpointError, match="is it a DDPM Model"):
        ConvNextConfig.from_state(tensors(goldens("cold_model_ddpm_weights.npz")))


def test_networks_have_the_published_sizes() -> None:
    def size(network: torch.nn.Module) -> float:
        return round(sum(p.numel() for p in network.parameters()) / 1e6, 1)

    with torch.device("meta"):
        assert size(ConvNextUNet(ConvNextConfig())) == 56.6
        assert size(DDPM(DDPMConfig())) == 35.7
    assert ConvNextConfig().multiple == DDPMConfig().multiple == 8


@pytest.mark.parametrize("algorithm", [1, 2])
def test_a_whole_restoration_is_the_official_one(goldens, unet, algorithm) -> None:
    data = goldens("cold_blur_traj.npz")
    prefix = "default__Constant__" if algorithm == 1 else "x0_step_down__Constant__"
    blur = Blur(6, "Constant", 5, 1.0)

    def network(x, index):
        times = torch.full((len(x),), index)
        return unet(torch.from_numpy(x), times).numpy()

    result = restore(network, blur, degrade(blur, data["x"]), algorithm=algorithm)
    close(result.direct, data[f"{prefix}direct"], 1e-4)
    close(result.image, data[f"{prefix}out"], 1e-4)


def test_objectives_are_the_official_ones(goldens, unet) -> None:
    data = goldens("cold_blur_loss.npz")
    x_t = severities(Blur(6, "Exponential", 7, 0.2), data["x"], data["t"] + 1)
    error = unet(torch.from_numpy(x_t), torch.from_numpy(data["t"])).numpy() - data["x"]
    np.testing.assert_allclose(np.abs(error).mean(), data["loss_l1"], rtol=1e-5)
    np.testing.assert_allclose((error**2).mean(), data["loss_l2"], rtol=1e-5)
    data = goldens("cold_noise.npz")
    x_t = severities(HotNoise(6, data["x_end"]), data["x"], data["loss_t"] + 1)
    error = unet(torch.from_numpy(x_t), torch.from_numpy(data["loss_t"])).numpy() - data["x"]
    np.testing.assert_allclose(np.abs(error).mean(), data["loss_l1"], rtol=1e-5)
