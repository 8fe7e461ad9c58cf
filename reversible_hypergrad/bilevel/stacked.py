"""Many small models of one shape as one module."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad.checks import check_integer

__all__ = ["Stacked"]


class Stacked(nn.Module):
    """As many copies of a model, their weights stacked along a new first dimension, so that many small runs are one.

    Called with inputs that are stacked alike, it gives the stacked outputs. A loss that *sums* over the copies trains each as it
    would be trained alone: its gradient by one copy's weights has no part of the others. Rules that look at whole tensors, such
    as :class:`Muon` or clipping by norm, see all copies at a time, so are not for this.

    Args:
        model: any module that :func:`torch.func.vmap` takes; one that writes to buffers, such as BatchNorm in training mode, it
            does not (``torch.func.replace_all_batch_norm_modules_`` makes one that keeps none).
        count: how many copies, at least 1.
        zero: begin at zero instead of the model's own weights, as heads for new classes do.

    Parameters have the model's names, after ``"model."``.

    Cost: operations on one large tensor in place of ``count`` small ones, which is what small models spend their time on.

    Raises:
        TypeError: for what is no module, and a count that is no integer.
        ValueError: for a count below 1.

    >>> import torch, reversible_hypergrad as rh
    >>> heads = rh.Stacked(torch.nn.Linear(64, 5), 16, zero=True)
    >>> heads(torch.randn(16, 25, 64)).shape, heads.model.weight.shape
    (torch.Size([16, 25, 5]), torch.Size([16, 5, 64]))
    """

    def __init__(self, model: nn.Module, count: int, zero: bool = False) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        check_integer("count", count, least=1)
        self.count = count
        self.model = copy.deepcopy(model)
        stacked: dict[int, nn.Parameter] = {}  # by the parameter's identity: tied ones stay tied
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in stacked:
                        values = torch.zeros_like(parameter) if zero else parameter.detach()
                        repeated = values.expand(count, *values.shape).clone()
                        stacked[id(parameter)] = nn.Parameter(repeated, parameter.requires_grad)
                    module._parameters[name] = stacked[id(parameter)]

    def extra_repr(self) -> str:
        return f"count={self.count}"

    def forward(self, *inputs: Any) -> Any:
        """Each input, and each output, stacked along its first dimension."""
        for i, x in enumerate(inputs):
            if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[0] != self.count):
                raise ValueError(
                    f"inputs[{i}]: expected a tensor stacked along its first dimension, of size {self.count}, got shape "
                    f"{tuple(x.shape)}"
                )

        def one(weights: dict[str, Tensor], *own: Any) -> Any:
            return torch.func.functional_call(self.model, weights, own)

        return torch.func.vmap(one, randomness="different")(dict(self.model.named_parameters()), *inputs)
