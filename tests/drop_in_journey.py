"""A random journey of one drop-in optimizer: forth and back, saved, refused, extended, compared at every point."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from drop_in_draws import Draws
from drop_in_reference import Follower, quanta_of, torchs_end
from drop_ins import DROP_INS
from optim_problems import frozen, refused, setting_gradients
from torch import Tensor, nn

import reversible_hypergrad as rh

__all__ = ["Journey", "journey"]


def journey(name: str, seed: int) -> Journey:
    """Takes the journey of this seed. An error says how to take it again."""
    try:
        taken = Journey(name, seed)
        taken.take()
    except BaseException as error:
        again = f'PYTHONPATH=.:tests python -c "from drop_in_journey import journey; journey({name!r}, {seed})"'
        raise AssertionError(f"{type(error).__name__}: {error}\nagain by: {again}") from error
    return taken


class Journey:
    """One optimizer on its way. ``stack`` has of each step its closure, everything before it, and the reference then."""

    def __init__(self, name: str, seed: int) -> None:
        self.draws = draws = Draws(name, seed)
        self.drop_in, self.named = DROP_INS[name], draws.maybe(0.2)
        self.verify_every = draws.random.choice((1, 1, 1, 2, 5))
        self.parameters: list[nn.Parameter] = []
        self.path: list[tuple[str, Any]] = []
        self.stack: list[tuple[Any, dict[str, Any], Any]] = []
        self.names = 0
        self.bits = draws.random.choice((None, None, 32, 64))
        self.optimizer = self._constructed([self._group() for _ in range(draws.random.choice((1, 1, 2)))])
        self.follower = Follower(self.drop_in, draws.options, self.optimizer.state_bits)
        self._joined(self.optimizer.param_groups)
        self.bits = self.optimizer.state_bits
        self.steps = self.refusals = self.elements = self.tight = 0

    def _group(self) -> dict[str, Any]:
        new = self.draws.parameters(self.draws.random.choice((1, 2, 3)))
        self.names += len(new)
        named = [(f"w{self.names - i}", p) for i, p in enumerate(new)]
        return {"params": named if self.named else new, **self.draws.settings()}

    def _constructed(self, groups: list[dict[str, Any]]) -> Any:
        given = {**self.drop_in.forced, **self.draws.options, "state_bits": self.bits, "verify_every": self.verify_every}
        if self.draws.options.get("nesterov") and self.drop_in.name == "TracedSGD":
            given["momentum"] = 0.5
        return self.drop_in.make(groups, **given)

    def _joined(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            self.parameters += group["params"]
            for parameter in group["params"]:
                self.follower.add(parameter)
            self.path.append(("add", [[p.detach().clone() for p in group["params"]]]))

    def take(self) -> None:
        events = (
            (self.step, 50),
            (self.change_settings, 20),
            (self.back_and_forth, 8),
            (self.saved, 5),
            (self.add_group, 3),
            (self.boundary, 3),
            (self.refused_gradient, 4),
            (self.wrong_closure, 4),
            (self.skipped, 3),
        )
        self.step()
        for _ in range(self.draws.random.randint(8, 24)):
            self.draws.random.choices([event for event, _ in events], [weight for _, weight in events])[0]()
        self._compare_with_torch()
        self.back(len(self.stack))
        with refused(self.optimizer, rh.ReversalError, "no step to undo"):
            self.optimizer.step_back(lambda: None)

    def closure(self, gradients: list[Tensor | None]) -> Any:
        to_none = self.draws.maybe(0.5)

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=to_none)
            padded = gradients + [None] * (len(self.parameters) - len(gradients))
            return setting_gradients(self.parameters, padded)()

        return closure

    def gradients(self) -> list[Tensor | None]:
        return [self.draws.gradient(parameter) for parameter in self.parameters]

    def step(self) -> None:
        gradients = self.gradients()
        closure, before = self.closure(gradients), frozen(self.optimizer)
        groups = [{k: copy.copy(v) for k, v in group.items()} for group in self.optimizer.param_groups]
        error = self._overflow_of(closure)
        if error is not None:
            assert frozen(self.optimizer) == before, f"changed by a refused step: {error}"
            assert self._too_large(groups, gradients), f"refused without need: {error}"
            self.refusals += 1
            return
        settings = [{k: _plain(v) for k, v in group.items() if k not in ("params", "param_names")} for group in groups]
        self.path.append(("step", (settings, gradients)))
        self.stack.append((closure, before, list(self.follower.now)))
        quanta = quanta_of(self.optimizer, self.follower.states)
        self.follower.now = self.follower.after_step(groups, gradients, quanta)
        self.steps += 1
        self.check()

    def _overflow_of(self, closure: Any) -> OverflowError | None:
        """Of a step, with or without its closure."""
        try:
            if self.draws.maybe(0.5):
                self.optimizer.step(closure)
            else:
                closure()
                self.optimizer.step()
        except OverflowError as error:
            return error
        return None

    def _too_large(self, groups: list[dict[str, Any]], gradients: list[Tensor | None]) -> bool:
        """Whether a weight leaves its dtype in this step, or a number the range of what holds it: float32's or float64's."""
        none = [dict.fromkeys((*self.follower.states, "weight"), 0.0) for _ in self.parameters]
        after = self.follower.after_step(groups, gradients, none)
        most = 2.0**800 if self.optimizer.state_bits == 64 else 2.0**90
        for (_, w, z), parameter in zip(after, self.parameters, strict=True):
            numbers = [torch.zeros(1), *((v.value.abs() + v.error).flatten() for v in (w, *z.values()))]
            largest = (w.value.abs() + w.error).max() if w.value.numel() else 0.0
            if largest >= 0.99 * torch.finfo(parameter.dtype).max or torch.cat(numbers).max() >= most:
                return True
        return False

    def check(self) -> None:
        for i, (away, bound) in enumerate(self.follower.distances(self.parameters)):
            worst = (away - bound).max() if away.numel() else -1.0
            self.elements += bound.numel()
            self.tight += int((bound < 1e-3 * (1 + self.parameters[i].detach().double().abs())).sum())
            assert worst <= 0, f"after step {self.steps}: parameter {i} is {float(away.max()):.3g} away, bound {bound.tolist()}"

    def change_settings(self) -> None:
        group = self.draws.random.choice(self.optimizer.param_groups)
        for key, value in self.draws.settings().items():
            if isinstance(group[key], Tensor):
                group[key].fill_(float(value))
            else:
                group[key] = _plain(value)

    def back(self, count: int) -> None:
        for _ in range(count):
            closure, before, reference = self.stack.pop()
            self.follower.go_back(reference)
            self.optimizer.step_back(closure)
            self._same(frozen(self.optimizer), before)
            last = max(i for i, (kind, _) in enumerate(self.path) if kind == "step")
            del self.path[last]

    @staticmethod
    def _same(now: dict[str, Any], before: dict[str, Any]) -> None:
        """All that was there before is as it was; groups may have been added since, which changes the digest of everything."""
        for key in ("weights", "groups"):
            assert now[key][: len(before[key])] == before[key], f"{key} differ after a step back"
        grown = len(now["state"]) > len(before["state"])
        for i, entry in before["state"].items():
            differing = [k for k in entry if now["state"][i][k] != entry[k] and not (grown and k == "digest")]
            assert not differing, f"parameter {i}: {differing} differ after a step back"

    def back_and_forth(self) -> None:
        self.back(self.draws.random.randint(0, min(len(self.stack), 6)))

    def saved(self) -> None:
        """On in a new optimizer, for half of the times on new parameters, or in a copy."""
        now, file = frozen(self.optimizer), io.BytesIO()
        other = copy.deepcopy(self.optimizer)
        assert frozen(other) == now, "another state in a copy"
        if self.draws.maybe(0.3):
            self.optimizer, self.parameters = other, [p for group in other.param_groups for p in group["params"]]
            return
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        old = self.optimizer.param_groups
        if self.draws.maybe(0.5):
            self.parameters = [nn.Parameter(p.detach().clone()) for p in self.parameters]
        remaining = iter(self.parameters)
        groups = []
        for group in old:
            own = [next(remaining) for _ in group["params"]]
            groups.append({"params": list(zip(group["param_names"], own, strict=True)) if self.named else own})
            groups[-1].update(self.draws.settings())
        self.optimizer = self._constructed(groups)
        self.optimizer.load_state_dict(torch.load(file, weights_only=True))
        assert frozen(self.optimizer) == now, "another state after loading"

    def add_group(self) -> None:
        if len(self.optimizer.param_groups) < 4:
            self.optimizer.add_param_group(self._group())
            self._joined(self.optimizer.param_groups[-1:])

    def boundary(self) -> None:
        moved = [p for p, (t, _, _) in zip(self.parameters, self.follower.now, strict=True) if t and p.numel()]
        if moved and self.stack and self.draws.maybe(0.5) and self._edited(self.draws.random.choice(moved)):
            with pytest.raises(RuntimeError, match=r"mark_boundary\(\)"):
                self.optimizer.step(self.closure(self.gradients()))
        self.optimizer.mark_boundary()
        self.stack.clear()
        self.path.append(("boundary", [p.detach().clone() for p in self.parameters]))
        self.follower.begin_anew(self.parameters, quanta_of(self.optimizer, self.follower.states))

    @staticmethod
    @torch.no_grad()
    def _edited(parameter: Tensor) -> bool:
        before = parameter.clone()
        return not torch.equal(parameter.mul_(0.75), before)

    def refused_gradient(self) -> None:
        """One that is not finite, or sparse, among others that are zero or not there."""
        gradients: list[Tensor | None] = [self.draws.random.choice((torch.zeros_like(p), None)) for p in self.parameters]
        chosen = [i for i, p in enumerate(self.parameters) if p.numel() and p.dim()]
        if not chosen:
            return
        i = self.draws.random.choice(chosen)
        kind = self.draws.random.choice(("inf", "nan", "sparse"))
        ones = torch.ones_like(self.parameters[i])
        gradients[i] = ones.to_sparse() if kind == "sparse" else ones * float(kind)
        with refused(self.optimizer, RuntimeError if kind == "sparse" else FloatingPointError):
            self.optimizer.step(self.closure(gradients))

    def wrong_closure(self) -> None:
        """Found where every step is checked: by a gradient that is missing, or is another one by far more than a quantum."""
        if not self.stack or self.verify_every > 1:
            return
        steps = [what[1] for kind, what in self.path if kind == "step"]
        gradients = list(steps[-1])
        # A gradient that left its states at zero need not come back: they are zero whatever comes.
        quanta = [max(own.values()) for own in quanta_of(self.optimizer, self.follower.states)]
        seen = [i for i, g in enumerate(gradients) if g is not None and g.numel() and g.abs().max() > 1e6 * quanta[i] > 0]
        if not seen:
            return
        i = self.draws.random.choice(seen)
        words = "had a gradient when the step was taken"
        if self.draws.maybe(0.5):
            largest = max(float(own[i].abs().max()) for own in steps if len(own) > i and own[i] is not None)
            most = 0.9 * torch.finfo(self.parameters[i].dtype).max
            gradients[i] = (gradients[i].double() + (largest or 1.0)).clamp(-most, most).to(self.parameters[i].dtype)
            words = "did not restore"
        else:
            gradients[i] = None
        with refused(self.optimizer, rh.ReversalError, words):
            self.optimizer.step_back(self.closure(gradients))

    def skipped(self) -> None:
        """As GradScaler does when it finds an infinite gradient: no step at all."""
        before = frozen(self.optimizer)
        for parameter in self.parameters:
            parameter.grad = torch.full_like(parameter, float("inf"))
        self.optimizer.zero_grad(set_to_none=False)
        self.optimizer.zero_grad()
        assert frozen(self.optimizer) == before

    def _compare_with_torch(self) -> None:
        options = {k: v for k, v in self.draws.options.items() if k in ("decoupled_weight_decay", "centered")}
        if self.drop_in.theirs is None or self.drop_in.name == "Muon" or options.get("centered"):
            return
        for (_, w, _), theirs in zip(self.follower.now, torchs_end(self.drop_in, options, self.path), strict=True):
            worst = ((theirs.detach() - w.value).abs() - w.error).max() if w.value.numel() else -1.0
            assert worst <= 0, "the formula is not what torch's optimizer does"


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value
