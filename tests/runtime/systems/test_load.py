"""`load` opens what it knows and says why not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sfumato
from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import write_bundle
from sfumato.engines.manifest import Manifest, NetworkSpec, ScheduleSpec
from sfumato.engines.strict import JSON
from sfumato.errors import BundleError, EngineError, ManifestError, MissingDependency, ParameterError
from sfumato.runtime.systems.latent_settings import LatentDiffusionSettings

SETTINGS = LatentDiffusionSettings("unconditional", "none", 4, 2, 1.0, "kl", (16, 16), 4)


def bundle(path: Path, **change: object) -> Path:
    z = Binding("z", "float32", ("batch", 4, "height", "width"))
    dims = {name: Dimension(1, 1, 8) for name in ("batch", "height", "width")}
    networks = {name: NetworkSpec(name, "g.onnx", (), (z,), (z,), dims) for name in ("unet", "vae_decoder")}
    fields: dict[str, object] = {
        "system": "latent-diffusion",
        "name": "tiny",
        "license": "CC0-1.0",
        "producer": {},
        "networks": networks,
        "schedule": ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, "eps"),
        "settings": SETTINGS.to_json(),
        **change,
    }
    write_bundle(path, Manifest(**fields), {"g.onnx": b"graph"})  # type: ignore[arg-type]
    return path


def test_a_bundle_opens_without_opening_its_networks(tmp_path: Path) -> None:
    with sfumato.load(bundle(tmp_path / "b")) as system:
        assert system.verbs == ("generate",) and system.manifest.name == "tiny"


def test_what_is_no_bundle_of_ours_says_why(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        sfumato.load(tmp_path / "missing")
    with pytest.raises(ManifestError, match=r"\$.system: is 'warp-drive', this sfumato runs 'latent-diffusion'"):
        sfumato.load(bundle(tmp_path / "a", system="warp-drive"))
    with pytest.raises(ManifestError, match=r"\$.schedule: is null"):
        sfumato.load(bundle(tmp_path / "b", schedule=None))
    settings: dict[str, JSON] = {**SETTINGS.to_json(), "speed": 9}
    with pytest.raises(ManifestError, match=r"\$.settings: has an unknown key 'speed'"):
        sfumato.load(bundle(tmp_path / "c", settings=settings))
    with pytest.raises(ManifestError, match=r"\$.networks: lacks 'unet'"):
        sfumato.load(bundle(tmp_path / "d", networks={}))
    rising = ScheduleSpec("scaled_linear", 1000, 0.012, 0.00085, "eps")
    with pytest.raises(ManifestError, match=r"\$.schedule: betas run from 0.012 to 0.00085 and must lie in"):
        sfumato.load(bundle(tmp_path / "e", schedule=rising))


@pytest.mark.parametrize("system", ["latent-diffusion", "pix2pix-zero", "cold-diffusion"])
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"backend": "abacus"}, EngineError, "backend is 'abacus', need one of auto, openvino"),
        ({"backend": "tensorrt"}, MissingDependency, "the TensorRT engine needs tensorrt, which is not installed"),
        ({"precision": "int8"}, ParameterError, "precision is 'int8', need one of fp32, fp16, bf16"),
        ({"threads": 0}, ParameterError, "threads is 0, need 1 or more"),
    ],
)
def test_options_that_no_engine_takes_are_refused_by_load(
    tmp_path: Path, system: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Before any engine is opened, and by every system."""
    own = "latent-diffusion" if system == "pix2pix-zero" else system
    path = bundle(tmp_path / "b", system=own)
    with pytest.raises(kind, match=message):
        sfumato.load(path, **options, system=system)


def test_a_library_that_is_missing_is_missed_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the first verb, which may come long after."""
    path = bundle(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingDependency, match=r"running a network needs openvino.*pip install 'sfumato\[cpu\]'"):
            sfumato.load(path)
    prompted = replace(SETTINGS, task="text", conditioning="crossattn", tokenizer="bert", max_tokens=8)
    with pytest.raises(BundleError, match="has no asset 'tokenizer'"):
        sfumato.load(bundle(tmp_path / "c", settings=prompted.to_json()))
    broken = bundle(tmp_path / "d", settings=prompted.to_json(), assets={"tokenizer": "g.onnx"})
    with pytest.raises(BundleError, match=r"g.onnx: is not a tokenizer.json"):
        sfumato.load(broken)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="reading a prompt needs tokenizers"):
        sfumato.load(broken)
