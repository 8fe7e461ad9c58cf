"""SGD with momentum, as torch.optim.SGD."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.settings import Given, shown

__all__ = ["SGD", "NesterovSGD"]


class SGD(Rule):
    """SGD with momentum, as ``torch.optim.SGD``, as the inner optimizer of :func:`train`; each setting may be learned.

    Each of ``lr``, ``momentum``, ``dampening``, ``weight_decay`` is

    - a number, or a tensor of shape (): the same for all steps;
    - a tensor of shape (steps,) or (steps, 1): one per step;
    - ``lr`` and ``weight_decay`` only: a tensor of the weight's own shape, or that with a leading 1: one per weight;
    - a dict from parameter name, or a glob such as ``"*.bias"``, to any of these. An exact name comes before globs, and
      ``"*"`` is for all others. Every parameter must be matched, by one glob at most, and every key must match.

    A tensor that requires grad gets its hypergradient, which may flow on to whatever it was computed from. Tensors are
    floating point, of any dtype and device. One of float32 that is not per weight stands for the shortest decimals that it
    prints as: 0.9 for 0.9, not for 0.89999998.

    Args:
        lr: >= 0.
        momentum: in [0, 1]. :class:`Reversible` needs at least 2^-16.
        dampening: finite; not applied in the first step and where the momentum is 0, as in torch.
        weight_decay: >= 0.
        nesterov: as in torch, ``w' = w - lr*(g + mu*v')``. Needs momentum and no dampening; not with :class:`Reversible`, which
            can undo :class:`TracedSGD`.

    Raises:
        TypeError: for a setting that is neither a number nor a floating-point tensor nor a dict of these.
        ValueError: for a number, shape or key that makes no sense, here or when :func:`train` knows names, shapes and steps.

    Either names the setting.

    >>> import torch, reversible_hypergrad as rh
    >>> log_lr = torch.full((100,), -2.0, requires_grad=True)
    >>> rh.SGD(lr=log_lr.exp(), weight_decay={"*.bias": 0.0, "*": 1e-4})
    SGD(lr=tensor of shape (100,), momentum=0.9, dampening=0.0, weight_decay={'*.bias': 0.0, '*': 0.0001})
    """

    states: ClassVar[Mapping[str, int]] = {"v": 1}
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(per_weight=True),
        "momentum": SettingSpec(0.9, high=1.0),
        "dampening": SettingSpec(0.0, low=float("-inf"), first=0.0, needs="momentum"),
        "weight_decay": SettingSpec(0.0, per_weight=True),
    }
    elementwise = True
    linear = True
    program = "sgd"
    sums_before = ((2, -1.0),)
    sums_after = ((1, 1.0), ("v", 1.0), (0, 1.0))

    def __new__(cls, *positional: Any, nesterov: bool = False, **named: Any) -> "SGD":
        return super().__new__(NesterovSGD if nesterov is True and cls is SGD else cls)

    def __init__(
        self, lr: Given, momentum: Given = 0.9, dampening: Given = 0.0, weight_decay: Given = 0.0, *, nesterov: bool = False
    ) -> None:
        super().__init__(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
        if not isinstance(nesterov, bool):
            raise TypeError(f"nesterov: expected True or False, got {nesterov!r}")

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"v": h.momentum}

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield "v", (1 - h.dampening) * (g + h.weight_decay * w)

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        return h.lr * z["v"]  # type: ignore[no-any-return]

    def numbers(self, h: Any, t: Any) -> tuple[Any, ...]:
        return 1 - h.dampening, h.weight_decay, h.lr

    def direction_is_state(self, h: Any) -> bool:
        return bool(h.dampening == 0)

    def irreversible(self, settings: Sequence[Settings]) -> str | None:
        if any(number == 0 for of_one in settings for number in of_one["momentum"].numbers):
            return (
                "momentum: rh.Reversible() expected numbers in (0, 1], got 0. A step with momentum 0 destroys the whole velocity "
                "and cannot be undone from a few bits: use a small momentum, rh.TracedSGD, or adjoint=rh.Checkpoint()"
            )
        return super().irreversible(settings)


class NesterovSGD(SGD):
    """What ``SGD(nesterov=True)`` makes. Its update looks at the gradient, which is therefore a state that decays by 0."""

    states: ClassVar[Mapping[str, int]] = {"p": 1, "v": 1}
    program = ""

    def __init__(
        self, lr: Given, momentum: Given = 0.9, dampening: Given = 0.0, weight_decay: Given = 0.0, *, nesterov: bool = True
    ) -> None:
        super().__init__(lr, momentum, dampening, weight_decay, nesterov=nesterov)
        if _is_number(momentum, 0.0) or not _is_number(dampening, 0.0):
            raise ValueError(
                "nesterov: Nesterov momentum requires a momentum and zero dampening (torch.optim.SGD's rule), got momentum "
                f"{shown(momentum)} and dampening {shown(dampening)}. Pass dampening=0.0, or nesterov=False"
            )

    def __repr__(self) -> str:
        return f"{super().__repr__().removeprefix('Nesterov')[:-1]}, nesterov=True)"

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"p": 0.0, "v": h.momentum}

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        total = g + h.weight_decay * w
        yield "p", total
        yield "v", total

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        return h.lr * (z["p"] + h.momentum * z["v"])  # type: ignore[no-any-return]

    def irreversible(self, settings: Sequence[Settings]) -> str | None:
        return (
            "nesterov: rh.Reversible() cannot undo a Nesterov step, since its gradient is taken where the weights are only "
            "known after the step is undone. Use rh.TracedSGD(nesterov=True), adjoint=rh.Checkpoint(), or nesterov=False"
        )


def _is_number(given: Given, number: float) -> bool:
    return not isinstance(given, Mapping) and not hasattr(given, "shape") and given == number
