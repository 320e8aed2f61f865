"""Polygraphy, the field's debugger, on the graphs of our bundles: the real tool, as the documentation calls it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

for needed in ("polygraphy", "onnx", "onnx_graphsurgeon", "onnxruntime"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}, of the extra debug", allow_module_level=True)

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "debugging.md").read_text()
GRAPHS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bundles").glob("*/*.onnx"))
QUICK = {"bundles/cold-blur/restorer.onnx", "bundles/emoji-ldm/text_encoder.onnx", "bundles/emoji-ldm/unet.onnx"}
"""The other bundles of a kind have the same graph, and the rest of the networks the same operators."""

TOOL = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; sys.exit(main())"


def polygraphy(folder: Path, *arguments: str, **environment: str) -> str:
    """What the tool says in `folder`; the test fails if it fails."""
    return command(folder, ["polygraphy", *arguments], **environment)


def command(folder: Path, words: list[str], **environment: str) -> str:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=settings, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder that holds the bundles, the documented scripts, and commands of this interpreter's environment."""
    (tmp_path / "bundles").symlink_to(ROOT / "bundles", target_is_directory=True)
    for name, body in re.findall(r"^```python (\S+)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(body)
    for name, start in (("python", ""), ("polygraphy", f"-c {shlex.quote(TOOL)}")):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {start} "$@"\n')
        script.chmod(0o755)
    plant(tmp_path / "planted.onnx")
    return tmp_path


def plant(path: Path) -> None:
    """A graph with external weights of which one node, named guilty, gives infinity or NaN whatever it is fed."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    divisor = np.ones((1, 4, 1, 1), np.float32)
    divisor[0, 2] = 0
    image = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], name="conv_in", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Add", ["b", "one"], ["c"], name="add"),
            helper.make_node("Div", ["c", "divisor"], ["d"], name="guilty"),
            helper.make_node("Add", ["d", "one"], ["e"], name="add_again"),
            helper.make_node("Conv", ["e", "w"], ["y"], name="conv_out", pads=[1, 1, 1, 1]),
        ],
        "planted",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, image)],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(divisor, "divisor"),
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="planted.weights", size_threshold=100)


@pytest.mark.parametrize("graph", GRAPHS)
def test_inspecting_shows_the_manifests_inputs_and_outputs(graph, folder):
    manifest = json.loads((ROOT / graph).with_name("manifest.json").read_text())
    network = manifest["networks"][Path(graph).stem]
    said = polygraphy(folder, "inspect", "model", graph)
    assert "ONNX Opset: 20" in said
    for binding in (*network["inputs"], *network["outputs"]):
        shape = ", ".join(repr(e) if isinstance(e, str) else str(e) for e in binding["shape"])
        shape += "," if len(binding["shape"]) == 1 else ""
        assert f"{binding['name']} [dtype={binding['dtype']}, shape=({shape})]" in said


@pytest.mark.parametrize("graph", [pytest.param(g, marks=[] if g in QUICK else pytest.mark.slow) for g in GRAPHS])
def test_every_graph_runs_with_the_shapes_it_was_told(graph, folder):
    """Those of the stored reference, which lie within the manifest's ranges."""
    reference = (ROOT / graph).with_suffix(".reference.safetensors")
    with safe_open(reference, "np") as stored:
        shapes = {name[3:]: stored.get_slice(name).get_shape() for name in stored.keys() if name.startswith("in/")}
    told = [f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes.items()]
    said = polygraphy(folder, "run", graph, "--onnxrt", "--validate", "--input-shapes", *told)
    assert "PASSED" in said
    assert "NaN Detected" not in said


def test_debug_reduce_finds_the_guilty_node(folder):
    import onnx

    run = ("polygraphy", "run", "polygraphy_debug.onnx", "--onnxrt", "--validate", "--fail-fast")
    told = ("--mode", "bisect", "--model-input-shapes", "x:[1,4,8,8]", "--check", *run)
    polygraphy(folder, "debug", "reduce", "planted.onnx", "-o", "guilty.onnx", *told)
    assert [node.name for node in onnx.load(folder / "guilty.onnx").graph.node] == ["guilty"]


def blocks() -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("block", [b for b in blocks() if "debug reduce" not in b and "unet.onnx" not in b])
def test_the_documented_commands_work(block, folder):
    """Each block of ``docs/debugging.md`` in a shell, which stops at the first command that fails."""
    command(folder, ["sh", "-ec", block])


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks() if "debug reduce" in b or "unet.onnx" in b])
def test_the_longer_documented_commands_work(block, folder):
    command(folder, ["sh", "-ec", block])
