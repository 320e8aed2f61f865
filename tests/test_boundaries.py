"""The layers: imports run downward, and what is lean stays lean."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANK = {
    "errors": 0,
    "engines": 1,
    "networks": 2,
    "runtime": 3,
    "calibration": 4,
    "training": 4,
    "export": 5,
    "cli": 6,
}
"""A folder may import folders of lower rank, and itself."""

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "openvino", "cuda", "PIL")
ONE_FILE = {
    "openvino": "engines/openvino.py",
    "onnxruntime": "engines/onnxruntime.py",
    "PIL": "runtime/image.py",
    "tokenizers": "runtime/tokenizer.py",
    "torch": "runtime/autograd.py",
    "onnx": "engines/onnx_model.py",
    "tensorrt": "engines/builder_library.py",
    "tensorrt_rtx": "engines/builder_library.py",
    "cuda": "engines/cuda.py",
}
"""The one file of engines/ and runtime/ that may meet a library, inside functions."""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def modules(*folders: str) -> list[str]:
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in sources(*folders)]
    return [".".join(("sfumato", *(p for p in names if p != "__init__"))) for names in parts]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import of a file, those in functions and for type checkers included."""
    package = ("sfumato", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *([node.module] if node.module else [])))
            # `from .. import errors` names the module in what is imported.
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def at_module_level(path: Path) -> set[str]:
    """Top names of imports that run when the module is imported."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            match node:
                case ast.Import():
                    found.update(alias.name.split(".")[0] for alias in node.names)
                case ast.ImportFrom(level=0, module=str(module)):
                    found.add(module.split(".")[0])
                case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=other):
                    visit(other)
                case ast.If(body=body, orelse=other):
                    visit(body + other)
                case ast.Try(body=body, handlers=handlers, orelse=other, finalbody=final):
                    visit(body + [s for h in handlers for s in h.body] + other + final)
                case ast.With(body=body) | ast.ClassDef(body=body):
                    visit(body)

    visit(ast.parse(path.read_text()).body)
    return found


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", [name for name in RANK if name != "errors"])
def test_imports_run_downward(folder):
    wrong = []
    for path in sources(folder):
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] != "sfumato" or len(parts) < 2 or parts[1] == folder or parts[1] not in RANK:
                continue
            if RANK[parts[1]] >= RANK[folder]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_the_package_has_a_rank():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(RANK) - {"errors"}


def test_errors_imports_nothing_of_ours():
    assert not [name for _, name in imports(ROOT / "errors.py") if name.startswith("sfumato")]


def test_networks_are_met_in_one_runtime_file():
    """torch definitions are only a fall-back of the runtime, behind autograd.py."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources("engines", "runtime")
        for line, name in imports(path)
        if name.startswith("sfumato.networks") and path.name != "autograd.py"
    ]
    assert not wrong


@pytest.mark.parametrize("path", sources("engines", "runtime", "cli"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_heavy_library_is_imported_in_functions_only(path):
    assert not at_module_level(path) & {*HEAVY, "safetensors", "tokenizers", "diffusers", "transformers"}


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_heavy_library_is_met_in_one_file(library):
    met = {
        path.relative_to(ROOT).as_posix()
        for path in sources("engines", "runtime", "cli")
        for _, name in imports(path)
        if name.split(".")[0] == library
    }
    assert met <= {ONE_FILE[library]}


def test_engines_and_runtime_import_with_heavy_libraries_blocked():
    code = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None            # import raises ModuleNotFoundError
for name in {modules("engines", "runtime")!r}:
    importlib.import_module(name)
print("imported")
"""
    assert run(code) == "imported\n"


def test_the_command_imports_with_heavy_libraries_blocked():
    code = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for name in {modules("cli")!r}:
    importlib.import_module(name)
print("imported")
"""
    assert run(code) == "imported\n"


def test_importing_the_package_imports_nothing_else():
    loaded = json.loads(
        run(
            "import sys; before = set(sys.modules); import sfumato; import json\n"
            "new = {n for n in set(sys.modules) - before if not n.startswith('json')}\n"
            "print(json.dumps(sorted(n for n in new if n.split('.')[0] not in sys.stdlib_module_names)))"
        )
    )
    assert [name for name in loaded if not name.startswith("__editable__")] == ["sfumato"]


def test_importing_the_package_is_quick():
    """150 ms is what was promised; the best of five says what the import costs and not what else the machine did."""
    code = "import time; t = time.perf_counter(); import sfumato; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) < 0.15


def test_nothing_below_the_command_prints():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [ROOT / "errors.py", *sources("engines", "networks", "runtime", "calibration", "export")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_imports_between_folders_are_relative():
    """An absolute import would load a second copy of the package when it is imported under another name."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*(name for name in RANK if name != "errors"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "sfumato")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "sfumato" for alias in node.names))
    ]
    assert not wrong
