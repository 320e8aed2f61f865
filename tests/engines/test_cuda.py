"""Device memory, streams, events and graphs, on a fake GPU."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from sfumato.engines.cuda import DeviceArray, open_cuda
from sfumato.errors import BindingError, EngineError, MissingDependency

ROWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


@pytest.fixture
def cuda(fake_cuda):
    return open_cuda()


def test_a_gpu_is_opened_once_and_says_what_it_is(cuda):
    assert open_cuda() is cuda
    assert (cuda.device, cuda.name, cuda.sm) == (0, "Fake", "sm86")


def test_without_cuda_core_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    open_cuda.cache_clear()
    with pytest.raises(MissingDependency, match=r"sfumato\[cuda\]"):
        open_cuda()


def test_a_gpu_that_is_not_there_sends_to_the_doctor(fake_cuda):
    with pytest.raises(EngineError, match="sfumato doctor"):
        open_cuda(3)


def test_what_is_uploaded_comes_back(cuda):
    stream = cuda.stream()
    array = cuda.upload(ROWS, stream)
    assert (array.shape, array.dtype, array.ndim, array.size, array.nbytes, len(array)) == (
        (4, 2, 3), np.float32, 3, 24, 96, 4,
    )  # fmt: skip
    np.testing.assert_array_equal(array.numpy(stream), ROWS)


def test_host_memory_may_change_after_an_upload_and_pinned_memory_is_read_later(cuda):
    stream = cuda.stream()
    source, pinned = ROWS.copy(), cuda.pinned(ROWS.shape, np.float32)
    pinned[:] = ROWS
    ordinary, late = cuda.upload(source, stream), cuda.upload(pinned, stream)
    source[:], pinned[:] = 0, 1
    np.testing.assert_array_equal(ordinary.numpy(stream), ROWS)
    np.testing.assert_array_equal(late.numpy(stream), np.ones_like(ROWS))


def test_slices_and_reshapes_look_at_the_same_memory(cuda):
    stream = cuda.stream()
    array = cuda.upload(ROWS, stream)
    np.testing.assert_array_equal(array[1:3].numpy(stream), ROWS[1:3])
    np.testing.assert_array_equal(array[-1:].reshape((3, -1)).numpy(stream), ROWS[-1:].reshape(3, 2))
    array[2:].fill(7, stream)
    np.testing.assert_array_equal(array.numpy(stream)[2:], np.full((2, 2, 3), 7, np.float32))
    assert array[9:].shape == (0, 2, 3)
    with pytest.raises(BindingError, match="rows a:b alone"):
        array[::2]
    with pytest.raises(BindingError, match="give as many"):
        array.reshape((5, 5))


def test_copies_between_arrays_and_into_pinned_memory(cuda):
    stream = cuda.stream()
    array, other = cuda.upload(ROWS, stream), cuda.empty(ROWS.shape, np.float32)
    other.copy_from(array, stream)
    pinned = cuda.pinned(ROWS.shape, np.float32)
    pinned[:] = 0
    other.copy_to(pinned, stream)
    assert not pinned.any()  # enqueued, not done
    stream.synchronize()
    np.testing.assert_array_equal(pinned, ROWS)


def test_what_does_not_fit_is_refused(cuda):
    stream = cuda.stream()
    array = cuda.upload(ROWS, stream)
    with pytest.raises(BindingError, match="same shape and type"):
        array.copy_from(ROWS[:2], stream)
    with pytest.raises(BindingError, match="same shape and type"):
        array.copy_from(ROWS.astype(np.float64), stream)
    with pytest.raises(BindingError, match="ascontiguousarray"):
        array.copy_from(np.asfortranarray(ROWS), stream)


def test_memory_is_freed_with_the_last_array_that_looks_at_it(cuda, fake_cuda):
    stream = cuda.stream()
    before = fake_cuda.live
    array = cuda.upload(ROWS, stream)
    rows = array[1:]
    assert fake_cuda.live == before + 96
    del array
    gc.collect()
    np.testing.assert_array_equal(rows.numpy(stream), ROWS[1:])
    del rows
    gc.collect()
    assert fake_cuda.live == before


def test_memory_that_is_dropped_is_freed_after_the_work_on_it(cuda):
    stream = cuda.stream()
    array, other = cuda.upload(ROWS, stream), cuda.empty(ROWS.shape, np.float32)
    other.copy_from(array, stream)
    array.close()  # the fake overwrites what is freed
    np.testing.assert_array_equal(other.numpy(stream), ROWS)
    with pytest.raises(EngineError, match="was closed"):
        _ = array.pointer
    array.close()


def test_two_streams_have_the_order_that_events_give(cuda):
    first, second = cuda.stream(), cuda.stream()
    array, result = cuda.empty((4,), np.float32), cuda.empty((4,), np.float32)
    array.fill(3, first)
    second.wait(first.record())
    result.copy_from(array, second)
    np.testing.assert_array_equal(result.numpy(second), np.full(4, 3, np.float32))
    assert first.handle != second.handle


def test_events_measure_time_and_may_be_used_again(cuda):
    stream = cuda.stream()
    begin = stream.record()
    end = stream.record()
    with pytest.raises(EngineError, match="synchronize"):
        end.elapsed(begin)
    end.synchronize()
    assert end.elapsed(begin) > 0
    assert stream.record(begin) is begin
    begin.synchronize()
    assert begin.elapsed(end) > 0


def test_a_graph_does_again_what_was_recorded(cuda):
    stream = cuda.stream()
    source, target = cuda.pinned((4,), np.float32), cuda.empty((4,), np.float32)
    target.fill(0, stream)
    graph = cuda.capture(stream, lambda: target.copy_from(source, stream))
    np.testing.assert_array_equal(target.numpy(stream), np.zeros(4, np.float32))  # recorded, not done
    for value in (1, 2):
        source[:] = value
        graph.launch(stream)
        np.testing.assert_array_equal(target.numpy(stream), np.full(4, value, np.float32))
    graph.close()
    graph.close()


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_usable(cuda):
    stream = cuda.stream()
    with pytest.raises(EngineError, match="cannot be recorded"):
        cuda.capture(stream, lambda: 1 / 0)
    with pytest.raises(EngineError, match="device memory cannot be had|failed"):
        cuda.capture(stream, stream.synchronize)
    np.testing.assert_array_equal(cuda.upload(ROWS, stream).numpy(stream), ROWS)


def test_memory_dropped_while_a_graph_is_recorded_is_freed_afterwards(cuda, fake_cuda):
    stream = cuda.stream()
    held = [cuda.upload(ROWS, stream)]
    seen = []

    def work():
        held.clear()
        seen.append(fake_cuda.live)

    cuda.capture(stream, work)
    assert seen == [96]
    assert fake_cuda.live == 0


def test_the_cuda_array_interface_names_the_memory(cuda):
    array = cuda.upload(ROWS, cuda.stream())
    facts = array[1:].__cuda_array_interface__
    assert facts["version"] == 3
    assert (facts["shape"], facts["typestr"], facts["data"]) == ((3, 2, 3), "<f4", (array.pointer + 24, False))


class Foreign:
    """A tensor of another library, in the fake's device memory."""

    def __init__(self, memory: DeviceArray, strides=None, device=2, interface=True):
        self.memory, self.device = memory, device
        if interface:
            self.__cuda_array_interface__ = {**memory.__cuda_array_interface__, "strides": strides}
        else:
            array = np.zeros((2, 3), np.float32)
            self.__dlpack__ = lambda **_: (array.T if strides else array).__dlpack__()

    def __dlpack_device__(self):
        return self.device, 0


