"""What train() is given, checked and in order."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.gradients.compile_options import check_compile
from reversible_hypergrad.readouts import Readout
from reversible_hypergrad.rules.base import Rule

__all__ = ["check_number_of_steps", "check_options", "check_readouts", "those_wanted"]


def check_options(optimizer: Any, adjoint: Any, budget: Any, seed: Any, cuda_graph: Any, compile: Any) -> None:
    """Raises TypeError or ValueError for the first that cannot be honoured, by name."""
    if not isinstance(optimizer, Rule):
        raise TypeError(f"optimizer: expected rh.SGD(...) or another rh.Rule, got {type(optimizer).__name__}")
    if adjoint is not None and not isinstance(adjoint, Adjoint) and adjoint != "auto":
        raise TypeError(f"adjoint: expected an object such as rh.Reversible(), or 'auto', got {adjoint!r}")
    if budget is not None and adjoint != "auto":
        raise ValueError(f"budget: expected none unless adjoint='auto', got {budget!r} with adjoint={adjoint!r}")
    check_integer("seed", seed)
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph: expected True or False, got {cuda_graph!r}")
    check_compile(compile)


def check_readouts(readouts: Any) -> dict[str, Readout]:
    """Raises TypeError for what is no dict of readouts."""
    if readouts is not None and not isinstance(readouts, Mapping):
        raise TypeError(
            f"readouts: expected a dict of name -> readout such as rh.WeightsAt([100]), got {type(readouts).__name__}"
        )
    for name, readout in (readouts or {}).items():
        if not isinstance(readout, Readout):
            raise TypeError(f"readouts[{name!r}]: expected a readout such as rh.WeightsAt([100]), got {type(readout).__name__}")
    return dict(readouts or {})


def check_number_of_steps(check_derivatives: Any) -> None:
    """Likewise."""
    if not isinstance(check_derivatives, bool):
        check_integer("check_derivatives", check_derivatives, least=1, otherwise="True or False")


def those_wanted(leaves: Sequence[Any]) -> list[Tensor]:
    """The hyperparameters that require grad. Raises TypeError for modules, and complex ones that do."""
    for leaf in leaves:
        if isinstance(leaf, nn.Module):
            raise TypeError(
                f"hyperparameters: expected a nest of tensors, got the module {type(leaf).__name__}. Pass "
                "dict(module.named_parameters()), and torch.func.functional_call(module, ...) in the loss"
            )
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    for leaf in wanted:
        if leaf.is_complex():
            raise TypeError(
                f"hyperparameters: expected real tensors where a gradient is wanted, got {leaf.dtype} of shape "
                f"{tuple(leaf.shape)}. Pass torch.view_as_real(...) of it, and torch.view_as_complex(...) in the loss"
            )
    return wanted
