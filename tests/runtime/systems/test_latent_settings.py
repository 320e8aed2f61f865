"""Settings are read strictly and come back as they were written."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from sfumato.errors import ManifestError, ParameterError
from sfumato.runtime.systems.latent_settings import Defaults, LatentDiffusionSettings

STABLE = LatentDiffusionSettings(
    task="text",
    conditioning="crossattn",
    latent_channels=4,
    factor=8,
    scale_factor=0.18215,
    first_stage="kl",
    image_size=(512, 512),
    size_multiple=64,
    max_tokens=77,
    tokenizer="clip",
    defaults=Defaults(50, 7.5, "plms", 0.0, "leading"),
)


DEFAULTS: dict[str, Any] = asdict(STABLE.defaults)


def test_settings_survive_json() -> None:
    assert LatentDiffusionSettings.from_json(json.loads(json.dumps(STABLE.to_json()))) == STABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "texts"}, r"\$.settings.task: is 'texts', need one of text, class"),
        ({"conditioning": "concat"}, "task 'text' has conditioning 'concat', need crossattn"),
        ({"factor": 0}, r"\$.settings.factor: is 0, need 1 or more"),
        ({"factor": 2.5}, r"\$.settings.factor: is a number, need an integer"),
        ({"factor": 7}, "size_multiple is 64, need a multiple of factor 7"),
        ({"scale_factor": 0}, "scale_factor > 0"),
        ({"image_size": [512, 500]}, "need two multiples of 64"),
        ({"image_size": [512]}, "need two multiples of 64"),
        ({"tokenizer": None}, "needs a tokenizer and max_tokens"),
        ({"max_tokens": 2}, "need 3"),
        ({"tokenizer": "t5"}, r"\$.settings.tokenizer: is 't5'"),
        ({"defaults": {}}, r"\$.settings.defaults: lacks the key 'steps'"),
        ({"guidance": 3}, r"\$.settings: has an unknown key 'guidance'"),
        ({"task": "inpaint", "conditioning": "hybrid", "tokenizer": None}, "'hybrid' needs a tokenizer and max_tokens"),
        (
            {"defaults": {**DEFAULTS, "sampler": "magic"}},
            "defaults: sampler is 'magic', need one of",
        ),
        ({"defaults": {**DEFAULTS, "spacing": "odd"}}, "defaults: spacing is 'odd', need one of"),
        (
            {"defaults": {**DEFAULTS, "steps": True}},
            "defaults.steps: is a boolean, need an integer",
        ),
    ],
)
def test_bad_settings_name_their_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        LatentDiffusionSettings.from_json({**STABLE.to_json(), **change})


def test_a_missing_key_is_named() -> None:
    tree = STABLE.to_json()
    del tree["null_class"]
    with pytest.raises(ManifestError, match=r"\$.settings: lacks the key 'null_class'"):
        LatentDiffusionSettings.from_json(tree)


@pytest.mark.parametrize("given", [{"steps": 0}, {"eta": 1.1}, {"guidance_scale": -1.0}, {"sampler": ""}])
def test_bad_defaults_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Defaults(**given)
