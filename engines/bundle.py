"""The bundle: a folder with a manifest, ONNX graphs, weights and assets, every file under a SHA-256.

It is the only thing that passes from the workstation to the device. ``docs/bundle.md`` is the specification.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import cast

from ..errors import BundleError, IntegrityError, ParameterError
from .binding import Array
from .integrity import Stamp, check_tree, inside, stamps
from .manifest import MANIFEST_NAME, Artifact, Manifest, NetworkSpec, relative_path
from .storage import UNWRITABLE, atomic_write, cache_dir, copy_hashed, locked, refuse, sha256_file, sync_tree

__all__ = ["Bundle", "BundleWriter", "atomic_write", "cache_dir", "locked", "write_bundle"]


@dataclass(frozen=True)
class Bundle:
    """An open bundle: its manifest, read and held against its files.

    Arguments:
        path: The folder.
        manifest: What is in it.
        verified: Every file's SHA-256 was checked by `open`.
        stamps: Length and time of change of every file as it was checked; one that has changed since is refused.
    """

    path: Path
    manifest: Manifest
    verified: bool = False
    stamps: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp], repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Bundle:
        """Open the bundle in the folder `path`.

        Arguments:
            path: The folder.
            verify: Read every file and compare its SHA-256 (about 1 GB/s). Without it only names, places and lengths
                are checked, and nothing compiled from it enters the cache.

        Raises:
            BundleError: The folder is not a bundle; `ManifestError` or `IntegrityError` when it is a broken one.
        """
        path = Path(path)
        try:
            if not path.is_dir():
                kind = "is a file" if path.exists() else "does not exist"
                raise BundleError(f"{path}: {kind}; a bundle is a folder with {MANIFEST_NAME}: pass its path")
            if not (path / MANIFEST_NAME).is_file():
                raise BundleError(
                    f"{path}: has no {MANIFEST_NAME}, so it is not a bundle; pass what `sfumato export` wrote"
                )
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); pass the folder of a bundle") from error
        manifest = Manifest.read(path / MANIFEST_NAME)
        before = stamps(path, manifest)
        check_tree(path, manifest, hashes=verify)
        return cls(path, manifest, verify, before)

    def network(self, name: str) -> NetworkSpec:
        """The network `name`; `BundleError` lists those there are."""
        try:
            return self.manifest.networks[name]
        except KeyError:
            names = ", ".join(self.manifest.networks) or "none"
            raise BundleError(f"{self.path}: has no network {name!r}, it has {names}; name one of them") from None

    def file(self, relative: str) -> Path:
        """The path of a listed file; `IntegrityError` if it is not listed, or has changed since `open`."""
        if relative not in self.manifest.files:
            raise IntegrityError(f"{self.path}: {relative!r} is not listed in {MANIFEST_NAME}; name a listed file")
        path = inside(self.path, relative)
        if relative in self.stamps:
            state = path.stat()
            if self.stamps[relative] != (state.st_size, state.st_mtime_ns):
                raise IntegrityError(
                    f"{self.path}: {relative!r} was written to since the bundle was opened and checked; open it again"
                )
        return path

    def asset(self, role: str) -> Path:
        """The path of the asset with this role, e.g. "tokenizer"; `BundleError` lists those there are."""
        try:
            relative = self.manifest.assets[role]
        except KeyError:
            roles = ", ".join(self.manifest.assets) or "none"
            raise BundleError(f"{self.path}: has no asset {role!r}, it has {roles}; export it again with one") from None
        return self.file(relative)

    def tensors(self, relative: str) -> dict[str, Array]:
        """The arrays of a safetensors file of the bundle, by name."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        try:
            return cast("dict[str, Array]", load_file(self.file(relative)))
        except (SafetensorError, KeyError, TypeError) as error:  # the latter two for types that NumPy has not
            raise BundleError(
                f"{self.path}: {relative!r} is not a safetensors file of NumPy's types ({error}); export it again"
            ) from error

    def digest(self, network: str) -> str:
        """SHA-256 over the names and hashes of a network's graph and weights: the same weights give the same digest."""
        digest = hashlib.sha256()
        for relative in self.network(network).files:
            digest.update(f"{relative.rpartition('/')[2]}\0{self.manifest.files[relative].sha256}\n".encode())
        return digest.hexdigest()