def test_another_librarys_tensor_is_looked_at_without_a_copy(cuda, fake_cuda):
    stream = cuda.stream()
    foreign = Foreign(cuda.upload(ROWS, stream))
    made = fake_cuda.allocations
    array = DeviceArray.view(foreign)
    assert fake_cuda.allocations == made
    del foreign
    gc.collect()
    np.testing.assert_array_equal(array.numpy(stream), ROWS)
    assert DeviceArray.view(array) is array


def test_a_tensor_with_dlpack_alone_is_taken_too(cuda):
    array = DeviceArray.view(Foreign(cuda.empty((1,), np.uint8), interface=False))
    assert (array.shape, array.dtype) == ((2, 3), np.float32)


@pytest.mark.parametrize("strides", [None, True])
def test_what_is_not_on_a_gpu_or_strided_is_refused(cuda, strides):
    memory = cuda.empty((1,), np.uint8)
    with pytest.raises(BindingError):
        DeviceArray.view(np.zeros(3))
    with pytest.raises(BindingError, match="not on a GPU"):
        DeviceArray.view(Foreign(memory, device=1))
    if strides:
        with pytest.raises(BindingError, match="C-contiguous"):
            DeviceArray.view(Foreign(memory, strides=True, interface=False))
    with pytest.raises(BindingError, match="C-contiguous"):
        DeviceArray.view(Foreign(cuda.empty((2, 3), np.float32), strides=(4, 8)))


def test_dlpack_gives_out_the_same_memory(cuda):
    stream = cuda.stream()
    array = cuda.upload(ROWS, stream)
    stream.synchronize()
    assert array.__dlpack_device__() == (2, 0)

    taken = DeviceArray.view(Exported(array))
    assert taken.pointer == array.pointer
    np.testing.assert_array_equal(taken.numpy(stream), ROWS)


class Exported:
    """An array through DLPack alone."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__
