"""Steps undone with their adjoint for several losses: the integers move with the first one's vectors, and the others follow.
Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import oracle
import torch
from adjoint_problems import real_of
from core_problems import DTYPES, Bucket, Record, Step, same_bits
from device_matrix import FAST, SLOW, Case, state_of, steps_of

LOSSES = 3
HALVES = ("undo_weights", "undo_states")
SUMS = {"sgd": (1, 3), "adam": (5, 5)}  # of either half

LOSS_CASES = {
    "of three dtypes": Case(
        (600, 0, 33, 1500, 77, 512),
        ("float16", "float32", "bfloat16", "float32", "bfloat16", "float32"),
        momentum=FAST,
        elements=(0, 3),
        inactive=True,
    ),
    "of float64": Case((700, 40, 1030), ("float64",) * 3, momentum=FAST, elements=(1,), inactive=True),
    "without weight decay": Case((1030, 65), ("float32",) * 2, decay=0.0),
    "slow decay": Case((700, 40), ("float32", "float16"), momentum=SLOW),
}
REFUSED = Case((1100, 70), ("float32", "bfloat16"), momentum=FAST)


@dataclass
class Pull:
    """What the adjoint of one step is given for one loss, beside its vectors."""

    products: list[torch.Tensor]  # without elements: none
    carries: torch.Tensor
    wanted: tuple[list[bool], list[bool]]  # sums, of either half
    directed: list[bool]  # whose direction is written


class LossBucket(Bucket):
    """A bucket, and the vectors aw and az of several losses."""

    def __init__(self, *problem, vectors: list[list[torch.Tensor]], **options):
        super().__init__(*problem, **options)
        self.vectors = [[self._guarded("vectors", len(self.x), v.dtype) for v in given] for given in vectors]
        for mine, given in zip(self.vectors, vectors, strict=True):
            for to, v in zip(mine, given, strict=True):
                to.copy_(v)
        self.written: list[dict[str, list[torch.Tensor]]] = [{} for _ in vectors]
        self.skipped.zero_()

    def of_loss(self, q: int) -> list[torch.Tensor]:
        return [*self.vectors[q], *(t for half in self.written[q].values() for t in half)]

    def arguments(self, half: str, step: Step, record: Record, q: int, pull: Pull, moved: bool) -> tuple:
        """Of one half's op for loss q, in order."""
        second = half == HALVES[1]
        aw, *az = self.vectors[q]
        wanted = pull.wanted[second]
        blocks = len(self.skipped)
        sums = self._guarded("sums", sum(wanted) * len(self.sizes), torch.float64)
        if second:
            sizes = [size if on else 0 for size, on in zip(self.sizes, pull.directed, strict=True)]
            of_half = [self._guarded("vectors", size, aw.dtype) for size in sizes]
            table = torch.tensor([[scale.sigma for scale in own[:-1]] for own in record.before], dtype=torch.float64)
            self.written[q][half] = [*of_half, sums]
        else:
            of_half, table = [p.to(self.device) for p in pull.products], pull.carries
            self.written[q][half] = [sums]
        partials = self._guarded("partials", sum(wanted) * blocks, torch.float64)
        gradients, skipped = ([self.gradients(step)], [self.skipped]) if second else ([], [])
        state = self.x, self.states, record.numbers, record.shifts, self.elements(step), record.planes
        vectors = aw, az, of_half, table, wanted, partials, sums
        return self.rule.name, self.weights, *gradients, *state, *skipped, moved, True, self.outcome, *vectors

    def pull(self, half: str, step: Step, record: Record, q: int, pull: Pull, moved: bool) -> None:
        """Undoes one half of a step, with the adjoint for loss q; or only the latter, with a look at all the rest."""
        arguments = self.arguments(half, step, record, q, pull, moved)
        others = [t for other in range(len(self.vectors)) if other != q for t in self.of_loss(other)]
        rest = [*self.tensors(), self.skipped, record.planes, *others]
        before = [t.clone() for t in rest]
        getattr(self.ops, f"{half}_adjoint")(*arguments)
        if moved:
            assert not self.outcome.any()
            for mine, expected in zip(rest, before, strict=True):
                assert same_bits(mine, expected)


def pulls_of(case: Case, rule, count: int, rng: np.random.Generator) -> list[list[Pull]]:
    """By step and loss. In turn all sums are wanted, none, and every other one; where none is, no direction is written either:
    then the second half of a rule without decay has nothing to do."""
    states, tensors = len(rule.powers), len(case.sizes)
    columns = states + (rule is oracle.Adam)  # Adam's weights decay as well
    out = []
    for t in range(count):
        pulls = []
        for q in range(LOSSES):
            products = [
                torch.from_numpy(rng.standard_normal(size)).to(DTYPES[dtype]) if (t + i + q) % 3 else torch.empty(0)
                for i, (size, dtype) in enumerate(zip(case.sizes, case.dtypes, strict=True))
            ]
            before, after = ([(True, False, s % 2 == 0)[t % 3] for s in range(n)] for n in SUMS[rule.name])
            directed = [t % 3 != 1 and (i + q) % 3 != 1 for i in range(tensors)]
            carries = torch.from_numpy(rng.uniform(0.5, 1.0, (tensors, columns)))
            pulls.append(Pull(products, carries, (before, after), directed))
        out.append(pulls)
    return out


def walk_back(case: Case, state_bits: int, rule, together: bool, refused: bool = False, **options) -> list[list[torch.Tensor]]:
    """Some steps there, and back with the adjoint of several losses; everything after every half. With `refused`, one step back,
    by a gradient that cannot have led there.

    Args:
        together: the losses share a bucket, whose integers move once; else each has one of its own.
    """
    rng = np.random.default_rng(3)
    x, states = state_of(case, state_bits, rng, rule)
    steps = steps_of(case, state_bits, 4, rng, rule)
    pulls = pulls_of(case, rule, len(steps), rng)
    length, real = sum(map(oracle.state_size, case.sizes)), DTYPES[real_of(case)]
    vectors = [[torch.from_numpy(rng.standard_normal(length)).to(real) for _ in (0, *rule.powers)] for _ in range(LOSSES)]
    make = partial(LossBucket, x, states, list(case.dtypes), state_bits, rule=rule, **options)
    buckets = [make(vectors=vectors)] if together else [make(vectors=[own]) for own in vectors]
    places = [(0, q) if together else (q, 0) for q in range(LOSSES)]  # of a loss: its bucket, and its number there
    records = [[bucket.step(step) for bucket in buckets] for step in steps]
    assert case.momentum != FAST or all(len(of_step[0].planes) for of_step in records)
    trace = []
    for step, of_step, of_losses in list(zip(steps, records, pulls, strict=True))[::-1][: 1 if refused else None]:
        for half in HALVES:
            if refused and half == HALVES[1]:
                step.gradients[0][600] = 1e3
            seen = []
            for (b, q), pull in zip(places, of_losses, strict=True):
                buckets[b].pull(half, step, of_step[b], q, pull, moved=q > 0)
                if q == 0:
                    seen = [buckets[b].outcome, *buckets[b].tensors(), buckets[b].skipped]
                    seen = [t.cpu().clone() for t in seen]
            trace.append(seen + [t.cpu().clone() for b, q in places for t in buckets[b].of_loss(q)])
    assert bool(buckets[0].skipped.any()) == refused
    for bucket in buckets:
        bucket.assert_guards()
    return trace
