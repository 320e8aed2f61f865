"""Latent diffusion over engines known in closed form: conditions, batches, seeds, masks, sizes, errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sfumato.errors import Cancelled, ManifestError, NonFiniteError, ParameterError, PromptError
from sfumato.runtime import image as pictures
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.systems.base import SfumatoWarning
from sfumato.runtime.systems.latent_run import RunNoise, batches

RED, GREEN = (0.8, -0.8, -0.8), (-0.8, 0.8, -0.8)


def level(colour: tuple[float, float, float]) -> np.ndarray:
    return np.array(colour) * 127.5 + 127.5


def mean(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddpm", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m", "unipc", "lcm"]
)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_prompt_leads_every_sampler_to_its_mean(fake: Any, sampler: str, prediction: str) -> None:
    edit = fake(prediction=prediction).system().generate("red apple", sampler=sampler, steps=20, seed=3)[0]
    assert edit.image.shape == (16, 16, 3) and edit.image.dtype == np.uint8
    assert np.abs(mean(edit.image) - level(RED)).max() < 12
    assert edit.latents is not None and edit.latents.shape == (4, 8, 8)
    assert edit.parameters["prompt"] == "red apple" and edit.parameters["sampler"] == sampler


def test_guidance_goes_beyond_the_prompt_and_away_from_the_negative_one(fake: Any) -> None:
    made = fake()
    system = made.system()
    plain = system.generate("red", guidance_scale=1)[0].latents
    assert made.engines["unet"].calls[-1]["x"][0] == 1
    guided = system.generate("red", guidance_scale=1.2, negative_prompt="green")[0].latents
    assert made.engines["unet"].calls[-1]["x"][0] == 2
    assert guided[0].mean() > plain[0].mean() + 0.2 and guided[1].mean() < plain[1].mean() - 0.2


def test_guidance_of_one_and_below_makes_the_same_as_none(fake: Any) -> None:
    made = fake()
    with pytest.warns(SfumatoWarning, match="negative prompt has no effect"):
        edit = made.system().generate("red", guidance_scale=0.5, negative_prompt="green")[0]
    assert "no effect" in edit.warnings[0]
    assert np.array_equal(edit.image, fake().system().generate("red", guidance_scale=1)[0].image)


def test_several_prompts_and_images_stand_in_order(fake: Any) -> None:
    edits = fake().system().generate(["red", "green"], num_images=2, steps=10)
    assert [edit.parameters["prompt"] for edit in edits] == ["red", "red", "green", "green"]
    assert [edit.parameters["image"] for edit in edits] == [0, 1, 2, 3]
    for edit, colour in zip(edits, (RED, RED, GREEN, GREEN), strict=True):
        assert np.abs(mean(edit.image) - level(colour)).max() < 12
    assert not np.array_equal(edits[0].image, edits[1].image)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("seed", [5, [5, 6, 7, 8, 9]])
def test_batch_size_does_not_change_the_pictures(fake: Any, eta: float, seed: Any) -> None:
    whole = fake().system().generate("red", num_images=5, seed=seed, eta=eta)
    made = fake()
    parts = made.system().generate("red", num_images=5, seed=seed, eta=eta, batch_size=2)
    assert {call["x"][0] for call in made.engines["unet"].calls} == {2, 1}
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.latents, b.latents, atol=1e-6)
    if isinstance(seed, list):
        alone = fake().system().generate("red", seed=7, eta=eta)[0]
        np.testing.assert_allclose(alone.latents, whole[2].latents, atol=1e-6)
        assert [edit.seed for edit in whole] == seed


def test_batches_keep_one_size_where_it_costs_little() -> None:
    assert [len(r) for r in batches(8, 4)] == [4, 4]
    assert [len(r) for r in batches(6, 4)] == [3, 3]
    assert [len(r) for r in batches(7, 4)] == [4, 3]
    for images, most in itertools.product(range(1, 30), range(1, 9)):
        parts = batches(images, most)
        assert [i for part in parts for i in part] == list(range(images)) and max(map(len, parts)) <= most


def test_the_first_noise_is_what_torch_draws(fake: Any) -> None:
    seen: list[np.ndarray] = []
    made = fake()
    system = made.system()
    engine = system.models.engine("unet")
    function = engine._function

    def spy(**feeds: np.ndarray) -> Any:
        seen.append(feeds["x"].copy())
        return function(**feeds)

    engine._function = spy
    system.generate("red", seed=11, num_images=2)
    assert np.array_equal(seen[0], TorchGenerator(11).randn((2, 4, 8, 8)))


def test_run_noise_of_a_batch_is_its_part_of_the_whole() -> None:
    whole = RunNoise(3, 5, range(5))
    part = RunNoise(3, 5, range(2, 4))
    for _ in range(2):
        assert np.array_equal(whole.randn((5, 3, 4))[2:4], part.randn((2, 3, 4)))
    assert np.array_equal(whole.shared((5, 3, 4))[0], part.shared((2, 3, 4))[1])


@pytest.mark.parametrize("conditioning", ["crossattn", "adm"])
def test_classes_condition_and_guide_with_the_null_class(fake: Any, conditioning: str) -> None:
    system = fake("class", conditioning=conditioning).system()
    edits = system.generate(label=[2, 7], steps=10)
    assert edits[1].latents[0].mean() - edits[0].latents[0].mean() == pytest.approx(0.5, abs=0.1)
    assert edits[0].parameters["label"] == 2
    low = system.generate(label=2, guidance_scale=2.0)[0].latents[0].mean()
    assert low == pytest.approx(0.2 + (0.2 - 1.0), abs=0.1)


def test_unconditional_layout_and_semantic_generate(fake: Any) -> None:
    assert fake("unconditional").system().generate(num_images=2)[1].parameters["image"] == 1
    layout = fake("layout").system().generate(tokens=[2, 4, 5, 6, 7, 3], steps=10)[0]
    assert np.abs(mean(layout.image) - level(RED)).max() < 12
    segmentation = np.zeros((16, 24), np.int64)
    segmentation[:, 12:] = 1
    edit = fake("semantic").system().generate(segmentation=segmentation, steps=10)[0]
    assert edit.image.shape == (16, 24, 3)
    assert edit.image[:, :12, 0].mean() > 200 and edit.image[:, 12:, 0].mean() < 60


def test_edit_keeps_more_the_lower_its_strength(fake: Any) -> None:
    picture = np.zeros((16, 20, 3), np.uint8)
    picture[..., 1] = 230
    distances = []
    for strength in (0.1, 0.5, 1.0):
        edit = fake().system().edit(picture, "red", strength=strength, steps=20)[0]
        assert edit.image.shape == picture.shape
        distances.append(np.abs(edit.image.astype(float) - picture).mean())
    assert distances == sorted(distances)


def test_edit_runs_the_share_of_steps_that_strength_says(fake: Any) -> None:
    made = fake()
    system = made.system()
    picture = np.full((16, 16, 3), 90, np.uint8)
    system.edit(picture, "red", strength=0.75, steps=20)
    assert len(made.engines["unet"].calls) == 15
    system.edit(picture, "red", strength=0.75, steps=20, official=True)
    assert len(made.engines["unet"].calls) == 30


def test_edit_draws_posterior_then_noise_as_diffusers_does(fake: Any) -> None:
    made = fake()
    system = made.system()
    picture = np.full((16, 16, 3), 90, np.uint8)
    starts: list[np.ndarray] = []
    function = system.models.engine("unet")._function
    system.models.engine("unet")._function = lambda **feeds: starts.append(feeds["x"].copy()) or function(**feeds)
    system.edit(picture, "red", strength=0.5, steps=4, seed=9, num_images=2)
    generator = TorchGenerator(9)
    x0 = pictures.to_float(picture)[..., ::2, ::2] / 0.5
    z = np.concatenate([x0, np.zeros_like(x0[:, :1])], axis=1)
    z = (z + np.exp(np.float32(-2.0)) * generator.randn((1, 4, 8, 8))) * 0.5
    t = int(made.schedule.timesteps(4)[2])
    expected = made.schedule.alpha(t) * z + made.schedule.sigma(t) * generator.randn((2, 4, 8, 8))
    np.testing.assert_allclose(starts[0], expected, atol=1e-5)
    modes = system.edit(picture, "red", strength=0.5, steps=4, posterior="mode", reconstruct=True)
    assert modes[0].reconstruction is not None and np.abs(modes[0].reconstruction.astype(int) - 90).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 30), (5, 64)])
def test_edit_takes_any_size_and_gives_it_back(fake: Any, shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 128, np.uint8)
    edit = fake().system().edit(picture, "red", strength=1.0, steps=10)[0]
    assert edit.image.shape == (*shape, 3)
    assert np.abs(mean(edit.image) - level(RED)).max() < 25
    assert fake().system().edit(picture, "red", size=(8, 12), steps=4)[0].image.shape == (8, 12, 3)


@pytest.mark.parametrize("task", ["text", "inpaint"])
@pytest.mark.parametrize("official", [False, True])
def test_inpaint_repaints_white_and_keeps_black(fake: Any, task: str, official: bool) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (18, 22, 3)).astype(np.uint8)
    mask = np.zeros((18, 22), np.uint8)
    mask[3:9, 4:13] = 255
    arguments = [] if task == "inpaint" else ["red"]
    edit = fake(task, scale_factor=1.0).system().inpaint(picture, mask, *arguments, steps=10, official=official)[0]
    kept = edit.image[mask == 0].astype(int) - picture[mask == 0]
    assert np.abs(kept).max() <= (1 if official else 0)
    hole = edit.image[4:8, 5:12].reshape(-1, 3).mean(axis=0)
    expected = level(RED) if task == "text" else level((-1.0, -1.0, -1.0))
    assert np.abs(hole - expected).max() < 25


def test_a_model_that_takes_mask_and_prompt_fills_the_hole_with_what_is_asked(fake: Any) -> None:
    """Stable Diffusion's inpainting models; the pictures themselves are held to diffusers' by the tests of export."""
    made = fake("inpaint", conditioning="hybrid", tokenizer="bert", max_tokens=6)
    system = made.system()
    assert system.verbs == ("inpaint",)
    picture, mask = np.full((16, 24, 3), 128, np.uint8), np.zeros((16, 24), np.bool_)
    picture[:, 12:], mask[4:12, 4:12] = (20, 30, 200), True
    for strength in (1.0, 0.8):
        edits = system.inpaint(picture, mask, ["red", "green"], steps=20, strength=strength, paste=False)
        for edit, colour in zip(edits, (RED, GREEN), strict=True):
            assert np.abs(mean(edit.image[mask]) - level(colour)).max() < 16
            assert np.abs(mean(edit.image[:, 12:]) - (20, 30, 200)).max() < 16
    assert made.engines["unet"].calls[-1]["x"] == (2, 9, 8, 12)
    guided = system.inpaint(picture, mask, "red", negative_prompt="blue", guidance_scale=1.1, seed=[5], steps=4)[0]
    assert made.engines["unet"].calls[-1]["x"][0] == 2 and guided.parameters["negative_prompt"] == "blue"
    with pytest.raises(ParameterError, match="no prompt was given"):
        system.inpaint(picture, mask)
    with pytest.raises(ParameterError, match="strength 0.01 of 20 steps leaves no step"):
        system.inpaint(picture, mask, "red", strength=0.01, steps=20)


def test_inpaint_without_paste_shows_the_decoded_picture(fake: Any) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    edit = fake(first_stage="vq").system().inpaint(picture, mask, "red", paste=False, steps=6)[0]
    blocks = picture.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(edit.image[4:].astype(float) - blocks[4:]).max() <= 1


def test_inpaint_says_when_there_is_nothing_to_repaint_or_the_mask_does_not_fit(fake: Any) -> None:
    picture = np.full((16, 16, 3), 77, np.uint8)
    with pytest.warns(SfumatoWarning, match="no white"):
        edit = fake().system().inpaint(picture, np.zeros((16, 16), np.uint8), "red", steps=2)[0]
    assert np.array_equal(edit.image, picture)
    with pytest.raises(ParameterError, match=r"mask is 8x16, the picture 16x16; give both one size"):
        fake().system().inpaint(picture, np.zeros((8, 16), np.uint8), "red")
    with pytest.raises(ParameterError, match="starts from noise"):
        fake("inpaint").system().inpaint(picture, np.zeros((16, 16), np.uint8), strength=0.5)


def test_upscale_gives_factor_times_the_size(fake: Any) -> None:
    picture = np.zeros((7, 9, 3), np.uint8)
    picture[:, 4:] = 200
    edit = fake("upscale").system().upscale(picture, steps=10)[0]
    assert edit.image.shape == (14, 18, 3)
    assert edit.image[:, 10:].mean() > 180 and edit.image[:, :6].mean() < 30


def test_large_pictures_are_tiled_and_come_out_whole(fake: Any) -> None:
    made = fake(most=8)
    picture = np.full((40, 52, 3), 60, np.uint8)
    edit = made.system().edit(picture, "red", strength=1.0, steps=10)[0]
    assert edit.image.shape == picture.shape and np.abs(mean(edit.image) - level(RED)).max() < 25
    assert max(call["x"][2] for call in made.engines["unet"].calls) == 8
    with pytest.raises(ParameterError, match="takes at most 16 at once; use a smaller one, or pass tile=8"):
        made.system().generate("red", size=(32, 32))
    assert made.system().generate("red", size=(32, 32), tile=8)[0].image.shape == (32, 32, 3)
    with pytest.raises(ParameterError, match="at most 16 at once"):
        made.system().edit(picture, "red", tile=0)
    with pytest.raises(ParameterError, match="tile is 9"):
        made.system().edit(picture, "red", tile=9)


def test_the_progress_of_a_call_can_be_seen_previewed_and_stopped(fake: Any) -> None:
    system = fake().system()
    steps: list[tuple[int, int, range]] = []
    shown: list[np.ndarray] = []

    def watch(step: Any) -> Any:
        steps.append((step.index, step.total, step.images))
        shown.append(step.preview())
        assert step.decode().shape == (2, 16, 16, 3)

    edits = system.generate("red", num_images=4, batch_size=2, steps=3, on_step=watch)
    assert [s[:2] for s in steps] == [(i, 6) for i in range(6)] and steps[-1][2] == range(2, 4)
    assert shown[-1].shape == (2, 8, 8, 3)
    assert np.abs(shown[-1][1].astype(float) - edits[3].image[::2, ::2]).max() <= 8
    with pytest.raises(Cancelled):
        system.generate("red", on_step=lambda step: step.index < 2)
    with pytest.raises(KeyboardInterrupt):
        system.generate("red", on_step=_interrupt)


def _interrupt(step: Any) -> None:
    raise KeyboardInterrupt


def test_timings_count_every_network_and_the_whole(fake: Any) -> None:
    edits = fake().system().generate("red", guidance_scale=2.0, steps=5, num_images=2)
    timings = edits[1].timings
    assert {name: stage["calls"] for name, stage in timings.items()} == {
        "text_encoder": 2,
        "unet": 5,
        "vae_decoder": 1,
        "total": 1,
    }
    for stage in timings.values():
        assert stage["total"] == pytest.approx(stage["mean"] * stage["calls"]) and stage["std"] >= 0
    assert timings["total"]["total"] >= timings["unet"]["total"]


def test_prompts_may_be_empty_long_or_of_any_script(fake: Any) -> None:
    system = fake().system()
    assert system.generate("", steps=2)[0].warnings == ()
    assert system.generate("  ", steps=2)[0].warnings == ()
    assert system.generate("リンゴ große", steps=2)[0].parameters["prompt"] == "リンゴ große"
    with pytest.warns(SfumatoWarning, match="vocabulary does not have '🍎', 'pear'; say it in words"):
        assert system.generate("red 🍎 pear 🍎", steps=2)[0].parameters["prompt"] == "red 🍎 pear 🍎"
    with pytest.warns(SfumatoWarning, match="more than the 6 tokens that the bundle takes; cut off: 'apple blue'"):
        edit = system.generate("red green blue red apple blue", steps=2)[0]
    assert "cut off" in edit.warnings[0]
    for prompt in (7, b"red", "\ud800", [["red"]], ["red", None]):
        with pytest.raises((PromptError, ParameterError)):
            system.generate(prompt)  # type: ignore[arg-type]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps is 0, the schedule has 1000 timesteps; pass 1 to 1000"),
    ({"steps": 10_000}, "steps is 10000"),
    ({"steps": 2.5}, "need a whole number"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": -1}, "guidance_scale is -1"),
    ({"eta": 2}, "eta is 2"),
    ({"eta": 0.5, "sampler": "plms"}, "takes no eta"),
    ({"sampler": "ddimm"}, "no sampler is named 'ddimm'"),
    ({"spacing": "odd"}, "no spacing is named 'odd'"),
    ({"seed": "x"}, "seed is 'x'"),
    ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
    ({"num_images": 0}, "num_images is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"tile": -1}, "tile is -1"),
    ({"size": (15, 16)}, "the bundle makes multiples of 4; use height 16 and width 16"),
    ({"size": 16}, "need height and width"),
    ({"size": (16, -4)}, "need height and width"),
    ({"size": (100_000, 100_000)}, "more than 64000000 pixels"),
    ({"label": 3}, "the bundle's task is 'text' and a label was given; pass prompt"),
    ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(options) for options, _ in BAD])
def test_a_bad_option_is_refused_before_any_network_runs(fake: Any, options: dict[str, Any], message: str) -> None:
    made = fake()
    with pytest.raises(ParameterError, match=message.replace("(", r"\(")):
        made.system().generate("red", **options)
    assert "unet" not in made.engines


def test_an_unknown_option_is_a_type_error(fake: Any) -> None:
    with pytest.raises(TypeError, match="no option is named 'stepz'"):
        fake().system().generate("red", stepz=3)


@pytest.mark.parametrize("amount", [0, -1, 1.5, float("nan"), "much", 0.01])
def test_a_bad_strength_is_refused(fake: Any, amount: Any) -> None:
    with pytest.raises(ParameterError, match="strength"):
        fake().system().edit(np.zeros((16, 16, 3), np.uint8), "red", strength=amount)


def test_a_verb_that_the_bundle_cannot_do_says_which_it_can(fake: Any) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    assert fake().system().verbs == ("generate", "edit", "inpaint")
    with pytest.raises(ParameterError, match="cannot upscale .*it can generate, edit, inpaint"):
        fake().system().upscale(picture)
    with pytest.raises(ParameterError, match="cannot generate .its task is 'upscale'.; it can upscale"):
        fake("upscale").system().generate()
    with pytest.raises(ParameterError, match="no 'vae_encoder'"):
        fake(without=("vae_encoder",)).system().edit(picture, "red")
    with pytest.raises(ParameterError, match="no unconditional counterpart|unconditional counterpart"):
        fake("unconditional").system().generate(guidance_scale=3)
    with pytest.raises(ParameterError, match="no prompt was given"):
        fake().system().generate()
    for label in (-1, 11, 1.5, True):
        with pytest.raises(ParameterError, match="label is .*, need a whole number, 0 to 10"):
            fake("class").system().generate(label=label)


def test_a_segmentation_says_its_size_itself(fake: Any) -> None:
    system = fake("semantic").system()
    classes = np.zeros((16, 24), np.int64)
    assert system.generate(segmentation=classes, size=(16, 24), steps=2)[0].image.shape == (16, 24, 3)
    with pytest.raises(ParameterError, match="size is height 16 and width 16, the segmentation 16x24; leave size out"):
        system.generate(segmentation=classes, size=(16, 16))
    for segmentation in ([[1, 2], [3]], 3, np.zeros((2, 3, 16, 16), np.float32)):
        with pytest.raises(ParameterError, match="segmentation"):
            system.generate(segmentation=segmentation)


def test_the_size_of_a_tile_is_among_the_parameters(fake: Any) -> None:
    system = fake().system()
    assert "tile" not in system.generate("red", steps=2)[0].parameters
    assert system.generate("red", steps=2, tile=4)[0].parameters["tile"] == 4


def test_a_decoder_of_another_factor_than_the_settings_say_is_told(fake: Any) -> None:
    made = fake()
    made._vae_decoder = lambda z: {"image": z[:, :3].repeat(4, axis=2).repeat(4, axis=3)}
    with pytest.raises(ManifestError, match=r"\$.settings.factor: is 2, but 'vae_decoder' makes \(3, 32, 32\)"):
        made.system().generate("red", steps=2)


def test_nan_names_the_network(fake: Any) -> None:
    with pytest.raises(NonFiniteError, match="unet: 'prediction' is not finite at step 0"):
        fake(broken="unet").system().generate("red")
    with pytest.raises(NonFiniteError, match="vae_decoder: 'image' is not finite;"):
        fake(broken="vae_decoder").system().generate("red")


def test_same_parameters_write_identical_files(fake: Any, tmp_path: Any) -> None:
    for name in ("a.png", "b.png"):
        fake().system().generate("red", seed=1)[0].save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert pictures.read_parameters(tmp_path / "a.png")["seed"] == 1


def test_closing_closes_what_was_opened(fake: Any) -> None:
    made = fake()
    with made.system() as system:
        system.generate("red", steps=2)
    assert made.engines and all(engine.closed for engine in made.engines.values())
