"""What a training run returns."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.problem.report import Report
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.training.node import Call, Filled, state_dtype

__all__ = ["TrainedWeights"]


class TrainedWeights(dict[str, Tensor]):
    """Parameter name -> trained tensor, attached to autograd as one node, as are ``readouts`` and ``state``.

    Attributes:
        buffers: name -> the buffers after training (BatchNorm's running statistics), detached.
        readouts: what :func:`train` was asked for as ``readouts``, by name.
        report: what the run took.

    ``torch.func.functional_call(model, trained, x)`` runs the trained model, and
    ``functional_call(model, (trained, trained.buffers), x)`` with the trained buffers, as evaluation needs.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        report: Report,
        readouts: Mapping[str, Any],
        call: Call,
        places: list[Tensor],
    ) -> None:
        super().__init__(weights)
        self.buffers = dict(buffers)
        self.readouts = dict(readouts)
        self.report = report
        self._call, self._places = call, places
        self._state: Start | None = None

    @property
    def state(self) -> Start:
        """Where the run ended, as a :class:`Start`. ``train(start=trained.state)`` continues it, with the very bits of a run that
        was never interrupted, if strategy and rule are the same. Gradients flow through it, by weights and states.

        It is made when it is first asked for, which must be before ``backward``: that goes back from there.

        Raises:
            RuntimeError: if it is first asked for after ``backward``.
        """
        if self._state is None:
            self._state = self._make_state()
        return self._state

    def standing_for(
        self, weights: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> "TrainedWeights":
        """A copy with other tensors of the same values; what is not given is detached, and so are readouts.

        Args:
            weights: in place of its own.
            states: in place of those of :attr:`state`.
        """
        other = copy.copy(self)
        other.update(weights)
        other.readouts = pytree.map_tensors(Tensor.detach, self.readouts)
        other._places = [place.detach() for place in self._places]
        if self._state is not None:
            own = pytree.map_tensors(Tensor.detach, dict(self._state.states)) if states is None else states
            other._state = replace(self._state, weights=dict(other), states=own)
        return other

    def _make_state(self) -> Start:
        call = self._call
        end = call.run.end()
        if end is None:
            raise RuntimeError(
                "trained.state: backward has gone back through the run, so its last state is gone. Ask for trained.state before "
                "backward"
            )
        names = list(self)
        states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for (i, state), place in zip(call.states, self._places, strict=True):
            weight = call.problem.weights[i]
            values = end.states[i][state].to(state_dtype(weight))
            filled = Filled.apply(place, values) if place.requires_grad else values  # type: ignore[no-untyped-call]
            states[names[i]][state] = filled
        return Start(dict(self), states, self.buffers, call.problem.steps.stop, end.exact, call.problem.gradient.memory())


# So that trained weights can stand wherever a dict of tensors can, such as in another run's hyperparameters.
pytree.register_dict(TrainedWeights, "reversible_hypergrad.training.TrainedWeights")
