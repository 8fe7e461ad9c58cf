"""The NumPy core against the plain-integer oracle: momentum as a fraction, host schedule, contraction, layout."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import rational_oracle as oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reversible_hypergrad import _core

ROUNDING = Fraction(1, 2**52)
WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")


@st.composite
def fractions(draw, state_bits):
    """Any n/d of (0, 1] that the format allows, reduced or not, the extremes often."""
    limit = oracle.FORMATS[state_bits].max_denominator
    d = draw(st.sampled_from([1, 2, 10, 1000, limit - 1, limit]) | st.integers(1, limit))
    n = draw(st.sampled_from([1, d, max(1, d - 1)]) | st.integers(1, d))
    return n, d


@st.composite
def momenta(draw, state_bits):
    """Floats of (0, 1]: anywhere, decimals, and a hair inside or outside the tolerance around a fraction."""
    kind = draw(st.sampled_from(["anywhere", "decimal", "edge of the tolerance", "near 0", "near 1"]))
    if kind == "decimal":
        digits = draw(st.integers(1, 5))
        return draw(st.integers(1, 10**digits)) / 10**digits
    if kind == "edge of the tolerance":
        n, d = draw(fractions(state_bits))
        relative = oracle.FORMATS[state_bits].tolerance * (1 + Fraction(draw(st.integers(-3, 3)), 2**20))
        slack = relative * min(Fraction(n, d), 1 - Fraction(n, d))
        momentum = float(Fraction(n, d) + draw(st.sampled_from([-1, 1])) * slack)
    elif kind == "near 0":
        momentum = 2.0 ** -draw(st.integers(1, 18)) * draw(st.floats(0.5, 1))
    elif kind == "near 1":
        momentum = 1 - 2.0 ** -draw(st.integers(1, 18)) * draw(st.floats(0.5, 1))
    else:
        momentum = draw(st.floats(0, 1, exclude_min=True))
    assume(0 < momentum <= 1)
    return momentum


# Formats and layout --------------------------------------------------------------------------------------------------


@WIDTHS
def test_format_is_the_specified_one(state_bits):
    fmt = oracle.FORMATS[state_bits]
    assert _core.format_of(state_bits) == {
        "state_bits": state_bits,
        "weight_fraction_bits": fmt.weight_bits,
        "velocity_fraction_bits": fmt.velocity_bits,
        "weight_limit_bits": fmt.weight_limit.bit_length() - 1,
        "velocity_limit_bits": fmt.velocity_limit.bit_length() - 1,
        "capacity": fmt.capacity,
        "max_denominator": fmt.max_denominator,
    }


def test_flags_are_the_specified_ones():
    flags = _core.BAD_GRADIENT, _core.VELOCITY_OVERFLOW, _core.WEIGHT_OVERFLOW, _core.FOREIGN_GRADIENT
    assert flags == (1, 2, 4, 8)
    assert _core.WEIGHTS_PER_LANE == oracle.ROWS


def test_sizes_of_lanes_states_and_blocks():
    for size in [*range(2 * oracle.BLOCK + 20), 10**6 + 3]:
        places = len({lane for lane, _ in oracle.lane_of_weights(size)}) if size < 10**6 else oracle.lane_count(size)
        assert _core.lane_count(size) == oracle.lane_count(size) == places
        assert _core.state_size(size) == oracle.state_size(size)
        assert _core.block_count(size) == oracle.block_count(size)


# Momentum ------------------------------------------------------------------------------------------------------------


@WIDTHS
@settings(max_examples=120)
@given(data=st.data())
def test_momentum_is_the_simplest_fraction_within_the_tolerance(state_bits, data):
    momentum = data.draw(momenta(state_bits))
    # The core decides in double arithmetic, so a fraction within a rounding error of the tolerance may fall either way.
    allowed = [oracle.simplest_fraction(momentum, state_bits, hair) for hair in (Fraction(0), -ROUNDING, ROUNDING)]
    try:
        answer = _core.approximate_momentum(momentum, state_bits)
    except ValueError:
        assert None in allowed
    else:
        assert answer in allowed


@WIDTHS
@pytest.mark.parametrize("text", ["0.1", "0.5", "0.9", "0.95", "0.99", "0.999"])
def test_decimal_momentum_becomes_the_decimal_fraction(state_bits, text):
    assert Fraction(*_core.approximate_momentum(float(text), state_bits)) == Fraction(text)


def test_every_decimal_of_three_digits_is_exact_with_64_bits():
    for thousandths in range(1, 1001):
        assert Fraction(*_core.approximate_momentum(thousandths / 1000, 64)) == Fraction(thousandths, 1000)


@WIDTHS
@pytest.mark.parametrize("momentum", [0.0, -0.0, -0.5, math.nextafter(1, 2), 1.5, math.nan, math.inf, -math.inf, 5e-324])
def test_momentum_outside_the_domain_is_refused(state_bits, momentum):
    with pytest.raises(ValueError, match="momentum"):
        _core.approximate_momentum(momentum, state_bits)


@pytest.mark.parametrize("state_bits", [0, 16, 128, -64])
def test_unknown_width_is_refused(state_bits):
    with pytest.raises(ValueError, match="state_bits"):
        _core.approximate_momentum(0.9, state_bits)
    with pytest.raises(ValueError, match="state_bits"):
        _core.format_of(state_bits)
    with pytest.raises(ValueError, match="state_bits"):
        _core.plan_pushes(1, 9, 10, 8, state_bits)


# Host schedule -------------------------------------------------------------------------------------------------------


@WIDTHS
@settings(max_examples=150)
@given(data=st.data())
def test_plan_is_the_specified_schedule(state_bits, data):
    bound = 1
    for n, d in data.draw(st.lists(fractions(state_bits), min_size=1, max_size=8)):
        count = data.draw(st.integers(0, 20))
        expected = oracle.plan(bound, n, d, count, state_bits)
        assert _core.plan_pushes(bound, n, d, count, state_bits) == expected
        bound = expected[0]


@WIDTHS
@settings(max_examples=150)
@given(data=st.data())
def test_planned_bound_holds_for_every_sequence_of_digits(state_bits, data):
    """s < B after every push, for the largest digits (r = d - 1 always) and for random ones, and s never overflows."""
    capacity = oracle.FORMATS[state_bits].capacity
    random = data.draw(st.randoms(use_true_random=False))
    bound, worst, other = 1, 0, 0
    for n, d in data.draw(st.lists(fractions(state_bits), min_size=1, max_size=8)):
        for _ in range(data.draw(st.integers(1, 12))):
            bound, (spill,) = _core.plan_pushes(bound, n, d, 1, state_bits)
            worst, other = worst >> spill, other >> spill
            worst, other = worst * d + d - 1, other * d + random.randrange(d)
            assert max(worst, other) < capacity
            worst, other = worst // n, other // n
            assert max(worst, other) < bound


@WIDTHS
def test_exact_one_needs_no_buffer(state_bits):
    assert _core.approximate_momentum(1.0, state_bits) == (1, 1)
    assert _core.plan_pushes(1, 1, 1, 100, state_bits) == (1, [0] * 100)


@WIDTHS
@pytest.mark.parametrize(
    ("bound", "n", "d"),
    [(0, 9, 10), (-1, 9, 10), (2**51, 9, 10), (1, 10, 9), (1, 0, 10), (1, -1, 10), (1, 1, 2**16 + 1), (1, 0, 0)],
)
def test_impossible_plan_is_refused(state_bits, bound, n, d):
    with pytest.raises(ValueError, match=r"bound|n/d"):
        _core.plan_pushes(bound, n, d, 8, state_bits)


# Contraction ---------------------------------------------------------------------------------------------------------


def arrays(values, accumulators, state_bits):
    fmt = oracle.FORMATS[state_bits]
    return np.array(values, fmt.signed), np.array(accumulators, fmt.unsigned)


@st.composite
def velocities(draw, state_bits):
    top = oracle.FORMATS[state_bits].velocity_limit - 1
    edges = st.sampled_from([0, 1, -1, top, -top, top - 1, 1 - top])
    return draw(st.lists(edges | st.integers(-top, top) | st.integers(-100, 100), min_size=1, max_size=20))


@WIDTHS
@settings(max_examples=300)
@given(data=st.data())
def test_contract_and_expand_are_the_integer_arithmetic(state_bits, data):
    n, d = data.draw(fractions(state_bits))
    values = data.draw(velocities(state_bits))
    # Up to the largest s that the host schedule lets a push meet.
    top = oracle.FORMATS[state_bits].capacity // d - 1
    s = [data.draw(st.sampled_from([0, top]) | st.integers(0, top)) for _ in values]
    v_array, s_array = arrays(values, s, state_bits)

    _core.contract(v_array, s_array, n, d)
    expected = [oracle.contract(v, one, n, d) for v, one in zip(values, s, strict=True)]
    assert list(zip(v_array.tolist(), s_array.tolist(), strict=True)) == expected

    _core.contract(v_array, s_array, d, n)
    assert (v_array.tolist(), s_array.tolist()) == (values, s)


@WIDTHS
@pytest.mark.parametrize("which", ["1/max", "max-1/max", "max/max", "1/1", "1/2"])
def test_contract_at_the_corners_of_every_range(state_bits, which):
    fmt = oracle.FORMATS[state_bits]
    most = fmt.max_denominator
    n, d = {"1/max": (1, most), "max-1/max": (most - 1, most), "max/max": (most, most), "1/1": (1, 1), "1/2": (1, 2)}[which]
    top = fmt.velocity_limit - 1
    near = [k * d + e for k in (-2, -1, 0, 1, 2) for e in (-1, 0, 1)]
    values = [v for v in [-top, -top + 1, top - 1, top, *near] for _ in range(3)]
    s = [0, 1, fmt.capacity // d - 1] * (len(values) // 3)
    v_array, s_array = arrays(values, s, state_bits)
    _core.contract(v_array, s_array, n, d)
    expected = [oracle.contract(v, one, n, d) for v, one in zip(values, s, strict=True)]
    assert list(zip(v_array.tolist(), s_array.tolist(), strict=True)) == expected
    _core.contract(v_array, s_array, d, n)
    assert (v_array.tolist(), s_array.tolist()) == (values, s)


def run_and_undo(momenta, rng, state_bits):
    """Contract by fraction after fraction, spilling as planned; then backwards to the start. Returns the spills."""
    fmt = oracle.FORMATS[state_bits]
    lanes, half, kick = 40, fmt.velocity_limit // 2 - 1, fmt.velocity_limit // 4
    v, s = arrays(rng.integers(-half, half + 1, lanes), np.zeros(lanes), state_bits)
    v[:2] = -half, half
    start = v.copy()
    plain = [(one, 0) for one in v.tolist()]

    bound, tape = 1, []
    for n, d in momenta:
        bound, (spill,) = _core.plan_pushes(bound, n, d, 1, state_bits)
        low = s & fmt.unsigned((1 << spill) - 1)
        s >>= fmt.unsigned(spill)
        plain = [oracle.contract(one, rest >> spill, n, d) for one, rest in plain]
        _core.contract(v, s, n, d)
        assert list(zip(v.tolist(), s.tolist(), strict=True)) == plain
        # What a gradient does: a push, here towards the side where there is room.
        push = (rng.integers(0, kick, lanes) * np.where(v > 0, -1, 1)).astype(fmt.signed)
        v += push
        plain = [(one + q, rest) for (one, rest), q in zip(plain, push.tolist(), strict=True)]
        tape.append((n, d, spill, low, push))

    for n, d, spill, low, push in reversed(tape):
        v -= push
        _core.contract(v, s, d, n)
        s <<= fmt.unsigned(spill)
        s |= low
    np.testing.assert_array_equal(v, start)
    assert not s.any()
    return [spill for _, _, spill, _, _ in tape if spill]


@WIDTHS
@settings(max_examples=40)
@given(data=st.data())
def test_changing_fractions_are_undone_exactly(state_bits, data):
    momenta = data.draw(st.lists(fractions(state_bits), min_size=1, max_size=6)) * data.draw(st.integers(1, 10))
    run_and_undo(momenta, np.random.default_rng(data.draw(st.integers(0, 2**32))), state_bits)


@WIDTHS
def test_long_schedule_of_momenta_is_undone_exactly(state_bits):
    limit = oracle.FORMATS[state_bits].max_denominator
    momenta = [oracle.simplest_fraction(m, state_bits) for m in (0.9, 0.1, 0.99, 1.0, 0.5)]
    spills = run_and_undo([*momenta, (limit - 1, limit), (1, limit)] * 60, np.random.default_rng(0), state_bits)
    assert {8, 16} == set(spills)
    assert len(spills) > 80


@WIDTHS
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("excess", [0, 1, "type"], ids=["limit", "limit+1", "largest of the type"])
def test_value_beyond_the_limit_names_its_index_and_changes_nothing(state_bits, sign, excess):
    fmt = oracle.FORMATS[state_bits]
    bad = np.iinfo(fmt.signed).max if excess == "type" else fmt.velocity_limit + excess
    if sign < 0:
        bad += 1  # two's complement: minus the limit itself is in range
    v, s = arrays([5, -7, 11, sign * bad, 13], [1, 2, 3, 4, 5], state_bits)
    before = v.copy(), s.copy()
    with pytest.raises(OverflowError, match=r"\[3\]"):
        _core.contract(v, s, 9, 10)
    np.testing.assert_array_equal(v, before[0])
    np.testing.assert_array_equal(s, before[1])


@WIDTHS
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_expansion_never_wraps_around(state_bits, sign):
    """A velocity that no contraction by n/d produced may be refused, but must not become another number silently."""
    fmt = oracle.FORMATS[state_bits]
    value, d = sign * (fmt.velocity_limit - 1), fmt.max_denominator
    v, s = arrays([value], [3], state_bits)
    try:
        _core.contract(v, s, d, 1)
    except OverflowError:
        assert (v.tolist(), s.tolist()) == ([value], [3])
    else:
        assert (v[0], s[0]) == oracle.contract(value, 3, d, 1)


def test_contract_keeps_shapes_and_accepts_nothing():
    v, s = np.arange(6).reshape(2, 3), np.zeros((2, 3), np.uint64)
    _core.contract(v, s, 1, 10)
    assert v.shape == s.shape == (2, 3)
    assert s.tolist() == [[0, 1, 2], [3, 4, 5]]
    _core.contract(np.zeros(0, np.int64), np.zeros(0, np.uint64), 1, 10)


@pytest.mark.parametrize(
    ("values", "accumulators", "error"),
    [
        (np.zeros(3, np.int64), np.zeros(2, np.uint64), ValueError),
        (np.zeros(3, np.int64), np.zeros(3, np.uint32), TypeError),
        (np.zeros(3, np.float64), np.zeros(3, np.uint64), TypeError),
        (np.zeros(6, np.int64)[::2], np.zeros(3, np.uint64), TypeError),
        ([1, 2, 3], [0, 0, 0], TypeError),
    ],
    ids=["too few accumulators", "mixed widths", "floats", "strided", "lists"],
)
def test_contract_refuses_arrays_that_it_cannot_change_in_place(values, accumulators, error):
    with pytest.raises(error):
        _core.contract(values, accumulators, 1, 10)


@WIDTHS
def test_contract_refuses_a_readonly_array(state_bits):
    v, s = arrays([1, 2], [0, 0], state_bits)
    v.flags.writeable = False
    with pytest.raises(ValueError, match="writ"):
        _core.contract(v, s, 1, 10)


@WIDTHS
@pytest.mark.parametrize(("n", "d"), [(0, 10), (1, 0), (-1, 10), (1, 2**16 + 1), (2**16 + 1, 1)])
def test_contract_refuses_a_fraction_outside_the_format(state_bits, n, d):
    v, s = arrays([1, 2], [0, 0], state_bits)
    with pytest.raises(ValueError, match="n/d"):
        _core.contract(v, s, n, d)
