"""The networks of a latent-diffusion bundle: bindings, ranges and modules, whatever family the weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ...engines.binding import Binding, Dimension
from ...networks.autoencoder import AutoencoderKL
from ...networks.vq import VQModelInterface
from ..network import Network, codes, image, integers, timesteps

__all__ = [
    "Encoded",
    "KlDecoder",
    "KlEncoder",
    "LabelUNet",
    "Sides",
    "VqDecoder",
    "VqEncoder",
    "class_embedder",
    "decoder",
    "encoder",
    "spatial_rescaler",
    "text_encoder",
    "unet",
]

_BATCH = Dimension(1, 2, 64)
_REACH = 4
"""A network takes sides up to this many times its usual ones; attention's memory grows with their fourth power."""


@dataclass(frozen=True)
class Sides:
    """Heights and widths of a latent-diffusion model.

    Arguments:
        latent: Usual height and width in latents.
        multiple: Heights and widths are multiples of this many latents.
        factor: Pixels to a latent along a side.
    """

    latent: tuple[int, int]
    multiple: int
    factor: int

    def latents(self, multiple: int = 1) -> dict[str, Dimension]:
        """Ranges of ``height`` and ``width``."""
        names = ("height", "width")
        return {name: self._range(size, multiple, 1) for name, size in zip(names, self.latent, strict=True)}

    def pixels(self) -> dict[str, Dimension]:
        """Ranges of ``image_height`` and ``image_width``."""
        names = ("image_height", "image_width")
        return {name: self._range(size, 1, self.factor) for name, size in zip(names, self.latent, strict=True)}

    def _range(self, size: int, multiple: int, scale: int) -> Dimension:
        least = multiple * scale
        usual = max(least, size * scale)
        return Dimension(least, usual, max(_REACH * usual, 16 * least), least)


