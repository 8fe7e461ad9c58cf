"""Runs that outlive their process."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.adjoints.resumable import ResumableRun
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.replay.fingerprint import Fingerprint
from reversible_hypergrad.storage.kept import KeptFiles

__all__ = ["Resume", "check_resume", "digest", "resumable_run", "values_in"]

_PARTS = 10  # unless another number of steps is asked for


class Resume:
    """Where a run is kept, and how often: ``train(resume=rh.Resume(directory, every=100))``. If the process is killed at any
    moment, in training or on the way back, the same call goes on from the last kept point, and ends with the same bits.

    Args:
        directory: made if it is not there; for this run alone. All that is written there is removed when the run has been walked
            back through, or trained, if nothing asks for gradients; the directory too, if nothing else is in it.
        every: steps between two kept points, at least 1; a tenth of the run if None. So much is lost at most.

    Cost: the run is one in parts of ``every`` steps. Beside what is kept in memory for one part alone, which is less than for the
    whole run, each part but the last is trained once more on the way back: almost one more forward run if there are many. Each
    kept point takes the bytes of weights, states and the run's own integers on the disk, 16 per float32 weight with :class:`SGD`
    and 28 with :class:`AdamW`, and the time to write them.

    Raises:
        TypeError: if ``every`` is no integer.
        ValueError: if it is below 1.

    >>> import reversible_hypergrad as rh
    >>> rh.Resume("runs/first", every=500)
    Resume('runs/first', every=500)
    """

    def __init__(self, directory: str | Path, every: int | None = None) -> None:
        if not isinstance(directory, str | Path):
            raise TypeError(f"directory: expected a path, got {type(directory).__name__}")
        if every is not None:
            check_integer("every", every, least=1, otherwise="None")
        self.directory, self.every = Path(directory), every

    def __repr__(self) -> str:
        return f"Resume({str(self.directory)!r}, every={self.every})"


def check_resume(resume: Any) -> Resume | None:
    """Raises TypeError for what is neither a path nor a :class:`Resume`."""
    if resume is None or isinstance(resume, Resume):
        return resume
    if not isinstance(resume, str | Path):
        raise TypeError(f"resume: expected a directory, an rh.Resume or None, got {type(resume).__name__}")
    return Resume(resume)


def resumable_run(
    resume: Resume, adjoint: Adjoint, problem: Problem, model: nn.Module, hyperparameters: Sequence[Any], others: dict[str, Any]
) -> ResumableRun:
    """A run of ``problem`` under ``adjoint`` that is kept.

    Args:
        resume: where, and how often.
        model: the copy that is trained, for its buffers.
        hyperparameters: the leaves of their nest. Of these and the next, what is no tensor, number or text does not count.
        others: further arguments that must be the same, by name: objects count by their text and the values that they hold.

    Raises:
        ValueError: for a strategy whose runs cannot be joined.
        OSError: if the directory cannot be made.
    """
    if not adjoint.exact or not adjoint.chains:
        raise ValueError(
            f"resume: expected an exact strategy that walks back, such as rh.Reversible(), got {adjoint!r}, whose parts do not "
            "add up to a run"
        )
    every = resume.every or max(1, -(-len(problem.steps) // _PARTS))
    steps = problem.steps
    settings = [setting for own in problem.settings for setting in own.values()]
    numbers = [list(s.numbers) if s.elementwise is None else s.elementwise for s in settings]
    said = {
        "steps": f"{steps.start} to {steps.stop}, kept every {every}",
        "adjoint": repr(adjoint),
        "optimizer": f"{problem.rule!r}, settings {digest(numbers)}",
        "initial weights": f"{', '.join(problem.names)}: {digest(problem.weights)}",
        "first states": digest(z for own in problem.states for z in own.values()),
        "hyperparameters": digest(hyperparameters),
        **{name: f"{value!r}, values {digest(values_in(value))}" for name, value in others.items()},
    }
    here = Fingerprint.current({w.device for w in problem.weights})
    files, buffers = (lambda: KeptFiles(resume.directory)), (lambda: dict(model.named_buffers()))
    return ResumableRun(adjoint, problem, every, files, buffers, said, here)


def values_in(given: Any) -> list[Any]:
    """What clippings and readouts hold."""
    nest = [vars(leaf) if hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor) else leaf for leaf in pytree.leaves(given)]
    return pytree.leaves([dict(one) if isinstance(one, dict) else one for one in nest])


def digest(values: Iterable[Any]) -> str:
    """Of tensors, numbers and text; other objects do not count."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, bool | int | float | str | list):
            digest.update(repr(value).encode())  # of other objects it may hold an address
    return digest.hexdigest()
