"""What the packer says of the emoji model is what training did; judging it needs no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.export.recipes import emoji
from sfumato.runtime.schedule import Schedule
from sfumato.runtime.systems.latent_settings import Defaults, LatentDiffusionSettings
from sfumato.training import train_unet


def test_the_bundles_schedule_is_the_one_trained_with():
    spec = emoji.schedule()
    np.testing.assert_allclose(Schedule.from_spec(spec).alphas_bar, train_unet.alphas_bar().numpy(), rtol=1e-12)
    assert (spec.prediction, spec.learned_variance) == ("v", False)


def test_the_settings_are_read_back_and_fit_the_networks():
    settings = emoji.settings(0.41, Defaults(25, 3.0, "ddim", 0.0, "trailing"))
    assert LatentDiffusionSettings.from_json(settings.to_json()) == settings
    assert (settings.factor, settings.size_multiple, settings.image_size) == (4, 16, (64, 64))
    assert (settings.max_tokens, settings.tokenizer, settings.scale_factor) == (32, "bert", 0.41)


def test_averaged_weights_are_taken_from_a_training_checkpoint(tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "ema": {"w": torch.ones(1)}, "step": 3}, tmp_path / "a.pt")
    assert float(emoji.averaged(tmp_path / "a.pt")["w"]) == 1


@pytest.mark.parametrize("content", [None, {"model": {}}, [1, 2]])
def test_other_files_are_refused_as_checkpoints(tmp_path, content):
    if content is not None:
        torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        emoji.averaged(tmp_path / "a.pt")


def test_half_a_model_is_not_packed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        emoji.main(["--unet", "unet.pt", "--text", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "or none of them" in capsys.readouterr().err


def test_judging_imports_no_torch():
    code = "import sys; sys.modules['torch'] = None; import sfumato.training.evaluate_emoji"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
