"""The kernels' source through NVRTC itself, which needs no GPU; and the cache of what it made, on a fake one."""

from __future__ import annotations

import re
import sys

import pytest

from sfumato.engines import kernels
from sfumato.engines.cuda import compile_cubin, open_cuda
from sfumato.engines.kernels import SOURCE
from sfumato.errors import EngineError, MissingDependency


@pytest.mark.parametrize("sm", ["sm86", "sm87", "sm89"])
def test_nvrtc_compiles_every_kernel(sm):
    pytest.importorskip("cuda.core", exc_type=ImportError)
    try:
        cubin = compile_cubin(SOURCE, sm)
    except EngineError as error:
        if "libnvrtc.so" in str(error):  # cuda-core without the library that compiles
            pytest.skip(str(error))
        raise
    assert cubin[:4] == b"\x7fELF"
    for name in re.findall(r"__global__ void (\w+)\(", SOURCE):
        assert f".text.{name}".encode() in cubin


def test_nvrtc_says_what_is_wrong_with_a_source():
    pytest.importorskip("cuda.core", exc_type=ImportError)
    with pytest.raises(EngineError, match="NVRTC cannot compile"):
        compile_cubin("this is no C", "sm86")


def test_without_cuda_core_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(MissingDependency, match=r"sfumato\[cuda\]"):
        compile_cubin(SOURCE, "sm86")


def test_compiled_kernels_are_kept(fake_cuda, cache, monkeypatch):
    open_cuda().kernels  # noqa: B018
    (kept,) = cache.glob("sm86-kernels/*.blob")
    open_cuda.cache_clear()
    monkeypatch.setattr(kernels, "compile_cubin", lambda *_: pytest.fail("compiled again"))
    assert open_cuda().kernels is open_cuda().kernels
    assert kept.exists()


def test_kept_kernels_that_do_not_load_are_compiled_again(fake_cuda, cache, monkeypatch):
    made = []

    def compile_cubin(source, sm):
        made.append(sm)
        return b"nothing" if len(made) == 1 else source.encode()

    monkeypatch.setattr(kernels, "compile_cubin", compile_cubin)
    with pytest.raises(EngineError, match="does not load on sm86"):
        open_cuda().kernels  # noqa: B018
    assert not list(cache.glob("sm86-kernels/*.blob"))
    store = kernels.BlobStore("sm86-kernels", kernels.key("sm86"))
    store.store(b"nothing")
    open_cuda().kernels  # noqa: B018
    assert made == ["sm86", "sm86"]
    loaded = store.load()
    assert loaded is not None
    assert loaded.tobytes() == SOURCE.encode()
