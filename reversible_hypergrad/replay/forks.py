"""Processes that were forked, and have none of their parent's threads."""

import os

__all__ = ["refuse_fork"]

_process = os.getpid()  # that has loaded the library


def refuse_fork(threads: int) -> None:
    """Raises RuntimeError in a forked process if a run there would wait for threads that only its parent has.

    Args:
        threads: of torch.
    """
    if threads > 1 and os.getpid() != _process:
        raise RuntimeError(
            f"a run was begun in a forked process, where torch counts on {threads} threads: those that its parent has started "
            "are not in a fork, and torch would wait for them for ever. Call torch.set_num_threads(1) there first, or start the "
            "process by torch.multiprocessing with the method 'spawn'"
        )
