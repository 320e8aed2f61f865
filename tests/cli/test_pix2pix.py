"""``sfumato edit`` along a direction and ``sfumato direction``, on a tiny bundle."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from command_output import words

from sfumato.cli.pix2pix import difference, sheet_of
from sfumato.runtime import image
from sfumato.runtime.direction import Direction
from sfumato.runtime.systems.base import Edit

WORDS = ["--source-word", "red", "--target-word", "green"]


@pytest.fixture(scope="module")
def write_maps(tiny_ldm):
    """Writes the tiny bundle with maps and, unless told, their gradient."""
    import tiny_p2p

    return lambda out, **options: tiny_p2p.write(tiny_ldm, out, **options).path


@pytest.fixture(scope="module")
def bundle(write_maps, tmp_path_factory):
    return write_maps(tmp_path_factory.mktemp("p2p") / "tiny")


def test_the_tiny_bundle_verifies(run, bundle):
    pytest.importorskip("onnxruntime")
    result = run("verify", bundle, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output


def test_an_edit_writes_picture_and_sheet(run, bundle, picture, tmp_path):
    result = run("edit", bundle, picture, "--prompt", "red apple", *WORDS, "-o", "e.png", "--sheet", "s.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == "wrote e.png\nwrote s.png\n"
    assert image.read(tmp_path / "e.png").shape == (16, 16, 3)
    assert image.read(tmp_path / "s.png").shape == (4 + 192 + 14 + 4, 4 * 196 + 4, 3)
    told = image.read_parameters(tmp_path / "e.png")
    assert (told["system"], told["source"], told["target"], told["prompt"]) == (
        "pix2pix-zero",
        "red",
        "green",
        "red apple",
    )
    assert (told["steps"], told["attention_guidance"]) == (4, 0.05)


def test_options_reach_the_edit(run, bundle, picture, tmp_path):
    options = ["--steps", 6, "--attention-guidance", "0.01", "--edit-multiplier", 0.5, "--inversion", "plain"]
    flags = ["--no-regularize", "--shared-latent", "--low-memory", "--guidance-scale", 3, "--seed", 4, "--size", "8x12"]
    result = run("edit", bundle, picture, "red apple", *WORDS, *options, *flags, "-o", "e.png", "--metrics")
    assert result.exit_code == 0, result.output
    assert "unet_gradient" in result.stdout
    assert "resized to 8 and 12" in result.stderr
    told = image.read_parameters(tmp_path / "e.png")
    wanted = {
        "steps": 6, "attention_guidance": 0.01, "edit_multiplier": 0.5, "inversion": "plain", "regularize": False,
        "kept": "shared", "guidance_scale": 3, "seed": 4, "size": [12, 8],
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted


def test_a_direction_is_written_and_used(run, bundle, picture, tmp_path):
    result = run("direction", bundle, "--source-word", "red", "--target-word", "green", "-o", "r2g.npz")
    assert result.stdout == "wrote r2g.npz: red → green, 5 and 5 sentences, 8 tokens of width 8\n"
    assert Direction.load(tmp_path / "r2g.npz").source == "red"
    one = run("edit", bundle, picture, "red apple", "--direction", "r2g.npz", "-o", "a.png")
    two = run("edit", bundle, picture, "red apple", *WORDS, "-o", "b.png")
    assert one.exit_code == two.exit_code == 0
    assert np.array_equal(image.read(tmp_path / "a.png"), image.read(tmp_path / "b.png"))


def test_directions_of_files(run, bundle, tmp_path):
    (tmp_path / "cat.txt").write_text("a cat\ncat\n")
    (tmp_path / "rocket.txt").write_text("a rocket\n")
    result = run("direction", bundle, "--source", "cat.txt", "--target", "rocket.txt", "-o", "d.npz")
    assert "cat → rocket, 2 and 1 sentences" in result.stdout
    torch = pytest.importorskip("torch")
    for name in ("one", "two"):
        torch.save(torch.randn(1, 8, 8), tmp_path / f"{name}.pt")
    result = run("direction", bundle, "--source", "one.pt", "--target", "two.pt", "-o", "d.npz")
    assert result.exit_code == 0, result.output
    torch.save(torch.randn(1, 77, 768), tmp_path / "sd.pt")
    result = run("direction", bundle, "--source", "sd.pt", "--target", "sd.pt", "-o", "d.npz")
    assert result.exit_code == 1
    assert "77 tokens of width 768, the bundle's text encoder gives 8 of 8" in result.stderr


def test_sentences_are_saved_and_made_by_templates(run, bundle, tmp_path):
    (tmp_path / "t.txt").write_text("{}\n{a} on a red rocket\n")
    result = run("direction", bundle, *WORDS, "--templates", "t.txt", "--save-sentences", "s", "-o", "d.npz")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s" / "target_green.txt").read_text() == "green\na green on a red rocket\n"
    assert (tmp_path / "s" / "source_red.txt").read_text() == "red\na red on a red rocket\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source-word", "cat"], "--target FILE or --target-word"),
        (["--source", "a.txt", "--source-word", "cat", "--target-word", "dog"], "--source FILE or --source-word"),
        ([*WORDS, "-o", "d.pt"], "another suffix than .npz"),
        ([*WORDS, "-o", ".."], "is a folder; name a file"),
        ([*WORDS, "-o", "d.npz", "--save-sentences", "d.npz"], "is a folder; name a file"),
        ([*WORDS, "--endpoint", "http://127.0.0.1:9/v1"], "--endpoint and --model go together"),
        ([*WORDS, "--sentences", "0"], "--sentences"),
    ],
)
def test_wrong_usage_of_direction(run, bundle, arguments, message):
    result = run("direction", bundle, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*WORDS, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "cannot be reached"),
        (["--source", "no.txt", "--target-word", "dog"], "no.txt: cannot be read"),
        ([*WORDS, "-o", "no/d.npz"], "cannot write it"),
    ],
)
def test_failures_of_direction(run, bundle, arguments, message):
    result = run("direction", bundle, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["red apple", "--sheet", "s.png"], "--sheet is for edits along a direction"),
        (["red apple", "--edit-multiplier", "2"], "--edit-multiplier is for edits along a direction"),
        (["red apple", "--no-regularize"], "--no-regularize is for edits along a direction"),
        (["red apple", "--attention-guidance", "0"], "--attention-guidance is for edits along a direction"),
        (["red apple", "--prompt", "red apple", *WORDS], "given twice"),
        (["red apple", *WORDS, "--sheet", "s.gif"], "no suffix of a picture"),
        (["red apple", *WORDS, "--sheet", "s.png", "--save-stages", "s.png"], "--save-stages and --sheet both write"),
    ],
)
def test_wrong_usage_of_edit(run, bundle, picture, arguments, message):
    result = run("edit", bundle, picture, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (WORDS, "--prompt 'red apple'"),
        (["red apple", "--source-word", "red"], "a source word and a target word"),
        (["red apple", *WORDS, "--direction", "d.npz"], "pass one or the other"),
        (["red apple", "--direction", "d.npz"], "d.npz: cannot be read"),
        (["red apple", "--direction", "picture.png"], "picture.png: is not an .npz of sfumato direction"),
        (["red apple", *WORDS, "--guidance-scale", "1"], "nothing would change"),
        (["red apple", *WORDS, "--strength", "0.5"], "edit takes no --strength"),
        (["red apple", *WORDS, "--sampler", "plms"], "edit takes no --sampler"),
        (["red apple", *WORDS, "--attention-guidance", "1e9"], "diverges at step"),
    ],
)
def test_failures_of_edit(run, bundle, picture, arguments, message):
    result = run("edit", bundle, picture, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_bundles_without_the_networks_are_told(run, tiny_ldm, write_maps, picture, tmp_path):
    result = run("edit", tiny_ldm, picture, "red apple", *WORDS)
    assert result.exit_code == 1
    assert "no network 'unet_maps'" in result.stderr
    write_maps(tmp_path / "maps", gradient=False)
    result = run("edit", tmp_path / "maps", picture, "red apple", *WORDS)
    assert result.exit_code == 1
    assert "no network 'unet_gradient'" in result.stderr
    assert "sfumato export pix2pix-zero" in result.stderr
    assert run("edit", tmp_path / "maps", picture, "red apple", *WORDS, "--attention-guidance", 0).exit_code == 0


def test_the_gradient_by_torch_gives_the_same_picture(run, bundle, write_maps, picture, tmp_path):
    pytest.importorskip("torch")
    options = ["red apple", *WORDS, "--precision", "fp32"]
    assert run("edit", bundle, picture, *options, "-o", "engine.png").exit_code == 0
    result = run("edit", bundle, picture, *options, "--backend", "torch", "-o", "torch.png")
    assert result.exit_code == 0, result.output
    one, two = (image.read(tmp_path / f"{name}.png").astype(int) for name in ("engine", "torch"))
    assert np.abs(one - two).max() <= 1
    write_maps(tmp_path / "maps", gradient=False)
    result = run("edit", tmp_path / "maps", picture, *options, "--backend", "torch", "-o", "maps.png")
    assert result.exit_code == 0, result.output
    assert np.array_equal(image.read(tmp_path / "maps.png"), two)
    result = run("edit", bundle, picture, "red apple", "--backend", "torch")
    assert result.exit_code == 1
    assert "backend 'torch' is for gradients alone" in result.stderr


def test_without_torch_the_extra_is_named(run, bundle, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("edit", bundle, picture, "red apple", *WORDS, "--backend", "torch")
    assert result.exit_code == 1
    assert "pip install 'sfumato[export]'" in result.stderr


def test_a_sheet_has_a_row_for_each_edit():
    rng = np.random.default_rng(0)
    one, two, three = (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3))
    edit = Edit(one, 0, reconstruction=two, original=three)
    assert sheet_of([edit, edit]).shape == (2 * (192 + 14 + 4) + 4, 4 * 196 + 4, 3)
    assert sheet_of([Edit(one, 0, reconstruction=two)]).shape == (192 + 14 + 8, 3 * 196 + 4, 3)
    assert not difference(one, one).any()
    assert difference(np.uint8([[[3, 250, 0]]]), np.uint8([[[5, 0, 0]]])).tolist() == [[[2, 250, 0]]]
