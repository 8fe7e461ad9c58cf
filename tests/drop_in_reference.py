"""What a drop-in optimizer must have come to: its formula in float64, with a bound on how far fixed point may be away."""

from __future__ import annotations

from typing import Any

import torch
from bounded_numbers import Bounded
from drop_in_formulas import FORMULAS
from drop_ins import DropIn, settings_of
from torch import Tensor, nn

__all__ = ["Follower", "quanta_of", "torchs_end"]

Snapshot = list[tuple[int, Bounded, dict[str, Bounded]]]


def quanta_of(optimizer: Any, states: tuple[str, ...]) -> list[dict[str, float]]:
    """What a unit of each parameter's integers is worth now, by state, and of the "weight"."""
    found = []
    for entry in optimizer.state_dict()["state"].values():
        fractions, exponents = entry["fractions"], entry["exponents"]
        names = (*states, "weight")
        if entry["part"] < 0:  # its first step has not come
            found.append(dict.fromkeys(names, 0.0))
            continue
        rows = zip(names, fractions.tolist(), exponents.tolist()[len(names) :], strict=False)
        found.append({name: a * 2.0**exponent for name, a, exponent in rows})
    return found


class Follower:
    """All parameters' weights and states as the documented formula has them, and how far the optimizer's may be from these.

    A state is rounded to its quantum, the gradient that enters it to half of one, and the weight likewise; the real operations
    round relatively by what float64, or with 32-bit states float32, does. A quantum that has grown rounds the weight once more.
    The bound is what these add up to in the worst case, carried through the formula number by number.
    """

    def __init__(self, drop_in: DropIn, options: dict[str, Any], state_bits: int) -> None:
        self.drop_in, self.options = drop_in, options
        self.unit = 2.0**-51 if state_bits == 64 else 2.0**-22
        self.now: Snapshot = []
        self._first: Snapshot = []

    def add(self, parameter: Tensor) -> None:
        zero = Bounded.exact(torch.zeros(parameter.shape, dtype=torch.float64), self.unit)
        weight = Bounded.exact(parameter.detach().double().clone(), self.unit)
        self._first.append((0, weight, dict.fromkeys(self.states, zero)))
        self.now.append(self._first[-1])

    @property
    def states(self) -> tuple[str, ...]:
        return self.drop_in.states(settings_of({}, **self.options))

    def go_back(self, to: Snapshot) -> None:
        """Parameters that joined later have their first weights again."""
        self.now = [*to, *self._first[len(to) :]]

    def begin_anew(self, parameters: list[nn.Parameter], quanta: list[dict[str, float]]) -> None:
        """At a boundary the visible weights count, as fixed point holds them."""
        for i, (parameter, quantum) in enumerate(zip(parameters, quanta, strict=True)):
            t, _, z = self.now[i]
            weight = parameter.detach().double().clone()
            self.now[i] = (t, Bounded(weight, torch.full_like(weight, quantum["weight"]), self.unit), z)

    def after_step(
        self, groups: list[dict[str, Any]], gradients: list[Tensor | None], quanta: list[dict[str, float]]
    ) -> Snapshot:
        """A step with these settings and gradients, of the groups' parameters in their order. ``now`` stays as it is."""
        owners = [group for group in groups for _ in group["params"]]
        new = list(self.now)
        for i, (group, gradient, quantum) in enumerate(zip(owners, gradients, quanta, strict=True)):
            if gradient is not None:
                new[i] = self._stepped(settings_of(group, **self.options), gradient, quantum, *self.now[i])
        return new

    def _stepped(self, h: Any, gradient: Tensor, quantum: dict[str, float], t: int, w: Bounded, z: dict[str, Bounded]) -> Any:
        def keep(name: str, value: Bounded) -> Bounded:
            unit = torch.full_like(value.value, quantum[name])
            if name == "s":  # which is one quantum at least, to divide by its root
                return Bounded(value.value, value.error + 2.5 * unit, value.unit)
            return value.rounded_to(unit)

        z = dict(z)
        g = Bounded.exact(gradient.double(), self.unit)
        if t == 0:
            w = Bounded(w.value, w.error + 0.5 * quantum["weight"], w.unit)
        if self.drop_in.name == "Lion":  # the sign is taken of the decayed and rounded state, over the decay
            m = z["m"]
            z["m"] = Bounded(m.value, m.error + (m.value != 0) * quantum["m"] / h.beta2, m.unit)
        new = FORMULAS[self.drop_in.name](h, torch.full(gradient.shape, float(t), dtype=torch.float64), g, w, z, keep)
        new.least = None
        return t + 1, Bounded(new.value, new.error + 1.5 * quantum["weight"], new.unit), z

    def distances(self, parameters: list[nn.Parameter]) -> list[tuple[Tensor, Tensor]]:
        """Of each parameter: how far its weights are away, beyond half a unit in the last place of its dtype, and the bound."""
        found = []
        for (t, w, _), parameter in zip(self.now, parameters, strict=True):
            info = torch.finfo(parameter.dtype)
            shown = (w.value.abs() + w.error) * (info.eps / 2 + self.unit) + info.smallest_normal * info.eps
            away = (parameter.detach().double() - w.value).abs()
            found.append((away - shown if t else away, w.error))
        return found


def torchs_end(drop_in: DropIn, options: dict[str, Any], path: list[tuple[str, Any]]) -> list[nn.Parameter]:
    """The weights of torch's own optimizer in float64 after a path of ("add", (weights, settings)), ("step", (settings of groups,
    gradients)) and ("boundary", weights)."""
    weights: list[nn.Parameter] = []
    optimizer: Any = None
    for kind, what in path:
        if kind == "add":
            new = [nn.Parameter(w.double()) for w in what[0]]
            if optimizer is None:
                optimizer = drop_in.theirs(new, **{**options, **drop_in.options})
            else:
                optimizer.add_param_group({"params": new})
            weights += new
        elif kind == "boundary":
            for own, w in zip(weights, what, strict=True):
                own.data.copy_(w)
        else:
            for group, settings in zip(optimizer.param_groups, what[0], strict=True):
                group.update(settings)
            for own, gradient in zip(weights, what[1], strict=False):
                own.grad = None if gradient is None else gradient.double()
            optimizer.step()
    return weights
