"""The first stage at run time: pictures to the UNet's latents and back, in tiles where they are large.

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section 3.1,
    https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine, check_finite
from ...errors import ManifestError
from .latent_settings import LatentDiffusionSettings

__all__ = ["ColorMap", "Encoding", "FirstStage", "fit_colors"]

_BATCH_PIXELS = 512 * 512
"""Pictures are decoded together up to this many pixels, larger ones one at a time."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """The latents of a picture, before the UNet's scale.

    Arguments:
        mean: float32 (B, C, h, w); of a vector-quantised first stage the latent before quantisation.
        deviation: float32 (B, C, h, w) of a KL first stage's posterior, else None.
        scale_factor: The UNet's latent is scale_factor · z.
    """

    mean: Array
    deviation: Array | None
    scale_factor: float

    def latents(self, noise: Array | None = None) -> Array:
        """The UNet's latents: the mean, or with standard normals (N, C, h, w) as many samples of the posterior."""
        if noise is None or self.deviation is None:
            return np.asarray(self.mean * np.float32(self.scale_factor))
        return np.asarray((self.mean + self.deviation * noise) * np.float32(self.scale_factor))


class FirstStage:
    """Encoder and decoder with the scale between them and the UNet.

    Arguments:
        settings: Kind, factor and scale.
        engine: Opens "vae_encoder" or "vae_decoder", on use.
    """

    def __init__(self, settings: LatentDiffusionSettings, engine: Callable[[str], Engine]) -> None:
        self._settings = settings
        self._engine = engine

    def encode(self, image: Array) -> Encoding:
        """What the encoder says of pictures, float32 (B, 3, H, W) in [-1, 1], H and W multiples of the factor."""
        outputs = self._engine("vae_encoder")(image=image)
        check_finite("vae_encoder", None, **outputs)
        scale = self._settings.scale_factor
        if self._settings.first_stage == "vq":
            return Encoding(outputs["latent"].copy(), None, scale)
        return Encoding(outputs["mean"].copy(), np.exp(np.float32(0.5) * outputs["log_variance"]), scale)

    def decode(self, latents: Array) -> Array:
        """Pictures of the UNet's latents.

        Arguments:
            latents: float32 (B, C, h, w).

        Returns:
            float32 (B, 3, H, W), about [-1, 1]; the caller's own.
        """
        engine = self._engine("vae_decoder")
        z = np.divide(latents, np.float32(self._settings.scale_factor), dtype=np.float32)
        factor = self._settings.factor
        together = len(z) * z.shape[2] * z.shape[3] * factor**2 <= _BATCH_PIXELS
        parts = [z] if together else [z[i : i + 1] for i in range(len(z))]
        images = np.empty((len(z), 3, z.shape[2] * factor, z.shape[3] * factor), dtype=np.float32)
        done = 0
        for part in parts:
            image = engine(z=part)["image"]
            check_finite("vae_decoder", None, image=image)
            if image.shape[1:] != images.shape[1:]:
                raise ManifestError(
                    f"$.settings.factor: is {factor}, but 'vae_decoder' makes {image.shape[1:]} of {part.shape[1:]}; "
                    "export the bundle again"
                )
            images[done : done + len(part)] = image
            done += len(part)
        return images


class ColorMap:
    """A linear map from latents to colours.

    Arguments:
        weights: float32 (C + 1, 3), the last row a constant; colours in [-1, 1].
    """

    def __init__(self, weights: Array) -> None:
        self.weights = weights

    def __call__(self, latents: Array) -> Array:
        """float32 (B, C, h, w) -> uint8 (B, h, w, 3)."""
        colors = np.moveaxis(latents, 1, -1) @ self.weights[:-1] + self.weights[-1]
        return np.asarray(np.clip(colors * 127.5 + 127.5, 0, 255).astype(np.uint8))


def fit_colors(decode: Callable[[Array], Array], shape: tuple[int, ...]) -> ColorMap:
    """The least-squares map from latents to colours, fitted on one test card of random patches.

    Arguments:
        decode: Latents to pictures, as `FirstStage.decode`.
        shape: Of the card, (B, C, h, w): a shape that the decoder is used with, so that nothing is compiled for it.
    """
    batch, channels, height, width = shape
    patches = np.random.Generator(np.random.Philox(0)).standard_normal(
        (batch, channels, -(-height // 4), -(-width // 4)), dtype=np.float32
    )
    card = np.ascontiguousarray(patches.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width])
    pictures = decode(card)
    factor = pictures.shape[2] // height
    means = pictures.reshape(batch, 3, height, factor, width, factor).mean(axis=(3, 5), dtype=np.float64)
    inputs = np.moveaxis(card, 1, -1).reshape(-1, channels).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    targets = np.moveaxis(means, 1, -1).reshape(-1, 3)
    return ColorMap(np.linalg.lstsq(inputs, targets, rcond=None)[0].astype(np.float32))
