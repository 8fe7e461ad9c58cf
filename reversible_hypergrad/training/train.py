"""train(): a whole training run as one node of autograd."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.adjoints import Adjoint, Reversible, Run
from reversible_hypergrad.gradients.clip import Clip, check_gradient_options
from reversible_hypergrad.gradients.compile_options import refuse_compiled
from reversible_hypergrad.gradients.derivative_check import BYTES_PER_WEIGHT, is_checked
from reversible_hypergrad.gradients.derivative_check import check_derivatives as check_second_derivatives
from reversible_hypergrad.gradients.loss import Loss, LossGradient
from reversible_hypergrad.gradients.precision import CheckedOnce
from reversible_hypergrad.gradients.private_copy import private_copy
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.planning.memory import Budget, bytes_of
from reversible_hypergrad.planning.plan import plan_for
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.problem.report import Report
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.readouts import Readout, Readouts
from reversible_hypergrad.replay.batches import batches_by_step
from reversible_hypergrad.replay.environment import Environment
from reversible_hypergrad.reversible.parameters import check_apart, check_parameter
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.training.arguments import (
    check_number_of_steps,
    check_options,
    check_readouts,
    those_wanted,
)
from reversible_hypergrad.training.beginning import check_start, first_states, initial_weights, load_buffers
from reversible_hypergrad.training.decorated import decorated, note_compilation
from reversible_hypergrad.training.node import Call, Training
from reversible_hypergrad.training.progress import bars
from reversible_hypergrad.training.resume import Resume, check_resume, resumable_run
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
    start: Start | None = None,
    readouts: Mapping[str, Readout] | None = None,
    adjoint: Adjoint | str | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: bool = False,
    cuda_graph: bool = False,
    compile: bool | Mapping[str, Any] = False,
    clip: Clip | None = None,
    accumulate: int = 1,
    resume: str | Path | Resume | None = None,
    check_derivatives: bool | int = True,
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
        steps: how many, at least 0; as many as there are batches if None.
        optimizer: an :class:`SGD`, or another :class:`Rule`; several, each for some parameters, as a :class:`PerParameter`.
        hyperparameters: any nest (dict, list, tuple) of tensors, passed to ``loss``. They may be of any shape, and be results
            of other computations. Do not modify them in place before ``backward``.
        initial: name -> initial weight of the parameter's shape, dtype and device, for some or all trained parameters.
        start: ``trained.state`` of a run to go on from, or a :class:`Start`. Steps are counted on: batches, seeds and schedules
            are those of the steps from ``start.step`` on, and a schedule has a value for each of this run's steps, or for all
            steps from the very first one.
        readouts: name -> :class:`WeightsAt`, :class:`ExponentialAverage`, :class:`UniformAverage` or :class:`LossAt`: what to
            take from the run beside its last weights, as ``trained.readouts[name]``, differentiable together with them.
        adjoint: the memory strategy, such as :class:`Checkpoint` (); :class:`Reversible` () if None; "auto": the fastest exact
            one that fits ``budget`` by :func:`plan`. ``.report.adjoint`` says which it was.
        budget: for "auto": bytes, or text such as "500 MB"; None: nine tenths of what is free on the weights' device.
        seed: before each step torch's, NumPy's and Python's generators are seeded by (seed, step), for the batch and the loss;
            afterwards they are as before the call.
        progress: show bars for training and for undoing.
        cuda_graph: capture the gradient of the loss, and its products, as CUDA graphs, one for each shape of the batch, and
            replay them forwards and backwards. The bits are the same. It pays where a GPU waits for the host to launch
            operations: small models and batches. See below for what it asks of the loss.
        compile: compile the gradient of the loss, and its products, by torch.compile, for each shape of the batch. True, or a
            dict of torch.compile's ``backend``, ``mode``, ``options`` and ``dynamic``. It pays in long runs: a step takes less,
            but the first one takes seconds to minutes. See below.
        clip: :func:`clip_norm` or :func:`clip_value`, as torch.nn.utils clips gradients between backward() and step(). Its limit
            may be learned, too.
        accumulate: in how many equal parts, one after the other, to evaluate each batch: every tensor in it, in any nest, is cut
            along its first dimension. The step's gradient is the mean of theirs, and so is the loss's value. A batch may also be
            :class:`MicroBatches`, of any sizes; then this is 1.
        resume: a directory, or :class:`Resume` (directory, every): the run is kept there, and after a kill the same call goes on
            from the last kept point, to the same bits. Removed when the run has been walked back through.
        check_derivatives: at how many steps, evenly spread, to compare torch's second derivatives with differences of the
            gradient before training, as :func:`check_replayable` does. True: at the first one, unless a run of this process has
            checked the same code of the loss, with the same kind of model and shapes of hyperparameters, or ``budget`` is below
            the 45 bytes per weight that it takes for a moment; False: at none. The loss is evaluated 4 to 10 more times for
            each, in float64 where that can be, and as often again before something is called wrong.

    Returns:
        A dict of name -> trained tensor, with ``.buffers``, ``.readouts``, ``.report``, and ``.state`` to go on from; works with
        ``torch.func.functional_call``.

    Raises:
        TypeError: for an argument of another type, by name, and a model that is spread over processes.
        ValueError: for an argument that cannot be honoured, by name.
        FloatingPointError: if a gradient is not finite, at the step that the message says.
        OverflowError: if a weight or a state leaves the range of floating-point numbers, at the step that the message says; with
            :class:`Reversible` on a GPU also if one outgrows its integers between two looks.
        ReversalError: from ``backward``, if the trajectory was not restored bit for bit; no gradient is returned then.
        RuntimeError: for double backward, a loss without second derivatives or with wrong ones (unless under
            ``torch.no_grad()``), another thread that is inside of a run, or a forked process: for a backward always, and for
            training if torch has more than one thread there.

    Warns:
        RuntimeWarning: once per call, where the loss computes in fewer digits than float32 has: in 16 bits, by autocast or by its
            weights, or in products that a setting shortens.

    After any error, and after Ctrl-C, the model, the hyperparameters and random states are as before; a backward that Ctrl-C
    broke off can be called again, or says that training must be. On a GPU the host does not wait for each step: it looks every
    64 steps and where a segment begins or ends, so an error comes up to 63 steps late and still names its step, and a gradient
    that has grown too fast for its integers is a FloatingPointError, too, since it is gone by then. No gradient is returned
    before all is checked.

    Cost: forward as ordinary training, plus one copy of the model; backward about three times that, whatever the number of
    hyperparameters. Inside a run deterministic algorithms, the math attention kernel and the number of threads are pinned. On
    CUDA an operation without a deterministic form is a RuntimeError, unless torch was set to warn_only, and so is a
    CUBLAS_WORKSPACE_CONFIG with which products vary (importing the library sets it if it is unset).

    Micro-batches (``accumulate``, or :class:`MicroBatches`) save memory: the graph of one of them is there at a time. On the way
    back each is evaluated twice, once for its gradient and once for its products, and the two losses are compared. They take 8
    bytes per weight, and on a GPU the host waits once per step. Gradients are added up as integers, so that the bits of the mean
    depend on neither the order of the micro-batches nor their grouping. With 8 of them a tensor's quantum is at most 2^-54 of its
    largest element in the first step (2^-53 with 16, 2^-55 with 4): an element keeps all 24 digits of a float32 down to 2^-31 of
    that largest one, and is 0 below 2^-55. Where a later gradient is more than 16 times as large, quanta grow, and that step is
    begun again; so is the first one. Rounding counts as the identity in derivatives. Random numbers are seeded by (seed, step,
    place in the list), and buffers are updated micro-batch after micro-batch: with dropout or BatchNorm the order does matter.

    With ``cuda_graph=True`` the weights, every tensor of a batch, and the hyperparameters that want gradients must be on one
    CUDA device, and a run has at most 8 shapes of batches; the tensors given to ``optimizer`` may be anywhere. The Python code of
    the loss and the model runs a few times per shape: as it is, to be captured, and to be compared with a replay. Then all that
    it does stays as it was captured: numbers, branches, prints, and the places of the tensors that it reads from outside, which
    must stay. Torch's random numbers (dropout) and the model's buffers are those of each step. Nothing in it may wait for the
    GPU (``.item()``, a boolean mask as an index): that is a RuntimeError, and so is a replay with another result than the loss
    has by itself. The activations of one step stay allocated from the first steps to the end of the backward, for each shape.
    :class:`Unroll` and :class:`ForwardMode` cannot be captured.

    With ``compile=True`` loss and model must be one graph to torch.compile: a ``.item()``, a branch on a tensor's value, a
    ``print``, or an LSTM, is a RuntimeError that names the module where it can, and so is a value that is not a tensor and
    changes at every step. Whatever in a batch is not a tensor must stay the same, and a run has at most 8 shapes of batches. The
    first two steps of each shape are evaluated by the loss as it is, too, without a trace: gradients and buffers that differ by
    more than rounding are a RuntimeError, as where Python's random numbers were frozen, or a dropout of a tensor that is not
    contiguous draws in another order. All is compiled in the first step, the way back included, and ``report.compile_seconds``
    tells how long it took. Later calls in the same process with the same loss (its code), shapes and options compile nothing, and
    torch's cache on disk serves other processes; the last 32 pairs of functions are kept, without models and data. The bits are
    the same forwards and backwards, but not those of a run without. On a CPU the gradient takes 0.6 to 0.8 of its time, with
    products 0.5 to 0.7 of theirs. Memory that strategies keep, and plans, are as without. :class:`Unroll` and
    :class:`ForwardMode` cannot be compiled. A model or loss that torch.compile has made is a TypeError always: pass it as it was.

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
    check_options(optimizer, adjoint, budget, seed, cuda_graph, compile)
    check_gradient_options(clip, accumulate)
    check_number_of_steps(check_derivatives)
    start, readouts, resume = check_start(start, initial), check_readouts(readouts), check_resume(resume)
    batch_of, span = batches_by_step(batches, steps, start.step)
    private = private_copy(model)
    refuse_compiled(model, loss)
    given = start.weights or initial or {}
    starts = initial_weights(model, given, "start: weights" if start.weights else "initial")
    weights = _own_weights(private, starts, given)
    check_apart({name: p for name, p in model.named_parameters() if name in weights})
    load_buffers(private, start)
    names = list(weights)
    states = first_states(start, names, list(weights.values()), optimizer.by_name(names))
    resolved = optimizer.resolve(names, list(weights.values()), span)
    leaves = pytree.leaves(hyperparameters)
    wanted = those_wanted(leaves)
    checks = CheckedOnce(differentiates=torch.is_grad_enabled())
    plain = LossGradient(private, weights, loss, batch_of, hyperparameters, seed, checks)
    taken = Readouts(readouts, span, names, list(weights.values()), plain.with_loss) if readouts else None
    gradient, limits = decorated(plain, hyperparameters, span, compile, cuda_graph, accumulate, clip)
    wanted += limits
    if start.memory is not None:
        gradient.remember(start.memory)
    first = [values for own in states for values in own.values() if values.requires_grad]
    problem = Problem(
        names=names,
        weights=list(weights.values()),
        rule=optimizer,
        settings=resolved.settings,
        steps=span,
        gradient=gradient,
        sources=[t.detach() for t in resolved.tensors],
        hyperparameters=[t.detach() for t in wanted],
        report=_report(span, weights, [*resolved.tensors, *wanted]),
        progress=bars(progress),
        given=[i for i, name in enumerate(names) if name in given and given[name].requires_grad],
        states=[{name: values.detach() for name, values in own.items()} for own in states],
        wanted_states=[(i, name) for i, own in enumerate(states) for name, values in own.items() if values.requires_grad],
        readouts=taken,
        exact=start.exact,
        inputs=[*starts.values(), *first, *resolved.tensors, *wanted, *([] if taken is None else taken.inputs)],
    )
    chosen = _choose(adjoint, problem, budget, cuda_graph, compile is not False)
    unchanged = [t for t in (*leaves, *optimizer.tensors(), clip and clip.limit) if isinstance(t, Tensor)]
    record = torch.is_grad_enabled() and any(t.requires_grad for t in problem.inputs)
    environment = Environment.current({w.device for w in weights.values()})
    at = check_derivatives
    if at is True and (_takes_too_much(problem, budget) or is_checked(plain, hyperparameters)):
        at = False
    if at and record:
        with Uninterrupted() as signals, environment.pinned(), signals.but_for():
            problem.report.derivative_error = check_second_derivatives(plain, accumulate, hyperparameters, seed, span, at)
    run: Run = chosen.start(problem)
    if resume is not None:
        said = {"seed": seed, "readouts": readouts, "clip": clip, "accumulate": accumulate}
        run = resumable_run(resume, chosen, problem, private, leaves, said)
    call = Call(run, problem, environment, unchanged, record)
    outputs: tuple[Tensor, ...] = Training.apply(call, *problem.inputs)  # type: ignore[no-untyped-call]
    note_compilation(gradient, problem.report)
    buffers = {name: buffer.detach().clone() for name, buffer in private.named_buffers()}
    count, places = len(names), len(names) + len(call.states)
    results = {} if taken is None else taken.results(outputs[places:])
    trained = dict(zip(names, outputs, strict=False))
    return TrainedWeights(trained, buffers, problem.report, results, call, list(outputs[count:places]))


def _own_weights(private: nn.Module, starts: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> parameter of the copy that is trained, at its initial weights."""
    own = dict(private.named_parameters())
    weights: dict[str, Tensor] = {name: own[name] for name in starts}
    for name, weight in weights.items():
        check_parameter(weight, name)
    with torch.no_grad():
        for name in initial:
            weights[name].copy_(starts[name])
    return weights


