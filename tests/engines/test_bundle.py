from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sfumato.engines.storage as storage
from sfumato.engines.bundle import Bundle, BundleWriter, write_bundle
from sfumato.errors import BundleError, IntegrityError, ManifestError


def test_a_written_bundle_opens_and_tells_what_it_holds(tiny):
    bundle = Bundle.open(tiny)
    assert bundle.verified
    assert bundle.manifest.system == "latent-diffusion"
    assert bundle.network("unet").inputs[0].name == "x"
    assert bundle.file("unet.onnx") == tiny / "unet.onnx"
    assert bundle.asset("tokenizer").read_bytes() == b"{}"
    assert bundle.tensors("unet.reference.safetensors")["out/prediction"].dtype == np.float32
    assert not Bundle.open(str(tiny), verify=False).verified


def test_opening_reads_without_heavy_libraries(tiny):
    heavy = ["openvino", "onnxruntime", "onnx", "torch", "safetensors", "PIL", "tokenizers"]
    code = (
        "import sys; from sfumato.engines.bundle import Bundle; from sfumato.engines.engine import available_backends\n"
        f"print(Bundle.open({str(tiny)!r}).manifest.name, sorted(available_backends()))\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_unknown_names_are_answered_with_the_known_ones(tiny):
    bundle = Bundle.open(tiny)
    with pytest.raises(BundleError, match="has no network 'unett', it has unet, class_embedder; name one of them"):
        bundle.network("unett")
    with pytest.raises(BundleError, match="has no asset 'vocabulary', it has tokenizer"):
        bundle.asset("vocabulary")
    with pytest.raises(IntegrityError, match=re.escape("'../x' is not listed in manifest.json")):
        bundle.file("../x")
    with pytest.raises(BundleError, match="'tokenizer.json' is not a safetensors file"):
        bundle.tensors("tokenizer.json")


def test_tensors_of_a_type_that_numpy_lacks_are_refused(models, tmp_path):
    header = b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    bundle = write_bundle(tmp_path / "b", models.manifest(), {"x.safetensors": data})
    try:
        array = bundle.tensors("x.safetensors")["x"]
    except BundleError as error:
        assert "'x.safetensors' is not a safetensors file of NumPy's types" in str(error)
    else:  # a NumPy that was taught the type
        assert array.shape == (1,)


def test_the_digest_follows_graph_and_weights_only(tiny, models, tmp_path):
    first = Bundle.open(tiny).digest("unet")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert models.write_tiny(tmp_path / "renamed", name="other", reference=False).digest("unet") == first
    assert models.write_tiny(tmp_path / "changed", weight=models.WEIGHT + 1).digest("unet") != first


def test_what_is_no_bundle_is_refused(tmp_path, tiny):
    with pytest.raises(BundleError, match="does not exist; a bundle is a folder with manifest.json: pass its path"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is a file; a bundle is a folder"):
        Bundle.open(tiny / "manifest.json")
    with pytest.raises(BundleError, match="has no manifest.json, so it is not a bundle"):
        Bundle.open(tmp_path)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link_out(path: Path) -> None:
    path.rename(path.parent.parent / "outside")
    path.symlink_to("../outside")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "'unet.weights' is missing; copy the bundle again"),
        (_append, "'unet.weights' is altered: 217 bytes, the manifest says 216"),
        (_truncate, "'unet.weights' is truncated: 215 bytes, the manifest says 216"),
        (_link_out, "'unet.weights' is a link out of the bundle"),
        (_folder, "'unet.weights' is not a regular file"),
        (_pipe, "'unet.weights' is not a regular file"),
        (_loop, "'unet.weights' is a broken link"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_file_is_refused_with_its_reason(tiny, damage, message, verify):
    damage(tiny / "unet.weights")
    with pytest.raises(IntegrityError, match=re.escape(message)):
        Bundle.open(tiny, verify=verify)


def test_an_altered_file_of_the_same_length_is_found_by_its_hash(tiny):
    _flip(tiny / "unet.weights")
    Bundle.open(tiny, verify=False)
    with pytest.raises(IntegrityError, match="'unet.weights' is altered: its SHA-256 is .*copy the bundle again"):
        Bundle.open(tiny)


def test_a_file_that_becomes_a_link_after_opening_is_refused(tiny):
    bundle = Bundle.open(tiny)
    _link_out(tiny / "unet.weights")
    with pytest.raises(IntegrityError, match="is a link out of the bundle"):
        bundle.file("unet.weights")


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_written_to_after_opening_is_refused(tiny, verify):
    """Engines open their files on first use, which may be long after the hashes were checked."""
    bundle = Bundle.open(tiny, verify=verify)
    path = bundle.file("unet.weights")
    _flip(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(IntegrityError, match="'unet.weights' was written to since .*open it again"):
        bundle.file("unet.weights")
    assert bundle.file("unet.onnx")


def test_a_bundle_replaced_under_its_reader_is_refused(models, tmp_path):
    old = models.write_tiny(tmp_path / "b")
    models.write_tiny(tmp_path / "b", weight=models.WEIGHT + 1)
    with pytest.raises(IntegrityError, match="open it again"):
        old.file("unet.weights")


def test_what_may_not_be_read_is_said(tiny, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr("sfumato.engines.integrity.sha256_file", refuse)
        with pytest.raises(IntegrityError, match=r"cannot be read \(Permission denied\)"):
            Bundle.open(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", refuse)
        with pytest.raises(BundleError, match=r"cannot be read \(Permission denied\); pass the folder"):
            Bundle.open(tiny)
    with pytest.raises(BundleError, match="name too long|does not exist"):
        Bundle.open("x" * 5000)


def test_a_nested_manifest_is_a_file_like_others(models, tmp_path):
    bundle = write_bundle(tmp_path / "b", models.manifest(), {"a/manifest.json": b"{}"})
    assert "a/manifest.json" in bundle.manifest.files
    Bundle.open(tmp_path / "b")


def test_links_inside_a_bundle_and_to_a_bundle_are_followed(tiny, tmp_path):
    (tiny / "tokenizer.json").rename(tiny / ".kept")
    (tiny / "tokenizer.json").symlink_to(".kept")
    (tmp_path / "link").symlink_to(tiny)
    assert Bundle.open(tmp_path / "link").asset("tokenizer").read_bytes() == b"{}"


def test_unlisted_files_are_refused_but_under_plans_and_behind_dots(tiny):
    (tiny / "plans" / "cpu").mkdir(parents=True)
    (tiny / "plans" / "cpu" / "a.plan").write_bytes(b"")
    (tiny / ".DS_Store").write_bytes(b"")
    Bundle.open(tiny)
    (tiny / "extra").mkdir()
    Bundle.open(tiny)
    (tiny / "extra" / "notes.txt").write_bytes(b"")
    with pytest.raises(
        IntegrityError, match=re.escape("'extra/notes.txt' is not listed in manifest.json; move it out")
    ):
        Bundle.open(tiny)


@pytest.mark.parametrize("name", ["plans", "folder"])
def test_linked_folders_are_refused(tiny, name):
    (tiny / name).symlink_to("/etc")
    with pytest.raises(IntegrityError, match="must not be links|'folder' is not listed"):
        Bundle.open(tiny)


def test_a_linked_manifest_is_refused(tiny):
    (tiny / "manifest.json").rename(tiny.parent / "manifest.json")
    (tiny / "manifest.json").symlink_to("../manifest.json")
    with pytest.raises(IntegrityError, match="must not be links"):
        Bundle.open(tiny)


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_that_points_outside_is_refused(tiny, path):
    (tiny.parent / "secret").write_bytes(b"s")
    tree = json.loads((tiny / "manifest.json").read_text())
    tree["files"][path] = {"sha256": "0" * 64, "bytes": 1}
    (tiny / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ManifestError, match="leads out of the bundle"):
        Bundle.open(tiny)


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "cache")


def test_writing_is_byte_identical_and_leaves_nothing_else(models, tmp_path):
    models.write_tiny(tmp_path / "a")
    models.write_tiny(tmp_path / "b")
    assert listing(tmp_path) == ["a", "b"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_intact_bundle_is_replaced_and_its_plans_go(tiny, models):
    (tiny / "plans").mkdir()
    old = Bundle.open(tiny)
    new = models.write_tiny(tiny, weight=models.WEIGHT + 1)
    assert new.digest("unet") != old.digest("unet")
    assert Bundle.open(tiny).manifest == new.manifest
    assert not (tiny / "plans").exists()
    assert listing(tiny.parent) == ["tiny"]


def test_an_empty_folder_is_filled(models, tmp_path):
    (tmp_path / "a").mkdir()
    models.write_tiny(tmp_path / "a")
    Bundle.open(tmp_path / "a")


def test_what_is_no_intact_bundle_is_not_overwritten(models, tmp_path, tiny):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "cat.png").write_bytes(b"png")
    (tmp_path / "link").symlink_to(tiny)
    (tmp_path / "file").write_bytes(b"")
    _truncate(tiny / "unet.weights")
    before = listing(tmp_path)
    for out in (pictures, tmp_path / "file", tmp_path / "link", tiny):
        with pytest.raises(BundleError, match="exists and is not an intact bundle, so it is not overwritten"):
            models.write_tiny(out)
    assert listing(tmp_path) == before
    assert listing(pictures) == ["cat.png"]


def test_a_bundle_with_foreign_files_is_not_overwritten(models, tiny):
    (tiny / "cat.png").write_bytes(b"png")
    with pytest.raises(BundleError, match="not overwritten .*'cat.png' is not listed"):
        models.write_tiny(tiny)
    assert (tiny / "cat.png").exists()


def test_a_file_that_the_manifest_needs_but_nobody_wrote_is_told(models, tmp_path):
    message = "$.networks.unet.weights[0]: 'unet.weights' is not listed"
    with pytest.raises(ManifestError, match=re.escape(message)):
        write_bundle(tmp_path / "a", models.manifest(models.UNET), {"unet.onnx": b"graph"})
    assert listing(tmp_path) == []


def test_names_and_links_that_a_bundle_cannot_hold_are_refused(models, tmp_path):
    for name in ("../a", "/a", ".hidden"):
        with pytest.raises(BundleError):
            write_bundle(tmp_path / "a", models.manifest(), {name: b""})
    with pytest.raises(BundleError, match="'a' is a link"), BundleWriter(tmp_path / "a") as writer:
        writer.path("a").symlink_to("/etc/hostname")
        writer.commit(models.manifest())
    assert listing(tmp_path) == []
    with pytest.raises(BundleError, match="the writer is not open"):
        BundleWriter(tmp_path / "a").path("a")


def test_sources_are_copied(models, tmp_path):
    (tmp_path / "source").write_bytes(b"asset")
    bundle = write_bundle(tmp_path / "a", models.manifest(assets={"a": "x/y"}), {"x/y": tmp_path / "source"})
    assert bundle.asset("a").read_bytes() == b"asset"
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "b", models.manifest(), {"x": tmp_path / "nowhere"})
    assert listing(tmp_path) == ["a", "source"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("writes", range(4))
def test_a_full_disk_leaves_what_was_there(models, tmp_path, monkeypatch, existing, writes):
    files = {"a": b"a", "b": b"b", "c": b"c"}
    if existing:
        write_bundle(tmp_path / "out", models.manifest(), {"old": b"old"})
    before, left, real = listing(tmp_path), [writes], os.write

    def write(descriptor, data):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(BundleError, match="No space left on device.*free space there, or write elsewhere"):
            write_bundle(tmp_path / "out", models.manifest(), files)
    assert listing(tmp_path) == before
    if existing:
        assert Bundle.open(tmp_path / "out").file("old").read_bytes() == b"old"


def test_a_full_disk_while_an_exporter_writes_is_told_too(models, tmp_path):
    with (
        pytest.raises(BundleError, match=r"out: cannot be written \(No space left on device\)"),
        BundleWriter(tmp_path / "out") as writer,
    ):
        writer.path("unet.onnx").write_bytes(b"partly")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("where", ["sha256_file", "sync_tree", "body", "rename"])
def test_an_interrupt_leaves_what_was_there(models, tmp_path, monkeypatch, where):
    write_bundle(tmp_path / "out", models.manifest(), {"old": b"old"})

    def interrupt(*_):
        raise KeyboardInterrupt

    import sfumato.engines.bundle as module

    if where == "rename":
        real = Path.rename

        def rename(self, target):
            return interrupt() if str(self).endswith(".tmp") else real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
    elif where != "body":
        monkeypatch.setattr(module, where, interrupt)
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "out") as writer:
        writer.write("new", b"new")
        if where == "body":
            interrupt()
        writer.commit(models.manifest())
    monkeypatch.undo()
    assert listing(tmp_path) == ["out"]
    assert Bundle.open(tmp_path / "out").file("old").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(models, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BundleError, match="cannot be created .Permission denied.; choose a folder you may write to"):
        models.write_tiny(tmp_path / "locked" / "a")


def test_files_are_hashed_in_chunks(tiny, monkeypatch):
    monkeypatch.setattr(storage, "CHUNK", 7)
    Bundle.open(tiny)


def test_a_moved_bundle_stays_a_bundle(tiny, tmp_path):
    shutil.move(tiny, tmp_path / "elsewhere")
    Bundle.open(tmp_path / "elsewhere")
