"""The NumPy core against plain integers and fractions: contraction, planes, scales, rate, fixed point."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reversible_hypergrad import _core, core
from reversible_hypergrad.core.fixed_point import SQUARES

WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")
LIMITS = {64: 62, 32: 30}

factors = st.floats(2.0**-16, 1.0) | st.integers(0, 16).map(lambda k: 2.0**-k) | st.sampled_from([0.9, 0.999, 1 - 2**-53])


@st.composite
def moves(draw, state_bits):
    """A shift and a centre: small shifts, the largest, and the two centres of a decay most often."""
    shift = draw(st.integers(0, 9) | st.integers(0, LIMITS[state_bits]))
    half = 2**shift // 2
    return shift, draw(st.sampled_from([half, max(half - 1, 0)]) | st.integers(0, 2**shift - 1))


@st.composite
def arrays(draw, state_bits):
    top = 2 ** LIMITS[state_bits]
    numbers = st.sampled_from([0, 1, -1, top - 1, -top]) | st.integers(-top, top - 1) | st.integers(-100, 100)
    return np.array(draw(st.lists(numbers, max_size=40)), core.FORMATS[state_bits].dtype)


# Formats and layout --------------------------------------------------------------------------------------------------


@WIDTHS
def test_format_is_the_specified_one(state_bits):
    layout = core.FORMATS[state_bits]
    assert (layout.state_bits, layout.limit_bits, layout.increment_bits) == {64: (64, 62, 51), 32: (32, 30, 30)}[state_bits]
    assert layout.dtype == np.dtype(f"int{state_bits}") == np.dtype(str(layout.torch_dtype).removeprefix("torch."))
    assert layout.real == np.dtype(f"float{state_bits}")


def test_format_of_squares_is_the_specified_one():
    assert core.FixedPointFormat(state_bits=64, limit_bits=62, increment_bits=61) == SQUARES


def test_flags_are_the_specified_ones():
    flags = _core.BAD_INCREMENT, _core.STATE_OVERFLOW, _core.BAD_CHANGE, _core.WEIGHT_OVERFLOW, _core.FOREIGN_GRADIENT
    assert flags == (1, 2, 4, 8, 16)


def test_sizes_of_states_blocks_and_planes():
    for size in [*range(1100), 10**6 + 3]:
        assert _core.state_size(size) == 16 * math.ceil(size / 16)
        assert _core.block_count(size) == math.ceil(size / _core.BLOCK_SIZE) == math.ceil(size / 512)
        assert _core.plane_bytes(size) == math.ceil(size / 8)


# Contraction ---------------------------------------------------------------------------------------------------------


@WIDTHS
@settings(max_examples=300)
@given(data=st.data())
def test_contract_and_expand_are_the_integer_arithmetic(state_bits, data):
    shift, centre = data.draw(moves(state_bits))
    values = data.draw(arrays(state_bits))
    before = values.copy()

    contracted, planes = core.contract(values, shift, centre)
    moved = [int(z) + centre for z in values]
    assert contracted.tolist() == [t >> shift for t in moved]
    assert contracted.dtype == values.dtype
    assert planes.shape == (shift, math.ceil(len(values) / 8))
    bits = np.unpackbits(planes, axis=1, bitorder="little") if planes.size else np.zeros((shift, 0), np.uint8)
    assert bits[:, : len(values)].tolist() == [[t >> b & 1 for t in moved] for b in range(shift)]
    assert not bits[:, len(values) :].any()  # unused bits

    np.testing.assert_array_equal(core.expand(contracted, planes, shift, centre), before)
    np.testing.assert_array_equal(values, before)


@WIDTHS
@given(data=st.data())
def test_contraction_by_a_decays_centre_is_division_rounded_to_nearest(state_bits, data):
    values = data.draw(arrays(state_bits))
    shift = data.draw(st.integers(1, 16))
    up, _ = core.contract(values, shift, 2 ** (shift - 1))
    down, _ = core.contract(values, shift, 2 ** (shift - 1) - 1)
    for z, high, low in zip(values.tolist(), up.tolist(), down.tolist(), strict=True):
        exact = Fraction(z, 2**shift)
        assert (high, low) == (math.floor(exact + Fraction(1, 2)), math.ceil(exact - Fraction(1, 2)))


def test_shapes_and_memory_orders():
    values = np.asfortranarray(np.arange(12).reshape(3, 4))
    contracted, planes = core.contract(values, 2, 2)
    np.testing.assert_array_equal(contracted, (values + 2) >> 2)
    np.testing.assert_array_equal(core.expand(contracted[:, ::-1][:, ::-1], planes, 2, 2), values)
    scalar, planes = core.contract(np.int64(7), 1, 1)
    assert scalar.shape == ()
    assert core.expand(scalar, planes, 1, 1) == 7
    assert core.contract(np.zeros(0, np.int32), 3, 4)[1].shape == (3, 0)


@WIDTHS
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_values_beyond_a_limit_are_refused_by_index_and_the_ones_at_it_taken(state_bits, sign):
    dtype, top = core.FORMATS[state_bits].dtype, 2 ** LIMITS[state_bits]
    beyond = top if sign > 0 else -top - 1
    values = np.array([5, -7, beyond, 2], dtype)
    with pytest.raises(OverflowError, match=rf"values\[2\].*got {beyond}"):
        core.contract(values, 1, 1)
    # A contraction by 3 halvings gives -top / 8 to top / 8, both included.
    edge = sign * (top >> 3)
    planes = np.full((3, 1), 255, np.uint8)
    assert core.expand(np.array([edge], dtype), planes, 3, 4).tolist() == [8 * edge + 7 - 4]
    with pytest.raises(OverflowError, match=r"values\[0\].*contraction"):
        core.expand(np.array([edge + sign], dtype), planes, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(3), 1, 1), TypeError, "values: expected an array of int32 or int64, got float64"),
        ((np.zeros(3, np.uint64), 1, 1), TypeError, "got uint64"),
        ((np.zeros(3, np.int16), 1, 1), TypeError, "got int16"),
        ((np.zeros(3, np.int64), -1, 0), ValueError, r"shift: expected an integer in \[0, 62\] for 64-bit"),
        ((np.zeros(3, np.int32), 31, 0), ValueError, r"shift: expected an integer in \[0, 30\] for 32-bit"),
        ((np.zeros(3, np.int64), 0, 1), ValueError, "centre"),
        ((np.zeros(3, np.int64), 2, 4), ValueError, r"centre: .* got 4 with shift 2"),
        ((np.zeros(3, np.int64), 2, -1), ValueError, "centre"),
    ],
)
def test_contract_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        core.contract(*arguments)


@pytest.mark.parametrize(
    ("planes", "error"),
    [
        (np.zeros((1, 2), np.uint8), ValueError),
        (np.zeros((2, 1), np.uint8), ValueError),
        (np.zeros(4, np.uint8), ValueError),
        (np.zeros((2, 2), np.int64), TypeError),
        ([[0, 0], [0, 0]], TypeError),
    ],
    ids=["too few planes", "too short", "flat", "another dtype", "lists"],
)
def test_expand_refuses_other_planes(planes, error):
    with pytest.raises(error, match="planes: expected"):
        core.expand(np.zeros(9, np.int64), planes, 2, 2)


# Scales --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(factors, st.integers(0, 5)), max_size=40), st.integers(-60, 20))
def test_a_scale_is_the_product_of_its_factors_and_is_undone(decays, exponent):
    scale = core.LazyScale(exponent)
    log, halvings, rescaled = [], 0, 0
    for factor, more in decays:
        before = scale.a, scale.exponent, scale.count
        exact = Fraction(scale.a) * Fraction(factor)
        shift, centre = scale.decay(factor, more)
        rescaled += more
        halvings += shift
        assert 0.5 < scale.a <= 1
        # One rounding of one product: the powers of two are exact.
        assert scale.a * 2.0 ** -(shift - more) == float(exact)
        assert centre == (0 if shift == 0 else 2 ** (shift - 1) - before[2] % 2)
        assert (scale.exponent, scale.count) == (exponent + rescaled, before[2] + (shift > 0))
        assert Fraction(scale.sigma) == Fraction(scale.a) * Fraction(2) ** scale.exponent
        log.append((before, (shift, centre)))
    assert halvings == core.planned_bits(factor for factor, _ in decays) + rescaled
    for before, move in reversed(log):
        assert scale.undo() == move
        assert (scale.a, scale.exponent, scale.count) == before
    with pytest.raises(ValueError, match=r"no decay\(\) is left to undo"):
        scale.undo()


@pytest.mark.parametrize("factor", [0.0, 2.0**-17, math.nextafter(1, 2), math.nan, -0.5, math.inf])
def test_a_factor_out_of_range_is_refused_and_changes_nothing(factor):
    scale = core.LazyScale()
    with pytest.raises(ValueError, match="factor: expected a number in"):
        scale.decay(factor)
    with pytest.raises(ValueError, match="rescale: expected at least 0 halvings, got -1"):
        scale.rescale(-1)
    for function in (core.information_limit, core.planned_bits):
        with pytest.raises(ValueError, match="factors: expected numbers in"):
            function([0.5, factor])
    assert (scale.a, scale.exponent, scale.count) == (1, 0, 0)


def test_halves_go_up_and_down_in_turn_so_nothing_drifts_and_nothing_stays():
    """+1 and -1 die out, and the mean of many values is the decayed mean."""
    scale = core.LazyScale()
    small = np.array([1, -1, 2, -2, 3, -3])
    many = start = np.random.default_rng(0).integers(-(2**30), 2**30, 100_000)
    for _ in range(14):  # 14 halvings: 2 ** 30 becomes 2 ** 16, still far above the quantum
        move = scale.decay(0.5)
        small, _ = core.contract(small, *move)
        many, _ = core.contract(many, *move)
    assert not small.any()
    # Each halving of an odd number rounds by 1/2 in one direction or the other; in the end that is below 1 for each value.
    assert abs(many.mean() - start.mean() / 2**14) < 0.5


# Rate ----------------------------------------------------------------------------------------------------------------


@given(st.lists(factors, max_size=200))
def test_planned_bits_are_the_limit_rounded_down(schedule):
    exact = math.prod(map(Fraction, schedule))
    # log2 of the exact product by its bit lengths, since it may be far below the smallest float.
    limit = math.log2(exact.denominator) - math.log2(exact.numerator)
    bits = core.planned_bits(schedule)
    rounding = len(schedule) * 2.0**-52 + 1e-12  # one rounding per product, and those of the logarithms
    assert limit - 1 - rounding < bits <= limit + rounding
    assert core.information_limit(schedule) == pytest.approx(limit, rel=1e-12, abs=1e-12)


def test_planned_bits_take_any_iterable_and_long_schedules():
    assert core.planned_bits(iter([0.5] * 3 + [2.0**-16])) == 19
    assert core.planned_bits([]) == core.information_limit([]) == 0
    assert core.planned_bits([2.0**-16] * 1000) == 16000
    assert core.planned_bits(0.9 + 0.09 * t / 10**5 for t in range(10**5)) == int(
        core.information_limit(0.9 + 0.09 * t / 10**5 for t in range(10**5))
    )


# Fixed point ---------------------------------------------------------------------------------------------------------


@WIDTHS
@given(data=st.data())
def test_quantize_rounds_one_product_to_nearest_even(state_bits, data):
    real = core.FORMATS[state_bits].real.type
    values = np.array(data.draw(st.lists(st.floats(-100, 100, width=32), max_size=20)), real)
    sigma = data.draw(st.sampled_from([2.0**-20, 0.75 * 2.0**-20, 0.9]))
    quanta = core.quantize(values, sigma, state_bits)
    assert quanta.dtype == core.FORMATS[state_bits].dtype
    assert quanta.tolist() == [round(float(v * real(1 / sigma))) for v in values]
    back = core.dequantize(quanta, sigma)
    assert back.dtype == real
    # Half a quantum, and the roundings of 1 / sigma and of the two products, each half an ulp of the value.
    assert np.all(np.abs(back.astype(float) - values) <= 0.5 * sigma + 3 * np.abs(values) * np.finfo(real).eps)


@WIDTHS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**62, -(2.0**63), 1e300])
def test_quantize_refuses_what_does_not_fit(state_bits, bad):
    with pytest.raises(OverflowError, match=r"values: expected finite numbers below .* at \(1,\)"):
        core.quantize([0.0, bad], 1.0, state_bits)


def test_quantize_refuses_a_bad_sigma_or_width():
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma: expected a finite number above 0"):
            core.quantize([1.0], sigma)
    with pytest.raises(ValueError, match="state_bits: expected 32 or 64, got 16"):
        core.quantize([1.0], 1.0, 16)


NOT_INTEGERS = [1.5, 2.0, np.float32(1.5), np.float64(2.0), torch.tensor(1.5), True, "1", None]


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_what_is_no_integer_is_refused_and_not_truncated(value):
    integers, scale = np.array([-7, 6, 5]), core.LazyScale()
    halves, planes = core.contract(integers, 1, 1)
    calls = {
        "shift": lambda: core.contract(integers, value, 1),
        "centre": lambda: core.expand(halves, planes, 1, value),
        "rescale": lambda: scale.decay(0.5, value),
        "exponent": lambda: core.LazyScale(value),
        "fraction_bits": lambda: core.ReversibleDecay([1.0], value),
        "state_bits": lambda: core.quantize([1.0], 0.5, value),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: expected an integer, got"):
            call()
    assert (scale.a, scale.exponent, scale.count) == (1.0, 0, 0)


@pytest.mark.parametrize("one", [np.int32(1), np.uint8(1), torch.tensor(1)], ids=repr)
def test_integers_of_other_libraries_are_integers(one):
    integers = np.array([-7, 6, 5])
    assert np.array_equal(core.contract(integers, one, one)[0], core.contract(integers, 1, 1)[0])
