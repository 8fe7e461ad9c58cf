"""What a gradient's bits depend on is in the report and in what is kept; what has changed since is named."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.replay.fingerprint import Fingerprint


def loss(model, x, _):
    return model(x).square().mean()


def train(model=None, data=None, loss=loss, **more):
    model = nn.Linear(6, 3) if model is None else model
    return rh.train(model, loss, torch.randn(8, 5, 6) if data is None else data, optimizer=rh.SGD(0.05), **more)


def test_the_report_says_where_it_ran(set_num_threads):
    set_num_threads(1)
    environment = train().report.environment
    assert environment["threads"] == "1"
    assert environment["torch"] == torch.__version__
    assert {"reversible_hypergrad", "BLAS", "processor", "instructions", "features", "default dtype", "mkldnn"} <= set(
        environment
    )
    assert environment["instructions"] == torch.backends.cpu.get_cpu_capability()
    set_num_threads(2)
    assert Fingerprint(environment).difference(train().report.environment) == "threads=1, now 2"
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(RuntimeWarning, match="it computes in torch.bfloat16"):
        assert train().report.environment["autocast"] == "torch.bfloat16"


def test_it_cannot_be_changed_and_can_be_copied():
    report = train().report
    with pytest.raises(TypeError, match="does not support item assignment"):
        report.environment["threads"] = "3"
    for other in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert other.environment == report.environment
    assert dataclasses.asdict(report)["environment"] == report.environment


def test_of_long_lists_only_what_differs_is_named():
    words = " ".join(f"f{i}" for i in range(30))
    assert Fingerprint({"features": words}).difference({"features": words + " amx"}) == "features=none of these, now amx"
    assert Fingerprint({"a": "1"}).difference({"a": "1"}) is None
    assert Fingerprint({}).difference({"GPU": "H200"}) == "GPU=unknown, now H200"


@contextlib.contextmanager
def mkldnn(enabled):
    """torch.backends.mkldnn.flags sets the precision of products, too."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots()])
def test_a_setting_that_changed_is_named(adjoint):
    """Convolutions have other bits without oneDNN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3))
    data = torch.randn(6, 8, 3, 12, 12)

    def value(enabled):
        with mkldnn(enabled):
            return torch.autograd.grad(loss(model, data[0], None), list(model.parameters()))

    if all(torch.equal(a, b) for a, b in zip(value(True), value(False), strict=True)):
        pytest.skip("this processor has the same bits with and without")
    trained = train(model, data, adjoint=adjoint)
    with (
        mkldnn(False),
        pytest.raises(rh.ReversalError, match=r"than in training: mkldnn=on, .*, now off"),
    ):
        sum(w.square().sum() for w in trained.values()).backward()


def test_what_did_not_change_is_not_blamed():
    calls = []

    def counting(model, x, _):
        calls.append(0)
        return loss(model, x, None) * (1 + len(calls))

    trained = train(loss=counting)
    with pytest.raises(rh.ReversalError) as caught:
        sum(w.sum() for w in trained.values()).backward()
    assert "environment is another one" not in str(caught.value)


class Stopped(Exception):
    pass


def test_a_run_that_began_elsewhere_is_not_resumed(tmp_path, set_num_threads):
    calls = []

    def stopping(model, x, _):
        calls.append(0)
        if len(calls) == 5:
            raise Stopped
        return F.mse_loss(model(x), torch.ones(5, 3))

    torch.manual_seed(0)
    model, data = nn.Linear(6, 3), torch.randn(8, 5, 6)
    more = {"loss": stopping, "resume": rh.Resume(tmp_path, every=2)}
    set_num_threads(1)
    with pytest.raises(Stopped):
        train(model, data, **more)
    set_num_threads(2)
    with pytest.raises(ValueError, match=r"began in another environment, .*: threads=1, now 2\. Go on where it began"):
        train(model, data, **more)
    set_num_threads(1)
    trained = train(model, data, **more)
    trained["weight"].sum().backward()
    assert trained.report.restored


def optimizer_after(steps, model):
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.step(closure(model, optimizer, step))
    return optimizer


def closure(model, optimizer, step):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))

    def evaluate():
        optimizer.zero_grad()
        value = loss(model, x, None)
        value.backward()
        return value

    return evaluate


def test_a_state_saved_elsewhere_says_so(set_num_threads, recwarn):
    def load(state):
        optimizer = rh.ReversibleSGD(model.parameters(), lr=0.05)
        optimizer.load_state_dict(state)
        return optimizer

    set_num_threads(2)
    model = nn.Linear(6, 3)
    unused, state = optimizer_after(0, model).state_dict(), optimizer_after(3, model).state_dict()
    load(state)
    set_num_threads(1)
    load(unused)  # has no steps to undo
    assert not recwarn.list
    with pytest.warns(RuntimeWarning, match=r"taken in another environment, .*: threads=2, now 1\. It can be trained on"):
        optimizer = load(state)
    optimizer.step(closure(model, optimizer, 3))
    with pytest.warns(RuntimeWarning, match="threads=2, now 1"):  # the first step was taken there all the same
        load(optimizer.state_dict())
    optimizer.mark_boundary()
    recwarn.clear()
    load(optimizer.state_dict())
    assert not recwarn.list


def test_a_step_that_is_not_undone_names_what_changed(set_num_threads):
    set_num_threads(2)
    model = nn.Linear(6, 3)
    optimizer = copy.deepcopy(optimizer_after(3, model))
    (weight, bias), model = optimizer.param_groups[0]["params"], nn.Linear(6, 3)
    model.weight, model.bias = weight, bias
    with pytest.raises(rh.ReversalError) as caught:
        optimizer.step_back(closure(model, optimizer, 7))
    assert "environment is another" not in str(caught.value)
    set_num_threads(1)
    with pytest.raises(rh.ReversalError, match=r"The environment is another one than at the first step: threads=2, now 1"):
        optimizer.step_back(closure(model, optimizer, 7))
    optimizer.mark_boundary()
    optimizer.step(closure(model, optimizer, 0))
    with pytest.raises(rh.ReversalError) as caught:
        optimizer.step_back(closure(model, optimizer, 7))
    assert "environment is another" not in str(caught.value)
