"""The dispatcher ops follow the plain-integer oracle bit for bit, with every instruction set, and are undone exactly."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from core_problems import (
    DTYPES,
    FRACTION_BITS,
    NONE_SKIPPED,
    OPS,
    RULE,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    momentum_schedule,
    normal_gradients,
    random_elements,
    random_integers,
)
from oracle_twin import check_against_oracle

MOMENTA = ["0.1", "0.5", "0.9", "0.99", "0.999", "0.8731", "1", str(2.0**-16), "changing"]
SIZES = [1, 2, 7, 8, 9, 0, 15, 16, 17, 129]


@WIDTHS
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["plain", "weight decay"])
def test_small_bucket_is_the_oracle_and_undone(state_bits, momentum, decay, use_instruction_set):
    """Ten sizes at once, every dtype on every size over the cases; a tensor takes no part now and then."""
    case = MOMENTA.index(momentum)
    rng = np.random.default_rng([state_bits, case, int(decay > 0)])
    names = list(DTYPES)
    # Consecutive cases turn the dtypes by one: (size, dtype) meet in each width and with and without decay.
    dtypes = [names[(i + case + (decay > 0)) % 4] for i in range(len(SIZES))]
    x, v = random_integers(rng, SIZES, state_bits)
    numbers = [tuple(rng.uniform([0.5, 0.5 * decay, 0.001], [1, decay, 0.01])) for _ in SIZES]
    steps = [
        Step(normal_gradients(rng, SIZES, dtypes, rng.random(len(SIZES)) < 0.8), numbers, mu)
        for mu in momentum_schedule(momentum, 20)
    ]
    shifts = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert sum(shifts) > 2


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 15, 16, 17, 129, 512, 513])
def test_single_tensor_is_the_oracle_and_undone(state_bits, dtype, size, use_instruction_set):
    rng = np.random.default_rng([state_bits, size])
    x, v = random_integers(rng, [size], state_bits)
    steps = [
        Step(normal_gradients(rng, [size], [dtype], [True]), [(0.9, 0.01, 0.05)], mu)
        for mu in momentum_schedule("changing", 24 if size < 100 else 7)
    ]
    assert any(check_against_oracle(x, [torch.zeros_like(v[0])], [dtype], state_bits, steps, use_instruction_set))


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensor_is_the_oracle_and_undone(state_bits, dtype, use_instruction_set):
    sizes = [3, 4096 + 33, 16]
    rng = np.random.default_rng(state_bits)
    x, v = random_integers(rng, sizes, state_bits)
    dtypes = [dtype] * 3
    steps = [Step(normal_gradients(rng, sizes, dtypes, [True] * 3), [(1.0, 0.01, 0.05)] * 3, mu) for mu in (0.3, 0.8731, 0.8731)]
    assert any(check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set))


@WIDTHS
def test_every_tensor_has_its_own_momentum_numbers_and_scales(state_bits, use_instruction_set):
    """Scales that are no powers of two from the start, and exponents that are not the usual ones."""
    sizes, dtypes = [20, 70, 9, 130], list(DTYPES)
    rng = np.random.default_rng(6)
    x, v = random_integers(rng, sizes, state_bits)
    velocity, weight = FRACTION_BITS[state_bits]
    scales = [
        [oracle.Scale(-velocity + i, 0.51 + 0.1 * i, i), oracle.Scale(-weight - i, 0.93 - 0.1 * i, 5 * i)] for i in range(4)
    ]
    steps = [
        Step(
            normal_gradients(rng, sizes, dtypes, rng.random(4) < 0.8),
            [(1.0 - 0.3 * i, 0.1 * i, 0.01 * (-1) ** i) for i in range(4)],
            [mu, 0.9, 1.0, 1 - mu / 2],
        )
        for mu in momentum_schedule("changing", 14)
    ]
    assert any(check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set, scales))


@WIDTHS
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)], ids=["share", "decay", "lr", "all"])
def test_numbers_per_weight(state_bits, which, use_instruction_set):
    """In some tensors, not in others; beside them the tensor's own number is not looked at."""
    sizes, dtypes = [1, 9, 16, 130, 513, 0], ["float32", "bfloat16", "float64", "float16", "float32", "float32"]
    rng = np.random.default_rng(9)
    x, v = random_integers(rng, sizes, state_bits)
    top = (1.0, 0.1, 0.02)
    steps = []
    for t, mu in enumerate(momentum_schedule("changing", 5)):
        given = [(i + t) % 2 == 0 for i in range(len(sizes))]
        elements = [
            [random_elements(rng, size, -top[k], top[k], state_bits) if on and k in which else None for k in range(3)]
            for size, on in zip(sizes, given, strict=True)
        ]
        steps.append(Step(normal_gradients(rng, sizes, dtypes, rng.random(6) < 0.8), [(0.7, 0.05, 0.01)] * 6, mu, elements))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_scales_of_velocities_and_weights_change_midway(state_bits, use_instruction_set):
    """By a rescaling of either, with and without a decay in the same step, and by a decay of the weights."""
    sizes, dtypes = [17, 8, 130, 520], list(DTYPES)
    rng = np.random.default_rng(12)
    x, v = random_integers(rng, sizes, state_bits)
    steps = []
    for t, (mu, by) in enumerate([(0.9, 0), (0.4, 1), (1.0, 3), (0.1, 10), (1.0, 0), (0.5, 7), (2.0**-16, 2), (0.9, 0)]):
        rescale = [(by, 0), (0, by), (by, by), (t % 2, by)]
        gradients = normal_gradients(rng, sizes, dtypes, [True, True, t % 3 != 2, True])
        steps.append(Step(gradients, [(1.0, 0.01, 0.01)] * 4, mu, weight_factor=(1.0, 0.999, 0.3)[t % 3], rescale=rescale))
    shifts = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert max(shifts) >= 18


