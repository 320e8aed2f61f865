"""Whole steps in latent diffusion, on engines: the same pictures as steps apart, and when they are taken apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato
from sfumato.errors import Cancelled, ParameterError
from sfumato.runtime.sampler import SAMPLERS
from sfumato.runtime.systems.latent_diffusion import LatentDiffusion

Open = Callable[..., LatentDiffusion]

RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
HOLE = np.zeros((16, 16), np.uint8)
HOLE[4:12, 4:12] = 255


@pytest.fixture(scope="session")
def bundles(tiny_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny bundle with the network ``step``, by what its UNet predicts."""
    import tiny_step

    root = tmp_path_factory.mktemp("step")
    return {kind: tiny_step.write(tiny_ldm, root / kind, prediction=kind).path for kind in ("eps", "v")}


@pytest.fixture(scope="session")
def opened(bundles: dict[str, Path]) -> Any:
    """Opens a bundle on a CPU in float32, once."""
    made: dict[Any, Any] = {}

    def get(kind: str = "eps", backend: str = "onnxruntime") -> Any:
        if (kind, backend) not in made:
            pytest.importorskip(backend)
            options: Any = {"backend": backend, "precision": "fp32", "threads": 1}
            made[kind, backend] = sfumato.load(bundles[kind], **options)
        return made[kind, backend]

    yield get
    for system in made.values():
        system.close()


def latents(edits: Any) -> np.ndarray:
    return np.stack([edit.latents for edit in edits])


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_whole_steps_make_the_same_picture(opened: Open, backend: str, kind: str, sampler: str, scale: float) -> None:
    """Not the same bits: the weights of x and of the prediction are worked out in float64 and rounded once, and x0 and
    eps, whose rounding is divided by alpha, are not made on the way."""
    system = opened(kind, backend)
    options: Any = {"sampler": sampler, "guidance_scale": scale, "steps": 6, "seed": 2}
    apart = system.generate("red cat", fused=False, **options)
    whole = system.generate("red cat", **options)
    close(latents(whole), latents(apart))
    assert np.abs(whole[0].image.astype(int) - apart[0].image).max() <= 1
    assert whole[0].timings["step"]["calls"] == apart[0].timings["unet"]["calls"]
    assert "unet" not in whole[0].timings and "step" not in apart[0].timings


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_eta_and_spacing(opened: Open, eta: float, spacing: str) -> None:
    for official in (False, True):
        options: Any = {"eta": eta, "spacing": spacing, "steps": 5, "official": official}
        made = [opened().generate("a rocket", fused=fused, **options) for fused in (True, False)]
        close(*map(latents, made))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "unipc"])
def test_batches_and_seeds(opened: Open, backend: str, sampler: str) -> None:
    """The network takes four pictures at once here, so that six are two batches."""
    prompts = ["red", "green apple", "cat"]
    for seed in (5, [5, 6, 7, 8, 9, 10]):
        options: Any = {"num_images": 2, "seed": seed, "sampler": sampler, "steps": 4, "negative_prompt": "a rocket"}
        whole = opened(backend=backend).generate(prompts, **options)
        assert whole[0].timings["step"]["calls"] == 2 * 4
        close(latents(whole), latents(opened(backend=backend).generate(prompts, fused=False, **options)))


def test_a_picture_is_edited_in_whole_steps(opened: Open) -> None:
    options: Any = {"strength": 0.6, "steps": 5, "seed": 1}
    whole = opened().edit(PICTURE, "red", fused=True, **options)
    close(latents(whole), latents(opened().edit(PICTURE, "red", fused=False, **options)))
    assert whole[0].timings["step"]["calls"] == 3


def test_previews_and_cancelling(opened: Open) -> None:
    seen: dict[bool, list[Any]] = {True: [], False: []}
    for fused in (True, False):

        def look(step: Any, into: list[Any] = seen[fused]) -> None:
            into.append((step.index, step.total, step.t, step.s, step.x.copy(), step.x0.copy(), step.preview()))

        opened("v").generate("red", steps=4, fused=fused, on_step=look)
    for one, other in zip(seen[True], seen[False], strict=True):
        assert one[:4] == other[:4] and one[6].shape == (1, 8, 8, 3)
        close(one[4], other[4])
        close(one[5], other[5])
        assert np.abs(one[6].astype(int) - other[6]).max() <= 1
    with pytest.raises(Cancelled, match="after call 1 of 4"):
        opened().generate("red", steps=4, on_step=lambda step: False)


def test_what_touches_x_between_steps_takes_them_apart(opened: Open) -> None:
    made = opened().inpaint(PICTURE, HOLE, "red", steps=4)
    assert "unet" in made[0].timings and "step" not in made[0].timings
    again = opened().inpaint(PICTURE, HOLE, "red", steps=4, fused=False)
    assert np.array_equal(made[0].image, again[0].image)
    with pytest.raises(ParameterError, match="known part is put back between steps; leave fused out"):
        opened().inpaint(PICTURE, HOLE, "red", steps=4, fused=True)


def test_tiles_take_them_apart(opened: Open) -> None:
    options: Any = {"size": (24, 24), "steps": 3}
    tiled = opened().generate("red", tile=8, **options)
    assert "unet" in tiled[0].timings
    with pytest.raises(ParameterError, match="12x12 latents are worked on in tiles of 8"):
        opened().generate("red", tile=8, fused=True, **options)
    assert "step" in opened().generate("red", tile=16, **options)[0].timings


def test_a_bundle_without_the_network_says_how_to_add_it(tiny_ldm: Path) -> None:
    with sfumato.load(tiny_ldm) as system:
        assert "unet" in system.generate("red", steps=2)[0].timings
        with pytest.raises(ParameterError, match="has no network 'step'.*--step"):
            system.generate("red", steps=2, fused=True)


def test_only_the_network_that_runs_is_opened(bundles: dict[str, Path]) -> None:
    with sfumato.load(bundles["eps"]) as system:
        assert isinstance(system, LatentDiffusion)
        told = system.generate("red", steps=2)[0].parameters
        assert sorted(system.models._engines) == ["step", "text_encoder", "vae_decoder"]
        assert "fused" not in told
        assert system.generate("red", steps=2, fused=False)[0].parameters["fused"] is False
