"""The oracle against itself and against plain SGD: undone exactly, in as many bits as the decay loses, and near to float64."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
from core_problems import CHANGING, FRACTION_BITS, WIDTHS, decays_of, fraction_bits


class TwoStates:
    """A rule whose second state looks at the first, new, and whose first looks at the second, old."""

    powers = (1, 1)
    numbers = 2
    decay = 1

    @staticmethod
    def increment(state: int, g, w, z, numbers):
        rate, decay = numbers
        return rate * g + decay * w - rate * z[1] if state == 0 else decay * z[0] + g * rate

    @staticmethod
    def update(z, numbers):
        return numbers[0] * z[0] + numbers[0] * z[1]


class WideFirst:
    """A rule of a wide state and another one, which look at each other and at the weights."""

    powers = (2, 1)
    numbers = 2
    decay = 1

    @staticmethod
    def increment(state: int, g, w, z, numbers):
        rate, decay = numbers
        return rate * (g * g) + decay * (z[1] * z[1]) if state == 0 else rate * g + decay * w - decay * z[0]

    @staticmethod
    def update(z, numbers):
        return numbers[0] * z[1] + numbers[1] * np.sqrt(z[0])


def random_bucket(rule, state_bits: int, sizes: list[int], rng: np.random.Generator) -> oracle.Bucket:
    bits, powers = fraction_bits(rule, state_bits), (*rule.powers, 1)
    slots = [
        [rng.integers(-(2**own) if power == 1 else 0, 2**own, size).tolist() for own, power in zip(bits, powers, strict=True)]
        for size in sizes
    ]
    return oracle.Bucket(rule, state_bits, slots, [[oracle.Scale(-own) for own in bits] for _ in sizes])


NUMBERS = {
    oracle.SGD: (0.5, 0.01, 0.02),
    oracle.Adam: (0.5, 0.25, 0.01, 0.02, 1.2, 1e-3, 0.0),
    TwoStates: (0.5, 0.01),
    WideFirst: (0.5, 0.01),
}


@WIDTHS
@pytest.mark.parametrize("rule", NUMBERS)
def test_undone_exactly_and_redone_after_foreign_gradients(state_bits, rule):
    rng = np.random.default_rng(3)
    sizes = [5, 0, 521]
    bucket = random_bucket(rule, state_bits, sizes, rng)
    numbers, history = [NUMBERS[rule]] * 3, []
    for t in range(6):
        momentum = CHANGING[t % len(CHANGING)]
        factors = [None if (t + i) % 5 == 4 else (*decays_of(rule, momentum), 0.7) for i in range(3)]
        rescale = [(*[t % 2] * len(rule.powers), t % 3) for _ in sizes]
        steps = oracle.plan(rule, bucket.scales, factors, numbers, rescale=rescale)
        before = copy.deepcopy((bucket.slots, bucket.scales))
        gradients = [rng.standard_normal(size).tolist() for size in sizes]
        bucket.step(steps, gradients)
        assert not any(bucket.flags)
        history.append((steps, gradients, before, copy.deepcopy((bucket.slots, bucket.scales))))
    assert history[0][2] != history[-1][3]
    skips = 0
    for steps, gradients, before, after in reversed(history):
        written = [step and step.planes() for step in steps]
        foreign = [[10 ** float(rng.uniform(0, 5)) if rng.random() < 0.1 else g for g in own] for own in gradients]
        foreign[0][0] = math.inf
        bucket.undo(steps, foreign)
        assert bucket.slots != before[0]
        skips += sum(map(sum, bucket.skipped))
        bucket.step(steps, foreign, redo=True)
        assert (bucket.slots, bucket.scales) == after
        assert [step and step.planes() for step in steps] == written
        bucket.undo(steps, gradients)
        assert not any(bucket.flags)
        assert (bucket.slots, bucket.scales) == before
    assert skips


# Wide states ----------------------------------------------------------------------------------------------------------


ADAM = NUMBERS[oracle.Adam]


def adam_kernel(state_bits: int, exponent: int = 0, a: float = 1.0, shift: int = 0, numbers=ADAM, elements=None) -> oracle.Kernel:
    """Of a step that scales the wide state like this and shifts it so far."""
    scales = [oracle.Scale(), oracle.Scale(exponent, a), oracle.Scale()]
    shifts = [(0, 0), (shift, 2**shift // 2), (0, 0)]
    return oracle.Kernel(oracle.Adam, state_bits, oracle.TensorStep(scales, scales, shifts, numbers, elements or [None] * 7))


def rounded(x: Fraction, digits: int) -> Fraction:
    """To so many binary digits, ties to even."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()  # of x, or one more
    unit = Fraction(2) ** (exponent - (2**exponent > x) - digits + 1)
    assert 2 ** (digits - 1) <= x / unit < 2**digits
    return round(x / unit) * unit


