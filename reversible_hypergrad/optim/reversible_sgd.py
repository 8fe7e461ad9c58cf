"""ReversibleSGD: torch.optim.SGD whose every step can be undone bit for bit."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.optim import saved
from reversible_hypergrad.optim.edits import edited, refuse, replaced
from reversible_hypergrad.optim.gradients import gather, refuse_missing
from reversible_hypergrad.optim.memory import measure
from reversible_hypergrad.optim.parts import CAUSES, Entry, Part
from reversible_hypergrad.optim.queue import Queue
from reversible_hypergrad.optim.settings import Settings, check_unsupported
from reversible_hypergrad.reversible.bucket import Bucket, Record, combine
from reversible_hypergrad.reversible.outcome import Outcome, hash_of, read
from reversible_hypergrad.reversible.parameters import check_parameter
from reversible_hypergrad.reversible.refusal import complaint

__all__ = ["ReversibleSGD"]

Closure = Callable[[], Any]


class ReversibleSGD(Optimizer):
    """SGD with momentum in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.SGD` that can rewind.

    Trains as ``torch.optim.SGD`` does, within one fixed-point quantum per step, first-step rule included::

        g = grad + weight_decay * w;  v = momentum * v + (1 - dampening) * g;  w = w - lr * v

    Each weight and velocity is an integer; decaying the velocity by the fraction n/d = momentum moves the remainder
    into an information buffer, log2(d/n) bits per weight and step (0.152 at 0.9), which is all that undoing needs beside
    the gradient. Schedulers, gradient clipping, GradScaler and 16-bit parameters (the fixed point is the
    master copy) work as with ``torch.optim.SGD``.

    Args:
        params: parameters, named parameters or groups, dense and floating point. lr: >= 0, may be a tensor.
        momentum: in (0, 1]; what is used is :func:`reversible_hypergrad.core.approximate_momentum` of it.
        dampening, weight_decay, maximize: as in torch.
        nesterov, differentiable: refused, with the reason.
        foreach, fused: accepted for compatibility; a step always is one fused call per group.
        state_bits: 64 (as accurate as float32 SGD; 17 bytes per weight beside it; weights, velocities
            and gradients within +-32768) or 32 (for large models; 8.5 bytes; +-16 and +-128, velocities carry
            noise of about 1e-6).
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash
            there. 1 checks every step, keeps failed undos harmless, and costs about a tenth of a step.

    Cost per step, 10 million float32 weights, 2 cores: see the table in README.md. Memory: :meth:`memory`.

    Raises:
        ValueError, TypeError: for settings and parameters that cannot be honoured, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Linear(3, 1)
    >>> start = model.weight.detach().clone()
    >>> optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (model(x) - y).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(100):
    ...     _ = optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 100)
    >>> torch.equal(model.weight, start)
    True

    Source: Maclaurin, Duvenaud, Adams, *Gradient-based Hyperparameter Optimization through Reversible Learning*,
    ICML 2015, algorithms 2 and 3, in torch's convention and with the information buffer in lockstep lanes.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int = 64,
        verify_every: int = 1,
    ) -> None:
        if state_bits not in (32, 64):
            raise ValueError(f"Invalid state_bits value: {state_bits}. Expected 32 or 64")
        check_integer("verify_every", verify_every, least=1)
        self.state_bits = state_bits
        self.verify_every = verify_every
        self._parts: list[Part] = []
        self._entries: list[Entry] = []
        self._steps_taken = 0
        self._waiting: list[list[int]] = []  # per group: positions of parameters that have no state yet
        self._check_weights = False  # after loading: the weights must be compared with the state once
        self._undoing = False  # the closure of step_back() runs
        self._queue = Queue()
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, as in torch, at any time. They join with the next step; rewinding past it lets them go."""
        if self.param_groups:
            self._refuse_inside_closure("add_param_group")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_unsupported(group)
            Settings.read(group).fraction(self.state_bits)
            for i, parameter in enumerate(group["params"]):
                check_parameter(parameter, self._name(len(self.param_groups) - 1, i))
        except BaseException:
            self.param_groups.pop()
            raise
        self._waiting.append(list(range(len(group["params"]))))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step, as ``torch.optim.SGD.step``.

        Args:
            closure: re-evaluates the model, as in torch; returns the loss.

        Returns:
            The closure's loss, or None.

        On a GPU the step is only queued, and the host waits for nothing but a parameter's first step: see :meth:`synchronize`.

        Raises:
            FloatingPointError: a gradient is not finite. OverflowError: a gradient, velocity or weight is beyond the
            fixed-point range. RuntimeError: a sparse gradient, a parameter edited since the last step
            (see :meth:`mark_boundary`), or a CUDA graph that is being captured: capture the loss and its backward alone, and
            step after each replay. After any error the optimizer and the weights are as they were.
        """
        self._refuse_inside_closure("step")
        self._refuse_capture("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_edits()
        settings = [Settings.read(group) for group in self.param_groups]
        fractions = [s.fraction(self.state_bits) for s in settings]
        for group in self.param_groups:
            check_unsupported(group)
        newcomers = self._newcomers()
        if newcomers:
            self.synchronize()
        parts = self._parts + newcomers
        queued = not newcomers and self._queue.takes(parts)
        ticket = self._queue.ticket(parts[0].bucket.x.device, self._steps_taken) if queued else None
        gradients = [gather(part.bucket.weights, part.bucket.names) for part in parts]
        with_hash = (self._steps_taken + 1) % self.verify_every == 0

        records: list[Record] = []
        outcomes: list[Outcome] = []
        for part, grads in zip(parts, gradients, strict=True):
            chosen = settings[part.group].coefficients(part.bucket.format, first=part.at_fresh_start)
            record, outcome = part.bucket.step(grads, fractions[part.group], (chosen,), part.hash, with_hash, ticket)
            part.wrote(stepped=True)
            records.append(record)
            outcomes.append(outcome)
        if not queued:
            read(outcomes)
        refused = not queued and any(any(outcome.flags) for outcome in outcomes)
        if queued or refused:
            for part, record, grads in zip(parts, records, gradients, strict=True):
                part.bucket.retract(record, grads, ticket)
        if refused:
            for part in parts:
                part.wrote()
            raise complaint([part.bucket for part in parts], gradients, outcomes)

        for part, outcome in zip(parts, outcomes, strict=True):
            part.hash = None if not with_hash else outcome if queued else outcome.hash
            part.steps += 1
        for part in newcomers:
            self._waiting[part.group] = [i for i in self._waiting[part.group] if i not in part.members]
        self._parts = parts
        entry = Entry(settings, records)
        self._entries.append(entry)
        self._steps_taken += 1
        if queued:
            self._queue.add(entry, outcomes)
            if self._queue.is_full:
                self.synchronize()
        return loss

    @torch.no_grad()
    def synchronize(self) -> None:
        """Waits for the steps that are queued on a GPU, and raises if one was refused; on the CPU nothing is ever queued.

        A refused step is taken back on the GPU, and those queued after it do not take place. So after the error weights,
        velocities, settings and step count are those of just before it, though the host had gone on. The host looks at every
        64th step and before ``step_back``, ``rewind``, ``mark_boundary``, ``memory``, ``state_dict``, ``load_state_dict`` and
        copies; call this where you want to know. Steps are not queued, each is waited for, if the parameters are on more than
        one device.

        Raises:
            FloatingPointError: a gradient was not finite, or out of range. OverflowError: a velocity or weight was.
        """
        refused = self._queue.look()
        for part in self._parts:
            part.hash = hash_of(part.hash)
        if refused is None:
            return
        count, outcomes = refused
        for _ in range(count):
            entry = self._entries.pop()
            for part, record in zip(self._parts, entry.records, strict=True):
                part.take_off(record)
        self._steps_taken -= count
        for part in self._parts:
            part.wrote()
        self._write_settings(entry)
        error = complaint([part.bucket for part in self._parts], None, outcomes)
        later = f". {count - 1} later steps were queued and did not take place" if count > 1 else ""
        raise type(error)(f"step {self._steps_taken + 1}: {error}{later}")

    @torch.no_grad()
    def step_back(self, closure: Closure) -> Any:
        """Undoes the last step: weights, velocities, the groups' settings and the step count, to the last bit.

        Args:
            closure: clears the gradients, recomputes the loss of the step that is undone and calls ``backward``; it must give
                the very gradients that ``step`` saw (same batch, same random numbers, same clipping and scaling). It runs at
                the restored weights and returns the loss.

        Returns:
            The closure's loss.

        Raises:
            ReversalError: there is no step to undo, or the closure gave other gradients than the step saw (found by the
            hash). RuntimeError: a parameter was edited. After any error, as after an exception in the closure, the optimizer
            and the weights are as they were, unless verify_every > 1 has left the fault to be found later.

        Cost: the closure, and about 1.5 times the arithmetic of a step.
        """
        self._refuse_inside_closure("step_back")
        self._refuse_capture("step_back")
        self.synchronize()
        if not self._entries:
            since = " since mark_boundary()" if any(not part.fresh for part in self._parts) else ""
            raise ReversalError(f"step_back() found no step to undo{since}: call step() first")
        self._refuse_edits()
        entry = self._entries[-1]
        parts = self._parts[: len(entry.records)]
        work = list(zip(parts, entry.records, strict=True))
        moved: list[Outcome] = []
        for part, record in work:
            moved.append(part.bucket.move_weights(record, back=True, with_hash=record.hash_before is not None))
            part.steps -= 1
            part.wrote()

        undone: list[tuple[Part, Record, list[Tensor | None]]] = []
        self._undoing = True
        try:
            with torch.enable_grad():
                loss = closure()
            gradients = [gather(part.bucket.weights, part.bucket.names) for part in parts]
            self._refuse_edits()
            for (part, record), grads in zip(work, gradients, strict=True):
                refuse_missing(part.bucket.names, record.active, grads)
            outcomes: list[Outcome] = []
            for (part, record), grads in zip(work, gradients, strict=True):
                outcomes.append(part.bucket.undo_velocity(record, grads, record.hash_before is not None))
                undone.append((part, record, grads))
            read([*moved, *outcomes])
            complaints = [
                part.suspects(outcome)
                for (part, record), weights, outcome in zip(work, moved, outcomes, strict=True)
                if not part.is_restored(record, outcome, combine(weights.hash, outcome.hash))
            ]
            if complaints:
                raise ReversalError(
                    f"step_back() of step {self._steps_taken} did not restore the state before it (near "
                    f"{'; '.join(complaints)}). {CAUSES}"
                )
        except BaseException:
            for part, record, grads in undone:
                part.bucket.redo(record, grads)
            for part, record in work[len(undone) :]:
                part.bucket.move_weights(record, back=False)
            for part in parts:
                part.steps += 1
                part.wrote()
            raise
        finally:
            self._undoing = False

        for part, record in work:
            part.hash = record.hash_before
        self._write_settings(entry)
        self._entries.pop()
        self._steps_taken -= 1
        self._let_go()
        return loss

    def rewind(self, closures: Iterable[Closure]) -> list[Any]:
        """Undoes one step per closure, the latest step's closure first. Returns their losses in that order.

        >>> # with batches by step: optimizer.rewind(partial(closure, batch) for batch in reversed(batches))
        """
        return [self.step_back(closure) for closure in closures]

    @torch.no_grad()
    def mark_boundary(self) -> None:
        """Accepts the present weights, edited or not, as a new start that cannot be rewound past; frees the buffer.

        Velocities go on, except those of parameters that changed their number of elements: these restart from zero. Use
        it after editing weights on purpose, or when the steps so far need never be undone.

        Raises:
            OverflowError, TypeError, ValueError: if the new weights do not fit; nothing is changed then.
        """
        self._refuse_inside_closure("mark_boundary")
        self.synchronize()
        renewed = []
        for part in self._parts:
            params = self.param_groups[part.group]["params"] if part.group < len(self.param_groups) else []
            if part.members[-1] >= len(params):
                raise RuntimeError(
                    f"{part.bucket.names[-1]}: was removed from param_groups, which mark_boundary() cannot accept. Put it back, "
                    "or construct a new ReversibleSGD"
                )
            weights = [params[i] for i in part.members]
            for weight, name in zip(weights, part.bucket.names, strict=True):
                check_parameter(weight, name)
            bucket = Bucket(weights, part.bucket.names, self.state_bits)
            for i, (old, new) in enumerate(zip(part.bucket.sizes, bucket.sizes, strict=True)):
                if old == new:
                    bucket.state_of(i, bucket.v).copy_(part.bucket.state_of(i, part.bucket.v))
            renewed.append(Part(part.group, part.members, bucket, fresh=False))
        self._parts = renewed
        self._entries = []
        self._check_weights = False

    def memory(self) -> dict[str, float]:
        """Bytes now, and bits per weight and step since the start (or the last boundary).

        Returns:
            ``state_bytes`` (integers of weights and velocities), ``initial_bytes`` (what fixed point could not hold
            of the first weights), ``information_bytes`` (accumulators and spilled planes), ``hash_bytes``,
            ``trajectory_bytes`` (what storing the weights of every step would have taken),
            ``information_bits_per_weight_step``, ``payload_bits_per_weight_step`` (planes and what the accumulators
            hold, by their bound), ``limit_bits_per_weight_step`` (log2(1/momentum), averaged).
        """
        self.synchronize()
        return measure(self._parts, self._entries)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with every bit of the reversible state under "reversible"; goes through ``torch.save``.

        Tensors are shared with the optimizer, not copied, as in torch. A digest of everything goes along: about a second per
        gigabyte.

        Raises:
            RuntimeError: if a parameter was resized or replaced since the last step, see :meth:`mark_boundary`.
        """
        self.synchronize()
        resized = [name for part in self._parts for name in part.bucket.resized()]
        refuse(resized + replaced(self._parts, self.param_groups))
        return {
            **super().state_dict(),
            saved.KEY: saved.pack(self.state_bits, self._steps_taken, self._parts, self._entries),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state from :meth:`state_dict`. The model's weights are loaded separately, before or after; the
        next ``step`` or ``step_back`` checks that they are the ones of the state.

        Raises:
            ValueError: for a state of another optimizer, other parameters or ``state_bits``, or a damaged one. Nothing is
            changed then.
        """
        self._refuse_inside_closure("load_state_dict")
        self.synchronize()
        steps, parts, entries = saved.unpack(state_dict, self.state_bits, self.param_groups, self._name)
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self._steps_taken, self._parts, self._entries = steps, parts, entries
        owned = {(part.group, i) for part in parts for i in part.members}
        self._waiting = [
            [i for i in range(len(group["params"])) if (g, i) not in owned] for g, group in enumerate(self.param_groups)
        ]
        self._check_weights = True

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        own = ("state_bits", "verify_every", "_parts", "_entries", "_steps_taken", "_waiting")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy or an unpickled optimizer holds its own parameters, at other addresses.
        for part in self._parts:
            part.watch.accept()
        self._check_weights = True
        self._undoing = False
        self._queue = Queue()

    def _name(self, group: int, position: int) -> str:
        names = self.param_groups[group].get("param_names")
        return f"parameter '{names[position]}'" if names else f"parameter {position} of group {group}"

    def _newcomers(self) -> list[Part]:
        """Parts for the parameters whose first gradient has come."""
        parts = []
        for g, positions in enumerate(self._waiting):
            params = self.param_groups[g]["params"]
            by_device: dict[torch.device, list[int]] = {}
            for i in positions:
                if params[i].grad is not None:
                    check_parameter(params[i], self._name(g, i))
                    by_device.setdefault(params[i].device, []).append(i)
            for members in by_device.values():
                names = [self._name(g, i) for i in members]
                parts.append(Part(g, tuple(members), Bucket([params[i] for i in members], names, self.state_bits)))
        return parts

    def _let_go(self) -> None:
        """Parts that are back at a fresh start dissolve: the weights may be edited again before their next step."""
        for part in self._parts:
            if part.at_fresh_start:
                self._waiting[part.group] = sorted([*self._waiting[part.group], *part.members])
        self._parts = [part for part in self._parts if not part.at_fresh_start]

    def _refuse_inside_closure(self, method: str) -> None:
        if self._undoing:
            raise RuntimeError(
                f"{method}() was called inside the closure of step_back(), while the state is half undone. The closure may only "
                f"clear the gradients, compute the loss and call backward(); call {method}() before or after step_back()"
            )

    def _refuse_capture(self, method: str) -> None:
        if any(part.bucket.x.is_cuda for part in self._parts) and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{method}() was called while a CUDA graph is captured, but each step has its own numbers. Capture the loss "
                f"and its backward, and call {method}() after each replay"
            )

    def _write_settings(self, entry: Entry) -> None:
        for group, settings in zip(self.param_groups, entry.settings, strict=False):
            settings.write(group)

    def _refuse_edits(self) -> None:
        refuse(replaced(self._parts, self.param_groups) or edited(self._parts, by_weights=self._check_weights))
        self._check_weights = False
