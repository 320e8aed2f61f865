"""Samplers against diffusers: the same fake network, the same lists, the same random stream, the same pictures."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.runtime.denoiser import FunctionDenoiser
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import make_sampler, sample
from sfumato.runtime.schedule import Schedule

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [
    # NumPy 2 inside diffusers; its own notice about a default that changes nothing here.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 8, 8)
STEPS = [1, 2, 3, 5, 10, 20, 33, 50]


def network(x, t, lib):
    """A smooth stand-in for a network, the same in NumPy and torch."""
    return 0.8 * lib.sin(1.3 * x + 0.002 * t) + 0.1 * x


def theirs(scheduler, start, seed):
    """diffusers' pipeline loop from x at the first timestep, in the variance-preserving scale."""
    generator = torch.Generator().manual_seed(seed)
    ratio = getattr(scheduler, "sigmas", None)
    scaled = hasattr(scheduler, "is_scale_input_called") or isinstance(scheduler, diffusers.HeunDiscreteScheduler)
    x = torch.from_numpy(start)
    if scaled:
        x = x * (ratio[0] ** 2 + 1) ** 0.5
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(output, t, x, **({"generator": generator} if takes_generator else {})).prev_sample
    return x.numpy()


def ours(name, scheduler, times, start, seed, prediction="eps", whole=False, **options):
    schedule = Schedule(scheduler.alphas_cumprod.double().numpy())
    denoiser = FunctionDenoiser(
        lambda x, t: network(x, round(t) if whole else t, np).astype(np.float32), schedule, prediction
    )
    sampler = make_sampler(name, schedule, **options)
    return sample(denoiser, sampler, start, times, rng=TorchGenerator(seed))


def start_from(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def agree(actual, expected):
    # Their coefficients are float32 differences of nearly equal numbers; ours are float64.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def listed(scheduler, steps, **options):
    schedule = Schedule(scheduler.alphas_cumprod.double().numpy())
    return schedule.timesteps(steps, **options)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("eta", "to_one"), [(0.0, False), (0.0, True), (0.5, False), (1.0, True)])
def test_ddim(steps, spacing, eta, to_one):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    start = start_from(steps)
    generator = torch.Generator().manual_seed(steps)
    x = torch.from_numpy(start)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t), torch), t, x, eta=eta, generator=generator).prev_sample
    times = listed(scheduler, steps, spacing=spacing)
    options = {"eta": eta, "final": -1 if to_one else 0, "stride": 1000 // steps}
    agree(ours("ddim", scheduler, times, start, steps, **options), x.numpy())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_parametrisations(kind):
    prediction = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[kind]
    for name, scheduler in {
        "ddim": diffusers.DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False, steps_offset=1),
        "ddpm": diffusers.DDPMScheduler(**BETAS, prediction_type=kind, clip_sample=False, steps_offset=1),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=kind),
        "unipc": diffusers.UniPCMultistepScheduler(**BETAS, prediction_type=kind),
    }.items():
        scheduler.set_timesteps(20)
        times = scheduler.timesteps.numpy()
        start = start_from(3)
        agree(ours(name, scheduler, times, start, 5, prediction), theirs(scheduler, start, 5))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(steps, spacing, variance):
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, variance_type=f"fixed_{variance}", timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    times = listed(scheduler, steps, spacing=spacing, offset=0)
    start = start_from(steps)
    actual = ours("ddpm", scheduler, times, start, 9, variance=variance)
    if times[-1] > 0:  # theirs then draws noise of variance 1e-20 (small) or beta (large) into the clean picture
        if variance == "large":
            return
        np.testing.assert_allclose(actual, theirs(scheduler, start, 9), atol=1e-3)
    else:
        agree(actual, theirs(scheduler, start, 9))


@pytest.mark.parametrize("steps", [s for s in STEPS if s > 1])
def test_plms(steps):
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    times = listed(scheduler, steps)
    start = start_from(steps)
    agree(ours("plms", scheduler, times, start, 0, final=0, stride=1000 // steps), theirs(scheduler, start, 0))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "heun"])
def test_euler_family(steps, spacing, name):
    kind = {
        "euler": diffusers.EulerDiscreteScheduler,
        "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
    }[name]
    scheduler = kind(**BETAS, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    times = listed(scheduler, steps, spacing=spacing, fractional=True)
    if spacing == "linspace" and steps == 1:
        assert times[0] == 0
    start = start_from(steps)
    agree(ours(name, scheduler, times, start, 4), theirs(scheduler, start, 4))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_multistep_family(steps, spacing, name):
    kind = {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}[name]
    scheduler = kind(**BETAS, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    times = listed(scheduler, steps, spacing=spacing, drop_last=int(spacing != "trailing"))
    start = start_from(steps)
    agree(ours(name, scheduler, times, start, 4), theirs(scheduler, start, 4))


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_unipc_of_order_3(steps):
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_order=3)
    scheduler.set_timesteps(steps)
    start = start_from(steps)
    agree(ours("unipc", scheduler, scheduler.timesteps.numpy(), start, 4, order=3), theirs(scheduler, start, 4))


@pytest.mark.parametrize("steps", [s for s in STEPS if s > 1])
def test_karras_steps_of_dpm_solver(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    start = start_from(steps)
    expected = theirs(scheduler, start, 4)
    agree(ours("dpmpp_2m", scheduler, listed(scheduler, steps, spacing="karras"), start, 4, whole=True), expected)
    ends = listed(scheduler, steps, spacing="linspace")
    agree(ours("dpmpp_2m", scheduler, ends, start, 4, whole=True, karras=True), expected)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm(steps):
    scheduler = diffusers.LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    start = start_from(steps)
    agree(ours("lcm", scheduler, listed(scheduler, steps, spacing="lcm"), start, 4), theirs(scheduler, start, 4))
