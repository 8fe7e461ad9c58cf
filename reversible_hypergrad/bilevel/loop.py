"""The outer loop of bilevel problems."""

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.adjoints.resumable import check_call
from reversible_hypergrad.bilevel.estimators import Estimator, as_estimator
from reversible_hypergrad.bilevel.guard import Guard, check_guard
from reversible_hypergrad.bilevel.hyperparameters import Hyperparameters
from reversible_hypergrad.bilevel.log import Callback, CsvLog, Record
from reversible_hypergrad.bilevel.mover import MakeOptimizer, MakeScheduler, Mover
from reversible_hypergrad.bilevel.outer import COLUMNS, OuterLoop, Score, Wanted
from reversible_hypergrad.bilevel.result import Result
from reversible_hypergrad.bilevel.sets import Set
from reversible_hypergrad.bilevel.task import TaskOf
from reversible_hypergrad.bilevel.tasks import Mean
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.replay.fingerprint import Fingerprint
from reversible_hypergrad.storage.kept import KeptFiles
from reversible_hypergrad.training.progress import bars
from reversible_hypergrad.training.resume import Resume, check_resume, digest, values_in

__all__ = ["Bilevel"]

_SECONDS = 1.0  # between two kept points, unless a number of tasks was asked for


class Bilevel:
    """Hyperparameters that an optimizer of torch moves along hypergradients of ``task``.

    Args:
        task: ``task(k, h)`` -> :class:`Task`, or several in a list, of which the hypergradients are averaged. k = 0, 1, ...
            counts its tasks; h is the nest, with copies of the learned tensors in it, attached to which everything has to be
            computed. The same k must give the same task: seed random choices by it. With several tasks it is called once more for
            each of them.
        h: any nest of tensors. Those that require grad are learned. They stay as they are: copies of them are moved.
        estimator: a strategy such as ``rh.Reversible()``, with one outer step per task, or an estimator such as ``rh.OneStep()``:
            online ones are followed at inner steps. It stays as it is, too: what it learns about tasks, each ``run`` learns anew.
        optimizer: a class of ``torch.optim``, or a function of tensors, ``lr`` and the options that returns such an optimizer.
        lr: its learning rate; one, or by name of a hyperparameter: ``{"net": 1e-3, "lr": 0.1}``.
        scheduler: a function of the optimizer that returns one of ``torch.optim.lr_scheduler``, such as ``lambda optimizer:
            CosineAnnealingLR(optimizer, 100)``. It is advanced at each outer step.
        sets: where hyperparameters have to stay, such as :class:`Box`; one for all, or by name. After each step they are
            projected there, each tensor by itself.
        guard: what is refused; None: what is not finite is an error, and everything else is followed.
        options: further arguments of the optimizer, such as ``betas``.

    Names are the keys of the nest, joined by dots: ``h["net"]["0.weight"]`` is ``net.0.weight``, and ``net`` stands for all that
    is in it. The longest name that fits counts.

    Raises:
        TypeError: for what cannot be one of these.
        ValueError: for a nest with nothing to learn, not finite, computed from other tensors, or outside of its set; for
            unknown names; for an optimizer such as LBFGS, that asks for losses within a step.

    >>> import torch, reversible_hypergrad as rh
    >>> _ = torch.manual_seed(0)
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(10, 8, 3)
    >>> def task(k, h):
    ...     return rh.Task(
    ...         model,
    ...         lambda model, x, log_l2: (model(x) - 1).square().mean() + log_l2.exp() * model.weight.square().sum(),
    ...         data,
    ...         outer=lambda weights: torch.func.functional_call(model, weights, data[0]).square().mean(),
    ...         optimizer=rh.SGD(h["lr"]),
    ...         hyperparameters=h["log_l2"],
    ...         seed=k,
    ...     )
    >>> h = {"lr": torch.tensor(0.05, requires_grad=True), "log_l2": torch.tensor(-5.0, requires_grad=True)}
    >>> sets = {"lr": rh.Box(0.001, 0.1)}
    >>> result = rh.Bilevel(task, h, rh.Snapshots(), torch.optim.Adam, lr=0.01, sets=sets).run(steps=5)
    >>> result.history[-1]["outer_loss"] < result.history[0]["outer_loss"], result.refused
    (True, 0)
    """

    def __init__(
        self,
        task: TaskOf,
        h: Any,
        estimator: Adjoint | Estimator,
        optimizer: MakeOptimizer = torch.optim.Adam,
        *,
        lr: float | Mapping[str, float],
        scheduler: MakeScheduler | None = None,
        sets: Mapping[str, Set] | Set | None = None,
        guard: Guard | None = Guard(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        for name, given in (("task", task), ("optimizer", optimizer), ("scheduler", scheduler)):
            if not callable(given) and not (name == "scheduler" and given is None):
                raise TypeError(f"{name}: expected a function, got {type(given).__name__}")
        check_guard(guard)
        self._task, self._h = task, h
        self._estimator = copy.deepcopy(as_estimator(estimator))
        self._known = copy.deepcopy(self._estimator.state_dict())
        self._optimizer, self._lr, self._options, self._scheduler = optimizer, lr, options, scheduler
        self._sets, self._guard = sets, guard
        self._mover()

    def run(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        *,
        score: Score | None = None,
        score_every: int = 1,
        patience: int | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        log: str | Path | None = None,
        resume: str | Path | Resume | None = None,
        progress: bool = False,
    ) -> Result:
        """Moves copies of the hyperparameters as given, whatever earlier calls have found.

        Args:
            steps: outer steps, one per hypergradient: a refused one counts, and online several belong to one task.
            minutes: wall-clock time, looked at after each outer step. With both, what comes first; one of them is needed.
            score: ``score(h, k)`` -> number, higher is better, at outer step k before it is taken, and after the last one. Its h
                does not require grad. It decides what is best; without it the outer loss does, if each is of a whole run.
            score_every: outer steps between two scores.
            patience: end after so many scores in a row that are no better than the best.
            callbacks: get the record of each outer step, a dict of numbers: ``step``, ``task``, ``outer_loss`` and ``norm`` of
                the hypergradient at the hyperparameters before the step, ``refused`` (0 or 1), ``lr``, ``score`` (NaN where there
                is none), ``best``, ``inner_steps`` in all, ``seconds``, ``cpu_seconds``.
            log: a file to write the records to, as CSV. It is replaced, or, by a resumed loop, continued.
            resume: a directory, made if it is not there, or an ``rh.Resume`` of it with ``every`` tasks between two kept points;
                about a second if None. If the process is killed at any moment, the same call goes on from the last kept
                point and ends with the same bits, and the log has each row once; callbacks get those after the kept point again.
                The directory stays: the same call returns its result at once, one with more ``steps`` or ``minutes`` goes on.
            progress: show a bar.

        Returns:
            A :class:`Result`.

        Raises:
            TypeError, ValueError: for what cannot be one of these; a task whose outer loss depends on nothing learned; a
                directory of another call, or of another environment, where bits may differ. Functions (the task, the score)
                cannot be compared: they have to be the same.
            FloatingPointError: if every hypergradient was refused; without a guard, at the first that is not finite.
            OSError: if a file cannot be written.

        Cost: the estimates, and, beside the optimizer's, three copies of the hyperparameters and two of its state. A kept point
        takes the time to write five copies and the history to the disk. Torch's global random numbers are kept, too; of others,
        tasks must draw by k.
        """
        wanted = _wanted(steps, minutes, score, score_every, patience)
        callbacks = [callbacks] if callable(callbacks) else list(callbacks)
        _check_callbacks(callbacks, log)
        kept = check_resume(resume)
        mover = self._mover()
        hyperparameters = mover.hyperparameters
        self._estimator.load_state_dict(copy.deepcopy(self._known))
        source = Mean(self._task, hyperparameters.nest, hyperparameters.leaves, self._estimator)
        loop = OuterLoop(source, mover, wanted, whole=not self._estimator.online)
        keeper = None if kept is None else _Keeper(kept, loop, self._said(mover, wanted))
        if keeper is None or not keeper.restore(wanted.steps):
            with contextlib.ExitStack() as stack:
                told: list[Callable[[Record], object]] = list(callbacks)
                if log is not None:
                    file = CsvLog(Path(log), COLUMNS, loop.state.records)
                    stack.callback(file.close)
                    told.insert(0, file.write)
                bar = stack.enter_context(bars(progress)("outer steps", wanted.steps))
                told.append(lambda record: bar.advance(f"outer loss {record['outer_loss']:.4g}" if bar.wants_text else ""))
                loop.run(lambda record: [tell(dict(record)) for tell in told], keeper.at_task if keeper else lambda: None)
            if keeper is not None:
                keeper.at_end()
        return loop.result()

    def _mover(self) -> Mover:
        hyperparameters = Hyperparameters(self._h)
        sets = hyperparameters.spread("sets", self._sets)
        hyperparameters.check_sets(sets)
        return Mover(hyperparameters, self._optimizer, self._lr, self._options, self._scheduler, sets, self._guard)

    def _said(self, mover: Mover, wanted: Wanted) -> dict[str, str]:
        """What must be the same in a call that goes on."""
        learned = mover.hyperparameters.learned
        begun = mover.plain()
        return {
            "h": f"{', '.join(learned)}: {digest(values_in(self._h))}",
            "estimator": f"{self._estimator!r}, {self._known}",
            "optimizer": f"{type(mover.optimizer).__name__}, {begun['optimizer']['param_groups']}",
            "scheduler": f"{begun['scheduler']}",
            "sets": f"{self._sets}, values {digest(values_in(self._sets))}",
            "guard": repr(self._guard),
            "score": f"{'none' if wanted.score is None else 'given'}, every {wanted.score_every}",
            "patience": repr(wanted.patience),
        }


class _Keeper:
    """Writes down a loop between two tasks and at its end."""

    def __init__(self, resume: Resume, loop: OuterLoop, said: dict[str, str]) -> None:
        self._loop, self._every = loop, resume.every
        self._files = KeptFiles(resume.directory)
        check_call(self._files, said, Fingerprint.current({x.device for x in loop.mover.hyperparameters.leaves}))
        self._written = time.perf_counter()

    def restore(self, steps: int | None) -> bool:
        """To the last kept point. Returns whether that was the end."""
        if "task" not in self._files:
            self._write("task")
            return False
        if "end" in self._files:
            self._loop.restore(self._files.read("end"))
            if self._loop.is_over() is not None:
                _check_within(steps, self._loop.state.step)
                return True
        self._loop.restore(self._files.read("task"))
        _check_within(steps, self._loop.state.step)
        return False

    def at_task(self) -> None:
        due = time.perf_counter() - self._written >= _SECONDS
        if self._every is not None:
            due = self._loop.state.task % self._every == 0
        if due or self._loop.is_over() is not None:
            self._write("task")

    def at_end(self) -> None:
        self._write("end")

    def _write(self, name: str) -> None:
        self._files.write(name, self._loop.plain())
        self._written = time.perf_counter()


def _check_within(steps: int | None, taken: int) -> None:
    if steps is not None and taken > steps:
        raise ValueError(
            f"resume: the directory holds {taken} outer steps, but steps={steps}. Give another directory, or more steps"
        )


def _wanted(steps: Any, minutes: Any, score: Any, score_every: Any, patience: Any) -> Wanted:
    if steps is None and minutes is None:
        raise ValueError("steps, minutes: expected one of them, or both, got neither")
    if steps is not None:
        check_integer("steps", steps, least=1, otherwise="None")
    if minutes is not None:
        if isinstance(minutes, bool) or not isinstance(minutes, int | float):
            raise TypeError(f"minutes: expected a number or None, got {minutes!r}")
        if not minutes > 0:
            raise ValueError(f"minutes: expected a number above 0, got {minutes!r}")
    if score is not None and not callable(score):
        raise TypeError(f"score: expected a function score(h, k), got {type(score).__name__}")
    check_integer("score_every", score_every, least=1)
    if patience is not None:
        check_integer("patience", patience, least=1, otherwise="None")
        if score is None:
            raise ValueError(f"patience: expected a score to wait for, got patience={patience} alone. Give score=")
    return Wanted(steps, minutes, score, score_every, patience)


def _check_callbacks(callbacks: Sequence[Any], log: Any) -> None:
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks: expected functions of a record, got {callback!r}")
    if log is not None:
        if not isinstance(log, str | Path):
            raise TypeError(f"log: expected a path, got {type(log).__name__}")
        if not Path(log).absolute().parent.is_dir():
            raise FileNotFoundError(f"log: expected a path in a directory that is there, got {str(log)!r}")
