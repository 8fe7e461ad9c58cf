"""rh.Bilevel: where it ends up, what it records, and what it refuses."""

from __future__ import annotations

import csv
import math
import warnings

import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad.bilevel import Estimate, Estimator

TARGET = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Known(Estimator):
    """Of an outer loss that is known as a function of the hyperparameters, with one estimate per task, or several."""

    def __init__(self, value, times=1):
        self.value, self.times, self.walks = value, times, 0
        self.online = times > 1

    def __repr__(self):
        return f"Known({self.times})"

    def walk(self, task, leaves, split=False):
        self.walks += 1
        for i in range(self.times):
            task()
            value = self.value(*leaves)
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
            gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
            yield Estimate(float(value.detach()), gradients, None, None, i + 1)


def any_task(k=0, h=None):
    return rh.Task(torch.nn.Linear(1, 1), lambda m, b, h: m(b).sum(), [torch.ones(1, 1)], lambda weights: weights, rh.SGD(0.1))


def distance(x):
    return 0.5 * (x - TARGET).square().sum()


def start():
    return torch.zeros(3, dtype=torch.float64, requires_grad=True)


def bilevel(value=distance, h=None, times=1, optimizer=torch.optim.SGD, lr=0.5, task=any_task, **more):
    return rh.Bilevel(task, start() if h is None else h, Known(value, times), optimizer, lr=lr, **more)


def test_a_quadratic_and_the_steps_to_its_minimum():
    h = start()
    result = bilevel(h=h).run(20)
    x = torch.zeros(3, dtype=torch.float64)
    for record in result.history:
        assert record["outer_loss"] == pytest.approx(float(distance(x)))
        assert record["norm"] == pytest.approx(float((x - TARGET).norm()))
        x -= 0.5 * (x - TARGET)
    torch.testing.assert_close(result.last, x)
    assert torch.equal(h, torch.zeros(3, dtype=torch.float64))  # the user's stay
    assert h.grad is None
    assert result.best_step == 19
    assert result.h.requires_grad
    assert [record["inner_steps"] for record in result.history] == list(range(1, 21))
    assert str(result).splitlines()[0].startswith("20 outer steps, 20 inner steps, ")
    assert str(result).splitlines()[1] == f"outer loss 2.625 -> {result.best:.4g}; best at step 19, {result.best:.4g}; 0 refused"
    assert str(result).splitlines()[2] == "ended: all 20 steps were taken"


