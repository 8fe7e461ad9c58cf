"""The error that is this library's own; everything else raises Python's and torch's usual ones."""

__all__ = ["ReversalError"]


class ReversalError(RuntimeError):
    """A step could not be undone to the very bits it started from, or may not be undone at all.

    Raised instead of returning a state (or a hypergradient) of a trajectory that was not restored. Unless the message
    says otherwise, everything is as it was before the call.
    """
