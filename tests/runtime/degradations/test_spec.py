"""Degradations as records: defaults, words of a command line, strict JSON, objects for a batch."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.engines.strict import Node
from sfumato.errors import ManifestError, ParameterError
from sfumato.runtime.degradation import degrade
from sfumato.runtime.degradations import Blur, DegradationSpec, Inpaint
from sfumato.runtime.rng import TorchGenerator

SPECS = [
    DegradationSpec.of("blur", steps=4, routine="Exponential", size=7, std=0.2),
    DegradationSpec.of("inpaint", steps=4, routine="Random_Incremental", first=1),
    DegradationSpec.of("fade", steps=4, reverse=True),
    DegradationSpec.of("resolution", steps=2, routine="Incremental_factor_2"),
    DegradationSpec.of("snow", steps=3, level=2, random=True),
    DegradationSpec.of("snow", steps=3, single=True),
    DegradationSpec.of("decolor", steps=4, routine="Linear", total=True),
    DegradationSpec.of("noise", steps=4),
    DegradationSpec.of("animorphosis", steps=4),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{len(spec.parameters)}")
def test_a_record_survives_json_and_makes_a_degradation(goldens, spec) -> None:
    x = goldens("cold_images.npz")["img"]
    again = DegradationSpec.from_node(Node(spec.to_json(), "$.settings.degradation"))
    assert again == spec
    end = x[:, ::-1].copy() if spec.needs_picture else None
    first, second = (degrade(s.build(x.shape, TorchGenerator(3), end=end), x) for s in (spec, again))
    assert first.shape == x.shape and first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    other = degrade(spec.build(x.shape, TorchGenerator(4), end=end), x)
    assert np.array_equal(first, other) == (spec.fixed or spec.kind == "animorphosis")
    np.testing.assert_array_equal(degrade(spec.build(x.shape, TorchGenerator(3), end=end), x, 0), x)


def test_words_of_a_command_line_are_read_by_the_type_of_the_default() -> None:
    spec = DegradationSpec.parse("blur", ["steps=300", "std=0.01", "size=27", "discrete=true", "routine=Exponential"])
    assert spec.build((1, 3, 8, 8)) == Blur(300, "Exponential", 27, 0.01, discrete=True)
    assert DegradationSpec.of("blur", steps=3, std=1) == DegradationSpec.parse("blur", ["steps=3", "std=1"])


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("fog", ["steps=3"], "no degradation is named 'fog'; use one of blur, inpaint"),
        ("blur", [], "blur lacks steps; pass steps=NUMBER"),
        ("blur", ["steps"], "'steps' assigns nothing; write NAME=VALUE"),
        ("blur", ["steps=3", "level=2"], "blur disagrees on level; its parameters are steps, routine"),
        ("blur", ["steps=many"], "blur's steps is 'many', need a whole number"),
        ("blur", ["steps=3", "discrete=maybe"], "discrete is 'maybe', need true or false"),
        ("blur", ["steps=3", "routine=Sideways"], "no blur is named 'Sideways'"),
        ("snow", ["steps=3", "level=9"], "snow of level 9"),
        ("inpaint", ["steps=0"], "inpainting has 0 steps"),
        ("noise", ["steps=0"], "mixing has 0 steps"),
    ],
)
def test_what_is_no_degradation_is_refused(kind, words, message) -> None:
    with pytest.raises(ParameterError, match=message):
        DegradationSpec.parse(kind, words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fog"}, r"\$\.d\.kind: is 'fog', need one of"),
        ({"steps": 2.5}, r"\$\.d\.steps: is a number, need an integer"),
        ({"discrete": 1}, r"\$\.d\.discrete: is an integer, need a boolean"),
        ({"size": 4}, r"\$\.d: blur has 3 steps of size 4"),
        ({"colour": 1}, r"\$\.d: has an unknown key 'colour'"),
    ],
)
def test_json_is_read_strictly(change, message) -> None:
    record = DegradationSpec.of("blur", steps=3).to_json()
    with pytest.raises(ManifestError, match=message):
        DegradationSpec.from_node(Node({**record, **change}, "$.d"))
    with pytest.raises(ManifestError, match="lacks the key 'std'"):
        DegradationSpec.from_node(Node({k: v for k, v in record.items() if k != "std"}, "$.d"))


def test_a_batch_that_does_not_fit_is_refused() -> None:
    inpaint = DegradationSpec.of("inpaint", steps=2, first=1)
    with pytest.raises(ParameterError, match=r"pictures have 16x18 pixels, inpaint takes squares.*size=\(16, 16\)"):
        inpaint.build((1, 3, 16, 18))
    with pytest.raises(ParameterError, match=r"15x15.*size=\(14, 14\)"):
        inpaint.build((1, 3, 15, 15))
    with pytest.raises(ParameterError, match="none was given; pass second=PICTURE"):
        DegradationSpec.of("animorphosis", steps=2).build((1, 3, 8, 8))
    with pytest.raises(ParameterError, match="draws something for its pictures; pass rng"):
        DegradationSpec.of("noise", steps=2).build((1, 3, 8, 8))


def test_a_hole_can_be_put_anywhere() -> None:
    spec = DegradationSpec.of("inpaint", steps=3, routine="Random_Incremental", first=1)
    hole = spec.build((1, 3, 16, 16), offsets=np.array([[4, 10]]))
    assert isinstance(hole, Inpaint)
    values = hole.masks(3)[0, 0]
    assert np.unravel_index(values.argmin(), values.shape) == (15 - 4, 15 - 10)
