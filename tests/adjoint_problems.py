"""The adjoint of a step, beside the undoing of a bucket: vectors, products, what is wanted; and a NumPy oracle that adds in the
order that csrc/core/adjoint.h defines. Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
import oracle
import torch
from core_problems import ASKEW, DTYPES, OPS, Bucket, Step, same_bits
from device_matrix import CASES, Case, state_of, steps_of

REALS = {"float32": torch.float32, "float64": torch.float64}
ALL_SUMS = (True, True, True)
ALSO_ASKEW = ASKEW | {"vectors"}


@dataclass
class Through:
    """What the adjoint of one step is given beside the step itself."""

    products: list[torch.Tensor | None]
    settings: list[tuple[float, float]]  # (share, decay) per tensor
    by_lr: bool = True
    wanted: tuple[bool, bool, bool] = ALL_SUMS


class AdjointBucket(Bucket):
    """A bucket with aw and av, guarded like the rest; between the tensors they hold zeros."""

    def __init__(self, x, v, dtypes, state_bits, real: str, vectors: list[tuple[np.ndarray, np.ndarray]], *rest, **options):
        super().__init__(x, v, dtypes, state_bits, *rest, **options)
        self.aw, self.av = (self._guarded("vectors", len(self.x), REALS[real]) for _ in range(2))
        for which, vector in enumerate((self.aw, self.av)):
            vector.zero_()
            for part, given in zip(self.split(vector), vectors, strict=True):
                part.copy_(torch.from_numpy(given[which]))
        self.partials = self._guarded("partials", 3 * len(self.skipped), torch.float64)
        self.by_lr = torch.empty(0, dtype=torch.float64)
        self.sums = torch.empty(0, dtype=torch.float64)

    def _numbers(self, count: int) -> torch.Tensor:
        return self._guarded("sums", count * len(self.sizes), torch.float64)

    def undo_weights(self, step: Step, through: Through) -> None:
        _, active, flat = self._shared(step)
        self.by_lr = self._numbers(through.by_lr)
        state = self.x, self.v, self.s
        vectors = self.aw, self.av, self.partials, self.by_lr
        self.ops.sgd_undo_weights_adjoint(self.weights, active, *state, flat, True, self.outcome, self._rates(step), *vectors)

    def undo_velocity_too(self, step: Step, tape, through: Through) -> None:
        spill_bits, planes = tape
        gradients, active, flat = self._shared(step)
        self.sums = self._numbers(sum(through.wanted))
        none = torch.empty(0)
        products = [none if p is None else p.to(self.device) for p in through.products]
        same = len(set(through.settings)) == 1
        settings = [number for row in through.settings[: 1 if same else None] for number in row]
        state = self.x, self.v, self.s, planes, spill_bits, flat, step.n, step.d, self.skipped, True, self.outcome
        vectors = self.aw, self.av, products, settings, list(through.wanted), self.partials, self.sums
        self.ops.sgd_undo_velocity_adjoint(self.weights, gradients, active, *state, *vectors)

    def adjoint(self) -> list[torch.Tensor]:
        return [self.aw, self.av, self.by_lr, self.sums]


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
    for block in (terms[i : i + 512] for i in range(0, len(terms), 512)):
        lanes = 64 if len(block) == 512 else -(-len(block) // 8)
        sums = np.zeros(64)
        for row in range(8):
            part = block[row * lanes : (row + 1) * lanes]
            sums[: len(part)] += part
        while len(sums) > 1:
            sums = sums[0::2] + sums[1::2]
        partials.append(sums[0])
    sums = np.zeros(512)
    for i in range(0, len(partials), 512):
        part = np.array(partials[i : i + 512])
        sums[: len(part)] += part
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half] + sums[half:]
    return float(sums[0])


def numbers(state: torch.Tensor, fraction_bits: int) -> np.ndarray:
    return state.cpu().numpy().astype(np.float64) * 2.0**-fraction_bits


def doubles(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().double().numpy()


def expected_first_half(bucket: AdjointBucket, step: Step, aws, avs):
    """av of every tensor and the sums <aw, v'>, from the state after the step."""
    fmt = oracle.FORMATS[bucket.state_bits]
    narrow = np.float64 if bucket.state_bits == 64 else np.float32
    after, sums = [], []
    for i, v in enumerate(bucket.split(bucket.v)):
        aw, av = aws[i], avs[i]
        if step.gradients[i] is None:
            after.append(av)
            sums.append(0.0)
            continue
        quanta = step.rates[i] if step.rates is not None else None
        lr = np.array(step.coefficients[i][2]) if quanta is None else quanta.double().numpy()
        lr = (lr * 2.0 ** (fmt.velocity_bits - fmt.weight_bits)).astype(narrow).astype(aw.dtype)
        after.append(multiply_add(-lr, aw, av))
        sums.append(added(aw.astype(np.float64) * numbers(v, fmt.velocity_bits)))
    return after, sums


