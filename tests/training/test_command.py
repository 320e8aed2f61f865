"""The scripts of training as commands: what they write is prepared first, what a user can mend is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import BundleError, ParameterError
from sfumato.training import command, evaluate_cold, fit_mixture, train_cold

BLUR = ["--pictures", "folder", "--degradation", "blur", "-p", "steps=3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for index in range(40):
        Image.fromarray(np.full((24, 20, 3), 5 * index, np.uint8)).save(path / f"picture-{index}.png")
    return path


def test_folders_of_outputs_are_made_and_what_cannot_be_written_is_refused(tmp_path) -> None:
    command.outputs(tmp_path / "a" / "b" / "model.pt", None, sheet=tmp_path / "c" / "sheet.png")
    assert (tmp_path / "a" / "b").is_dir() and (tmp_path / "c").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="model.pt: cannot write it .*choose a folder you may write to"):
        command.outputs(tmp_path / "file" / "model.pt")
    with pytest.raises(ParameterError, match="is a folder; pass the name of a file"):
        command.outputs(tmp_path / "a")
    with pytest.raises(ParameterError, match="written twice"):
        command.outputs(tmp_path / "x.png", sheet=tmp_path / "a" / ".." / "x.png")
    with pytest.raises(ParameterError, match="no suffix of a picture; use .png"):
        command.outputs(sheet=tmp_path / "sheet.txt")


def test_a_folder_that_is_missing_is_made_before_the_training(folder, tmp_path) -> None:
    pytest.importorskip("torch")
    words = ["--size", "16", "--dim", "8", "--mults", "1", "2", "--batch", "2", "--minutes", "0", "--data", str(folder)]
    train_cold.main([*BLUR, *words, "--out", str(tmp_path / "run" / "model.pt")])
    assert (tmp_path / "run" / "model.pt").is_file()


def test_a_mixture_goes_into_a_folder_that_is_missing(folder, tmp_path) -> None:
    pytest.importorskip("sklearn")
    words = ["--pictures", "folder", "--size", "16", "--count", "20", "--data", str(folder)]
    fit_mixture.main([*words, "--out", str(tmp_path / "run" / "m.safetensors")])
    assert (tmp_path / "run" / "m.safetensors").is_file()


def test_an_evaluation_refuses_its_sheet_before_it_opens_the_bundle(tmp_path) -> None:
    with pytest.raises(ParameterError, match="no suffix of a picture"):
        evaluate_cold.main(["no-bundle", "--data", str(tmp_path), "--sheet", "sheet.txt"])


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failing train_cold leaves on stderr."""
    assert command.run(lambda: train_cold.main(arguments)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_failures_are_one_line(folder, tmp_path, capsys, monkeypatch) -> None:
    data, out = ["--data", str(folder)], ["--out", str(tmp_path / "a.pt")]
    assert "no degradation is named 'fog'; use one of blur" in said(["--degradation", "fog", *data, *out], capsys)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch, which is not installed; run: pip install 'sfumato[train]'" in said(
        [*BLUR, *data, *out], capsys
    )
    monkeypatch.undo()
    pytest.importorskip("torch")
    missing = ["--data", str(tmp_path / "nowhere")]
    assert "nowhere is not a folder; pass one that holds pictures" in said([*BLUR, *missing, *out], capsys)
    emoji = said(["--degradation", "blur", "-p", "steps=3", *missing, *out], capsys)
    assert "run: npm install --prefix" in emoji


def test_what_needs_no_torch_imports_none_and_the_help_has_a_default_for_each_option() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom sfumato.training import {0}\n{0}.main(['--help'])"
    for name in ("train_cold", "fit_mixture", "evaluate_cold", "evaluate_emoji"):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
        assert "(default: 0)" in done.stdout  # --seed
    for line in ("(default: 12.0)", "(default: emoji)", "[1, 2, 3, 4]", "animorphosis"):
        text = subprocess.run(
            [sys.executable, "-m", "sfumato.training.train_cold", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert line in " ".join(text.split())
