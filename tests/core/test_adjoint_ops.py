"""The ops that undo a step and take its adjoint: against NumPy in the defined order, with every instruction set and number of
threads, and the state as the plain ops leave it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from adjoint_problems import (
    ADJOINT_CASES,
    AdjointBucket,
    AdjointStep,
    added,
    adjoint_sample,
    adjoints_of,
    as_moved,
    assert_same_trace,
    expected_first_half,
    expected_second_half,
    journey,
    real_of,
    vectors_of,
)
from core_problems import (
    EACH_RULE,
    FRACTION_BITS,
    INSTRUCTION_SETS,
    OPS,
    WIDTHS,
    Bucket,
    Step,
    normal_gradients,
    random_integers,
)
from device_matrix import Case, state_of, steps_of
from loss_problems import LOSS_CASES, REFUSED, walk_back

LARGE = {"blocks beyond the lanes of a sum": Case((512 * 1100 + 13, 40_000), ("float32", "bfloat16"), elements=(1,))}


def parts(bucket, vector):
    return [part.numpy().copy() for part in bucket.split(vector)]


@WIDTHS
@pytest.mark.parametrize("case", [*ADJOINT_CASES, *LARGE])
def test_against_numpy_to_the_last_bit(state_bits, case):
    problem = {**ADJOINT_CASES, **LARGE}[case]
    rng = np.random.default_rng(3)
    x, states = state_of(problem, state_bits, rng)
    steps = steps_of(problem, state_bits, 2 if case in LARGE else 5, rng)
    real = real_of(problem)
    bucket = AdjointBucket(x, states, list(problem.dtypes), state_bits, real, vectors_of(problem, real, rng))
    plain = Bucket(x, states, list(problem.dtypes), state_bits)
    records, plain_records = [bucket.step(step) for step in steps], [plain.step(step) for step in steps]
    for step, record, plain_record, adjoint in zip(
        reversed(steps), reversed(records), reversed(plain_records), reversed(adjoints_of(problem, steps, rng)), strict=True
    ):
        aws, avs, sums = expected_first_half(bucket, step, record, adjoint, parts(bucket, bucket.aw), parts(bucket, bucket.av))
        bucket.undo_weights_adjoint(step, record, adjoint)
        plain.move(step, plain_record, back=True)
        bucket.assert_equals(plain.tensors())
        assert torch.equal(bucket.outcome, plain.outcome)
        assert_parts(bucket, bucket.aw, aws)
        assert_parts(bucket, bucket.av, avs)
        assert bucket.by_lr.tolist() == (sums if adjoint.by_lr else [])

        bucket.undo_states_adjoint(step, record, adjoint)
        plain.undo_states(step, plain_record)
        bucket.assert_equals(plain.tensors())
        assert torch.equal(bucket.outcome, plain.outcome)
        assert not any(bucket.flags)
        assert_second_half(bucket, step, record, adjoint, aws, avs)
    bucket.assert_guards()


def assert_second_half(bucket, step, record, adjoint, aws, avs):
    """The states are undone; av is as it was."""
    aws, directions, sums, undone = expected_second_half(bucket, step, record, aws, avs)
    assert_parts(bucket, bucket.aw, aws)
    assert_parts(bucket, bucket.av, avs)
    for mine, expected, keep in zip(bucket.directions, directions, undone, strict=True):
        if expected is not None and mine.numel():
            assert np.array_equal(
                mine.numpy()[keep].view(f"i{mine.element_size()}"), expected[keep].view(f"i{mine.element_size()}")
            )
    assert bucket.sums.tolist() == [row[k] for k in range(3) if adjoint.wanted[k] for row in sums]


def assert_parts(bucket, vector, expected):
    for mine, one in zip(bucket.split(vector), expected, strict=True):
        assert_same(mine.numpy(), one)


def assert_same(mine: np.ndarray, expected: np.ndarray) -> None:
    integers = f"i{expected.itemsize}"
    assert np.array_equal(mine.view(integers), expected.view(integers))


@WIDTHS
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_instruction_sets_and_threads_agree(state_bits, real, use_instruction_set, set_num_threads):
    dtypes = ("float64",) * 5 if real == "float64" else ("float32", "bfloat16", "float16", "float32", "bfloat16")
    case = Case((20_000, 15_000, 4_011, 513, 7), dtypes, inactive=True, elements=(1, 3))
    traces = {}
    for threads in (1, 2):
        set_num_threads(threads)
        for name in INSTRUCTION_SETS:
            use_instruction_set(name)
            traces[name, threads] = journey(case, state_bits, AdjointBucket, 4)
    expected = traces.pop((INSTRUCTION_SETS[0], 1))
    for trace in traces.values():
        assert_same_trace(trace, expected)


@WIDTHS
def test_a_skipped_block_is_left_out(state_bits):
    rng = np.random.default_rng(8)
    case = Case((1100, 70), ("float32", "float32"))
    x, states = random_integers(rng, case.sizes, state_bits)
    step = Step(normal_gradients(rng, case.sizes, case.dtypes, [True] * 2), [(0.5, 0.25, 0.01)] * 2, 2.0**-16)
    bucket = AdjointBucket(x, states, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
    record = bucket.step(step)
    # Inside the limits of increments, but 2^16 times as large as V.
    step.gradients[0][600] = 2.0 ** (oracle.LAYOUTS[state_bits].change_bits - 1 - FRACTION_BITS[state_bits][0])
    adjoint = AdjointStep([None, None], [1.0, 1.0])
    bucket.undo_weights_adjoint(step, record, adjoint)
    aws, avs = parts(bucket, bucket.aw), parts(bucket, bucket.av)
    bucket.undo_states_adjoint(step, record, adjoint)
    assert bucket.skipped.tolist() == [0, 1, 0, 0]
    assert bucket.flags == [oracle.FOREIGN_GRADIENT, 0]
    assert_second_half(bucket, step, record, adjoint, aws, avs)


def test_the_order_of_a_sum_matters_here():
    """The oracle's order is no other's: these problems would show it."""
    terms = np.random.default_rng(0).standard_normal(50_000) ** 3
    assert len({added(terms), float(terms.sum()), float(np.add.accumulate(terms)[-1])}) == 3


@WIDTHS
def test_a_direction_of_one_share_is_the_state_s_adjoint(state_bits):
    """Then the caller may leave the direction out; nothing else changes."""
    case = Case((1030, 65), ("float32", "bfloat16"))
    traces = []
    for directed in (True, False):
        rng = np.random.default_rng(5)
        x, states = state_of(case, state_bits, rng)
        step = Step(normal_gradients(rng, case.sizes, case.dtypes, [True] * 2), [(1.0, 0.1, 0.01)] * 2, 0.9)
        bucket = AdjointBucket(x, states, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
        record = bucket.step(step)
        adjoint = AdjointStep([None] * 2, [1.0] * 2, directed=(directed,) * 2)
        bucket.undo_weights_adjoint(step, record, adjoint)
        bucket.undo_states_adjoint(step, record, adjoint)
        for direction, part in zip(bucket.directions, bucket.split(bucket.av), strict=True):
            assert not directed or torch.equal(direction, part)
        traces.append([[bucket.aw.clone(), bucket.av.clone(), bucket.by_lr, bucket.sums]])
    assert_same_trace(*traces)


# Several losses -------------------------------------------------------------------------------------------------------


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("case", LOSS_CASES)
def test_integers_that_have_moved_give_a_loss_the_same_bits(state_bits, rule, case):
    mine, expected = (walk_back(LOSS_CASES[case], state_bits, rule, together) for together in (True, False))
    assert_same_trace(mine, expected)


@WIDTHS
@EACH_RULE
def test_a_block_that_was_refused_is_left_out_for_every_loss(state_bits, rule):
    mine, expected = (walk_back(REFUSED, state_bits, rule, together, refused=True) for together in (True, False))
    assert_same_trace(mine, expected)


# The dispatcher -------------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("op", ["undo_weights_adjoint", "undo_states_adjoint"])
@pytest.mark.parametrize("moved", [False, True])
def test_opcheck(state_bits, op, moved):
    own, arguments = getattr(OPS, op), adjoint_sample(state_bits)[op]
    torch.library.opcheck(own.default, as_moved(own, arguments) if moved else arguments)


A, B = "undo_weights_adjoint", "undo_states_adjoint"
WRONG = {
    "a vector too short": (B, "weights_adjoint", lambda t: t[1:], "weights_adjoint: expected"),
    "a vector with holes": (
        B,
        "states_adjoint",
        lambda t: [t[0].repeat(2)[::2]],
        "states_adjoint.*: expected",
    ),
    "a vector of float64": (B, "weights_adjoint", lambda t: t.double(), "weights_adjoint: expected float32"),
    "vectors of two dtypes": (B, "states_adjoint", lambda t: [t[0].double()], "states_adjoint.*: expected"),
    "a vector too many": (B, "states_adjoint", lambda t: [*t, t[0].clone()], "states_adjoint: expected"),
    "products missing": (A, "products", lambda p: p[:-1], "products: expected 3"),
    "a product of another size": (A, "products", lambda p: [p[0][1:], *p[1:]], r"products\[0\]: expected"),
    "a product of another dtype": (
        A,
        "products",
        lambda p: [*p[:2], p[2].float()],
        r"products\[2\]: expected",
    ),
    "a product of other strides": (
        A,
        "products",
        lambda p: [p[0].repeat(2)[::2], *p[1:]],
        r"products\[0\]: expected the strides",
    ),
    "carries of another count": (A, "carries", lambda c: c[1:], "carries: expected"),
    "carries of float32": (A, "carries", lambda c: c.float(), "carries: expected"),
    "directions missing": (B, "directions", lambda d: d[:-1], "directions: expected"),
    "a direction of another size": (
        B,
        "directions",
        lambda d: [d[0][1:], *d[1:]],
        r"directions\[0\]: expected",
    ),
    "a direction of another dtype": (
        B,
        "directions",
        lambda d: [d[0].short(), *d[1:]],
        r"directions\[0\]: expected",
    ),
    "four sums": (B, "wanted", lambda w: [*w, True], "wanted: expected"),
    "partials too short": (B, "partials", lambda t: t[:4], "partials: expected 18"),
    "partials of float32": (B, "partials", lambda t: t.float(), "partials.*: expected"),
    "sums too long": (B, "sums", lambda t: t.repeat(2), "sums: expected 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_named_and_nothing_moves(case):
    name, argument, spoil, message = WRONG[case]
    op = getattr(OPS, name).default
    values = dict(zip([one.name for one in op._schema.arguments], adjoint_sample(64)[name], strict=True))
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match=message):
        op(**{**values, argument: spoil(values[argument])})
    for t, expected in zip(tensors, before, strict=True):
        assert torch.equal(t, expected)


def test_float64_weights_among_others_are_refused():
    values = list(adjoint_sample(64)["undo_weights_adjoint"])
    values[1] = [values[1][0].double(), *values[1][1:]]
    with pytest.raises(RuntimeError, match="weights: expected all of them in float64, or none"):
        OPS.undo_weights_adjoint(*values)


def test_one_vector_for_both_is_refused():
    values = list(adjoint_sample(64)["undo_weights_adjoint"])
    values[12] = [values[11]]
    with pytest.raises(RuntimeError, match=r"states_adjoint.*: expected memory of its own"):
        OPS.undo_weights_adjoint(*values)
