from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.engines.bundle import BundleWriter
from sfumato.engines.engine import open_engine
from sfumato.engines.external import external_files
from sfumato.errors import IntegrityError


def test_the_locations_are_those_the_graph_names(models, tmp_path):
    models.save_unet(tmp_path / "unet.onnx")
    models.save_unet(tmp_path / "inline.onnx", external=False)
    assert external_files(tmp_path / "unet.onnx") == {"unet.weights"}
    assert external_files(tmp_path / "inline.onnx") == set()


def test_locations_in_subgraphs_and_functions_are_found(tmp_path):
    onnx = pytest.importorskip("onnx")

    def tensor(location):
        made = onnx.TensorProto(name=location, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    model = onnx.ModelProto()
    model.graph.initializer.append(tensor("initializer"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    branch = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    branch.g.node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(tensor("constant in a branch"))
    branch.graphs.add().initializer.append(tensor("list of graphs"))
    branch.tensors.append(tensor("list of tensors"))
    model.functions.add().node.add().attribute.add().t.CopyFrom(tensor("function"))
    model.training_info.add().algorithm.initializer.append(tensor("training"))
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {
        *("initializer", "sparse", "constant in a branch", "list of graphs", "list of tensors", "function", "training")
    }


@pytest.mark.parametrize("data", [b"", b"\x3a\x05abc", b"\xff" * 20, b"\x0b", b"\x09\x00"])
def test_what_is_no_graph_is_refused(tmp_path, data):
    path = tmp_path / "a.onnx"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="not an ONNX graph"):
        external_files(path)


@given(st.binary(min_size=1, max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    try:
        external_files(path)
    except IntegrityError:
        pass


def test_a_graph_that_reads_a_foreign_file_is_not_opened(models, tmp_path):
    entry = models.message(1, b"location") + models.message(2, b"../../etc/passwd")
    graph = models.message(7, models.message(5, models.message(13, entry)))
    spec = replace(models.UNET, weights=(), reference=None)
    with BundleWriter(tmp_path / "b") as writer:
        writer.write("unet.onnx", graph)
        bundle = writer.commit(models.manifest(spec))
    message = "'unet.onnx' reads its weights from '../../etc/passwd', the manifest gives it none"
    with pytest.raises(IntegrityError, match=re.escape(message)):
        open_engine(bundle, "unet")
