"""Outcomes that are read late, as on a GPU: the same hypergradients, and every fault is found before one is returned."""

from __future__ import annotations

import growing_run
import pytest
import torch
from precision_problems import PRECISIONS, check
from small_task import STEPS, Task
from test_faults import runs  # noqa: F401

import reversible_hypergrad as rh
from reversible_hypergrad.optim import queue
from reversible_hypergrad.reversible import group, integers, lateness, outcome, state
from reversible_hypergrad.reversible.hash_log import HashLog
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.pull_back import ProgramPullBack
from reversible_hypergrad.reversible.state import State


def read_late(monkeypatch):
    """No outcome is read where it is made. The list counts those of each read that finds any unread."""
    counts = []

    monkeypatch.setattr(group, "LOOK_AT_FIRST", 1)
    monkeypatch.setattr(state, "_LEAST_FREE", 0)  # room for what nobody looks at would give 32 bits other ones
    monkeypatch.setattr(outcome, "is_late", lambda device: True)
    monkeypatch.setattr(State, "is_late", True)
    join = torch.cat

    def counted(words, *arguments, **options):
        if isinstance(words, list) and words and words[0].dtype == torch.int64:
            counts.append(len(words))
        return join(words, *arguments, **options)

    monkeypatch.setattr(outcome.torch, "cat", counted)
    return counts


@pytest.fixture
def reads(monkeypatch):
    return read_late(monkeypatch)


@pytest.fixture(params=[1, 7, 64])
def every(request, monkeypatch, reads):
    monkeypatch.setattr(lateness, "LOOK_EVERY", request.param)
    return request.param


@pytest.fixture
def task():
    return Task()


SETTINGS = [
    {},
    {"state_bits": 32, "verify_every": 7},
    {"segments": 4},
    {"segments": 3, "verify_every": 1000},
]


def hypergradients(settings, twice=False):
    task = Task()
    trained = task.train(**settings)
    downstream = sum(w.square().sum() for w in trained.values())
    inputs = [task.log_l2, *task.model.parameters()]
    result = torch.autograd.grad(downstream, inputs, retain_graph=twice)
    if twice:
        result += torch.autograd.grad(downstream, inputs)
    return result, trained.report


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 64])
def test_the_same_bits(settings, steps, monkeypatch):
    expected, report = hypergradients(settings, twice=True)
    read_late(monkeypatch)
    monkeypatch.setattr(lateness, "LOOK_EVERY", steps)
    mine, late = hypergradients(settings, twice=True)
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    assert late.restored
    assert (late.checks, late.log_bytes) == (report.checks, report.log_bytes)


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("segments", [1, 7])
def test_what_grows_gets_room_at_a_look(state_bits, segments, monkeypatch):
    least = state._LEAST_FREE
    read_late(monkeypatch)
    monkeypatch.setattr(state, "_LEAST_FREE", least)
    growing_run.check(state_bits, segments, "cpu")


@pytest.mark.parametrize("precision", ["float32", "autocast to bfloat16 around"])
def test_the_optimizer_makes_room_where_a_run_does(precision, monkeypatch):
    """At the same steps, so that both have the same bits."""
    for module in (integers, outcome, queue):
        monkeypatch.setattr(module, "is_late", lambda device: True)
    check(PRECISIONS[precision], "cpu")


def test_few_reads(reads, monkeypatch):
    monkeypatch.setattr(lateness, "LOOK_EVERY", 16)
    task = Task()
    trained = task.train()
    # Besides the first step, and the outcomes of 16 steps, or what is left of them: two of the state itself, where a segment
    # begins or ends.
    assert reads == [2, 1, 16, 16, 16, 11, 2]
    reads.clear()
    task.backward(trained)
    assert reads == [32, 32, 32, 24, 2]


def test_every_step_is_read_once_on_the_cpu(monkeypatch):
    looks = []
    monkeypatch.setattr(lateness.Lookout, "look", lambda self: looks.append(len(self._waiting)))
    hypergradients({})
    assert looks == [0, 0]  # at the end of each direction, with nothing left to read


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("what", ["x", "v", "plane"])
def test_one_flipped_bit(task, runs, every, what, state_bits):  # noqa: F811
    trained = task.train(state_bits=state_bits)
    group = runs[0].groups[0]
    tensor = {"x": group.state.x, "v": group.state.z[0], "plane": group.store.top()}[what]
    tensor[5] ^= 1
    with pytest.raises(rh.ReversalError, match=r"undoing step \d+.* did not restore the state"):
        task.backward(trained)
    task.check_untouched()


