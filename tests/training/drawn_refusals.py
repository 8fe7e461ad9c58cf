"""Calls of ``train`` that must be refused: one thing of a drawn run is made wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from drawn_runs import DrawnRun
from run_comparison import arguments

import reversible_hypergrad as rh

__all__ = ["WRONG", "refused"]


def _first(drawn: DrawnRun) -> str:
    return next(iter(drawn.trained))


def _steps(drawn: DrawnRun) -> int:
    part = drawn.parts[0]
    return part.stop - part.first


def _ambiguous(drawn: DrawnRun) -> dict[str, Any]:
    """As many steps as the first parameter with one dimension has elements."""
    name, size = next((n, len(p)) for n, p in drawn.trained.items() if p.dim() == 1)
    lr = torch.full((size,), 0.1, dtype=torch.float64)
    batches = [{"i": torch.tensor([0, 1]), "t": 0}] * size
    return {
        "batches": batches,
        "steps": size,
        "optimizer": rh.SGD({name: lr, "*": 0.1}),
        **dict.fromkeys(("start", "readouts", "clip")),
        "accumulate": 1,
    }


# Name -> the arguments that are wrong, and what the error says: the argument, what was expected, what came, what to do.
WRONG = {
    "negative rate": (lambda d: {"optimizer": rh.SGD(-0.1)}, r"lr: expected numbers >= 0, got -0\.1.* exp\(\)"),
    "not finite": (lambda d: {"optimizer": rh.AdamW(eps=float("nan"))}, "eps: expected finite numbers, got nan"),
    "beta of 1": (lambda d: {"optimizer": rh.Adam(betas=(0.9, 1.0))}, r"beta2: expected numbers in \[0, 1\), got 1"),
    "no such parameter": (lambda d: {"optimizer": rh.SGD({"x.y": 0.1, "*": 0.1})}, "lr: the key 'x.y' matches no trained"),
    "no key": (lambda d: {"optimizer": rh.SGD({_first(d): 0.1})}, r"lr: no key matches the parameter .* Add it, or '\*'"),
    "two globs": (lambda d: {"optimizer": rh.SGD({"*t": 0.1, "*ht": 0.1, "*": 0.1})}, "lr: the parameter .* is matched by '"),
    "schedule": (
        lambda d: {"optimizer": rh.SGD(torch.ones(97))},
        r"lr: expected a tensor of shape \(\) or .* one per step.* got shape \(97,\)",
    ),
    "ambiguous": (_ambiguous, r"lr\['.*'\]: a tensor of shape .* could be one value per step or one per weight of .* Give it"),
    "vectors in Muon": (lambda d: {"optimizer": rh.Muon()}, r"optimizer: rh\.Muon expected matrices, got .* rh\.PerParameter"),
    "no momentum": (
        lambda d: {"optimizer": rh.SGD(0.1, momentum=0.0), "adjoint": rh.Reversible()},
        r"momentum: rh\.Reversible\(\) expected numbers in \(0, 1\], got 0.* adjoint=rh\.Checkpoint\(\)",
    ),
    "Nesterov": (
        lambda d: {"optimizer": rh.SGD(0.1, nesterov=True), "adjoint": rh.Truncated(99, rh.Reversible())},
        r"nesterov: rh\.Reversible\(\) cannot undo a Nesterov step.* adjoint=rh\.Checkpoint\(\)",
    ),
    "forgotten": (
        lambda d: {"optimizer": rh.Adam(betas=(0.0, 0.9)), "adjoint": rh.Reversible(segments=2)},
        r"optimizer: rh\.Reversible\(\) expected Adam to decay 'm' by a factor from .* adjoint=rh\.Checkpoint\(\)",
    ),
    "decaying LAMB": (
        lambda d: {"optimizer": rh.LAMB(weight_decay=0.1), "adjoint": rh.Reversible()},
        r"weight_decay: rh\.Reversible\(\) expected 0 with rh\.LAMB.* use adjoint=rh\.Checkpoint\(\)",
    ),
    "many tangents": (
        lambda d: {"hyperparameters": {"unused": torch.ones(5, requires_grad=True)}, "adjoint": rh.ForwardMode(limit=4)},
        r"adjoint: ForwardMode\(limit=4\) got \d+ hyperparameters.* Use rh\.Reversible\(\)",
    ),
    "limit of 0": (lambda d: {"clip": rh.clip_norm(0.0)}, r"max_norm: expected finite numbers above 0, got 0.* leave clip= out"),
    "limits": (lambda d: {"clip": rh.clip_value(torch.ones(98))}, r"max_value: expected a number, or .* got shape \(98,\)"),
    "late readout": (
        lambda d: {"readouts": {"w": rh.WeightsAt([d.parts[0].stop + 1])}},
        r"readouts: WeightsAt: expected numbers of steps taken from \d+ to \d+, got \d+",
    ),
    "late average": (
        lambda d: {"readouts": {"w": rh.UniformAverage(d.parts[0].stop + 1)}},
        r"readouts: UniformAverage expected to begin after \d+ to \d+ steps, got first=\d+",
    ),
    "decays": (
        lambda d: {"readouts": {"w": rh.ExponentialAverage(torch.full((99,), 0.5))}},
        r"readouts: ExponentialAverage expected a decay of shape \(\) or \(\d+,\), one per step, got \(99,\)",
    ),
    "two beginnings": (
        lambda d: {"initial": dict(d.trained), "start": rh.Start(dict(d.trained))},
        r"initial: expected none beside start=.* Leave one out",
    ),
    "initial shape": (
        lambda d: {"initial": {_first(d): torch.ones(7, 7, 7, dtype=torch.float64)}},
        r"initial\['.*'\]: expected shape .* got \(7, 7, 7\)",
    ),
    "state of another rule": (
        lambda d: {"start": rh.Start(states={_first(d): {"y": d.trained[_first(d)]}})},
        r"start: states\['.*'\]\['y'\]: expected states of .* or leave them out",
    ),
}


def refused(kind: str, seed: int) -> None:
    """The drawn run of ``seed``, one thing made wrong, is refused in these words, and nothing has changed."""
    drawn = DrawnRun(seed)
    make, message = WRONG[kind]
    plain = {"optimizer": rh.SGD(0.1), "initial": None, "start": rh.Start(step=drawn.begin), "check_derivatives": False}
    given = {**arguments(drawn, drawn.parts[0], None), **plain}
    before = {n: t.clone() for n, t in drawn.task.model.state_dict().items()}
    numbers = torch.get_rng_state()
    given.update(make(drawn))
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        rh.train(drawn.task.model, drawn.loss, **given)
    assert all(torch.equal(t, before[n]) for n, t in drawn.task.model.state_dict().items())
    assert torch.equal(numbers, torch.get_rng_state())
