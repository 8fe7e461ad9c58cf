"""train(): a whole training run as one node of autograd."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from reversible_hypergrad.adjoints import Adjoint, Reversible, Run
from reversible_hypergrad.gradients.captured import captured
from reversible_hypergrad.gradients.loss import Loss, LossGradient, private_copy
from reversible_hypergrad.planning.memory import Budget
from reversible_hypergrad.planning.plan import plan_for
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.problem.report import Report
from reversible_hypergrad.replay.batches import batches_by_step
from reversible_hypergrad.replay.environment import Environment
from reversible_hypergrad.reversible.parameters import check_parameter
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.training.progress import bars
from reversible_hypergrad.training.trained import TrainedWeights

__all__ = ["train"]


def train(
    model: nn.Module,
    loss: Loss,
    batches: Any,
    *,
    steps: int | None = None,
    optimizer: Rule,
    hyperparameters: Any = None,
    initial: Mapping[str, Tensor] | None = None,
    adjoint: Adjoint | str | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: bool = False,
    cuda_graph: bool = False,
) -> TrainedWeights:
    """Trains a copy of ``model`` and returns the trained weights as a differentiable function of everything that went in.

    ``backward`` through any number of losses of the result gives exact gradients with respect to the tensors in
    ``hyperparameters``, those given to ``optimizer``, and the initial weights: the model's own parameters, or those in
    ``initial``. The run is one autograd node; what its backward keeps and computes is ``adjoint``'s business.

    Args:
        model: any module with trainable parameters, dense and floating point. It is not modified; modes (train, eval), ties
            and frozen parameters (``requires_grad=False``) count. Its parameters' ``.grad`` receive the gradients by
            the initial weights.
        loss: ``loss(model, batch, hyperparameters)`` -> scalar tensor. ``model`` is the copy at the present weights, whether
            called or asked for ``named_parameters()``. A weight that the loss does not use has gradient zero.
        batches: a sequence, a function from step to batch, or :class:`ReplayableLoader`. It is asked for each step twice.
        steps: how many; ``len(batches)`` if None.
        optimizer: an :class:`SGD`, or another :class:`Rule`.
        hyperparameters: any nest (dict, list, tuple) of tensors, passed to ``loss``. They may be of any shape, and be results
            of other computations. Do not modify them in place before ``backward``.
        initial: name -> initial weight of the parameter's shape, dtype and device, for some or all trained parameters.
        adjoint: the memory strategy, such as :class:`Checkpoint` (); :class:`Reversible` () if None; "auto": the fastest exact
            one that fits ``budget`` by :func:`plan`. ``.report.adjoint`` says which it was.
        budget: for "auto": bytes, or text such as "500 MB"; None: nine tenths of what is free on the weights' device.
        seed: before each step torch's, NumPy's and Python's generators are seeded by (seed, step), for the batch and the loss;
            afterwards they are as before the call.
        progress: show bars for training and for undoing.
        cuda_graph: capture the gradient of the loss, and its products, as CUDA graphs, one for each shape of the batch, and
            replay them forwards and backwards. The bits are the same. It pays where a GPU waits for the host to launch
            operations: small models and batches. See below for what it asks of the loss.

    Returns:
        A dict of name -> trained tensor, with ``.buffers`` and ``.report``; works with ``torch.func.functional_call``.

    Raises:
        TypeError, ValueError: for arguments that cannot be honoured, by name. FloatingPointError, OverflowError: a gradient is
        not finite, or something leaves the fixed-point range, at the step that the message says. ReversalError: from
        ``backward``, if the trajectory was not restored bit for bit; no gradient is returned then. RuntimeError: double
        backward. After any error the model, the hyperparameters and random states are as before.
        On a GPU the host does not wait for each step: it looks every 64 steps and where a segment begins or ends, so an error
        comes up to 63 steps late and still names its step, and a gradient that is out of range is a FloatingPointError, too,
        since it is gone by then. No gradient is returned before all is checked.

    Cost: forward as ordinary training, plus one copy of the model; backward about three times that, whatever the number of
    hyperparameters. Inside a run deterministic algorithms, the math attention kernel and the number of threads are pinned. On
    CUDA an operation without a deterministic form is a RuntimeError, unless torch was set to warn_only, and so is a
    CUBLAS_WORKSPACE_CONFIG with which products vary (importing the library sets it if it is unset).

    With ``cuda_graph=True`` the weights, every tensor of a batch, and the hyperparameters that want gradients must be on one
    CUDA device, and a run has at most 8 shapes of batches; the tensors given to ``optimizer`` may be anywhere. The Python code of
    the loss and the model runs a few times per shape: as it is, to be captured, and to be compared with a replay. Then all that
    it does stays as it was captured: numbers, branches, prints, and the places of the tensors that it reads from outside, which
    must stay. Torch's random numbers (dropout) and the model's buffers are those of each step. Nothing in it may wait for the
    GPU (``.item()``, a boolean mask as an index): that is a RuntimeError, and so is a replay with another result than the loss
    has by itself. The activations of one step stay allocated from the first steps to the end of the backward, for each shape.
    :class:`Unroll` and :class:`ForwardMode` cannot be captured.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Linear(3, 1)
    >>> data = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(20)]
    >>> def loss(model, batch, log_l2):
    ...     penalty = sum(log_l2[n].exp() * p.square().sum() for n, p in model.named_parameters())
    ...     return (model(batch[0]) - batch[1]).square().mean() + penalty
    >>> log_l2 = {n: torch.tensor(-5.0, requires_grad=True) for n, _ in model.named_parameters()}
    >>> log_lr = torch.full((20,), -3.0, requires_grad=True)
    >>> trained = rh.train(model, loss, data, optimizer=rh.SGD(lr=log_lr.exp()), hyperparameters=log_l2)
    >>> x, y = data[0]
    >>> (torch.func.functional_call(model, trained, x) - y).square().mean().backward()
    >>> log_lr.grad.shape, log_l2["bias"].grad.shape, trained.report.restored
    (torch.Size([20]), torch.Size([]), True)

    Source: Maclaurin, Duvenaud, Adams, *Gradient-based Hyperparameter Optimization through Reversible Learning*, ICML 2015.
    """
    if not isinstance(optimizer, Rule):
        raise TypeError(f"optimizer: expected rh.SGD(...) or another rh.Rule, got {type(optimizer).__name__}")
    adjoint = Reversible() if adjoint is None else adjoint
    if not isinstance(adjoint, Adjoint) and adjoint != "auto":
        raise TypeError(f"adjoint: expected an object such as rh.Reversible(), or 'auto', got {adjoint!r}")
    if budget is not None and adjoint != "auto":
        raise ValueError(f"budget: expected none unless adjoint='auto', got {budget!r} with adjoint={adjoint!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph: expected True or False, got {cuda_graph!r}")
    batch_of, steps = batches_by_step(batches, steps)

    starts = _starts(model, initial)
    private = private_copy(model)
    own = dict(private.named_parameters())
    weights: list[Tensor] = [own[name] for name in starts]
    for name, weight in zip(starts, weights, strict=True):
        check_parameter(weight, name)
    with torch.no_grad():
        for name in initial or ():
            own[name].copy_(starts[name])

    resolved = optimizer.resolve(list(starts), weights, steps)
    leaves, spec = _pytree.tree_flatten(hyperparameters)
    wanted = _wanted(leaves)
    report = Report(
        steps=steps,
        weights=sum(w.numel() for w in weights),
        hyperparameters=sum(t.numel() for t in (*resolved.tensors, *(leaves[i] for i in wanted))),
        trajectory_bytes=steps * sum(w.nbytes for w in weights),
    )
    names = list(starts)
    gradient = LossGradient(private, weights, names, loss, batch_of, leaves, spec, wanted, seed)
    problem = Problem(
        names=names,
        weights=weights,
        rule=optimizer,
        settings=resolved.settings,
        steps=steps,
        gradient=captured(gradient, hyperparameters) if cuda_graph else gradient,
        sources=[t.detach() for t in resolved.tensors],
        hyperparameters=[leaves[i].detach() for i in wanted],
        report=report,
        progress=bars(progress),
        given=[i for i, name in enumerate(names) if initial and name in initial and initial[name].requires_grad],
    )
    if isinstance(adjoint, str):
        adjoint = plan_for(problem, budget).adjoint
    if cuda_graph and not adjoint.graphable:
        raise ValueError(
            f"cuda_graph: {adjoint!r} differentiates through more than a gradient and its products, which is not captured. Use "
            "rh.Reversible(), rh.Snapshots() or rh.Checkpoint(), or leave cuda_graph=True out"
        )
    report.adjoint, report.exact, report.approximation = repr(adjoint), adjoint.exact, adjoint.approximation
    inputs = [*starts.values(), *resolved.tensors, *(leaves[i] for i in wanted)]
    unchanged = [t for t in (*leaves, *_given_tensors(optimizer)) if isinstance(t, Tensor)]
    record = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    devices = {w.device for w in weights}
    call = _Call(adjoint.start(problem), problem, Environment.current(devices), unchanged, record)
    outputs = _Training.apply(call, *inputs)  # type: ignore[no-untyped-call]
    buffers = {name: buffer.detach().clone() for name, buffer in private.named_buffers()}
    return TrainedWeights(dict(zip(names, outputs, strict=True)), buffers, report)


class _Call:
    """What forward and backward of one call of ``train`` share."""

    def __init__(self, run: Run, problem: Problem, environment: Environment, unchanged: Sequence[Tensor], record: bool) -> None:
        self.run, self.problem, self.environment = run, problem, environment
        self.unchanged, self.record = unchanged, record

    @contextmanager
    def pinned(self, last: bool) -> Iterator[None]:
        """The run's environment for one way. What its gradient keeps stays for the other one, unless this is the ``last``."""
        try:
            with self.environment.pinned():
                yield
        except BaseException:
            last = True
            raise
        finally:
            if last:
                self.problem.gradient.let_go()


