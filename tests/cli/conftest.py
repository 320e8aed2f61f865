"""The command through Typer's runner, and a picture to give it."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sfumato.cli.app import app
from sfumato.runtime import image


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs ``sfumato`` with these arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFUMATO_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="sfumato")

    return run


@pytest.fixture
def picture(tmp_path):
    """A PNG file of 16x16 random pixels."""
    path = tmp_path / "picture.png"
    image.write(path, np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return path