MIDDLE = 2**59 + 2**35  # between two floats
AT_ROUNDINGS = [1, 2**24 + 1, 2**53 + 1, 2**53 + 3, MIDDLE, MIDDLE + 1, MIDDLE + 2**36 - 1, 2**61 + 2**8, 2**62 - 1]


@WIDTHS
@pytest.mark.parametrize("z", AT_ROUNDINGS)
@pytest.mark.parametrize("a", [1.0, 0.7, 1.0 - 2.0**-53])
def test_a_wide_state_is_rounded_to_double_scaled_there_and_rounded_once_more(state_bits, z, a):
    value = adam_kernel(state_bits, -45, a).value(1, z)
    assert isinstance(value, oracle.LAYOUTS[state_bits].real)
    expected = rounded(rounded(Fraction(z), 53) * Fraction(a) / 2**45, 53)
    assert Fraction(float(value)) == (rounded(expected, 24) if state_bits == 32 else expected)


def test_rounding_a_wide_state_to_float_at_once_would_show():
    """A little more than the middle between two floats, the even one below, is the middle in double."""
    assert adam_kernel(32).value(1, MIDDLE + 1) == 2.0**59
    assert rounded(Fraction(MIDDLE + 1), 24) == 2**59 + 2**36


@WIDTHS
def test_a_wide_state_is_at_least_a_quantum(state_bits):
    kernel = adam_kernel(state_bits, -40, 0.75)
    for z in (1, 0, -1, -(2**62)):
        assert kernel.value(1, z) == 0.75 * 2.0**-40
    assert kernel.value(1, 2) == 1.5 * 2.0**-40


@WIDTHS
@pytest.mark.parametrize(
    ("quanta", "expected"),
    [
        (0.0, 0),
        (-0.0, 0),
        (0.25, 1),
        (0.5, 1),
        (-0.25, 1),
        (2.0**-100, 1),
        (1.0, 1),
        (1.5, 2),
        (2.5, 2),
        (-1.5, -2),
        (2.0**50, 2**50),
        (2.0**51 - 2**27, 2**51 - 2**27),
        (2.0**61 - 2**37, 2**61 - 2**37),
    ],
)
def test_nothing_but_zero_adds_nothing_to_a_wide_state(state_bits, quanta, expected):
    kernel = adam_kernel(state_bits, -20)
    assert kernel.quanta(1, kernel.real(quanta * 2.0**-20)) == expected


@WIDTHS
@pytest.mark.parametrize("increment", [math.nan, -math.nan, math.inf, -math.inf, 1e30, 2.0**41])
def test_an_increment_outside_the_limits_of_a_wide_state_is_bad(state_bits, increment):
    kernel = adam_kernel(state_bits, -20)
    assert kernel.bad_increment(1, kernel.quanta(1, kernel.real(increment))) == oracle.BAD_INCREMENT