@pytest.mark.parametrize(("verify_every", "where"), [(1, "step 59"), (7, "the steps 56 to 59"), (1000, "the steps 0 to 59")])
def test_the_steps_are_named(task, runs, every, verify_every, where):  # noqa: F811
    trained = task.train(verify_every=verify_every)
    runs[0].groups[0].state.x[5] ^= 1
    with pytest.raises(rh.ReversalError, match=f"undoing {where} did not restore the state"):
        task.backward(trained)
    task.check_untouched()


def test_a_fault_in_the_very_first_step(task, monkeypatch, every):
    """It shows at the end of the way back, when nothing is left to undo."""
    trained = task.train()
    undo_weights = ProgramPullBack.undo_weights

    def damage(self, step):
        result = undo_weights(self, step)
        if step == 0:
            self.group.state.z[0][3] += 1
        return result

    monkeypatch.setattr(ProgramPullBack, "undo_weights", damage)
    with pytest.raises(rh.ReversalError, match="step 0, at the end of the way back"):
        task.backward(trained)
    task.check_untouched()


def test_batches_that_differ_on_the_second_call(task, every):
    calls = []

    def batch(step):
        calls.append(step)
        return task.x[step] + 0.01 * len(calls), task.y[step]

    trained = task.train(batch=batch)
    with pytest.raises(rh.ReversalError, match=r"step 59 .*the batch of step 59 is another one each time"):
        task.backward(trained)
    task.check_untouched()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_a_step_that_cannot_be_taken(task, every, scale):
    def batch(step):
        return task.x[step], task.y[step] * (scale if step == 17 else 1.0)

    with pytest.raises(
        FloatingPointError, match=r"step 17: \S*: its gradient is not finite, or was many times larger.*Lower.*clip the grad"
    ):
        task.train(batch=batch)
    task.check_untouched()


def test_a_weight_out_of_range(task, every):
    arguments = {"steps": STEPS, "optimizer": rh.SGD(lr=1e6), "hyperparameters": task.log_l2}
    with pytest.raises(
        (OverflowError, FloatingPointError), match=r"step \d+: .*than at the last look|step \d+: .*between two looks"
    ):
        rh.train(task.model, task.loss, task.batch, **arguments)
    task.check_untouched()


def failing_at(task, call):
    calls = []

    def loss(model, batch, hyperparameters):
        calls.append(1)
        if len(calls) == call:
            raise KeyError("lost")
        return task.loss(model, batch, hyperparameters)

    return loss


def test_an_exception_of_the_loss_comes_through(task, reads):
    with pytest.raises(KeyError, match="lost"):
        task.train(loss=failing_at(task, 20))
    trained = task.train(loss=failing_at(task, STEPS + 10))
    with pytest.raises(KeyError, match="lost"):
        task.backward(trained)
    task.check_untouched()


def test_an_exception_after_a_fault_that_was_not_seen_yet(task, runs, reads):  # noqa: F811
    """What the loss says of damaged weights is not the cause."""
    trained = task.train(loss=failing_at(task, STEPS + 10))
    runs[0].groups[0].state.x[5] ^= 1
    with pytest.raises(rh.ReversalError, match="undoing step 59") as caught:
        task.backward(trained)
    assert isinstance(caught.value.__context__, KeyError)
    task.check_untouched()


def test_hash_log(reads):
    def outcome_of(number):
        return Outcome(torch.tensor([number, 0, 0, 0]), 1)

    log = HashLog()
    log.push(5)
    for number in range(6, 100):
        log.push(outcome_of(number))
    assert log.nbytes == 8 * 95
    assert reads == [64]
    assert [log.pop() for _ in range(95)] == list(range(99, 4, -1))
    assert reads == [64, 30]


@pytest.mark.parametrize("beta2", [0.9, 0.95, 0.999])
@pytest.mark.parametrize("state_bits", [64, 32])
def test_squares_get_room_for_gradients_that_grow_between_looks(state_bits, beta2, monkeypatch):
    """Twice as large every 32 steps, four times from look to look: sixteen times in the square."""
    monkeypatch.setattr(outcome, "is_late", lambda device: True)
    monkeypatch.setattr(State, "is_late", True)
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 3), torch.randn(16, 6)

    def loss(model, step, _):
        return 2.0 ** (int(step) / 32) * model(x).square().mean()

    lr = torch.tensor(1e-3, requires_grad=True)
    optimizer = rh.AdamW(lr, (0.9, beta2))
    trained = rh.train(model, loss, range(400), optimizer=optimizer, adjoint=rh.Reversible(state_bits=state_bits))
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored
