"""Scales of many tensors against a plain loop over Python numbers."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reversible_hypergrad.reversible.scales import Scales

SHAPE = (5, 3)
PLANE_BYTES = [1, 20, 300, 4000, 50000]


def decay_in_a_loop(a, count, exponent, factor, j):
    """The definition: double until a is above one half, count the doublings; round half up and half down in turn."""
    a, k = a * factor, 0
    while a <= 0.5:
        a, k = 2 * a, k + 1
    k, exponent = k + j, exponent + j
    centre = 0
    if k:
        centre, count = 2 ** (k - 1) - count % 2, count + 1
    return a, count, exponent, k, centre


def assert_same_move(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


factors = st.one_of(
    st.floats(2.0**-16, 1.0), st.integers(0, 16).map(lambda k: 2.0**-k), st.sampled_from([0.9, 0.999, 1 - 2**-53])
)
rows = st.lists(st.lists(factors, min_size=3, max_size=3), min_size=5, max_size=5)
rescales = st.one_of(st.none(), st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=5, max_size=5))
actives = st.one_of(st.none(), st.lists(st.booleans(), min_size=5, max_size=5))


@given(st.lists(st.tuples(rows, actives, rescales), max_size=12))
def test_decays_equal_a_loop_over_python_numbers(steps):
    exponents, of_rule = np.arange(15).reshape(SHAPE) - 40, np.arange(10.0).reshape(5, 2)
    scales = Scales(exponents, plane_bytes=PLANE_BYTES)
    sigma = scales.sigma()
    expected = {index: (1.0, 0, int(exponents[index])) for index in np.ndindex(*SHAPE)}
    for factor, active, rescale in steps:
        move = scales.decay(
            factor,
            of_rule,
            active=None if active is None else np.array(active),
            rescale=None if rescale is None else np.array(rescale),
        )
        shift, centre = move.shifts[:, 1::2], move.shifts[:, 2::2]
        np.testing.assert_array_equal(move.shifts[:, 0], np.ones(len(shift)) if active is None else active)
        np.testing.assert_array_equal(shift.sum(1) @ PLANE_BYTES, move.plane_bytes)
        before, sigma = sigma, scales.sigma()
        np.testing.assert_array_equal(move.numbers, np.column_stack([sigma[:, :-1], before[:, -1], sigma[:, -1], of_rule]))
        for i, j in np.ndindex(*SHAPE):
            k = c = 0
            if active is None or active[i]:
                *state, k, c = decay_in_a_loop(*expected[i, j], factor[i][j], 0 if rescale is None else rescale[i][j])
                expected[i, j] = tuple(state)
            assert (shift[i, j], centre[i, j]) == (k, c)
            now = scales.state
            assert (now.a[i, j], now.count[i, j], now.exponent[i, j]) == expected[i, j]
            assert Fraction(sigma[i, j]) == Fraction(expected[i, j][0]) * Fraction(2) ** expected[i, j][2]


def test_factors_of_one_tensor_serve_all():
    scales, spelled_out = Scales(np.zeros((4, 2), int)), Scales(np.zeros((4, 2), int))
    for _ in range(10):
        assert_same_move(scales.decay([0.9, 1.0]), spelled_out.decay([[0.9, 1.0]] * 4))
    np.testing.assert_array_equal(scales.sigma(), spelled_out.sigma())


def test_an_assigned_state_is_gone_back_to_and_decays_alike():
    scales = Scales([[0, -5], [3, 4]])

    def decay(step):
        return scales.decay([0.7, 0.9], rescale=np.full((2, 2), step % 3))

    log = [(scales.state, decay(step)) for step in range(30)]
    for step, (state, move) in reversed(list(enumerate(log))):
        scales.state = state
        assert_same_move(decay(step), move)


@given(st.lists(st.tuples(rows, rescales), max_size=12))
def test_decays_are_gone_back_from_with_the_fractions_alone(steps):
    scales, log = Scales(np.arange(15).reshape(SHAPE) - 40), []
    for factor, rescale in steps:
        room = None if rescale is None else np.array(rescale)
        log.append((scales.state, factor, room, scales.sigma(), scales.decay(factor, rescale=room)))
    for before, factor, room, sigma, move in reversed(log):
        without_count = replace(before, count=scales.state.count)
        assert_same_move(scales.go_back(without_count, factor, rescale=room), move)
        np.testing.assert_array_equal(scales.state.count, before.count)
        np.testing.assert_array_equal(scales.sigma(), sigma)


@pytest.mark.parametrize("factor", [0.0, 2.0**-17, 1.0000001, float("nan"), -0.5])
def test_a_factor_out_of_range_is_refused_and_changes_nothing(factor):
    scales = Scales([[0, 0]])
    before = scales.state
    with pytest.raises(ValueError, match="factors: expected numbers in"):
        scales.decay([0.5, factor])
    assert scales.state is before


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"exponents: expected shape \(tensors, slots\), got \(2,\)"):
        Scales([1, 2])
    with pytest.raises(ValueError, match="rescale: expected non-negative integers, got -1"):
        Scales([[0, 0]]).decay([1.0, 1.0], rescale=np.array([[0, -1]]))