def _report(steps: range, weights: Mapping[str, Tensor], learned: Sequence[Tensor]) -> Report:
    """What is known of a run before it runs."""
    return Report(
        steps=len(steps),
        weights=sum(w.numel() for w in weights.values()),
        hyperparameters=sum(t.numel() for t in learned),
        trajectory_bytes=len(steps) * sum(w.nbytes for w in weights.values()),
    )


def _choose(adjoint: Adjoint | str | None, problem: Problem, budget: Budget | None, cuda_graph: bool, compile: bool) -> Adjoint:
    """The strategy, of which the report tells."""
    if isinstance(adjoint, str):
        adjoint = plan_for(problem, budget).adjoint
    chosen = Reversible() if adjoint is None else adjoint
    for name, done, wanted in (("cuda_graph", "captured", cuda_graph), ("compile", "compiled", compile)):
        if wanted and not chosen.graphable:
            raise ValueError(
                f"{name}: {chosen!r} differentiates through more than a gradient and its products, which is not {done}. Use "
                f"rh.Reversible(), rh.Snapshots() or rh.Checkpoint(), or leave {name}=True out"
            )
    report = problem.report
    report.adjoint, report.exact, report.approximation = repr(chosen), chosen.exact, chosen.approximation
    return chosen


def _takes_too_much(problem: Problem, budget: Budget | None) -> bool:
    """Whether the check of derivatives would take more memory than the run may."""
    return budget is not None and problem.report.weights * BYTES_PER_WEIGHT > bytes_of(budget)
