"""Restoration: official trajectories replayed, and properties of both algorithms."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import Cancelled, NonFiniteError, ParameterError
from sfumato.runtime.degradation import Chain, degrade
from sfumato.runtime.degradations import Blur, Decolor, HotNoise, Inpaint, Snow
from sfumato.runtime.restoration import restore

ALGORITHMS = {"default": 1, "x0_step_down": 2}
BLURS = {"Exponential_reflect": (7, 0.2), "Constant": (5, 1.0)}


class Replay:
    """Answers as the official network did, and remembers what it was asked."""

    def __init__(self, outputs) -> None:
        self.outputs, self.inputs, self.indices = list(outputs), [], []

    def __call__(self, x, index):
        self.inputs.append(x.copy())
        self.indices.append(index)
        return self.outputs[len(self.inputs) - 1]


class Fake:
    """Some smooth function of picture, channel and index."""

    def __call__(self, x, index):
        tint = 0.1 * np.arange(x.shape[1])[:, None, None]
        return (0.8 * np.roll(x, 1, axis=-1) + tint + 0.05 * (index + 1)).astype(np.float32)


def close(result, reference) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def replayed(data, prefix, degradation, x_t, *, algorithm=2):
    """A restoration on the official network's answers, its inputs compared with the official ones."""
    network = Replay(data[f"{prefix}net_out"])
    result = restore(network, degradation, x_t, algorithm=algorithm, keep=True)
    close(network.inputs, data[f"{prefix}net_in"])
    assert network.indices == data[f"{prefix}net_t"][:, 0].tolist()
    close(result.direct, data[f"{prefix}direct"])
    close(result.image, data[f"{prefix}out"])
    return result


