"""What the optimizer keeps, in bytes and in bits per weight and step."""

from reversible_hypergrad.optim.history import History
from reversible_hypergrad.optim.parts import NumbersOf

__all__ = ["measure"]


def measure(history: History, numbers_of: NumbersOf) -> dict[str, float]:
    """The keys are described at :meth:`ReversibleSGD.memory`."""
    states = [part.state for part in history.parts]
    logs = [part.log for part in history.parts]
    planes = sum(log.information_bytes for log in logs)
    weight_steps = sum(int(part.moved.sum()) for part in history.parts)
    limit = sum(part.limit_bits(history.lately, numbers_of) for part in history.parts)
    trajectory = sum(int((part.moved * [weight.itemsize for weight in part.state.weights]).sum()) for part in history.parts)
    per = 1.0 / weight_steps if weight_steps else 0.0
    return {
        "state_bytes": sum(state.nbytes for state in states),
        "initial_bytes": sum(i.nbytes for state in states for i in state.initial if i is not None),
        "information_bytes": planes,
        "record_bytes": sum(log.record_bytes for log in logs) + sum(runs.nbytes for runs in history.settings),
        "hash_bytes": sum(log.hashes.nbytes for log in logs),
        "trajectory_bytes": trajectory,
        "information_bits_per_weight_step": 8 * planes * per,
        "limit_bits_per_weight_step": limit * per,
    }