class LabelUNet(nn.Module):
    """A UNet conditioned by label alone: (x, t, y) -> prediction."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.unet(x, t, y=y)


class KlEncoder(nn.Module):
    """Image -> mean, log_variance of an `AutoencoderKL`."""

    def __init__(self, first_stage: AutoencoderKL) -> None:
        super().__init__()
        self.first_stage = first_stage

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.first_stage.moments(image)


class KlDecoder(nn.Module):
    """z -> image of an `AutoencoderKL`."""

    def __init__(self, first_stage: AutoencoderKL) -> None:
        super().__init__()
        self.first_stage = first_stage

    def forward(self, z: Tensor) -> Tensor:
        return self.first_stage.decode(z)


class VqEncoder(nn.Module):
    """Image -> latent before quantisation of a `VQModelInterface`."""

    def __init__(self, first_stage: VQModelInterface) -> None:
        super().__init__()
        self.first_stage = first_stage

    def forward(self, image: Tensor) -> Tensor:
        return self.first_stage.encode(image)


class VqDecoder(nn.Module):
    """z, quantised first, -> image of a `VQModelInterface`."""

    def __init__(self, first_stage: VQModelInterface) -> None:
        super().__init__()
        self.first_stage = first_stage

    @property
    def table(self) -> Tensor:
        """The codebook (K, C)."""
        return self.first_stage.quantize.embedding.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.first_stage.decode(z)


def unet(
    build: Callable[[], nn.Module],
    channels: tuple[int, int],
    sides: Sides,
    *,
    context: tuple[int, int] | None = None,
    classes: int | None = None,
    steps: int = 1000,
) -> Network:
    """The network ``unet``.

    Arguments:
        build: Gives a module called with (x, t), then context or y where it has one.
        channels: Of x and of the prediction.
        sides: Its heights and widths.
        context: Usual number of tokens and their width, for cross-attention.
        classes: Number of labels, for a label embedding.
        steps: T; timesteps lie in 0 … T-1.
    """
    inputs = [Binding("x", "float32", ("batch", channels[0], "height", "width")), Binding("t", "float32", ("batch",))]
    dimensions = {"batch": _BATCH, **sides.latents(sides.multiple)}
    samples = {"t": timesteps(steps)}
    if context is not None:
        tokens, width = context
        inputs.append(Binding("context", "float32", ("batch", "tokens", width)))
        dimensions["tokens"] = Dimension(1, tokens, max(8 * tokens, 16))
    if classes is not None:
        inputs.append(Binding("y", "int64", ("batch",)))
        samples["y"] = integers(classes)
    output = Binding("prediction", "float32", ("batch", channels[1], "height", "width"))
    return Network("unet", build, tuple(inputs), (output,), dimensions, samples)


@dataclass(frozen=True)
class Encoded:
    """What a first stage encodes to: channels of z, and "kl" (mean, log_variance) or "vq" (latent)."""

    channels: int
    kind: str


def encoder(build: Callable[[], nn.Module], encoded: Encoded, sides: Sides, *, image_channels: int = 3) -> Network:
    """The network ``vae_encoder``: image in [-1, 1] -> mean, log_variance or latent, unscaled."""
    names = ("mean", "log_variance") if encoded.kind == "kl" else ("latent",)
    shape = ("batch", encoded.channels, "height", "width")
    return Network(
        "vae_encoder",
        build,
        (Binding("image", "float32", ("batch", image_channels, "image_height", "image_width")),),
        tuple(Binding(name, "float32", shape) for name in names),
        {"batch": _BATCH, **sides.pixels()},
        {"image": image},
    )


def decoder(build: Callable[[], nn.Module], encoded: Encoded, sides: Sides, *, image_channels: int = 3) -> Network:
    """The network ``vae_decoder``: z, unscaled, -> image. A "vq" module shows its codebook as ``table``."""
    return Network(
        "vae_decoder",
        build,
        (Binding("z", "float32", ("batch", encoded.channels, "height", "width")),),
        (Binding("image", "float32", ("batch", image_channels, "image_height", "image_width")),),
        {"batch": _BATCH, **sides.latents()},
        sample_from=_code_samples if encoded.kind == "vq" else None,
    )


def _code_samples(module: nn.Module) -> dict[str, Callable[..., Tensor]]:
    table = getattr(module, "table", None)
    return {"z": codes(table)} if isinstance(table, Tensor) else {}


def text_encoder(
    build: Callable[[], nn.Module], vocabulary: int, width: int, tokens: int, *, mask: bool = False
) -> Network:
    """The network ``text_encoder``: input_ids (and attention_mask) -> context."""
    from ..network import mask as draw_mask

    shape = ("batch", "tokens")
    inputs = [Binding("input_ids", "int64", shape)]
    samples = {"input_ids": integers(vocabulary)}
    if mask:
        inputs.append(Binding("attention_mask", "int64", shape))
        samples["attention_mask"] = draw_mask
    return Network(
        "text_encoder",
        build,
        tuple(inputs),
        (Binding("context", "float32", (*shape, width)),),
        {"batch": _BATCH, "tokens": Dimension(1, tokens, tokens)},
        samples,
    )


def class_embedder(build: Callable[[], nn.Module], classes: int, width: int) -> Network:
    """The network ``class_embedder``: y -> context of one token."""
    return Network(
        "class_embedder",
        build,
        (Binding("y", "int64", ("batch",)),),
        (Binding("context", "float32", ("batch", 1, width)),),
        {"batch": _BATCH},
        {"y": integers(classes)},
    )


def spatial_rescaler(build: Callable[[], nn.Module], classes: int, channels: int, sides: Sides) -> Network:
    """The network ``spatial_rescaler``: segmentation at the picture's size -> c, channels beside x."""
    return Network(
        "spatial_rescaler",
        build,
        (Binding("segmentation", "float32", ("batch", classes, "image_height", "image_width")),),
        (Binding("c", "float32", ("batch", channels, "height", "width")),),
        {"batch": _BATCH, **sides.pixels()},
        {"segmentation": image},
    )