@pytest.mark.parametrize("routine", BLURS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_deblurring_follows_the_official_trajectories(goldens, name, routine) -> None:
    data = goldens("cold_blur_traj.npz")
    blur, prefix = Blur(int(data["T"]), routine, *BLURS[routine]), f"{name}__{routine}__"
    x_t = degrade(blur, data["x"])
    close(x_t, data[f"{prefix}xt"])
    result = replayed(data, prefix, blur, x_t, algorithm=ALGORITHMS[name])
    predictions, seen = result.series()
    close(predictions, data[f"{prefix}all_X0s"])
    close(seen, data[f"{prefix}all_Xts"])


@pytest.mark.parametrize("variant", ["Incremental__float", "Incremental__discrete", "Random_Incremental__float"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_inpainting_follows_the_official_trajectories(goldens, name, variant) -> None:
    data, prefix = goldens("cold_inpaint_traj.npz"), f"{name}__{variant}__"
    routine, kind = variant.split("__")
    offsets = None
    if routine == "Random_Incremental":
        offsets = np.stack([data[f"{prefix}rand_x"], data[f"{prefix}rand_y"]], axis=1)
    inpaint = Inpaint(6, 32, routine, 0.8, 1, offsets)
    x_t = degrade(inpaint, data["x"], quantised=kind == "discrete")
    close(x_t, data[f"{prefix}xt"])
    replayed(data, prefix, inpaint, x_t, algorithm=ALGORITHMS[name])


def test_hot_diffusion_follows_the_official_trajectories(goldens) -> None:
    data = goldens("cold_noise.npz")
    replayed(data, "sample_", HotNoise(6), data["sample_net_in"][0])
    replayed(data, "gen_ddim_", HotNoise(6), data["x_end"])
    replayed(data, "gen_x0_step_down_", HotNoise(6, data["x_end"]), data["x_end"])


@pytest.mark.parametrize("algorithm", [1, 2])
def test_a_perfect_network_restores_the_picture(goldens, algorithm) -> None:
    x = goldens("cold_images.npz")["img"]
    for degradation in (Blur(6, "Constant", 5, 1.0), Inpaint(6, 32, std=0.8, first=1), Snow(6, (32, 32), 2)):
        for t in (0, 1, 4, 6):
            x_t = degrade(degradation, x, t)
            result = restore(lambda x_t, index: x, degradation, x_t, t=t, algorithm=algorithm)
            np.testing.assert_allclose(result.image, x, rtol=0, atol=2e-6)


def test_algorithm_2_is_exact_for_any_network_where_the_degradation_is_linear_in_t(goldens) -> None:
    x = goldens("cold_images.npz")["img"]
    slope = np.float32(0.25) * x[:, ::-1].copy()
    chain = Chain([lambda x: x + slope] * 5)
    x_t = degrade(chain, x)
    np.testing.assert_allclose(restore(Fake(), chain, x_t).image, x, rtol=0, atol=1e-5)
    assert np.abs(restore(Fake(), chain, x_t, algorithm=1).image - x).max() > 0.1


@pytest.mark.parametrize(
    "degradation", [Snow(6, (32, 32), 1), Decolor(6, "Linear", total=True)], ids=["snow", "decolor"]
)
@pytest.mark.parametrize("algorithm", [1, 2])
def test_the_official_numbering_is_one_degradation_behind(goldens, degradation, algorithm) -> None:
    x = goldens("cold_images.npz")["img"]
    x_t, network = degrade(degradation, x), Fake()
    current = x_t
    for index in (5, 4, 3, 2, 1, 0):  # the index is taken for the number of degradations
        x0 = network(current, index)
        if algorithm == 1:
            current = degradation(x0, max(index - 1, 0))
        elif index:
            current = current - degradation(x0, index) + degradation(x0, index - 1)
    result = restore(network, degradation, x_t, algorithm=algorithm, official=True, keep=True)
    close(result.image, current)
    if algorithm == 2:  # the last call changes nothing
        np.testing.assert_array_equal(result.stages[-1].x, result.stages[-1].x_t)
    assert np.abs(restore(network, degradation, x_t, algorithm=algorithm).image - current).max() > 0.01


def test_stages_are_kept_though_a_network_reuses_its_output(goldens) -> None:
    x, blur = goldens("cold_images.npz")["img"], Blur(4, "Constant", 5, 1.0)
    buffer, own = np.empty_like(x), Fake()

    def network(x, index):
        buffer[:] = own(x, index)
        return buffer

    x_t = degrade(blur, x)
    before = x_t.copy()
    for algorithm in (1, 2):
        reused = restore(network, blur, x_t, algorithm=algorithm, keep=True)
        fresh = restore(own, blur, x_t, algorithm=algorithm, keep=True)
        for a, b in zip(sum(reused.series(), []), sum(fresh.series(), []), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(reused.direct, fresh.stages[0].x0)
    np.testing.assert_array_equal(x_t, before)


def test_severity_zero_asks_nothing(goldens) -> None:
    x = goldens("cold_images.npz")["img"]
    network = Replay([])
    np.testing.assert_array_equal(restore(network, Blur(4), x, t=0).image, x)
    assert network.inputs == []


def test_a_run_can_be_watched_and_stopped(goldens) -> None:
    x, seen = goldens("cold_images.npz")["img"], []
    restore(Fake(), Blur(4), x, t=3, on_step=lambda stage: seen.append(stage.t))
    assert seen == [3, 2, 1]
    with pytest.raises(Cancelled, match="after call 2 of 4"):
        restore(Fake(), Blur(4), x, on_step=lambda stage: stage.t > 3)


def test_what_cannot_be_restored_is_refused(goldens) -> None:
    x = goldens("cold_images.npz")["img"]
    with pytest.raises(ParameterError, match="severity is 5"):
        restore(Fake(), Blur(4), x, t=5)
    with pytest.raises(ParameterError, match="the paper has 1 and 2"):
        restore(Fake(), Blur(4), x, algorithm=3)
    with pytest.raises(ParameterError, match=r"made \(2, 1, 32, 32\)"):
        restore(lambda x, index: x[:, :1], Blur(4), x)
    with pytest.raises(ParameterError, match="keep=True"):
        restore(Fake(), Blur(4), x).series()
    with pytest.raises(NonFiniteError, match="'x0' is not finite at step 0"):
        restore(lambda x, index: x * np.float32(np.nan), Blur(4), x)
