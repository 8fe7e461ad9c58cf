"""How train() behaves as a node of autograd, and what it refuses."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem
from open_files import open_files
from torch import nn
from torch.func import functional_call

import reversible_hypergrad as rh

STEPS = 20


def setup(dtype=torch.float32, name="mlp"):
    model, x, y = problem(name, dtype)

    def loss(model, index, hyperparameters):
        scale = 1.0 if hyperparameters is None else hyperparameters.exp()
        return scale * F.cross_entropy(model(x[index]), y[index])

    def validation(trained):
        return F.cross_entropy(functional_call(model, trained, x), y)

    return model, loss, validation


def run(model, loss, **changed):
    arguments = {"steps": STEPS, "optimizer": rh.SGD(lr=0.1), **changed}
    return rh.train(model, loss, batch_indices, **arguments)


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("name", ["mlp", "LSTM", "transformer with dropout"])
def test_agrees_with_the_optimizer_bit_for_bit(name, state_bits):
    model, loss, _ = setup(name=name)
    settings = {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
    adjoint = rh.Reversible(state_bits=state_bits)
    trained = run(model, loss, optimizer=rh.SGD(**settings), adjoint=adjoint, seed=5)

    from reversible_hypergrad.replay.environment import Environment, seed_step

    optimizer = rh.ReversibleSGD(model.parameters(), state_bits=state_bits, **settings)
    with Environment.current().pinned():
        for step in range(STEPS):
            seed_step(5, step)
            value = loss(model, batch_indices(step), None)
            for p, g in zip(
                model.parameters(), torch.autograd.grad(value, list(model.parameters()), create_graph=True), strict=True
            ):
                p.grad = g.detach()
            optimizer.step()
    assert all(torch.equal(trained[n], p) for n, p in model.named_parameters())


def test_nothing_outside_is_modified():
    model, loss, validation = setup(name="convolution and batch norm")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    validation(run(model, loss)).backward()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    buffers = {n: t for n, t in before.items() if "running_mean" in n}
    with torch.no_grad():  # validation() ran the user's model in training mode
        for n, b in model.named_buffers():
            b.copy_(before[n])
    assert buffers
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_trained_buffers_and_report():
    model, loss, _ = setup(name="convolution and batch norm")
    trained = run(model, loss)
    assert int(trained.buffers["1.num_batches_tracked"]) == STEPS
    functional_call(model.eval(), (trained, trained.buffers), torch.randn(2, 2, 6, 6)).sum().backward()
    report = trained.report
    assert report.restored
    assert report.checks == STEPS
    assert report.trajectory_bytes == STEPS * 4 * report.weights
    assert report.limit_bits == pytest.approx(np.log2(10 / 9))


def test_second_backward_needs_retain_graph():
    model, loss, validation = setup()
    log_scale = torch.zeros((), requires_grad=True)
    trained = run(model, loss, hyperparameters=log_scale)
    value = validation(trained)
    value.backward(retain_graph=True)
    first = log_scale.grad.clone()
    value.backward(retain_graph=True)
    assert torch.equal(log_scale.grad, 2 * first)
    validation(trained).backward()
    assert torch.equal(log_scale.grad, 3 * first)
    with pytest.raises(RuntimeError, match="second time"):
        validation(trained).backward()


def test_second_backward_with_batch_norm_and_a_directory(tmp_path):
    model, loss, _ = setup(name="convolution and batch norm")
    trained = run(model, loss, adjoint=rh.Reversible(buffer=tmp_path))
    value = sum(w.square().sum() for w in trained.values())
    first = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(value, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_places_for_the_buffer_agree(tmp_path):
    results = []
    for place in ("device", "host", tmp_path):
        model, loss, validation = setup()
        validation(run(model, loss, adjoint=rh.Reversible(buffer=place))).backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_two_downstream_losses_and_partial_use():
    model, loss, _ = setup()
    trained = run(model, loss)
    only = next(iter(trained.values()))
    a, b = torch.autograd.grad(only.sum() + 2 * only.square().sum(), list(model.parameters())[:2])
    assert a.abs().sum() > 0
    assert b.abs().sum() > 0


def test_double_backward_is_refused():
    model, loss, validation = setup()
    with pytest.raises(RuntimeError, match="create_graph=True, but second derivatives through it are not supported"):
        validation(run(model, loss)).backward(create_graph=True)


def test_no_grad_gives_the_same_weights_without_a_graph():
    model, loss, _ = setup(name="LSTM")
    recorded = run(model, loss)
    with torch.no_grad():
        plain = run(model, loss)
    assert all(torch.equal(recorded[n], w) and not w.requires_grad for n, w in plain.items())


def test_zero_steps_return_the_initial_weights():
    model, loss, _ = setup()
    trained = run(model, loss, steps=0)
    sum(w.sum() for w in trained.values()).backward()
    assert all(torch.equal(trained[n], p) and bool((p.grad == 1).all()) for n, p in model.named_parameters())


def test_several_tasks_in_turn_and_a_run_inside_another_loop():
    model, loss, validation = setup()
    log_scale = torch.zeros((), requires_grad=True)
    runs = [run(model, loss, hyperparameters=log_scale, seed=s) for s in range(2)]
    sum(validation(t) for t in runs).backward()
    together = log_scale.grad.clone()
    log_scale.grad = None
    for s in range(2):
        validation(run(model, loss, hyperparameters=log_scale, seed=s)).backward()
    torch.testing.assert_close(log_scale.grad, together)

    outer = torch.optim.Adam([log_scale], lr=0.1)
    values = []
    for _ in range(3):
        outer.zero_grad()
        trained = run(model, loss, hyperparameters=log_scale)
        continued = run(model, loss, hyperparameters=log_scale, initial=dict(trained))  # a run that starts where one ended
        value = validation(continued)
        value.backward()
        outer.step()
        values.append(value.item())
    assert len(set(values)) == 3


def test_one_weight_as_hyperparameters_of_another_run():
    model, loss, validation = setup()
    trained = run(model, loss)

    def distance(other, index, target):
        return sum((p - target[n]).square().sum() for n, p in other.named_parameters())

    validation(run(model, distance, hyperparameters=trained)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, loss, validation = setup(dtype)
    validation(run(model, loss)).backward()
    assert all(p.grad.dtype == dtype and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_autocast_is_replayed_in_backward():
    model, loss, validation = setup()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = run(model, loss)
    validation(trained).backward()
    assert trained.report.restored


def test_an_autocast_in_the_loss_forgets_its_casts_inside_of_another_one():
    model, loss, validation = setup()

    def casting(model, index, hyperparameters):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(model, index, hyperparameters).float()

    expected = run(model, casting)
    with torch.autocast("cpu", enabled=False):
        trained = run(model, casting)
        validation(trained).backward()
    assert all(torch.equal(trained[n], w) for n, w in expected.items())


def test_progress_bars(capsys):
    model, loss, validation = setup()
    validation(run(model, loss, progress=True)).backward()
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "undoing" in shown


def test_memory_stays_what_the_report_says():
    model, loss, _ = setup()
    short, long = run(model, loss, steps=100).report, run(model, loss, steps=400).report
    assert long.state_bytes == short.state_bytes
    assert long.information_bits < 1.05 * long.limit_bits  # planes of tensors this small fill no byte


def test_old_weight_norm_is_copied():
    layer = nn.Linear(6, 3)
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.utils.weight_norm(layer))
    _, x, y = problem("mlp", torch.float32)

    def loss(model, i, _):
        return F.cross_entropy(model(x[i]), y[i])

    trained = rh.train(model, loss, batch_indices, steps=5, optimizer=rh.SGD(0.1), check_derivatives=False)  # torch's are wrong
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored


OUTSIDE = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer: expected rh.SGD"),
        ({"adjoint": 64}, TypeError, "adjoint: expected"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer"),
        ({"steps": -1}, ValueError, "steps: expected"),
        ({"steps": None}, ValueError, "steps: expected a number"),
        ({"initial": {"x": torch.zeros(1)}}, ValueError, "initial: 'x' is not a trained parameter"),
        ({"initial": {"0.bias": torch.zeros(1)}}, ValueError, r"initial\['0.bias'\]: expected shape \(8,\)"),
        ({"hyperparameters": nn.Linear(1, 1)}, TypeError, "hyperparameters: .*named_parameters"),
        ({"optimizer": rh.SGD(lr={"0.*": 0.1})}, ValueError, "lr: no key matches the parameter '2.weight'"),
        ({"optimizer": rh.SGD(lr={"0.*": 0.1, "*.bias": 0.2, "*": 1})}, ValueError, "'0.bias' is matched by"),
        ({"optimizer": rh.SGD(lr={"9.*": 0.1, "*": 0.2})}, ValueError, "the key '9.*' matches no trained parameter"),
        ({"optimizer": rh.SGD(lr=torch.ones(3))}, ValueError, r"lr: expected a tensor of shape \(\) or \(20,\)"),
        ({"optimizer": rh.SGD(lr=-0.1)}, ValueError, "lr: expected numbers >= 0"),
        ({"optimizer": rh.SGD(lr=0.1, momentum=0.0)}, ValueError, r"momentum: .*expected numbers in \(0, 1\], got 0.*Checkpoint"),
        ({"optimizer": rh.SGD(lr=0.1, nesterov=True)}, ValueError, "nesterov: .*cannot undo.*Checkpoint"),
        ({"optimizer": rh.SGD(lr=0.1, momentum=torch.ones(20) * 1.5)}, ValueError, "momentum: .*got 1.5"),
        (
            {"steps": 8, "optimizer": rh.SGD(lr={"0.bias": torch.ones(8), "*": 0.1})},
            ValueError,
            "one value per step or one per weight of '0.bias'",
        ),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    model, loss, _ = setup()
    with pytest.raises(error, match=message):
        run(model, loss, **changed)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda m, i, h: m(torch.ones(2, 6)), TypeError, "loss: expected it to return a scalar"),
        (lambda m, i, h: 1.0, TypeError, "loss: expected it to return a scalar tensor, got float"),
        (lambda m, i, h: m(torch.ones(2, 6)).mean().detach(), ValueError, "does not depend on the model's weights"),
        (lambda m, i, h: m(torch.ones(2, 6)).mean() * OUTSIDE, ValueError, "its gradient would be lost"),
    ],
)
def test_losses_that_cannot_be_right_are_refused(loss, error, message):
    with pytest.raises(error, match=message):
        run(setup()[0], loss)


def test_a_loss_that_uses_the_outer_model_is_refused():
    model, _, _ = setup()
    with pytest.raises(ValueError, match="Use the model that is the loss's first argument"):
        run(model, lambda m, i, h: m(torch.ones(2, 6)).mean() + model(torch.ones(2, 6)).mean())


@pytest.mark.parametrize("keyword", [{"lr": True}, {"lr": "0.1"}, {"lr": 0.1, "momentum": torch.tensor(1)}])
def test_settings_of_wrong_type(keyword):
    with pytest.raises(TypeError, match="expected a"):
        rh.SGD(**keyword)


@pytest.mark.parametrize(
    ("keyword", "error"),
    [
        ({"state_bits": 16}, ValueError),
        ({"verify_every": 0}, ValueError),
        ({"verify_every": 1.0}, TypeError),
        ({"segments": 0}, ValueError),
        ({"segments": "many"}, TypeError),
    ],
)
def test_adjoint_settings(keyword, error):
    with pytest.raises(error, match=next(iter(keyword))):
        rh.Reversible(**keyword)


def test_a_buffer_directory_must_exist(tmp_path):
    with pytest.raises(NotADirectoryError, match="missing"):
        rh.Reversible(buffer=tmp_path / "missing")


@pytest.mark.slow
def test_twenty_thousand_steps():
    model, loss, validation = setup(torch.float64)
    trained = run(model, loss, steps=20_000, optimizer=rh.SGD(lr=0.01))
    validation(trained).backward()
    report = trained.report
    assert report.restored
    assert report.log_bytes == 20_000 * 16
    # One bit per weight and halving; planes of tensors this small fill no byte.
    assert 0.99 * report.limit_bits < report.information_bits < 1.05 * report.limit_bits
