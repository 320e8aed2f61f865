"""Targets, options and profiles of a build: what is refused before a builder is imported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.build_options import BuildOptions, build_precision, build_profile, parse_range
from sfumato.engines.build_target import DESKTOP, parse_target
from sfumato.engines.builder_library import LIBRARIES
from sfumato.engines.nvidia import CudaDevice
from sfumato.errors import EngineError, ParameterError

ADA = CudaDevice("RTX 4070", "sm89")


def test_architectures_are_sorted_and_name_the_folder():
    target = parse_target("rtx:sm120+sm86")
    assert (target.kind, target.sms, target.arch, target.gpu) == ("tensorrt_rtx", ("sm86", "sm120"), "sm86+sm120", "")
    assert parse_target("rtx").sms == DESKTOP


def test_tensorrt_is_for_the_gpu_at_hand():
    target = parse_target("tensorrt", [ADA])
    assert (target.kind, target.sms, target.gpu) == ("tensorrt", ("sm89",), "RTX 4070")
    with pytest.raises(EngineError, match="the driver names none here"):
        parse_target("tensorrt", [])


@pytest.mark.parametrize("text", ["", "cuda", "rtx:", "tensorrt:sm87", "auto:sm89", "sm89"])
def test_another_target_is_refused(text):
    with pytest.raises(ParameterError, match="write rtx:sm86"):
        parse_target(text, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rtx:sm87", "Jetson Orin"),
        ("rtx:sm90", "Hopper"),
        ("rtx:sm999", "knows no such"),
        ("rtx:89", "is written sm89"),
        ("rtx:sm89+", "is written sm89"),
        ("rtx:sm89+sm89", "twice"),
    ],
)
def test_another_architecture_is_refused_with_the_reason(text, why):
    with pytest.raises(ParameterError, match=why):
        parse_target(text)


def test_a_profile_spans_the_bundle_but_for_large_batches(models):
    spec = replace(models.UNET, dimensions={**models.DIMENSIONS, "batch": Dimension(1, 2, 64)})
    profile = build_profile(spec, BuildOptions())
    assert [getattr(profile, end)["x"] for end in ("min", "opt", "max")] == [(1, 4, 2, 2), (2, 4, 4, 4), (4, 4, 16, 16)]
    asked = build_profile(spec, BuildOptions(ranges={"batch": (1, 8, 16), "height": (4, 4, 4)}))
    assert [getattr(asked, end)["x"] for end in ("min", "opt", "max")] == [(1, 4, 4, 2), (8, 4, 4, 4), (16, 4, 4, 16)]


@pytest.mark.parametrize("wrong", [(1, 2, 3), (2, 4, 18), (4, 2, 8), (0, 2, 2)])
def test_a_range_outside_the_bundles_is_refused(models, wrong):
    with pytest.raises(ParameterError):
        build_profile(models.UNET, BuildOptions(ranges={"height": wrong}))


def test_half_precision_needs_the_manifests_leave(models):
    assert build_precision(models.UNET, BuildOptions()) == "fp32"
    assert build_precision(replace(models.UNET, tolerance={"fp16": 0.01}), BuildOptions()) == "fp16"
    assert build_precision(models.UNET, BuildOptions(precision="bf16")) == "bf16"


@pytest.mark.parametrize("text", ["height", "height=", "height=1:2", "=1", "height=a", "height=1:2:3:4", "1=2"])
def test_a_range_is_written_in_one_way(text):
    with pytest.raises(ParameterError, match="DIMENSION=MIN:OPT:MAX"):
        parse_range(text)
    assert parse_range("height=32:64:128") == ("height", (32, 64, 128))
    assert parse_range("batch=2") == ("batch", (2, 2, 2))


def test_options_that_a_builder_has_not():
    for options in (BuildOptions(version_compatible=True), BuildOptions(hardware="ampere_plus")):
        options.check(LIBRARIES["tensorrt"])
        with pytest.raises(ParameterError, match="TensorRT for RTX has no option"):
            options.check(LIBRARIES["tensorrt_rtx"])


@pytest.mark.parametrize("wrong", [{"effort": 6}, {"effort": -1}, {"workspace": 1000}])
def test_options_out_of_range(wrong):
    with pytest.raises(ParameterError):
        BuildOptions(**wrong)


def test_a_binding_without_dimensions_has_one_shape(models):
    spec = replace(models.EMBEDDER, inputs=(Binding("y", "int64", (3,)),), dimensions={})
    profile = build_profile(spec, BuildOptions())
    assert profile.min["y"] == profile.max["y"] == (3,)
