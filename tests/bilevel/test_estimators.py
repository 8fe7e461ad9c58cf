"""Each estimator against its definition, by autograd through hand-written steps in float64."""

from __future__ import annotations

import pytest
import torch
from bilevel_problem import STEPS, Problem, cut

import reversible_hypergrad as rh
from reversible_hypergrad.bilevel import as_estimator


def walk(problem, estimator, rates=True, split=True):
    leaves = [problem.l2, problem.lr]
    return list(as_estimator(estimator).walk(lambda: problem.task(0, leaves, rates), leaves, split))


def close(found, expected):
    """Both add the same terms of float64 in other orders: some hundred of them, 1e-16 each, of both signs."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def direct(problem, state):
    value = problem.value(cut(state)[0])
    return torch.autograd.grad(value, problem.l2)[0]


@pytest.mark.parametrize("strategy", [rh.Reversible(), rh.Snapshots(), rh.Unroll()], ids=repr)
def test_whole_runs(strategy):
    problem = Problem()
    (found,) = walk(problem, strategy)
    state = problem.unrolled(0, STEPS)
    value = problem.value(state[0])
    expected = torch.autograd.grad(value, [problem.l2, problem.lr])
    for a, b in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)  # fixed point
    torch.testing.assert_close(found.direct[0], direct(problem, state))
    assert found.value == pytest.approx(float(value.detach()), rel=1e-9)
    assert found.step == STEPS
    assert not any(w.requires_grad for w in found.trained.values())


@pytest.mark.parametrize("steps", [1, 5, STEPS])
def test_windows(steps):
    problem = Problem()
    found = walk(problem, rh.OneStep() if steps == 1 else rh.Windowed(steps))
    state, first = None, 0
    for one in found:
        stop = min(first + steps, STEPS)
        state = problem.unrolled(first, stop, state)
        gradients = torch.autograd.grad(problem.value(state[0]), [problem.l2, problem.lr])
        close(one.gradients, gradients)
        close(one.direct, [direct(problem, state), torch.zeros(STEPS, dtype=torch.float64)])
        assert one.step == stop
        state, first = cut(state), stop
    assert first == STEPS


@pytest.mark.parametrize("estimator", [rh.Snapshots(), rh.Reversible(), rh.Windowed(STEPS)], ids=repr)
def test_states_and_readouts_do_not_belong_to_the_direct_part(estimator):
    problem = Problem()

    def outer(weights):
        velocity = sum(own["v"].square().sum() for own in weights.state.states.values())
        return velocity + sum(w.sum() for w in weights.readouts["mean"].values()) + problem.l2.square().sum()

    def task():
        readouts = {"readouts": {"mean": rh.UniformAverage()}}
        rule = rh.SGD(0.1, momentum=0.9)
        return rh.Task(problem.model, problem.loss, problem.x, outer, rule, hyperparameters=problem.l2, options=readouts)

    (found,) = as_estimator(estimator).walk(task, [problem.l2], split=True)
    assert torch.equal(found.direct[0], 2 * problem.l2.detach())
    assert found.indirect[0].abs().min() > 1e-3


def test_a_window_of_all_steps_is_exact():
    problem = Problem()
    (window,), (whole,) = walk(problem, rh.Windowed(STEPS)), walk(problem, rh.Snapshots())
    close(window.gradients, whole.gradients)


def test_hyperparameters_that_move_between_estimates():
    """Each step is taken, and differentiated, at those of its time."""
    problem, again = Problem(), Problem()
    leaves = [problem.l2, problem.lr]
    walked = rh.OneStep().walk(lambda: problem.task(0, leaves, False), leaves)
    state = None
    for t, one in enumerate(walked):
        state = cut(again.unrolled(t, t + 1, state))
        for name, weight in zip(one.trained, state[0], strict=True):
            torch.testing.assert_close(one.trained[name], weight, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for p in (problem, again):
                p.l2 -= 0.1
    assert t == STEPS - 1


def test_first_order():
    problem = Problem()
    found = walk(problem, rh.FirstOrder(every=3), rates=False)
    assert [one.step for one in found] == [3, 6, 9, 12]
    close([found[-1].gradients[0]], [direct(problem, problem.unrolled(0, STEPS))])
    assert all(not i.any() for i in found[-1].indirect)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_generalized_greedy(gamma):
    """d = grad L + sum_t gamma^(T-t) grad_{w_t} L(w_t) B_t, written out."""
    problem = Problem()
    (found,) = walk(problem, rh.GeneralizedGreedy(gamma))
    total, state = [torch.zeros(2).double(), torch.zeros(STEPS).double()], None
    for t in range(STEPS):
        state = problem.unrolled(t, t + 1, state)
        leaves = [w.detach().requires_grad_() for w in state[0]]
        alpha = torch.autograd.grad(problem.value(leaves), leaves)
        terms = torch.autograd.grad(state[0], [problem.l2, problem.lr], alpha)
        total = [total_ + gamma ** (STEPS - 1 - t) * term for total_, term in zip(total, terms, strict=True)]
        state = cut(state)
    close(found.indirect, total)
    close([found.direct[0]], [direct(problem, state)])


class Shaban:
    """A toy with known curvature: outer |w|^2 + 10 |sin w|^2, inner (w - a)' G (w - a) / 2, G = diag(1, 1/2), lr 0.1, from
    (2, 2), a = (1, 1). Steps are w -= 0.1 G (w - a), so w_T is linear in a.

    Source: Shaban, Cheng, Hatch, Boots, *Truncated Back-propagation for Bilevel Optimization*, AISTATS 2019.
    """

    def __init__(self, steps):
        self.g = torch.tensor([1.0, 0.5], dtype=torch.float64)
        self.a = torch.ones(2, dtype=torch.float64, requires_grad=True)
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(torch.full((2,), 2.0, dtype=torch.float64))
        self.task = lambda: rh.Task(
            model,
            lambda model, _, a: ((model.w - a) * self.g * (model.w - a)).sum() / 2,
            [None] * steps,
            outer=lambda weights: weights["w"].square().sum() + 10 * weights["w"].sin().square().sum(),
            optimizer=rh.SGD(0.1, momentum=0.0),
            hyperparameters=self.a,
        )
        self.steps, self.decay = steps, 1 - 0.1 * self.g

    def at(self, t):
        return 1 + self.decay**t

    def alpha(self, t):
        w = self.at(t)
        return 2 * w + 20 * w.sin() * w.cos()


@pytest.mark.parametrize("steps", [5, 20])
def test_the_toy_in_closed_form(steps):
    toy = Shaban(steps)

    def gradient(estimator):
        *_, last = as_estimator(estimator).walk(toy.task, [toy.a])
        return last.gradients[0]

    alpha, one = toy.alpha(steps), 0.1 * toy.g
    close([gradient(rh.Snapshots())], [alpha * (1 - toy.decay**steps)])
    close([gradient(rh.Truncated(3))], [alpha * (1 - toy.decay**3)])
    close([gradient(rh.OneStep())], [alpha * one])
    greedy = sum(0.9 ** (steps - t) * toy.alpha(t) * one for t in range(1, steps + 1))
    close([gradient(rh.GeneralizedGreedy(0.9))], [greedy])


def test_what_an_estimator_cannot_see():
    problem = Problem()
    with pytest.raises(
        ValueError, match=r"estimator: FirstOrder\(every=1\) gives no gradient by the optimizer's settings.*rh.Rev"
    ):
        walk(problem, rh.FirstOrder())
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def task():
        one = problem.task(0, [problem.l2, problem.lr], False)
        initial = {name: p.detach() * scale for name, p in problem.model.named_parameters()}
        return rh.Task(one.model, one.loss, one.batches, one.outer, one.optimizer, initial=initial, hyperparameters=problem.l2)

    for estimator in (rh.OneStep(), rh.FirstOrder(), rh.GeneralizedGreedy()):
        with pytest.raises(ValueError, match="gives no gradient by initial weights"):
            list(estimator.walk(task, [scale]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rh.Windowed(0), ValueError, "steps: expected an integer >= 1, got 0"),
        (lambda: rh.FirstOrder(1.5), TypeError, "every: expected an integer >= 1, got 1.5"),
        (lambda: rh.GeneralizedGreedy(2), ValueError, r"gamma: expected a number in \[0, 1\], got 2"),
        (lambda: as_estimator("exact"), TypeError, "estimator: expected a strategy such as rh.Reversible"),
        (lambda: rh.Task(None, None, [], "outer", rh.SGD(0.1)), TypeError, "outer: expected a function of the trained weights"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_outer_loss_that_is_no_scalar():
    problem = Problem()
    with pytest.raises(TypeError, match=r"outer: expected it to return a scalar tensor, got shape \(16, 2\)"):
        list(
            as_estimator(rh.Snapshots()).walk(
                lambda: rh.Task(
                    problem.model,
                    problem.loss,
                    problem.x,
                    outer=lambda weights: torch.func.functional_call(problem.model, dict(weights), problem.v),
                    optimizer=rh.SGD(0.1),
                    hyperparameters=problem.l2,
                ),
                [problem.l2],
            )
        )