@WIDTHS
def test_an_increment_is_scaled_in_double(state_bits):
    """One of 24 bits by a scale of 53: float would give another integer."""
    kernel = adam_kernel(state_bits, -40, 0.7)
    increment = kernel.real(np.float32(0.3))
    quanta = kernel.quanta(1, increment)
    assert quanta == round(float(increment) * (1.0 / (0.7 * 2.0**-40)))
    assert quanta != round(float(np.float32(increment) * np.float32(1.0 / (0.7 * 2.0**-40))))


@WIDTHS
@pytest.mark.parametrize("shift", [0, 1, 2, 16, 61])
def test_what_a_step_left_is_no_foreign_gradient_and_what_is_beyond_is_one(state_bits, shift):
    layout, kernel = oracle.LAYOUTS[64], adam_kernel(state_bits, shift=shift)
    for centre in (2**shift // 2, max(2**shift // 2 - 1, 0)):
        for z in (0, 1, 2**40 + 77, 2**62 - 1):
            contracted, low = oracle.contract(z, shift, centre, layout)
            assert not kernel.foreign(1, contracted)
            assert oracle.expand(contracted, shift, centre, low, layout) == z
    most = 2 ** (62 - shift) - (shift == 0)
    assert [kernel.foreign(1, z) for z in (0, most, -1, most + 1)] == [False, False, True, True]


def test_a_tensor_without_weight_decay_does_not_see_its_weight():
    per_weight = [None, None, [0.0], None, None, None, None]
    seen = [
        adam_kernel(32, numbers=numbers, elements=elements).sees_weight
        for numbers, elements in [
            ((1.0, 1.0, 0.0, *ADAM[3:]), None),
            ((1.0, 1.0, 0.5, *ADAM[3:]), None),
            ((1.0, 1.0, 0.0, *ADAM[3:]), per_weight),
        ]
    ]
    assert seen == [False, True, True]
    assert oracle.Adam.increment(0, 3.0, None, [], ADAM) == 1.5
    assert oracle.Adam.increment(1, 3.0, 100.0, [], ADAM) == 4.0


def test_a_wide_state_among_integers_of_32_bits_is_hashed_counted_and_kept_as_one_of_64():
    """And its planes are as long as the others'."""
    bucket = random_bucket(oracle.Adam, 32, [21, 9], np.random.default_rng(1))
    bucket.slots[0][1][20] = top = 2**61 + 2**40 + 5
    m, s, x = bucket.slots[1]
    streams = [(x, 0, 32), (m, 1, 32), (s, 2, 64)]
    whole = bucket.hash(True, True)
    assert bucket.hash(False, True) != whole != bucket.hash(True, False)
    of_first = oracle.Bucket(oracle.Adam, 32, bucket.slots[:1], bucket.scales[:1]).hash(True, True)
    rest = sum(oracle.hash_of_slot(z, 32, stream, oracle.LAYOUTS[bits]) for z, stream, bits in streams)
    assert (of_first + rest - whole) % 2**64 == 0
    steps = oracle.plan(oracle.Adam, bucket.scales, [(0.5, 0.25, 1.0), None], [ADAM] * 2)
    before = copy.deepcopy(bucket.slots)
    bucket.step(steps, [[0.0] * 21, None])
    ((of_m, of_s, of_x), of_none) = bucket.used(steps)
    assert of_s % 2**64 >= 2**60
    assert 0 < of_m < 2**32 > of_x > 0
    assert of_none == [0, 0, 0]
    assert len(steps[0].planes()) == (1 + 2) * 3
    assert steps[0].low[1][20] == (top + 2) % 4
    bucket.undo(steps, [[0.0] * 21, None])
    assert bucket.slots == before


@WIDTHS
def test_a_wide_state_of_squares_never_falls_below_zero(state_bits):
    """Whatever the gradients and decays; so a right gradient is never a foreign one."""
    rng = np.random.default_rng(2)
    bucket = random_bucket(oracle.Adam, state_bits, [40], rng)
    bucket.slots[0][1][:3] = [0, 1, 2**61]
    numbers = (0.1, 0.01, 0.0, 0.0, 1.0, 1e-8, 0.0)
    for t in range(40):
        steps = oracle.plan(oracle.Adam, bucket.scales, [(*decays_of(oracle.Adam, CHANGING[t % 7]), 1.0)], [numbers])
        gradients = (rng.standard_normal(40) * 10.0 ** rng.choice([-300, -40, -8, -3, 0], 40)).tolist()
        before = copy.deepcopy(bucket.slots)
        bucket.step(steps, [gradients])
        assert bucket.flags == [0]
        assert min(bucket.slots[0][1]) >= 0
        after = copy.deepcopy(bucket.slots)
        bucket.undo(steps, [gradients])
        assert bucket.flags == [0]
        assert bucket.slots == before
        bucket.step(steps, [gradients])
        assert bucket.slots == after


@pytest.mark.parametrize(("state_bits", "tolerance"), [(64, 1e-9), (32, 3e-5)])
def test_near_to_adam_in_float64(state_bits, tolerance):
    """Of a quadratic bowl that keeps moving, with curvatures of two magnitudes; the biases corrected. Where the gradients are the
    smallest, s is 1e-6 or so, and one of its roundings 2^-55."""
    rng = np.random.default_rng(1)
    size, steps, (b1, b2), lr, eps = 6, 300, (0.9, 0.99), 0.02, 1e-8
    curvature, goal = 10.0 ** rng.uniform(-2, 0, size), rng.uniform(-1, 1, size)
    bits = [FRACTION_BITS[state_bits][0], 54, FRACTION_BITS[state_bits][1]]
    w, m, s = np.round(rng.uniform(-1, 1, size) * 2**20) / 2**20, np.zeros(size), np.zeros(size)
    slots = [[[0] * size, [0] * size, (w * 2.0 ** bits[-1]).astype(int).tolist()]]
    bucket = oracle.Bucket(oracle.Adam, state_bits, slots, [[oracle.Scale(-own) for own in bits]])
    for t in range(1, steps + 1):
        seen = np.array(bucket.slots[0][2]) * bucket.scales[0][2].sigma
        gradient = curvature * (seen - goal * math.cos(0.1 * t))
        numbers = (1 - b1, 1 - b2, 0.001, lr / (1 - b1**t), 1 / math.sqrt(1 - b2**t), eps, 0.0)
        bucket.step(oracle.plan(oracle.Adam, bucket.scales, [(b1, b2, 1.0)], [numbers]), [gradient.tolist()])
        assert bucket.flags == [0]
        d = curvature * (w - goal * math.cos(0.1 * t)) + 0.001 * w
        m, s = b1 * m + (1 - b1) * d, b2 * s + (1 - b2) * d * d
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + eps)
    seen = np.array(bucket.slots[0][2]) * bucket.scales[0][2].sigma
    assert np.linalg.norm(seen - w) < tolerance * np.linalg.norm(w)


