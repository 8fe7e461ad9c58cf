"""The planner: memory and time of every exact strategy for a run, and the fastest that fits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reversible_hypergrad.adjoints import (
    Adjoint,
    Checkpoint,
    ForwardMode,
    RecursiveCheckpoint,
    Reversible,
    Snapshots,
)
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.gradients.accumulated import ACCUMULATED_PASSES, ACCUMULATED_VECTORS
from reversible_hypergrad.gradients.clip import Clip, check_gradient_options
from reversible_hypergrad.gradients.clipped import CLIPPED_VECTORS
from reversible_hypergrad.planning.memory import Budget, bytes_of, free_bytes, shown
from reversible_hypergrad.problem.problem import Problem

__all__ = ["Plan", "Row", "plan", "plan_for"]

_MOST_SLOTS = 100  # more save next to nothing
_MARGIN = 1.05  # a strategy fits if it leaves this to allocators, which round up and keep what is freed


@dataclass(frozen=True)
class Row:
    """One strategy for a run.

    Attributes:
        adjoint: the strategy.
        cost: its memory and time.
        fits: whether it can do the run within the budget.
    """

    adjoint: Adjoint
    cost: Cost
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` found; ``str()`` of it is a table.

    Attributes:
        weights: how many.
        budget: bytes.
        rows: every exact strategy whose cost can be known, fastest first.
    """

    weights: int
    budget: float
    rows: list[Row]

    @property
    def adjoint(self) -> Adjoint:
        """The fastest strategy that fits, of equally fast ones the smallest.

        Raises:
            MemoryError: if none does. It names the one that needs least.
        """
        for row in self.rows:
            if row.fits:
                return row.adjoint
        possible = [row for row in self.rows if not row.cost.obstacle]
        least = min(possible, key=lambda row: row.cost.bytes)
        raise MemoryError(
            f"budget: no exact strategy fits {shown(self.budget)}; {least.adjoint!r} needs least, {shown(least.cost.bytes)}. "
            "Raise the budget, or keep states on disk (store= or buffer= a directory)"
        )

    def __str__(self) -> str:
        chosen = next((row for row in self.rows if row.fits), None)
        names = [repr(row.adjoint) for row in self.rows]
        width = max(len(name) for name in names)
        lines = [f"{'strategy':{width}}  {'memory':>8}  {'bytes/weight':>12}  {'time':>6}"]
        for row, name in zip(self.rows, names, strict=True):
            if row.cost.obstacle:
                lines.append(f"{name:{width}}  not possible: {row.cost.obstacle}")
                continue
            each = row.cost.bytes / max(self.weights, 1)
            mark = "  <- the fastest that fits" if row is chosen else "" if row.fits else "  too large"
            lines.append(f"{name:{width}}  {shown(row.cost.bytes):>8}  {each:12.1f}  {row.cost.time:6.2f}{mark}")
        lines.append(f"budget {shown(self.budget)}; time in units of the same training without a hypergradient")
        return "\n".join(lines)


