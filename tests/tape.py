"""What CUDA graphs do, on the CPU: a capture records operations and the memory they use; a replay runs them there again.

Like a graph it runs no Python, executes nothing while it captures, freezes numbers and the places of tensors, and leaves tensors
that autograd has saved to be written again.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.graphs import cannot_be_captured

# The host would wait for a number, or a size.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
# In place, but of sizes and strides alone.
VIEWS = {"transpose_", "t_", "squeeze_", "unsqueeze_", "as_strided_"}


class TapeGraphs:
    """In place of CudaGraphs. Counts what it is asked for."""

    def __init__(self, device):
        self.device = device
        self.eager = self.captures = self.replays = self.closes = 0
        self.is_open = False

    def eagerly(self, function):
        self.eager += 1
        return function()

    def capture(self, function):
        tape = Tape()
        states = torch.get_rng_state()
        try:
            with tape:
                result = function()
        except RuntimeError as error:
            raise RuntimeError(cannot_be_captured(error)) from error
        finally:
            tape.undo()
            torch.set_rng_state(states)
        self.captures += 1
        self.is_open = True

        def replay():
            self.replays += 1
            tape.replay()

        return result, replay

    def close(self):
        self.closes += self.is_open
        self.is_open = False


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._operations = []
        self._written = []  # tensors that an operation wrote in place, and what they held before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        indices = args[1] if name == "index" else []
        if name in WAITING or any(i is not None and i.dtype == torch.bool for i in indices):
            raise RuntimeError("operation not permitted when stream is capturing")
        if name in VIEWS:
            return function(*args, **kwargs)
        for tensor in written(function, args, kwargs):
            self._written.append((tensor.detach(), tensor.clone()))
        # As they are now: an operation in VIEWS may give them other sizes later.
        places = pytree.map_tensors(torch.Tensor.detach, (args, kwargs))
        results = function(*args, **kwargs)
        # Some operations make less where no gradient is wanted.
        self._operations.append((torch.is_grad_enabled(), function, *places, [place(t) for t in fresh(function, results)]))
        return results

    def undo(self):
        """A capture executes nothing: what it made holds nothing, and what there was is as it was."""
        with torch.no_grad():
            for *_, results in self._operations:
                for result in results:
                    if result is not None and result.is_floating_point():
                        result.data.fill_(float("nan"))
            for tensor, before in reversed(self._written):
                tensor.data.copy_(before)

    def replay(self):
        for with_gradients, function, args, kwargs, results in self._operations:
            if not results and not function._schema.is_mutable:
                continue  # a view: it is where it was
            with torch.set_grad_enabled(with_gradients):
                again = fresh(function, function(*args, **kwargs))
                for result, other in zip(results, again, strict=True):
                    if result is not None:
                        result.data.copy_(other)


def place(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


def written(function, args, kwargs):
    """What an operation writes in place. Batch norm does not say so of its running statistics."""
    given = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    for argument in function._schema.arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes or argument.name in ("running_mean", "running_var"):
            yield from (t for t in pytree.leaves(given.get(argument.name)) if isinstance(t, torch.Tensor))


def fresh(function, results):
    """The results in memory of their own, in a list; empty for a view, or an operation in place."""
    returns = function._schema.returns
    if any(r.alias_info is not None for r in returns):
        return []
    leaves = pytree.leaves(results)
    return [t if isinstance(t, torch.Tensor) and not t._is_zerotensor() else None for t in leaves]
