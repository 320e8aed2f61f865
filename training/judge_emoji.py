"""What is asked of the emoji model, question by question; the answers are JSON.

*Retrieval*: does a generated picture's DINOv2 class token find, among the real pictures of all captions asked, the
one of its own caption? For training captions that is recall, which a model that memorises does best; captions whose
names were held out in both sets ask for more, and are reported apart.

*Copies*: how near is a generated picture to its nearest training picture? A near-copy is one that differs from a
training picture no more than the autoencoder's own round trip does, since no latent diffusion comes closer: its squared
error is at most twice the median one of the round trip (3 dB), or its cosine is at least what 95 % of round trips
reach. Both thresholds are measured on the training pictures of the captions asked, so they move with the model, and
with how far apart DINOv2 puts icons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.binding import Array
from ..runtime.image import from_float
from . import captions, emoji
from .dinov2 import Features
from .emoji import Emoji
from .retrieval import Share, nearest_by_cosine, nearest_by_pixels, normalized, psnr, ranks

__all__ = [
    "CopyLimits",
    "autoencoder",
    "copies",
    "copy_limits",
    "draw",
    "on_white",
    "real_neighbours",
    "retrieval",
    "unseen",
]

RoundTrip = Callable[[Array], Array]
"""uint8 (N, H, W, 3) through the autoencoder and back to 8 bits."""


@dataclass(frozen=True)
class CopyLimits:
    """From which PSNR (dB) or cosine on a picture counts as a near-copy."""

    psnr: float
    cosine: float


def on_white(pictures: list[Emoji]) -> Array:
    """Pictures over white, uint8 (N, H, W, 3)."""
    rgba = np.stack([picture.rgba for picture in pictures])
    return from_float(emoji.over(rgba, np.full((len(pictures), 3), 255)))


def unseen(pictures: list[Emoji]) -> list[Emoji]:
    """Those held out, less any that looks like one that is not: the sets hold a few pictures under two names."""
    seen = {on_white([picture]).tobytes() for picture in pictures if not picture.held_out}
    return [p for p in pictures if p.held_out and on_white([p]).tobytes() not in seen]


def draw(pictures: list[Emoji], count: int, rng: np.random.Generator) -> list[Emoji]:
    """At most `count` pictures at random, none of which looks on white like one drawn before."""
    seen: set[bytes] = set()
    drawn: list[Emoji] = []
    for index in rng.permutation(len(pictures)):
        picture = pictures[index]
        look = on_white([picture]).tobytes()
        if len(drawn) < count and look not in seen:
            drawn.append(picture)
        seen.add(look)
    return drawn


def autoencoder(pictures: list[Emoji], round_trip: RoundTrip, rng: np.random.Generator) -> dict[str, Any]:
    """PSNR of 8-bit reconstructions, over white and over one random plain colour each."""
    palette = np.array([colour for name, colour in captions.BACKGROUNDS.items() if name != "white"])
    colours = palette[rng.integers(len(palette), size=len(pictures))]
    rgba = np.stack([picture.rgba for picture in pictures])
    coloured = from_float(emoji.over(rgba, colours))
    result: dict[str, Any] = {"pictures": len(pictures)}
    for name, images in (("white", on_white(pictures)), ("coloured", coloured)):
        values = psnr(images, round_trip(images))
        result[name] = {"psnr": _round(values.mean(), 2), "p5": _round(np.percentile(values, 5), 2)}
    return result


def retrieval(generated: Features, real: Features) -> dict[str, Any]:
    """Top-1 and top-5 among the real pictures of the same captions, in the same order, and their chance."""
    rank = ranks(generated.token, real.token)
    second = ranks(generated.patches, real.patches)
    count = len(rank)
    return {
        "captions": count,
        "chance": _round(1 / count),
        "top1": Share(int((rank < 1).sum()), count).to_json(),
        "top5": Share(int((rank < 5).sum()), count).to_json(),
        "median_rank": _round(np.median(rank) + 1, 1),
        "patch_mean_top1": Share(int((second < 1).sum()), count).to_json(),
    }


def copy_limits(images: Array, back: Array, features: Features, back_features: Features) -> CopyLimits:
    """The limits of a near-copy, from training pictures and their round trip, in the same order."""
    cosine = (normalized(features.token) * normalized(back_features.token)).sum(axis=1)
    return CopyLimits(float(np.median(psnr(images, back)) - 10 * np.log10(2)), float(np.percentile(cosine, 5)))


def copies(
    generated: Array,
    features: Features,
    asked: list[Emoji],
    gallery: Array,
    gallery_features: Features,
    training: list[Emoji],
    limits: CopyLimits,
) -> dict[str, Any]:
    """How near generated pictures come to training pictures, and whose these are.

    Arguments:
        generated: uint8 (N, H, W, 3) of the captions of `asked`.
        features: Theirs.
        asked: Whose captions were asked, (N).
        gallery: uint8 (M, H, W, 3), all training pictures over white; pixels are compared mirrored, too.
        gallery_features: Theirs.
        training: Whose pictures they are, (M).
    """
    alike = nearest_by_cosine(features.token, gallery_features.token)
    both = np.concatenate([gallery, gallery[:, :, ::-1]])
    close = nearest_by_pixels(generated, both)
    own = [_same_look(a, training[i]) for a, i in zip(asked, alike.index, strict=True)]
    own_pixels = [_same_look(a, training[i % len(training)]) for a, i in zip(asked, close.index, strict=True)]
    cousin = [a.name == training[i].name for a, i in zip(asked, alike.index, strict=True)]
    count = len(asked)
    by_pixels, by_features = close.value >= limits.psnr, alike.value >= limits.cosine
    return {
        "nearest_is_own": Share(sum(own), count).to_json(),
        "nearest_is_own_name": Share(sum(cousin), count).to_json(),
        "nearest_in_pixels_is_own": Share(sum(own_pixels), count).to_json(),
        "cosine": _spread(alike.value),
        "psnr": _spread(close.value),
        "near_copies_by_pixels": Share(int(by_pixels.sum()), count).to_json(),
        "near_copies_by_features": Share(int(by_features.sum()), count).to_json(),
        "near_copies": Share(int((by_pixels | by_features).sum()), count).to_json(),
    }


def real_neighbours(features: Features) -> dict[str, float]:
    """Cosine of each training picture to the nearest other one: how alike icons are that are no copies."""
    unit = normalized(features.token)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1.0)
    return _spread(cosine.max(axis=1))


def _same_look(a: Emoji, b: Emoji) -> bool:
    return (a.set, a.name) == (b.set, b.name) or bool(np.array_equal(on_white([a]), on_white([b])))


def _spread(values: Array) -> dict[str, float]:
    return {"median": _round(np.median(values)), "p95": _round(np.percentile(values, 95))}


def _round(value: float, digits: int = 4) -> float:
    return round(float(value), digits)
