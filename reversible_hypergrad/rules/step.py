"""One step of a rule, and its two transposed halves, from the rule's own functions."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule

__all__ = [
    "Halfway",
    "PulledStates",
    "PulledUpdate",
    "count_below_eps",
    "looks_at_states",
    "pull_update",
    "signs_of",
    "step",
    "step_in_place",
]

States = Mapping[str, Tensor]


def step(rule: Rule, h: Any, t: int, g: Tensor, w: Tensor, z: States) -> tuple[Tensor, dict[str, Tensor]]:
    """New weights and states, as functions that torch can differentiate."""
    decay = rule.decay(h, t)
    new = {name: state * decay[name] if name in decay else state for name, state in z.items()}
    signs = signs_of(rule, h, t, g, w, new)
    for name, increment in rule.increments(h, t, g, w, new):
        new[name] = new[name] + increment
    kept = w * decay["weight"] if "weight" in decay else w
    return kept - rule.update(h, t, new, _logged(rule, h, t, w, new, signs)), new


def step_in_place(rule: Rule, h: Any, t: int, g: Tensor, w: Tensor, z: dict[str, Tensor]) -> None:
    """The same, written over ``w`` and ``z``."""
    decay = rule.decay(h, t)
    for name, state in z.items():
        if name in decay:
            state.mul_(decay[name])
    signs = signs_of(rule, h, t, g, w, z)
    for name, increment in rule.increments(h, t, g, w, z):
        z[name].add_(increment)
    update = rule.update(h, t, z, _logged(rule, h, t, w, z, signs))
    if "weight" in decay:
        w.mul_(decay["weight"])
    w.sub_(update)


def signs_of(rule: Rule, h: Any, t: int, g: Tensor, w: Tensor, z: States) -> Tensor | None:
    """A step's, if its rule keeps any, as constants; ``z`` decayed, before the first increment."""
    return rule.signs(h, t, g, w, z).detach() if rule.keeps_signs else None


def _logged(rule: Rule, h: Any, t: int, w: Tensor, z: States, signs: Tensor | None) -> Any:
    """What the update is given beside the new states."""
    return rule.logged(h, t, w, z) if signs is None else signs


def count_below_eps(rule: Rule, settings: Sequence[Settings], steps: range, states: Callable[[int], States]) -> int:
    """Of all tensors, with these settings, after the last of ``steps``; ``states`` gives those of a tensor."""
    found = 0
    if type(rule).below_eps is Rule.below_eps or not steps:
        return found
    t = steps[-1]
    for i, own in enumerate(settings):
        below = rule.below_eps(rule.at(own, t), t, states(i))
        found += 0 if below is None else int(below.sum())
    return found


class PulledUpdate(NamedTuple):
    """Cotangents before the second half of a step."""

    w: Tensor  # of the old weights
    z: dict[str, Tensor | None]  # what the new states' get on top of their own; None stands for zero
    settings: dict[str, Tensor]  # of the settings in ``h`` that require grad, by name


class PulledStates(NamedTuple):
    """Cotangents before the first half of a step."""

    direction: Tensor | None  # of the gradient: what its derivatives are multiplied by; None stands for zero
    w: Tensor | None  # what the old weights' get on top of their own
    z: dict[str, Tensor]  # of the old states
    settings: dict[str, Tensor]


def pull_update(rule: Rule, h: Any, t: int, w: Tensor, z: States, aw: Tensor, signs: Tensor | None = None) -> PulledUpdate:
    """The transposed second half: what ``aw``, by the new weights, means for the old weights and the new states.

    Args:
        w: the old weights.
        z: the new states.
        signs: the step's, of a rule that keeps some.
    """
    leaves = _leaves(h)
    with torch.enable_grad():
        w = w.detach().requires_grad_()
        states = {name: state.detach().requires_grad_() for name, state in z.items()}
        update = rule.update(h, t, states, _logged(rule, h, t, w, states, signs))
        found = _grad([update], [w, *states.values(), *leaves.values()], [-aw])
        factor = rule.decay(h, t).get("weight")
        by_factor = _grad_of_factors([(factor, aw, w.detach())], leaves)
    kept = aw if factor is None else aw * _detached(factor)
    by_w, by_z, by_h = found[0], found[1 : 1 + len(states)], found[1 + len(states) :]
    return PulledUpdate(
        kept if by_w is None else kept + by_w, dict(zip(states, by_z, strict=True)), _by_settings(leaves, by_h, by_factor)
    )


