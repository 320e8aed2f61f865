from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.engines.manifest import MANIFEST_LIMIT, Artifact, Manifest, ScheduleSpec, relative_path
from sfumato.errors import ManifestError, ParameterError


@pytest.fixture
def good(models):
    """A manifest as a JSON object, every part in use."""
    names = ["unet.onnx", "unet.weights", "unet.reference.safetensors", "alphas.safetensors", "tokenizer.json"]
    made = models.manifest(
        models.UNET,
        schedule=ScheduleSpec("explicit", 10, 0.1, 0.2, "eps", alphas_bar="alphas.safetensors"),
        assets={"tokenizer": "tokenizer.json"},
        settings={"task": "text", "image_size": [64, 64], "null": None},
        files={name: Artifact("0" * 64, 1) for name in names},
    )
    return made.to_json()


def test_a_manifest_survives_writing_and_reading(good, tmp_path):
    manifest = Manifest.from_json(good)
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest.to_bytes())
    assert Manifest.read(path) == manifest
    assert json.loads(path.read_text()) == good
    assert path.read_bytes().endswith(b"}\n")


def test_the_profile_and_files_of_a_network(models):
    assert models.UNET.profile.min == {"x": (1, 4, 2, 2), "t": (1,)}
    assert models.UNET.profile.max == {"x": (4, 4, 16, 16), "t": (4,)}
    assert models.UNET.files == ("unet.onnx", "unet.weights")


REMOVE = object()


def _change(tree, path, value):
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if value is REMOVE:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


