"""``sfumato restore``, and ``generate`` and ``export`` of Cold Diffusion, through Typer's runner."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sfumato.runtime import image


def test_restore_writes_the_picture_a_sheet_stages_and_says_how_close_it_is(run, cold_bundle, picture, tmp_path):
    result = run(
        "restore", cold_bundle, picture, "-o", "r.png", "--sheet", "s.png", "--save-stages", "t.png", "--metrics"
    )
    assert result.exit_code == 0, result.output
    for part in ("wrote r.png", "wrote s.png", "wrote t.png", "degraded", "direct", "restored", "PSNR", "restorer"):
        assert part in result.output
    assert image.read(tmp_path / "r.png").shape == (16, 16, 3)
    assert image.read(tmp_path / "s.png").shape == (24, 84, 3)
    assert image.read(tmp_path / "t.png").shape == (44, 44, 3)  # four steps
    told = image.read_parameters(tmp_path / "r.png")
    assert (told["verb"], told["severity"], told["algorithm"], told["degraded"]) == ("restore", 4, 2, False)


def test_restore_as_json_is_one_object(run, cold_bundle, picture):
    result = run("restore", cold_bundle, picture, "-o", "r.png", "--json", "--metrics", "--severity", "2")
    tree = json.loads(result.stdout)
    assert tree["path"] == "r.png" and tree["severity"] == 2
    assert tree["quality"].keys() == {"degraded", "direct", "restored"}
    assert tree["quality"]["restored"].keys() == {"psnr", "ssim", "rmse"}
    assert tree["timings"]["restorer"]["calls"] == 2


def test_a_degraded_picture_needs_no_original_and_may_have_one(run, cold_bundle, picture):
    tree = json.loads(run("restore", cold_bundle, picture, "--degraded", "--algorithm", "1", "--json").stdout)
    assert tree["quality"] == {} and tree["algorithm"] == 1
    arguments = ["--degraded", "--original", picture, "--json"]
    assert json.loads(run("restore", cold_bundle, picture, *arguments).stdout)["quality"]["degraded"]["psnr"] is None
    result = run("restore", cold_bundle, picture, "--degraded")
    assert "PSNR" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--severity", "5"], "severity is 5, this degradation has 0 … 4"),
        (["--severity", "-1"], "severity is -1"),
        (["--size", "15"], "pass --size 12x12"),
        (["--size", "43x30"], "pass --size 40x28"),
        (["--second", "picture.png"], "blur takes no second picture"),
        (["--mask", "small.png"], "the mask has 8x8 pixels (height x width), the picture 16x16"),
        (["--original", "picture.png"], "original is given for a clean picture"),
        (["--official"], "official numbering is of snow and decolor"),
        (["--mask", "nowhere.png"], "nowhere.png: does not exist"),
    ],
)
def test_a_failure_is_one_line_and_writes_nothing(run, cold_bundle, picture, tmp_path, arguments, message):
    image.write(tmp_path / "small.png", np.zeros((8, 8, 3), np.uint8))
    result = run("restore", cold_bundle, picture, *arguments, "-o", "r.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("sfumato: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "r.png").exists()


@pytest.mark.parametrize(
    "arguments", [["--algorithm", "3"], ["--sheet", "a.gif"], ["--severity", "many"], ["--sheet", "out.png"]]
)
def test_wrong_usage_ends_with_2(run, cold_bundle, picture, arguments):
    assert run("restore", cold_bundle, picture, *arguments).exit_code == 2


def test_a_bundle_that_cannot_restore_or_generate_says_what_it_can(run, cold_bundle, tiny_ldm, picture):
    assert "cannot restore; it can generate, edit, inpaint" in run("restore", tiny_ldm, picture).stderr
    for arguments in ([], ["owl"], ["owl", "--steps", "5", "--guidance-scale", "2"]):
        result = run("generate", cold_bundle, *arguments)
        assert (
            "cannot generate (it was exported to undo blur alone); it can restore: call one of these" in result.stderr
        )
    assert "it can restore: call one of these" in run("edit", cold_bundle, picture, "cat").stderr


def test_cold_generation_takes_its_own_options_and_no_others(run, fading_bundle, tmp_path):
    result = run("generate", fading_bundle, "--num-images", "2", "--seed", "3", "--noise", "0.01", "-o", "g.png")
    assert result.exit_code == 0, result.output
    assert result.output.split() == ["wrote", "g-1.png", "wrote", "g-2.png"]
    assert image.read_parameters(tmp_path / "g-2.png")["seed"] == 4
    for arguments, option in ((["--steps", "5"], "--steps"), (["a cat"], "prompt"), (["--official"], "--official")):
        result = run("generate", fading_bundle, *arguments)
        assert result.exit_code == 1
        assert f"generate takes no {option} with a bundle of cold-diffusion; leave it out" in result.stderr


def test_options_of_cold_diffusion_are_refused_by_latent_diffusion(run, tiny_ldm):
    result = run("generate", tiny_ldm, "cat", "--severity", "3")
    assert result.exit_code == 1
    assert "generate takes no --severity with a bundle of latent-diffusion" in result.stderr


def test_info_and_verify_know_the_bundle(run, cold_bundle):
    assert "cold-diffusion" in run("info", cold_bundle).output
    assert run("verify", cold_bundle).exit_code == 0


@pytest.fixture
def checkpoint(goldens: Any) -> Any:
    pytest.importorskip("torch")
    return goldens.path("cold_blur_model.pt")


def test_export_writes_a_bundle_that_restores(run, checkpoint, picture, tmp_path):
    blur = ["--degradation", "blur", "-p", "steps=6", "-p", "routine=Exponential", "-p", "size=7", "-p", "std=0.2"]
    result = run("export", "cold-diffusion", "--checkpoint", checkpoint, "--out", "b", *blur, "--size", "16")
    assert result.exit_code == 0, result.output
    assert "/b (" in result.stdout and result.stdout.startswith("wrote ")
    assert run("restore", "b", picture, "-o", "r.png").exit_code == 0
    assert (tmp_path / "r.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "does not say what it undoes; pass the degradation"),
        (["-p", "steps=6"], "parameters are given without the degradation"),
        (["--degradation", "fog", "-p", "steps=6"], "no degradation is named 'fog'"),
        (["--degradation", "blur", "-p", "steps"], "write NAME=VALUE"),
        (["--degradation", "blur", "-p", "steps=6", "-p", "size=7"], "at its centre in the checkpoint and"),
        (["--degradation", "blur", "-p", "steps=6", "--generate-from", "hope"], "nothing is generated from 'hope'"),
    ],
)
def test_an_export_that_cannot_be_is_refused_in_one_line(run, checkpoint, tmp_path, arguments, message):
    result = run("export", "cold-diffusion", "--checkpoint", checkpoint, "--out", "b", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()
