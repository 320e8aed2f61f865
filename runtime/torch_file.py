"""Tensors of a ``.pt`` file, read without torch and without running anything that is written in it.

``torch.save`` writes a zip archive: a pickle that says how tensors are made of storages, and the storages' bytes. The
pickle may name any function of any library; here it may name the few that make tensors, and all others are refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..engines.binding import Array
from ..errors import CheckpointError

__all__ = ["read_tensor_file"]

_TYPES: Mapping[str, str] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ByteStorage": "uint8",
}
LIMIT = 1 << 30
"""Most bytes that a file's members may unpack to, and its tensors may take."""


def read_tensor_file(path: Path | str) -> Any:
    """What ``torch.load(path, weights_only=True)`` gives, with float32 or integer arrays for tensors.

    Half and bfloat16 become float32. Containers are tuples, lists, dicts and OrderedDicts.

    Raises:
        CheckpointError: It is not such a file, or asks for more than tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); pass a .pt file") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: is no zip archive, which torch writes since 1.6; load it with torch and save it again"
        ) from error
    except Exception as error:  # a damaged archive raises anything
        raise CheckpointError(f"{path}: is damaged ({type(error).__name__}: {error}); save it again") from error


def _read(archive: zipfile.ZipFile, path: Path) -> Any:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(names) != 1:
        raise CheckpointError(f"{path}: holds {len(names)} pickles named data.pkl, need one; is it from torch.save?")
    if sum(info.file_size for info in archive.infolist()) > LIMIT:
        raise CheckpointError(f"{path}: unpacks to more than {LIMIT} bytes, too many for embeddings; is it a model?")
    root = names[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise CheckpointError(f"{path}: was written big-endian; save it again on a little-endian machine")
    try:
        return _Unpickler(io.BytesIO(archive.read(names[0])), archive, root, path).load()
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle raises anything
        raise CheckpointError(f"{path}: its pickle is broken ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class _Kind:
    """A storage class of torch, named by the pickle."""

    name: str


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[tuple[_Kind, str], Array] = {}
        self._left = LIMIT

    def find_class(self, module: str, name: str, /) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return _parameter
            case "torch", storage if storage in _TYPES:
                return _Kind(_TYPES[storage])
        raise CheckpointError(
            f"{self._path}: asks for {module}.{name}, which is more than tensors; "
            "save the tensor alone, torch.save(embedding, path)"
        )

    def persistent_load(self, pid: Any, /) -> Array:
        tag, kind, key, _, count = pid
        if tag != "storage" or not isinstance(kind, _Kind) or not str(key).isalnum():
            raise CheckpointError(f"{self._path}: refers to {pid!r}, which is no storage")
        known = kind, str(key)  # tensors may share a storage, which is read once
        if known not in self._storages:
            self._storages[known] = self._storage(*known)
        storage = self._storages[known]
        if len(storage) != int(count):
            raise CheckpointError(f"{self._path}: a storage has {len(storage)} values, its pickle says {count}")
        return storage

    def _storage(self, kind: _Kind, key: str) -> Array:
        data = self._archive.read(f"{self._root}data/{key}")
        if kind.name == "bfloat16":
            words = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
            values: Array = words.view(np.float32)
        else:
            values = np.frombuffer(data, dtype=np.dtype(kind.name).newbyteorder("<"))
        return values.astype(np.float32) if values.dtype.itemsize == 2 else values

    def _tensor(self, storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Array:
        if min((*size, *stride, offset), default=0) < 0 or len(size) != len(stride):
            raise ValueError(f"tensor of size {size} and stride {stride}")
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        values = math.prod(size)
        if values and reach >= len(storage):
            raise ValueError(f"tensor of size {size} reaches past its storage of {len(storage)}")
        self._left -= values * storage.itemsize
        if values > len(storage) or self._left < 0:  # strides of 0 make much of little
            raise CheckpointError(
                f"{self._path}: a tensor of size {size} has {values} values, its storage {len(storage)}, and all "
                f"tensors may take {LIMIT} bytes; save the embedding alone, torch.save(tensor.contiguous(), path)"
            )
        steps = [step * storage.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
        return cast("Array", np.array(view))


def _parameter(data: Array, *_: Any) -> Array:
    return data