def expected_second_half(bucket: AdjointBucket, step: Step, through: Through, aws, avs):
    """aw and av of every tensor, and the three sums, from the state before the step. Blocks that were refused are left out."""
    fmt = oracle.FORMATS[bucket.state_bits]
    skipped = bucket.skipped.cpu().tolist()
    first_block, out_w, out_v, sums = 0, [], [], []
    for i, (x, v) in enumerate(zip(bucket.split(bucket.x), bucket.split(bucket.v), strict=True)):
        aw, av, real = aws[i], avs[i], aws[i].dtype.type
        size = len(aw)
        blocks = -(-size // 512)
        keep = np.repeat(np.logical_not(skipped[first_block : first_block + blocks]), 512)[:size]
        first_block += blocks
        if step.gradients[i] is None:
            out_w.append(aw)
            out_v.append(av)
            sums.append((0.0, 0.0, 0.0))
            continue
        share, decay = through.settings[i]
        w = numbers(x, fmt.weight_bits)
        u = real(share) * av
        moved = aw if through.products[i] is None else aw + doubles(through.products[i]).astype(real)
        moved = multiply_add(real(decay), u, moved) if decay else moved
        total = doubles(step.gradients[i]) + decay * w
        terms = u.astype(np.float64) * w, av.astype(np.float64) * numbers(v, fmt.velocity_bits), av.astype(np.float64) * total
        sums.append(tuple(added(np.where(keep, term, 0.0)) for term in terms))
        out_w.append(np.where(keep, moved, aw))
        out_v.append(np.where(keep, real(step.n / step.d) * av, av))
    return out_w, out_v, sums


# Problems -------------------------------------------------------------------------------------------------------------


# A bucket with an adjoint has float64 weights only, or none.
ADJOINT_CASES = {
    **{name: case for name, case in CASES.items() if len({dtype == "float64" for dtype in case.dtypes}) == 1},
    "slow decay": Case((700, 40), ("float32", "float16"), momentum="max-1/max"),
    "dtypes side by side": Case((600, 0, 33, 1500, 77), ("float16", "float32", "bfloat16", "float32", "bfloat16")),
    "nothing at all": Case((0, 0), ("float32", "bfloat16")),
    "several of float64": Case((700, 40, 1030), ("float64",) * 3, momentum="1/max", inactive=True, rates=(1,)),
}


def real_of(case: Case) -> str:
    return "float64" if "float64" in case.dtypes else "float32"


def vectors_of(case: Case, real: str, rng: np.random.Generator):
    kind = np.float64 if real == "float64" else np.float32
    return [tuple(rng.standard_normal(size).astype(kind) for _ in range(2)) for size in case.sizes]


def throughs_of(case: Case, steps: list[Step], rng: np.random.Generator) -> list[Through]:
    """Every third product is missing; the settings are not those of the step, which the adjoint does not look at."""
    out = []
    for t in range(len(steps)):
        products = [
            None if (t + i) % 3 == 2 else torch.from_numpy(rng.standard_normal(size)).to(DTYPES[dtype])
            for i, (size, dtype) in enumerate(zip(case.sizes, case.dtypes, strict=True))
        ]
        shares = [(1.0, 0.0) if t % 3 == 0 else (0.75 + 0.1 * (i % 2), 0.3 * (i % 3)) for i in range(len(products))]
        wanted = [ALL_SUMS, (False, True, False), (True, False, False), (False, False, False), (False, False, True)][t % 5]
        out.append(Through(products, shares, t % 4 != 1, wanted))
    return out


def journey(case: Case, state_bits: int, make, count: int = 6, seed: int = 3) -> list[list[torch.Tensor]]:
    """Some steps there with the plain ops, and back with the adjoint; everything after every phase. `make` gives the bucket
    from what AdjointBucket takes."""
    rng = np.random.default_rng(seed)
    x, v = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, count, rng)
    real = real_of(case)
    vectors = vectors_of(case, real, rng)
    throughs = throughs_of(case, steps, rng)
    bucket = make(x, v, list(case.dtypes), state_bits, real, vectors)
    padding = [bucket.padding(t).cpu() for t in (bucket.aw, bucket.av)]
    tapes = [bucket.step(step) for step in steps]
    trace = []

    def record() -> None:
        seen = [*bucket.tensors(), bucket.outcome, bucket.skipped, *bucket.adjoint()]
        trace.append([t.cpu().clone() for t in seen])

    for step, tape, through in zip(reversed(steps), reversed(tapes), reversed(throughs), strict=True):
        bucket.undo_weights(step, through)
        record()
        bucket.undo_velocity_too(step, tape, through)
        record()
    bucket.assert_guards()
    for t, before in zip((bucket.aw, bucket.av), padding, strict=True):
        assert torch.equal(bucket.padding(t).cpu(), before)
    return trace


