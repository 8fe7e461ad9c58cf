"""The dispatcher ops follow the plain-integer oracle bit for bit, with every instruction set, and are undone exactly."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import oracle
import pytest
import torch
from core_problems import (
    DTYPES,
    EACH_RULE,
    NONE_SKIPPED,
    OPS,
    WIDE_FRACTION_BITS,
    WIDTHS,
    Bucket,
    Step,
    each_rule,
    fraction_bits,
    momentum_schedule,
    normal_gradients,
    numbers_of,
    random_elements,
    random_integers,
    slot_dtypes,
    undivided,
)
from oracle_twin import check_against_oracle

MOMENTA = ["0.1", "0.5", "0.9", "0.99", "0.999", "0.8731", "1", str(2.0**-16), "changing"]
SIZES = [1, 2, 7, 8, 9, 0, 15, 16, 17, 129]


@WIDTHS
@each_rule("momentum", sgd=[(mu,) for mu in MOMENTA], adam=[(mu,) for mu in ("0.9", str(2.0**-16), "changing")])
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["plain", "weight decay"])
def test_small_bucket_is_the_oracle_and_undone(state_bits, rule, momentum, decay, use_instruction_set):
    """Ten sizes at once, every dtype on every size over the cases; a tensor takes no part now and then."""
    case = MOMENTA.index(momentum)
    rng = np.random.default_rng([state_bits, case, int(decay > 0)])
    names = list(DTYPES)
    # Consecutive cases turn the dtypes by one: (size, dtype) meet in each width and with and without decay.
    dtypes = [names[(i + case + (decay > 0)) % 4] for i in range(len(SIZES))]
    x, states = random_integers(rng, SIZES, state_bits, rule)
    numbers = [numbers_of(rule, *rng.uniform([0.5, 0.5 * decay, 0.001], [1, decay, 0.01]), i) for i in range(len(SIZES))]
    steps = [
        Step(normal_gradients(rng, SIZES, dtypes, rng.random(len(SIZES)) < 0.8), numbers, mu)
        for mu in momentum_schedule(momentum, 20)
    ]
    shifts = check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set)
    assert sum(shifts) > 2


@WIDTHS
@each_rule(
    "size",
    "dtype",
    sgd=product([1, 2, 7, 8, 9, 15, 16, 17, 129, 512, 513], DTYPES),
    adam=zip([1, 7, 15, 16, 17, 511, 513, 1030], [*DTYPES, *DTYPES], strict=True),
)
def test_single_tensor_is_the_oracle_and_undone(state_bits, rule, size, dtype, use_instruction_set):
    """From states of 0 on."""
    rng = np.random.default_rng([state_bits, size])
    x, states = random_integers(rng, [size], state_bits, rule)
    states = [[torch.zeros_like(part) for part in state] for state in states]
    steps = [
        Step(normal_gradients(rng, [size], [dtype], [True]), [numbers_of(rule, 0.9, 0.01, 0.05, t)], mu)
        for t, mu in enumerate(momentum_schedule("changing", 24 if size < 100 else 7))
    ]
    assert any(check_against_oracle(rule, x, states, [dtype], state_bits, steps, use_instruction_set))


@WIDTHS
@each_rule("dtype", sgd=[(dtype,) for dtype in DTYPES], adam=[("float32",)])
def test_large_tensor_is_the_oracle_and_undone(state_bits, rule, dtype, use_instruction_set):
    sizes = [3, 4096 + 33, 16]
    rng = np.random.default_rng(state_bits)
    x, states = random_integers(rng, sizes, state_bits, rule)
    dtypes, numbers = [dtype] * 3, [numbers_of(rule, 1.0, 0.01, 0.05)] * 3
    steps = [Step(normal_gradients(rng, sizes, dtypes, [True] * 3), numbers, mu) for mu in (0.3, 0.8731, 0.8731)]
    assert any(check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set))


@WIDTHS
@EACH_RULE
def test_every_tensor_has_its_own_momentum_numbers_and_scales(state_bits, rule, use_instruction_set):
    """Scales that are no powers of two from the start, and exponents that are not the usual ones."""
    sizes, dtypes = [20, 70, 9, 130], list(DTYPES)
    rng = np.random.default_rng(6)
    x, states = random_integers(rng, sizes, state_bits, rule)
    *of_states, weight = fraction_bits(rule, state_bits)
    scales = [
        [
            *(oracle.Scale(-bits + i, 0.51 + 0.1 * i + 0.07 * s, i + s) for s, bits in enumerate(of_states)),
            oracle.Scale(-weight - i, 0.93 - 0.1 * i, 5 * i),
        ]
        for i in range(4)
    ]
    steps = [
        Step(
            normal_gradients(rng, sizes, dtypes, rng.random(4) < 0.8),
            [numbers_of(rule, 1.0 - 0.3 * i, 0.1 * i, 0.01 * (-1) ** i, i) for i in range(4)],
            [mu, 0.9, 1.0, 1 - mu / 2],
        )
        for mu in momentum_schedule("changing", 14)
    ]
    assert any(check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set, scales))


@WIDTHS
@each_rule("which", sgd=[((0,),), ((1,),), ((2,),), (range(3),)], adam=[((0, 1),), ((2,),), ((3,),), ((4, 5, 6),), (range(7),)])
def test_numbers_per_weight(state_bits, rule, which, use_instruction_set):
    """In some tensors, not in others; beside them the tensor's own number is not looked at."""
    sizes, dtypes = [1, 9, 16, 130, 513, 0], ["float32", "bfloat16", "float64", "float16", "float32", "float32"]
    rng = np.random.default_rng(9)
    x, states = random_integers(rng, sizes, state_bits, rule)
    ranges = {
        oracle.SGD: [(-1.0, 1.0), (-0.1, 0.1), (-0.02, 0.02)],
        oracle.Adam: [(-1.0, 1.0), (0.1, 1.0), (-0.1, 0.1), (-0.02, 0.02), (0.5, 2.0), (0.0, 1e-3), (0.0, 1e-3)],
    }[rule]
    steps = []
    for t, mu in enumerate(momentum_schedule("changing", 5)):
        given = [(i + t) % 2 == 0 for i in range(len(sizes))]
        elements = [
            [random_elements(rng, size, *ends, state_bits) if on and k in which else None for k, ends in enumerate(ranges)]
            for size, on in zip(sizes, given, strict=True)
        ]
        numbers = [numbers_of(rule, 0.7, 0.05, 0.01)] * 6
        steps.append(Step(normal_gradients(rng, sizes, dtypes, rng.random(6) < 0.8), numbers, mu, elements))
    check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
