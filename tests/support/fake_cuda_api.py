"""What the package calls of cuda.core: `fake_cuda` and the real module are both held to it."""

from __future__ import annotations

CHECKED = "1.2.2"
"""The version of cuda-core that `API` was read from."""

API: dict[str, str] = {
    "Device": "device_id",
    "Device.set_current": "",
    "Device.create_stream": "",
    "Device.allocate": "size *stream",
    "Device.sync": "",
    "Device.device_id": "=",
    "Device.name": "=",
    "Device.compute_capability": "=",
    "Stream.handle": "=",
    "Stream.sync": "",
    "Stream.record": "event options",
    "Stream.wait": "event_or_stream",
    "Stream.create_graph_builder": "",
    "Event.sync": "",
    "Event.__sub__": "=",
    "EventOptions.timing_enabled": "=",
    "Buffer.handle": "=",
    "Buffer.device_id": "=",
    "Buffer.from_handle": "ptr size owner",
    "Buffer.copy_from": "src *stream",
    "Buffer.fill": "value *stream",
    "Buffer.close": "stream",
    "LegacyPinnedMemoryResource.allocate": "size",
    "graph.GraphBuilder.begin_building": "mode",
    "graph.GraphBuilder.end_building": "",
    "graph.GraphBuilder.complete": "",
    "graph.GraphBuilder.close": "",
    "graph.Graph.launch": "stream",
    "graph.Graph.close": "",
    "Program.compile": "target_type",
    "ProgramOptions": "arch std",
    "ObjectCode.from_cubin": "module",
    "ObjectCode.get_kernel": "name",
    "ObjectCode.code": "=",
    "LaunchConfig.grid": "=",
    "LaunchConfig.block": "=",
    "launch": "stream config kernel",
    "utils.StridedMemoryView.from_dlpack": "obj stream_ptr",
    "utils.StridedMemoryView.from_buffer": "buffer shape *dtype",
    "utils.StridedMemoryView.__dlpack__": "=",
}
"""What is called: parameters by name, those after a * by keyword alone; "=" is an attribute."""