def test_a_convex_bilevel_problem():
    """Ridge regression with uncorrelated inputs: the penalty shrinks all weights alike, best until nothing is left to project."""
    generator = torch.Generator().manual_seed(0)
    x, z, noise = (torch.randn(20, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    x = torch.linalg.qr(x).Q * math.sqrt(20)
    truth = torch.tensor([[1.0], [-1.0], [0.5], [0.0]], dtype=torch.float64)
    y, target = x @ truth + 3 * noise[:, :1], z @ truth
    model = torch.nn.Linear(4, 1, bias=False).double()

    def loss(model, batch, log_l2):
        return (model(x) - y).square().mean() + log_l2.exp() * model.weight.square().sum()

    def task(k, h):
        outer = lambda weights: (z @ weights["weight"].T - target).square().mean()  # noqa: E731
        return rh.Task(model, loss, [0] * 15, outer, rh.SGD(0.2, momentum=0.0), hyperparameters=h)

    unshrunk = z @ (x.T @ y / 20)
    share = float((unshrunk * target).sum() / unshrunk.square().sum())  # 1 / (1 + l2)
    assert 0.3 < share < 0.9
    h = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    result = rh.Bilevel(task, h, rh.Snapshots(), lr=0.1, guard=None).run(60)
    # A step leaves at most |1 - 0.4 (1 + l2)| < 0.5 of what is left, so 15 of them 3e-5; Adam's last steps are some 1e-3.
    assert float(result.h.detach()) == pytest.approx(math.log(1 / share - 1), abs=0.01)


def test_several_tasks_are_averaged_and_walked_side_by_side():
    def task(k, h):
        return [any_task() for _ in range(2 + k % 2)]

    one = bilevel(times=4).run(6)
    several = bilevel(times=4, task=task).run(6)
    torch.testing.assert_close(several.last, one.last)
    assert [r["inner_steps"] for r in several.history] == [2, 4, 6, 8, 11, 14]
    assert [r["task"] for r in several.history] == [0, 0, 0, 0, 1, 1]


def test_the_mean_of_different_tasks():
    model = torch.nn.Linear(2, 1, bias=False)

    def task(k, h, shifts=(1.0, 3.0)):
        def one(shift):
            outer = lambda weights: (weights["weight"] - shift).square().sum()  # noqa: E731
            return rh.Task(
                model,
                lambda m, b, a: (m.weight - a.exp() * b).square().sum(),
                torch.ones(3, 2),
                outer,
                rh.SGD(0.2),
                hyperparameters=h,
            )

        return [one(shift) for shift in shifts]

    def gradient(*shifts):
        h = torch.tensor(0.3, requires_grad=True)
        return rh.Bilevel(lambda k, h: task(k, h, shifts), h, rh.Snapshots(), torch.optim.SGD, lr=1.0).run(1).last.detach() - 0.3

    assert float(gradient(1.0, 3.0)) == pytest.approx(float(gradient(1.0) + gradient(3.0)) / 2, rel=1e-5)


def test_sets_by_name_and_learning_rates_by_name():
    h = {"a": {"x": start(), "y": start()}, "b": start(), "c": torch.ones(1)}
    result = bilevel(
        lambda *leaves: sum(distance(x) for x in leaves),
        h,
        sets={"a": rh.Box(-1, 0.25), "a.y": rh.L1Ball(2)},
        lr={"a": 0.5, "b": 0.1},
    ).run(40)
    found = result.last
    torch.testing.assert_close(found["a"]["x"], TARGET.clamp(-1, 0.25))
    torch.testing.assert_close(found["a"]["y"], rh.L1Ball(2).project(TARGET), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["b"], TARGET * (1 - 0.9**40))
    assert found["c"] is h["c"]


def test_a_tensor_that_is_twice_in_the_nest_is_learned_once():
    x = start()
    result = bilevel(h=[x, {"same": x}]).run(1)
    assert result.last[0] is not x
    torch.testing.assert_close(result.last[0], 0.5 * TARGET)
    assert torch.equal(result.last[0], result.last[1]["same"])


def test_schedulers_and_options():
    rates = []
    bilevel(lr=0.4, momentum=0.5, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)).run(
        6, callbacks=lambda record: rates.append(record["lr"])
    )
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    optimizer = torch.optim.SGD([x := start()], lr=0.4, momentum=0.5)
    for _ in range(3):
        x.grad = x.detach() - TARGET
        optimizer.step()
    torch.testing.assert_close(bilevel(lr=0.4, momentum=0.5).run(3).last, x)


def test_the_best_by_score_and_patience():
    scores = {0: 1.0, 2: 3.0, 4: math.nan, 6: 2.0, 8: 3.0}
    seen = []

    def score(h, k):
        assert not h.requires_grad
        seen.append((k, h))
        return torch.tensor(scores.get(k, 0.0))

    result = bilevel().run(20, score=score, score_every=2, patience=3)
    assert [k for k, _ in seen] == [0, 2, 4, 6, 8, 9]  # and the last one
    assert (result.best, result.best_step) == (3.0, 2)
    assert torch.equal(result.h, seen[1][1])
    assert result.stopped == "3 scores in a row were no better than the best"
    assert math.isnan(result.history[1]["score"])
    assert [record["best"] for record in result.history] == [1, 1] + [3] * 7


def test_online_the_last_one_is_returned():
    result = bilevel(times=5).run(7)
    assert [record["task"] for record in result.history] == [0] * 5 + [1] * 2
    assert torch.equal(result.h, result.last)
    assert math.isnan(result.best)
    assert result.best_step == 7


def test_an_estimator_that_remembers_begins_each_run_alike():
    """EvoGrad's noise is another one in every walk."""
    torch.manual_seed(0)
    model, estimator = torch.nn.Linear(1, 1), rh.EvoGrad(sigma=0.1)

    def task(k, h):
        outer = lambda weights: weights["weight"].square().sum()  # noqa: E731
        return rh.Task(
            model, lambda m, b, a: m(b).square().mean() * a, torch.ones(2, 3, 1), outer, rh.SGD(0.1), hyperparameters=h
        )

    loop = rh.Bilevel(task, torch.ones((), requires_grad=True), estimator, torch.optim.SGD, lr=10.0)
    one, other = loop.run(6), loop.run(6)
    assert torch.equal(one.last, other.last)
    assert estimator.state_dict() == rh.EvoGrad().state_dict()
    assert len({record["norm"] for record in one.history}) > 1


def test_minutes():
    result = bilevel().run(minutes=1e-4)
    assert 1e-4 * 60 <= result.seconds < 30
    assert result.stopped == "0.0001 minutes were over"
    assert result.cpu_seconds > 0


def test_callbacks_and_the_csv_file(tmp_path):
    one, other = [], []
    (tmp_path / "log.csv").write_text("of another run")
    result = bilevel().run(3, callbacks=[one.append, other.append], log=tmp_path / "log.csv")
    assert one == other == result.history or all(map(math.isnan, (r["score"] for r in one)))
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [list(record) for record in one]
    for row, record in zip(rows, one, strict=True):
        assert all(float(row[name]) == record[name] or math.isnan(record[name]) for name in record)
        assert all(type(value) is float for value in record.values())


# The guard


class Cliff:
    """Slope 1 up to the edge, and then something else."""

    def __init__(self, beyond, edge=0.25):
        self.beyond, self.edge = beyond, edge

    def __call__(self, x):
        return self.beyond(x) if float(x.detach()) > self.edge else -x


def from_zero():
    return torch.tensor(0.0, requires_grad=True)


def diverged(x):
    raise FloatingPointError("the loss is nan at step 3")


CLIFFS = {
    "long": (lambda x: -1e9 * x, "its norm 1e+09 is more than 10 times 1, the median of those before"),
    "loss is nan": (lambda x: x * math.nan, "the outer loss is nan"),
    "gradient is inf": (lambda x: (x - x).abs().sqrt() - x, "its norm is"),
    "diverged": (diverged, "training failed: the loss is nan at step 3"),
}


@pytest.mark.parametrize("name", CLIFFS)
def test_refused_and_back(name):
    beyond, message = CLIFFS[name]
    with pytest.warns(RuntimeWarning, match="hypergradient was refused: ") as warned:
        result = bilevel(Cliff(beyond), from_zero(), lr=0.1).run(30)
    assert len(warned) == 1
    assert message in str(warned[0].message)
    assert str(warned[0].message).startswith("outer step 3: ")
    assert [record["refused"] for record in result.history[:5]] == [0, 0, 0, 1, 0]
    assert result.refused == sum(record["refused"] for record in result.history) >= 2
    rates = [record["lr"] for record in result.history]
    assert rates[:6] == pytest.approx([0.1] * 6)  # one refusal alone cuts nothing
    assert min(rates) <= 0.05
    assert 0.2 <= float(result.h.detach()) <= 0.25  # the best state that was accepted
    assert float(result.last.detach()) == pytest.approx(0.25, abs=0.11)


def test_the_optimizers_state_goes_back_too():
    """Momentum that ran at the cliff would run there again."""
    with pytest.warns(RuntimeWarning, match="refused"):
        result = bilevel(Cliff(diverged), from_zero(), lr=0.1, momentum=0.9).run(3)
    steps = [0.0, 0.1, 0.29]
    assert [record["refused"] for record in result.history] == [0, 0, 1]
    assert -result.history[1]["outer_loss"] == pytest.approx(steps[1])
    assert float(result.last.detach()) == pytest.approx(0.1)
    optimizer = torch.optim.SGD([x := from_zero()], lr=0.1, momentum=0.9)
    for _ in range(2):
        x.grad = -torch.ones(())
        optimizer.step()
    with pytest.warns(RuntimeWarning, match="refused"):
        result = bilevel(Cliff(diverged), from_zero(), lr=0.1, momentum=0.9).run(4)
    assert float(result.last.detach()) == pytest.approx(float(x.detach()))  # the second step once more, not a third


def test_it_gives_up_and_returns_the_best():
    with pytest.warns(RuntimeWarning, match="refused"):
        result = bilevel(
            Cliff(diverged, edge=-1.0), torch.tensor(-1.05, requires_grad=True), lr=0.1, guard=rh.Guard(cut=1.0, stop=4)
        ).run(50)
    assert result.refused == 4
    assert len(result.history) == 8
    assert result.stopped == "too many hypergradients were refused"
    assert float(result.h.detach()) == pytest.approx(-1.05)


def test_nothing_was_accepted():
    with (
        pytest.warns(RuntimeWarning, match="outer step 0: the hypergradient was refused"),
        pytest.raises(FloatingPointError, match="all 10 hypergradients were refused, so nothing was learned"),
    ):
        bilevel(diverged, from_zero()).run(50)


def test_a_step_out_of_all_numbers_is_taken_back():
    h = torch.tensor(1e38, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="outer step 2: .* the hyperparameters were not finite after it"):
        result = bilevel(lambda x: -x, h, lr=1e38).run(3)
    assert float(result.last.detach()) == pytest.approx(2e38)


def test_without_a_guard():
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3"):
        bilevel(Cliff(diverged), from_zero(), lr=0.1, guard=None).run(9)
    with pytest.raises(FloatingPointError, match="expected a finite outer loss and hypergradient, got nan"):
        bilevel(Cliff(lambda x: x * math.nan), from_zero(), lr=0.1, guard=None).run(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bilevel(Cliff(lambda x: -1e9 * x), from_zero(), lr=0.1, guard=None).run(5).refused == 0


def test_online_a_walk_ends_where_its_weights_are_not_finite_and_goes_on_where_a_step_was_too_long():
    for beyond, tasks in ((lambda x: x * math.nan, [0, 0, 0, 0, 1, 1]), (lambda x: -1e9 * x, [0] * 6)):
        with pytest.warns(RuntimeWarning, match="refused"):
            result = bilevel(Cliff(beyond), from_zero(), lr=0.1, times=6).run(6)
        assert [record["task"] for record in result.history] == tasks


def test_a_runs_own_divergence_is_refused():
    """Learning rates that grow until training of a quadratic diverges: of the inner run itself."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)

    def task(k, h):
        return rh.Task(
            model,
            lambda model, x, _: model(x).square().sum() * 1e4,
            torch.ones(100, 1, 1),
            outer=lambda weights: weights["weight"].square().sum() - 1e-3 * h.sum(),
            optimizer=rh.SGD(h.exp(), momentum=0.0),
        )

    h = torch.tensor(-11.0, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="refused"):
        result = rh.Bilevel(task, h, rh.Snapshots(), torch.optim.SGD, lr=3000.0).run(5)
    assert result.refused >= 1
    assert result.history[0]["refused"] == 0
    assert bool(result.h.isfinite())


# What cannot be


def late(**more):
    return lambda: bilevel().run(**more)


def shared():
    both = torch.zeros(4)
    return [both[:3].requires_grad_(), both[1:].requires_grad_()]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: bilevel(h={"a": torch.ones(2)}),
            ValueError,
            "h: expected tensors that require grad, which are learned, got none",
        ),
        (lambda: bilevel(h={"a": start().exp()}), ValueError, "h: a: expected a leaf, got a tensor that is computed from others"),
        (lambda: bilevel(h=torch.tensor(math.nan, requires_grad=True)), ValueError, "^h: expected finite numbers"),
        (
            lambda: bilevel(h=torch.ones(1, dtype=torch.cfloat).requires_grad_()),
            TypeError,
            "h: expected real floating-point numbers",
        ),
        (lambda: bilevel(h=shared()), ValueError, "1: expected memory of its own"),
        (
            lambda: bilevel(h={"a": start()}, sets={"a": rh.Box(1, 2)}),
            ValueError,
            r"h: a: expected values in Box\(1, 2\), got one that is 1 away",
        ),
        (
            lambda: bilevel(h={"a": start()}, sets={"b": rh.Box(1, 2)}),
            ValueError,
            r"sets: expected names of learned.*\(a\), got 'b', which is none of h's",
        ),
        (
            lambda: bilevel(h=[start(), torch.ones(1)], sets={"1": rh.Box(1, 2)}),
            ValueError,
            "got '1', which does not require grad",
        ),
        (lambda: bilevel(sets=(0, 1)), TypeError, r"sets: expected sets such as rh.Box\(0, 1\)"),
        (
            lambda: bilevel(h={"a": start(), "b": start()}, lr={"a": 0.1}),
            ValueError,
            "lr: expected a learning rate for every.* none for b",
        ),
        (lambda: bilevel(lr="fast"), TypeError, "lr: expected a number, or numbers by name, got 'fast'"),
        (lambda: bilevel(lr=-1.0), ValueError, "lr: expected a finite number >= 0, got -1.0"),
        (lambda: bilevel(task=any_task()), TypeError, "task: expected a function, got Task"),
        (lambda: bilevel(optimizer="Adam"), TypeError, "optimizer: expected a function, got str"),
        (lambda: bilevel(optimizer=lambda groups, lr: 3), TypeError, "optimizer: expected a class of torch.optim.* returned int"),
        (
            lambda: bilevel(h=start(), optimizer=lambda groups, lr: torch.optim.LBFGS(groups[0]["params"])),
            ValueError,
            "got LBFGS",
        ),
        (lambda: bilevel(scheduler=lambda optimizer: None), TypeError, "scheduler: expected a function of the optimizer"),
        (lambda: bilevel(guard=4.0), TypeError, "guard: expected an rh.Guard, or None, got float"),
        (lambda: bilevel(betas=3), TypeError, "betas"),
        (lambda: rh.Bilevel(any_task, start(), "exact", lr=0.1), TypeError, "estimator: expected a strategy such as"),
        (lambda: rh.Guard(1.0), ValueError, "Guard: factor: expected a number above 1, got 1.0"),
        (lambda: rh.Guard("4"), TypeError, "Guard: factor: expected a number, got '4'"),
        (lambda: rh.Guard(cut=0), ValueError, r"Guard: cut: expected a number in \(0, 1\], got 0"),
        (lambda: rh.Guard(after=0), ValueError, "Guard: after: expected an integer >= 1, got 0"),
        (late(), ValueError, "steps, minutes: expected one of them, or both, got neither"),
        (late(steps=0), ValueError, "steps: expected an integer >= 1 or None, got 0"),
        (late(minutes=-1), ValueError, "minutes: expected a number above 0, got -1"),
        (late(minutes="5"), TypeError, "minutes: expected a number or None, got '5'"),
        (late(steps=1, score=3), TypeError, r"score: expected a function score\(h, k\), got int"),
        (late(steps=1, score=lambda h, k: None), TypeError, "score: expected a function that returns a number, got NoneType"),
        (late(steps=1, score_every=0), ValueError, "score_every: expected an integer >= 1, got 0"),
        (late(steps=1, patience=2), ValueError, "patience: expected a score to wait for, got patience=2 alone"),
        (late(steps=1, callbacks=[3]), TypeError, "callbacks: expected functions of a record, got 3"),
        (late(steps=1, log=3), TypeError, "log: expected a path, got int"),
        (late(steps=1, log="not there/log.csv"), FileNotFoundError, "log: expected a path in a directory that is there"),
        (late(steps=1, resume=3), TypeError, "resume: expected a directory"),
    ],
)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("found", [None, [], [any_task(), 3]])
def test_a_task_that_is_none(found):
    with pytest.raises(
        TypeError, match=r"task: expected a function task\(k, h\) that returns an rh.Task, or several in a list, got"
    ):
        bilevel(task=lambda k, h: found).run(1)


def test_a_number_of_tasks_that_changes():
    counts = iter([2, 3, 3])
    with pytest.raises(ValueError, match="task: expected the same number of tasks whenever it is called with k=0, got 2, then 3"):
        bilevel(task=lambda k, h: [any_task() for _ in range(next(counts))]).run(1)


def test_no_hypergradient_at_all_is_an_error_and_none_by_one_a_warning():
    """Such as by a task that uses tensors from around it, and not those that it is given."""
    x = {"a": start(), "b": start()}
    with pytest.raises(
        ValueError, match="task: the hypergradient of the first task is exactly 0 by a, b, so nothing can be learned"
    ):
        bilevel(lambda a, b: distance(x["a"]), x).run(3)
    with pytest.warns(RuntimeWarning, match="exactly 0 by b. Compute what depends on hyperparameters within task"):
        bilevel(lambda a, b: distance(a), x).run(3)


def test_no_estimate():
    with pytest.raises(RuntimeError, match="the estimator gave no hypergradient for task 0"):
        bilevel(times=0).run(1)
