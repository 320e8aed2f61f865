"""Every example runs as a person would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sfumato.runtime import image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, tiny_ldm, cold_bundle):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image.write(tmp_path / "picture.png", picture)
    mask = np.zeros_like(picture)
    mask[4:12, 4:12] = 255
    image.write(tmp_path / "mask.png", mask)

    def run(name: str, *arguments: str) -> str:
        bundle = cold_bundle if name == "restore.py" else tiny_ldm
        command = [sys.executable, "-W", "error", EXAMPLES / name, bundle, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    return run


def test_generate(run, tmp_path):
    assert "unet" in run("generate.py", "red apple", "out.png")
    assert image.read(tmp_path / "out.png").shape == (16, 16, 3)


def test_edit(run, tmp_path):
    run("edit.py", "picture.png", "green apple", "out.png")
    assert image.read(tmp_path / "out.png").shape == (16, 16, 3)


def test_inpaint(run, tmp_path):
    run("inpaint.py", "picture.png", "mask.png", "green apple", "out.png")
    assert np.array_equal(image.read(tmp_path / "out.png")[:4], image.read(tmp_path / "picture.png")[:4])


def test_previews_and_cancel(run, tmp_path):
    assert "stopped" in run("previews_and_cancel.py", "cat", "out.png", "--stop-after", "3")
    assert (tmp_path / "out.png").exists()


def test_restore(run, tmp_path):
    assert "restored" in run("restore.py", "picture.png", "out.png", "sheet.png")
    assert image.read(tmp_path / "sheet.png").shape == (24, 84, 3)


def test_every_example_is_tested_and_listed():
    here = Path(__file__).read_text()
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in here
        assert f"`{path.name} " in listed
        assert len(path.read_text().splitlines()) < 60