# Scales, planes and rounding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [2.0**-16, 0.1, 0.5, 0.8731, 0.9, 0.99, 1.0, "changing"])
def test_bits_are_those_that_the_momentum_loses(momentum):
    scale, bits, product = oracle.Scale(-47), 0, 0.0
    for t in range(3000):
        factor = CHANGING[t % len(CHANGING)] if momentum == "changing" else momentum
        scale, (k, centre) = scale.after(factor)
        assert 0.5 < scale.a <= 1.0
        assert centre in ((2 ** (k - 1), 2 ** (k - 1) - 1) if k else (0,))
        bits, product = bits + k, product - math.log2(factor)
        assert product - 1 - 1e-9 < bits < product + 1e-9
        assert math.isclose(math.log2(scale.sigma) - bits, -47 - product, rel_tol=1e-12)


def test_shifts_have_no_drift():
    """Halves go up and down in turn, so an integer that only ever shrinks ends at 0 or stays where its rounding is even."""
    layout = oracle.LAYOUTS[64]
    for start in (-1000, -3, -1, 1, 3, 1000):
        z, scale, lost = start, oracle.Scale(), 0
        for _ in range(40):
            scale, (k, centre) = scale.after(0.5)
            z, _ = oracle.contract(z, k, centre, layout)
            lost += k
        assert z == 0, start


