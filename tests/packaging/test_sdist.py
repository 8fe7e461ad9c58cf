"""The source distribution has all that a build needs, and a wheel builds from it without network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INPUTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "reversible_hypergrad", "tests")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
CHECK = "import reversible_hypergrad as rh; print(rh.__file__, rh.core.cuda_in_build(), *rh.core.instruction_sets())"


def run(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy: a build writes beside the sources, and adds what an earlier one found there."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for name in INPUTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, copy / name)
    name = run([sys.executable, "-c", BUILD, str(out)], copy, RH_CUDA="0").split()[-1]
    return out / name


def members(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}


def in_git(*paths: str) -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, so nothing says which files belong to the sources")
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", *paths], ROOT).split()
    return {name for name in listed if (ROOT / name).exists()}


def test_it_has_every_source_and_no_tests(sdist: Path) -> None:
    """Built where no nvcc is found, it still has the CUDA kernels."""
    found = members(sdist)
    sources = in_git("csrc", "reversible_hypergrad", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    assert any(name.endswith(".cu") for name in sources)
    assert sources <= found, f"missing: {sorted(sources - found)}"
    generated = {name for name in found - sources if name == "PKG-INFO" or name == "setup.cfg" or ".egg-info/" in name}
    assert found - sources == generated, f"not wanted: {sorted(found - sources - generated)}"


@pytest.mark.slow
@pytest.mark.parametrize("cuda", [False, True], ids=["without-nvcc", "with-nvcc"])
def test_a_wheel_builds_from_it(sdist: Path, cuda: bool, tmp_path: Path) -> None:
    if cuda and shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("needs nvcc")
    variables = {"RH_CUDA": str(int(cuda)), "TORCH_CUDA_ARCH_LIST": "8.0", "PIP_NO_INDEX": "1"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(sdist)], tmp_path, **variables)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {"reversible_hypergrad/py.typed", "reversible_hypergrad/_core.pyi"} <= set(names)
    assert not [name for name in names if name.startswith(("csrc", "tests"))]
    where, in_build, *kernels = run([sys.executable, "-c", CHECK], tmp_path, PYTHONPATH=str(tmp_path / "installed")).split()
    assert Path(where).is_relative_to(tmp_path)
    assert in_build == str(cuda)
    assert "portable" in kernels
