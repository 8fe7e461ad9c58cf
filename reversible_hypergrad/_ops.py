"""Loads the compiled ops (``torch.ops.reversible_hypergrad``) and tells torch that their fakes return nothing."""

import torch

import reversible_hypergrad._C  # noqa: F401  (importing it registers the ops)

__all__ = ["cuda_in_build", "instruction_sets", "ops", "program_numbers", "refuse_device", "use_instruction_set"]

ops = torch.ops.reversible_hypergrad


def _no_result(*arguments: object) -> None:
    """Every op writes into its arguments only."""


_MOVES = ("step", "move_weights", "undo_states", "undo_weights_adjoint", "undo_states_adjoint")
for _name in _MOVES:
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


def cuda_in_build() -> bool:
    """Whether this build has CUDA kernels, which it gets where nvcc is found; whether there is a GPU is another question.

    >>> import reversible_hypergrad as rh
    >>> rh.core.cuda_in_build() in (True, False)
    True
    """
    return bool(ops.cuda_in_build())


def program_numbers(program: str) -> int:
    """How many numbers a rule's compiled program takes, per tensor and step."""
    return int(ops.program_numbers(program))


def refuse_device(name: str, device: torch.device) -> None:
    """Raises ValueError if no kernels move a state on ``device``."""
    if device.type == "cuda" and not cuda_in_build():
        raise ValueError(
            f"{name}: is on {device}, but this build of reversible_hypergrad has no CUDA kernels, since no nvcc was found, or "
            "RH_CUDA=0 was set, when it was built. Move the model to the CPU, or install the CUDA toolkit, set CUDA_HOME to it "
            "and build again: "
            "pip install --force-reinstall --no-deps --no-build-isolation reversible_hypergrad"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a parameter on the CPU or on CUDA, got one on {device}. Move the model there")
