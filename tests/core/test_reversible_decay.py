"""A state that decays and grows on NumPy arrays, forwards and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reversible_hypergrad import core

WIDTHS = pytest.mark.parametrize("state_bits", [32, 64])
factors = st.floats(2.0**-16, 1.0) | st.sampled_from([1.0, 0.5, 0.25, 2.0**-16, 0.9, 0.99])
operations = st.one_of(
    st.tuples(st.just("decay"), factors),
    st.tuples(st.just("rescale"), st.integers(0, 3)),
    st.tuples(st.just("add"), st.floats(0, 1)),
)


@WIDTHS
@settings(max_examples=60)
@given(data=st.data())
def test_any_sequence_is_undone_bit_for_bit(state_bits, data):
    todo = data.draw(st.lists(operations, max_size=60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    state = core.ReversibleDecay(rng.normal(size=(3, 7)), fraction_bits=16, state_bits=state_bits)
    done = []
    for kind, number in todo:
        before = state.integers, state.scale.sigma, state.bits
        if kind == "decay":
            state.decay(number)
        elif kind == "rescale":
            state.rescale(number)
        else:
            number = number * rng.normal(size=(3, 7))
            try:
                state.add(number)
            except OverflowError:  # the scale has decayed so far that the addition does not fit: refused, nothing changed
                np.testing.assert_array_equal(state.integers, before[0])
                continue
        done.append((kind, number, before))
    for kind, number, (integers, sigma, bits) in reversed(done):
        state.undo_add(number) if kind == "add" else state.undo_decay()
        np.testing.assert_array_equal(state.integers, integers)
        assert (state.scale.sigma, state.bits) == (sigma, bits)
    assert state.bits == state.nbytes == state.limit == 0


def relative_distance(factor, state_bits, fraction_bits, steps=2000):
    """Of a decaying sum from the same sum in float64."""
    gradients = np.random.default_rng(1).normal(size=(steps, 500))
    state, plain = core.ReversibleDecay(np.zeros(500), fraction_bits, state_bits), np.zeros(500)
    for gradient in gradients:
        state.decay(factor)
        state.add(gradient)
        plain = factor * plain + gradient
    return np.linalg.norm(state.values - plain) / np.linalg.norm(plain)


@WIDTHS
@pytest.mark.parametrize("factor", [0.5, 0.9, 0.8731, 0.999])
def test_values_follow_the_sum_in_floats(state_bits, factor):
    # Rounding of one quantum per step, of which 1 / (1 - factor) are remembered, added at random: a relative distance of a
    # few quanta, and of a few eps of the float in which they are taken.
    fraction_bits = {32: 22, 64: 45}[state_bits]
    assert relative_distance(factor, state_bits, fraction_bits) < 4 * 2.0**-fraction_bits


def test_kept_bits_are_below_the_limit_by_less_than_one():
    state = core.ReversibleDecay(np.zeros(1000))
    for step in range(500):
        state.decay(0.9 if step % 2 else 0.99)
        assert state.limit - 1 < state.bits <= state.limit
    assert state.bits == core.planned_bits([0.99, 0.9] * 250)
    assert state.nbytes == state.bits * 125


def test_rescaling_makes_room_and_keeps_the_values():
    state = core.ReversibleDecay([3.0, -3.0], fraction_bits=60)
    with pytest.raises(OverflowError, match=r"x: expected finite numbers below"):
        state.add(3.0)
    state.rescale(20)
    np.testing.assert_array_equal(state.values, [3.0, -3.0])
    state.add(3.0)
    np.testing.assert_array_equal(state.values, [6.0, 0.0])


def test_a_sum_beyond_the_limits_is_refused():
    state = core.ReversibleDecay([100.0], fraction_bits=23, state_bits=32)
    with pytest.raises(OverflowError, match="a sum leaves"):
        state.add(100.0)
    assert state.values == [100.0]


def test_another_addition_is_noticed_before_bits_are_lost():
    """4 halvings leave 4 bits less: a state that fills more cannot have come from that decay."""
    state = core.ReversibleDecay([1.0], fraction_bits=23, state_bits=32)
    state.decay(0.0625)
    state.add(1.0)
    state.undo_add(-8.0)
    before = state.integers, state.scale.sigma
    with pytest.raises(OverflowError, match="contraction"):
        state.undo_decay()
    assert (state.integers, state.scale.sigma) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.undo_add(1.0), r"no add\(\). Undo in reverse order"),
        (lambda s: core.ReversibleDecay([0.0]).undo_add(1.0), r"no add\(\)"),
        (lambda s: core.ReversibleDecay([0.0]).undo_decay(), r"no decay\(\)"),
        (lambda s: s.add([1.0, 2.0, 3.0]), "broadcast|x: expected"),
        (lambda s: s.add([[1.0], [2.0]]), r"x: expected what broadcasts to shape \(2,\), got \(2, 1\)"),
        (lambda s: s.decay(0.0), "factor: expected a number in"),
        (lambda s: core.ReversibleDecay([0.0], state_bits=16), "state_bits: expected 32 or 64, got 16"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(call, message):
    state = core.ReversibleDecay([1.0, 2.0])
    state.add(1.0)
    state.decay(0.5)
    with pytest.raises(ValueError, match=message):
        call(state)
    assert state.values.tolist() == [1.0, 1.5]
    state.undo_decay()
    with pytest.raises(ValueError, match=r"no decay\(\)"):
        state.undo_decay()
    state.undo_add(1.0)
    assert state.values.tolist() == [1.0, 2.0]
