"""Resolution, decolourisation, snow, mixing and naive fades against the official numbers; laws of all families."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.degradation import Chain, degrade, neighbours, quantise, severities
from sfumato.runtime.degradations import (
    Animorphosis,
    Blur,
    ColourFade,
    Decolor,
    HotNoise,
    Inpaint,
    Resolution,
    ScalarFade,
    Snow,
    SpiralFade,
)
from sfumato.runtime.degradations.fades import spiral
from sfumato.runtime.degradations.lab import lab_from_rgb, rgb_from_lab
from sfumato.runtime.degradations.resolution import resample_matrix
from sfumato.runtime.degradations.snow import LEVELS, clipped_zoom
from sfumato.runtime.rng import PhiloxGenerator

END = PhiloxGenerator(5).randn((2, 3, 32, 32))
FAMILIES = {
    "blur": Blur(6, "Exponential_reflect", 7, 0.2),
    "inpaint": Inpaint(6, 32, "Incremental", 0.8, 1),
    "random inpaint": Inpaint(6, 32, "Random_Incremental", 0.8, 1).drawn(2, PhiloxGenerator(1)),
    "colour": ColourFade(6, 32, END[:, :, 0, 0], 0.8, 1, reverse=True),
    "resolution": Resolution(6),
    "snow": Snow(6, (32, 32), 3),
    "decolor": Decolor(6, "Linear"),
    "lab": Decolor(6, "Linear", lab=True),
    "noise": HotNoise(6, END),
    "animorphosis": Animorphosis(6, END),
    "fade": ScalarFade(6),
    "spiral": SpiralFade(6, colour=END[:, :, 0, 0]),
}


def close(result, reference, tolerance=1e-5) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=tolerance * np.abs(reference).max())


def test_resolution_gives_the_official_series(goldens) -> None:
    data = goldens("cold_resolution_ops.npz")
    names = [key.removesuffix("__seq") for key in data if key != "x"]
    assert len(names) == 9
    for name in names:
        series = data[f"{name}__seq"]
        resolution = Resolution(len(series) - 1, name)
        close([resolution(data["x"], t) for t in range(len(series))], series)


def test_resampling_keeps_constants_and_needs_pixels() -> None:
    for mode in ("bicubic", "bilinear", "area", "nearest"):
        np.testing.assert_allclose(resample_matrix(13, 7, mode).sum(axis=1), 1.0)
    assert Resolution(3)(np.zeros((1, 1, 9, 13), dtype=np.float32), 3).shape == (1, 1, 9, 13)
    with pytest.raises(ParameterError, match="step 4 of 'Incremental' leaves 0 of 4 pixels"):
        Resolution(5)(np.zeros((1, 1, 4, 4), dtype=np.float32), 1)
    with pytest.raises(ParameterError, match="no loss of resolution is named"):
        Resolution(5, "Smooth")


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("routine", ["Constant", "Linear"])
def test_decolourisation_gives_the_official_series(goldens, routine, total) -> None:
    data = goldens("cold_decolor_ops.npz")
    decolor, key = Decolor(6, routine, total=total), f"{routine}_remove{int(total)}__"
    close([decolor.matrix(i) for i in range(6)], data[key + "kernels"])
    close([decolor(data["x"], t) for t in range(7)], data[key + "seq"])
    close(decolor.grey(data["x"]), data[key + "total"])


def test_lab_is_the_official_one(goldens) -> None:
    data = goldens("cold_decolor_ops.npz")
    close(lab_from_rgb(data["x"]), data["rgb2lab"])
    close(rgb_from_lab(data["rgb2lab"]), data["lab2rgb_roundtrip"])
    decolor = Decolor(6, "Linear", lab=True)
    close([decolor(data["rgb2lab"], t) for t in range(7)], data["lab_Linear_seq"])


@pytest.mark.parametrize("level", LEVELS)
def test_snow_gives_the_official_series(goldens, level) -> None:
    data = goldens("cold_snow_ops.npz")
    snow = Snow(6, (32, 32), level)
    for name, values in zip(("thres", "sigma", "bright"), snow.schedule(), strict=True):
        close(values, data[f"L{level}__{name}"])
    layers = np.stack([snow.layer(i) for i in range(6)])
    close(np.broadcast_to(layers, data[f"L{level}__snow"].shape), data[f"L{level}__snow"])
    close(np.broadcast_to(layers[..., ::-1, ::-1], data[f"L{level}__snow"].shape), data[f"L{level}__snow_rot"])
    close([snow(data["x"], t) for t in range(1, 7)], data[f"L{level}__seq"])
    fixed = Snow(6, (32, 32), level, brighten=False)
    close([fixed(data["x"], t) for t in range(1, 7)], data[f"L{level}__seq_fix_brightness"])
    close(fixed(data["x"], 6), data[f"L{level}__total"])


def test_the_zoom_and_the_random_stream_are_the_official_ones(goldens) -> None:
    data = goldens("cold_snow_ops.npz")
    for zoom in ("2.5", "3"):
        close(clipped_zoom(data["zoom_in"][..., 0], float(zoom)), data[f"zoom_out_{zoom}"][..., 0])
    random = np.random.RandomState(123321)
    close(random.normal(size=(32, 32)), data["base_normal_unit_seed123321"])
    close(random.uniform(), data["uniform_after_base"])


def test_snow_leaves_the_global_generator_alone() -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    Snow(3, (16, 16), 2)
    assert np.random.random() == expected


def test_snow_of_its_own_for_each_picture_falls_on_half_of_them() -> None:
    snow = Snow(3, (16, 24), 1, seed=4, images=4)
    x = np.zeros((4, 1, 16, 24), dtype=np.float32)
    result = snow(x, 3)
    assert result.shape == x.shape and not snow.deterministic
    assert all(np.abs(result[i] - result[j]).max() > 0 for i in range(4) for j in range(i))
    with pytest.raises(ParameterError, match="4 fields of snow for 2 pictures"):
        snow(x[:2], 1)
    with pytest.raises(ParameterError, match=r"picture has \(8, 8\) pixels, the snow \(16, 24\)"):
        snow(x[..., :8, :8], 1)
    with pytest.raises(ParameterError, match="levels are 1 to 4"):
        Snow(3, (16, 16), 5)


def test_mixing_gives_the_official_series(goldens) -> None:
    data = goldens("cold_noise.npz")
    noise = HotNoise(6, data["x_end"])
    close([noise(data["x"], t) for t in range(1, 7)], data["seq"])
    for steps in (6, 200):
        bar = HotNoise(steps).alphas_bar
        close(bar, data[f"alphas_cumprod_T{steps}"], 1e-6)
        close(np.sqrt(1 - bar), data[f"sqrt_one_minus_T{steps}"], 1e-6)


def test_an_estimated_end_explains_the_picture_exactly() -> None:
    x, x_t = END[:, :, ::-1].copy(), END[:, :, :, ::-1].copy()
    refit = Animorphosis(6).refit(x_t, x, 4)
    np.testing.assert_allclose(refit(x, 4), x_t, rtol=0, atol=1e-5)
    with pytest.raises(ParameterError, match="end picture and none was given"):
        Animorphosis(6)(x, 1)
    with pytest.raises(ParameterError, match="the end noise has shape"):
        HotNoise(6, END[:1])(x, 1)
    assert HotNoise.drawn(6, (2, 3, 8, 8), PhiloxGenerator(0)).end is not None


def test_naive_fades_are_the_official_ones(goldens) -> None:
    data = goldens("cold_inpaint_naive.npz")
    np.testing.assert_allclose(ScalarFade(6, 0.1).factors(), data["Incremental__factors"], atol=1e-7)
    np.testing.assert_allclose(ScalarFade(6, 0.3, "Constant").factors(), data["Constant__factors"], atol=1e-7)
    close(ScalarFade(6, 0.1)(data["x"], 6), data["x"] * np.prod(data["Incremental__factors"]))
    np.testing.assert_array_equal(spiral(32), data["Spiral__order"])
    fade = SpiralFade(1024)
    for index, mask in zip(data["Spiral__masks_sel_t"], data["Spiral__masks"], strict=True):
        np.testing.assert_array_equal(fade.mask(int(index) + 1), mask)
    assert sorted(spiral(7).ravel()) == list(range(49))


@pytest.mark.parametrize("name", FAMILIES)
def test_severity_zero_is_the_picture_and_others_change_it(goldens, name) -> None:
    degradation, x = FAMILIES[name], goldens("cold_images.npz")["img"]
    x = lab_from_rgb(x) if name == "lab" else x
    before = x.copy()
    np.testing.assert_array_equal(degradation(x, 0), x)
    worst = degradation(x, degradation.steps)
    assert worst.shape == x.shape and worst.dtype == np.float32 and np.abs(worst - x).max() > 0
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("severity", [-1, 7, 1.5])
def test_severities_outside_are_refused(goldens, name, severity) -> None:
    with pytest.raises(ParameterError, match=r"this degradation has 0 … 6"):
        FAMILIES[name](END, severity)


@pytest.mark.parametrize("name", [name for name, d in FAMILIES.items() if d.linear])
def test_linear_families_mix_pictures_as_they_mix_degraded_ones(name) -> None:
    degradation = FAMILIES[name]
    a, b = END, END[:, ::-1, :, ::-1].copy()
    for t in (1, 4, 6):
        mixed = degradation((0.3 * a + 0.7 * b).astype(np.float32), t)
        close(mixed, 0.3 * degradation(a, t) + 0.7 * degradation(b, t))


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_do_not_depend_on_their_batch_where_nothing_was_drawn(goldens, name) -> None:
    degradation = FAMILIES[name]
    if degradation.deterministic:
        np.testing.assert_allclose(degradation(END, 5)[1:], degradation(END[1:], 5), rtol=0, atol=1e-4)
    close(severities(degradation, END, [5, 2])[0], degradation(END, 5)[0])


def test_a_chain_is_walked_once_for_both_terms() -> None:
    calls = []

    def step(x):
        calls.append(1)
        return 0.5 * x

    chain = Chain([step] * 9, linear=True)
    at, before = neighbours(chain, END, 7)
    assert len(calls) == 7
    np.testing.assert_array_equal(at, chain(END, 7))
    np.testing.assert_array_equal(before, chain(END, 6))


def test_what_is_no_batch_of_pictures_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"need float32 \(B, C, H, W\)"):
        degrade(FAMILIES["blur"], END[0])
    with pytest.raises(ParameterError, match=r"pictures are float64"):
        degrade(FAMILIES["blur"], END.astype(np.float64))
    with pytest.raises(ParameterError, match="pass one a picture"):
        severities(FAMILIES["blur"], END, [1])


def test_grey_pictures_are_degraded_where_colour_is_not_needed() -> None:
    grey, four = END[:, :1].copy(), np.zeros((2, 4, 32, 32), dtype=np.float32)
    np.testing.assert_allclose(
        Snow(6, (32, 32))(grey, 3), Snow(6, (32, 32))(np.repeat(grey, 3, 1), 3)[:, :1], atol=1e-5
    )
    np.testing.assert_allclose(FAMILIES["decolor"](grey, 6), grey, atol=1e-6)
    for name in ("blur", "inpaint", "resolution", "fade"):
        np.testing.assert_allclose(FAMILIES[name](grey, 3), FAMILIES[name](END, 3)[:, :1], rtol=0, atol=1e-6)
    with pytest.raises(ParameterError, match="not 4 channels"):
        Snow(6, (32, 32))(four, 1)
    with pytest.raises(ParameterError, match=r"need \(B, 3, H, W\)"):
        FAMILIES["lab"](grey, 1)


def test_quantising_again_changes_a_level_at_most() -> None:
    x = np.clip(END, -1, 1)
    assert np.abs(quantise(quantise(x)) - quantise(x)).max() <= 2 / 255 + 1e-6
    assert (quantise(x) <= x + 1e-6).all() and np.abs(quantise(x) - x).max() <= 2 / 255 + 1e-6
