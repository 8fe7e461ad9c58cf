"""The oracle against itself and against plain SGD: undone exactly, in as many bits as the decay loses, and near to float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import pytest
from core_problems import CHANGING, FRACTION_BITS, WIDTHS, units


class TwoStates:
    """A rule whose second state looks at the first, new, and whose first looks at the second, old."""

    states = 2
    numbers = 2

    @staticmethod
    def increment(state: int, g, w, z, numbers):
        rate, decay = numbers
        return rate * g + decay * w - rate * z[1] if state == 0 else decay * z[0] + g * rate

    @staticmethod
    def update(z, numbers):
        return numbers[0] * z[0] + numbers[0] * z[1]


def random_bucket(rule, state_bits: int, sizes: list[int], rng: np.random.Generator) -> oracle.Bucket:
    velocity, weight = units(state_bits)
    tops = [velocity] * rule.states + [weight]
    slots = [[rng.integers(-top, top, size).tolist() for top in tops] for size in sizes]
    exponents = [-FRACTION_BITS[state_bits][0]] * rule.states + [-FRACTION_BITS[state_bits][1]]
    return oracle.Bucket(rule, state_bits, slots, [[oracle.Scale(e) for e in exponents] for _ in sizes])


@WIDTHS
@pytest.mark.parametrize("rule", [oracle.SGD, TwoStates])
def test_undone_exactly_and_redone_after_foreign_gradients(state_bits, rule):
    rng = np.random.default_rng(3)
    sizes = [5, 0, 521]
    bucket = random_bucket(rule, state_bits, sizes, rng)
    numbers, history = [(0.5, 0.01, 0.02)[: rule.numbers]] * 3, []
    for t in range(6):
        momentum = CHANGING[t % len(CHANGING)]
        factors = [None if (t + i) % 5 == 4 else (*[momentum] * rule.states, 0.7) for i in range(3)]
        rescale = [(*[t % 2] * rule.states, t % 3) for _ in sizes]
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
    assert oracle.LAYOUTS[64].rint(x) == expected
    if abs(x) < 2**30:
        assert oracle.LAYOUTS[32].rint(np.float32(x)) == expected


@pytest.mark.parametrize("x", [math.nan, -math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**51, -(2.0**51) - 1, 1e308])
def test_rounding_outside_the_limits_stays_outside(x):
    for layout in oracle.LAYOUTS.values():
        with np.errstate(all="ignore"):
            assert oracle.outside(layout.rint(layout.real(x)), layout.change_limit)
