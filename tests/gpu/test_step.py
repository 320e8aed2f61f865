"""Whole steps on a real GPU: the pictures that the processor makes, and those of steps apart."""

from __future__ import annotations

import numpy as np
import pytest

import sfumato
from sfumato.engines.engine import available_backends
from sfumato.runtime.sampler import SAMPLERS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tiny_ldm, tmp_path_factory):
    reason = available_backends()["onnxruntime_cuda"]
    if reason is not None:
        pytest.skip(reason)
    import tiny_step

    return tiny_step.write(tiny_ldm, tmp_path_factory.mktemp("step") / "tiny").path


def latents(bundle, backend, **options):
    with sfumato.load(bundle, backend=backend, precision="fp32") as system:
        edits = system.generate(["red", "cat apple"], steps=6, seed=2, **options)
    assert ("step" in edits[0].timings) == options["fused"]
    return np.stack([edit.latents for edit in edits])


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_steps_are_those_of_the_processor_and_those_apart(bundle, sampler, scale):
    options = {"sampler": sampler, "guidance_scale": scale}
    whole = latents(bundle, "onnxruntime_cuda", fused=True, **options)
    for backend, fused in (("onnxruntime", True), ("onnxruntime_cuda", False)):
        other = latents(bundle, backend, fused=fused, **options)
        np.testing.assert_allclose(whole, other, rtol=0, atol=1e-4 * np.abs(other).max())
