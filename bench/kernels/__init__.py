"""The kernels under pytest-benchmark, and their comparison with the committed results: python -m bench.kernels."""
