"""Training of Cold Diffusion on tiny networks: what is drawn, what is saved, and that an export reads it."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import CheckpointError, ParameterError
from sfumato.networks.cold_checkpoint import check_kernels, read_cold_checkpoint
from sfumato.networks.convnext import ConvNextConfig, ConvNextUNet
from sfumato.runtime.degradation import degrade
from sfumato.runtime.degradations import Blur, DegradationSpec
from sfumato.training import fit_mixture, train_cold, trainer
from sfumato.training.cold_objective import ColdDiffusion, Degrader, objective, start_near_identity
from sfumato.training.convnext_speed import for_training
from sfumato.training.pictures import EmojiPictures, FolderPictures, held_out

BLUR = DegradationSpec.of("blur", steps=3, routine="Constant", size=5, std=1.0)
SMALL = ConvNextConfig(8, (1, 2), residual=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of one bright square each."""
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(40):
        picture = np.full((24, 20, 3), 40, np.uint8)
        row, column = rng.integers(0, 12, 2)
        picture[row : row + 8, column : column + 8] = rng.integers(100, 256, 3)
        Image.fromarray(picture).save(path / f"picture-{index}.png")
    return path


def clean(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)


def test_fast_forms_for_training_are_the_same_function_of_the_same_weights() -> None:
    torch.manual_seed(0)
    network = ConvNextUNet(SMALL)
    x, t = torch.from_numpy(clean()), torch.tensor([0, 1, 2, 2])
    before, names = network(x, t), list(network.state_dict())
    after = for_training(network)(x, t)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert list(network.state_dict()) == names
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (network(x, t).float() - before).abs().max() < 0.1


def test_a_network_near_identity_returns_nearly_its_input() -> None:
    network = ConvNextUNet(SMALL)
    start_near_identity(network)
    x = torch.from_numpy(clean())
    assert (network(x, torch.tensor([0, 1, 2, 0])) - x).abs().mean() < 0.05


