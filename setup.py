"""Builds two extensions: `_C`, the dispatcher ops (torch's stable ABI, Python's limited API), and `_core`, the
torch-free core for NumPy (pybind11). Everything else is in pyproject.toml."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

CSRC = Path("csrc")
HEADERS = sorted(str(p) for p in CSRC.rglob("*.h"))

# -ffp-contract=off is a correctness flag: every path must round alike. -fwrapv: sums that a later check refuses may wrap.
# The math flags only say that nobody reads errno or traps on exceptions; they change no result.
EXACT = ["-O3", "-std=c++17", "-g0", "-fPIC", "-ffp-contract=off", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]
STRICT = [*EXACT, "-Wall", "-Wextra"]

# kernels.cpp is compiled once per instruction set. GCC 12 warns inside its own AVX-512 headers (bug 105593).
INSTRUCTION_SETS = {"portable": []}
if platform.machine() == "x86_64":
    INSTRUCTION_SETS |= {
        "portable": ["-march=x86-64"],
        "avx2": ["-march=x86-64-v3", "-Wno-uninitialized"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    }


class BuildWithKernels(BuildExtension):
    """Compiles the kernels with flags of their own, then lets torch build the extensions and links them in."""

    def finalize_options(self):
        super().finalize_options()
        # An editable install would build in a folder that is thrown away; this one makes rebuilds short.
        self.build_temp = f"build/{sys.implementation.cache_tag}-torch{torch.__version__}"

    def build_extensions(self):
        ops = next(ext for ext in self.extensions if ext.name.endswith("._C"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ops.extra_objects += pool.map(self.compile_kernels, INSTRUCTION_SETS)
        super().build_extensions()

    def compile_kernels(self, name):
        source = CSRC / "cpu" / "kernels.cpp"
        target = Path(self.build_temp) / f"kernels_{name}.o"
        # self.force says nothing here: torch sets it whenever ninja does the checking.
        newest = max(os.path.getmtime(path) for path in [source, __file__, *HEADERS])
        if not target.exists() or target.stat().st_mtime < newest:
            target.parent.mkdir(parents=True, exist_ok=True)
            compiler = self.compiler.compiler_cxx[0]
            flags = [*STRICT, *INSTRUCTION_SETS[name], f"-DRH_KERNELS={name}"]
            self.spawn([compiler, *flags, "-c", str(source), "-o", str(target)])
        return str(target)


setup(
    ext_modules=[
        CppExtension(
            "reversible_hypergrad._C",
            ["csrc/ops.cpp", "csrc/cpu/available.cpp"],
            depends=HEADERS,
            # The oldest torch whose stable ABI has all that ops.cpp uses: 2.10.
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=EXACT,
            py_limited_api=True,
        ),
        Extension(
            "reversible_hypergrad._core",
            ["csrc/numpy_module.cpp"],
            depends=HEADERS,
            include_dirs=[pybind11.get_include()],
            extra_compile_args=[*STRICT, "-fvisibility=hidden"],
            language="c++",
        ),
    ],
    cmdclass={"build_ext": BuildWithKernels},
    options={"bdist_wheel": {"py_limited_api": False}},
)
