"""The network of a whole sampling step: the UNet, guidance and the sampler's update in one graph.

`runtime.fused` computes the numbers that it takes beside x; ``docs/latent_diffusion.md`` has the equations.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from ..engines.binding import Binding, Dimension
from ..errors import ExportError
from .network import Network, Sample

__all__ = ["Step", "step_network"]

_BATCH = Dimension(1, 1, 16)
_PASSES = Dimension(1, 2, 2)
"""One pass without guidance, two with it. Rows of the UNet are passes times batch: diffusers' is another from 64 on."""


class Step(nn.Module):
    """A UNet that takes a whole step.

    With e_k the UNet's output for x under the k-th of K conditions, 0 the unconditional or only one::

        prediction = e_0 + sum over k of guidance_k (e_k - e_0)
        x_s = weights_0 x + weights_1 prediction + term

    Arguments:
        unet: Called with x (rows, C, h, w), t (rows,), and a condition by row where it takes one.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Tensor, t: Tensor, guidance: Tensor, weights: Tensor, term: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x_s, prediction), both in x's shape.

        Arguments:
            x: (B, C, h, w), where the step starts.
            t: Timestep index (1,).
            guidance: (K,); the first is without effect.
            weights: (2,), of x and of the prediction.
            term: (B, C, h, w), what else enters x_s: noise, earlier predictions.
            condition: (K, B, …).
        """
        passes, batch = guidance.shape[0], x.shape[0]
        rows = [x.unsqueeze(0).expand(passes, -1, -1, -1, -1).flatten(0, 1), t.expand(passes * batch)]
        if condition is not None:
            rows.append(condition.flatten(0, 1))
        outputs = self.unet(*rows).unflatten(0, (passes, batch))
        first = outputs[0]
        # The form that the runtime computes without this network, too: no cancellation at large scales.
        prediction = first + (guidance[:, None, None, None, None] * (outputs - first)).sum(0)
        return weights[0] * x + weights[1] * prediction + term, prediction


def step_network(unet: Network, *, name: str = "step") -> Network:
    """The network ``step`` of the network ``unet``, to be exported after it; it reads that one's weights.

    Raises:
        ExportError: The UNet takes channels beside x, predicts its variance, or has several conditions.
    """
    x, t, *conditions = unet.inputs
    if x.shape != unet.outputs[0].shape or len(unet.outputs) != 1 or len(conditions) > 1:
        names = ", ".join(f"{b.name} {b.shape}" for b in (*unet.inputs, *unet.outputs))
        raise ExportError(
            f"{unet.name}: has {names}; a whole step in one graph needs a prediction of x's shape and at most one "
            "condition, so that neither channels beside x nor a learned variance: export it without the step"
        )
    samples: dict[str, Sample] = {**unet.samples, "guidance": _scales, "t": unet.samples.get("t", _first)}
    return replace(
        unet,
        name=name,
        build=lambda: Step(unet.build()),
        inputs=(
            x,
            replace(t, shape=(1,)),
            Binding("guidance", "float32", ("passes",)),
            Binding("weights", "float32", (2,)),
            replace(x, name="term"),
            *(replace(b, shape=("passes", *b.shape)) for b in conditions),
        ),
        outputs=(replace(x, name="x_s"), replace(x, name="prediction")),
        dimensions={**unet.dimensions, "batch": _BATCH, "passes": _PASSES},
        samples=samples,
        shares=unet.name,
    )


def _scales(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Guidance within [0, 1), which does not amplify the UNet's rounding: its tolerances hold for the step."""
    return torch.rand(shape, generator=generator)


def _first(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Timesteps of a schedule that nobody named."""
    return torch.randint(0, 1000, shape, generator=generator).float()
