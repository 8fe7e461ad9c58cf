"""Whether a user's loss can be replayed and differentiated twice, and which module spoils it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.autograd_graph import is_first_order_only
from reversible_hypergrad.gradients.derivatives import BOUND, disagreement
from reversible_hypergrad.gradients.loss import Loss, LossGradient
from reversible_hypergrad.gradients.private_copy import private_copy
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.replay.environment import Environment, seed_step

__all__ = ["Replayability", "check_replayable"]


@dataclass
class Replayability:
    """What :func:`check_replayable` found. True if nothing is wrong; ``str()`` of it is a report.

    Attributes:
        same_loss: whether two evaluations gave the same bits of the loss.
        same_gradients: whether they gave the same bits of its gradient.
        second_derivatives: whether the gradient could be differentiated again.
        derivatives_agree: whether these derivatives are those of the gradient, by differences.
        problems: one sentence each, with the module's name where one was found.
    """

    same_loss: bool = True
    same_gradients: bool = True
    second_derivatives: bool = True
    derivatives_agree: bool = True
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self:
            return "replays bit for bit, and has second derivatives"
        return "\n".join(self.problems)


def check_replayable(model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any = None, seed: int = 0) -> Replayability:
    """Tells whether :func:`train` can undo training with this loss, before any training.

    Evaluates loss and gradient twice on a copy of ``model``, seeded and pinned as in a run, compares them bit for bit,
    differentiates the gradient, and looks for the first module whose output differed or that has no second derivative. Then the
    second derivatives are compared with central differences of the gradient along random directions, in float64 if model, batch
    and loss can be cast to it: some of torch's formulas are wrong. What differs by more than 1e-4 of its size (float32: 0.1) is.

    Args:
        model: any module with trainable parameters. It is not modified.
        loss: ``loss(model, batch, hyperparameters)`` -> scalar tensor, as for :func:`train`.
        batch: one batch.
        hyperparameters: any nest of tensors, passed to ``loss``.
        seed: of the random numbers.

    Returns:
        A :class:`Replayability`, true if all is well.

    Raises:
        TypeError: for a model that is no module, or spread over processes, and for a loss that is no scalar.
        ValueError: for a model without trainable parameters, and a loss that does not reach them.
        RuntimeError: if another thread is inside of a run.
        Exception: whatever the loss itself raises.

    Cost: a dozen gradients and three Hessian-vector products, and up to as many per module if something is wrong.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, hyperparameters):
    ...     return model(batch).square().mean()
    >>> print(rh.check_replayable(torch.nn.Linear(3, 1), loss, torch.randn(8, 3)))
    replays bit for bit, and has second derivatives
    >>> class Forgetful(torch.nn.Module):
    ...     calls = 0
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return x * self.calls
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1), Forgetful())
    >>> print(rh.check_replayable(model, loss, torch.randn(8, 3)).problems[0])
    the output of '1' (Forgetful) was another one at the second call: it draws unseeded random numbers or counts its calls
    """
    result = Replayability()
    private = private_copy(model)
    trained: dict[str, Tensor] = {name: p for name, p in private.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model: expected parameters that require grad, got none")
    first_order_only: list[bool] = []

    def note(loss: Tensor, gradients: Sequence[Tensor | None], variables: Sequence[Tensor]) -> None:
        first_order_only.append(is_first_order_only([loss, *gradients]))

    gradient = LossGradient(private, trained, loss, lambda step: batch, hyperparameters, seed, check=note)
    with Environment.current({w.device for w in trained.values()}).pinned():
        watch = _Watch(private)
        try:
            first = gradient(0)
        except (RuntimeError, NotImplementedError) as error:
            if not _has_gradient(gradient):
                raise
            _note_missing(result, watch, error, seed)  # a backward that cannot even be recorded
            return result
        watch.compare = True
        second = gradient(0)
        watch.remove()
        result.same_loss = same_bits(first.value, second.value)
        different = [n for n, a, b in zip(trained, first.gradients, second.gradients, strict=True) if not same_bits(a, b)]
        result.same_gradients = not different
        if watch.first is not None:
            result.problems.append(
                f"the output of {watch.first} was another one at the second call: it draws unseeded random numbers or counts its "
                "calls"
            )
        elif different or not result.same_loss:
            what = f"the gradient of {', '.join(different[:3])}" if different else "the loss"
            result.problems.append(
                f"{what} was another one at the second call, though every module gave the same output: the loss function itself "
                "draws unseeded random numbers or counts its calls, or a backward is not deterministic"
            )
        try:
            if any(first_order_only):
                raise RuntimeError("a torch.autograd.Function in it is marked once_differentiable")
            first.products([torch.ones_like(g) for g in first.gradients])
        except (RuntimeError, NotImplementedError) as error:
            _note_missing(result, watch, error, seed)
        if result:
            _check_derivatives(result, private, loss, batch, hyperparameters, seed)
    return result


def _has_gradient(gradient: LossGradient) -> bool:
    """Whether the loss can be differentiated once."""
    try:
        gradient.first_order(gradient.batch(0))
    except Exception:  # the caller raises what it has caught before
        return False
    return True


def _note_missing(result: Replayability, watch: "_Watch", error: Exception, seed: int) -> None:
    result.second_derivatives = False
    culprit = watch.without_second_derivative(seed)
    result.problems.append(f"{culprit or 'the loss'} has no second derivative: {str(error).splitlines()[0]}")


def _check_derivatives(result: Replayability, model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any, seed: int) -> None:
    def double(nest: Any) -> Any:
        return pytree.map_tensors(_double, nest)

    try:
        wide = private_copy(model).double()
        gradient = _gradient_of(wide, loss, double(batch), double(hyperparameters), seed)
        gradient(0)
    except (RuntimeError, TypeError):  # something in it is of one dtype, whatever the model's
        wide, gradient = model, _gradient_of(model, loss, batch, hyperparameters, seed)
    watch = _Watch(wide)
    evaluation = gradient(0)
    watch.remove()
    variables = [*gradient.weights, *gradient.wanted]
    bound = BOUND[torch.float64 if evaluation.value.dtype == torch.float64 else torch.float32]

    def products(u: Sequence[Tensor]) -> list[Tensor | None]:
        by_weights, by_hyperparameters = gradient(0).products(u)
        return [*by_weights, *by_hyperparameters]

    error = disagreement(lambda: gradient(0).gradients, products, variables, seed)
    if error <= bound:
        return
    result.derivatives_agree = False
    culprit = watch.with_wrong_second_derivative(seed)
    result.problems.append(
        f"the second derivatives of {culprit or 'the loss'} are wrong, by {error:.1g} of their size along random directions: "
        "hypergradients through it would be wrong in silence. Write it in other operations of torch"
    )


def _gradient_of(model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any, seed: int) -> LossGradient:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return LossGradient(model, trained, loss, lambda step: batch, hyperparameters, seed)


def _double(tensor: Tensor) -> Tensor:
    """The hyperparameters' leaves stay leaves."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


class _Watch:
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
