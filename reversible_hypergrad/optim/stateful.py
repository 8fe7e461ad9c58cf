"""What an optimizer is between steps: its state, in and out of dictionaries, files and copies."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.core.fixed_point import FORMATS
from reversible_hypergrad.interrupts import uninterrupted
from reversible_hypergrad.optim import saved
from reversible_hypergrad.optim.edits import refuse, replaced
from reversible_hypergrad.optim.history import History
from reversible_hypergrad.optim.queue import Queue
from reversible_hypergrad.optim.settings import Setting, Settings
from reversible_hypergrad.reversible.parameters import default_bits
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.rules.base import Rule

__all__ = ["StatefulOptimizer"]


class StatefulOptimizer(Optimizer):
    """The half of :class:`ReversibleOptimizer` that takes no steps."""

    rule: Rule  # its functions count, not its settings: these are the groups'
    known: Sequence[Setting]  # what a step reads from a group

    def __init__(self, params: Any, defaults: dict[str, Any], *, state_bits: int | None, verify_every: int) -> None:
        if state_bits is not None and state_bits not in FORMATS:
            raise ValueError(f"Invalid state_bits value: {state_bits}. Expected 32, 64 or None")
        check_integer("verify_every", verify_every, least=1)
        self.verify_every = verify_every
        self._history = History(self.rule, state_bits or 32, [setting.name for setting in self.known])
        self._check_weights = False  # after loading: the weights must be compared with the state once
        self._undoing = False  # the closure of step_back() runs
        self._queue = Queue()
        super().__init__(params, defaults)
        if state_bits is None:
            self._history.state_bits = max(default_bits(p.dtype) for group in self.param_groups for p in group["params"])

    @property
    def state_bits(self) -> int:
        """Of each integer: 32 or 64."""
        return self._history.state_bits

    @abstractmethod
    def settings_of(self, group: dict[str, Any]) -> Settings:
        """The group's settings as the next step would read them.

        Raises:
            ValueError: for one that makes no sense, or an option that cannot be honoured: it is refused, never ignored.
        """

    @abstractmethod
    def numbers_of(self, settings: Settings, t: int) -> StepNumbers:
        """What a step with ``settings`` gives to the state of tensors that have taken ``t`` steps before."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for the steps that are queued on a GPU."""

    @uninterrupted
    def state_dict(self) -> dict[str, Any]:
        """As torch's: ``{"state": {index: {name: value}}, "param_groups": [...]}``, with every bit of the reversible state.

        All values are tensors and integers, so it goes through ``torch.save``, ``torch.load(weights_only=True)`` and
        ``torch.distributed.checkpoint``, flattened or not. Integers are shared with the optimizer, not copied, as in torch; what
        undoes the steps is one copy. A digest of everything goes along: about a second per gigabyte. ``optimizer.state`` itself
        holds only the names.

        A distributed checkpoint is loaded in place, into tensors of the saved sizes, which grow with the steps. A new optimizer
        gets them from the checkpoint::

            saved = FileSystemReader(path).read_metadata().state_dict_metadata
            state = {k: torch.empty(m.size, dtype=m.properties.dtype) if hasattr(m, "size") else None for k, m in saved.items()}
            torch.distributed.checkpoint.load(state, checkpoint_id=path)

        Raises:
            RuntimeError: if a parameter was resized or replaced since the last step, see :meth:`mark_boundary`.
        """
        self.synchronize()
        resized = [part.state.names[i] for part in self._history.parts for i in part.watch.reshaped()]
        refuse(resized + replaced(self._history.parts, self.param_groups))
        names = self.state
        packed = saved.pack(self._history, self.param_groups, self.known)
        self.state = defaultdict(dict, packed)
        try:
            return super().state_dict()
        finally:
            self.state = names

    @uninterrupted
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state from :meth:`state_dict`. The model's weights are loaded separately, before or after; the
        next ``step`` or ``step_back`` checks that they are the ones of the state. A state whose steps were taken with another
        torch, processor, number of threads or setting of precision is a RuntimeWarning that names the first of them.

        Raises:
            ValueError: for a state of another optimizer, another format version, other parameters or ``state_bits``, or a damaged
                one. Nothing is changed then.
        """
        self._refuse_inside_closure("load_state_dict")
        self.synchronize()
        # The last hook, so that others see the state as it was saved; torch itself would turn the integers into floats.
        hook = self.register_load_state_dict_pre_hook(_take_over)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        own = ("verify_every", "rule", "_history")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy or an unpickled optimizer holds its own parameters, at other addresses.
        for part in self._history.parts:
            part.watch.accept()
        self._check_weights = True
        self._undoing = False
        self._queue = Queue()
        self._list_names()

    def _list_names(self) -> None:
        """``state`` is never empty: torch's distributed checkpoints would take a step to fill it, and they load by its names."""
        self.state = defaultdict(
            dict, {p: dict.fromkeys(saved.names(self.rule)) for group in self.param_groups for p in group["params"]}
        )

    def _refuse_inside_closure(self, method: str) -> None:
        if self._undoing:
            raise RuntimeError(
                f"{method}() was called inside the closure of step_back(), while the state is half undone. The closure may only "
                f"clear the gradients, compute the loss and call backward(); call {method}() before or after step_back()"
            )

    def _refuse_capture(self, method: str) -> None:
        if any(part.state.x.is_cuda for part in self._history.parts) and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{method}() was called while a CUDA graph is captured, but each step has its own numbers. Capture the loss "
                f"and its backward, and call {method}() after each replay"
            )


def _take_over(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, StatefulOptimizer)
    groups = optimizer.param_groups
    saved.by_position(state_dict, groups)  # one of such an optimizer, before its groups are looked at
    for ours, theirs in zip(groups, state_dict["param_groups"], strict=True):
        optimizer.settings_of({**ours, **theirs})
    optimizer._history = saved.unpack(state_dict, optimizer.rule, optimizer.state_bits, groups, optimizer.known)
    return {"state": {}, "param_groups": state_dict["param_groups"]}
