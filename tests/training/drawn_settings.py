"""Random settings of rules: numbers and tensors, for all, by name or glob, per step or per weight, learned or not."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

import reversible_hypergrad as rh

__all__ = ["DrawnRule", "Setting", "Value", "draw_rule", "per_step"]


class Spec(NamedTuple):
    """How a setting is drawn: uniformly between two numbers, or so is its logarithm; and by some chance one of the extremes."""

    low: float
    high: float
    logarithmic: bool = False
    extremes: tuple[float, ...] = ()
    per_weight: bool = False
    chance: float = 0.12


MOMENTUM = Spec(0.3, 0.99, extremes=(0.9, 1.0, 0.0))
BETA = Spec(0.2, 0.99, extremes=(0.9, 0.0))
BETA2 = Spec(0.5, 0.999, extremes=(0.99,))
EPS = Spec(1e-8, 1e-2, True)
DECAY = Spec(0.001, 0.3, extremes=(0.0, 0.0))
ADAM = {"lr": Spec(1e-3, 0.1, True, per_weight=True), "beta1": BETA, "beta2": BETA2, "eps": EPS, "weight_decay": DECAY}
ADAM_ROOT = {**ADAM, "eps_root": Spec(1e-6, 1e-3, True, (0.0, 0.0))}
SPECS = {
    "SGD": {
        "lr": Spec(1e-3, 0.4, True, per_weight=True),
        "momentum": MOMENTUM,
        "dampening": Spec(-0.3, 0.8, extremes=(0.0, 0.0)),
        "weight_decay": DECAY._replace(per_weight=True),
    },
    "NesterovSGD": {
        "lr": Spec(1e-3, 0.2, True, per_weight=True),
        "momentum": MOMENTUM._replace(extremes=()),
        "weight_decay": DECAY._replace(per_weight=True),
    },
    "TracedSGD": {
        "lr": Spec(1e-3, 0.4, True, per_weight=True),
        "momentum": MOMENTUM._replace(extremes=()),
        "weight_decay": DECAY._replace(per_weight=True),
    },
    "Adam": {**ADAM_ROOT, "weight_decay": DECAY._replace(per_weight=True)},
    "AdamW": ADAM_ROOT,
    "RAdam": {**ADAM, "weight_decay": DECAY._replace(per_weight=True)},
    "RMSprop": {
        "lr": Spec(1e-3, 0.03, True, per_weight=True),
        "alpha": BETA2,
        "eps": EPS,
        "weight_decay": DECAY._replace(per_weight=True),
        "momentum": MOMENTUM,
    },
    "Lion": {"lr": Spec(1e-3, 0.03, True), "beta1": BETA, "beta2": BETA2, "weight_decay": DECAY},
    "Muon": {"lr": Spec(1e-3, 0.1, True), "momentum": Spec(0.3, 0.99), "weight_decay": DECAY},
    "LARS": {
        "lr": Spec(0.1, 1.0, True, per_weight=True),
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "trust": Spec(1e-3, 0.1, True),
        "eps": EPS,
    },
    "LAMB": {**ADAM, "weight_decay": DECAY._replace(chance=0.9)},
}


class Value:
    """One value of a setting, for the library and for the textbook.

    Args:
        given: a number, or a tensor of shape (), (steps,) from step 0 on, or of a weight's own.
        kind: "number", "one", "steps" or "weights".
    """

    def __init__(self, given: Any, kind: str) -> None:
        self.given, self.kind = given, kind

    def of_part(self, first: int, stop: int, shapes: list[tuple[int, ...]], whole: bool) -> Any:
        """As ``train`` gets it for steps ``first`` to ``stop``."""
        if self.kind == "steps":
            return per_step(self.given[0 if whole else first : stop], shapes)
        if self.kind == "weights" and self.given.shape[0] in (stop - first, stop):
            return self.given[None]  # or it might be a value per step
        return self.given

    def at(self, t: int) -> Any:
        return self.given[t] if self.kind == "steps" else self.given

    def has_zero(self, first: int, stop: int) -> bool:
        numbers = self.given[first:stop] if self.kind == "steps" else torch.as_tensor(self.given)
        return bool((numbers == 0).any())


def per_step(values: torch.Tensor, shapes: Any) -> torch.Tensor:
    """In a shape that is none of these parameters' own."""
    return values[:, None] if (len(values),) in shapes else values


class Setting:
    """Values by key: None for all, or exact names, globs and "*"."""

    def __init__(self, values: dict[str | None, Value], shapes: dict[str, tuple[int, ...]], whole: bool) -> None:
        self.values, self.shapes, self.whole = values, shapes, whole

    def of_part(self, first: int, stop: int) -> Any:
        shapes = list(self.shapes.values())
        made = {key: value.of_part(first, stop, shapes, self.whole) for key, value in self.values.items()}
        return made.get(None, made)

    def of(self, name: str) -> Value:
        if None in self.values:
            return self.values[None]
        if name in self.values:
            return self.values[name]
        globs = [key for key in self.values if key != "*" and fnmatchcase(name, key)]
        return self.values[globs[0] if globs else "*"]

    def has_zero(self, first: int, stop: int) -> bool:
        return any(self.of(name).has_zero(first, stop) for name in self.shapes)


