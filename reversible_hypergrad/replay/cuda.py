"""What the bits of a gradient on CUDA depend on, beside the seeds."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

__all__ = ["CudaSettings", "explain_nondeterminism", "prepare_cublas", "refuse_cublas", "restoring"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC = (":4096:8", ":16:8")


class CudaSettings:
    """As they were when a run began: whether products may take TF32 or sum up in 16 bits. They change a gradient's bits, not
    whether it comes out the same twice, so they stay the user's; what picks algorithms by the clock is off."""

    def __init__(self) -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        # Not allow_tf32: it cannot be read where the user has set fp32_precision, while this follows either.
        places: list[tuple[Any, str]] = [(place, "fp32_precision") for place in (matmul, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]
        places.append((cudnn, "enabled"))
        places += [(matmul, f"allow_{kind}_reduced_precision_reduction") for kind in ("fp16", "bf16")]
        places.append((matmul, "allow_fp16_accumulation"))
        self._as_given = [(place, name, getattr(place, name)) for place, name in places]

    @contextmanager
    def pinned(self) -> Iterator[None]:
        cudnn = torch.backends.cudnn
        with ExitStack() as stack:
            for place, name, value in [*self._as_given, (cudnn, "benchmark", False), (cudnn, "deterministic", True)]:
                stack.enter_context(restoring(partial(getattr, place, name), partial(setattr, place, name), value))
            yield


@contextmanager
def restoring(read: Any, write: Any, value: Any) -> Iterator[None]:
    """``value`` inside, what was there before afterwards."""
    before = read()
    if before != value:
        write(value)
    try:
        yield
    finally:
        if read() != before:
            write(before)


def prepare_cublas() -> None:
    """Gives cuBLAS the workspace with which its results do not vary, unless the user has chosen one.

    Torch reads the variable when cuBLAS is first used in the process, so this is called when the library is imported.
    """
    if torch.version.cuda is not None:
        os.environ.setdefault(_CUBLAS, _DETERMINISTIC[0])


def refuse_cublas() -> None:
    """Raises RuntimeError if the user has chosen a workspace with which results vary."""
    chosen = os.environ.get(_CUBLAS)
    if chosen not in _DETERMINISTIC:
        raise RuntimeError(
            f"{_CUBLAS}: a run on CUDA expected {' or '.join(_DETERMINISTIC)} in the environment, got {chosen!r}, with which "
            "matrix products may come out differently the second time. Set it before the program starts, or unset it before "
            "reversible_hypergrad is imported"
        )


@contextmanager
def explain_nondeterminism() -> Iterator[None]:
    """Says of torch's complaint about an operation what it means for a run, and what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if _CUBLAS in text and "reversible_hypergrad" not in text:
            raise RuntimeError(
                f"a run on CUDA needs {_CUBLAS}={_DETERMINISTIC[0]}, but matrix products were computed on the GPU before it was "
                f"set. Import reversible_hypergrad before the first one, or set it before the program starts. Torch says: {text}"
            ) from error
        if "does not have a deterministic implementation" in text:
            raise RuntimeError(
                "the loss or the model uses an operation that has no deterministic form on CUDA, so a gradient would not come "
                "out with the same bits on the way back, and nothing could be undone. Use another operation, or call "
                "torch.use_deterministic_algorithms(True, warn_only=True) before rh.train to try: every state is compared, "
                f"and a difference raises ReversalError. Torch says: {text}"
            ) from error
        raise