class BundleWriter:
    """A bundle in the making: a hidden sibling of `out` that becomes `out` on `commit`, or vanishes.

    Example::

        with BundleWriter("my-bundle") as writer:
            torch_export(unet, writer.path("unet.onnx"))    # large files are written in place
            writer.write("tokenizer.json", text.encode())
            bundle = writer.commit(manifest)                 # hashes, syncs, renames

    Arguments:
        out: The folder to write. It may be absent, empty, or an intact bundle, which is then replaced.

    Raises:
        BundleError: `out` is something else, or cannot be written.
    """

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out).absolute()
        self.folder: Path | None = None

    def __enter__(self) -> BundleWriter:
        self._check_target()
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".tmp", dir=self.out.parent))
            self.folder.chmod(0o755)
        except OSError as error:
            refuse("be created", self.out, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            refuse("be written", self.out, error)

    def path(self, relative: str) -> Path:
        """Where to write the file `relative`; its folder exists."""
        if self.folder is None:
            raise BundleError(f"{self.out}: the writer is not open; use it inside `with BundleWriter(out) as writer:`")
        try:
            path = self.folder / relative_path(relative)
        except ParameterError as error:
            raise BundleError(f"{self.out}: {error}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, relative: str, data: bytes) -> Path:
        """Write `data` as the file `relative`."""
        atomic_write(self.path(relative), data)
        return self.path(relative)

    def copy(self, relative: str, source: Path | str) -> Path:
        """Copy the file `source` in as `relative`."""
        copy_hashed(Path(source), self.path(relative))
        return self.path(relative)

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash what was written, write the manifest, and put the bundle in place.

        Arguments:
            manifest: Complete but for `files`, which is filled in here.

        Returns:
            The bundle at `out`, open and verified.

        Raises:
            ManifestError: The manifest breaks the schema or names a file that was not written.
        """
        if self.folder is None:
            raise BundleError(f"{self.out}: the writer is not open; use it inside `with BundleWriter(out) as writer:`")
        paths = sorted(p for p in self.folder.rglob("*") if not p.is_dir() or p.is_symlink())
        listed = {p.relative_to(self.folder).as_posix(): p for p in paths}
        listed.pop(MANIFEST_NAME, None)
        for relative, path in listed.items():
            if path.is_symlink():
                raise BundleError(f"{self.out}: {relative!r} is a link; copy the file in instead")
        files = {relative: Artifact(*sha256_file(path)) for relative, path in listed.items()}
        manifest = Manifest.from_json(replace(manifest, files=files).to_json())
        atomic_write(self.folder / MANIFEST_NAME, manifest.to_bytes())
        sync_tree(self.folder)
        self._swap(self.folder)
        self.folder = None
        return Bundle(self.out, manifest, True, stamps(self.out, manifest))

    def _check_target(self) -> None:
        """Refuse to replace what is neither nothing nor an intact bundle."""
        if not self.out.exists() and not self.out.is_symlink():
            return
        if self.out.is_dir() and not self.out.is_symlink() and not any(self.out.iterdir()):
            return
        try:
            if self.out.is_symlink():
                raise BundleError("it is a link")
            Bundle.open(self.out, verify=False)
        except BundleError as error:
            raise BundleError(
                f"{self.out}: exists and is not an intact bundle, so it is not overwritten ({error}); "
                "remove it yourself, or choose another folder"
            ) from None

    def _swap(self, folder: Path) -> None:
        key = hashlib.sha256(str(self.out).encode()).hexdigest()[:16]
        with locked(cache_dir() / "locks" / key):
            self._check_target()
            if not self.out.exists():
                folder.rename(self.out)
                return
            old = folder.with_name(folder.name + ".old")
            self.out.rename(old)
            try:
                folder.rename(self.out)
            except BaseException:
                old.rename(self.out)
                raise
            shutil.rmtree(old, ignore_errors=True)


def write_bundle(out: Path | str, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a bundle whose files are at hand, as bytes or as paths to copy; see `BundleWriter`."""
    with BundleWriter(out) as writer:
        for relative, source in files.items():
            if isinstance(source, bytes):
                writer.write(relative, source)
            else:
                writer.copy(relative, source)
        return writer.commit(manifest)