@pytest.mark.parametrize("kind", ["blur", "inpaint", "fade", "snow", "decolor", "noise", "animorphosis"])
def test_every_picture_is_degraded_by_the_severity_that_follows_its_index(kind) -> None:
    spec = BLUR if kind == "blur" else DegradationSpec.of(kind, steps=3)
    x0, end = clean(8), clean(8)[:, ::-1].copy() if kind == "animorphosis" else None
    degrader = Degrader(spec, seed=3)
    x_t, wanted, t = degrader(x0, 7, end=end)
    again = Degrader(spec, seed=3)(x0, 7, end=end)
    for a, b in zip((x_t, wanted, t), again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(wanted, x0)
    assert set(t) <= {0, 1, 2} and len(set(t)) > 1
    assert not np.array_equal(degrader(x0, 8, end=end)[2], t)
    if spec.fixed:
        degradation = spec.build(x0.shape)
        for row, index in enumerate(t):
            np.testing.assert_array_equal(x_t[row : row + 1], degrade(degradation, x0[row : row + 1], int(index) + 1))


def test_quantised_and_lab_pictures_are_what_the_network_sees() -> None:
    x_t, _, _ = Degrader(BLUR, quantised=True)(clean(), 0)
    levels = (x_t + 1) * 127.5
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    _, wanted, _ = Degrader(DegradationSpec.of("decolor", steps=3, lab=True))(clean(), 0)
    assert wanted.max() > 50


def test_the_objective_falls_and_is_the_l1_distance() -> None:
    torch.manual_seed(0)
    model = ColdDiffusion(for_training(ConvNextUNet(SMALL)), BLUR)
    start_near_identity(model.denoise_fn)
    stripes = np.broadcast_to(np.sign(np.sin(np.arange(16) * np.pi / 2 + 0.5)), (4, 3, 16, 16)).astype(np.float32)
    loss_of = objective(model, Degrader(BLUR), lambda step: (stripes, None), torch.device("cpu"))
    first, values = loss_of(0)
    assert values["l1"] == pytest.approx(values["input"], rel=0.2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        loss, _ = loss_of(0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss_of(0)[0] < 0.95 * first


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes at each look at the clock, so a minute is 60 steps."""
    ticks = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def run(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    words = ["--pictures", "folder", "--size", "16", "--dim", "8", "--mults", "1", "2", "--batch", "2"]
    train_cold.main([*words, "--data", str(folder), "--out", str(out), *options])
    return torch.load(out, weights_only=True)


def test_a_run_saves_the_official_wrapper_and_what_the_export_needs(folder, tmp_path, clock) -> None:
    blur = ["--degradation", "blur", "-p", "steps=3", "-p", "routine=Constant", "-p", "size=5", "-p", "std=1.0"]
    state = run(folder, tmp_path / "model.pt", *blur, "--minutes", str(2 / 60), "--quantised")
    assert {"step", "model", "ema"} <= state.keys() and state["step"] == 2
    found = read_cold_checkpoint(tmp_path / "model.pt")
    check_kernels(found.kernels(), Blur(3, "Constant", 5, 1.0).kernels(), "Blur")
    assert ConvNextConfig.from_state(found.network, residual=True) == SMALL
    assert found.about == {
        "degradation": BLUR.to_json(),
        "network": {"kind": "convnext", "dim": 8, "dim_mults": [1, 2], "residual": True},
        "size": 16,
        "quantised": True,
    }
    more = run(folder, tmp_path / "model.pt", *blur, "--minutes", str(3 / 60), "--quantised")
    assert more["step"] == 3  # it went on
    with pytest.raises(CheckpointError, match="train into another file"):
        run(folder, tmp_path / "model.pt", *blur, "--minutes", "1")


@pytest.mark.parametrize("kind", ["animorphosis", "inpaint"])
def test_degradations_that_are_given_or_draw_something_train_too(folder, tmp_path, clock, kind) -> None:
    options = ["--degradation", kind, "-p", "steps=3", "--minutes", str(1 / 60), "--network", "convnext", "--plain"]
    assert run(folder, tmp_path / "a.pt", *options)["about"]["network"]["residual"] is False


def test_wrong_parameters_stop_before_anything_is_read(tmp_path) -> None:
    with pytest.raises(ParameterError, match="blur lacks steps"):
        train_cold.main(["--degradation", "blur", "--data", str(tmp_path), "--out", str(tmp_path / "a.pt")])


def test_pictures_of_a_folder_are_cropped_flipped_and_held_out(folder, tmp_path) -> None:
    pictures = FolderPictures(folder, 16)
    a, b = (pictures.draw(5, np.random.default_rng(seed)) for seed in (0, 0))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (5, 3, 16, 16) and a.dtype == np.float32 and np.abs(a).max() <= 1
    held = sum(held_out(path.name) for path in folder.iterdir())
    assert pictures.unseen().shape == (held, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match="holds 0 pictures"):
        FolderPictures(tmp_path, 16)


def test_emoji_held_out_here_hold_all_that_are_held_out_elsewhere(tmp_path) -> None:
    names = [f"thing-{index}" for index in range(300)]
    rgba = np.zeros((300, 8, 8, 4), np.uint8)
    sets, categories = np.full(300, "noto"), np.full(300, "Objects")
    np.savez(tmp_path / "emoji-8.npz", sets=sets, names=np.array(names), pixels=rgba, categories=categories)
    pictures = EmojiPictures(tmp_path, 8)
    from sfumato.training.emoji import load

    assert all(held_out(e.name) for e in load(tmp_path, size=8) if e.held_out)
    assert len(pictures.unseen()) == sum(map(held_out, names)) and len(pictures.seen) + len(pictures.unseen()) == 300
    assert pictures.draw(3, np.random.default_rng(0)).shape == (3, 3, 8, 8)
    assert (pictures.unseen() == 1).all()  # transparent over white


def test_a_mixture_is_fitted_stored_and_read(folder, tmp_path) -> None:
    pytest.importorskip("sklearn")
    from safetensors.numpy import load_file

    from sfumato.runtime.cold_generation import GaussianMixture

    words = ["--pictures", "folder", "--size", "16", "--data", str(folder), "--count", "60", "--side", "2"]
    fit_mixture.main([*words, "--out", str(tmp_path / "m.safetensors"), "--clusters", "2"])
    mixture = GaussianMixture.of(load_file(tmp_path / "m.safetensors"))
    assert mixture.means.shape == (2, 12) and (np.linalg.eigvalsh(mixture.covariances) > 0).all()
    pictures = clean(5)
    means = fit_mixture.thumbnails(pictures, 1)
    np.testing.assert_allclose(means, pictures.mean(axis=(2, 3)), atol=1e-6)
    with pytest.raises(ParameterError, match="a mixture is weights, means, covariances, the file has weights"):
        GaussianMixture.of({"weights": mixture.weights})
