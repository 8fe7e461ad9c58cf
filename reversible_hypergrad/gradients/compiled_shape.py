"""The compiled functions for batches of one shape, and their comparison with the loss as it is."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.batch_kinds import is_same, kinds_of, name_of
from reversible_hypergrad.gradients.compile_errors import explained, is_of_too_many_kinds
from reversible_hypergrad.gradients.compiled_check import Expected, compare_products, random_directions
from reversible_hypergrad.gradients.compiled_functions import CompiledFunctions, Results, compiled_functions
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.gradients.static_batch import write
from reversible_hypergrad.problem.gradient import SideEffects

__all__ = ["CompiledShape"]

_CHECKS = 2  # steps that are compared: what a function has frozen shows at the second one


class CompiledShape:
    """One shape of the batch.

    Args:
        inner: what is compiled.
        arguments: of torch.compile.
        leaves: of the first batch.
        structure: likewise.
    """

    def __init__(self, inner: LossGradient, arguments: dict[str, Any], leaves: Sequence[Any], structure: Any) -> None:
        self._inner, self._arguments = inner, arguments
        self._kinds, self._structure = kinds_of(leaves), structure
        self._constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        self._weights = {f"model.{name}": weight for name, weight in zip(inner.names, inner.weights, strict=True)}
        self._buffers = _places(inner.bound)
        given = pytree.flatten(inner.hyperparameters)
        self._key = (_signature(inner.bound), kinds_of(given[0]), given[1], self._kinds, structure, arguments)
        self._functions: CompiledFunctions | None = None
        self._checked: list[int | None] = []
        wanted = {id(leaf) for leaf in inner.wanted}
        self._places_wanted = tuple(i for i, leaf in enumerate(given[0]) if id(leaf) in wanted)
        self.agree = True  # whether the two functions do, bit for bit
        self._along_agrees: bool | None = None  # and the third one; None: it has not been compiled
        self.seconds = 0.0  # of compiling and comparing

    def fits(self, leaves: Sequence[Any], structure: Any) -> bool:
        return kinds_of(leaves) == self._kinds and bool(structure == self._structure)

    def refuse_other_constants(self, step: int | None, batch: Any, leaves: Sequence[Any]) -> None:
        for i, constant in self._constants.items():
            if not is_same(leaves[i], constant):
                where = "" if step is None else f"step {step}: "
                raise ValueError(
                    f"batches: {where}with compile=True expected whatever is not a tensor to be the same in every step, since it "
                    f"is compiled as a constant; got {name_of(batch, i)} = {leaves[i]!r:.40}, where it was {constant!r:.40}. "
                    "Pass it as a tensor"
                )

    def evaluate(self, batch: Any, with_products: bool) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients; the model's buffers move as by the loss itself."""
        loss, gradients, buffers = self._call(batch, with_products)
        write([of[name] for of, name, _ in self._buffers], list(buffers.values()))
        return loss, list(gradients.values())

    def evaluate_along(
        self, batch: Any, directions: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], tuple[list[Tensor | None], list[Tensor | None]]] | None:
        """Loss, gradients, and the products of ``directions``. None if the compiled function that gives them all has other bits
        of the gradients than those of training. It is compiled, and compared, at the first call."""
        if self._along_agrees is None:
            self._check_along(batch, directions)
        if not self._along_agrees:
            return None
        loss, gradients, buffers, by_weights, by_wanted = self._call_along(batch, directions)
        write([of[name] for of, name, _ in self._buffers], list(buffers.values()))
        return loss, list(gradients.values()), (list(by_weights.values()), list(by_wanted))

    def _check_along(self, batch: Any, directions: Sequence[Tensor]) -> None:
        began = time.perf_counter()
        leaves, structure = pytree.flatten(batch)
        before = self._inner.side_effects()
        trained = self._call(pytree.unflatten(leaves, structure), not self.agree)
        before.put_back()
        found = self._call_along(pytree.unflatten(leaves, structure), directions)
        before.put_back()
        products = self._inner.of(pytree.unflatten(leaves, structure)).products(directions)
        before.put_back()
        compare_products(None, [*found[3].values(), *found[4]], [*products[0], *products[1]])
        self._along_agrees = same_bits(trained, found[:3])
        self.seconds += time.perf_counter() - began

    def _call_along(self, batch: Any, directions: Sequence[Tensor]) -> Any:
        assert self._functions is not None
        inner = self._inner
        buffers = {name: of[own] for of, own, name in self._buffers}
        along = {name: d.to(w.dtype) for (name, w), d in zip(self._weights.items(), directions, strict=True)}
        torch.clear_autocast_cache()
        with torch.no_grad(), explained(inner.bound):
            return self._functions.along(
                inner.bound, self._weights, buffers, batch, inner.hyperparameters, self._places_wanted, along
            )

    def check(self, step: int | None, batch: Any, along: bool = False) -> None:
        """Compiles at the first call, and compares at the first two steps. It leaves no trace.

        Args:
            step: of ``batch``; None if that is not known.
            batch: the loss's, whose random numbers come next.
            along: whether to compile :meth:`evaluate_along`, too.

        Raises:
            RuntimeError: for what cannot be compiled, and for results that are not those of the loss.
        """
        if self._checked and (step is None or step in self._checked or len(self._checked) == _CHECKS):
            return
        began = time.perf_counter()
        leaves, structure = pytree.flatten(batch)
        before = self._inner.side_effects()

        directions = random_directions(self._inner.weights)
        products: list[Any] = []

        def evaluate() -> tuple[list[Tensor], list[Tensor]]:
            evaluation = self._inner.of(pytree.unflatten(leaves, structure))  # the loss may empty a batch's containers
            products[:] = evaluation.products(directions)
            return evaluation.gradients, [of[name] for of, name, _ in self._buffers]

        expected = Expected(evaluate)
        before.put_back()
        if self._functions is None:
            self._compile(pytree.unflatten(leaves, structure), before)
        mine = self._call(pytree.unflatten(leaves, structure), True)
        expected.compare(step or 0, [g.detach() for g in mine[1].values()], list(mine[2].values()), before)
        before.put_back()
        compare_products(step, self._products(mine[1], directions), [p for row in products for p in row])
        mine = mine[0], {name: g.detach() for name, g in mine[1].items()}, mine[2]
        self.agree = self.agree and same_bits(mine, self._call(pytree.unflatten(leaves, structure), False))
        before.put_back()
        self._checked.append(step)
        self.seconds += time.perf_counter() - began
        if along and self._along_agrees is None:
            self._check_along(batch, directions)

    def _compile(self, batch: Any, before: SideEffects) -> None:
        """Both functions, and the products, whose errors would come after all of training otherwise."""
        self._functions = compiled_functions(self._inner.bound.loss, self._key, self._arguments)
        try:
            self._call_all(batch)
        except RuntimeError as error:
            if not (is_of_too_many_kinds(error) and self._functions.found_again):
                raise
            # Earlier runs had other numbers and objects in the loss's closure, each of which torch has compiled for.
            self._functions = compiled_functions(self._inner.bound.loss, self._key, self._arguments, renew=True)
            before.put_back()
            self._call_all(batch)
        before.put_back()

    def _call_all(self, batch: Any) -> None:
        import torch._functorch.config as settings  # takes seconds, with the rest of the compiler

        leaves, structure = pytree.flatten(batch)
        # What products read is not to be written over by them: some strategies ask for many products of one evaluation.
        with settings.patch(donated_buffer=False):
            self._call(pytree.unflatten(leaves, structure), False)
            _, gradients, _ = self._call(pytree.unflatten(leaves, structure), True)
            self._products(gradients, random_directions(self._inner.weights))

    def _products(self, gradients: dict[str, Tensor], directions: Sequence[Tensor]) -> list[Tensor | None]:
        """Of weights and of hyperparameters."""
        inputs = [*self._inner.weights, *self._inner.wanted]
        attached = [(g, d) for g, d in zip(gradients.values(), directions, strict=True) if g.requires_grad]
        if not attached:
            return [None] * len(inputs)
        with explained(self._inner.bound):
            return list(torch.autograd.grad([g for g, _ in attached], inputs, [d for _, d in attached], allow_unused=True))

    def _call(self, batch: Any, with_products: bool) -> Results:
        assert self._functions is not None
        function = self._functions.attached if with_products else self._functions.alone
        inner = self._inner
        buffers = {name: of[own] for of, own, name in self._buffers}
        torch.clear_autocast_cache()  # as before every evaluation of the loss
        with torch.set_grad_enabled(with_products), explained(inner.bound):
            return function(inner.bound, self._weights, buffers, batch, inner.hyperparameters)


def _places(bound: nn.Module) -> list[tuple[dict[str, Tensor], str, str]]:
    """Where each buffer is, and its name in ``bound``. Modules may share one."""
    places: dict[int, tuple[Any, str, str]] = {}
    for name, module in bound.named_modules():
        for own, buffer in module._buffers.items():
            if buffer is not None:
                places.setdefault(id(buffer), (module._buffers, own, f"{name}.{own}"))
    return list(places.values())


def _signature(bound: nn.Module) -> Any:
    """Of what modules and tensors the model is made."""
    modules = [(name, type(module), module.training) for name, module in bound.named_modules()]
    tensors = [*bound.named_parameters(), *bound.named_buffers()]
    return modules, [name for name, _ in tensors], kinds_of([t for _, t in tensors])
