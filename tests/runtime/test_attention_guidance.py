"""Cross-attention guidance: the official edit step by step, what may be left out, and refusals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from p2p import NAMES, SCHEDULE, close

from sfumato.errors import Cancelled, NonFiniteError, ParameterError
from sfumato.runtime.attention_guidance import AttentionEdit
from sfumato.runtime.sampler import DDIM, DDPM, sample


@pytest.fixture(scope="module")
def torch_engines(goldens):
    pytest.importorskip("diffusers")
    import p2p_torch

    unet = p2p_torch.unet(goldens)
    return lambda: (p2p_torch.TorchEngine(unet), p2p_torch.TorchEngine(unet, maps=True))


def steps_of(edit, x, timesteps):
    seen = []

    def look(step):
        arrays = {
            name: getattr(step, name).copy() for name in ("reference", "x", "before", "after") if hasattr(step, name)
        }
        gradient = None if step.gradient is None else step.gradient.copy()
        seen.append(SimpleNamespace(t=step.t, loss=step.loss, gradient=gradient, **arrays))

    return edit.run(x, timesteps, DDIM(SCHEDULE, final=0), on_step=look), seen


def test_one_guidance_step_is_the_authors(goldens, torch_engines):
    g = goldens("p2p_guidance_step.npz")
    _, maps = torch_engines()
    t = np.full(2, g["t"], np.float32)
    outputs = maps(x=g["x_ref"], t=t, context=g["embeds_ref"])
    found = [outputs[f"map_{i:02}"] for i in range(4)]
    for name, array in zip(NAMES, found, strict=True):
        assert close(array.reshape(-1, *array.shape[2:]), g[f"ref__{name}"])
    references = {f"reference_{i:02}": array.copy() for i, array in enumerate(found)}
    loss, gradient = maps.guide(g["x"], t=float(g["t"]), context=g["embeds_edit"], **references)
    assert loss == pytest.approx(float(g["loss"]), rel=1e-4)
    assert close(gradient, g["grad"], 1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_the_official_edit_step_by_step(goldens, torch_engines, apart):
    g = goldens("p2p_edit_real.npz")
    unet, maps = torch_engines()
    context = np.repeat(g["cond"], 2, axis=0)  # the negative prompt is the caption
    edit = AttentionEdit(unet, maps, unet.guide, SCHEDULE, context=context, delta=g["direction"], apart=apart)
    (reference, edited), seen = steps_of(edit, g["x_in"], g["real__t"])
    for k, step in enumerate(seen):
        assert step.t == g["real__t"][k]
        assert close(step.before, g["real__xin_before"][k])
        assert step.loss == pytest.approx(float(g["real__loss"][k]), rel=1e-3)
        assert close(step.gradient, g["real__grad"][k], 3e-3)
        assert close(step.after, g["real__xin_after"][k])
        assert close(step.reference, g["real__ref_x"][k + 1])
    assert close(reference, g["real__ref_x"][-1])
    assert set(maps.calls) == {1}  # negative and caption are equal, so the reference runs one row
    assert set(unet.calls) == {1 if apart else 2}


def test_the_first_gradient_of_the_negative_copy_is_zero(goldens):
    g = goldens("p2p_edit_real.npz")["real__grad"]
    assert np.abs(g[0, 0]).max() == 0
    calls = []

    def count(x, **feeds):
        calls.append(len(x))
        return pull(x, **feeds)

    _, seen = steps_of(small(guide=count, apart=True), START, TIMES[:2])
    assert calls == [1, 1, 1]
    assert not seen[0].gradient[0].any()
    assert seen[0].gradient[1].any() or seen[1].gradient[1].any()


# --- engines of a few lines ------------------------------------------------------------------------------------


class Small:
    """A UNet of no weights: the prediction mixes x and context; its one map is a softmax over both."""

    def __init__(self, maps=False, broken=""):
        self.spec = SimpleNamespace(name="unet_maps" if maps else "unet")
        self.maps, self.broken, self.count = maps, broken, 0

    def __call__(self, *, x, t, context):
        self.count += 1
        tone = context.mean(axis=(1, 2), dtype=np.float32)[:, None, None, None]
        prediction = (0.3 * x + tone + 1e-4 * t[:, None, None, None]).astype(np.float32)
        if self.broken == "prediction" and self.count == 3:
            prediction[:] = np.nan
        found = {"prediction": prediction}
        if self.maps:
            found["map_00"] = np.repeat(x[:, :1].reshape(len(x), 1, -1, 1), 3, axis=3)
        return found


def pull(x, *, t, context, reference_00):
    """The gradient of ||x - reference||² / rows on the first channel."""
    gradient = np.zeros_like(x)
    difference = x[:, 0] - reference_00[:, 0, :, 0].reshape(x[:, 0].shape)
    gradient[:, 0] = 2 * difference / len(x)
    return float((difference**2).sum() / len(x)), gradient


def small(context=None, delta=0.5, guide=pull, maps=None, unet=None, **options):
    rng = np.random.default_rng(0)
    if context is None:
        context = np.repeat(rng.standard_normal((1, 3, 4)).astype(np.float32), 2, axis=0)
    step = np.full((1, 3, 4), delta, np.float32)
    engines = unet or Small(), maps or Small(maps=True)
    return AttentionEdit(*engines, guide, SCHEDULE, context=context, delta=step, **options)


START = np.random.default_rng(1).standard_normal((1, 4, 4, 4)).astype(np.float32)
TIMES = SCHEDULE.timesteps(6)


def test_without_a_direction_the_edit_is_the_reference():
    reference, edited = small(delta=0.0).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert np.allclose(reference, edited, atol=1e-5)


def test_the_reference_is_plain_sampling_and_the_start_is_left_alone():
    from sfumato.runtime.denoiser import FunctionDenoiser

    context = np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32)
    unet, before = Small(), START.copy()

    def guided(x, t):
        rows = unet(x=np.repeat(x, 2, axis=0), t=np.full(2, t, np.float32), context=context)["prediction"]
        return rows[:1] + 5 * (rows[1:] - rows[:1])

    wanted = sample(FunctionDenoiser(guided, SCHEDULE), DDIM(SCHEDULE, final=0), START, TIMES)
    reference, _ = small(context).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert np.allclose(reference, wanted, atol=1e-5)
    assert np.array_equal(START, before)


def test_guidance_keeps_the_edit_nearer_to_the_reference_where_its_maps_look():
    gaps = []
    for amount in (0.0, 0.1, 0.3):
        reference, edited = small(amount=amount).run(START, TIMES, DDIM(SCHEDULE, final=0))
        gaps.append(np.abs(reference - edited)[:, 0].mean())
    assert gaps[0] > gaps[1] > gaps[2] > 0


class Lean(Small):
    """Both networks in one, whose outputs are written again by its next call, as an engine's are."""

    def __init__(self):
        super().__init__(maps=True)
        self.own, self.rows = {}, set()

    def __call__(self, **feeds):
        self.rows.add(len(feeds["x"]))
        for name, array in super().__call__(**feeds).items():
            self.own.setdefault(name, np.empty_like(array))[...] = array
        return dict(self.own)


