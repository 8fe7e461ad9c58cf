"""Builds two extensions: `_C`, the dispatcher ops (torch's stable ABI, Python's limited API), and `_core`, the
torch-free core for NumPy (pybind11). Everything else is in pyproject.toml.

CUDA kernels are built in where nvcc is found (CUDA_HOME, PATH, /usr/local/cuda), whatever torch is installed: they need
no header of torch, and CUDA's runtime is linked in, so the library also loads where there is no CUDA. Variables:
RH_CUDA=0 leaves them out (a quicker build), RH_CUDA=1 makes a missing nvcc an error; TORCH_CUDA_ARCH_LIST as for torch.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

CSRC = Path("csrc")
HEADERS = sorted(str(p) for p in CSRC.rglob("*.h"))

# -ffp-contract=off is a correctness flag: every path must round alike. -fwrapv: sums that a later check refuses may wrap.
# The math flags only say that nobody reads errno or traps on exceptions; they change no result.
EXACT = [
    "-O3",
    "-std=c++17",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-math-errno",
    "-fno-trapping-math",
]
STRICT = [*EXACT, "-Wall", "-Wextra"]

# An optimizer is a header in csrc/rules.
RULES = [path.name for path in sorted((CSRC / "rules").glob("*.h")) if path.name != "rule.h"]

# kernels.cpp is compiled once per rule and instruction set. -Wno-psabi: registers are only passed to functions that are inlined.
# GCC 12 warns inside its own AVX-512 headers (bugs 105593, 106671).
INSTRUCTION_SETS = {"portable": []}
if platform.machine() == "x86_64":
    INSTRUCTION_SETS |= {
        "portable": ["-march=x86-64"],
        "avx2": ["-march=x86-64-v3", "-Wno-uninitialized"],
        "avx512": [
            "-march=x86-64-v4",
            "-mprefer-vector-width=512",
            "-Wno-uninitialized",
            "-Wno-maybe-uninitialized",
            "-Wno-array-bounds",
        ],
    }


def find_nvcc():
    """The path of nvcc, or None."""
    wanted = os.environ.get("RH_CUDA", "")
    if wanted == "0":
        return None
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(place) / "bin" / "nvcc" for place in places if place]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.insert(2 if os.environ.get("CUDA_PATH") else 1, Path(on_path))
    found = next((path for path in candidates if path.is_file()), None)
    if wanted == "1" and found is None:
        raise SystemExit("RH_CUDA=1, but no nvcc was found: install the CUDA toolkit, or set CUDA_HOME to where it is")
    return found


def architectures(nvcc):
    """nvcc's -gencode options: TORCH_CUDA_ARCH_LIST ("8.0 9.0a+PTX"), or the data-centre GPUs and PTX for later ones."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not asked:
        known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
        asked = [f"{name[3:-1]}.{name[-1]}" for name in ("sm_80", "sm_90", "sm_100") if name in known]
        asked[-1] += "+PTX"
    options = []
    for name in asked:
        number = name.removesuffix("+PTX").replace(".", "")
        if not number[:2].isdigit():
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected versions such as '8.0 9.0+PTX', got {name!r}")
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


# The counterpart of EXACT: no contraction, and no flag that would change rounding or flush subnormal numbers.
EXACT_CUDA = [
    "-O3",
    "-std=c++17",
    "--fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-O3,-g0,-ffp-contract=off,-Wall,-Wno-unknown-pragmas",
]
STATE_BITS = (64, 32)
NVCC = find_nvcc()


