"""The adjoint of a step, beside the undoing of a bucket: vectors, products, what is wanted; and a NumPy oracle that adds in the
specified order. Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
import oracle
import torch
from core_problems import ASKEW, DTYPES, Bucket, Record, Step, same_bits
from device_matrix import CASES, FAST, SLOW, Case, state_of, steps_of

REALS = {"float32": torch.float32, "float64": torch.float64}
ALL_SUMS = (True, True, True)
ALSO_ASKEW = ASKEW | {"vectors"}
SHARE, DECAY, LR = range(3)


@dataclass
class AdjointStep:
    """What the adjoint of one step is given beside the step itself."""

    products: list[torch.Tensor | None]  # second derivatives times the directions of the step that was undone before
    carries: list[float]  # and its momenta
    by_lr: bool = True
    wanted: tuple[bool, bool, bool] = ALL_SUMS  # by the weight decay, the momentum, the share
    directed: tuple[bool, ...] | None = None  # whose direction is written; all


class AdjointBucket(Bucket):
    """A bucket with aw and av, guarded like the rest; between the tensors they hold zeros."""

    def __init__(self, x, states, dtypes, state_bits, real: str, vectors: list[tuple[np.ndarray, np.ndarray]], *rest, **options):
        super().__init__(x, states, dtypes, state_bits, *rest, **options)
        self.aw, self.av = (self._guarded("vectors", len(self.x), REALS[real]) for _ in range(2))
        for which, vector in enumerate((self.aw, self.av)):
            vector.zero_()
            for part, given in zip(self.split(vector), vectors, strict=True):
                part.copy_(torch.from_numpy(given[which]))
        self.partials = self._guarded("partials", 3 * len(self.skipped), torch.float64)
        self.directions: list[torch.Tensor] = []
        self.by_lr = torch.empty(0, dtype=torch.float64)
        self.sums = torch.empty(0, dtype=torch.float64)

    def weights_adjoint_arguments(self, step: Step, record: Record, adjoint: AdjointStep) -> tuple:
        """Of undo_weights_adjoint, in order."""
        self.by_lr = self._guarded("sums", adjoint.by_lr * len(self.sizes), torch.float64)
        none = torch.empty(0)
        products = [none if p is None else p.to(self.device) for p in adjoint.products]
        carries = torch.tensor(adjoint.carries, dtype=torch.float64).view(-1, 1)
        state = self.x, self.states, record.numbers, record.shifts, self.elements(step), record.planes, False, True, self.outcome
        vectors = self.aw, [self.av], products, carries, [adjoint.by_lr], self.partials, self.by_lr
        return self.rule.name, self.weights, *state, *vectors

    def states_adjoint_arguments(self, step: Step, record: Record, adjoint: AdjointStep) -> tuple:
        """Of undo_states_adjoint, in order."""
        self.sums = self._guarded("sums", sum(adjoint.wanted) * len(self.sizes), torch.float64)
        directed = adjoint.directed or (True,) * len(self.sizes)
        self.directions = [
            self._guarded("vectors", size if on else 0, self.aw.dtype) for size, on in zip(self.sizes, directed, strict=True)
        ]
        state = self.x, self.states, record.numbers, record.shifts, self.elements(step), record.planes, self.skipped, False
        sigma_before = torch.tensor([[own[0].sigma] for own in record.before], dtype=torch.float64)
        vectors = self.aw, [self.av], self.directions, sigma_before, list(adjoint.wanted), self.partials, self.sums
        return self.rule.name, self.weights, self.gradients(step), *state, True, self.outcome, *vectors

    def undo_weights_adjoint(self, step: Step, record: Record, adjoint: AdjointStep) -> None:
        self.ops.undo_weights_adjoint(*self.weights_adjoint_arguments(step, record, adjoint))

    def undo_states_adjoint(self, step: Step, record: Record, adjoint: AdjointStep) -> None:
        self.ops.undo_states_adjoint(*self.states_adjoint_arguments(step, record, adjoint))
        self.scales = [list(own) for own in record.before]

    def adjoint(self) -> list[torch.Tensor]:
        return [self.aw, self.av, *self.directions, self.by_lr, self.sums]


# Oracle ---------------------------------------------------------------------------------------------------------------


_LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
_FUSED = {np.float32: (_LIBM.fmaf, ctypes.c_float), np.float64: (_LIBM.fma, ctypes.c_double)}
for _function, _type in _FUSED.values():
    _function.argtypes, _function.restype = [_type] * 3, _type


def multiply_add(a, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a*b + c, rounded once, by the C library."""
    fused, _ = _FUSED[b.dtype.type]
    rows = zip(np.broadcast_to(a, b.shape).tolist(), b.tolist(), c.tolist(), strict=True)
    return np.array([fused(*row) for row in rows], b.dtype)


