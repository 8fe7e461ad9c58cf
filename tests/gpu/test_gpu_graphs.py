"""train(cuda_graph=True) on a GPU: the same bits as without, and torch as it was after a capture that fails."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from gpu_machine import DEVICE, GPU, no_synchronisation  # noqa: F401
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST

pytestmark = GPU

STEPS = 30


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(17, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 5))


def convolution():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Tanh(),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 5),
    )  # fmt: skip


MODELS = {
    "MLP with dropout": (mlp, lambda n: torch.randn(n, 20)),
    "convolution and batch norm": (convolution, lambda n: torch.randn(n, 3, 6, 6)),
    "transformer": (Transformer, lambda n: torch.randint(17, (n, 9))),
}
ADJOINTS = {
    "reversible": rh.Reversible,
    "reversible 32": lambda: rh.Reversible(32),
    "segments": lambda: rh.Reversible(segments=3, buffer="host"),
    "checkpoint": rh.Checkpoint,
    "snapshots": rh.Snapshots,
    "Neumann": lambda: rh.Neumann(terms=5, lr=1e-3),
}


def full(step):
    return 16


def run(name, cuda_graph, adjoint=None, size=full, prepare=lambda model, x: (model, x), wrap=lambda loss: loss, backward=1):
    """Trained weights, buffers, and hypergradients of each backward."""
    build, data = MODELS[name]
    torch.manual_seed(0)
    model, x = build().to(DEVICE), data(200).to(DEVICE)
    model, x = prepare(model, x)
    y = torch.randint(5, (200,), device=DEVICE)
    log_lr = torch.full((STEPS,), -3.0, requires_grad=True)  # on the CPU: it does not enter the loss
    log_l2 = torch.tensor(-6.0, device=DEVICE, requires_grad=True)

    def batch(step):
        index = (torch.arange(size(step), device=DEVICE) + 7 * step) % 200
        return x[index], y[index]

    def loss(model, batch, log_l2):
        penalty = log_l2.exp() * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(batch[0]).float(), batch[1]) + penalty

    trained = rh.train(
        model,
        wrap(loss),
        batch,
        steps=STEPS,
        optimizer=rh.SGD(lr=log_lr.exp(), momentum=0.9),
        hyperparameters=log_l2,
        adjoint=adjoint,
        cuda_graph=cuda_graph,
    )
    results = [*(w.detach().clone() for w in trained.values()), *trained.buffers.values()]
    value = sum(w.square().sum() for w in trained.values())
    for i in range(backward):
        results += torch.autograd.grad(value, [log_lr, log_l2, *model.parameters()], retain_graph=i < backward - 1)
    return results


def compare(name, **settings):
    expected, mine = run(name, False, **settings), run(name, True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits(name, adjoint):
    compare(name, adjoint=ADJOINTS[adjoint]())


@pytest.mark.parametrize("name", MODELS)
def test_ragged_batches(name):
    compare(name, size=lambda step: 7 if step % 10 == 9 else 16)
    compare(name, size=lambda step: 7 if step == STEPS - 1 else 16)


def test_second_backward():
    compare("convolution and batch norm", backward=3)
    compare("MLP with dropout", backward=2, adjoint=rh.Checkpoint())


def test_channels_last():
    to = {"memory_format": torch.channels_last}
    compare("convolution and batch norm", prepare=lambda model, x: (model.to(**to), x.to(**to)))


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside):
    def wrap(loss):
        def casting(*arguments):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return loss(*arguments)

        return casting if inside else loss

    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not inside):
        compare("MLP with dropout", wrap=wrap)


def test_on_a_stream_of_the_caller():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        compare("MLP with dropout")
        assert torch.cuda.current_stream() == stream


def test_with_a_loader_that_pins_memory_in_a_thread():
    data = torch.utils.data.TensorDataset(torch.randn(300, 20), torch.randint(5, (300,)))

    def go(cuda_graph):
        torch.manual_seed(0)
        model = mlp().to(DEVICE)
        loader = rh.ReplayableLoader(data, 16, prefetch=4, pin_memory=True)

        def batch(step):
            return [t.to(DEVICE, non_blocking=True) for t in loader(step)]

        def loss(model, batch, _):
            return F.cross_entropy(model(batch[0]), batch[1])

        trained = rh.train(model, loss, batch, steps=3 * len(loader), optimizer=rh.SGD(lr=0.1), cuda_graph=cuda_graph)
        sum(w.square().sum() for w in trained.values()).backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(go(True), go(False), strict=True))


def test_replays_do_not_wait(no_synchronisation):  # noqa: F811
    """Neither forwards nor backwards, once all is captured and compared, and the first steps have been looked at."""
    torch.manual_seed(0)
    model = mlp().to(DEVICE)
    x, y = torch.randn(STEPS, 16, 20, device=DEVICE), torch.randint(5, (STEPS, 16), device=DEVICE)

    def batch(step):
        torch.cuda.set_sync_debug_mode("error" if LOOK_AT_FIRST <= step < STEPS - 5 else "default")
        return x[step], y[step]

    def loss(model, batch, _):
        return F.cross_entropy(model(batch[0]), batch[1])

    trained = rh.train(model, loss, batch, steps=STEPS, optimizer=rh.SGD(lr=0.1), cuda_graph=True)
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored


def test_memory_is_let_go():
    def held():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    for _ in range(2):
        run("transformer", True)
    before = held()
    for _ in range(3):
        run("transformer", True)
    assert held() <= before + 2**21


WAITING = {
    "item": lambda loss: loss + 0 * loss.detach().item(),
    "branch": lambda loss: loss if loss > 0 else -loss,
    "copy": lambda loss: loss * torch.tensor(1.0, device=DEVICE),
}


@pytest.mark.parametrize("adjoint", ["reversible", "checkpoint"])
@pytest.mark.parametrize("name", WAITING)
def test_a_loss_that_waits(name, adjoint):
    stream, device = torch.cuda.current_stream(), torch.cuda.current_device()
    with pytest.raises(
        RuntimeError, match=r"cuda_graph: the loss or the model does something that a CUDA graph cannot hold.*item"
    ):
        run("MLP with dropout", True, ADJOINTS[adjoint](), wrap=lambda loss: lambda *given: WAITING[name](loss(*given)))
    assert (torch.cuda.current_stream(), torch.cuda.current_device()) == (stream, device)
    # Everything works as before: random numbers, memory, another capture.
    assert 0 < int(F.dropout(torch.ones(10_000, device=DEVICE), 0.5).count_nonzero()) < 10_000
    torch.ones(1 << 20, device=DEVICE)
    torch.cuda.synchronize()
    compare("MLP with dropout", adjoint=ADJOINTS[adjoint]())


@pytest.mark.parametrize("frozen", ["host random numbers", "a step number", "a batch on the CPU", "a hyperparameter on the CPU"])
def test_what_is_refused(frozen):
    model = mlp().to(DEVICE)
    x, scale = torch.randn(STEPS, 16, 20), torch.ones((), requires_grad=True)

    def batch(step):
        return {"a step number": step, "a batch on the CPU": x[step]}.get(frozen)

    def loss(model, batch, scale):
        factor = torch.rand(()).item() if frozen == "host random numbers" else 1.0
        return factor * sum(p.square().sum() for p in model.parameters())

    errors = {
        "host random numbers": (RuntimeError, "at step 2 the captured graph gave another loss"),
        "a step number": (ValueError, "batches: step 1: .*got batch = 1, where it was 0"),
        "a batch on the CPU": (ValueError, "batches: step 0: .*got batch on cpu"),
        "a hyperparameter on the CPU": (ValueError, "hyperparameters: with cuda_graph=True expected .*got it on cpu"),
    }
    error, message = errors[frozen]
    hyperparameters = scale if frozen == "a hyperparameter on the CPU" else None
    with pytest.raises(error, match=message):
        rh.train(model, loss, batch, steps=STEPS, optimizer=rh.SGD(lr=0.1), hyperparameters=hyperparameters, cuda_graph=True)