def assert_same_trace(mine: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> None:
    for t, (row, other) in enumerate(zip(mine, expected, strict=True)):
        for i, (a, b) in enumerate(zip(row, other, strict=True)):
            assert torch.equal(a, b) if a.dtype == torch.uint8 else same_bits(a, b), f"phase {t}, tensor {i}"


def adjoint_sample(state_bits: int):
    """Arguments of the two ops, as core_problems.sample."""
    rng = np.random.default_rng(3)
    case = Case((40, 700, 1030), ("float32", "float16", "bfloat16"), momentum="1/max")
    x, v = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, 6, rng)
    bucket = AdjointBucket(x, v, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng))
    spill_bits, planes = [bucket.step(step) for step in steps][-1]
    assert planes
    step, active = steps[-1], [True, False, True]
    flat = [c for row in step.coefficients for c in row]
    state = bucket.x, bucket.v, bucket.s
    vectors = bucket.aw, bucket.av
    sums = [torch.zeros(size, dtype=torch.float64) for size in (3, 9)]
    products = [torch.ones_like(bucket.weights[0]), torch.empty(0), torch.ones_like(bucket.weights[2])]
    first = bucket.weights, active, *state, flat, True, bucket.outcome, None, *vectors, bucket.partials, sums[0]
    tail = planes, spill_bits, flat, step.n, step.d, bucket.skipped, True, bucket.outcome
    given = products, [0.5, 0.25], [True] * 3, bucket.partials, sums[1]
    second = bucket.weights, step.gradients, active, *state, *tail, *vectors, *given
    return {"sgd_undo_weights_adjoint": first, "sgd_undo_velocity_adjoint": second}


__all__ = [
    "ADJOINT_CASES",
    "ALSO_ASKEW",
    "OPS",
    "AdjointBucket",
    "Through",
    "added",
    "adjoint_sample",
    "assert_same_trace",
    "expected_first_half",
    "expected_second_half",
    "journey",
    "real_of",
    "throughs_of",
    "vectors_of",
]