@WIDTHS
def test_ties_round_to_even(state_bits, use_instruction_set):
    """Gradients, decay and rate that land on halves exactly, positive and negative; shifts that lose a half."""
    sizes, dtypes = [600, 600, 600], ["float32", "float64", "bfloat16"]
    rng = np.random.default_rng(1)
    x, v = ([torch.from_numpy(rng.integers(-99, 100, size)).to(STATE_DTYPES[state_bits]) for size in sizes] for _ in range(2))
    scales = [[oracle.Scale(0), oracle.Scale(0)] for _ in sizes]
    steps = []
    for t in range(4):
        gradients = [torch.from_numpy(rng.integers(-64, 65, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        numbers = [(0.5, 1.0 * (t % 2), 0.5), (-1.5, 0.0, -0.5), (0.5, 0.0, 1.5)]
        steps.append(Step(gradients, numbers, 0.5, rescale=[(0, t % 2)] * 3))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set, scales)


@WIDTHS
def test_whole_range_of_the_states_rounds_as_specified(state_bits, use_instruction_set):
    """X and V of every magnitude up to the limits: conversions to the real type round, float16 weights overflow."""
    sizes, dtypes = [513, 200, 200, 200], list(DTYPES)
    rng = np.random.default_rng(2)
    layout = oracle.LAYOUTS[state_bits]
    velocity, weight = FRACTION_BITS[state_bits]

    def spread(limit, size):
        magnitude = np.trunc(2.0 ** rng.uniform(0, math.log2(limit), size))
        whole = torch.from_numpy(magnitude * rng.choice([-1, 1], size)).to(torch.int64)
        noise = torch.from_numpy(rng.integers(0, 1024, size))
        return torch.where(whole.abs() < limit // 2, whole + noise, whole).to(STATE_DTYPES[state_bits])

    x, v = ([spread(limit, size) for size in sizes] for limit in (layout.limit // 2, layout.limit - 1))
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
        steps.append(Step(gradients, [(share, 0.0, lr), (share, 0.0, -lr), (share, decay, lr), (share, -decay, lr)], mu))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_every_operation_rounds_by_itself(state_bits, use_instruction_set):
    """Terms so large that their last bits count: a fused multiply-add or a wider intermediate would show."""
    sizes, dtypes = [1500, 1500], ["float64", "float32"]
    rng = np.random.default_rng(4)
    layout = oracle.LAYOUTS[state_bits]
    x = [
        torch.from_numpy(rng.integers(-(layout.limit // 4), layout.limit // 4, size)).to(STATE_DTYPES[state_bits])
        for size in sizes
    ]
    v = [torch.zeros_like(part) for part in x]
    scales = [[oracle.Scale(-20, 0.7), oracle.Scale(-20, 0.9)] for _ in sizes]
    one = 2.0**-20 * layout.change_limit / 4
    decay, lr = one / (2.0**-20 * layout.limit / 4) / 1.7, 1 / 3.1
    steps = []
    for sign in (1, -1):
        gradients = [torch.from_numpy(rng.uniform(-one, one, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        steps.append(Step(gradients, [(1 / 1.1, sign * decay, sign * lr), (-1 / 1.3, decay, lr)], 0.5))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set, scales)


@WIDTHS
def test_weights_and_gradients_of_other_strides(state_bits):
    """Channels last: the state has the order of memory."""
    rng = np.random.default_rng(2)
    x, v = random_integers(rng, [120], state_bits)
    flat, other = (Bucket(x, v, ["float32"], state_bits) for _ in range(2))
    step = Step([torch.randn(120, generator=torch.Generator().manual_seed(0))], [(1.0, 0.1, 0.01)], 0.3)
    record = flat.step(step)

    def channels_last(values: torch.Tensor) -> torch.Tensor:
        return values.clone().view(2, 4, 5, 3).permute(0, 3, 1, 2)

    weight, again = channels_last(other.weights[0]), other.record(step)
    given = again.numbers, again.shifts, [], again.planes, NONE_SKIPPED, True, other.outcome
    OPS.step(RULE, [weight], [channels_last(step.gradients[0])], other.x, [other.v], *given)
    assert torch.equal(other.x, flat.x)
    assert torch.equal(other.v, flat.v)
    assert torch.equal(again.planes, record.planes)
    assert torch.equal(weight, channels_last(flat.weights[0]))
