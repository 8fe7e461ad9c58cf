"""The process-wide settings and random numbers that a gradient's bits depend on."""

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from reversible_hypergrad.replay.cuda import CudaSettings, explain_nondeterminism, prepare_cublas, refuse_cublas, restoring
from reversible_hypergrad.replay.forks import refuse_fork
from reversible_hypergrad.replay.turns import Turn

__all__ = ["Environment", "RandomStates", "mix", "seed_step"]

prepare_cublas()


@dataclass(frozen=True)
class Environment:
    """Settings as they were when a run began, to be put in force for its whole life, backward included.

    One thread and two give different bits in every model; flash attention has no second derivative; cuDNN's benchmark
    mode picks algorithms by the clock.
    """

    threads: int
    matmul_precision: str | None  # None where only the newer fp32_precision of each backend says it
    default_dtype: torch.dtype
    autocast: tuple[tuple[str, torch.dtype], ...]  # the device types for which it was on
    cuda_devices: tuple[torch.device, ...]
    cuda: CudaSettings | None  # None if the run has nothing on CUDA
    turn: Turn = field(default_factory=Turn)

    @staticmethod
    def current(devices: Iterable[torch.device] = ()) -> "Environment":
        """The settings now; ``devices`` are those whose random numbers the run may draw.

        Raises:
            RuntimeError: if another thread has put its own in force, and in a forked process.
        """
        refuse_fork(torch.get_num_threads())
        cuda = tuple(sorted({d for d in devices if d.type == "cuda"}, key=str))
        kinds = ["cpu", *(["cuda"] if cuda else [])]
        return Environment(
            threads=torch.get_num_threads(),
            matmul_precision=_matmul_precision(),
            default_dtype=torch.get_default_dtype(),
            autocast=tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)),
            cuda_devices=cuda,
            cuda=CudaSettings() if cuda else None,
        )

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Puts the settings in force, and everything back afterwards, random states of torch, NumPy and Python included.

        Raises:
            RuntimeError: if another thread has put its own in force, and in a process that was forked since the run began.
        """
        with ExitStack() as stack:
            stack.enter_context(self.turn.taken())
            stack.enter_context(_random_states_kept(self.cuda_devices))
            # Torch's own contexts leave it as it is inside if Ctrl-C comes at their very beginning or end.
            stack.enter_context(restoring(torch.is_grad_enabled, torch.set_grad_enabled, torch.is_grad_enabled()))
            stack.enter_context(restoring(torch.get_num_threads, torch.set_num_threads, self.threads))
            stack.enter_context(restoring(torch.get_default_dtype, torch.set_default_dtype, self.default_dtype))
            if None not in (self.matmul_precision, _matmul_precision()):
                stack.enter_context(restoring(_matmul_precision, torch.set_float32_matmul_precision, self.matmul_precision))
            stack.enter_context(_deterministic_algorithms(strict=self.cuda is not None))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.cuda is not None:
                refuse_cublas()
                stack.enter_context(self.cuda.pinned())
                stack.enter_context(explain_nondeterminism())
            on = dict(self.autocast)
            for kind in ("cpu", "cuda") if self.cuda_devices else ("cpu",):
                if kind in on or torch.is_autocast_enabled(kind):
                    # Its cache would keep casts of weights that a step has moved since.
                    dtype = on.get(kind, torch.get_autocast_dtype(kind))
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=kind in on, cache_enabled=False))
            yield


def seed_step(seed: int, step: int, cuda_devices: Iterable[torch.device] = (), part: int = 0) -> None:
    """Seeds torch's, NumPy's and Python's generators by (seed, step), and by ``part`` if it is not the first. About 20 us."""
    word = mix(mix(seed) ^ step)
    if part:
        word = mix(word ^ part)
    torch.default_generator.manual_seed(word)
    np.random.seed(word & 0xFFFFFFFF)  # noqa: NPY002  (a user's loss may draw from the global generator)
    random.seed(word)
    for device in cuda_devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(word)


def mix(x: int) -> int:
    """The finalizer of SplitMix64: neighbours become unrelated 64-bit words."""
    x = (x + 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to sum up settings of single backends
        return None


class RandomStates:
    """Of the global generators of Python, NumPy and torch, those of some GPUs included, as they are when this is made."""

    def __init__(self, cuda_devices: Iterable[torch.device] = ()) -> None:
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in cuda_devices]

    def put_back(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def _random_states_kept(cuda_devices: tuple[torch.device, ...]) -> Iterator[None]:
    states = RandomStates(cuda_devices)
    try:
        yield
    finally:
        states.put_back()


@contextmanager
def _deterministic_algorithms(strict: bool) -> Iterator[None]:
    """Where torch has a deterministic algorithm, take it. Where it has none, it raises if ``strict`` (on CUDA, where results do
    vary), else it warns and the hashes will tell; a user who has chosen one or the other keeps it."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=warn_only if enabled else not strict)
    if not enabled:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