@EACH_RULE
def test_scales_of_states_and_weights_change_midway(state_bits, rule, use_instruction_set):
    """By a rescaling of any, with and without a decay in the same step, and by a decay of the weights."""
    sizes, dtypes = [17, 8, 130, 520], list(DTYPES)
    rng = np.random.default_rng(12)
    x, states = random_integers(rng, sizes, state_bits, rule)
    steps = []
    for t, (mu, by) in enumerate([(0.9, 0), (0.4, 1), (1.0, 3), (0.1, 10), (1.0, 0), (0.5, 7), (2.0**-16, 2), (0.9, 0)]):
        rescale = [(by, 0), (0, by), (by, by), (*(t % 2, by, 0)[: len(states)], by)]
        gradients = normal_gradients(rng, sizes, dtypes, [True, True, t % 3 != 2, True])
        numbers = [numbers_of(rule, 1.0, 0.01, 0.01, i) for i in range(4)]
        steps.append(Step(gradients, numbers, mu, weight_factor=(1.0, 0.999, 0.3)[t % 3], rescale=rescale))
    shifts = check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set)
    assert max(shifts) >= 18


@WIDTHS
@EACH_RULE
def test_ties_round_to_even(state_bits, rule, use_instruction_set):
    """Gradients, decay and rate that land on halves exactly, positive and negative; shifts that lose a half."""
    sizes, dtypes = [600, 600, 600], ["float32", "float64", "bfloat16"]
    rng = np.random.default_rng(1)
    *of_states, of_x = slot_dtypes(rule, state_bits)
    x = [torch.from_numpy(rng.integers(-99, 100, size)).to(of_x) for size in sizes]
    states = [
        [torch.from_numpy(rng.integers(-99 if power == 1 else 0, 100, size)).to(dtype) for size in sizes]
        for dtype, power in zip(of_states, rule.powers, strict=True)
    ]
    scales = [[oracle.Scale(0) for _ in slot_dtypes(rule, state_bits)] for _ in sizes]
    steps = []
    for t in range(4):
        gradients = [torch.from_numpy(rng.integers(-64, 65, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        numbers = [
            undivided(rule, 0.5, 1.0 * (t % 2), 0.5, 0.5),
            undivided(rule, -1.5, 0.0, -0.5, 1.5),
            undivided(rule, 0.5, 0.0, 1.5, 2.0**-9),
        ]
        steps.append(Step(gradients, numbers, (0.5,) * len(states), rescale=[(0, t % 2)] * 3))
    check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set, scales)


def spread(rng, limit: int, size: int, dtype: torch.dtype, signed: bool = True) -> torch.Tensor:
    """Integers of every magnitude up to a limit."""
    magnitude = np.trunc(2.0 ** rng.uniform(0, math.log2(limit), size))
    whole = torch.from_numpy(magnitude * (rng.choice([-1, 1], size) if signed else 1)).to(torch.int64)
    noise = torch.from_numpy(rng.integers(0, 1024, size))
    return torch.where(whole.abs() < limit // 2, whole + noise, whole).to(dtype)


@WIDTHS
@EACH_RULE
def test_whole_range_of_the_states_rounds_as_specified(state_bits, rule, use_instruction_set):
    """X and the states of every magnitude up to the limits: conversions to the real type round, float16 weights overflow."""
    sizes, dtypes = [513, 200, 200, 200], list(DTYPES)
    rng = np.random.default_rng(2)
    layout = oracle.LAYOUTS[state_bits]
    velocity, *_, weight = fraction_bits(rule, state_bits)
    *of_states, of_x = slot_dtypes(rule, state_bits)
    x = [spread(rng, layout.limit // 2, size, of_x) for size in sizes]
    states = [
        [spread(rng, own.limit - 1, size, dtype, power == 1) for size in sizes]
        for own, dtype, power in zip(oracle.layouts_of(rule, state_bits), of_states, rule.powers, strict=False)
    ]
    # The largest increments and changes that the layout allows, or that leave V and X inside their limits.
    top = min(layout.limit / 4, layout.change_limit) * 2.0**-velocity
    lr = min(layout.limit / 8, layout.change_limit) * 2.0**-weight / (layout.limit * 2.0**-velocity)
    steps = []
    for mu in (0.9, 0.5, 0.25):
        gradients = [
            torch.from_numpy(2.0 ** rng.uniform(-40, 0, size) * rng.choice([-1, 1], size)).to(DTYPES[dtype])
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        share = top / 8 * (1 - mu)
        # Decays of weights up to 2^(limit - fraction) whose increments stay below the gradients'.
        decay = 2.0 ** (weight - layout.limit_bits)
        squares = oracle.LAYOUTS[64].change_limit / 4 * 2.0**-WIDE_FRACTION_BITS
        numbers = [undivided(rule, share, *own, squares) for own in ((0.0, lr), (0.0, -lr), (decay, lr), (-decay, lr))]
        steps.append(Step(gradients, numbers, mu))
    check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
@EACH_RULE
def test_every_operation_rounds_by_itself(state_bits, rule, use_instruction_set):
    """Terms so large that their last bits count: a fused multiply-add or a wider intermediate would show."""
    sizes, dtypes = [1500, 1500], ["float64", "float32"]
    rng = np.random.default_rng(4)
    layout = oracle.LAYOUTS[state_bits]
    *of_states, of_x = slot_dtypes(rule, state_bits)
    x = [torch.from_numpy(rng.integers(-(layout.limit // 4), layout.limit // 4, size)).to(of_x) for size in sizes]
    states = [[torch.zeros_like(part, dtype=dtype) for part in x] for dtype in of_states]
    scales = [[*(oracle.Scale(-20, 0.7) for _ in of_states), oracle.Scale(-20, 0.9)] for _ in sizes]
    one = 2.0**-20 * layout.change_limit / 4
    decay, lr = one / (2.0**-20 * layout.limit / 4) / 1.7, 1 / 3.1
    squares = 2.0**-20 * oracle.LAYOUTS[64].change_limit / 8.8 / (2 * one) ** 2
    steps = []
    for sign in (1, -1):
        gradients = [torch.from_numpy(rng.uniform(-one, one, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        numbers = [(1 / 1.1, sign * decay, sign * lr, squares), (-1 / 1.3, decay, lr, squares / 1.9)]
        steps.append(Step(gradients, [undivided(rule, *own) for own in numbers], (0.5,) * len(of_states)))
    check_against_oracle(rule, x, states, dtypes, state_bits, steps, use_instruction_set, scales)


@WIDTHS
def test_every_operation_of_a_quotient_rounds_by_itself(state_bits, use_instruction_set):
    """Terms of like size, changes of X so large that the last bits of a quotient count, and integers of 60 bits, many of them in
    the middle between two doubles or two floats, or just beside it."""
    rng = np.random.default_rng(10)
    sizes, dtypes, layout = [700] * 4, list(DTYPES), oracle.LAYOUTS[state_bits]
    *_, of_x = slot_dtypes(oracle.Adam, state_bits)
    x = [spread(rng, layout.limit // 4, size, of_x) for size in sizes]
    m = [torch.from_numpy(rng.integers(-layout.limit // 4, layout.limit // 4, size)).to(of_x) for size in sizes]
    s = []
    for size in sizes:
        z = rng.integers(2**56, 2**60, size)
        for places, lost in ((slice(0, 200), 36), (slice(200, 400), 7)):  # of 60 bits in 24 and in 53
            middle = (z[places] >> lost << lost) | (1 << lost - 1)
            z[places] = middle + rng.integers(-1, 2, 200)
        s.append(torch.from_numpy(z))
    scales = [[oracle.Scale(-20, own), oracle.Scale(-40, own), oracle.Scale(-20, 0.9)] for own in (1.0, 0.7, 1.0, 0.8)]
    top, typical, one = 2.0**-20 * layout.limit / 4, 2.0 ** (58 - 40), 2.0**-20 * layout.change_limit / 2
    root, share, squares = typical**0.5, min(top, 2.0**31) / 8, 2.0**8
    ends = [(1.0, 0.0, 0.0), (1.3, 0.7 * root, 0.0), (1 / 1.7, 0.0, typical / 1.9), (1.1, 1.9 * root, 0.3 * typical)]
    steps = []
    for sign, momentum in ((1, 1.0), (-1, 0.9)):
        gradients = [torch.from_numpy(rng.uniform(-2, 2, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        if momentum == 1.0:
            gradients[0].zero_()  # there the middles stay
        numbers = [(share, squares / 1.3, 0.0, sign * one * root / top / 2.3, *end) for end in ends]
        steps.append(Step(gradients, numbers, momentum))
    check_against_oracle(oracle.Adam, x, [m, s], dtypes, state_bits, steps, use_instruction_set, scales)


# Gradient, and what it adds to a wide state whose quantum is 2^-42 at a share of 1/2, in float32 and in float64.
SMALL_GRADIENTS = [
    (0.0, 0, 0),
    (-0.0, 0, 0),
    (2.0**-20, 2, 2),
    (6 * 2.0**-22, 4, 4),  # 4.5 quanta
    (-5 * 2.0**-22, 3, 3),
    (2.0**-21, 1, 1),  # a half
    (-(2.0**-22), 1, 1),
    (2.0**-60, 1, 1),
    (2.0**-70, 1, 1),  # its square is subnormal in float32
    (2.0**-80, 0, 1),  # and this one's 0
    (1e-200, 0, 0),
]


@WIDTHS
@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_but_zero_adds_nothing_to_a_wide_state(state_bits, sign, use_instruction_set):
    """An increment that rounds to no quantum adds one, whatever its sign."""
    gradients, *added = map(list, zip(*SMALL_GRADIENTS, strict=True))
    quanta = [sign * q if abs(q) > 1 else q for q in added[state_bits == 64]]
    *_, of_x = slot_dtypes(oracle.Adam, state_bits)
    x, m = (torch.full([len(quanta)], z, dtype=of_x) for z in (0, 1000))
    start = torch.full([len(quanta)], 0 if sign > 0 else 50)
    step = Step([torch.tensor(gradients, dtype=torch.float64)], [(1.0, sign * 0.5, 0.0, 0.01, 1.0, 0.0, 0.0)], 1.0)
    bucket = Bucket([x], [[m], [start]], ["float64"], state_bits, rule=oracle.Adam)
    bucket.step(step)
    assert (bucket.split(bucket.states[1])[0] - start).tolist() == quanta
    assert bucket.flags == [0]  # a state of 0 divides as one quantum does
    check_against_oracle(oracle.Adam, [x], [[m], [start]], ["float64"], state_bits, [step] * 2, use_instruction_set)


@WIDTHS
@EACH_RULE
def test_weights_and_gradients_of_other_strides(state_bits, rule):
    """Channels last: the state has the order of memory."""
    rng = np.random.default_rng(2)
    x, states = random_integers(rng, [120], state_bits, rule)
    flat, other = (Bucket(x, states, ["float32"], state_bits, rule=rule) for _ in range(2))
    step = Step([torch.randn(120, generator=torch.Generator().manual_seed(0))], [numbers_of(rule, 1.0, 0.1, 0.01)], 0.3)
    record = flat.step(step)

    def channels_last(values: torch.Tensor) -> torch.Tensor:
        return values.clone().view(2, 4, 5, 3).permute(0, 3, 1, 2)

    weight, again = channels_last(other.weights[0]), other.record(step)
    given = again.numbers, again.shifts, [], again.planes, NONE_SKIPPED, True, other.outcome
    OPS.step(rule.name, [weight], [channels_last(step.gradients[0])], other.x, other.states, *given)
    assert torch.equal(other.x, flat.x)
    for mine, expected in zip(other.states, flat.states, strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(again.planes, record.planes)
    assert torch.equal(weight, channels_last(flat.weights[0]))
