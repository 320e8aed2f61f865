"""Settings of Cold Diffusion: what to_json writes from_json reads, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.errors import ManifestError, ParameterError
from sfumato.runtime.degradations import DegradationSpec
from sfumato.runtime.systems.cold_settings import ColdDiffusionSettings, Generation

BLUR = DegradationSpec.of("blur", steps=300, routine="Exponential", size=27, std=0.01, discrete=True)


@pytest.mark.parametrize(
    "settings",
    [
        ColdDiffusionSettings(BLUR, 3, (128, 128), 8, generation=Generation("means", noise=0.002)),
        ColdDiffusionSettings(BLUR, 3, (128, 64), 8, generation=Generation("thumbnails", 8, severity=200)),
        ColdDiffusionSettings(DegradationSpec.of("snow", steps=20), 1, (32, 32), 4, quantised=True, algorithm=1),
    ],
)
def test_settings_survive_json(settings) -> None:
    assert ColdDiffusionSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, r"\$\.settings: channels are 2 \(need 1 or 3\)"),
        ({"algorithm": 3}, r"algorithm 3 \(1 or 2\)"),
        ({"image_size": [60, 64]}, r"image_size is \(60, 64\), need two multiples of 8"),
        ({"quantised": 0}, r"\$\.settings\.quantised: is an integer, need a boolean"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"degradation": None}, r"\$\.settings\.degradation\.kind: is null"),
        ({"generation": {"start": "noise"}}, r"\$\.settings\.generation: lacks the key 'side'"),
    ],
)
def test_json_is_read_strictly(change: dict[str, Any], message) -> None:
    with pytest.raises(ManifestError, match=message):
        ColdDiffusionSettings.from_json({**ColdDiffusionSettings(BLUR, 3, (64, 64), 8).to_json(), **change})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generation": Generation("noise")}, "blur generates from means or thumbnails, not from noise"),
        ({"generation": Generation("means", severity=301)}, "generation starts at severity 301, blur has 1 … 300"),
        ({"degradation": DegradationSpec.of("inpaint", steps=2), "image_size": (64, 32)}, "takes squares"),
        ({"degradation": DegradationSpec.of("decolor", steps=2, lab=True), "channels": 1}, "Lab pictures have 3"),
        (
            {"degradation": DegradationSpec.of("snow", steps=2), "generation": Generation("means")},
            "snow generates from nothing",
        ),
    ],
)
def test_settings_that_do_not_hold_together_are_refused(given, message) -> None:
    with pytest.raises(ParameterError, match=message):
        ColdDiffusionSettings(
            **{"degradation": BLUR, "channels": 3, "image_size": (64, 64), "size_multiple": 8, **given}
        )


@pytest.mark.parametrize("given", [("means", 2), ("thumbnails", 1), ("means", 1, "bilinear", 0)])
def test_a_generation_that_makes_no_sense_is_refused(given) -> None:
    with pytest.raises(ParameterError, match="side|severity"):
        Generation(*given)
