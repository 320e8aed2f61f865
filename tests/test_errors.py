from __future__ import annotations

import pickle

import pytest

import sfumato.errors as errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_an_sfumato_error_and_stands_in_the_tree(name):
    assert issubclass(getattr(errors, name), errors.SfumatoError)
    assert errors.__doc__ is not None
    assert name in errors.__doc__


def test_errors_are_also_what_python_calls_them():
    assert issubclass(errors.ParameterError, ValueError)
    assert issubclass(errors.MissingDependency, ImportError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.MissingDependency("openvino", "cpu", "the OpenVINO engine"), ["openvino", "sfumato[cpu]"]),
        (errors.NonFiniteError("unet", 3, "prediction"), ["unet", "step 3", "prediction", "fp32"]),
        (errors.NonFiniteError("vae_decoder", None, "image"), ["vae_decoder", "image"]),
    ],
)
def test_errors_with_fields_tell_them_and_survive_pickling(error, words):
    assert all(word in str(error) for word in words)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
