"""Edit directions: the official mean, files that hold them, and files that hold something else."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest

from sfumato.errors import CheckpointError, DirectionError, NonFiniteError, SfumatoError
from sfumato.runtime.direction import Direction, between, mean_states, read_embedding
from sfumato.runtime.torch_file import read_tensor_file


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_official_direction(goldens):
    g = goldens("p2p_direction.npz")
    direction = between(g["emb_src"], g["emb_dst"])
    assert np.allclose(direction.delta, g["direction"], atol=1e-6)
    assert direction.sentences == (5, 7)


def test_the_official_mean_over_sentences(goldens):
    g = goldens("p2p_direction.npz")
    states = iter(g["per_sentence"])
    mean = mean_states(lambda batch: next(states)[None], ["a", "b", "c"], batch=1)
    assert np.allclose(mean, g["sentence_mean"], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 16])
def test_batches_of_any_size_give_one_mean(batch):
    table = random(7, 5, 3)
    sizes, seen = set(), []

    def encode(sentences):
        sizes.add(len(sentences))
        return table[[int(s) for s in sentences]]

    mean = mean_states(encode, [str(i) for i in range(7)], batch=batch, on_progress=seen.append)
    assert np.allclose(mean, table.mean(axis=0), atol=1e-6)
    assert sizes == {batch}
    assert seen[-1] == 7


def test_no_sentence_and_nan_are_refused():
    with pytest.raises(DirectionError, match="no sentence"):
        mean_states(lambda batch: random(1, 2, 3), [])
    with pytest.raises(NonFiniteError):
        mean_states(lambda batch: random(1, 2, 3) * np.nan, ["a"], batch=1)


def test_a_saved_direction_is_read_back(tmp_path):
    direction = between(random(3, 8, 4), random(2, 8, 4), labels=("cat", "großer Hund"), encoder="ab" * 32)
    direction.save(tmp_path / "d.npz")
    again = Direction.load(tmp_path / "d.npz")
    assert np.array_equal(again.delta, direction.delta)
    assert (again.source, again.target, again.encoder, again.sentences) == ("cat", "großer Hund", "ab" * 32, (3, 2))


def test_a_direction_fits_its_own_encoder_alone():
    direction = between(random(3, 8, 4), random(2, 8, 4), labels=("cat", "dog"), encoder="a" * 64)
    assert direction.fit((8, 4), "a" * 64) is direction.delta
    assert between(random(3, 8, 4), random(2, 8, 4)).fit((8, 4), "b" * 64).shape == (1, 8, 4)
    with pytest.raises(DirectionError, match=r"8 tokens of width 4.*gives 77 of 768"):
        direction.fit((77, 768), "a" * 64)
    with pytest.raises(DirectionError, match=r"made with text encoder aaaaaaaaaaaa, the bundle's is bbbbbbbbbbbb"):
        direction.fit((8, 4), "b" * 64)


@pytest.mark.parametrize(
    ("source", "target"), [((3, 8, 4), (3, 8, 5)), ((3, 8, 4), (3, 7, 4)), ((8, 4), (8, 4)), ((0, 8, 4), (1, 8, 4))]
)
def test_sides_of_two_encoders_are_refused(source, target):
    with pytest.raises(DirectionError, match="of one encoder"):
        between(random(*source), random(*target))


@pytest.mark.parametrize("delta", [[1], None, 5.0])
def test_a_direction_of_no_array_is_refused(delta):
    with pytest.raises(DirectionError, match=rf"of type {type(delta).__name__}, need a NumPy array"):
        Direction(delta)


@pytest.mark.parametrize("path", [5, None, np.zeros((1, 2, 3), np.float32)])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(DirectionError, match="need a Direction, or the path"):
        Direction.load(path)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_files_that_hold_no_direction_are_refused(tmp_path):
    about = np.array('{"encoder": "", "sentences": [1, 1], "source": "", "target": ""}')
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cat.pt").write_bytes(b"PK")
    cases = {
        tmp_path / "missing.npz": "cannot be read",
        tmp_path / "text.npz": "is not an .npz of sfumato direction",
        tmp_path / "cat.pt": "holds one side",
        npz(tmp_path / "a.npz", delta=random(1, 2, 3)): "no edit direction",
        npz(tmp_path / "b.npz", delta=random(2, 2, 3), about=about): "need float32 \\(1, tokens, width\\)",
        npz(tmp_path / "c.npz", delta=random(1, 2, 3) * np.nan, about=about): "NaN",
        npz(tmp_path / "d.npz", delta=random(1, 2, 3), about=np.array("{}")): "no edit direction",
        npz(tmp_path / "e.npz", delta=np.array([{}], dtype=object), about=about): "no edit direction",
    }
    for path, words in cases.items():
        with pytest.raises(DirectionError, match=words):
            Direction.load(path)
    with pytest.raises(DirectionError, match="cannot write it"):
        between(random(1, 2, 3), random(1, 2, 3)).save(tmp_path / "no" / "folder" / "d.npz")


# --- files of torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
def test_official_embeddings_are_read_as_torch_reads_them(tmp_path, kind):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(3, 8, 4, dtype=torch.float32).to(getattr(torch, kind))
    torch.save(tensor, tmp_path / "cat.pt")
    found = read_embedding(tmp_path / "cat.pt")
    assert found.dtype == np.float32
    assert np.array_equal(found, tensor.float().numpy())
    torch.save(torch.nn.Parameter(tensor.float()[:, ::2].transpose(0, 1)), tmp_path / "view.pt")
    assert np.array_equal(read_embedding(tmp_path / "view.pt"), tensor.float()[:, ::2].transpose(0, 1).numpy())


def test_containers_of_tensors_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(6).reshape(2, 3), "b": [torch.zeros(0), 1.5, "x"]}, tmp_path / "d.pt")
    value = read_tensor_file(tmp_path / "d.pt")
    assert np.array_equal(value["a"], np.arange(6).reshape(2, 3))
    assert value["b"][0].shape == (0,)
    assert value["b"][1:] == [1.5, "x"]
    with pytest.raises(DirectionError, match="holds dict"):
        read_embedding(tmp_path / "d.pt")
    torch.save(torch.zeros(4), tmp_path / "flat.pt")
    with pytest.raises(DirectionError, match=r"float32 \(4,\)"):
        read_embedding(tmp_path / "flat.pt")


class Evil:
    def __reduce__(self):
        return print, ("run",)


def pickled(path, value):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, 2))
    return path


def test_pickles_that_would_run_something_are_refused(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"asks for .*print, which is more than tensors"):
        read_tensor_file(pickled(tmp_path / "evil.pt", Evil()))
    assert capsys.readouterr().out == ""


def damages(good):
    """Archives that are damaged where zipfile raises other things than BadZipFile."""
    central = good.rfind(b"PK\x01\x02")
    name = central + 46
    return {
        "compression": good[: central + 10] + b"\x63" + good[central + 11 :],
        "encrypted": good[: central + 8] + b"\x01" + good[central + 9 :],
        "name": good[: central + 9] + b"\x08" + good[central + 10 : name] + b"\xff" + good[name + 1 :],
        "method": good[: central + 10] + b"\x08" + good[central + 11 :],
    }


def test_damaged_archives_are_refused_whatever_zipfile_makes_of_them(tmp_path):
    good = pickled(tmp_path / "good.pt", [1.0])
    assert read_tensor_file(good) == [1.0]
    for name, data in damages(good.read_bytes()).items():
        (tmp_path / f"{name}.pt").write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}\.pt"):
            read_tensor_file(tmp_path / f"{name}.pt")


def test_any_damage_gives_the_value_or_the_typed_error(tmp_path):
    data = bytearray(pickled(tmp_path / "good.pt", {"a": [1.5, "x", (2,)]}).read_bytes())
    path = tmp_path / "bad.pt"
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            bad = data.copy()
            bad[place] ^= flip
            path.write_bytes(bad)
            with contextlib.suppress(CheckpointError):
                read_tensor_file(path)


def test_small_files_of_large_tensors_are_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(4).as_strided((1, 20000, 40000), (0, 0, 0)), tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match=r"bomb\.pt: a tensor of size .* has 800000000 values, its storage 4"):
        read_embedding(tmp_path / "bomb.pt")
    one = torch.zeros(1000)
    torch.save([one.view(10, 100), one.view(100, 10), one], tmp_path / "many.pt")
    assert len(read_tensor_file(tmp_path / "many.pt")) == 3
    monkeypatch.setattr("sfumato.runtime.torch_file.LIMIT", 10_000)  # one is 4000 bytes
    with pytest.raises(CheckpointError, match="all tensors may take 10000 bytes"):
        read_tensor_file(tmp_path / "many.pt")


def test_broken_files_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "text.pt").write_text("hello")
    torch.save(torch.zeros(2, 3), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "empty.pt", "w"):
        pass
    pickled(tmp_path / "half.pt", pickle.dumps([1, 2, 3], 2)[:-2])
    cases = {
        "missing.pt": "cannot be read",
        "text.pt": "no zip archive",
        "old.pt": "no zip archive",
        "empty.pt": "0 pickles",
        "half.pt": "pickle is broken",
    }
    for name, words in cases.items():
        with pytest.raises(CheckpointError, match=words):
            read_tensor_file(tmp_path / name)


@pytest.mark.parametrize("what", ["size", "stride", "offset", "short"])
def test_tensors_that_reach_past_their_storage_are_refused(tmp_path, what):
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(4, 5), tmp_path / "good.pt")
    data = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(data, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("data.pkl"):
                content = {
                    "size": lambda c: c.replace(b"K\x04K\x05\x86", b"K\x09K\x05\x86"),
                    "stride": lambda c: c.replace(b"K\x05K\x01\x86", b"K\x50K\x01\x86"),
                    "offset": lambda c: c.replace(b"QK\x00", b"QK\x09"),
                    "short": lambda c: c,
                }[what](content)
                assert what == "short" or content != good.read(name)
            if what == "short" and "/data/" in name:
                content = content[:-8]
            bad.writestr(name, content)
    (tmp_path / "bad.pt").write_bytes(data.getvalue())
    with pytest.raises(SfumatoError):
        read_tensor_file(tmp_path / "bad.pt")
