"""What each module of a model takes and gives, and which of them spoils a replay or a second derivative."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.autograd_graph import is_first_order_only
from reversible_hypergrad.gradients.derivatives import BOUND, disagreement
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.replay.environment import seed_step

__all__ = ["ModuleWatch"]


class ModuleWatch:
    """Forward hooks that keep every module's first inputs and outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.compare = False
        self.first: str | None = None  # the first module whose output differed though its inputs did not
        self._calls: dict[str, list[tuple[Any, Any]]] = {}
        self._counts: dict[str, int] = {}
        self._modules = {name: module for name, module in model.named_modules() if name or not list(model.children())}
        self._handles = [m.register_forward_hook(self._hook(name)) for name, m in self._modules.items()]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls = self._calls.setdefault(name, [])
            if not self.compare:
                calls.append((_detached(inputs), _detached(output)))
                return
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            if self.first is None and count < len(calls):
                inputs_before, output_before = calls[count]
                if same_bits(inputs_before, inputs) and not same_bits(output_before, output):
                    self.first = _described(name, module)

        return hook

    def with_wrong_second_derivative(self, seed: int) -> str | None:
        """The first innermost module whose second derivatives, alone and on its own inputs, are not those of its gradients."""
        for name, module in sorted(self._modules.items(), key=lambda item: len(list(item[1].modules()))):
            for inputs, _ in self._calls.get(name, [])[:1]:
                floats = [x for x in pytree.leaves(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
                wide = any(x.dtype == torch.float64 for x in [*floats, *module.parameters()])
                if _second_derivative_error(module, inputs, seed) > BOUND[torch.float64 if wide else torch.float32]:
                    return _described(name, module)
        return None

    def without_second_derivative(self, seed: int) -> str | None:
        """The first innermost module that fails alone, on its own inputs."""
        for name, module in sorted(self._modules.items(), key=lambda item: len(list(item[1].modules()))):
            for inputs, _ in self._calls.get(name, [])[:1]:
                seed_step(seed, 0)
                try:
                    _differentiate_twice(module, inputs)
                except Exception:
                    return _described(name, module)
        return None


def _second_derivative_error(module: nn.Module, inputs: Any, seed: int) -> float:
    """Of a module alone, on its own inputs."""
    leaves, spec = pytree.flatten(inputs)
    own = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in leaves]
    variables = [x for x in own if isinstance(x, Tensor) and x.requires_grad]
    variables += [p for p in module.parameters() if p.requires_grad]
    weights: list[Tensor] = []

    def gradients() -> list[Tensor | None]:
        seed_step(seed, 0)
        with torch.enable_grad():
            given = [x * 1 if isinstance(x, Tensor) and x.requires_grad else x for x in own]  # it may write to its inputs
            outputs = pytree.leaves(module(*pytree.unflatten(given, spec)))
            outputs = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
            if not weights:
                weights.extend(torch.randn_like(y) for y in outputs)
            total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
            if not isinstance(total, Tensor):
                return [None] * len(variables)
            return list(torch.autograd.grad(total, variables, create_graph=True, allow_unused=True))

    def products(u: Sequence[Tensor]) -> list[Tensor | None]:
        pairs = [(g, d) for g, d in zip(gradients(), u, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [None] * len(variables)
        return list(torch.autograd.grad([g for g, _ in pairs], variables, [d for _, d in pairs], allow_unused=True))

    return disagreement(gradients, products, variables, seed)


def _differentiate_twice(module: nn.Module, inputs: Any) -> None:
    leaves, spec = pytree.flatten(inputs)
    leaves = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in leaves]
    sources = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    sources += [p for p in module.parameters() if p.requires_grad]
    with torch.enable_grad():
        outputs = pytree.leaves(module(*pytree.unflatten(leaves, spec)))
        total = sum(y.square().sum() for y in outputs if isinstance(y, Tensor) and y.requires_grad)
        if not isinstance(total, Tensor):
            return
        gradients = torch.autograd.grad(total, sources, create_graph=True, allow_unused=True)
        if is_first_order_only(gradients):
            raise RuntimeError("once_differentiable")
        again = [g.sum() for g in gradients if g is not None and g.requires_grad]
        if again:
            torch.autograd.grad(sum(again[1:], again[0]), sources, allow_unused=True)


def _detached(nest: Any) -> Any:
    return pytree.map_tensors(lambda x: x.detach().clone(), nest)


def _described(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