NET = ("networks", "unet")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "$.schema: is 2, this sfumato reads 1; use the sfumato that wrote it, or export again"),
        (("schema",), "1", "$.schema: is a string, need an integer"),
        (("schema",), True, "$.schema: is a boolean, need an integer"),
        (("schema",), REMOVE, "$: lacks the key 'schema'; is it a bundle's manifest?"),
        (("license",), REMOVE, "$: lacks the key 'license'"),
        (("license",), "", "$.license: is empty"),
        (("colour",), "red", "$: has an unknown key 'colour'"),
        ((*NET, "colour"), "red", "$.networks.unet: has an unknown key 'colour', allowed are graph, weights"),
        ((*NET, "graph"), None, "$.networks.unet.graph: is null, need a string"),
        ((*NET, "graph"), "../unet.onnx", "$.networks.unet.graph: '../unet.onnx' leads out of the bundle"),
        ((*NET, "graph"), "/etc/passwd", "leads out of the bundle"),
        ((*NET, "graph"), "other.onnx", "$.networks.unet.graph: 'other.onnx' is not listed under 'files'"),
        ((*NET, "weights", 0), "C:\\unet", "$.networks.unet.weights[0]: 'C:\\\\unet' is not a bundle path"),
        ((*NET, "inputs", 0, "dtype"), "float16", "$.networks.unet.inputs[0]: binding 'x' has dtype 'float16'"),
        ((*NET, "inputs", 0, "shape", 1), 0, "$.networks.unet.inputs[0].shape[1]: is 0, need 1 or more"),
        ((*NET, "inputs", 0, "shape", 1), 4.0, "$.networks.unet.inputs[0].shape[1]: is a number, need an integer"),
        ((*NET, "inputs", 1, "name"), "x", "$.networks.unet: network 'unet' has two inputs of one name"),
        ((*NET, "outputs"), [], "network 'unet' has no outputs"),
        ((*NET, "outputs"), {}, "$.networks.unet.outputs: is an object, need an array"),
        ((*NET, "dimensions", "height"), REMOVE, "has inputs over 'height' but no range for it; add a dimension"),
        ((*NET, "dimensions", "depth"), {"min": 1, "opt": 1, "max": 1, "multiple": 1}, "which no binding uses"),
        ((*NET, "dimensions", "height", "max"), 1, "$.networks.unet.dimensions.height: Dimension("),
        ((*NET, "precision", "default"), "int8", "$.networks.unet.precision: precision is 'int8'"),
        ((*NET, "tolerance", "fp8"), 0.1, "$.networks.unet.tolerance: precision is 'fp8'"),
        ((*NET, "tolerance", "fp32"), 0, "$.networks.unet.tolerance.fp32: is 0.0, need a positive number"),
        ((*NET, "parity", "max_abs"), "0", "$.networks.unet.parity.max_abs: is a string, need a number"),
        (("networks", "my net"), {}, "$.networks.my net: the name must be an ASCII identifier"),
        (("networks",), [], "$.networks: is an array, need an object"),
        (("schedule", "betas"), "quadratic", "$.schedule.betas: is 'quadratic', need one of linear, scaled_linear"),
        (("schedule", "alphas_bar"), None, "$.schedule: betas is 'explicit' and alphas_bar None"),
        (("schedule", "steps"), 0, "$.schedule.steps: is 0, need 1 or more"),
        (("schedule", "steps"), 10**12, "$.schedule: steps is 1000000000000, a schedule has 1 to 100000"),
        (("schedule", "steps"), 1000.0, "$.schedule.steps: is a number, need an integer"),
        (("schedule", "learned_variance"), 0, "$.schedule.learned_variance: is an integer, need a boolean"),
        (("schedule", "start"), 10**400, "$.schedule.start: is too large"),
        (("assets", "tokenizer"), "vocab.txt", "$.assets.tokenizer: 'vocab.txt' is not listed under 'files'"),
        (("files", "unet.onnx", "sha256"), "A" * 64, "need 64 lower-case hexadecimal digits"),
        (("files", "unet.onnx", "bytes"), -1, "$.files.unet.onnx.bytes: is -1, need 0 or more"),
        (("files", "a/../b"), {"sha256": "0" * 64, "bytes": 1}, "leads out of the bundle"),
        (("files", "UNET.onnx"), {"sha256": "0" * 64, "bytes": 1}, "are one file where case is not told apart"),
        (("files", "unet.onnx/x"), {"sha256": "0" * 64, "bytes": 1}, "lies under another file"),
        (("files", "plans/x"), {"sha256": "0" * 64, "bytes": 1}, "is a reserved name"),
        (("files", "manifest.json"), {"sha256": "0" * 64, "bytes": 1}, "is a reserved name"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_path(good, path, value, message):
    with pytest.raises(ManifestError, match=re.escape(message)):
        Manifest.from_json(_change(good, path, value))


def test_weights_lie_beside_their_graph(good):
    tree = _change(good, (*NET, "weights", 0), "data/unet.weights")
    with pytest.raises(ManifestError, match=re.escape("'data/unet.weights' is not beside 'unet.onnx'")):
        Manifest.from_json(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"schema": 1', "was it cut short"),
        (b'{"schema": 1, "schema": 2}', "the key 'schema' appears twice in one object"),
        (b'{"schema": 1, "settings": {"a": 1, "a": 1}}', "the key 'a' appears twice"),
        (b'{"schema": NaN}', "holds NaN"),
        (b'{"schema": -Infinity}', "holds -Infinity"),
        (b'{"schema": 1e999}', "holds 1e999"),
        (b'{"name": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "$: is an array, need an object"),
        (b'"x"', "$: is a string, need an object"),
        (b" " * (MANIFEST_LIMIT + 1), "longer than 4194304 bytes"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_manifest_is_refused_by_its_file(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(ManifestError, match=re.escape(message)) as caught:
        Manifest.read(path)
    assert str(caught.value).startswith(str(path))


def test_an_absent_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.read(tmp_path / "manifest.json")


def test_a_manifest_that_is_not_json_cannot_be_written(models):
    for value in (float("nan"), object(), "\ud800"):
        with pytest.raises(ManifestError, match="not JSON"):
            models.manifest(settings={"value": value}).to_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        ".",
        "./a",
        ".a",
        "a.",
        "a/.b",
        "a\\b",
        "a:b",
        "ä",
        "a b",
        "a\0",
    ]
    + ["a" * 101, "/".join(["abcdefghi"] * 30)],
)
def test_paths_that_could_mean_two_things_are_refused(text):
    with pytest.raises(ParameterError):
        relative_path(text)


@given(st.text(alphabet="ab./\\:~ -_", max_size=12))
def test_an_accepted_path_stays_inside(text):
    import posixpath

    try:
        relative_path(text)
    except ParameterError:
        return
    assert posixpath.normpath(posixpath.join("/bundle", text)) == f"/bundle/{text}"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json_is_read_or_refused_with_a_manifest_error(value):
    with pytest.raises(ManifestError):
        Manifest.from_json(value)


def test_replacing_the_files_keeps_the_rest(models, good):
    manifest = Manifest.from_json(good)
    assert replace(manifest, files={}).networks == manifest.networks
