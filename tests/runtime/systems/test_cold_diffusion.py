"""Cold Diffusion over engines that are a few lines of NumPy: restoring, generating, and every refusal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Array, Binding, Dimension
from sfumato.engines.manifest import Manifest, NetworkSpec
from sfumato.errors import Cancelled, ImageError, ManifestError, NonFiniteError, ParameterError
from sfumato.runtime.cold_generation import GaussianMixture
from sfumato.runtime.degradation import degrade
from sfumato.runtime.degradations import DegradationSpec
from sfumato.runtime.image import from_float, to_float
from sfumato.runtime.restoration import EngineRestorer, restore
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.systems.base import SfumatoWarning
from sfumato.runtime.systems.cold_diffusion import ColdDiffusion
from sfumato.runtime.systems.cold_settings import ColdDiffusionSettings, Generation

BLUR = DegradationSpec.of("blur", steps=4, routine="Constant", size=5, std=1.0)


def softened(x: Array, t: Array | None = None) -> dict[str, Array]:
    """A restorer of sorts: the picture moved by a pixel and darkened with the index."""
    shift = 0.0 if t is None else 0.01 * t[:, None, None, None]
    return {"x0": (0.9 * np.roll(x, 1, axis=-1) - shift).astype(np.float32)}


@pytest.fixture
def cold(fake_engine: Any) -> Callable[..., ColdDiffusion]:
    def make(
        spec: DegradationSpec = BLUR,
        function: Callable[..., dict[str, Array]] = softened,
        *,
        timed: bool = True,
        mixture: GaussianMixture | None = None,
        **settings: Any,
    ) -> ColdDiffusion:
        chosen = ColdDiffusionSettings(
            **{"degradation": spec, "channels": 3, "image_size": (16, 16), "size_multiple": 4, **settings}
        )
        shape = ("batch", chosen.channels, "height", "width")
        inputs = (Binding("x", "float32", shape), Binding("t", "float32", ("batch",)))
        side = Dimension(4, 16, 64, 4)
        network = NetworkSpec(
            "restorer",
            "restorer.onnx",
            (),
            inputs if timed else inputs[:1],
            (Binding("x0", "float32", shape),),
            {"batch": Dimension(1, 2, 3), "height": side, "width": side},
        )
        manifest = Manifest("cold-diffusion", "fake", "CC0-1.0", {}, {"restorer": network}, settings=chosen.to_json())
        reader = None if mixture is None else lambda: mixture
        return ColdDiffusion(manifest, lambda name: fake_engine(network, function), mixture=reader)

    return make


@pytest.fixture
def picture() -> Array:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("algorithm", [1, 2])
def test_a_clean_picture_is_degraded_restored_and_measured(cold, picture, algorithm) -> None:
    system = cold()
    (made,) = system.restore(picture, algorithm=algorithm, severity=3, keep_stages=True)
    x, blur = to_float(picture[None]), BLUR.build((1, 3, 16, 16))
    x_t = degrade(blur, x, 3)
    expected = restore(EngineRestorer(system.engine()), blur, x_t, t=3, algorithm=algorithm)
    for found, wanted in ((made.degraded, x_t), (made.direct, expected.direct), (made.restored, expected.image)):
        np.testing.assert_array_equal(found, from_float(wanted)[0])
    np.testing.assert_array_equal(made.original, picture)
    assert len(made.stages) == 3 and made.severity == 3
    np.testing.assert_array_equal(made.stages[0], made.direct)
    assert made.quality.keys() == {"degraded", "direct", "restored"}
    error = made.image.astype(float) / 255 - picture / 255
    assert made.quality["restored"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert made.quality["restored"]["psnr"] == pytest.approx(-20 * np.log10(np.sqrt((error**2).mean())))
    assert made.timings["restorer"]["calls"] == 3 and made.parameters["algorithm"] == algorithm
    assert made.sheet().shape == (16 + 8, 4 * 20 + 4, 3)


def test_a_degraded_picture_is_restored_from_what_it_is(cold, picture) -> None:
    system = cold(quantised=True)
    (clean,) = system.restore(picture)
    (again,) = system.restore(clean.degraded, degraded=True, original=picture)
    np.testing.assert_array_equal(again.degraded, clean.degraded)
    np.testing.assert_array_equal(again.image, clean.image)  # degraded pictures have 8 bits where training had
    assert again.quality == clean.quality
    (alone,) = system.restore(clean.degraded, degraded=True)
    assert alone.original is None and alone.quality == {}
    assert alone.sheet().shape == (16 + 8, 3 * 20 + 4, 3)


def test_severity_zero_asks_nothing_and_equal_pictures_have_no_decibels(cold, picture) -> None:
    (made,) = cold().restore(picture, severity=0)
    np.testing.assert_array_equal(made.image, picture)
    assert made.quality["restored"] == {"psnr": None, "ssim": pytest.approx(1.0), "rmse": 0.0}
    assert "restorer" not in made.timings


def test_batches_change_nothing(cold, picture) -> None:
    others = [picture, picture[::-1].copy(), picture[:, ::-1].copy(), picture[:8].copy()]
    together = cold().restore(others)
    for one, source in zip(together, others, strict=True):
        (alone,) = cold().restore(source)
        np.testing.assert_array_equal(one.image, alone.image)
    calls = cold()
    calls.restore(others, batch_size=2)
    assert [shapes["x"] for shapes in calls.engine().calls[::4]] == [(2, 3, 16, 16), (1, 3, 16, 16), (1, 3, 8, 16)]


def test_what_is_drawn_depends_on_the_seed_of_the_picture_alone(cold, picture) -> None:
    spec = DegradationSpec.of("inpaint", steps=4, routine="Random_Incremental", first=1, std=0.5)
    pair = cold(spec).restore([picture, picture], seed=5)
    (second,) = cold(spec).restore(picture, seed=6)
    np.testing.assert_array_equal(pair[1].degraded, second.degraded)
    assert (pair[0].seed, pair[1].seed) == (5, 6) and not np.array_equal(pair[0].degraded, pair[1].degraded)


def test_a_mask_keeps_what_is_black_and_leads_the_hole(cold, picture) -> None:
    mask = np.zeros((16, 16), bool)
    mask[9:14, 2:7] = True
    spec = DegradationSpec.of("inpaint", steps=4, routine="Random_Incremental", first=1, std=0.5)
    (made,) = cold(spec).restore(picture, mask=mask)
    np.testing.assert_array_equal(made.image[~mask], picture[~mask])
    hole = np.abs(made.degraded.astype(int) - 127).sum(axis=2)
    assert hole[11, 4] <= 3 and np.linalg.norm(np.argwhere(hole <= 3) - (11, 4), axis=1).max() < 3
    with pytest.raises(ParameterError, match="holes of this bundle lie anywhere; pass mask=PICTURE"):
        cold(spec).restore(picture, degraded=True)
    assert cold(spec).restore(picture, degraded=True, mask=mask)[0].original is None
    with pytest.warns(SfumatoWarning, match="the mask has no white"):
        (made,) = cold().restore(picture, mask=np.zeros((16, 16), bool))
    np.testing.assert_array_equal(made.image, picture)


def test_animorphosis_takes_a_second_picture(cold, picture) -> None:
    spec = DegradationSpec.of("animorphosis", steps=4)
    with pytest.raises(ParameterError, match="second one and none was given; pass second=PICTURE"):
        cold(spec).restore(picture)
    small = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (made,) = cold(spec).restore(picture, second=small)
    x = spec.build((1, 3, 16, 16), end=to_float(np.kron(small, np.ones((2, 2, 1), np.uint8))[None]))
    assert np.abs(made.degraded.astype(int) - from_float(degrade(x, to_float(picture[None])))[0]).mean() < 40
    (alone,) = cold(spec).restore(picture, degraded=True)  # the end is estimated
    np.testing.assert_array_equal(alone.degraded, picture)
    with pytest.raises(ParameterError, match="blur takes no second picture"):
        cold().restore(picture, second=small)


def test_noise_is_estimated_or_kept(cold, picture) -> None:
    kept = cold(DegradationSpec.of("noise", steps=4)).restore(picture, seed=3)[0]
    estimated = cold(DegradationSpec.of("noise", steps=4, estimated=True)).restore(picture, seed=3)[0]
    np.testing.assert_array_equal(kept.degraded, estimated.degraded)
    assert not np.array_equal(kept.image, estimated.image)


def test_snow_of_a_degraded_picture_is_said_to_be_a_guess(cold, picture) -> None:
    with pytest.warns(SfumatoWarning, match="what was drawn for the degraded picture is not known"):
        cold(DegradationSpec.of("snow", steps=4, random=True)).restore(picture, degraded=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cold(DegradationSpec.of("snow", steps=4)).restore(picture, degraded=True)


def test_official_numbering_is_of_snow_and_decolourisation(cold, picture) -> None:
    grey = DegradationSpec.of("decolor", steps=4, routine="Linear", total=True)

    def tinted(x: Array, t: Array) -> dict[str, Array]:
        return {"x0": x + np.float32(0.1) * np.arange(3, dtype=np.float32)[:, None, None]}

    a, b = (cold(grey, tinted).restore(picture, official=official)[0].image for official in (False, True))
    assert not np.array_equal(a, b)
    with pytest.raises(ParameterError, match="official numbering is of snow and decolor, this is blur"):
        cold().restore(picture, official=True)


def test_grey_pictures_and_grey_networks(cold, picture) -> None:
    (made,) = cold().restore(picture[..., 0])
    np.testing.assert_array_equal(made.original, np.broadcast_to(picture[..., :1], (16, 16, 3)))
    (made,) = cold(channels=1).restore(picture)
    assert (made.image[..., 0] == made.image[..., 2]).all() and made.image.shape == (16, 16, 3)
    luma = picture @ np.array([0.299, 0.587, 0.114])
    (made,) = cold(channels=1).restore(picture, severity=0)
    np.testing.assert_allclose(made.image[..., 0], luma, atol=0.51)


def test_lab_pictures_come_back_as_rgb(cold, picture) -> None:
    spec = DegradationSpec.of("decolor", steps=4, lab=True, routine="Linear", total=True)
    (made,) = cold(spec, lambda x, t: {"x0": x}).restore(picture)
    assert np.ptp(made.degraded.astype(int), axis=2).max() <= 2  # grey in RGB
    (made,) = cold(spec, lambda x, t: {"x0": x}).restore(picture, severity=0)
    assert np.abs(made.image.astype(int) - picture).max() <= 1


def test_a_network_without_time_is_asked_without(cold, picture) -> None:
    system = cold(timed=False)
    system.restore(picture)
    assert all(shapes.keys() == {"x"} for shapes in system.engine().calls)


def test_steps_can_be_watched_decoded_and_stopped(cold, picture) -> None:
    seen = []
    cold().restore([picture, picture[:8]], severity=2, on_step=seen.append)
    assert [(p.index, p.total, p.t, p.s, p.images) for p in seen] == [
        (0, 4, 2, 1, range(0, 1)),
        (1, 4, 1, 0, range(0, 1)),
        (2, 4, 2, 1, range(1, 2)),
        (3, 4, 1, 0, range(1, 2)),
    ]
    assert seen[0].decode().shape == seen[0].preview().shape == (1, 16, 16, 3)
    with pytest.raises(Cancelled, match="after call 2 of 4"):
        cold().restore(picture, on_step=lambda step: step.index < 1)


def test_a_network_that_makes_nan_is_named(cold, picture) -> None:
    with pytest.raises(NonFiniteError, match="restorer"):
        cold(function=lambda x, t: {"x0": x * np.float32(np.nan)}).restore(picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severity": 5}, "severity is 5, this degradation has 0 … 4"),
        ({"severity": -1}, "severity is -1"),
        ({"severity": 1.5}, "severity is 1.5, need a whole number from 0 to 4"),
        ({"severity": True}, "severity is True"),
        ({"algorithm": 3}, "algorithm is 3; the paper has 1 and 2"),
        ({"mask": np.zeros((8, 16), bool)}, r"the mask has 8x16 pixels \(height x width\), the picture 16x16"),
        ({"original": np.zeros((16, 16, 3), np.uint8)}, "original is given for a clean picture"),
        ({"size": (15, 16)}, r"15x16 pixels .* multiples of 4 of 4 to 64 pixels; pass size=\(16, 16\)"),
        ({"size": (30, 43)}, r"pass size=\(28, 40\)"),
        ({"size": (480, 640)}, r"pass size=\(48, 64\)"),
        ({"size": (200, 99)}, r"pass size=\(64, 32\)"),
        ({"size": (128, 2)}, r"pass size=\(64, 4\)"),
        ({"batch_size": 0}, "batch_size is 0, need 1 or more"),
        ({"seed": "x"}, "seed is 'x', need a whole number"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_what_cannot_be_restored_is_refused(cold, picture, options, message) -> None:
    noise = DegradationSpec.of("noise", steps=4)
    with pytest.raises(ParameterError, match=message):
        cold(noise if "seed" in options else BLUR).restore(picture, **options)


def test_odd_and_oblong_pictures_are_refused_with_a_size_that_fits(cold) -> None:
    with pytest.raises(ParameterError, match=r"17x19 pixels .*pass size=\(16, 16\)"):
        cold().restore(np.zeros((17, 19, 3), np.uint8))
    with pytest.raises(
        ParameterError, match=r"16x32 pixels .*, square; pass size=\(16, 16\), which squeezes it unless"
    ):
        cold(DegradationSpec.of("inpaint", steps=2)).restore(np.zeros((16, 32, 3), np.uint8))
    with pytest.raises(ImageError, match="does not exist"):
        cold().restore("nowhere.png")


def test_a_small_picture_under_a_wide_kernel_is_refused(cold) -> None:
    wide = DegradationSpec.of("blur", steps=2, routine="Constant_reflect", size=15, std=1.0)
    with pytest.raises(ParameterError, match="reflects 7 at the border, the picture has 4"):
        cold(wide).restore(np.zeros((4, 16, 3), np.uint8))


MIXTURE = GaussianMixture(np.ones(1), np.array([[0.5, 0.0, -0.5]]), 0.01 * np.eye(3)[None])


def test_generation_from_means_blurs_breaks_symmetry_and_restores(cold) -> None:
    spec = DegradationSpec.of("blur", steps=4, routine="Constant", size=5, std=1.0, discrete=True)
    system = cold(spec, generation=Generation("means", noise=0.002), mixture=MIXTURE)
    assert system.verbs == ("restore", "generate")
    two = system.generate(num_images=2, seed=1)
    (second,) = system.generate(seed=2)
    np.testing.assert_array_equal(two[1].image, second.image)
    assert [one.seed for one in two] == [1, 2] and two[0].original is None and two[0].severity == 4
    flat = two[0].degraded.reshape(-1, 3)
    assert np.ptp(flat.astype(int), axis=0).max() <= 2  # a colour and a trace of noise
    (still,) = system.generate(seed=1, noise=0.0)
    assert np.ptp(still.degraded.reshape(-1, 3).astype(int), axis=0).max() == 0


@pytest.mark.parametrize("upscale", ["bilinear", "nearest"])
def test_generation_from_thumbnails(cold, upscale) -> None:
    mixture = GaussianMixture(np.ones(1), np.linspace(-0.5, 0.5, 12)[None], 1e-4 * np.eye(12)[None])
    plan = Generation("thumbnails", side=2, upscale=upscale, severity=2)
    spec = DegradationSpec.of("resolution", steps=4)
    (made,) = cold(spec, generation=plan, mixture=mixture).generate()
    assert made.severity == 2 and made.degraded.mean(axis=(0, 1)).argmax() == 2
    with pytest.raises(ManifestError, match="needs a mixture of 12 numbers, there is one of 3 numbers"):
        cold(spec, generation=plan, mixture=MIXTURE).generate()


def test_generation_from_colours_noise_and_pictures(cold, picture) -> None:
    fade = cold(DegradationSpec.of("fade", steps=4, reverse=True), generation=Generation("colour"))
    (made,) = fade.generate(seed=3)
    colour = TorchGenerator(3).rand((1, 3)) - 0.5
    np.testing.assert_array_equal(made.degraded[0, 0], from_float(colour[:, :, None, None])[0, 0, 0])
    for estimated in (False, True):
        noise = cold(DegradationSpec.of("noise", steps=4, estimated=estimated), generation=Generation("noise"))
        (made,) = noise.generate(seed=3, num_images=1)
        np.testing.assert_array_equal(made.degraded, from_float(TorchGenerator(3).randn((1, 3, 16, 16)))[0])
    morph = cold(DegradationSpec.of("animorphosis", steps=4), generation=Generation("picture"))
    (made,) = morph.generate(second=picture)
    np.testing.assert_array_equal(made.degraded, picture)
    assert len(morph.generate(second=[picture, picture[::-1]])) == 2
    with pytest.raises(ParameterError, match="generates out of a picture and none was given; pass second=PICTURE"):
        morph.generate()
    with pytest.raises(ParameterError, match="second is given, but generation starts from colour"):
        fade.generate(second=picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"noise": -1.0}, "noise is -1.0, need 0 or more"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"severity": 0}, "severity is 0, generation starts from 1 … 4"),
        ({"severity": 9}, "severity is 9"),
        ({"size": (15, 15)}, r"pass size=\(12, 12\)"),
    ],
)
def test_what_cannot_be_generated_is_refused(cold, options, message) -> None:
    system = cold(generation=Generation("means"), mixture=MIXTURE)
    with pytest.raises(ParameterError, match=message):
        system.generate(**options)


def test_verbs_that_a_bundle_does_not_have_name_those_it_has(cold, picture) -> None:
    with pytest.raises(ParameterError, match="'fake' cannot generate .*undo blur alone.*; it can restore"):
        cold().generate()
    with pytest.raises(ParameterError, match="cannot edit; it can restore"):
        cold().edit(picture)


def test_the_network_closes_and_opens_again(cold, picture) -> None:
    with cold() as system:
        system.restore(picture)
        engine = system.engine()
    assert engine.closed
    assert system.engine() is not engine


def test_a_manifest_without_the_network_is_refused() -> None:
    settings = ColdDiffusionSettings(BLUR, 3, (16, 16), 4)
    manifest = Manifest("cold-diffusion", "fake", "CC0-1.0", {}, {}, settings=settings.to_json())
    with pytest.raises(ManifestError, match="lacks 'restorer'"):
        ColdDiffusion(manifest, lambda name: pytest.fail(name))