@pytest.mark.parametrize("alike", [True, False])
def test_one_network_of_one_size_does_for_both(alike):
    context = None if alike else np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32)
    lean = Lean()
    one = small(context, unet=lean, maps=lean, apart=True).run(START, TIMES, DDIM(SCHEDULE, final=0))
    two = small(context).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert lean.rows == {1 if alike else 2}
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_apart_give_the_same_edit():
    context = np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32)
    one = small(context, apart=False).run(START, TIMES, DDIM(SCHEDULE, final=0))
    two = small(context, apart=True).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))


def test_a_shared_latent_is_another_edit():
    one = small(kept="negative").run(START, TIMES, DDIM(SCHEDULE, final=0))
    two = small(kept="shared").run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert np.allclose(one[0], two[0])
    assert not np.allclose(one[1], two[1], atol=1e-3)


def test_a_network_that_predicts_v_is_converted_after_mixing():
    """As diffusers does: guidance on the outputs, then the noise of the kept copy."""
    edit = small(prediction="v", amount=0.0)
    _, seen = steps_of(edit, START, TIMES[:1])
    alpha, sigma = SCHEDULE.alpha(TIMES[0]), SCHEDULE.sigma(TIMES[0])
    rows = Small()(x=seen[0].after, t=np.full(2, TIMES[0], np.float32), context=edit._edited)["prediction"]
    v = rows[:1] + 5 * (rows[1:] - rows[:1])
    eps, x0 = alpha * v + sigma * START, alpha * START - sigma * v
    s = 0
    assert np.allclose(seen[0].x, SCHEDULE.alpha(s) * x0 + SCHEDULE.sigma(s) * eps, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 1.0}, "nothing would change"),
        ({"scale": 0.5}, "nothing would change"),
        ({"scale": np.nan}, "guidance scale is nan"),
        ({"amount": -0.1}, "need 0 or more"),
        ({"amount": np.inf}, "need 0 or more"),
        ({"kept": "caption"}, "need negative or shared"),
        ({"guide": None}, "there is no gradient"),
        ({"context": np.zeros((3, 3, 4), np.float32)}, "negative first"),
        ({"context": np.zeros((2, 5, 4), np.float32)}, "negative first"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ParameterError, match=words):
        small(**options)