def added(terms: np.ndarray) -> float:
    """The inner product of one tensor from its terms, float64."""
    partials = []
    for block in (terms[i : i + oracle.BLOCK] for i in range(0, len(terms), oracle.BLOCK)):
        sums = np.zeros(oracle.LANES)
        for row in (block[i : i + oracle.LANES] for i in range(0, len(block), oracle.LANES)):
            sums[: len(row)] += row
        while len(sums) > 1:
            sums = sums[0::2] + sums[1::2]
        partials.append(sums[0])
    sums = np.zeros(oracle.SUM_LANES)
    for i in range(0, len(partials), oracle.SUM_LANES):
        part = np.array(partials[i : i + oracle.SUM_LANES])
        sums[: len(part)] += part
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half] + sums[half:]
    return float(sums[0])


def values(state: torch.Tensor, sigma: float) -> np.ndarray:
    return state.cpu().numpy().astype(np.float64) * sigma


def number(step: Step, i: int, which: int) -> np.ndarray:
    """One of the rule's numbers of tensor i: one, or one per weight; as doubles."""
    given = step.elements[i][which] if step.elements is not None else None
    return np.array(step.numbers[i][which]) if given is None else given.cpu().double().numpy()


def expected_first_half(bucket: AdjointBucket, step: Step, record: Record, adjoint: AdjointStep, aws, avs):
    """aw and av of every tensor and the sums <aw, v'>, from the state after the step."""
    out_w, out_v, sums = [], [], []
    for i, v in enumerate(bucket.split(bucket.v)):
        aw, av, real = aws[i], avs[i], aws[i].dtype.type
        total = 0.0
        if step.gradients[i] is not None:
            if adjoint.products[i] is not None:
                aw = aw + adjoint.products[i].cpu().double().numpy().astype(real)
            av = (adjoint.carries[i] * av.astype(np.float64)).astype(real)
            total = added(aw.astype(np.float64) * values(v, record.after[i][0].sigma))
            av = multiply_add(-number(step, i, LR).astype(real), aw, av)
        out_w.append(aw)
        out_v.append(av)
        sums.append(total)
    return out_w, out_v, sums


def expected_second_half(bucket: AdjointBucket, step: Step, record: Record, aws, avs):
    """aw and the direction of every tensor (None: it takes no part), the three sums, and which weights were undone at all; from
    the state before the step. V is read in the scale that the step gave it: the caller knows both scales."""
    skipped = bucket.skipped.cpu().tolist()
    first_block, out_w, directions, sums, undone = 0, [], [], [], []
    for i, (x, v) in enumerate(zip(bucket.split(bucket.x), bucket.split(bucket.v), strict=True)):
        aw, av, real = aws[i], avs[i], aws[i].dtype.type
        blocks = oracle.block_count(len(aw))
        keep = np.repeat(np.logical_not(skipped[first_block : first_block + blocks]), oracle.BLOCK)[: len(aw)]
        first_block += blocks
        undone.append(keep)
        if step.gradients[i] is None:
            out_w.append(aw)
            directions.append(None)
            sums.append((0.0, 0.0, 0.0))
            continue
        share, decay = (number(step, i, which) for which in (SHARE, DECAY))
        w = values(x, record.before[i][1].sigma)
        u = share.astype(real) * av
        moved = np.where(decay != 0, multiply_add(decay.astype(real), u, aw), aw)
        total = step.gradients[i].cpu().double().numpy() + decay * w
        of_av = av.astype(np.float64)
        terms = u.astype(np.float64) * w, of_av * values(v, record.before[i][0].sigma), of_av * total
        sums.append(tuple(added(np.where(keep, term, 0.0)) for term in terms))
        out_w.append(np.where(keep, moved, aw))
        directions.append(u)
    return out_w, directions, sums, undone


# Problems -------------------------------------------------------------------------------------------------------------


