"""A drop-in optimizer from a rule without a compiled program."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from reversible_hypergrad.optim.base import ReversibleOptimizer
from reversible_hypergrad.optim.settings import Setting, Settings, read, refuse_forgetting, refuse_options
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.rules.base import LEAST_FACTOR, Rule
from reversible_hypergrad.rules.settings import SettingSpec

__all__ = ["RuleOptimizer"]

_LABELS = {  # torch's words
    "lr": "learning rate",
    "beta1": "beta parameter at index 0",
    "beta2": "beta parameter at index 1",
    "eps": "epsilon value",
}
_PLACES = {"beta1": ("betas", 0), "beta2": ("betas", 1)}


class RuleOptimizer(ReversibleOptimizer):
    """The settings of groups are the rule's. A subclass has a signature, and says which settings are decays.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        rule: its functions count, and its options; not its settings.
        defaults: the settings of groups that give none, and options.
        fixed: those of ``defaults`` that are options of the rule, the same for all groups.
        state_bits: 64, 32 or None.
        verify_every: the state is hashed after every so-many-th step.
    """

    decays: ClassVar[Sequence[str]]  # settings that a state is multiplied by, so that 0 would make it forget

    def __init__(
        self,
        params: Any,
        rule: Rule,
        defaults: dict[str, Any],
        *,
        fixed: Sequence[str] = (),
        state_bits: int | None,
        verify_every: int,
    ) -> None:
        assert type(rule).logged is Rule.logged  # a saved state has no place for it
        self.rule = rule
        self.known = [_setting(name, spec, name in self.decays) for name, spec in rule.settings.items()]
        self._fixed = {name: defaults[name] for name in fixed}
        super().__init__(params, defaults, state_bits=state_bits, verify_every=verify_every)

    def settings_of(self, group: dict[str, Any]) -> Settings:
        name = type(self).__name__
        if group.get("maximize"):
            raise ValueError(f"maximize=True is not supported by {name}. Call backward on the negative loss, with maximize=False")
        refuse_options(group)
        for option, value in self._fixed.items():
            if group[option] != value:
                raise ValueError(
                    f"Invalid {option} value: {group[option]!r}. Expected {value!r} in every group: it was given to {name} and "
                    "cannot change. Use one optimizer for each"
                )
        settings = read(self.known, group)
        refuse_forgetting(settings, self.rule.decay(SimpleNamespace(**settings), 0).get("weight", 1.0))
        return settings

    def numbers_of(self, settings: Settings, t: int) -> StepNumbers:
        h = SimpleNamespace(**settings)
        decay = self.rule.decay(h, t)
        factors = [decay.get(name, 1.0) for name in (*self.rule.states, "weight")]
        return StepNumbers(np.array(factors, np.float64), np.zeros(0), settings=(h,), steps=(t,))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "known": self.known, "_fixed": self._fixed}


def _setting(name: str, spec: SettingSpec, is_decay: bool) -> Setting:
    def allows(number: float) -> bool:
        least = LEAST_FACTOR if is_decay else -math.inf
        return bool(spec.allows(number)) and math.isfinite(number) and number >= least

    expected = f"a finite number {spec.domain}"
    if is_decay:
        end = ")" if spec.below else "]"
        expected = f"a number in [2^-16, {spec.high:g}{end}: a step that forgets a state cannot be undone from a few bits"
    return Setting(name, allows, expected, label=_LABELS.get(name, ""), place=_PLACES.get(name))