def test_without_an_amount_no_gradient_is_needed():
    reference, edited = small(guide=None, amount=0.0).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert not np.allclose(reference, edited)


def test_starts_and_samplers_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="edit pictures one by one"):
        small().run(np.repeat(START, 2, axis=0), TIMES, DDIM(SCHEDULE))
    with pytest.raises(ParameterError, match="float64"):
        small().run(START.astype(np.float64), TIMES, DDIM(SCHEDULE))
    for sampler in (DDPM(SCHEDULE), DDIM(SCHEDULE, eta=0.5)):
        with pytest.raises(ParameterError, match="adds noise"):
            small().run(START, TIMES, sampler)


def test_nan_in_the_gradient_is_told_with_its_step_and_tensor():
    calls = []

    def broken(x, **feeds):
        calls.append(feeds["t"])
        loss, gradient = pull(x, **feeds)
        return loss, gradient * (np.nan if len(calls) == 3 else 1)

    with pytest.raises(NonFiniteError) as caught:
        small(guide=broken).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert (caught.value.network, caught.value.step, caught.value.tensor) == ("unet_gradient", 2, "gradient")


@pytest.mark.parametrize(("which", "name"), [("unet", "unet"), ("maps", "unet_maps")])
def test_nan_in_a_prediction_is_told_with_its_step_and_network(which, name):
    engine = Small(maps=which == "maps", broken="prediction")
    with pytest.raises(NonFiniteError) as caught:
        small(**{which: engine}).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert (caught.value.network, caught.value.step, caught.value.tensor) == (name, 2, "prediction")


def test_an_amount_that_diverges_is_told_with_a_smaller_one():
    with pytest.raises(ParameterError, match=r"diverges at step \d \(t = \d+\): with an amount of 100 .* such as"):
        small(amount=100.0).run(START, TIMES, DDIM(SCHEDULE, final=0))


def test_numbers_beyond_reason_are_told_in_short():
    with pytest.raises(ParameterError, match="diverges") as caught:
        small(amount=1e38).run(START, TIMES, DDIM(SCHEDULE, final=0))
    assert len(str(caught.value)) < 250
    with pytest.raises(ParameterError, match=r"is 1e\+39, need 0 or more that float32 holds"):
        small(amount=1e39)


@pytest.mark.parametrize("apart", [False, True])
def test_maps_of_the_reference_are_fed_without_being_copied_anew(apart):
    places = []

    def look(x, *, reference_00, **feeds):
        places.append((reference_00.ctypes.data, reference_00.shape))
        first = reference_00[:1]
        assert all(np.array_equal(row, first[0]) for row in reference_00)
        return pull(x, reference_00=reference_00, **feeds)

    lean = Lean()  # its outputs stay where they are
    edit = small(guide=look, maps=lean, apart=apart)
    for start in (START, START, np.ascontiguousarray(START[..., :2])):
        edit.run(start, TIMES, DDIM(SCHEDULE, final=0))
        lean.own.clear()
    calls = len(places) // 3
    for run in range(3):
        assert len(set(places[run * calls : (run + 1) * calls])) == 1
    assert apart or places[0] == places[calls]


def test_on_step_can_stop_the_run():
    with pytest.raises(Cancelled, match="after step 1 of 6"):
        small().run(START, TIMES, DDIM(SCHEDULE, final=0), on_step=lambda step: False)
