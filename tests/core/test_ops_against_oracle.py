"""The dispatcher ops follow the plain-integer oracle bit for bit, with every instruction set, and are undone exactly."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import pytest
import torch
from core_problems import (
    DTYPES,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    check_against_oracle,
    coefficients,
    integers,
    momentum_schedule,
    normal_gradients,
    oracle_step,
    oracle_twin,
    scales,
)

MOMENTA = ["0.1", "0.5", "0.9", "0.99", "0.999", "0.8731", "1", "changing", "1/max", "max-1/max"]
SIZES = [1, 2, 7, 8, 0, 129, 512, 513]


@WIDTHS
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["plain", "weight decay"])
def test_small_bucket_is_the_oracle_and_undone(state_bits, momentum, decay, use_instruction_set):
    """Eight sizes at once, every dtype on every size over the cases, each tensor inactive now and then."""
    case = MOMENTA.index(momentum)
    rng = np.random.default_rng([state_bits, case, int(decay > 0)])
    names = list(DTYPES)
    # Consecutive cases turn the dtypes by one: (size, dtype) meet in each width and with and without decay.
    dtypes = [names[(i + case + (decay > 0)) % 4] for i in range(len(SIZES))]
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in SIZES]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in SIZES]
    fixed = [coefficients(state_bits, *rng.uniform([0.02, 0, 0.001], [0.1, decay, 0.05])) for _ in SIZES]
    steps = []
    for t, (n, d) in enumerate(momentum_schedule(momentum, state_bits, 24)):
        active = rng.random(len(SIZES)) < 0.8
        cs = [fixed[0]] * len(SIZES) if t % 5 == 0 else fixed
        steps.append(Step(normal_gradients(rng, SIZES, dtypes, active), cs, n, d))
    spills = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert len(spills) > 2


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 129, 512, 513])
def test_single_tensor_is_the_oracle_and_undone(state_bits, dtype, size, use_instruction_set):
    rng = np.random.default_rng([state_bits, size])
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits)]
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)]
    steps = [
        Step(normal_gradients(rng, [size], [dtype], [True]), c, n, d)
        for n, d in momentum_schedule("changing", state_bits, 50 if size < 100 else 10)
    ]
    spills = check_against_oracle(x, [torch.zeros_like(x[0])], [dtype], state_bits, steps, use_instruction_set)
    assert spills


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensor_is_the_oracle_and_undone(state_bits, dtype, use_instruction_set):
    sizes = [3, 4096 + 33, 16]
    rng = np.random.default_rng(state_bits)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
    dtypes = [dtype] * 3
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)] * 3
    steps = [
        Step(normal_gradients(rng, sizes, dtypes, [True] * 3), c, n, d) for n, d in momentum_schedule("0.8731", state_bits, 4)
    ]
    spills = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert spills


@WIDTHS
def test_ties_round_to_even(state_bits, use_instruction_set):
    """Gradients, decay and rate that land on halves exactly, positive and negative."""
    sizes, dtypes = [600, 600, 600], ["float32", "float64", "bfloat16"]
    rng = np.random.default_rng(1)
    x = [torch.from_numpy(rng.integers(-99, 100, size)).to(STATE_DTYPES[state_bits]) for size in sizes]
    v = [torch.from_numpy(rng.integers(-99, 100, size)).to(STATE_DTYPES[state_bits]) for size in sizes]
    steps = []
    for t in range(6):
        gradients = [torch.from_numpy(rng.integers(-64, 65, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        steps.append(Step(gradients, [(0.5, 0.5 * (t % 2), 0.5), (-1.5, 0.0, -0.5), (0.5, 0.0, 1.5)], 1, 2))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_whole_range_of_the_states_rounds_as_specified(state_bits, use_instruction_set):
    """X and V of every magnitude up to the limits: conversions to the real type round, float16 weights overflow."""
    sizes, dtypes = [513, 200, 200, 200], list(DTYPES)
    rng = np.random.default_rng(2)
    fmt = oracle.FORMATS[state_bits]

    def spread(limit, size):
        magnitude = 2.0 ** rng.uniform(0, math.log2(limit), size)
        return torch.from_numpy(np.trunc(magnitude) * rng.choice([-1, 1], size)).to(STATE_DTYPES[state_bits])

    def low_bits(limit, values):
        noise = torch.from_numpy(rng.integers(0, 1024, len(values))).to(values.dtype)
        return torch.where(values.abs() < limit // 2, values + noise, values)

    x = [low_bits(fmt.weight_limit, spread(fmt.weight_limit // 2, size)) for size in sizes]
    v = [low_bits(fmt.velocity_limit, spread(fmt.velocity_limit - 1, size)) for size in sizes]
    lr = scales(state_bits)[1] * (0.025 if state_bits == 64 else 0.01)
    steps = []
    for n, d in [(9, 10), (1, 2), (99, 100)]:
        top = fmt.velocity_limit * (1 - n / d) / 2
        # Gradients of every magnitude that V has room for after its contraction.
        gradients = [
            torch.from_numpy(2.0 ** rng.uniform(-20, 0, size) * rng.choice([-1, 1], size)).to(DTYPES[dtype])
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        steps.append(Step(gradients, [(top, 0.0, lr), (top, 0.0, -lr), (top, 2.0**-20, lr), (top, -(2.0**-20), lr)], n, d))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_every_operation_rounds_by_itself(state_bits, use_instruction_set):
    """Terms so large that their last bits count: a fused multiply-add or a wider intermediate would show."""
    sizes, dtypes = [1500, 1500], ["float64", "float32"]
    rng = np.random.default_rng(4)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, fmt.weight_limit // 4, size, state_bits) for size in sizes]
    v = [torch.zeros_like(part) for part in x]
    a = fmt.velocity_limit / 7.3
    b = fmt.velocity_limit / fmt.weight_limit / 1.7
    lr = fmt.weight_limit / fmt.velocity_limit / 9.1
    steps = []
    for c in [(a, b, lr), (a, -b, -lr)]:
        gradients = [torch.from_numpy(rng.uniform(-1, 1, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        steps.append(Step(gradients, [c, (c[0], -c[1], c[2])], 1, 2))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_oracle_undoes_itself(state_bits):
    rng = np.random.default_rng(3)
    sizes, dtypes = [5, 0, 70], ["float32", "float64", "float16"]
    v = [integers(rng, 2**20, size, state_bits) for size in sizes]
    twin = oracle_twin(Bucket(v, v, dtypes, state_bits))
    start = copy.deepcopy((twin.x, twin.v))
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)] * 3
    tape = []
    for n, d in momentum_schedule("changing", state_bits, 20):
        step = Step(normal_gradients(rng, sizes, dtypes, rng.random(3) < 0.8), c, n, d)
        tape.append((step, oracle_step(twin, step)))
    assert (twin.x, twin.v) != start
    for step, (spill_bits, planes) in reversed(tape):
        gradients = [None if g is None else g.double().tolist() for g in step.gradients]
        twin.undo(gradients, c, step.n, step.d, spill_bits, planes)
    assert (twin.x, twin.v) == start
    assert not any(twin.s)
