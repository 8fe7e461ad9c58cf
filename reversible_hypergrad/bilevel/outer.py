"""The outer loop: it sees estimates of a hypergradient for outer step k, wherever they come from."""

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from reversible_hypergrad.bilevel.log import Record
from reversible_hypergrad.bilevel.mover import Mover, norm_of
from reversible_hypergrad.bilevel.result import Result

__all__ = ["COLUMNS", "Hypergradient", "OuterLoop", "Score", "Source", "State", "Wanted"]

COLUMNS = (
    "step",
    "task",
    "outer_loss",
    "norm",
    "refused",
    "lr",
    "score",
    "best",
    "inner_steps",
    "seconds",
    "cpu_seconds",
)


@dataclass(frozen=True, eq=False)
class Hypergradient:
    """An estimate at the present hyperparameters.

    Attributes:
        value: the outer loss.
        gradients: of it, by each learned hyperparameter.
        steps: inner steps that it took since the last one.
    """

    value: float
    gradients: list[Tensor]
    steps: int


class Source(Protocol):
    """What gives estimates."""

    def __call__(self, task: int, /) -> Iterator[Hypergradient]:
        """At the present hyperparameters, which are moved between two of them."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from task to task, in plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Score = Callable[[Any, int], float]


@dataclass(frozen=True, eq=False)
class Wanted:
    """When to end, and what to watch. As :meth:`Bilevel.run` has them."""

    steps: int | None
    minutes: float | None
    score: Score | None = None
    score_every: int = 1
    patience: int | None = None


@dataclass
class State:
    """How far a loop has come, beside its hyperparameters and optimizer.

    Attributes:
        task: the number that the next estimates are asked for by.
        step: outer steps taken.
        best: the highest score, or minus the lowest outer loss; with the step and the values of the hyperparameters.
        stale: scores since then.
        moved: per hyperparameter, whether there was a hypergradient other than 0.
    """

    task: int = 0
    step: int = 0
    inner_steps: int = 0
    stale: int = 0
    best: float = -math.inf
    best_step: int = 0
    best_values: list[Tensor] | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    moved: list[bool] = field(default_factory=list)  # empty: no estimate yet
    records: list[Record] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        rows = [[record[name] for name in COLUMNS] for record in self.records]
        table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(COLUMNS))
        return {**vars(self), "moved": list(self.moved), "records": table}

    def restore(self, kept: dict[str, Any]) -> None:
        records = [dict(zip(COLUMNS, row, strict=True)) for row in kept["records"].tolist()]
        vars(self).update({**kept, "records": records})


class OuterLoop:
    """Asks for estimates, follows them, and remembers the best hyperparameters.

    Args:
        source: of estimates, by the number of a task.
        mover: of the hyperparameters.
        wanted: when to end, and what to watch.
        whole: whether a task has one estimate, of a whole inner run. Only then does a lower outer loss at another step mean
            better hyperparameters.
    """

    def __init__(self, source: Source, mover: Mover, wanted: Wanted, whole: bool) -> None:
        self.mover, self.state = mover, State()
        self._source, self._wanted, self._whole = source, wanted, whole
        self._hyperparameters = mover.hyperparameters
        self._warned = False
        self._began = self._cpu_began = 0.0

    def plain(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, in tensors and plain values; torch's random numbers, too."""
        on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            "state": self.state.plain(),
            "mover": self.mover.plain(),
            "source": copy.deepcopy(self._source.state_dict()),
            "random": [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_cuda else ())],
        }

    def restore(self, kept: dict[str, Any]) -> None:
        self.state.restore(kept["state"])
        self.mover.restore(kept["mover"])
        self._source.load_state_dict(kept["source"])
        torch.set_rng_state(kept["random"][0])
        if kept["random"][1:]:
            torch.cuda.set_rng_state_all(kept["random"][1:])

    def is_over(self) -> str | None:
        """Why, if it is."""
        state, wanted = self.state, self._wanted
        if self.mover.watch is not None and self.mover.watch.gives_up:
            return "too many hypergradients were refused"
        if wanted.steps is not None and state.step >= wanted.steps:
            return f"all {wanted.steps} steps were taken"
        if wanted.minutes is not None and state.seconds >= 60 * wanted.minutes:
            return f"{wanted.minutes:g} minutes were over"
        if wanted.patience is not None and state.stale >= wanted.patience:
            return f"{wanted.patience} scores in a row were no better than the best"
        return None

    def run(self, tell: Callable[[Record], object], keep: Callable[[], object]) -> None:
        """Until it is over.

        Args:
            tell: gets the record of every outer step.
            keep: called between two tasks, when ``state.task`` is the next one.
        """
        state = self.state
        self._began, self._cpu_began = time.perf_counter() - state.seconds, time.process_time() - state.cpu_seconds
        while self.is_over() is None:
            if self._walk(tell):
                state.task += 1
                keep()
        if self._wanted.score is not None:
            self._take_score(self._wanted.score)
        self._read_clocks()

    def result(self) -> Result:
        """Raises FloatingPointError if every hypergradient was refused."""
        state, watch = self.state, self.mover.watch
        refused = 0 if watch is None else watch.refused
        if refused and refused == state.step:
            raise FloatingPointError(
                f"all {refused} hypergradients were refused, so nothing was learned; a warning told why the first one was. Begin "
                "at hyperparameters where training does not diverge, such as lower inner learning rates"
            )
        last = self._hyperparameters.values()
        has_best = state.best_values is not None
        best = last if state.best_values is None else state.best_values
        return Result(
            h=self._nest(best),
            last=self._nest(last),
            best=self._shown_best(),
            best_step=state.best_step if has_best else state.step,
            history=list(state.records),
            refused=refused,
            seconds=state.seconds,
            cpu_seconds=state.cpu_seconds,
            inner_steps=state.inner_steps,
            stopped=self.is_over() or "",
        )

    def _walk(self, tell: Callable[[Record], object]) -> bool:
        """One outer step per estimate of a task. Returns whether that was all of the task."""
        task = self.state.task
        walk = self._source(task)
        for count in itertools.count():
            if count and self.is_over() is not None:
                walk.close()  # type: ignore[attr-defined]
                return False
            try:
                with torch.enable_grad():
                    found = next(walk, None)
            except (FloatingPointError, OverflowError) as error:
                if self.mover.watch is None:
                    raise
                tell(self._record(math.nan, math.nan, self.mover.rate, f"training failed: {error}"))
                break
            if found is None:
                if not count:
                    raise RuntimeError(
                        f"the estimator gave no hypergradient for task {task}, and was expected to give one at least"
                    )
                break
            record = self._follow(found)
            tell(record)
            # Inner weights that are not finite stay so.
            if self._whole or not math.isfinite(record["outer_loss"]) or not math.isfinite(record["norm"]):
                break
        walk.close()  # type: ignore[attr-defined]
        if task == 0:
            self._check_dependence()
        return True

    def _follow(self, found: Hypergradient) -> Record:
        state, mover, wanted = self.state, self.mover, self._wanted
        state.inner_steps += found.steps
        if state.task == 0 and not all(state.moved or [False]):
            before = state.moved or [False] * len(found.gradients)
            state.moved = [b or bool((g != 0).any()) for b, g in zip(before, found.gradients, strict=True)]
        norm, rate, score = norm_of(found.gradients), mover.rate, math.nan
        objection = mover.objection(found.value, norm)
        if objection is None:
            if wanted.score is not None and state.step % wanted.score_every == 0:
                score = self._take_score(wanted.score)
            elif wanted.score is None and self._whole:
                self._compare(-found.value)
            objection = mover.follow(found.value, norm, found.gradients)
        return self._record(found.value, norm, rate, objection, score)

    def _record(self, value: float, norm: float, rate: float, objection: str | None, score: float = math.nan) -> Record:
        state = self.state
        if objection is not None:
            self.mover.go_back()
            self._warn(objection)
        self._read_clocks()
        numbers = (
            *(state.step, state.task, value, norm, objection is not None, rate, score, self._shown_best()),
            *(state.inner_steps, state.seconds, state.cpu_seconds),
        )
        record = dict(zip(COLUMNS, map(float, numbers), strict=True))
        state.records.append(record)
        state.step += 1
        return record

    def _warn(self, objection: str) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"outer step {self.state.step}: the hypergradient was refused: {objection}. The hyperparameters are those again from "
            "which the last accepted one led on. Further refusals are in the log and in result.refused; "
            "guard=rh.Guard(factor=...) says what is refused",
            RuntimeWarning,
            stacklevel=2,
        )

    def _take_score(self, score: Score) -> float:
        given = score(self._nest(self._hyperparameters.values(), requires_grad=False), self.state.step)
        try:
            found = float(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"score: expected a function that returns a number, got {type(given).__name__}") from error
        self._compare(found)
        return found

    def _compare(self, mark: float) -> None:
        state = self.state
        if mark > state.best or (state.best_values is None and not math.isnan(mark)):
            state.best, state.best_step, state.best_values = mark, state.step, self._hyperparameters.values()
            state.stale = 0
        else:
            state.stale += 1

    def _shown_best(self) -> float:
        if self.state.best_values is None:
            return math.nan
        return self.state.best if self._wanted.score is not None else -self.state.best

    def _nest(self, values: Sequence[Tensor], requires_grad: bool = True) -> Any:
        return self._hyperparameters.with_values([x.detach().clone().requires_grad_(requires_grad) for x in values])

    def _read_clocks(self) -> None:
        self.state.seconds = time.perf_counter() - self._began
        self.state.cpu_seconds = time.process_time() - self._cpu_began

    def _check_dependence(self) -> None:
        """A task that uses other tensors than those that it is given has no hypergradient by them."""
        unmoved = [name or "h" for name, moved in zip(self._hyperparameters.learned, self.state.moved, strict=False) if not moved]
        if not unmoved:
            return
        text = f"the hypergradient of the first task is exactly 0 by {', '.join(unmoved)}"
        remedy = (
            "Compute what depends on hyperparameters within task(k, h), from the h that it is given (copies are learned, not the "
            "tensors given first), and take an estimator that sees how they act"
        )
        if len(unmoved) == len(self._hyperparameters.learned):
            raise ValueError(f"task: {text}, so nothing can be learned. {remedy}")
        warnings.warn(f"task: {text}. {remedy}", RuntimeWarning, stacklevel=2)
