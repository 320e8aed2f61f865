"""The command, through Typer's runner: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from command_output import words

from sfumato import __version__
from sfumato.cli.app import VERBS
from sfumato.errors import NonFiniteError
from sfumato.runtime import image


def test_help_names_every_verb(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(f" {verb} " in result.output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run, verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Usage: sfumato {verb}" in result.output


def test_version(run):
    assert run("--version").output == f"sfumato {__version__}\n"


def test_an_unknown_verb_is_wrong_usage_and_a_similar_one_is_named(run):
    result = run("generat")
    assert result.exit_code == 2
    assert "Did you mean 'generate'" in words(result)


def test_info_shows_networks_and_settings(run, tiny_ldm):
    result = run("info", tiny_ldm)
    assert result.exit_code == 0
    for part in ("latent-diffusion", "text_encoder", "prediction float32 (batch, 4, height, width)", "predicts eps"):
        assert part in result.output


def test_info_as_json_holds_the_manifest(run, tiny_ldm):
    tree = json.loads(run("info", tiny_ldm, "--json").stdout)
    assert tree["manifest"] == json.loads((tiny_ldm / "manifest.json").read_text())
    assert tree["path"] == str(tiny_ldm)
    assert "openvino" in tree["backends"]


def test_verify_passes_and_says_what_was_measured(run, tiny_ldm):
    result = run("verify", tiny_ldm)
    assert result.exit_code == 0
    assert result.output.endswith("passed\n")
    tree = json.loads(run("verify", tiny_ldm, "--json").stdout)
    assert tree["passed"] is True
    assert {row["network"] for row in tree["networks"]} == {"unet", "vae_decoder", "vae_encoder", "text_encoder"}
    assert all(row["deviation"]["relative"] <= row["tolerance"] for row in tree["networks"])


def test_verify_of_one_backend_in_one_precision(run, tiny_ldm):
    tree = json.loads(run("verify", tiny_ldm, "--backend", "openvino", "--precision", "fp32", "--json").stdout)
    assert {(row["backend"], row["precision"]) for row in tree["networks"]} == {("openvino", "fp32")}


def test_verify_ends_with_1_when_a_network_deviates(run, tiny_ldm, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(tiny_ldm, bad)
    tree = json.loads((bad / "manifest.json").read_text())
    tree["networks"]["unet"]["tolerance"] = {"fp32": 1e-30, "bf16": 1e-30}
    (bad / "manifest.json").write_text(json.dumps(tree))
    result = run("verify", bad)
    assert result.exit_code == 1
    assert "exceeds the manifest's 1.00e-30" in result.output
    assert result.output.endswith("FAILED\n")


def test_verify_ends_with_1_when_a_file_was_altered(run, tiny_ldm, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(tiny_ldm, bad)
    data = bytearray((bad / "unet.weights").read_bytes())
    data[0] ^= 1
    (bad / "unet.weights").write_bytes(data)
    result = run("verify", bad)
    assert result.exit_code == 1
    assert result.stderr.startswith("sfumato: ")
    assert "unet.weights" in result.stderr
    result = run("verify", bad, "--json")
    assert result.exit_code == 1
    tree = json.loads(result.stdout)
    assert (tree["passed"], tree["verified"]) == (False, False)
    assert "unet.weights" in tree["error"]


def test_generate_writes_the_same_file_twice(run, tiny_ldm, tmp_path):
    for name in ("a.png", "b.png"):
        result = run("generate", tiny_ldm, "a red apple", "--seed", "1", "--steps", "4", "-o", name)
        assert (result.exit_code, result.output) == (0, f"wrote {name}\n")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    run("generate", tiny_ldm, "a red apple", "--seed", "2", "--steps", "4", "-o", "c.png")
    assert not np.array_equal(image.read(tmp_path / "a.png"), image.read(tmp_path / "c.png"))


def test_a_png_holds_what_makes_it_again(run, tiny_ldm, tmp_path):
    run("generate", tiny_ldm, "a red apple", "--seed", "7", "--steps", "3", "--sampler", "euler", "-o", "a.png")
    told = image.read_parameters(tmp_path / "a.png")
    assert (told["prompt"], told["seed"], told["steps"], told["sampler"]) == ("a red apple", 7, 3, "euler")


def test_size_is_width_by_height(run, tiny_ldm, tmp_path):
    run("generate", tiny_ldm, "cat", "--size", "24x16", "-o", "a.png")
    assert image.read(tmp_path / "a.png").shape == (16, 24, 3)
    run("generate", tiny_ldm, "cat", "--size", "32", "-o", "a.png")
    assert image.read(tmp_path / "a.png").shape == (32, 32, 3)


def test_several_pictures_are_numbered(run, tiny_ldm, tmp_path):
    result = run("generate", tiny_ldm, "rocket", "--num-images", "3", "-o", "a.png")
    assert result.output.split() == ["wrote", "a-1.png", "wrote", "a-2.png", "wrote", "a-3.png"]
    assert not (tmp_path / "a.png").exists()


def test_save_stages_writes_a_grid_of_predictions(run, tiny_ldm, tmp_path):
    result = run("generate", tiny_ldm, "cat", "--steps", "9", "-o", "a.png", "--save-stages", "s.png")
    assert result.exit_code == 0
    assert image.read(tmp_path / "s.png").shape == (3 * 20 + 4, 3 * 20 + 4, 3)


def test_stages_of_several_batches_are_those_of_the_first_to_its_end(run, tiny_ldm, tmp_path):
    batches = ["--num-images", "3", "--batch-size", "1"]
    assert run("generate", tiny_ldm, "cat", "--steps", "8", *batches, "--save-stages", "s.png").exit_code == 0
    assert image.read(tmp_path / "s.png").shape == (3 * 20 + 4, 3 * 20 + 4, 3)


def test_metrics_show_every_stage(run, tiny_ldm):
    result = run("generate", tiny_ldm, "cat", "--steps", "3", "--metrics")
    assert result.exit_code == 0
    for stage in ("text_encoder", "unet", "vae_decoder", "total"):
        assert stage in result.output


def test_edit_and_inpaint(run, tiny_ldm, picture, tmp_path):
    assert run("edit", tiny_ldm, picture, "cat", "--strength", "0.5", "-o", "e.png").exit_code == 0
    assert image.read(tmp_path / "e.png").shape == (16, 16, 3)
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    image.write(tmp_path / "mask.png", mask)
    assert run("inpaint", tiny_ldm, picture, "mask.png", "cat", "-o", "i.png").exit_code == 0
    assert np.array_equal(image.read(tmp_path / "i.png")[:, :8], image.read(picture)[:, :8])


def test_notes_of_a_run_go_to_stderr(run, tiny_ldm):
    result = run("generate", tiny_ldm, "a red apple a red apple a red apple", "-o", "a.png")
    assert result.exit_code == 0
    assert result.stderr.startswith("sfumato: note: ")
    assert result.stdout == "wrote a.png\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat", "--size", "3y"], "WIDTHxHEIGHT"),
        (["cat", "-o", "a.gif"], "no suffix of a picture"),
        (["cat", "-o", "no/a.png"], "is not a folder"),
        (["cat", "-o", ".."], ".. is a folder; name a picture in it"),
        (["cat", "-o", "a.png", "--save-stages", "./a.png"], "--output and --save-stages both write a.png"),
        (["cat", "-o", "a.png", "--num-images", "2", "--save-stages", "a-2.png"], "both write a-2.png"),
        (["cat", "--save-stages", "a.txt"], "no suffix of a picture"),
        (["cat", "--backend", "abacus"], "abacus"),
        (["cat", "--num-images", "0"], "--num-images"),
        (["--tokens", "1,x"], "whole numbers"),
        (["cat", "--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_ends_with_2(run, tiny_ldm, arguments, message):
    result = run("generate", tiny_ldm, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


def test_what_may_not_be_written_is_refused_before_it_is_made(run, tiny_ldm, monkeypatch):
    monkeypatch.setattr("sfumato.cli.options.os.access", lambda path, mode: False)  # root may write everywhere
    result = run("generate", tiny_ldm, "cat", "-o", "a.png")
    assert result.exit_code == 2
    assert "a.png may not be written" in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat", "--steps", "0"], "steps is 0"),
        (["cat", "--steps", "10000"], "1 to 1000"),
        (["cat", "--size", "13"], "multiples of 2"),
        (["cat", "--sampler", "magic"], "no sampler is named 'magic'"),
        (["--class", "3"], "task is 'text'"),
        ([], "no prompt was given"),
    ],
)
def test_a_failure_is_one_line_and_ends_with_1(run, tiny_ldm, tmp_path, arguments, message):
    result = run("generate", tiny_ldm, *arguments, "-o", "a.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("sfumato: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(tmp_path.glob("a.*"))


def test_a_verb_that_the_bundle_cannot_do_names_those_it_can(run, tiny_ldm, picture):
    result = run("upscale", tiny_ldm, picture)
    assert result.exit_code == 1
    assert "it can generate, edit, inpaint" in result.stderr


@pytest.mark.parametrize("name", ["missing.png", "text.png"])
def test_what_is_no_picture_is_refused(run, tiny_ldm, tmp_path, name):
    (tmp_path / "text.png").write_text("hello")
    result = run("edit", tiny_ldm, name, "cat")
    assert result.exit_code == 1
    assert name in result.stderr


def test_a_folder_that_is_no_bundle(run, tmp_path):
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert "has no manifest.json" in result.stderr


def test_debug_shows_where(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_DEBUG", "1")
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "BundleError"


def test_an_unexpected_error_is_said_without_a_traceback(run, tiny_ldm, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("sfumato.cli.info.Bundle.open", fail)
    result = run("info", tiny_ldm)
    assert result.exit_code == 1
    assert result.stderr == "sfumato: unexpected RuntimeError: boom; run it again with SFUMATO_DEBUG=1 to see where\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "a.png"), "sfumato: a.png: No space left on device\n"),
        (MemoryError(), "sfumato: out of memory; choose a smaller --size or --num-images\n"),
        (NonFiniteError("unet", 3, "x"), "sfumato: unet: 'x' is not finite at step 3; "),
    ],
)
def test_errors_of_the_system_are_said_plainly(run, tiny_ldm, monkeypatch, error, message):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sfumato.cli.info.Bundle.open", fail)
    result = run("info", tiny_ldm)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)


def test_ctrl_c_ends_with_130_and_writes_nothing(run, tiny_ldm, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.runtime.systems.latent_diffusion.LatentDiffusion.generate", interrupt)
    result = run("generate", tiny_ldm, "cat", "-o", "a.png")
    assert result.exit_code == 130
    assert not list(tmp_path.glob("a.*"))


def test_the_demo_writes_pictures_a_sheet_and_timings(run, tiny_ldm, tmp_path):
    result = run("demo", tiny_ldm, "--out", "demo", "--steps", "2")
    assert result.exit_code == 0
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert len(names) == 10
    assert {"sheet.png", "timings.md"} <= names
    assert "| unet | 2 |" in (tmp_path / "demo" / "timings.md").read_text()
