"""Gradients of many losses in one walk back."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.problem.problem import Downstream
from reversible_hypergrad.training.node import Call

__all__ = ["hypergradients"]


def hypergradients(losses: Sequence[Tensor] | Tensor, inputs: Any, at_a_time: int | None = None) -> list[Any]:
    """The gradients of several losses of trained weights, in one walk back through each run that they depend on.

    Steps are undone and gradients of the training loss computed once; what each loss takes for itself is a product with the
    second derivatives per step. The gradients have the bits of a ``backward`` of each loss alone.

    Args:
        losses: scalars that depend on what :func:`train` returned, or one tensor of shape (losses,), such as a loss per example.
        inputs: any nest (dict, list, tuple) of tensors that require grad: hyperparameters, or what they are computed from.
        at_a_time: how many losses share a walk, at least 1, where memory does not hold the vectors of all; each further walk
            trains once more. All if None.

    Returns:
        A list with one nest like ``inputs`` per loss; zero where a loss does not depend on an input.

    Raises:
        TypeError: for losses that are no scalar tensors, inputs that are no tensors, and a number that is no integer.
        ValueError: for a loss that no run leads to, an input that does not require grad, a number below 1, and a model's own
            parameters as inputs of a run under :class:`ForwardMode`, which gives no gradient by them.
        ReversalError: if a run was not restored; no gradient is returned then.

    Cost: of the run, one undoing and one gradient per step; for each loss one product per step, and vectors as large as the
    weights, one and one more per state of the rule. Nothing is added to ``.grad``. The graphs of the losses are kept.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, log_l2):
    ...     return model(batch).square().mean() + log_l2.exp() * sum(p.square().sum() for p in model.parameters())
    >>> model, data = torch.nn.Linear(3, 1), [torch.randn(8, 3) for _ in range(10)]
    >>> log_l2, log_lr = torch.tensor(-5.0, requires_grad=True), torch.full((10,), -2.0, requires_grad=True)
    >>> trained = rh.train(model, loss, data, optimizer=rh.SGD(lr=log_lr.exp()), hyperparameters=log_l2)
    >>> per_example = torch.func.functional_call(model, trained, torch.randn(4, 3)).square().squeeze(1)
    >>> found = rh.hypergradients(per_example, {"lr": log_lr, "l2": log_l2})
    >>> len(found), found[0]["lr"].shape
    (4, torch.Size([10]))
    """
    losses = _checked_losses(losses)
    if at_a_time is not None:
        check_integer("at_a_time", at_a_time, least=1, otherwise="None")
    leaves, structure = pytree.flatten(inputs)
    for path, leaf in zip(pytree.paths(inputs), leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"inputs{path}: expected a tensor, got {type(leaf).__name__}")
        if not leaf.requires_grad:
            raise ValueError(f"inputs{path}: expected a tensor that requires grad. Set requires_grad_() before train()")
    nodes = sorted(_nodes(losses), key=lambda node: -node.call.number)
    if not nodes:
        raise ValueError("losses: expected losses of what rh.train() returned, got none that a run leads to")
    totals: list[list[Tensor | None]] = [[None] * len(leaves) for _ in losses]
    waiting: dict[int, list[Downstream | None]] = {node.call.number: [None] * len(losses) for node in nodes}
    for q, loss in enumerate(losses):
        _collect([loss], [None], leaves, nodes, totals[q], waiting, q)
    for node in nodes:
        _ = node.saved_tensors  # torch's check that nothing has changed in place
        call: Call = node.call
        asked = [(q, one) for q, one in enumerate(waiting[call.number]) if one is not None]
        size = at_a_time or max(len(asked), 1)
        for chunk in (asked[i : i + size] for i in range(0, len(asked), size)):
            for (q, _), by_inputs in zip(chunk, call.pull_back([one for _, one in chunk]), strict=True):
                _check_given(call, by_inputs, inputs)
                pairs = [(t, by) for t, by in zip(call.inputs, by_inputs, strict=True) if t.requires_grad and by is not None]
                _collect([t for t, _ in pairs], [by for _, by in pairs], leaves, nodes, totals[q], waiting, q)
    return [
        pytree.unflatten([torch.zeros_like(x) if g is None else g for g, x in zip(own, leaves, strict=True)], structure)
        for own in totals
    ]


def _check_given(call: Call, by_inputs: Sequence[Tensor | None], inputs: Any) -> None:
    """Raises ValueError for one of ``inputs`` that went into the run, which gives no gradient by it: zero would be wrong."""
    missing = {id(t) for t, by in zip(call.inputs, by_inputs, strict=True) if t.requires_grad and by is None}
    for path, leaf in zip(pytree.paths(inputs), pytree.leaves(inputs), strict=True):
        if id(leaf) in missing:
            raise ValueError(
                f"inputs{path}: expected a tensor that {call.problem.report.adjoint} gives a gradient by, got a parameter of the "
                "model. Pass it to train() as initial=, or use rh.Reversible()"
            )


def _checked_losses(losses: Sequence[Tensor] | Tensor) -> list[Tensor]:
    found = list(losses.unbind()) if isinstance(losses, Tensor) and losses.dim() == 1 else losses
    found = [found] if isinstance(found, Tensor) else list(found)
    for i, loss in enumerate(found):
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"losses[{i}]: expected a scalar tensor, got {got}. Pass one tensor of shape (losses,), or a list")
        if not loss.requires_grad:
            raise ValueError(f"losses[{i}]: expected a loss of what rh.train() returned, got a tensor without a graph")
    return found


def _nodes(losses: Sequence[Tensor]) -> Iterator[Any]:
    """The runs in the losses' graphs."""
    seen, left = set(), [loss.grad_fn for loss in losses]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left.extend(parent for parent, _ in node.next_functions)
            if isinstance(getattr(node, "call", None), Call):
                yield node


def _collect(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    nodes: Sequence[Any],
    totals: list[Tensor | None],
    waiting: dict[int, list[Downstream | None]],
    q: int,
) -> None:
    """From ``outputs`` back to the ``inputs`` and to the next runs on the way, but not through them: ``totals`` and the row ``q``
    of ``waiting`` get what comes there."""
    if not outputs:
        return
    calls: list[Call] = [node.call for node in nodes]
    with Uninterrupted() as signals:  # a run that went on collecting would give no gradients later
        try:
            for call in calls:
                call.collected = []
            with signals.but_for():
                found = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)
            collected = [(call.number, call.collected or []) for call in calls]
        finally:
            for call in calls:
                call.collected = None
    for i, by in enumerate(found):
        own = totals[i]
        totals[i] = own if by is None else by if own is None else own + by
    for number, arrivals in collected:
        for one in arrivals:
            before = waiting[number][q]
            waiting[number][q] = one if before is None else before.plus(one)
