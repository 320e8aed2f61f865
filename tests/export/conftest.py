"""Bundles exported once for all tests of this folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfumato.engines.bundle import Bundle


@pytest.fixture(scope="session")
def exported(goldens: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The bundle of a golden checkpoint in float32, by the checkpoint's name without ``.ckpt``."""
    from sfumato.export.recipes.latent_diffusion import export

    folder, made = tmp_path_factory.mktemp("bundles"), dict[str, Bundle]()

    def get(name: str) -> Bundle:
        if name not in made:
            config = goldens.path(f"{name}.yaml")
            made[name] = export(goldens.path(f"{name}.ckpt"), folder / name, config=config, precision="fp32")
        return made[name]

    return get


@pytest.fixture(scope="session")
def folder_exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Bundle]]:
    """A tiny pipeline as diffusers saves it, by its function's name in ``diffusers_folders``; its bundle in float32."""
    import diffusers_folders

    from sfumato.export.recipes.latent_diffusion import export

    root, made = tmp_path_factory.mktemp("folders"), dict[str, tuple[Path, Bundle]]()

    def get(name: str) -> tuple[Path, Bundle]:
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks of diffusers on its own deprecations
                folder = getattr(diffusers_folders, name)(root / name)
            made[name] = folder, export(folder, root / f"{name}-bundle", precision="fp32")
        return made[name]

    return get
