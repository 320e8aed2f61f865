"""The fake of cuda.core against the names and signatures of the real one, as far as they are called."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import fake_cuda as fake
import pytest
from fake_cuda_api import API

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def find(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def hold(module: Any, name: str, wanted: str) -> None:
    """Fail unless `name` is there and takes the parameters that the table says it is called with."""
    found = find(module, name)
    if wanted == "=":
        return
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:  # a class or method that tells nothing
        return
    for parameter in wanted.split():
        bare = parameter.lstrip("*")
        assert bare in parameters, f"{name} has no parameter {bare}"
        by_keyword = parameters[bare].kind is KEYWORD_ONLY
        assert by_keyword == parameter.startswith("*"), (
            f"{name}: {bare} {'by' if by_keyword else 'not by'} keyword alone"
        )
    positional = [p for p in parameters if p != "self" and parameters[p].kind is not KEYWORD_ONLY]
    called = [p for p in wanted.split() if not p.startswith("*")]
    if name not in ("ProgramOptions", "Buffer.from_handle"):  # called by keyword
        assert positional[: len(called)] == called, f"{name} takes {positional} in this order"
    for parameter in (p for p in parameters if p != "self"):
        optional = parameters[parameter].default is not inspect.Parameter.empty
        variadic = parameters[parameter].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        assert optional or variadic or parameter in wanted.replace("*", "").split(), f"{name} wants {parameter} too"


@pytest.mark.parametrize("name", API)
def test_the_fake_has_what_the_table_says(name):
    owner = fake.module()["cuda.core"]
    if name.count(".") and API[name] == "=" and not hasattr(find(owner, name.rsplit(".", 1)[0]), name.split(".")[-1]):
        thing, attribute = name.rsplit(".", 1)
        assert f"self.{attribute}" in inspect.getsource(find(owner, thing))  # set by its constructor
        return
    hold(owner, name, API[name])


@pytest.mark.parametrize("name", API)
def test_the_real_module_has_what_the_table_says(name):
    try:
        found = version("cuda-core")
    except PackageNotFoundError:
        pytest.skip("cuda-core is not installed")
    core = importlib.import_module("cuda.core")
    assert core.__version__ == found
    hold(core, name, API[name])
