"""``sfumato build``: what it prints and refuses; the plans themselves are tested in ``tests/engines``."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import typer

from sfumato.cli.build import parse_bytes

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("onnx") is None,
    reason="needs TensorRT for RTX and onnx; run: pip install 'sfumato[rtx]'",
)


@pytest.fixture
def bundle(tiny_ldm, tmp_path):
    """A copy, since plans are written into it."""
    return shutil.copytree(tiny_ldm, tmp_path / "bundle")


@needs_rtx
def test_a_network_is_built_and_then_found(run, bundle):
    command = ("build", bundle, "--target", "rtx:sm86+sm89", "--network", "vae_encoder", "--range", "batch=1")
    result = run(*command)
    assert result.exit_code == 0
    assert result.output.startswith("vae_encoder: plans/sm86+sm89-rtx1.")
    assert "fp16" in result.output and "peak" in result.output
    (plan,) = (bundle / "plans").glob("*/vae_encoder-*.plan")
    assert run(*command).output.endswith("was there\n")
    tree = json.loads(run(*command, "--json").stdout)
    assert tree["plans"][0]["bytes"] == plan.stat().st_size
    assert tree["plans"][0]["key"]["sms"] == ["sm86", "sm89"]
    assert run("info", bundle).exit_code == 0


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--target", "rtx:sm87"], 1, "Jetson Orin"),
        (["--target", "cuda"], 1, "write rtx:sm86+sm89"),
        (["--target", "rtx:sm89", "--network", "nonsense"], 1, "has no network 'nonsense'"),
        (["--target", "rtx:sm89", "--range", "depth=1"], 2, "the networks have"),
        (["--target", "rtx:sm89", "--range", "depth"], 1, "DIMENSION=MIN:OPT:MAX"),
        (["--target", "rtx:sm89", "--workspace", "lots"], 2, "as in 2G"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_built(run, bundle, options, status, said):
    result = run("build", bundle, *options)
    assert result.exit_code == status
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not (bundle / "plans").exists()


@pytest.mark.parametrize(("text", "want"), [("2G", 2 << 30), ("512m", 512 << 20), ("1024", 1024), (None, None)])
def test_sizes(text, want):
    assert parse_bytes(text) == want


@pytest.mark.parametrize("text", ["", "2GB", "-1", "1.5G"])
def test_wrong_sizes(text):
    with pytest.raises(typer.BadParameter):
        parse_bytes(text)
