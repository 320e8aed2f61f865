from __future__ import annotations

import json

import pytest

from sfumato.errors import ManifestError, ParameterError
from sfumato.runtime.systems.pix2pix_settings import Pix2PixZeroSettings


def test_settings_are_read_back():
    settings = Pix2PixZeroSettings(steps=25, inversion="plain", templates=("{}", "{a}, flach"))
    assert Pix2PixZeroSettings.from_bytes(settings.to_bytes(), "x.json") == settings
    assert Pix2PixZeroSettings.from_json(Pix2PixZeroSettings().to_json()) == Pix2PixZeroSettings()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": "50"}, "steps"),
        ({"inversion": "other"}, "inversion"),
        ({"templates": [1]}, "templates"),
        ({"guidance_scale": 1.0}, "guidance_scale > 1"),
        ({"ac": -1}, "amounts >= 0"),
        ({"more": 1}, "more"),
        ({"kl": None}, "kl"),
    ],
)
def test_settings_that_are_none_are_refused(change, words):
    tree = {**Pix2PixZeroSettings().to_json(), **change}
    with pytest.raises(ManifestError, match=words):
        Pix2PixZeroSettings.from_bytes(json.dumps(tree).encode(), "pix2pix_zero.json")


def test_missing_keys_and_other_values_are_refused():
    for data in (b"{}", b"[]", b"{", b'{"steps": 50}'):
        with pytest.raises(ManifestError, match=r"pix2pix_zero\.json"):
            Pix2PixZeroSettings.from_bytes(data, "pix2pix_zero.json")
    for name in ("ac", "kl", "guidance_scale", "attention_guidance", "synthetic_attention_guidance"):
        for value in (float("nan"), float("inf")):
            with pytest.raises(ParameterError, match="finite amounts"):
                Pix2PixZeroSettings(**{name: value})
    with pytest.raises(ParameterError, match="inversion is"):
        Pix2PixZeroSettings(inversion="none")  # type: ignore[arg-type]
