"""What a run on CUDA pins, looked at on the CPU: torch keeps these switches without a GPU, too."""

from __future__ import annotations

import os

import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad.replay import cuda as cuda_settings
from reversible_hypergrad.replay import environment
from reversible_hypergrad.replay.environment import Environment

NAME = "CUBLAS_WORKSPACE_CONFIG"
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_before():
    kept = [(p, n, getattr(p, n)) for p in (cudnn.conv, cudnn.rnn, matmul) for n in ("fp32_precision",)]
    kept += [(cudnn, name, getattr(cudnn, name)) for name in ("benchmark", "deterministic", "enabled")]
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation"):
        kept.append((matmul, name, getattr(matmul, name)))
    yield
    torch.use_deterministic_algorithms(False)
    for place, name, value in kept:
        setattr(place, name, value)


@pytest.fixture
def on_cuda(monkeypatch):
    """Environments are made as for weights on cuda:0; nothing asks the driver."""
    monkeypatch.setenv(NAME, ":4096:8")
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: None)
    return [torch.device("cuda", 0)]


def switches():
    return (
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.enabled,
        cudnn.conv.fp32_precision,
        matmul.fp32_precision,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )


def test_pinned_and_put_back(on_cuda):
    run = Environment.current(on_cuda)
    as_given = switches()[3:7]
    cudnn.benchmark = True
    cudnn.conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"
    matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_accumulation = False, True
    before = switches()
    with run.pinned():
        # What the user had when the run began, whatever it has become since; and what makes it come out the same twice.
        assert switches() == (False, True, True, *as_given, True, False, False, False)
    assert switches() == before
    with pytest.raises(KeyError), run.pinned():
        raise KeyError
    assert switches() == before


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("warn_only", [False, True])
def test_an_operation_without_deterministic_form_is_an_error_on_cuda(on_cuda, enabled, warn_only):
    """Unless the user has asked for a warning. On a CPU it is one."""
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    with Environment.current(on_cuda).pinned():
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (enabled and warn_only)
    with Environment.current().pinned():
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (not enabled or warn_only)


def test_either_interface_of_tf32_may_be_used(on_cuda):
    """Torch raises where the older one is asked about what the newer one has set."""
    matmul.fp32_precision = "tf32"
    run, on_cpu = Environment.current(on_cuda), Environment.current()
    matmul.fp32_precision = "ieee"
    with run.pinned():
        assert matmul.fp32_precision == "tf32"
    with on_cpu.pinned():
        pass
    assert matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("value", [None, ":0:0"])
def test_another_workspace_of_cublas_is_refused(on_cuda, monkeypatch, value):
    monkeypatch.delenv(NAME) if value is None else monkeypatch.setenv(NAME, value)
    run = Environment.current(on_cuda)
    before = switches()
    with (
        pytest.raises(RuntimeError, match=rf"{NAME}: .*expected :4096:8 or :16:8 .*got {value!r}.*before the program"),
        run.pinned(),
    ):
        pass
    assert switches() == before
    with Environment.current().pinned():
        pass


def test_the_workspace_is_set_at_import_unless_the_user_has(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    cuda_settings.prepare_cublas()
    assert NAME not in os.environ
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda_settings.prepare_cublas()
    assert os.environ[NAME] == ":4096:8"
    monkeypatch.setenv(NAME, ":16:8")
    cuda_settings.prepare_cublas()
    assert os.environ[NAME] == ":16:8"


# As torch words them, in ATen/Context.cpp.
NO_FORM = (
    "upsample_bilinear2d_backward_out_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
)
NO_WORKSPACE = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS and you "
    "have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable before running your "
    "PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NO_FORM, r"no deterministic form on CUDA.*Use another operation.*warn_only=True.*Torch says: upsample_bilinear2d"),
        (NO_WORKSPACE, r"computed on the GPU before it was set\. Import reversible_hypergrad before.*Torch says: Deterministic"),
        ("something else", "^something else$"),
    ],
)
def test_complaints_of_torch_are_explained(on_cuda, text, message):
    with pytest.raises(RuntimeError, match=message) as caught, Environment.current(on_cuda).pinned():
        raise RuntimeError(text)
    assert text == "something else" or str(caught.value.__cause__) == text


@pytest.mark.parametrize("back", [False, True])
def test_explained_from_within_a_run(on_cuda, monkeypatch, back):
    """Of a model on the CPU that is taken for one on CUDA."""
    monkeypatch.setattr(environment.Environment, "current", _as_on_cuda(on_cuda))
    calls = []

    def loss(model, batch, _):
        calls.append(batch)
        if len(calls) == (8 if back else 3):
            raise RuntimeError(NO_FORM)
        return model(torch.ones(2, 3)).square().mean()

    before = switches()

    def run():
        trained = rh.train(
            torch.nn.Linear(3, 1), loss, lambda step: step, steps=6, optimizer=rh.SGD(0.1), check_derivatives=False
        )
        trained["weight"].sum().backward()

    with pytest.raises(RuntimeError, match="no deterministic form on CUDA"):
        run()
    assert len(calls) == (8 if back else 3)
    assert switches() == before


def _as_on_cuda(devices):
    current = Environment.current
    return staticmethod(lambda _: current(devices))
