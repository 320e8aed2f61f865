"""``sfumato plan-memory``: what it prints."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("onnx")


@pytest.mark.parametrize(("target", "builds"), [("cpu", False), ("sm87", True), ("rtx:sm89", True)])
def test_it_says_what_fits(run, tiny_ldm, target, builds):
    result = run("plan-memory", tiny_ldm, "--target", target)
    assert result.exit_code == 0
    assert ("building, one network at a time" in result.output) is builds
    assert "running, all networks open: " in result.output
    assert "8 GB: " in result.output and "64 GB: " in result.output


def test_as_json(run, tiny_ldm):
    tree = json.loads(run("plan-memory", tiny_ldm, "--target", "sm87", "--range", "batch=1", "--json").stdout)
    assert {n["name"] for n in tree["networks"]} == {"unet", "vae_decoder", "vae_encoder", "text_encoder"}
    assert tree["fits"]["8"] == {"build": True, "run": True}
    assert all(n["at"]["batch"] == 1 for n in tree["networks"])


def test_another_target_is_refused(run, tiny_ldm):
    assert run("plan-memory", tiny_ldm, "--target", "gpu").exit_code == 1


@pytest.mark.parametrize("target", ["cpu", "sm87"])
def test_without_onnx_its_own_extra_is_named(run, tiny_ldm, monkeypatch, target):
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run("plan-memory", tiny_ldm, "--target", target)
    assert result.exit_code == 1
    assert result.stderr == (
        "sfumato: reading graphs for plan-memory needs onnx, which is not installed; run: pip install 'sfumato[plan]'\n"
    )
