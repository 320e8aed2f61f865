"""The package as pip sees it: the repository's root folder under the name `sfumato`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import sfumato

ROOT = Path(__file__).parents[1]
NOT_PACKAGES = {"tests", "examples", "benchmarks", "docs", "bundles", "build", "dist", "out"}


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> set[str]:
    """Dotted names of the folders with an ``__init__.py`` that belong to the package."""
    found = {"sfumato"}
    for init in ROOT.glob("*/**/__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts[0] not in NOT_PACKAGES and not parts[0].startswith("."):
            found.add(".".join(("sfumato", *parts)))
    return found


def package_files() -> set[str]:
    """What a wheel holds of the package, as paths in it."""
    files = {"sfumato/py.typed"}
    for name in package_folders():
        folder = ROOT.joinpath(*name.split(".")[1:])
        files |= {f"{name.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
    return files


def fresh_copy(folder: Path) -> Path:
    """The tracked and new files, as a clone in a folder called otherwise would have them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    clone = folder / "another-name"
    for name in listed.stdout.splitlines():
        if name.startswith(("bundles/", "tests/goldens/", "docs/images/")) or not (ROOT / name).is_file():
            continue
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    return clone


def test_the_list_of_packages_is_the_folders():
    assert sorted(project()["tool"]["setuptools"]["packages"]) == sorted(package_folders())


def test_the_root_holds_only_modules_of_the_package():
    """Any other ``*.py`` at the root would enter the wheel."""
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_the_version_is_the_same_everywhere():
    assert project()["project"]["version"] == sfumato.__version__


def test_constraints_pin_what_the_extras_name():
    tables = project()["project"]
    extras = tables["optional-dependencies"]
    # These need a vendor's hardware, and are not installed where the suite runs.
    chosen = set(extras) - {"cuda", "tensorrt"}
    wanted = tables["dependencies"] + [requirement for name in chosen for requirement in extras[name]]
    names = {re.split(r"[\[<>=;]", requirement)[0].strip().lower() for requirement in wanted}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert names == {line.split("==")[0] for line in lines}


def test_constraints_admit_what_is_installed():
    """The suite says "passed" of these versions, so it runs with them."""
    requirements = pytest.importorskip("packaging.requirements")
    metadata = pytest.importorskip("importlib.metadata")
    wrong = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = requirements.Requirement(line)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if (requirement.marker is None or requirement.marker.evaluate()) and version not in requirement.specifier:
            wrong.append(f"{requirement} but {version} is installed")
    assert not wrong


def test_the_command_is_declared():
    assert project()["project"]["scripts"] == {"sfumato": "sfumato.cli:main"}


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_else(tmp_path):
    pytest.importorskip("build")
    clone = fresh_copy(tmp_path)
    for trap in (".venv/lib/trap.py", "out/trap.py", "build/lib/sfumato/trap.txt", "tests/test_trap.py"):
        (clone / trap).parent.mkdir(parents=True, exist_ok=True)
        (clone / trap).write_text("")
    subprocess.run([sys.executable, "-m", "build", "-o", tmp_path / "dist", clone], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == package_files()
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    python = {name for name in members if name.endswith(".py")}
    assert python == {name.removeprefix("sfumato/") for name in package_files() if name.endswith(".py")}
    assert {"LICENSE", "README.md", "pyproject.toml", "py.typed"} <= members


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["install", "editable"])
def test_it_installs_from_a_folder_of_any_name(tmp_path, editable):
    clone = fresh_copy(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "--no-deps", *(["-e"] if editable else []), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    code = "import sfumato, sfumato.errors, pathlib; print(pathlib.Path(sfumato.__file__).parent)"
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (Path(done.stdout.strip()) == clone) is editable
