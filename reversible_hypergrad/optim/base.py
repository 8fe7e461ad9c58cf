"""An optimizer whose every step can be undone bit for bit, whatever its rule."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.interrupts import Uninterrupted, uninterrupted
from reversible_hypergrad.optim.edits import edited, refuse, replaced
from reversible_hypergrad.optim.gradients import gather
from reversible_hypergrad.optim.history import name_of
from reversible_hypergrad.optim.memory import measure
from reversible_hypergrad.optim.moves import Undoing, step_parts, take_back
from reversible_hypergrad.optim.parts import Part
from reversible_hypergrad.optim.settings import Settings, write
from reversible_hypergrad.optim.stateful import StatefulOptimizer
from reversible_hypergrad.reversible.outcome import hash_of
from reversible_hypergrad.reversible.parameters import check_apart, check_parameter
from reversible_hypergrad.reversible.refusal import refusal

__all__ = ["ReversibleOptimizer"]

Closure = Callable[[], Any]


class ReversibleOptimizer(StatefulOptimizer):
    """A :class:`torch.optim.Optimizer` in exact fixed-point arithmetic, which can rewind.

    A subclass says which settings its groups have, and what numbers a step makes of them; all the rest is here.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        defaults: the settings of groups that give none.
        state_bits: 64 or 32, of each integer.
        verify_every: the state is hashed after every so-many-th step.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.
    """

    @uninterrupted
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, as in torch, at any time. They join with the next step; rewinding past it lets them go."""
        if self.param_groups:
            self._refuse_inside_closure("add_param_group")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.settings_of(group)
            for i, parameter in enumerate(group["params"]):
                check_parameter(parameter, name_of(self.param_groups, len(self.param_groups) - 1, i))
            every = [(g, i, p) for g, own in enumerate(self.param_groups) for i, p in enumerate(own["params"])]
            check_apart({name_of(self.param_groups, g, i): parameter for g, i, parameter in every})
        except BaseException:
            self.param_groups.pop()
            raise
        self._history.waiting.append(list(range(len(group["params"]))))
        self._list_names()

    def step(self, closure: Closure | None = None) -> Any:
        """One step, as ``torch.optim.SGD.step``.

        Args:
            closure: re-evaluates the model, as in torch; returns the loss.

        Returns:
            The closure's loss, or None.

        On a GPU the host waits for a parameter's first 16 steps; later ones are only queued: see :meth:`synchronize`.

        Raises:
            FloatingPointError: a gradient is not finite.
            OverflowError: a state or weight would not stay within floating-point numbers.
            RuntimeError: a sparse gradient, a parameter edited since the last step (see :meth:`mark_boundary`), or a CUDA graph
                that is being captured: capture the loss and its backward alone, and step after each replay.

        After any error the optimizer and the weights are as they were. Ctrl-C, or another signal whose handler raises, comes in
        the closure, or else before the step or after it, never between.
        """
        loss = None
        with Uninterrupted() as signals, torch.no_grad():
            self._refuse_inside_closure("step")
            self._refuse_capture("step")
            if closure is not None:
                with signals.but_for(), torch.enable_grad():
                    loss = closure()
            self._refuse_edits()
            settings = [self.settings_of(group) for group in self.param_groups]
            newcomers = self._history.newcomers(self.param_groups)
            if newcomers:
                self.synchronize()
            self._step(settings, newcomers)
        return loss

    def _step(self, settings: list[Settings], newcomers: list[Part]) -> None:
        """All parts move, or, if one's step is refused, none."""
        parts = self._history.parts + newcomers
        gradients = [gather(part.state.weights, part.state.names) for part in parts]
        numbers = [part.numbers(settings[part.group], self.numbers_of) for part in parts]
        queued = not newcomers and self._queue.takes(parts)
        ticket = self._queue.ticket(parts[0].state.x.device, self._history.steps_taken) if queued else None
        with_hash = (self._history.steps_taken + 1) % self.verify_every == 0
        records, outcomes = step_parts(parts, gradients, numbers, with_hash, ticket)
        if queued:
            take_back(parts, gradients, records, ticket)
        for part, outcome in zip(parts, outcomes, strict=True):
            part.hash = None if not with_hash else outcome if queued else outcome.hash
        self._history.append(settings, newcomers, records, self.numbers_of)
        if queued:
            self._queue.add(outcomes)
            if self._queue.is_full:
                self.synchronize()

    @uninterrupted
    @torch.no_grad()
    def synchronize(self) -> None:
        """Waits for the steps that are queued on a GPU, and raises if one was refused; on the CPU nothing is ever queued.

        A refused step is taken back on the GPU, and those queued after it do not take place. So after the error weights,
        velocities, settings and step count are those of just before it, though the host had gone on. The host looks at every
        64th step and before ``step_back``, ``rewind``, ``mark_boundary``, ``memory``, ``state_dict``, ``load_state_dict`` and
        copies; call this where you want to know. There it also makes room for what has grown: what grows eightfold or more
        between two looks may be refused, and then the 64 steps after are looked at, one by one, as the first 16 are. Steps are
        not queued, each is waited for, if the parameters are on more than one device, or the rule has no compiled program.

        Raises:
            FloatingPointError: a gradient was not finite, or many times larger than at the last look.
            OverflowError: a state or weight was.
        """
        refused = self._queue.look(self._history.parts)
        for part in self._history.parts:
            part.hash = hash_of(part.hash)
            part.log.hashes.fill_in()
        if refused is None:
            return
        count, outcomes = refused
        settings = self._history.take_off(count, self.numbers_of)
        for part in self._history.parts:
            part.wrote()
        self._write_settings(settings)
        error = refusal([part.state for part in self._history.parts], None, outcomes)
        assert error is not None
        later = f". {count - 1} later steps were queued and did not take place" if count > 1 else ""
        raise type(error)(f"step {self._history.steps_taken + 1}: {error}{later}")

    def step_back(self, closure: Closure) -> Any:
        """Undoes the last step: weights, velocities, the groups' settings and the step count, to the last bit.

        Args:
            closure: clears the gradients, recomputes the loss of the step that is undone and calls ``backward``; it must give
                the very gradients that ``step`` saw (same batch, same random numbers, same clipping and scaling). It runs at
                the restored weights and returns the loss.

        Returns:
            The closure's loss.

        Raises:
            ReversalError: there is no step to undo, or the closure gave other gradients than the step saw (found by the hash).
            RuntimeError: a parameter was edited.

        After any error, as after an exception in the closure, the optimizer and the weights are as they were, unless
        verify_every > 1 has left the fault to be found later. Signals come as in :meth:`step`.

        Cost: the closure, and about 1.5 times the arithmetic of a step.
        """
        with Uninterrupted() as signals, torch.no_grad():
            self._refuse_inside_closure("step_back")
            self._refuse_capture("step_back")
            self.synchronize()
            if not self._history.steps:
                since = " since mark_boundary()" if any(not part.fresh for part in self._history.parts) else ""
                raise ReversalError(f"step_back() found no step to undo{since}: call step() first")
            self._refuse_edits()
            parts, settings = self._history.parts, self._history.latest()
            undoing = Undoing(parts, [part.last(self._history.lately, self.numbers_of) for part in parts])
            self._undoing = True
            try:
                with signals.but_for(), torch.enable_grad():
                    loss = closure()
                self._refuse_edits()
                changed = partial(self._history.changed, self.param_groups)
                undoing.states(f"step_back() of step {self._history.steps_taken}", changed)
            except BaseException:
                undoing.redo()
                raise
            finally:
                self._undoing = False
            undoing.settle()
            self._write_settings(settings)
            self._history.pop()
        return loss

    def rewind(self, closures: Iterable[Closure]) -> list[Any]:
        """Undoes one step per closure, the latest step's closure first. Returns their losses in that order.

        >>> # with batches by step: optimizer.rewind(partial(closure, batch) for batch in reversed(batches))
        """
        return [self.step_back(closure) for closure in closures]

    @uninterrupted
    @torch.no_grad()
    def mark_boundary(self) -> None:
        """Accepts the present weights, edited or not, as a new start that cannot be rewound past; forgets the steps so far.

        Velocities go on, except those of parameters that changed their number of elements: these restart from zero. Use
        it after editing weights on purpose, or when the steps so far need never be undone.

        Raises:
            OverflowError: if a weight is not finite; nothing is changed then.
            TypeError: if no state can be kept for one of the parameters, for its dtype or layout; nothing is changed then.
            ValueError: if no state can be kept for one of the parameters; nothing is changed then.
        """
        self._refuse_inside_closure("mark_boundary")
        self.synchronize()
        self._history.begin_anew(self.param_groups, type(self).__name__)
        self._check_weights = False
        self._list_names()

    def memory(self) -> dict[str, float]:
        """Bytes now, and bits per weight and step since the start (or the last boundary).

        Returns:
            By name

            - ``state_bytes``: the integers of weights and states.
            - ``initial_bytes``: what fixed point could not hold of the first weights.
            - ``information_bytes``: the bits that the steps shifted out of the integers, which is what undoing them takes.
            - ``record_bytes``: what else is kept of the steps: settings and who took part, where they change, scales at every
              32nd step, sizes of planes.
            - ``hash_bytes``: 8 per part and checked step.
            - ``trajectory_bytes``: what storing the weights of every step would have taken.
            - ``information_bits_per_weight_step``: ``information_bytes`` over the weights and the steps that moved them.
            - ``limit_bits_per_weight_step``: what no method can stay below, log2(1/decay) summed over the states; averaged.
        """
        self.synchronize()
        return measure(self._history, self.numbers_of)

    def _write_settings(self, settings: list[Settings]) -> None:
        for group, own in zip(self.param_groups, settings, strict=False):
            write(self.known, own, group)

    def _refuse_edits(self) -> None:
        refuse(replaced(self._history.parts, self.param_groups) or edited(self._history.parts, all_weights=self._check_weights))
        self._check_weights = False
