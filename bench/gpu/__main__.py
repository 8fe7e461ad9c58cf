"""Everything that is measured on a GPU, in under 8 minutes: `make bench-gpu`, with options in BENCH_GPU="--data DIR".

    python -m bench.gpu [--data DIR] [--output FILE] [--seconds N] [--device cpu --tiny]

Writes bench/results/<gpu>.md. DIR holds cifar10/*.npz (uint8 x_train (n, 32, 32, 3) and y_train) and text/*.txt; what is
missing is made up, and the report says so. A part that fails, or runs past its time, is reported with its error; the others go
on, and the exit status is 1.
"""

import argparse
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Read once, when cuBLAS is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.exactness import language_model_undone, resnet_undone, same_bits
from bench.gpu.hypergradient import hypergradient
from bench.gpu.report import Part, Setup, run
from bench.gpu.small_models import small_models
from bench.gpu.steps import step_and_undo
from bench.timing import conditions
from reversible_hypergrad.core import cuda_in_build

# Seconds add up to less than 8 minutes.
PARTS = [
    Part("Step and undo", 70, step_and_undo),
    Part("The same bits on CPU and GPU", 20, same_bits),
    Part("1,000 steps of a ResNet, undone", 60, resnet_undone),
    Part("1,000 steps of a transformer, undone", 100, language_model_undone),
    Part("A small model, with and without cuda_graph", 30, small_models),
    Part("The hypergradient of a transformer", 190, hypergradient),
]
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar10/*.npz and text/*.txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: seconds, on a CPU too; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="the report; bench/results/<gpu>.md if not given")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all parts; what no longer fits is left out")
    options = parser.parse_args(arguments)
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data: expected a folder, got {options.data}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: no CUDA GPU, torch.cuda.is_available() is False. Give --device cpu --tiny to see that it runs")
    if options.device.startswith("cuda") and not cuda_in_build():
        parser.error("--device: this build has no CUDA kernels, since no nvcc was found. Build again where nvcc is on the PATH")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu: expected --tiny beside it; the models are a GPU's")

    setup = Setup(torch.device(options.device), options.tiny, options.data)
    name = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "cpu"
    target = options.output or RESULTS / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.md"
    with deterministic():
        failed = run(PARTS, setup, header(setup, name), target, options.seconds)
    print(f"{target}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


@contextmanager
def deterministic() -> Iterator[None]:
    """What rh.train does by itself, for what runs outside of it; and products in TF32."""
    switches = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    fill = switches.fill_uninitialized_memory  # would write what torch.empty() makes, and be timed
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    switches.fill_uninitialized_memory = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_float32_matmul_precision(before[1])
        switches.fill_uninitialized_memory = fill


def header(setup: Setup, name: str) -> list[str]:
    lines = [f"# {name}", "", "By `make bench-gpu`." + (" TOY SIZES: the figures mean nothing." if setup.tiny else ""), ""]
    lines.append(f"- {conditions()}; deterministic algorithms, float32 products in 'high' precision (TF32)")
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        lines.append(
            f"- {name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors, driver "
            f"{driver()}, CUDA {torch.version.cuda} of torch {torch.__version__}, Python {platform.python_version()}"
        )
    return lines


def driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__}: nvidia-smi did not say)"


if __name__ == "__main__":
    sys.exit(main())
