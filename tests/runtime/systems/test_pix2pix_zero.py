"""pix2pix-zero over engines of a few lines: colours led along directions, options, and every refusal."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from sfumato.engines.binding import Binding
from sfumato.engines.manifest import Manifest, ScheduleSpec
from sfumato.errors import (
    BundleError,
    Cancelled,
    DirectionError,
    ImageError,
    ManifestError,
    NonFiniteError,
    ParameterError,
    PromptError,
)
from sfumato.runtime.direction import Direction
from sfumato.runtime.systems.base import SfumatoWarning
from sfumato.runtime.systems.pix2pix_settings import Pix2PixZeroSettings
from sfumato.runtime.systems.pix2pix_zero import Pix2PixZero
from sfumato.runtime.tokenizer import BertTokenizer

RED = np.full((16, 16, 3), (230, 26, 26), np.uint8)
SETTINGS = Pix2PixZeroSettings(
    steps=6,
    guidance_scale=1.5,
    attention_guidance=0.02,
    inversion="plain",
    ac=0.0,
    kl=0.0,
    sentences=3,
    templates=("{}",),
)


class Pictures:
    """A system over the fake networks of `fake`, with maps that are the first channel of x."""

    def __init__(self, fake, defaults=SETTINGS, guide=None, digest="d" * 64, without=(), captioner=None):
        self.fake, self.guides = fake, []
        specs = {name: spec for name, spec in fake._specs().items() if name not in without}
        if "unet_maps" not in without:
            bindings = (*specs["unet"].outputs, Binding("map_00", "float32", ("batch", 1, "pixels_1", "tokens")))
            specs["unet_maps"] = replace(specs["unet"], name="unet_maps", outputs=bindings)
        self.manifest = Manifest(
            "latent-diffusion",
            "fake",
            "CC0-1.0",
            {},
            specs,
            ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, fake.prediction),
            settings=fake.settings.to_json(),
        )
        cls = type(fake)
        module = __import__("sys").modules[cls.__module__]

        def maps(x, t, context):
            found = fake._unet(x, t, context)
            return found | {"map_00": np.repeat(x[:, :1].reshape(len(x), 1, -1, 1), context.shape[1], axis=3)}

        def open_network(name):
            function = maps if name == "unet_maps" else getattr(fake, f"_{name}")
            fake.engines[name] = module.FakeEngine(specs[name], function)
            return fake.engines[name]

        def pull(x, *, t, context, reference_00):
            difference = x[:, 0].reshape(len(x), -1) - reference_00[:, 0, :, 0]
            gradient = np.zeros_like(x)
            gradient[:, 0] = (2 * difference / len(x)).reshape(x[:, 0].shape)
            return float(np.square(difference).sum() / len(x)), gradient

        def open_guide():
            self.guides.append(guide or pull)
            return self.guides[-1]

        self.system = Pix2PixZero(
            self.manifest,
            open_network,
            open_guide,
            tokenizer=lambda settings: BertTokenizer(fake.tokenizer_file, settings.max_tokens or 0),
            defaults=defaults,
            digest=digest,
            captioner=captioner,
        )


@pytest.fixture
def pictures(fake):
    def make(defaults=SETTINGS, guide=None, digest="d" * 64, without=(), captioner=None, task="text", **given):
        return Pictures(fake(task, spread=0.5, **given), defaults, guide, digest, without, captioner)

    return make


def edit(system, image=RED, prompt="red apple", **options):
    given = {"source_word": "red", "target_word": "green", **options}
    given = {name: value for name, value in given.items() if value is not None}
    return system.edit(image, prompt, **given)[0]


def test_a_red_picture_becomes_green_and_its_reconstruction_stays_red(pictures):
    result = edit(pictures().system)
    assert result.image.shape == result.reconstruction.shape == (16, 16, 3)
    assert np.abs(result.reconstruction.astype(int) - RED).mean() < 12
    color = result.image.reshape(-1, 3).mean(axis=0)
    assert color[1] > color[0] + 60
    assert np.array_equal(result.original, RED)
    assert result.warnings == ()
    assert result.parameters["source"] == "red"
    assert result.parameters["system"] == "pix2pix-zero"
    assert set(result.timings) >= {"unet", "unet_maps", "unet_gradient", "vae_encoder", "vae_decoder", "total"}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("inversion", ["official", "diffusers", "plain"])
def test_every_inversion_reconstructs(pictures, inversion, prediction):
    result = edit(pictures(prediction=prediction).system, inversion=inversion, steps=50, edit_multiplier=0)
    assert np.abs(result.reconstruction.astype(int) - RED).mean() < 12
    # Without a direction only guidance on rounding is left.
    assert np.abs(result.image.astype(int) - result.reconstruction).max() <= 1


def test_more_of_the_direction_changes_more(pictures):
    system = pictures().system
    changes = [np.abs(edit(system, edit_multiplier=m).image.astype(int) - RED).mean() for m in (0.2, 0.5, 1.0)]
    assert changes[0] < changes[1] < changes[2]


def test_more_attention_guidance_keeps_more_of_what_the_maps_see(pictures):
    system = pictures().system
    reds = [edit(system, attention_guidance=a, edit_multiplier=0.3).image[..., 0].mean() for a in (0.0, 0.05, 0.2)]
    assert reds[0] < reds[1] < reds[2]


def test_the_same_seed_gives_the_same_picture_and_rows_apart_the_same_edit(pictures):
    system = pictures(replace(SETTINGS, ac=1.0)).system
    made = [edit(system, seed=s, apart=a) for s, a in ((3, False), (3, False), (3, True), (4, False))]
    one, two, apart, other = (result.image for result in made)
    assert ["unet" in result.timings for result in made] == [True, True, False, True]  # unet_maps does its work
    assert np.array_equal(one, two)
    assert np.abs(one.astype(int) - apart).max() <= 1
    assert not np.array_equal(one, other)


def test_a_picture_from_noise_comes_with_its_edit(pictures):
    result = pictures().system.generate("red apple", source_word="red", target_word="green", size=(8, 16), seed=2)[0]
    assert result.image.shape == result.reconstruction.shape == (8, 16, 3)
    before, after = (p.reshape(-1, 3).mean(axis=0) for p in (result.reconstruction, result.image))
    assert before[0] > before[1]
    assert after[1] - before[1] > 40
    assert result.original is None
    assert result.parameters["verb"] == "generate"


def test_progress_runs_over_inversion_and_edit(pictures):
    seen = []

    def on_step(step):
        seen.append((step.index, step.total, step.stage))
        assert step.preview().shape == (1, 8, 8, 3)
        assert step.decode().shape == (1, 16, 16, 3)

    edit(pictures().system, inversion="official", on_step=on_step)
    assert [index for index, _, _ in seen] == list(range(10))
    assert {total for _, total, _ in seen} == {10}
    assert [stage for _, _, stage in seen] == ["inversion"] * 4 + ["edit"] * 6
    with pytest.raises(Cancelled):
        edit(pictures().system, on_step=lambda step: step.stage != "edit")


def test_a_direction_serves_in_place_of_words(pictures, tmp_path):
    system = pictures().system
    direction = system.direction("red", "green")
    assert direction.encoder == "d" * 64
    assert (direction.source, direction.target, direction.sentences) == ("red", "green", (1, 1))
    direction.save(tmp_path / "red2green.npz")
    wanted = edit(system).image
    for given in (direction, tmp_path / "red2green.npz", str(tmp_path / "red2green.npz")):
        found = edit(system, source_word=None, target_word=None, direction=given).image
        assert np.array_equal(found, wanted)


def test_directions_of_sentences_and_of_saved_states(pictures):
    system = pictures().system
    seen = []
    one = system.direction(["red", "red apple"], ["green"] * 40, on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (42, 42)
    assert one.sentences == (2, 40)
    states = np.zeros((3, 6, 8), np.float32)
    two = system.direction(states, states + 1, labels=("a", "b"))
    assert np.allclose(two.delta, 1)
    with pytest.raises(ParameterError, match="source and a target"):
        system.direction("red", None)


def test_saved_states_are_averaged_in_float64(pictures):
    rng = np.random.default_rng(0)
    states = (28 + rng.standard_normal((2, 5000, 6, 8))).astype(np.float32)
    wanted = states[1].mean(axis=0, dtype=np.float64) - states[0].mean(axis=0, dtype=np.float64)
    direction = pictures().system.direction(states[0], states[1])
    assert np.abs(direction.delta[0] - wanted).max() < 1e-8
    assert direction.sentences == (5000, 5000)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (np.zeros((0, 6, 8), np.float32), r"saved states are float32 \(0, 6, 8\).*one sentence or more"),
        (np.zeros((6, 8), np.float32), r"saved states are float32 \(6, 8\)"),
        (np.zeros((2, 6, 8), np.int64), "saved states are int64"),
        (np.zeros((2, 6, 4), np.float32), "of one encoder"),
        ([], "no sentence"),
    ],
)
def test_sides_that_cannot_be_averaged_are_refused(pictures, side, words):
    made = pictures()
    for sides in ((side, np.zeros((2, 6, 8), np.float32)), (np.zeros((2, 6, 8), np.float32), side)):
        with pytest.raises(DirectionError, match=words):
            made.system.direction(*sides)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.direction(3, "a"), ParameterError, "of type int, need sentences or states"),
        (lambda s: s.direction("a", {"b": 1}), ParameterError, "of type dict"),
        (lambda s: s.direction("a", "b", sentences=2.0), ParameterError, "count is 2.0"),
        (lambda s: edit(s, source_word=3), ParameterError, "of type int, need text"),
        (lambda s: edit(s, source_word=None, target_word=None, direction=5), DirectionError, "of type int"),
        (
            lambda s: edit(s, source_word=None, target_word=None, direction=np.zeros((1, 6, 8), np.float32)),
            DirectionError,
            r"of type ndarray.*Direction\(delta\)",
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(pictures, call, error, words):
    with pytest.raises(error, match=words):
        call(pictures().system)


def test_lists_of_too_many_or_too_few_steps_are_refused_with_what_mends_it(pictures):
    system = pictures().system
    for inversion in ("official", "diffusers", "plain"):
        with pytest.raises(ParameterError, match=r"steps is 1000.* pass 999 steps or fewer$"):
            edit(system, inversion=inversion, steps=1000)
    with pytest.raises(ParameterError, match=r"steps is 1000.* pass 999 steps or fewer$"):
        system.generate("red apple", source_word="red", target_word="green", steps=1000)
    with pytest.raises(ParameterError, match=r"steps is 1, the plain inversion .* pass 2 or more"):
        edit(system, inversion="plain", steps=1)


@pytest.mark.parametrize("multiplier", [1e39, -1e39, 3e38, 1e300])
def test_a_multiplier_that_leaves_float32_is_refused_before_the_picture_is_touched(pictures, multiplier):
    made = pictures()
    direction = Direction(np.full((1, 6, 8), 2, np.float32))
    with pytest.raises(ParameterError, match=r"edit_multiplier is -?\de\+\d+, .* 1 is usual"):
        edit(made.system, source_word=None, target_word=None, direction=direction, edit_multiplier=multiplier)
    assert not made.fake.engines.keys() & {"unet", "unet_maps", "vae_encoder"}


def test_regularisation_that_diverges_is_named(pictures):
    with pytest.raises(ParameterError, match="noise regularisation diverges.*regularize=False"):
        edit(pictures(replace(SETTINGS, ac=1e6)).system)


def test_a_long_prompt_is_not_repeated_whole(pictures):
    with pytest.warns(SfumatoWarning, match="cut off: 'blue .*…'"):
        result = edit(pictures().system, prompt="red " * 4 + "blue " * 10_000)
    assert len(result.warnings[0]) < 200


def test_pictures_of_other_sizes_are_resized_and_it_is_said(pictures):
    system = pictures().system
    tall = np.full((300, 100, 3), 90, np.uint8)
    with pytest.warns(SfumatoWarning, match="width 100 and height 300 was resized to 4 and 16"):
        assert edit(system, tall).image.shape == (16, 4, 3)
    with pytest.warns(SfumatoWarning, match="resized to 16 and 16"):
        assert edit(system, tall, official=True).image.shape == (16, 16, 3)
    with pytest.warns(SfumatoWarning, match="resized to 8 and 12"):
        result = edit(system, tall, size=(12, 8))
    assert result.original.shape == result.image.shape == (12, 8, 3)
    for size, words in {(12, 9): "multiples of 4", (64, 64): "at most 32", (0, 4): "need height and width"}.items():
        with pytest.raises(ParameterError, match=words):
            edit(system, tall, size=size)


def test_captions_too_long_are_cut_and_it_is_said(pictures):
    with pytest.warns(SfumatoWarning, match="cut off: 'blue blue'"):
        result = edit(pictures().system, prompt="red red red red blue blue")
    assert "cut off" in result.warnings[0]


def test_a_captioner_is_asked_where_there_is_no_prompt(pictures):
    system = pictures(captioner=lambda picture: "red apple").system
    assert edit(system, prompt=None).parameters["prompt"] == "red apple"
    with pytest.raises(PromptError, match=r"no captioner; say what the picture shows: pass prompt='red apple'"):
        edit(pictures().system, prompt=None)
    with pytest.raises(PromptError, match="needs a prompt"):
        pictures().system.generate(source_word="red", target_word="green")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": 1}, "nothing would change"),
        ({"guidance_scale": 0.3}, "nothing would change"),
        ({"guidance_scale": "5"}, "need a finite number"),
        ({"attention_guidance": -1}, "need 0 or more"),
        ({"attention_guidance": float("nan")}, "need a finite number"),
        ({"edit_multiplier": float("inf")}, "need a finite number"),
        ({"steps": 0}, "steps"),
        ({"steps": 2000}, "steps"),
        ({"steps": 2.5}, "need one whole number"),
        ({"steps": 2, "inversion": "official"}, "pass 3 or more"),
        ({"seed": "x"}, "need one whole number"),
        ({"inversion": "nulltext"}, "need official, diffusers or plain"),
        ({"posterior": "mean"}, "need 'sample' or 'mode'"),
        ({"kept": "caption"}, "need negative or shared"),
        ({"target_word": None}, "a source word and a target word"),
        ({"source_word": None, "target_word": None}, "neither was given"),
        ({"direction": "x.npz"}, "pass one or the other"),
    ],
)
def test_options_out_of_range_are_refused(pictures, options, words):
    made = pictures()
    with pytest.raises(ParameterError, match=words):
        edit(made.system, **options)
    assert not made.fake.engines  # before a network is opened


def test_unknown_options_are_refused(pictures):
    with pytest.raises(TypeError, match="no option is named 'strength'"):
        edit(pictures().system, strength=0.5)


def test_directions_of_another_encoder_or_width_are_refused(pictures):
    system = pictures().system
    own = system.direction("red", "green")
    for other, words in {
        Direction(own.delta, encoder="e" * 64): "was made with text encoder eeee",
        Direction(own.delta[:, :, :4].copy()): "6 tokens of width 4, the bundle's text encoder gives 6 of 8",
        Direction(own.delta[:, :3].copy()): "3 tokens of width 8",
    }.items():
        with pytest.raises(DirectionError, match=words):
            edit(system, source_word=None, target_word=None, direction=other)
    with pytest.raises(DirectionError, match="cannot be read"):
        edit(system, source_word=None, target_word=None, direction="nowhere.npz")


def test_words_that_are_none_and_pictures_that_are_none_are_refused(pictures):
    with pytest.raises(PromptError, match="the word is ''"):
        edit(pictures().system, source_word="")
    with pytest.raises(ImageError):
        edit(pictures().system, "missing.png")


def test_nan_in_the_gradient_is_told_with_its_step_and_tensor(pictures):
    def broken(x, *, t, **feeds):
        return 1.0, np.full_like(x, np.nan if t < 500 else 0)

    with pytest.raises(NonFiniteError) as caught:
        edit(pictures(guide=broken).system)
    assert (caught.value.network, caught.value.tensor) == ("unet_gradient", "gradient")
    assert caught.value.step == 2


def test_an_amount_that_diverges_is_told(pictures):
    with pytest.raises(ParameterError, match=r"attention guidance diverges at step .* pass a smaller one, such as"):
        edit(pictures().system, attention_guidance=1000.0)


def test_the_gradient_is_opened_once_and_only_where_it_is_needed(pictures):
    made = pictures()
    edit(made.system, attention_guidance=0.0)
    assert made.guides == []
    edit(made.system)
    edit(made.system)
    assert len(made.guides) == 1
    made.system.close()
    assert all(engine.closed for engine in made.fake.engines.values())


def test_bundles_that_cannot_are_refused(pictures):
    with pytest.raises(BundleError, match="no network 'unet_maps'.*sfumato export pix2pix-zero"):
        pictures(without=("unet_maps",))
    with pytest.raises(ManifestError, match=r"\$.settings.task: is 'class'"):
        pictures(task="class")
    decoding = pictures(without=("vae_encoder",)).system
    assert decoding.verbs == ("generate",)
    with pytest.raises(ParameterError, match="cannot edit"):
        edit(decoding)
    with pytest.raises(ParameterError, match="cannot inpaint"):
        decoding.inpaint(RED, RED)


def test_nothing_is_warned_of_where_all_was_done_as_asked(pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pictures().system as system:
            edit(system)
