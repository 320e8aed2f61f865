"""``sfumato generate`` and ``edit`` in whole steps, on a tiny bundle."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.runtime import image


@pytest.fixture(scope="module")
def bundle(tiny_ldm, tmp_path_factory):
    import tiny_step

    return tiny_step.write(tiny_ldm, tmp_path_factory.mktemp("step") / "tiny").path


def test_the_tiny_bundle_verifies(run, bundle):
    pytest.importorskip("onnxruntime")
    result = run("verify", bundle, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "step" in result.stdout


def test_steps_are_taken_whole_unless_told(run, bundle, tmp_path):
    for name, flags in {"whole": [], "asked": ["--fused"], "apart": ["--no-fused"]}.items():
        result = run("generate", bundle, "red", "--steps", 3, "--metrics", "-o", f"{name}.png", *flags)
        assert result.exit_code == 0, result.output
        rows = [line.split() for line in result.stdout.splitlines()]
        networks = {word for row in rows for word in row} & {"step", "unet"}
        assert networks == ({"unet"} if name == "apart" else {"step"})
    whole, asked, apart = (image.read(tmp_path / f"{name}.png") for name in ("whole", "asked", "apart"))
    assert np.array_equal(whole, asked)
    assert np.abs(whole.astype(int) - apart).max() <= 1
    told = [image.read_parameters(tmp_path / f"{name}.png").get("fused") for name in ("whole", "asked", "apart")]
    assert told == [None, True, False]


def test_a_bundle_without_the_network_is_told_how(run, tiny_ldm, bundle, picture):
    result = run("generate", tiny_ldm, "red", "--fused")
    assert result.exit_code == 1
    assert "--fused is given and the bundle has no network 'step'; leave --fused out, or add" in result.stderr
    assert "--checkpoint BUNDLE --out BUNDLE --step\n" in result.stderr
    result = run("edit", bundle, picture, "red", "--steps", 4, "--fused", "--save-stages", "s.png", "-o", "e.png")
    assert result.exit_code == 0, result.output
