"""Loads the compiled ops (``torch.ops.reversible_hypergrad``) and tells torch that their fakes return nothing."""

import torch

import reversible_hypergrad._C  # noqa: F401  (importing it registers the ops)

__all__ = ["instruction_sets", "ops", "use_instruction_set"]

ops = torch.ops.reversible_hypergrad


def _no_result(*arguments: object) -> None:
    """Every op writes into its arguments only."""


for _name in ("sgd_step", "sgd_move_weights", "sgd_undo_velocity"):
    torch.library.register_fake(f"reversible_hypergrad::{_name}", _no_result)


def instruction_sets() -> list[str]:
    """Names of the builds of the CPU kernels that this machine runs, widest first; the first is in use by default.

    >>> import reversible_hypergrad as rh
    >>> "portable" in rh.core.instruction_sets()
    True
    """
    return str(ops.instruction_sets()).split()


def use_instruction_set(name: str) -> None:
    """Runs the CPU kernels in the build ``name`` from now on, in the whole process. All builds give the same bits.

    Args:
        name: one of :func:`instruction_sets`.

    Raises:
        RuntimeError: if this machine does not run that build.
    """
    ops.use_instruction_set(name)