# A bucket with an adjoint has float64 weights only, or none.
ADJOINT_CASES = {
    **{name: case for name, case in CASES.items() if len({dtype == "float64" for dtype in case.dtypes}) == 1},
    "slow decay": Case((700, 40), ("float32", "float16"), momentum=SLOW),
    "dtypes side by side": Case((600, 0, 33, 1500, 77), ("float16", "float32", "bfloat16", "float32", "bfloat16")),
    "nothing at all": Case((0, 0), ("float32", "bfloat16")),
    "several of float64": Case((700, 40, 1030), ("float64",) * 3, momentum=FAST, inactive=True, elements=(1,)),
}


def real_of(case: Case) -> str:
    return "float64" if "float64" in case.dtypes else "float32"


def vectors_of(case: Case, real: str, rng: np.random.Generator):
    kind = np.float64 if real == "float64" else np.float32
    return [tuple(rng.standard_normal(size).astype(kind) for _ in range(2)) for size in case.sizes]


def adjoints_of(case: Case, steps: list[Step], rng: np.random.Generator) -> list[AdjointStep]:
    """Every third product is missing, and every third direction; the carries are not the momenta, which nobody looks at here."""
    out = []
    for t in range(len(steps)):
        products = [
            None if (t + i) % 3 == 2 else torch.from_numpy(rng.standard_normal(size)).to(DTYPES[dtype])
            for i, (size, dtype) in enumerate(zip(case.sizes, case.dtypes, strict=True))
        ]
        carries = [1.0 if t % 3 == 0 else 0.75 + 0.1 * (i % 2) for i in range(len(products))]
        wanted = [ALL_SUMS, (False, True, False), (True, False, False), (False, False, False), (False, False, True)][t % 5]
        directed = tuple((t + i) % 3 != 1 for i in range(len(products)))
        out.append(AdjointStep(products, carries, t % 4 != 1, wanted, directed))
    return out


def journey(case: Case, state_bits: int, make, count: int = 6, seed: int = 3) -> list[list[torch.Tensor]]:
    """Some steps there with the plain ops, and back with the adjoint; everything after every phase. `make` gives the bucket
    from what AdjointBucket takes."""
    rng = np.random.default_rng(seed)
    x, states = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, count, rng)
    real = real_of(case)
    vectors = vectors_of(case, real, rng)
    adjoints = adjoints_of(case, steps, rng)
    bucket = make(x, states, list(case.dtypes), state_bits, real, vectors)
    records = [bucket.step(step) for step in steps]
    trace = []

    def look() -> None:
        seen = [*bucket.tensors(), bucket.outcome, bucket.skipped, *bucket.adjoint()]
        trace.append([t.cpu().clone() for t in seen])

    bucket.skipped.zero_()
    for step, record, adjoint in zip(reversed(steps), reversed(records), reversed(adjoints), strict=True):
        bucket.undo_weights_adjoint(step, record, adjoint)
        look()
        bucket.undo_states_adjoint(step, record, adjoint)
        look()
    bucket.assert_guards()
    for vector in (bucket.aw, bucket.av):
        assert not bucket.padding(vector).any()
    return trace


def assert_same_trace(mine: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> None:
    for t, (row, other) in enumerate(zip(mine, expected, strict=True)):
        for i, (a, b) in enumerate(zip(row, other, strict=True)):
            assert same_bits(a, b), f"phase {t}, tensor {i}"


def as_moved(op, arguments: tuple) -> tuple:
    """Arguments of an op, for integers that have moved."""
    names = [one.name for one in op.default._schema.arguments]
    return tuple(True if name == "moved" else given for name, given in zip(names, arguments, strict=True))


def adjoint_sample(state_bits: int) -> dict[str, tuple]:
    """Arguments of the two ops, as core_problems.sample."""
    rng = np.random.default_rng(3)
    case = Case((40, 700, 1030), ("float32", "float16", "bfloat16"), momentum=FAST)
    x, states = state_of(case, state_bits, rng)
    (step,) = steps_of(case, state_bits, 1, rng)
    bucket = AdjointBucket(x, states, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
    step.gradients[1] = None
    record = bucket.step(step)
    record.numbers.nan_to_num_()
    bucket.skipped.zero_()
    adjoint = AdjointStep([torch.ones_like(bucket.weights[0]), None, torch.ones_like(bucket.weights[2])], [0.5, 1.0, 0.25])
    return {
        "undo_weights_adjoint": bucket.weights_adjoint_arguments(step, record, adjoint),
        "undo_states_adjoint": bucket.states_adjoint_arguments(step, record, adjoint),
    }
