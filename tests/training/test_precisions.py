"""train() in 16 bits, under autocast and on channels-last convolutions: undone bit for bit, and near float64's gradients."""

from __future__ import annotations

import pytest
from precision_problems import PRECISIONS, check


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision(name):
    check(PRECISIONS[name], "cpu")