class Halfway:
    """The first half of a step, with its graph: new states, and then what their cotangents mean for all that went in.

    Args:
        g: the gradient.
        w: the old weights.
        z: the old states.
    """

    def __init__(self, rule: Rule, h: Any, t: int, g: Tensor, w: Tensor, z: States) -> None:
        self._old, self._leaves = z, _leaves(h)
        with torch.enable_grad():
            self._decay = rule.decay(h, t)
            self._g, self._w = g.detach().requires_grad_(), w.detach().requires_grad_()
            # A factor is one number for all weights, so that its own derivative needs no graph through the states.
            self._decayed = {
                name: (state * _detached(self._decay[name]) if name in self._decay else state.detach()).requires_grad_()
                for name, state in z.items()
            }
            new = dict(self._decayed)
            self.signs = signs_of(rule, h, t, self._g, self._w, new)
            for name, increment in rule.increments(h, t, self._g, self._w, new):
                new[name] = new[name] + increment
        self._new = new
        self.z = {name: state.detach() for name, state in new.items()}

    def pull(self, az: States) -> PulledStates:
        """The transposed half; ``az`` by the new states. Once."""
        leaves, decayed = self._leaves, self._decayed
        moved = [name for name, state in self._new.items() if state is not decayed[name]]
        inputs = [self._g, self._w, *decayed.values(), *leaves.values()]
        found = _grad([self._new[name] for name in moved], inputs, [az[name] for name in moved])
        by_z: dict[str, Tensor] = {}
        factors = []
        for name, by in zip(decayed, found[2:], strict=False):
            # A state without an increment is the same tensor before and after.
            own = [cotangent for cotangent in (None if name in moved else az[name], by) if cotangent is not None]
            cotangent = own[0] if len(own) == 1 else own[0] + own[1]
            factor = self._decay.get(name)
            factors.append((factor, cotangent, self._old[name]))
            by_z[name] = cotangent if factor is None else cotangent * _detached(factor)
        by_settings = _by_settings(leaves, found[2 + len(decayed) :], _grad_of_factors(factors, leaves))
        return PulledStates(found[0], found[1], by_z, by_settings)


def looks_at_states(rule: Rule, settings: Settings) -> bool:
    """Whether the transposed step of one parameter needs the old states: not where they enter linearly, and no derivative by a
    setting holds them. Seen from the graph of the derivative. A rule that does not promise to be linear counts as if it did need
    them: one look does not tell what it does at other steps and settings."""
    if not rule.linear:
        return True
    with torch.enable_grad():

        def leaf(*shape: int) -> Tensor:
            return torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)

        learned = {name: leaf() for name, setting in settings.items() if setting.source is not None}
        h = SimpleNamespace(**{name: learned.get(name, 0.5) for name in settings})
        g, w, z = leaf(2), leaf(2), {name: leaf(2) for name in rule.states}
        after, states = step(rule, h, 1, g, w, z)
        outputs = [output.sum() for output in (after, *states.values())]
        found = torch.autograd.grad(
            torch.stack(outputs).sum(), [g, w, *z.values(), *learned.values()], create_graph=True, allow_unused=True
        )
        attached = [by.sum() for by in found if by is not None and by.requires_grad]
        if not attached:
            return False
        again = torch.autograd.grad(torch.stack(attached).sum(), list(z.values()), allow_unused=True)
        return any(by is not None for by in again)


def _leaves(h: Any) -> dict[str, Tensor]:
    return {name: value for name, value in vars(h).items() if isinstance(value, Tensor) and value.requires_grad}


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
    attached = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not attached:
        return [None] * len(inputs)
    return torch.autograd.grad(
        [output for output, _ in attached], inputs, [c.to(output.dtype) for output, c in attached], allow_unused=True
    )


def _grad_of_factors(factors: Sequence[tuple[Any, Tensor, Tensor]], leaves: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
    """By the leaves, from (factor, cotangent of what it was multiplied with, what it was multiplied with)."""
    attached = [(f, (c * x).sum().reshape(f.shape)) for f, c, x in factors if isinstance(f, Tensor) and f.requires_grad]
    return _grad([factor for factor, _ in attached], list(leaves.values()), [cotangent for _, cotangent in attached])


def _by_settings(leaves: Mapping[str, Tensor], *parts: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The sums of the parts that are there, by name."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, by in zip(leaves, part, strict=True):
            if by is not None:
                sums[name] = sums[name] + by if name in sums else by
    return sums


def _detached(factor: Any) -> Any:
    return factor.detach() if isinstance(factor, Tensor) else factor
