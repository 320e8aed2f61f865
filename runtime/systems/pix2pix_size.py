"""Sizes of pix2pix-zero: any picture brought to one that the model edits well, and what was done said."""

from __future__ import annotations

from ...engines.binding import Array
from ...errors import ParameterError
from ..image import resize
from .latent_models import Models
from .latent_sizes import check_size
from .pix2pix_settings import MAPS

__all__ = ["fit_picture"]


def fit_picture(
    models: Models, picture: Array, size: tuple[int, int] | None, *, official: bool
) -> tuple[Array, tuple[str, ...]]:
    """The picture to work on, and a sentence if it is not the one given.

    The longer side becomes the longer side of the bundle's own size, and each side is rounded to the bundle's multiple:
    the model was trained at about this size, and its attention has no tiles. The authors' demonstration does likewise;
    their scripts squash everything to the model's size, as `official` does here.

    Arguments:
        models: The bundle.
        picture: uint8 (H, W, 3).
        size: Height and width to work at, multiples of the bundle's; None to choose.
        official: Take the bundle's own size.

    Raises:
        ParameterError: The size does not fit the bundle.
    """
    chosen = size or (models.settings.image_size if official else _scaled(models, picture.shape[:2]))
    height, width = check_size(models, chosen, tile=0)
    most = models.limits(MAPS)[1] * models.settings.factor
    if most and max(height, width) > most:
        raise ParameterError(
            f"size is height {height} and width {width}, the network {MAPS!r} takes at most {most} pixels a side; "
            "use a smaller one"
        )
    if picture.shape[:2] == (height, width):
        return picture, ()
    before = picture.shape
    note = (
        f"the picture of width {before[1]} and height {before[0]} was resized to {width} and {height}, "
        "the size that is edited"
    )
    return resize(picture, (height, width)), (note,)


def _scaled(models: Models, extent: tuple[int, ...]) -> tuple[int, int]:
    multiple, longer = models.settings.size_multiple, max(models.settings.image_size)
    least = -(-models.limits(MAPS)[0] * models.settings.factor // multiple) * multiple
    scale = longer / max(extent)
    height, width = (max(least, multiple, round(n * scale / multiple) * multiple) for n in extent[:2])
    return height, width