class DrawnRule:
    """A rule for some parameters: its name, its settings and its options."""

    def __init__(self, name: str, settings: dict[str, Setting], options: dict[str, Any]) -> None:
        self.name, self.settings, self.options = name, settings, options

    def of_part(self, first: int, stop: int) -> rh.Rule:
        given = {name: setting.of_part(first, stop) for name, setting in self.settings.items()}
        if "beta1" in given:
            given["betas"] = (given.pop("beta1"), given.pop("beta2"))
        if self.name == "NesterovSGD":
            return rh.SGD(**given, nesterov=True)
        return getattr(rh, self.name)(**given, **self.options)

    def irreversible(self, first: int, stop: int) -> bool:
        """Whether documentation says that steps cannot be undone."""
        if self.name == "NesterovSGD":
            return True
        decays = [self.settings[name] for name in ("momentum", "beta1", "beta2", "alpha") if name in self.settings]
        forgotten = any(setting.has_zero(first, stop) for setting in decays)
        if self.name == "Lion":
            return False  # its beta2 is never 0
        if self.name == "TracedSGD":
            return self.options["nesterov"] and forgotten
        return forgotten or (self.name == "LAMB" and not self._never_decays())

    def _never_decays(self) -> bool:
        values = self.settings["weight_decay"].values.values()
        return all(bool((torch.as_tensor(v.given) == 0).all()) and not getattr(v.given, "requires_grad", False) for v in values)

    def has_no_common_decay(self) -> bool:
        """AdamW's weights decay by one factor per tensor, which a learning rate per weight does not give."""
        if self.name != "AdamW":
            return False
        names = [name for name, shape in self.settings["lr"].shapes.items() if self.settings["lr"].of(name).kind == "weights"]
        decays = [self.settings["weight_decay"].of(name).given for name in names]
        return any((isinstance(d, torch.Tensor) and d.requires_grad) or bool((torch.as_tensor(d) != 0).any()) for d in decays)


def draw_rule(draws: Any, name: str, shapes: dict[str, tuple[int, ...]], steps: int) -> DrawnRule:
    """For parameters of these names and shapes; schedules have ``steps`` values, from step 0 on."""
    options, specs = _options(draws, name), dict(SPECS[name])
    if name == "RAdam" and options["decoupled_weight_decay"]:
        specs = {setting: spec._replace(per_weight=False) for setting, spec in specs.items()}
    if name == "TracedSGD" and not options["nesterov"]:
        del specs["momentum"]
    settings = {setting: _setting(draws, f"{name}.{setting}", spec, shapes, steps) for setting, spec in specs.items()}
    return DrawnRule(name, settings, options)


def _options(draws: Any, name: str) -> dict[str, Any]:
    if name == "TracedSGD":
        return {"nesterov": draws.maybe(0.5), "trace_bits": draws.random.choice((1, 4, 9))}
    if name == "RAdam":
        return {"decoupled_weight_decay": draws.maybe(0.5)}
    if name == "RMSprop":
        return {"centered": draws.maybe(0.4)}
    if name == "Muon":
        options = {
            "nesterov": draws.maybe(0.4),
            "trace_bits": draws.random.choice((1, 4)),
            "ns_steps": draws.random.choice((1, 3, 5)),
        }
        return {**options, "adjust_lr_fn": draws.random.choice((None, "original", "match_rms_adamw"))}
    return {}


def _setting(draws: Any, label: str, spec: Spec, shapes: dict[str, tuple[int, ...]], steps: int) -> Setting:
    kind = draws.random.choices(("all", "dict", "weights"), (70, 20, 10 if spec.per_weight else 0))[0]
    names = list(shapes)
    if kind == "all":
        values: dict[str | None, Value] = {None: _value(draws, label, spec, steps)}
    elif kind == "weights":
        values = {n: _value(draws, f"{label}[{n}]", spec, steps, shapes[n]) for n in names}
    else:
        last = {name.rsplit(".", 1)[-1] for name in names}
        glob = "*" + draws.random.choice(sorted(last))
        keys = draws.random.choice(([names[0], "*"], [glob, "*"], ["*"], [names[-1], glob, "*"]))
        values = {key: _value(draws, f"{label}[{key}]", spec, steps) for key in keys}
    return Setting(values, shapes, draws.maybe(0.5))


def _value(draws: Any, label: str, spec: Spec, steps: int, shape: tuple[int, ...] | None = None) -> Value:
    def number() -> float:
        if spec.extremes and draws.maybe(spec.chance):
            return draws.random.choice(spec.extremes)
        return draws.log(spec.low, spec.high) if spec.logarithmic else draws.random.uniform(spec.low, spec.high)

    kind = draws.random.choices(("number", "one", "steps"), (45, 30, 25))[0] if not shape else "weights"
    if kind == "number":
        return Value(number(), kind)
    counts = shape or ((steps,) if kind == "steps" else ())
    size = torch.Size(counts).numel()
    values = torch.tensor([number() for _ in range(size)], dtype=torch.float64).reshape(counts)
    return Value(draws.learned(label, values), kind)