def plan(
    model_or_weight_count: nn.Module | int,
    steps: int,
    momentum: float | Sequence[float] | Tensor = 0.9,
    budget: Budget | None = None,
    device: torch.device | str | None = None,
    *,
    learn_rates: bool = False,
    hyperparameters: int | None = None,
    nesterov: bool = False,
    clip: Clip | None = None,
    accumulate: int = 1,
) -> Plan:
    """Memory and time of every exact strategy for a training run, and the fastest that fits.

    Memory is the most at a time of all that :func:`train` allocates: the copy of the model, states, gradients, the adjoint. Not
    in it are the activations of one step's gradient and Hessian-vector product, which are the same for every strategy here;
    :class:`Unroll`, which keeps those of all steps, is therefore not in the table. Time does not know the machine: it
    takes a step back for 2.8 steps of training, as measured where gradients cost more than the optimizer.

    Args:
        model_or_weight_count: a module, whose trainable parameters count, or a number of float32 weights.
        steps: of training, at least 1.
        momentum: one for all steps, or one per step, in [0, 1].
        budget: bytes, or text such as "500 MB", of which allocators may waste a twentieth; None: nine tenths of what is free on
            ``device`` now.
        device: where to look for free memory; None: the model's, or the CPU.
        learn_rates: whether learning rates or momenta get gradients. Snapshots and checkpoints then keep velocities too.
        hyperparameters: how many elements get gradients; if None, :class:`ForwardMode` is left out. ``adjoint="auto"`` always
            leaves it out, since it gives no gradient by the model's own initial weights.
        nesterov: whether momentum is Nesterov's, which reversal cannot undo.
        clip: as for :func:`train`: three more tensors for all weights at a time.
        accumulate: as for :func:`train`, at least 1; of batches that are :class:`MicroBatches`, how many parts they have. Where
            it is more than 1, it takes two more tensors for all weights, and another gradient for a step back.

    Returns:
        A :class:`Plan`, whose ``adjoint`` is the fastest strategy that fits.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for one out of range, or a model without trainable parameters.

    Cost: some milliseconds, up to a second for ten million steps, and less than a microsecond per step where momenta are given
    per step; nothing is trained.

    >>> import reversible_hypergrad as rh
    >>> print(rh.plan(85_002, steps=2000, momentum=0.9, budget="20 MB"))  # doctest: +NORMALIZE_WHITESPACE
    strategy                                                                         memory  bytes/weight    time
    Snapshots(store='device')                                                         683MB        8036.4    3.80  too large
    Reversible(state_bits=None, verify_every=1, buffer='device', segments=1)         6.66MB          78.4    3.90  <- the ...
    Checkpoint(every=None, store='device')                                           33.0MB         388.4    4.77  too large
    Reversible(state_bits=None, verify_every=1, buffer='device', segments='auto')    5.05MB          59.5    4.79
    RecursiveCheckpoint(slots=22, store='device')                                    18.4MB         216.4    5.64
    RecursiveCheckpoint(arity=2, store='device')                                     9.89MB         116.4    8.23
    budget 20.0MB; time in units of the same training without a hypergradient
    >>> rh.plan(85_002, steps=2000, momentum=0.9, budget="20 MB").adjoint.segments
    1
    """
    check_integer("steps", steps, least=1)
    check_gradient_options(clip, accumulate)
    parts = accumulate > 1
    weight_bytes = 4
    if isinstance(model_or_weight_count, nn.Module):
        trained = [p for p in model_or_weight_count.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("model_or_weight_count: expected a model with parameters that require grad, got none")
        weights, weight_bytes = sum(p.numel() for p in trained), max(p.element_size() for p in trained)
        device = trained[0].device if device is None else device
    else:
        check_integer("model_or_weight_count", model_or_weight_count, least=1, otherwise="a torch.nn.Module")
        weights = model_or_weight_count
    numbers = torch.as_tensor(momentum, dtype=torch.float64).reshape(-1).numpy(force=True)
    if len(numbers) not in (1, steps):
        raise ValueError(f"momentum: expected 1 number or {steps}, one per step, got {len(numbers)}")
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError(f"momentum: expected numbers in [0, 1], got {numbers.min()} to {numbers.max()}")
    size = RunSize(
        weights=weights,
        steps=steps,
        factors=[(weights, numbers)],
        weight_bytes=weight_bytes,
        adjoint_bytes=max(4, weight_bytes),
        states=2 if nesterov else 1,
        with_states=learn_rates,
        irreversible="Nesterov cannot be undone" if nesterov else "",
        hyperparameters=hyperparameters,
        gradient_vectors=CLIPPED_VECTORS * (clip is not None) + ACCUMULATED_VECTORS * parts,
        gradient_passes=ACCUMULATED_PASSES * parts,
    )
    return _plan(size, budget, torch.device("cpu" if device is None else device), [ForwardMode()])


def plan_for(problem: Problem, budget: Budget | None) -> Plan:
    """The plan of a run that is about to begin. Without :class:`ForwardMode`, which gives no gradient by the model's weights."""
    if problem.steps:
        # Whether its batches are micro-batches is known once one is there.
        untouched = problem.gradient.side_effects()
        problem.gradient.load(problem.steps.start)
        untouched.put_back()
    return _plan(RunSize.of(problem), budget, problem.weights[0].device, [])


def _plan(size: RunSize, budget: Budget | None, device: torch.device, more: Sequence[Adjoint]) -> Plan:
    limit = free_bytes(device) if budget is None else bytes_of(budget)
    candidates: list[Adjoint] = [Snapshots(), Reversible(), Checkpoint(), Reversible(segments="auto"), RecursiveCheckpoint()]
    slots = min(int((limit / _MARGIN - size.float_bytes) / ((1 + size.states) * size.vector_bytes)), _MOST_SLOTS, size.steps)
    if slots >= 1:
        candidates.append(RecursiveCheckpoint(slots=slots))
    rows = []
    for adjoint in (*candidates, *more):
        cost = adjoint.cost(size)
        if cost is not None:
            rows.append(Row(adjoint, cost, not cost.obstacle and _MARGIN * cost.bytes <= limit))
    rows.sort(key=lambda row: (bool(row.cost.obstacle), row.cost.time, row.cost.bytes))
    return Plan(size.weights, limit, rows)
