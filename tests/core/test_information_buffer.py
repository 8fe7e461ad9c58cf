"""The buffer on NumPy arrays as a stack of digits, against Python integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reversible_hypergrad import core

WIDTHS = pytest.mark.parametrize("state_bits", [32, 64])


@WIDTHS
@given(data=st.data())
def test_digits_come_back_in_reverse_order(state_bits, data):
    limit = core.FORMATS[state_bits].max_denominator
    bases = data.draw(st.lists(st.sampled_from([1, 2, 10, 1000, limit]) | st.integers(1, limit), max_size=60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    buffer = core.InformationBuffer(lanes=3, state_bits=state_bits)
    pushed = [rng.integers(0, base, 3) for base in bases]
    for digits, base in zip(pushed, bases, strict=True):
        buffer.push(digits, base)
        assert int(buffer.accumulators.max()) < buffer.bound
    for digits, base in zip(reversed(pushed), reversed(bases), strict=True):
        np.testing.assert_array_equal(buffer.pop(base), digits)
    assert buffer.is_empty()
    assert buffer.bound == 1


@WIDTHS
def test_until_it_spills_a_lane_is_a_number_in_mixed_bases(state_bits):
    buffer = core.InformationBuffer(lanes=2, state_bits=state_bits)
    for digits, base in (([7, 0], 10), ([1, 2], 3), ([4, 4], 5)):
        buffer.push(digits, base)
    assert buffer.accumulators.tolist() == [(7 * 3 + 1) * 5 + 4, (0 * 3 + 2) * 5 + 4]
    assert buffer.planes == []


@WIDTHS
def test_pushes_and_contractions_mix(state_bits):
    buffer = core.InformationBuffer(lanes=2, state_bits=state_bits)
    start = values = np.array([123456, -98765])
    for step in range(200):
        values = buffer.contract(values, Fraction(9, 10)) + step
        buffer.push([step % 7, 6 - step % 7], 7)
    assert buffer.planes
    for step in reversed(range(200)):
        np.testing.assert_array_equal(buffer.pop(7), [step % 7, 6 - step % 7])
        values = buffer.expand(values - step, Fraction(9, 10))
    np.testing.assert_array_equal(values, start)
    assert buffer.is_empty()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.push([3, 10], 10), r"digits\[1\].*base 10.*got 10"),
        (lambda b: b.push([-1, 0], 10), r"digits\[0\].*got -1"),
        (lambda b: b.push([1], 10), r"expected shape \(2,\)"),
        (lambda b: b.push([0, 0], 0), "got"),
        (lambda b: b.pop(9), "base: the last operation was a push.. in base 10, got 9"),
        (lambda b: b.expand([1, 2], Fraction(9, 10)), "momentum: the last operation was a push.. in base 10"),
        (lambda b: core.InformationBuffer(2).pop(10), "no push.. is left"),
        (lambda b: core.InformationBuffer(2).expand([1, 2], Fraction(1, 2)), "no contract.. is left"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(call, message):
    buffer = core.InformationBuffer(lanes=2)
    buffer.push([4, 5], 10)
    with pytest.raises(ValueError, match=message):
        call(buffer)
    assert buffer.accumulators.tolist() == [4, 5]
    np.testing.assert_array_equal(buffer.pop(10), [4, 5])
