"""What a user meets who has CUDA tensors, but a build or a torch without CUDA."""

from __future__ import annotations

import pytest
import torch
from adjoint_problems import adjoint_sample
from core_problems import OPS, sample

import reversible_hypergrad as rh
from reversible_hypergrad import _ops


def test_the_cuda_key_has_an_implementation_of_every_move():
    """Called on CPU tensors, it says what is missing, and nothing moves."""
    reason = "expected a CUDA tensor" if rh.core.cuda_in_build() else "no CUDA kernels.*install the CUDA toolkit"
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name, arguments in {**sample(64), **adjoint_sample(64)}.items():
        tensors = [one for argument in arguments for one in (argument if isinstance(argument, list) else [argument])]
        tensors = [one for one in tensors if isinstance(one, torch.Tensor)]
        before = [t.clone() for t in tensors]
        with pytest.raises(RuntimeError, match=reason):
            getattr(OPS, name).default.redispatch(key, *arguments)
        for t, expected in zip(tensors, before, strict=True):
            assert torch.equal(t, expected)


def test_cuda_parameters_without_cuda_in_the_build(monkeypatch):
    monkeypatch.setattr(_ops, "cuda_in_build", lambda: False)
    with pytest.raises(ValueError, match=r"parameter 0: is on cuda:1, but this build .* no CUDA kernels.*CUDA_HOME"):
        _ops.refuse_device("parameter 0", torch.device("cuda", 1))
    _ops.refuse_device("parameter 0", torch.device("cpu"))


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="weight: expected a parameter on the CPU or on CUDA, got one on meta"):
        _ops.refuse_device("weight", torch.device("meta"))
