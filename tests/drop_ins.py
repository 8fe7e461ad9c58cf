"""The drop-in optimizers in one table, and what each must train as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from drop_in_formulas import FORMULAS
from torch import Tensor

import reversible_hypergrad as rh

__all__ = ["DROP_INS", "ByFormula", "DropIn", "settings_of"]


@dataclass(frozen=True)
class DropIn:
    """One drop-in optimizer.

    Attributes:
        make: its class.
        theirs: torch's class, which is given the same arguments.
        rows: whose rows of torch's lists it is tested with.
        states: names of its states, for its options.
        forced: arguments for which torch's defaults are refused.
        options: arguments of torch's class alone.
    """

    make: Any
    theirs: Any
    rows: str
    states: Callable[[Any], tuple[str, ...]]
    forced: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.make.__name__.removeprefix("Reversible")

    def reference(self, params: Any, settings: dict[str, Any]) -> torch.optim.Optimizer:
        """Torch's optimizer with these settings, or the documented formula where torch has none."""
        settings = {**self.forced, **settings}
        if self.theirs is not None:
            return self.theirs(params, **settings, **self.options)
        defaults = self.make([torch.nn.Parameter(torch.zeros(1, 1))], **settings).defaults
        options = {"nesterov": settings.get("nesterov", False), "trace_bits": settings.get("trace_bits", 4)}
        return ByFormula(params, defaults, self, **options)


DROP_INS = {
    "SGD": DropIn(rh.ReversibleSGD, torch.optim.SGD, "SGD", lambda h: ("v",), {"momentum": 0.9}),
    "Adam": DropIn(rh.ReversibleAdam, torch.optim.Adam, "Adam", lambda h: ("m", "s")),
    "AdamW": DropIn(rh.ReversibleAdamW, torch.optim.AdamW, "AdamW", lambda h: ("m", "s")),
    "RAdam": DropIn(rh.ReversibleRAdam, torch.optim.RAdam, "RAdam", lambda h: ("m", "s")),
    "RMSprop": DropIn(
        rh.ReversibleRMSprop,
        torch.optim.RMSprop,
        "RMSprop",
        lambda h: ("s", "a", "b") if h.centered else ("s", "b"),
        {"momentum": 0.9},
    ),
    "Muon": DropIn(
        rh.ReversibleMuon,
        torch.optim.Muon,
        "Muon",
        lambda h: ("p", "v") if h.nesterov else ("v",),
        options={"nesterov": False},
    ),
    "Lion": DropIn(rh.ReversibleLion, None, "AdamW", lambda h: ("m",)),
    "TracedSGD": DropIn(rh.ReversibleTracedSGD, None, "SGD", lambda h: ("p", "v") if h.nesterov else ("p",)),
}


def settings_of(group: dict[str, Any], **options: Any) -> SimpleNamespace:
    """Of a param group, as formulas take them: floats, pairs of betas one by one."""
    found = {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items() if k not in ("params", "betas")}
    if "betas" in group:
        found["beta1"], found["beta2"] = (float(beta) for beta in group["betas"])
    return SimpleNamespace(**{**found, **options})


class ByFormula(torch.optim.Optimizer):
    """The formula of a drop-in optimizer that torch does not have, in the parameters' own dtype."""

    def __init__(self, params: Any, defaults: dict[str, Any], drop_in: DropIn, **options: Any) -> None:
        self.drop_in, self.options = drop_in, options
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        formula = FORMULAS[self.drop_in.name]
        for group in self.param_groups:
            h = settings_of(group, **self.options)
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    z = state.setdefault("z", {name: torch.zeros_like(p) for name in self.drop_in.states(h)})
                    t = torch.full_like(p, state.get("steps", 0))
                    p.copy_(formula(h, t, p.grad, p.clone(), z, lambda _, value: value))
                    state["steps"] = state.get("steps", 0) + 1
