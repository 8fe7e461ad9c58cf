"""The ops that undo a step and take its adjoint: against NumPy in the defined order, with every instruction set and number of
threads, and the state as the plain ops leave it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from adjoint_problems import (
    ADJOINT_CASES,
    OPS,
    AdjointBucket,
    Through,
    added,
    adjoint_sample,
    assert_same_trace,
    expected_first_half,
    expected_second_half,
    journey,
    real_of,
    throughs_of,
    vectors_of,
)
from core_problems import INSTRUCTION_SETS, WIDTHS, Bucket, Step, coefficients, integers, normal_gradients
from device_matrix import Case, state_of, steps_of

LARGE = {"blocks beyond the lanes of a sum": Case((512 * 1100 + 13, 40_000), ("float32", "bfloat16"), rates=(1,))}


def parts(bucket, vector):
    return [part.numpy().copy() for part in bucket.split(vector)]


@WIDTHS
@pytest.mark.parametrize("case", [*ADJOINT_CASES, *LARGE])
def test_against_numpy_to_the_last_bit(state_bits, case):
    problem = {**ADJOINT_CASES, **LARGE}[case]
    rng = np.random.default_rng(3)
    x, v = state_of(problem, state_bits, rng)
    steps = steps_of(problem, state_bits, 2 if case in LARGE else 5, rng)
    real = real_of(problem)
    bucket = AdjointBucket(x, v, list(problem.dtypes), state_bits, real, vectors_of(problem, real, rng))
    plain = Bucket(x, v, list(problem.dtypes), state_bits)
    tapes = [bucket.step(step) for step in steps]
    plain_tapes = [plain.step(step) for step in steps]
    for step, tape, plain_tape, through in zip(
        reversed(steps), reversed(tapes), reversed(plain_tapes), reversed(throughs_of(problem, steps, rng)), strict=True
    ):
        aws, avs = parts(bucket, bucket.aw), parts(bucket, bucket.av)
        after, sums = expected_first_half(bucket, step, aws, avs)
        bucket.undo_weights(step, through)
        plain.move(step, back=True)
        bucket.assert_equals(plain.tensors())
        assert torch.equal(bucket.outcome, plain.outcome)
        assert_parts(bucket, bucket.aw, aws)
        assert_parts(bucket, bucket.av, after)
        assert bucket.by_lr.tolist() == (sums if through.by_lr else [])

        bucket.undo_velocity_too(step, tape, through)
        plain.undo_velocity(step, *plain_tape)
        bucket.assert_equals(plain.tensors())
        assert torch.equal(bucket.outcome, plain.outcome)
        assert not any(bucket.flags)
        aws, avs, sums = expected_second_half(bucket, step, through, aws, after)
        assert_parts(bucket, bucket.aw, aws)
        assert_parts(bucket, bucket.av, avs)
        assert bucket.sums.tolist() == [row[k] for k in range(3) if through.wanted[k] for row in sums]
    bucket.assert_guards()


def assert_parts(bucket, vector, expected):
    for i, (mine, one) in enumerate(zip(bucket.split(vector), expected, strict=True)):
        assert np.array_equal(mine.numpy().view(f"i{one.itemsize}"), one.view(f"i{one.itemsize}")), f"tensor {i}"


@WIDTHS
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_instruction_sets_and_threads_agree(state_bits, real, use_instruction_set, set_num_threads):
    dtypes = ("float64",) * 5 if real == "float64" else ("float32", "bfloat16", "float16", "float32", "bfloat16")
    case = Case((40_000, 30_000, 20_011, 513, 7), dtypes, inactive=True, rates=(1, 3))
    traces = {}
    for threads in (1, 2):
        set_num_threads(threads)
        for name in INSTRUCTION_SETS:
            use_instruction_set(name)
            traces[name, threads] = journey(case, state_bits, AdjointBucket)
    expected = traces.pop((INSTRUCTION_SETS[0], 1))
    for trace in traces.values():
        assert_same_trace(trace, expected)


@WIDTHS
def test_a_refused_block_is_left_out(state_bits):
    rng = np.random.default_rng(8)
    fmt = oracle.FORMATS[state_bits]
    case = Case((1100, 70), ("float32", "float32"))
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in case.sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in case.sizes]
    c = [coefficients(state_bits, 0.1, 0.0, 0.01)] * 2
    right = Step(normal_gradients(rng, case.sizes, case.dtypes, [True] * 2), c, 1, 10)
    bucket = AdjointBucket(x, v, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
    tape = bucket.step(right)
    right.gradients[0][600] = fmt.velocity_limit / 4 / abs(c[0][0])
    through = Through([None, None], [(0.5, 0.25)] * 2)
    bucket.undo_weights(right, through)
    aws, avs = parts(bucket, bucket.aw), parts(bucket, bucket.av)
    bucket.undo_velocity_too(right, tape, through)
    assert bucket.skipped.tolist() == [0, 1, 0, 0]
    assert bucket.flags == [oracle.FOREIGN_GRADIENT, 0]
    aws, avs, sums = expected_second_half(bucket, right, through, aws, avs)
    assert_parts(bucket, bucket.aw, aws)
    assert_parts(bucket, bucket.av, avs)
    assert bucket.sums.tolist() == [row[k] for k in range(3) for row in sums]


def test_the_order_of_a_sum_matters_here():
    """The oracle's order is no other's: these problems would show it."""
    terms = np.random.default_rng(0).standard_normal(50_000) ** 3
    assert len({added(terms), float(terms.sum()), float(np.add.accumulate(terms)[-1])}) == 3


@WIDTHS
def test_a_product_that_is_the_velocities_vector_itself(state_bits):
    """A loss may hand back the direction that it was given: the same elements are read before they are written."""
    case = Case((1030, 65), ("float32", "float32"))
    traces = []
    for alias in (False, True):
        rng = np.random.default_rng(5)
        x, v = state_of(case, state_bits, rng)
        (step,) = steps_of(case, state_bits, 1, rng)
        bucket = AdjointBucket(x, v, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
        tape = bucket.step(step)
        through = Through([], [(1.0, 0.1)] * 2)
        bucket.undo_weights(step, through)
        through.products = [part if alias else part.clone() for part in bucket.split(bucket.av)]
        bucket.undo_velocity_too(step, tape, through)
        traces.append([[t.clone() for t in bucket.adjoint()]])
    assert_same_trace(*traces)


# The dispatcher -------------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("op", ["sgd_undo_weights_adjoint", "sgd_undo_velocity_adjoint"])
def test_opcheck(state_bits, op):
    torch.library.opcheck(getattr(OPS, op).default, adjoint_sample(state_bits)[op])


WRONG = {
    "a vector too short": ("weights_adjoint", lambda t: t[1:], r"weights_adjoint: expected a contiguous vector of \d+ elements"),
    "a vector with holes": ("velocities_adjoint", lambda t: t.repeat(2)[::2], "velocities_adjoint: expected a contiguous"),
    "a vector of float64": ("weights_adjoint", lambda t: t.double(), "weights_adjoint: expected float32, since no weight"),
    "vectors of two dtypes": ("velocities_adjoint", lambda t: t.double(), "velocities_adjoint: expected the dtype"),
    "products missing": ("products", lambda p: p[:-1], "products: expected 3"),
    "a product of another size": (
        "products",
        lambda p: [p[0][1:], *p[1:]],
        r"products\[0\]: expected the device, dtype and size",
    ),
    "a product of another dtype": ("products", lambda p: [*p[:2], p[2].float()], r"products\[2\]: expected the device, dtype"),
    "a product of other strides": ("products", lambda p: [p[0].repeat(2)[::2], *p[1:]], r"products\[0\]: expected the strides"),
    "settings of another count": ("settings", lambda s: s[:1], "settings: expected 2 numbers, or 2 for each of the 3"),
    "four sums": ("wanted", lambda w: [*w, True], "wanted: expected 3"),
    "partials too short": ("partials", lambda t: t[:4], "partials: expected 18"),
    "partials of float32": ("partials", lambda t: t.float(), "partials and sums: expected contiguous float64"),
    "sums too long": ("sums", lambda t: t.repeat(2), "sums: expected 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_named_and_nothing_moves(case):
    op = OPS.sgd_undo_velocity_adjoint.default
    names = [argument.name for argument in op._schema.arguments]
    name, spoil, message = WRONG[case]
    values = dict(zip(names, adjoint_sample(64)["sgd_undo_velocity_adjoint"], strict=True))
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match=message):
        op(**{**values, name: spoil(values[name])})
    for t, expected in zip(tensors, before, strict=True):
        assert torch.equal(t, expected)


def test_float64_weights_among_others_are_refused():
    values = list(adjoint_sample(64)["sgd_undo_weights_adjoint"])
    values[0] = [values[0][0].double(), *values[0][1:]]
    with pytest.raises(RuntimeError, match="weights: expected all of them in float64, or none"):
        OPS.sgd_undo_weights_adjoint(*values)


def test_one_vector_for_both_is_refused():
    values = list(adjoint_sample(64)["sgd_undo_weights_adjoint"])
    values[-3] = values[-4]
    with pytest.raises(RuntimeError, match="velocities_adjoint: expected memory of its own"):
        OPS.sgd_undo_weights_adjoint(*values)