class _Training(torch.autograd.Function):
    """Initial weights, the optimizer's tensors and hyperparameters in, trained weights out."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        began = time.perf_counter()
        with call.pinned(last=not call.record):
            call.run.forward(call.record)
        outputs = tuple(weight.detach().clone() for weight in call.problem.weights)
        call.problem.report.forward_seconds = time.perf_counter() - began
        if call.record:
            ctx.call = call
            ctx.set_materialize_grads(False)
            # Saved for torch's own checks only: none of them may change in place before backward, and a second backward needs
            # retain_graph=True. The marker is there in case there is nothing else.
            ctx.save_for_backward(*call.unchanged, torch.empty(0))
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "train() was differentiated with create_graph=True, but second derivatives through it are not supported: its "
                "backward undoes integers, which leaves no graph. Use create_graph=False; for second-order terms, write the "
                "inner loop in plain autograd"
            )
        _ = ctx.saved_tensors
        call: _Call = ctx.call
        began = time.perf_counter()
        with call.pinned(last=True):
            result = call.run.pull_back(cotangents)
        call.problem.report.backward_seconds = time.perf_counter() - began
        problem = call.problem
        sources = [total.to(t.device, t.dtype) for total, t in zip(result.sources, problem.sources, strict=True)]
        own = [total.to(t.dtype) for total, t in zip(result.hyperparameters, problem.hyperparameters, strict=True)]
        return (None, *result.initial, *sources, *own)


def _starts(model: nn.Module, initial: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Name -> initial weight, attached to its graph, for every trained parameter."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    starts: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"model: the parameter {name!r} is not initialized. Run the model once on a batch")
        if parameter.requires_grad:
            starts[name] = parameter
    if not starts:
        raise ValueError("model: expected parameters that require grad, got none to train")
    for name, value in (initial or {}).items():
        if name not in starts:
            raise ValueError(f"initial: {name!r} is not a trained parameter of the model; they are {', '.join(starts)}")
        expected = starts[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"initial[{name!r}]: expected a tensor, got {type(value).__name__}")
        if value.shape != expected.shape or value.dtype != expected.dtype or value.device != expected.device:
            raise ValueError(
                f"initial[{name!r}]: expected shape {tuple(expected.shape)}, {expected.dtype} on {expected.device}, got "
                f"{tuple(value.shape)}, {value.dtype} on {value.device}"
            )
        starts[name] = value
    return starts


def _wanted(leaves: Sequence[Any]) -> list[int]:
    """Positions of the hyperparameters that require grad."""
    for leaf in leaves:
        if isinstance(leaf, nn.Module):
            raise TypeError(
                f"hyperparameters: expected a nest of tensors, got the module {type(leaf).__name__}. Pass "
                "dict(module.named_parameters()), and torch.func.functional_call(module, ...) in the loss"
            )
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _given_tensors(optimizer: Rule) -> list[Any]:
    return [v for given in optimizer.given.values() for v in (given.values() if isinstance(given, Mapping) else [given])]
