# `make test` on a fresh machine needs Python >= 3.10 with venv, a C++17 compiler and make; everything else is installed
# into .venv. TORCH may name another version or build, e.g. `make test TORCH=torch==2.11.0`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: build demo test test-gpu test-gpu-sanitize gpu test-slow bench bench-gpu bench-race bench-tradeoff bench-kernels cuda-resources docs lint format clean

build: .venv/built

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

# --no-build-isolation: an isolated build would fetch a torch of its own. Objects stay in build/, so rebuilds are short.
.venv/built: .venv/installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# DEMO passes options on, e.g. `make demo DEMO="--data mnist --steps 200"`.
demo: build
	$(BIN)/python -m reversible_hypergrad tune $(DEMO)

test: build
	$(BIN)/python -m pytest --numprocesses 2

# RH_TEXT=FILE names a text that the long runs of a transformer learn, in place of made-up sentences; RH_DATA=DIR a folder with
# mnist/, cifar10/, omniglot/ and text/, without which the tests of the real files are skipped.
test-slow: build
	$(BIN)/python -m pytest --numprocesses 2 -m slow

# Without a GPU these tests skip and say so; `make test` runs them, too, where there is one.
test-gpu: build
	$(BIN)/python -m pytest tests/gpu

# The library's kernels under compute-sanitizer, for 150 s at most. SANITIZE passes options on, e.g. SANITIZE="--tools synccheck".
test-gpu-sanitize: build
	$(BIN)/python -m bench.gpu.sanitize $(SANITIZE)

# Build, GPU tests, sanitizer and bench in one go, under ten minutes, in an environment of your own and without network: no .venv, and
# nothing else is installed. For example: make gpu PYTHON=python3 OUT=results GPU="--data DIR".
OUT ?= build/gpu
gpu:
	$(PYTHON) -m bench.gpu.all --out $(OUT) $(GPU)

bench: build
	$(BIN)/python -m bench.optimizer_step

# Under 8 minutes on a GPU, to bench/results/<gpu>.md. BENCH_GPU passes options on, e.g. BENCH_GPU="--data DIR".
bench-gpu: build
	$(BIN)/python -m bench.gpu $(BENCH_GPU)

# Registers, spills and access widths of the CUDA kernels; needs nvcc, no GPU.
cuda-resources: build
	$(BIN)/python -m bench.cuda_resources

bench-race: build
	$(BIN)/python -m bench.race --csv bench/results/race.csv

# An hour or two, and goes on where it was stopped. TRADEOFF passes options on, e.g. TRADEOFF="--model cnn --csv cnn.csv".
bench-tradeoff: build
	$(BIN)/python -m bench.tradeoff $(TRADEOFF)

# KERNELS="--update" commits this run's medians to bench/results/kernels.json.
bench-kernels: build
	$(BIN)/python -m bench.kernels $(KERNELS)

# Pages in Markdown and the docstrings, to docs/_build/html. Strict: a broken link or reference fails.
docs: build .venv/docs-installed
	$(BIN)/python -m sphinx -q -E -W --keep-going -d docs/_build/doctrees -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

format: build
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

clean:
	rm -rf .venv build docs/_build *.egg-info reversible_hypergrad/*.so
