"""What the bits of a gradient depend on beside the program; where two runs differ, it is the first suspect."""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

__all__ = ["Fingerprint"]

# Read by libraries when they are loaded or first used: they choose kernels.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")

_MANY = 20  # words


class Fingerprint(Mapping[str, str]):
    """Names and values of what a gradient's last bits depend on: versions, processor, threads, settings, GPU. Cannot be changed.

    >>> from reversible_hypergrad.replay.fingerprint import Fingerprint
    >>> here = Fingerprint.current()
    >>> here["torch"] == torch.__version__, here.difference(here)
    (True, None)
    >>> Fingerprint({**here, "threads": "2"}).difference({**here, "threads": "1"})
    'threads=2, now 1'
    """

    def __init__(self, factors: Mapping[str, str]) -> None:
        self._factors = dict(factors)

    @staticmethod
    def current(devices: Iterable[torch.device] = ()) -> "Fingerprint":
        """Of this process, now.

        Args:
            devices: where the gradient is computed; of others nothing is said.

        Cost: 20 us, some ms the first time.
        """
        factors = {**_versions(), **_processor(), **_settings()}
        gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
        return Fingerprint({**factors, **(_cuda(gpus) if gpus and torch.cuda.is_available() else {})})

    def difference(self, now: Mapping[str, str]) -> str | None:
        """The first factor that is another one ``now``, as text; None if there is none."""
        for name in dict.fromkeys((*self, *now)):
            before, after = self.get(name, "unknown"), now.get(name, "unknown")
            if before != after:
                here, there = before.split(), after.split()
                if len(here) > _MANY:  # a list, of which the rest does not matter
                    before = " ".join(word for word in here if word not in there) or "none of these"
                    after = " ".join(word for word in there if word not in here) or "none of these"
                return f"{name}={before}, now {after}"
        return None

    def __getitem__(self, name: str) -> str:
        return self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    def __repr__(self) -> str:
        return f"Fingerprint({self._factors})"


@functools.cache
def _versions() -> dict[str, str]:
    built = torch.__config__.show()
    found = {
        "BLAS": r"BLAS_INFO=(\w+)",
        "MKL": r"Math Kernel Library Version (\S+)",
        "oneDNN": r"MKL-DNN (v\S+)",
    }
    libraries = {name: match[1] for name, pattern in found.items() if (match := re.search(pattern, built))}
    return {"reversible_hypergrad": version("reversible_hypergrad"), "torch": str(torch.__version__), **libraries}


@functools.cache
def _processor() -> dict[str, str]:
    known: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    features = [name for name, has in sorted(known.items()) if has is True]
    return {
        "processor": f"{known.get('cpu_name', 'unknown')}, {known.get('architecture', 'unknown')}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "features": " ".join(features),
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _settings() -> dict[str, str]:
    mkldnn: Any = torch.backends.mkldnn
    precision = ", ".join(f"{name} {getattr(mkldnn, name).fp32_precision}" for name in ("matmul", "conv", "rnn"))
    tiny = torch.full((), 1e-310, dtype=torch.float64)
    return {
        "threads": str(torch.get_num_threads()),
        "default dtype": str(torch.get_default_dtype()),
        "mkldnn": f"{'on' if torch.backends.mkldnn.enabled else 'off'}, float32 products: {precision}",
        "autocast": str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "off",
        "deterministic algorithms": "on" if torch.are_deterministic_algorithms_enabled() else "off",
        "numbers below 2^-1022": "kept" if float(tiny * 1) else "flushed to zero",
    }


def _cuda(devices: Iterable[torch.device]) -> dict[str, str]:
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    precision = ((cuda.matmul, "matmul"), (cudnn.conv, "conv"), (cudnn.rnn, "rnn"))
    kinds = [f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}" for device in devices]
    return {
        "GPU": ", ".join(kinds),
        "driver": str(getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")()),
        "CUDA": str(torch.version.cuda),
        "cuDNN": f"{cudnn.version()} {'on' if cudnn.enabled else 'off'}",
        "float32 products on CUDA": ", ".join(f"{name} {place.fp32_precision}" for place, name in precision),
        "autocast on CUDA": str(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else "off",
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set"),
    }
