"""Which form of a gradient is exported: what the joint one keeps, and the memory that it is held against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.engines.binding import Dimension
from sfumato.errors import ExportError
from sfumato.export.gradient import Objective, differentiate
from sfumato.export.gradient_memory import BACKWARD, SHARE, WEIGHTS, choose_form, installed_memory, joint_bytes
from sfumato.export.network import Network
from sfumato.export.recipes import parts
from sfumato.export.recipes.pix2pix_zero import attention_of
from sfumato.networks.unet import UNet, UNetConfig


class Squares(nn.Module):
    """x², and again: keeps x (t, too small to count, is used once)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = x * self.weight
        return (y * y).square()


class Sum(Objective):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        result = self.module(*inputs)
        return result.sum(), result


def squares(side: int) -> Network:
    network = parts.unet(Squares, (4, 4), parts.Sides((side, side), 1, 1))
    return replace(network, dimensions={**network.dimensions, "batch": Dimension(1, 2, 4)})


@pytest.mark.parametrize("side", [8, 16])
def test_what_is_kept_is_counted_once_at_the_usual_size(side: int) -> None:
    network = differentiate(squares(side), Sum, name="gradient")
    x = 2 * 4 * side * side * 4
    assert joint_bytes(network) == BACKWARD * 2 * x + WEIGHTS * 4 * 4  # y, its square, and the weights; x is not needed


def test_other_networks_have_no_gradient_to_keep_for() -> None:
    with pytest.raises(ExportError, match="unet: is no joint gradient"):
        joint_bytes(squares(8))
    with pytest.raises(ExportError, match="gradient: is no joint gradient"):
        joint_bytes(differentiate(squares(8), Sum, name="gradient", recompute=True))


def test_the_joint_form_is_taken_where_it_fits() -> None:
    network = differentiate(squares(8), Sum, name="gradient")
    need = joint_bytes(network)
    assert choose_form(network, int(need / SHARE) + 1) == ("joint", need)
    assert choose_form(network, int(need / SHARE) - 1) == ("recomputed", need)
    assert installed_memory() > 1 << 28


def unet() -> Network:
    def build() -> UNet:
        options: dict[str, Any] = {"num_heads": 4, "use_spatial_transformer": True, "context_dim": 24}
        return UNet(UNetConfig(4, 32, 4, 1, (1,), (1, 2), **options))

    module = build()
    return parts.unet(lambda: module, (4, 4), parts.Sides((8, 8), 2, 4), context=(8, 24))


def test_pix2pix_zero_chooses_by_the_memory_of_the_device() -> None:
    network, told = unet(), list[str]()
    small = attention_of([network], memory=1_000_000, on_progress=told.append)
    large = attention_of([network], memory=1_000_000_000)
    forms = [pair[1].build().recompute for pair in (small, large, attention_of([network], gradient="recomputed"))]  # type: ignore[attr-defined]
    assert forms == [True, False, True]
    assert any("unet_gradient: recomputed" in line and "of the device's" in line for line in told)
    assert all(value.device.type == "cpu" for value in network.build().parameters())  # counting leaves them alone
    with pytest.raises(ExportError, match="gradient is 'split'; pass 'auto', 'joint' or 'recomputed'"):
        attention_of([network], gradient="split")  # type: ignore[arg-type]
