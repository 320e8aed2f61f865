from __future__ import annotations

import pytest

from sfumato.engines.precision import PRECISIONS, PrecisionPlan, check_precision
from sfumato.errors import ParameterError


def test_precisions_are_three():
    assert [check_precision(p) for p in PRECISIONS] == ["fp32", "fp16", "bf16"]
    with pytest.raises(ParameterError, match="precision is 'int8', need one of fp32, fp16, bf16"):
        check_precision("int8")


def test_a_plan_refuses_what_it_cannot_mean():
    assert PrecisionPlan("fp16", ("norm",), {"loss": 1024.0}).scales["loss"] == 1024.0
    for make in (lambda: PrecisionPlan("half"), lambda: PrecisionPlan(scales={"loss": 0.0})):
        with pytest.raises(ParameterError):
            make()
