"""Interpolation matrices are torch's own interpolation, and crops are resized slices."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sfumato.networks.resample import crop_matrix, resample, resize_matrix, upsample_nearest


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("out", [(5, 4), (9, 13), (24, 30)])
def test_a_resize_is_torchs(kind, antialias, out) -> None:
    x = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(x, size=out, mode=kind, antialias=antialias)
    rows, columns = (resize_matrix(o, n, kind, antialias=antialias) for o, n in zip(out, (12, 10), strict=True))
    torch.testing.assert_close(resample(x, rows, columns), expected, rtol=1e-4, atol=1e-5)


def test_a_resize_with_aligned_corners_is_torchs() -> None:
    x = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(x, size=(11, 4), mode="bilinear", align_corners=True)
    result = resample(x, resize_matrix(11, 6, align_corners=True), resize_matrix(4, 7, align_corners=True))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_crop_is_a_resized_slice(kind, antialias) -> None:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start, length, flip = torch.tensor([2.0, 0.0]), torch.tensor([9.0, 16.0]), torch.tensor([0.0, 1.0])
    rows = crop_matrix(6, 16, start, length, kind, antialias=antialias)
    columns = crop_matrix(6, 16, start, length, kind, antialias=antialias, flip=flip)
    result = resample(x.expand(2, -1, -1, -1), rows, columns)
    first = functional.interpolate(x[:, :, 2:11, 2:11], size=(6, 6), mode=kind, antialias=antialias)
    second = functional.interpolate(x, size=(6, 6), mode=kind, antialias=antialias).flip(3)
    torch.testing.assert_close(result, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


def test_nearest_is_torchs() -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upsample_nearest(x, 2), functional.interpolate(x, scale_factor=2.0, mode="nearest"))