class BuildWithKernels(BuildExtension):
    """Compiles the kernels with flags of their own, then lets torch build the extensions and links them in."""

    def finalize_options(self):
        super().finalize_options()
        # An editable install would build in a folder that is thrown away; this one makes rebuilds short.
        self.build_temp = f"build/{sys.implementation.cache_tag}-torch{torch.__version__}"

    def build_extensions(self):
        ops = next(ext for ext in self.extensions if ext.name.endswith("._C"))
        tasks = [(self.compile_kernels, part) for part in product(RULES, INSTRUCTION_SETS)]
        if NVCC:
            # The longest first.
            tasks = [(self.compile_cuda, part) for part in product(RULES, ("kernels", "adjoint"), STATE_BITS)] + tasks
            ops.extra_objects += [str(self.cuda_runtime())]
            ops.extra_link_args += ["-ldl", "-lrt", "-lpthread"]
        print(f"CUDA kernels: {f'by {NVCC}' if NVCC else 'left out (no nvcc, or RH_CUDA=0)'}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ops.extra_objects[:0] = pool.map(lambda task: task[0](task[1]), tasks)
        super().build_extensions()

    def compile_kernels(self, part):
        rule, instruction_set = part
        flags = [
            *STRICT,
            "-Wno-psabi",
            *INSTRUCTION_SETS[instruction_set],
            f"-DRH_KERNELS={instruction_set}",
            f"-DRH_RULE_FILE={rule}",
        ]
        name = f"kernels_{Path(rule).stem}_{instruction_set}"
        return self.compile_if_new(CSRC / "cpu" / "kernels.cpp", name, [self.compiler.compiler_cxx[0], *flags])

    def compile_cuda(self, part):
        rule, name, bits = part
        flags = [*EXACT_CUDA, *architectures(NVCC), f"-DRH_STATE_BITS={bits}", f"-DRH_RULE_FILE={rule}"]
        source = CSRC / "cuda" / f"{name}.cu"
        return self.compile_if_new(source, f"cuda_{name}_{Path(rule).stem}_{bits}", [str(NVCC), *flags])

    def compile_if_new(self, source, name, command):
        """Compiles if the object is older than any source, or was made by another command."""
        # self.force says nothing here: torch sets it whenever ninja does the checking.
        target = Path(self.build_temp) / f"{name}.o"
        made_by = target.with_suffix(".command")
        headers = [*(CSRC / "core").glob("*.h"), *(CSRC / "rules").glob("*.h"), *source.parent.glob("*.h")]
        newest = max(os.path.getmtime(path) for path in [source, *headers])
        same = made_by.exists() and made_by.read_text() == " ".join(command)
        if not same or not target.exists() or target.stat().st_mtime < newest:
            target.parent.mkdir(parents=True, exist_ok=True)
            made_by.unlink(missing_ok=True)
            self.spawn([*command, "-c", str(source), "-o", str(target)])
            made_by.write_text(" ".join(command))
        return str(target)

    @staticmethod
    def cuda_runtime():
        """CUDA's runtime as a static library: a shared one would have to be on every machine that imports us."""
        home = NVCC.resolve().parent.parent
        for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib", "targets/sbsa-linux/lib"):
            library = home / folder / "libcudart_static.a"
            if library.exists():
                return library
        raise SystemExit(f"libcudart_static.a was not found under {home}. Install CUDA's static runtime, or build with RH_CUDA=0")


setup(
    ext_modules=[
        CppExtension(
            "reversible_hypergrad._C",
            [
                "csrc/torch/ops.cpp",
                "csrc/torch/arguments.cpp",
                "csrc/torch/arguments_adjoint.cpp",
                "csrc/torch/cpu.cpp",
                "csrc/cpu/available.cpp",
                *(["csrc/torch/cuda.cpp", "csrc/cuda/available.cpp"] if NVCC else ["csrc/torch/no_cuda.cpp"]),
            ],
            depends=HEADERS,
            # The oldest torch whose stable ABI has all that ops.cpp uses: 2.10.
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=EXACT,
            # The current CUDA stream is in a library that only libtorch leads to, and nothing else here needs that one.
            extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
            py_limited_api=True,
        ),
        Extension(
            "reversible_hypergrad._core",
            ["csrc/numpy/module.cpp", "csrc/numpy/scales.cpp"],
            depends=HEADERS,
            include_dirs=[pybind11.get_include()],
            extra_compile_args=STRICT,
            language="c++",
        ),
    ],
    cmdclass={"build_ext": BuildWithKernels},
    options={"bdist_wheel": {"py_limited_api": False}},
)
