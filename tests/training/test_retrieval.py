"""Retrieval, nearest neighbours and PSNR against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.training.retrieval import Share, nearest_by_cosine, nearest_by_pixels, psnr, ranks


def test_rank_counts_the_pictures_that_are_more_similar_than_the_own_one():
    gallery = np.eye(4)
    queries = np.array([[1, 0, 0, 0], [3, 2, 1, 0], [0, 1, 0.5, 2], [1, 1, 1, 0.1]])
    assert ranks(queries, gallery).tolist() == [0, 1, 2, 3]


def test_rank_does_not_depend_on_lengths():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 30, 8))
    lengths = rng.uniform(0.1, 10, (30, 1))
    assert ranks(a, b).tolist() == ranks(a * lengths, b * lengths[::-1]).tolist()


def test_a_tie_counts_against_the_picture():
    assert ranks(np.array([[1.0, 0], [1.0, 0]]), np.array([[1.0, 0], [1.0, 0]])).tolist() == [1, 1]


def test_unrelated_features_retrieve_at_chance():
    a, b = np.random.default_rng(1).standard_normal((2, 1000, 16))
    rank = ranks(a, b)
    assert Share(int((rank < 50).sum()), 1000).interval[0] < 0.05 < Share(int((rank < 50).sum()), 1000).interval[1]


def test_nearest_by_cosine_finds_itself_among_others():
    gallery = np.random.default_rng(2).standard_normal((50, 12))
    found = nearest_by_cosine(3 * gallery[[7, 31]], gallery)
    assert found.index.tolist() == [7, 31]
    np.testing.assert_allclose(found.value, 1, atol=1e-6)


def test_psnr_is_that_of_its_definition():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    grey = black + np.array([1, 16], np.uint8)[:, None, None, None]
    np.testing.assert_allclose(psnr(black, grey), [48.1308, 24.0484], atol=1e-3)
    assert psnr(black, black).tolist() == [99, 99]


@pytest.mark.parametrize("chunk", [3, 512])
def test_nearest_by_pixels_agrees_with_all_pairs(chunk):
    rng = np.random.default_rng(3)
    queries, gallery = (rng.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8) for n in (6, 17))
    table = np.stack([psnr(np.broadcast_to(q, gallery.shape), gallery) for q in queries])
    found = nearest_by_pixels(queries, gallery, chunk=chunk)
    assert found.index.tolist() == table.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.value, table.max(axis=1))


def test_nearest_by_pixels_of_the_same_picture_is_exact():
    gallery = np.random.default_rng(4).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = nearest_by_pixels(gallery[[3]], gallery)
    assert (found.index.tolist(), found.value.tolist()) == ([3], [99.0])


def test_wilson_interval_of_a_known_case():
    # 120 of 200: Wilson's 95 % interval is 0.5308 to 0.6654.
    low, high = Share(120, 200).interval
    assert (round(low, 3), round(high, 3)) == (0.531, 0.665)
    assert Share(0, 200).interval[0] == 0
    assert Share(200, 200).interval[1] == pytest.approx(1)
    assert Share(0, 0).value == 0
