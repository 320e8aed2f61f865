"""Captions: the searches on language models of a table, pictures as the encoder takes them, pieces to text."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from sfumato.errors import ManifestError, NonFiniteError, ParameterError
from sfumato.runtime.beam_search import beam_search, greedy
from sfumato.runtime.captioner import Captioner, CaptionerSettings, join_pieces

SETTINGS = CaptionerSettings(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (1, 2), 0, 9, beams=2, min_length=4, max_length=6)


def chain(table):
    """The next token's logits depend on the last token alone."""
    return lambda tokens: table[tokens[:, -1]]


def best_of_all(table, start, end, length):
    """Every sequence, scored as beam search scores."""
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    found = []
    for count in range(1, length - len(start) + 1):
        for tail in itertools.product(range(len(table)), repeat=count):
            ends = [i for i, token in enumerate(tail) if token == end]
            if (ends and ends[0] != count - 1) or (not ends and count < length - len(start)):
                continue
            walk = [*start, *tail]
            score = sum(logs[a, b] for a, b in itertools.pairwise(walk[len(start) - 1 :]))
            found.append((score / count, list(tail)))
    return max(found)[1]


def test_a_wide_beam_finds_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.standard_normal((4, 4)) * 2
        found = beam_search(chain(table), [1], end=0, beams=64, max_length=5)
        assert found == best_of_all(table, [1], 0, 5)


def test_greedy_takes_the_likeliest_and_stops():
    table = np.zeros((4, 4))
    table[1, 2] = table[2, 3] = table[3, 0] = 5
    assert greedy(chain(table), [1], end=0, max_length=10) == [2, 3, 0]
    assert greedy(chain(table), [1], end=0, max_length=3) == [2, 3]
    table[3, 1] = 4
    assert greedy(chain(table), [1], end=0, min_length=5, max_length=8) == [2, 3, 1, 2, 3, 0]


def test_no_caption_ends_before_its_least_length():
    table = np.zeros((4, 4))
    table[:, 0] = 9
    assert len(beam_search(chain(table), [1], end=0, beams=3, min_length=4, max_length=9)) >= 4


@pytest.mark.parametrize("options", [{"beams": 1}, {"max_length": 1}])
def test_searches_that_cannot_be_are_refused(options):
    with pytest.raises(ParameterError, match="beam search has"):
        beam_search(chain(np.zeros((4, 4))), [1], **{"end": 0, "beams": 2, "max_length": 5, **options})


def make(settings=SETTINGS, broken=False):
    seen = []
    table = np.full((10, 10), -5.0)
    table[2, 5] = table[5, 6] = table[6, 7] = table[7, 0] = 5

    def encoder(image):
        seen.append(image)
        return {"states": np.ones((1, 3, 4), np.float32) * (np.nan if broken else 1)}

    def decoder(input_ids, position, states):
        assert input_ids.shape == (settings.beams, settings.max_length)
        assert states.shape[0] == settings.beams
        assert (input_ids[:, position[0] + 1 :] == settings.pad).all()
        return {"logits": table[input_ids[:, position[0]]].astype(np.float32)}

    names = ["[PAD]", "a", "picture", "?", "?", "red", "app", "##le", ".", "[SEP]"]
    words = lambda ids: [names[i] for i in ids]  # noqa: E731
    return Captioner(encoder, decoder, words, settings), seen


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_caption_without_its_prompt(beams):
    captioner, seen = make(CaptionerSettings(8, (0.5,) * 3, (0.5,) * 3, (1, 2), 0, 9, beams, 4, 6))
    assert captioner(np.full((20, 10, 3), 255, np.uint8)) == "red apple"
    assert seen[0].shape == (1, 3, 8, 8)
    assert np.allclose(seen[0], 1)


def test_nan_is_told():
    with pytest.raises(NonFiniteError) as caught:
        make(broken=True)[0](np.zeros((8, 8, 3), np.uint8))
    assert (caught.value.network, caught.value.tensor) == ("caption_encoder", "states")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a", "red", "app", "##le", "."], "a red apple."),
        (["[DEC]", "a", "dog", "'", "s", "ball", "[SEP]"], "a dog's ball"),
        ([], ""),
    ],
)
def test_pieces_become_text(pieces, text):
    assert join_pieces(pieces) == text


def test_settings_are_read_back_and_checked():
    assert CaptionerSettings.from_bytes(SETTINGS.to_bytes(), "c.json") == SETTINGS
    tree = json.loads(SETTINGS.to_bytes())
    for change in ({"start": []}, {"beams": 0}, {"std": [1, 0, 1]}, {"mean": [1]}, {"more": 1}, {"end": "x"}):
        with pytest.raises(ManifestError, match=r"c\.json"):
            CaptionerSettings.from_bytes(json.dumps({**tree, **change}).encode(), "c.json")
