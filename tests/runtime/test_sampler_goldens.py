"""Samplers against runs of the official code: Latent Diffusion's DDIM and PLMS, guided-diffusion's DDPM and DDIM."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sfumato.runtime.blend import MaskBlend
from sfumato.runtime.denoiser import FunctionDenoiser, Prediction
from sfumato.runtime.guidance import ClassifierFree
from sfumato.runtime.projection import ClipX0, QuantizeX0
from sfumato.runtime.sampler import DDIM, DDPM, PLMS, sample
from sfumato.runtime.schedule import Schedule

torch = pytest.importorskip("torch")


class Tape:
    """Noise that was recorded."""

    def __init__(self, draws):
        self.draws = list(draws)

    def randn(self, shape):
        noise = self.draws.pop(0)
        assert noise.shape == tuple(shape)
        return noise


class Trace:
    """Keeps what `on_step` shows."""

    def __init__(self):
        self.x, self.x0, self.pairs = [], [], []

    def __call__(self, info):
        self.x.append(info.x.copy())
        self.x0.append(info.prediction.x0.copy())
        self.pairs.append((info.t, info.s))


def load(config, tensors):
    from sfumato.networks.unet import UNet, UNetConfig

    torch.set_num_threads(1)
    network = UNet(UNetConfig(**config)).eval()
    network.load_state_dict(tensors)
    return network


def denoiser(network, schedule, context=None):
    context = None if context is None else torch.from_numpy(context)

    def predict(x, t):
        with torch.no_grad():
            return network(torch.from_numpy(x), torch.full((len(x),), float(t)), context).numpy()

    return FunctionDenoiser(predict, schedule)


def prefixed(path, prefix):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


@pytest.fixture
def text_to_image(goldens):
    config = {
        "in_channels": 4,
        "model_channels": 32,
        "out_channels": 4,
        "num_res_blocks": 1,
        "attention_resolutions": (1, 2),
        "channel_mult": (1, 1),
        "num_heads": 4,
        "use_spatial_transformer": True,
        "context_dim": 24,
    }
    weights = prefixed(goldens.path("ldm_t2i_kl_xattn.ckpt"), "model.diffusion_model.")
    return load(config, weights), Schedule.named("scaled_linear", start=0.00085, end=0.012)


@pytest.fixture
def unconditional(goldens):
    config = {
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "channel_mult": (1, 1),
        "num_heads": 4,
    }
    path = goldens.path("ldm_uncond_vq_ema.ckpt")
    schedule = Schedule.named("scaled_linear", start=0.0015, end=0.0195)
    codes = prefixed(path, "first_stage_model.quantize.embedding.")["weight"].numpy()
    return load(config, prefixed(path, "model.diffusion_model.")), schedule, codes


def close(actual, golden, name):
    np.testing.assert_allclose(actual, golden, atol=1e-4 * np.abs(golden).max(), err_msg=name)


def guided(model, golden, scale):
    network, schedule = model
    if scale == 1:
        return denoiser(network, schedule, golden["cond"])
    both = np.concatenate([golden["uncond"], golden["cond"]])
    return ClassifierFree(denoiser(network, schedule, both), scale)


@pytest.mark.parametrize(
    ("tag", "steps", "eta", "scale"),
    [
        ("ddim_S5_cfg5_eta0", 5, 0.0, 5),
        ("ddim_S5_cfg5_eta1", 5, 1.0, 5),
        ("ddim_S4_nocfg_eta0.5", 4, 0.5, 1),
        ("ddim_S5_cfg3_mask", 5, 0.0, 3),
        ("ddim_S7_nondivisor", 7, 0.0, 3),
    ],
)
def test_ddim_of_latent_diffusion(goldens, text_to_image, tag, steps, eta, scale):
    golden = goldens("ldm_samplers_t2i.npz")
    schedule = text_to_image[1]
    times = schedule.timesteps(steps, spacing="official")
    np.testing.assert_array_equal(times[::-1], golden[f"{tag}__timesteps"])
    tape, trace = Tape(golden[f"{tag}__noise"]), Trace()
    blend = MaskBlend(golden["x0"], golden["mask"], schedule, tape) if "mask" in tag else None
    sampler = DDIM(schedule, eta=eta, final=0, draw_always=True)
    out = sample(
        guided(text_to_image, golden, scale),
        sampler,
        golden["x_T"],
        times,
        rng=tape,
        on_step=trace,
        prepare=blend,
    )
    assert not tape.draws
    close(np.stack(trace.x), golden[f"{tag}__x"][1:], "x")
    close(np.stack(trace.x0), golden[f"{tag}__pred_x0"][1:], "x0")
    close(out, golden[f"{tag}__out"], "out")
    for (t, s), bar, before in zip(
        trace.pairs, golden[f"{tag}__alphas"][::-1], golden[f"{tag}__alphas_prev"][::-1], strict=True
    ):
        np.testing.assert_allclose([schedule.bar(t), schedule.bar(s)], [bar, before], rtol=1e-6)


@pytest.mark.parametrize(("tag", "steps", "scale"), [("plms_S6_cfg5", 6, 5), ("plms_S5_cfg3_mask", 5, 3)])
def test_plms_of_latent_diffusion(goldens, text_to_image, tag, steps, scale):
    golden = goldens("ldm_samplers_t2i.npz")
    schedule = text_to_image[1]
    times = schedule.timesteps(steps, spacing="official")
    tape, trace = Tape(golden[f"{tag}__noise"]), Trace()
    blend = MaskBlend(golden["x0"], golden["mask"], schedule, tape) if "mask" in tag else None
    sampler = PLMS(schedule, final=0, draw_always=True)
    out = sample(
        guided(text_to_image, golden, scale),
        sampler,
        golden["x_T"],
        times,
        rng=tape,
        on_step=trace,
        prepare=blend,
    )
    assert not tape.draws
    assert len(trace.pairs) == len(times) + 1
    close(np.stack(trace.x[1:]), golden[f"{tag}__x"][1:], "x")
    close(out, golden[f"{tag}__out"], "out")


@pytest.mark.parametrize(("tag", "eta", "quantised"), [("ddim_S5_eta1", 1.0, False), ("ddim_S5_quant", None, True)])
def test_unconditional_runs_and_quantised_predictions(goldens, unconditional, tag, eta, quantised):
    golden = goldens("ldm_samplers_uncond.npz")
    network, schedule, codes = unconditional
    sigmas = golden[f"{tag}__sigmas"]
    eta = float(sigmas.max() > 0) if eta is None else eta

    def quantize(x0):
        flat = x0.transpose(0, 2, 3, 1)[..., None, :]
        return np.ascontiguousarray(codes[((flat - codes) ** 2).sum(-1).argmin(-1)].transpose(0, 3, 1, 2))

    model = denoiser(network, schedule)
    tape, trace = Tape(golden[f"{tag}__noise"]), Trace()
    out = sample(
        QuantizeX0(model, quantize) if quantised else model,
        DDIM(schedule, eta=eta, final=0, draw_always=True),
        golden["x_T"],
        schedule.timesteps(5, spacing="official"),
        rng=tape,
        on_step=trace,
    )
    assert not tape.draws
    close(np.stack(trace.x), golden[f"{tag}__x"][1:], "x")
    close(np.stack(trace.x0), golden[f"{tag}__pred_x0"][1:], "x0")
    close(out, golden[f"{tag}__out"], "out")


class Recorded:
    """A denoiser that repeats the network outputs of a recorded run."""

    def __init__(self, schedule, golden):
        self.schedule, self.golden, self.index = schedule, golden, 0

    def __call__(self, x_t, t):
        i, self.index = self.index, self.index + 1
        assert t == self.golden["model_ts"][i].item()
        eps = self.golden["eps"][i]
        x0 = (x_t - self.schedule.sigma(t) * eps) / self.schedule.alpha(t)
        return Prediction(eps, x0.astype(np.float32), self.golden["var_v"][i])


@pytest.mark.parametrize("tag", ["ddpm_noclip", "ddpm_clip", "ddim_eta0"])
def test_trajectories_of_guided_diffusion(goldens, tag):
    golden = goldens(f"traj_{tag}_r8.npz")
    schedule = Schedule.named("linear")
    times = schedule.sections("ddim8" if "ddim" in tag else "8")
    np.testing.assert_array_equal(times[::-1], golden["timestep_map"])
    model = Recorded(schedule, golden)
    if tag == "ddpm_clip":
        model = ClipX0(model, schedule)
    sampler = DDIM(schedule) if "ddim" in tag else DDPM(schedule, "learned_range", draw_always=True)
    tape, trace = Tape(golden["noise"]), Trace()
    out = sample(model, sampler, golden["x_T"], times, rng=tape, on_step=trace)
    np.testing.assert_allclose(np.stack(trace.x), golden["sample"], atol=1e-4)
    np.testing.assert_allclose(np.stack(trace.x0), golden["pred_xstart"], atol=1e-4)
    np.testing.assert_array_equal(out, trace.x[-1])
    if "ddpm" in tag:
        for i, (low, high) in enumerate(sampler.log_range(times)):
            fraction = (golden["var_v"][i] + 1) / 2
            expected = fraction * high + (1 - fraction) * low
            np.testing.assert_allclose(expected, golden["log_variance"][i], rtol=1e-5, atol=1e-5)


def test_inversion_and_sampling_of_guided_diffusion(goldens):
    golden = goldens("traj_ddim_reverse_r8.npz")
    config = json.loads(goldens.path("adm_tiny.json").read_text())
    from sfumato.networks.unet import UNetConfig

    fields = {key: value for key, value in config.items() if key in UNetConfig.__dataclass_fields__}
    network = load(fields, torch.load(goldens.path("adm_tiny.pt"), weights_only=True))
    schedule = Schedule.named("linear")

    def predict(x, t):
        with torch.no_grad():
            return network(torch.from_numpy(x), torch.full((len(x),), float(t))).numpy()[:, :3]

    model = FunctionDenoiser(predict, schedule)
    rising = golden["timestep_map"].tolist()
    sampler = DDIM(schedule)
    x = golden["xs"][0]
    # guided-diffusion's last upward step ends in pure noise: alphas_bar_next is 0 there, our timestep T.
    for i, (t, s) in enumerate(zip(rising, [*rising[1:], 1000], strict=True)):
        x = sampler.step(x, t, s, model(x, t))
        np.testing.assert_allclose(x, golden["xs"][i + 1], atol=1e-3 if i else 1e-4)
    trace = Trace()
    sample(model, sampler, golden["xs"][-1], rising[::-1], on_step=trace)
    np.testing.assert_allclose(np.stack(trace.x), golden["back"][1:], atol=1e-3)
