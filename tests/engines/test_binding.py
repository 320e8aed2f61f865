from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.engines.binding import Binding, Dimension, Profile, check_feeds, resolve
from sfumato.errors import BindingError, ParameterError

UNET = SimpleNamespace(
    name="unet",
    inputs=(
        Binding("x", "float32", ("batch", 4, "height", "width")),
        Binding("t", "float32", ("batch",)),
        Binding("y", "int64", ("batch",)),
    ),
    dimensions={"batch": Dimension(1, 2, 8), "height": Dimension(4, 8, 64, 4), "width": Dimension(4, 8, 64, 4)},
)


def feeds(**changes):
    good = {
        "x": np.zeros((2, 4, 8, 12), np.float32),
        "t": np.zeros(2, np.float32),
        "y": np.zeros(2, np.int64),
    }
    return {name: array for name, array in {**good, **changes}.items() if array is not None}


@given(st.integers(1, 8), st.integers(1, 16), st.integers(1, 16))
def test_fitting_feeds_give_the_dimensions(batch, height, width):
    x = np.zeros((batch, 4, 4 * height, 4 * width), np.float32)
    arrays = {"x": x, "t": np.zeros(batch, np.float32), "y": np.zeros(batch, np.int64)}
    assert check_feeds(UNET, arrays) == {"batch": batch, "height": 4 * height, "width": 4 * width}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": None}, "unet: input 't' is missing, given x, y; pass t=float32 (batch,)"),
        ({"tt": np.zeros(2, np.float32)}, "no input is named 'tt', it takes x, t, y; did you mean 't'?"),
        ({"context": np.zeros(2, np.float32)}, "no input is named 'context', it takes x, t, y; leave 'context' out"),
        ({"t": None, "z": np.zeros(2, np.float32)}, "no input is named 'z'"),
        (
            {"t": [1.0, 2.0]},
            "'t' is a list, need a NumPy array float32 (batch,); pass np.asarray(value, dtype=np.float32)",
        ),
        ({"t": np.zeros(2)}, "'t' is float64, the graph takes float32; pass t.astype(np.float32)"),
        ({"t": np.zeros(2, ">f4")}, "'t' is >f4, the graph takes float32"),
        ({"y": np.zeros(2, np.int32)}, "'y' is int32, the graph takes int64"),
        ({"t": np.float32(1)}, "'t' is a float32, need a NumPy array"),
        ({"t": np.zeros((), np.float32)}, "'t' has 0 axes (), the graph has 1; reshape it to float32 (batch,)"),
        ({"x": np.zeros((2, 3, 8, 12), np.float32)}, "'x' has 3 along axis 1, the graph has 4"),
        ({"t": np.zeros(1, np.float32)}, "batch is 2 in 'x' but 1 in 't' (axis 0 of (1,)); give both the same batch"),
        ({"x": np.zeros((2, 4, 68, 12), np.float32)}, "height is 68 in 'x', the bundle allows 4 to 64; use 64"),
        ({"x": np.zeros((2, 4, 0, 12), np.float32)}, "height is 0 in 'x', the bundle allows 4 to 64; use 4"),
        ({"x": np.zeros((2, 4, 9, 12), np.float32)}, "height is 9 in 'x', it must be a multiple of 4; use 8 or 12"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(changes, message):
    with pytest.raises(BindingError, match=re.escape(message)):
        check_feeds(UNET, feeds(**changes))


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
def test_the_profile_of_a_dimension_is_feasible(low, more, most, multiple):
    d = Dimension(low * multiple, (low + more) * multiple, (low + more + most) * multiple, multiple)
    binding = Binding("x", "float32", ("n", 3))
    profile = Profile.of((binding,), {"n": d})
    assert [profile.min["x"], profile.opt["x"], profile.max["x"]] == [(d.min, 3), (d.opt, 3), (d.max, 3)]
    spec = SimpleNamespace(name="net", inputs=(binding,), dimensions={"n": d})
    for shapes in (profile.min, profile.opt, profile.max):
        check_feeds(spec, {"x": np.zeros(shapes["x"], np.float32)})


def test_a_dimension_without_a_value_cannot_be_resolved():
    with pytest.raises(BindingError, match="no value is known for width"):
        resolve(Binding("x", "float32", ("batch", "width")), {"batch": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dimension(0, 1, 2),
        lambda: Dimension(2, 1, 3),
        lambda: Dimension(1, 4, 3),
        lambda: Dimension(4, 6, 8, 4),
        lambda: Dimension(1, 1, 1, 0),
        lambda: Binding("a b", "float32", (1,)),
        lambda: Binding("x", "float16", (1,)),
        lambda: Binding("x", "float32", (0,)),
        lambda: Binding("x", "float32", ("-",)),
    ],
)
def test_impossible_bindings_and_dimensions_cannot_be_made(make):
    with pytest.raises(ParameterError):
        make()
