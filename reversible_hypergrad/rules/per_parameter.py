"""Several rules in one run, each for parameters of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from reversible_hypergrad.problem.setting import Setting, Settings
from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.settings import Resolved, keys_of

__all__ = ["PerParameter"]


class PerParameter(Rule):
    """Several rules in one run, such as Muon for the hidden matrices and AdamW for everything else.

    Args:
        rules: parameter name, or a glob such as ``"*.bias"``, -> rule. An exact name comes before globs, and ``"*"`` is for all
            others. Every parameter must be matched, by one glob at most, and every key must match. By a property of the
            parameters, with each name a key::

                rh.PerParameter({n: muon if p.dim() == 2 else adamw for n, p in model.named_parameters()})

    Each rule keeps its own states, settings and program. Keys and patterns in its settings are those of its own parameters. A
    tensor that is given to several rules gets the sum of its gradients.

    Cost: that of each rule for its parameters; with :class:`Reversible` the bits and bytes of each.

    Raises:
        TypeError: for what is no dict from text to rules.
        ValueError: from :func:`train`, for a parameter that is matched by no key or by two globs, a key that matches none, and
            whatever a rule refuses. :class:`Neumann` and :class:`ConjugateGradient` refuse several rules.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> lr = torch.tensor(0.02, requires_grad=True)
    >>> rule = rh.PerParameter({"0.weight": rh.Muon(lr), "*": rh.AdamW(lr=0.01)})
    >>> rule
    PerParameter({'0.weight': Muon(lr=tensor of shape (), momentum=0.95, weight_decay=0.1), '*': AdamW(lr=0.01, ...)})
    >>> data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(10)]
    >>> def loss(model, batch, _):
    ...     return (model(batch[0]) - batch[1]).square().mean()
    >>> trained = rh.train(model, loss, data, optimizer=rule)
    >>> sum(w.square().sum() for w in trained.values()).backward()
    >>> trained.report.restored, lr.grad.shape
    (True, torch.Size([]))
    """

    states: ClassVar[Mapping[str, int]] = {}
    settings: ClassVar[Mapping[str, SettingSpec]] = {}

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        if not isinstance(rules, Mapping) or not all(isinstance(rule, Rule) for rule in rules.values()):
            raise TypeError(f"rules: expected a dict from parameter names or globs to rules such as rh.AdamW(), got {rules!r}")
        if any(isinstance(rule, PerParameter) for rule in rules.values()):
            raise TypeError("rules: expected rules of one kind each, got another rh.PerParameter. Put its rules in here")
        super().__init__(**{f"{key}.{name}": given for key, rule in rules.items() for name, given in rule.given.items()})
        self.rules = dict(rules)

    def __repr__(self) -> str:
        return f"PerParameter({{{', '.join(f'{key!r}: {rule!r}' for key, rule in self.rules.items())}}})"

    def cut(self, count: int, part: slice) -> Rule:
        return PerParameter({key: rule.cut(count, part) for key, rule in self.rules.items()})

    def by_name(self, names: Sequence[str]) -> list[Rule]:
        return [self.rules[key] for key in keys_of("optimizer", self.rules, names)]

    def resolve(self, names: Sequence[str], weights: Sequence[Tensor], steps: range) -> Resolved:
        of_each = self.by_name(names)
        settings: list[Settings] = [{} for _ in names]
        tensors: list[Tensor] = []
        for rule in {id(rule): rule for rule in of_each}.values():
            own = [i for i, other in enumerate(of_each) if other is rule]
            resolved = rule.resolve([names[i] for i in own], [weights[i] for i in own], steps)
            joined = _joined(resolved, tensors)
            for i, of_one in zip(own, joined, strict=True):
                settings[i] = of_one
        return Resolved(settings, tensors)

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        self._refuse()

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        self._refuse()

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError("PerParameter has no step of its own: a strategy must ask Problem.rule_of() for each weight's rule")


def _joined(resolved: Resolved, tensors: list[Tensor]) -> list[Settings]:
    """The settings, their sources counted in ``tensors``, to which those that are new are added."""
    places = []
    for tensor in resolved.tensors:
        known = [i for i, other in enumerate(tensors) if other is tensor]
        if not known:
            tensors.append(tensor)
        places.append(known[0] if known else len(tensors) - 1)
    made: dict[Setting, Setting] = {}  # parameters share them, and are known by that

    def moved(setting: Setting) -> Setting:
        if setting.source is None:
            return setting
        if setting not in made:
            made[setting] = replace(setting, source=places[setting.source])
        return made[setting]

    return [{name: moved(setting) for name, setting in of_one.items()} for of_one in resolved.settings]