@pytest.mark.parametrize(("momentum", "lr"), [(0.9, 0.1), (0.99, 0.02), (0.8731, 0.1)])
@pytest.mark.parametrize(("state_bits", "tolerance"), [(64, 1e-10), (32, 1e-5)])
def test_near_to_sgd_in_float64(state_bits, tolerance, momentum, lr):
    """Of a quadratic bowl that keeps moving. A rounding of V is 2^-41 or 2^-24 at most, of which lr/(1 - momentum), 2
    at most, reaches X; 300 of them add like random numbers, to 2e-11 and 2e-6."""
    rng = np.random.default_rng(1)
    size, steps = 6, 300
    curvature, goal = rng.uniform(0.05, 1, size), rng.uniform(-1, 1, size)
    fraction = FRACTION_BITS[state_bits]
    w, v = np.round(rng.uniform(-1, 1, size) * 2**20) / 2**20, np.zeros(size)
    x = (w * 2.0 ** fraction[1]).astype(int).tolist()
    bucket = oracle.Bucket(oracle.SGD, state_bits, [[[0] * size, x]], [[oracle.Scale(-bits) for bits in fraction]])
    for t in range(steps):
        seen = np.array(bucket.slots[0][1]) * bucket.scales[0][1].sigma
        for mine, weights in ((True, seen), (False, w)):
            gradient = curvature * (weights - goal * math.cos(0.1 * t))
            if mine:
                bucket.step(
                    oracle.plan(oracle.SGD, bucket.scales, [(momentum, 1.0)], [(1.0, 0.001, lr)]),
                    [gradient.tolist()],
                )
                assert bucket.flags == [0]
            else:
                v = momentum * v + gradient + 0.001 * w
                w = w - lr * v
    seen = np.array(bucket.slots[0][1]) * bucket.scales[0][1].sigma
    assert np.linalg.norm(seen - w) < tolerance * np.linalg.norm(w)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.5, 0),
        (1.5, 2),
        (-2.5, -2),
        (2.0**51 - 1, 2**51 - 1),
        (-(2.0**51), -(2**51)),
    ],
)
def test_rounding_inside_the_limits(x, expected):
    assert oracle.SQUARES.rint(x) == expected
    assert oracle.LAYOUTS[64].rint(x) == expected
    if abs(x) < 2**30:
        assert oracle.LAYOUTS[32].rint(np.float32(x)) == expected


@pytest.mark.parametrize("x", [math.nan, -math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**51, -(2.0**51) - 1, 1e308])
def test_rounding_outside_the_limits_stays_outside(x):
    for layout in oracle.LAYOUTS.values():
        with np.errstate(all="ignore"):
            assert oracle.outside(layout.rint(layout.real(x)), layout.change_limit)


@pytest.mark.parametrize("x", [2.0**51 + 0.5, 2.0**51 + 1.5, -(2.0**51) - 0.5, 2.0**53 + 2, 2.0**61 - 2**8, -(2.0**61)])
def test_rounding_of_squares_inside_the_limits(x):
    assert oracle.SQUARES.rint(x) == round(x)
    assert not oracle.outside(oracle.SQUARES.rint(x), oracle.SQUARES.change_limit)


@pytest.mark.parametrize("x", [math.nan, -math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**61, -(2.0**61) - 2**9, 1e308])
def test_rounding_of_squares_outside_the_limits_stays_outside(x):
    assert oracle.outside(oracle.SQUARES.rint(x), oracle.SQUARES.change_limit)
