"""RTHO: forward mode where nothing moves, and the recursion with explicit Jacobians where hyperparameters do."""

from __future__ import annotations

import pytest
import torch
from bilevel_problem import STEPS, Problem

import reversible_hypergrad as rh
from reversible_hypergrad.bilevel import as_estimator


class Learned(Problem):
    """Penalties, and a learning rate and a momentum that are functions of the hyperparameters; weights begin at a learned scale.
    The outer loss sees the velocities, too."""

    def __init__(self):
        super().__init__()
        self.log_lr = torch.tensor([-2.0, 0.1], dtype=torch.float64, requires_grad=True)
        self.logit = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        self.scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        self.leaves = [self.l2, self.log_lr, self.logit, self.scale]
        self.first = [p.detach().clone() for p in self.model.parameters()]

    def rates(self, leaves):
        """A value per step."""
        return (leaves[1][0] + leaves[1][1] * torch.arange(STEPS).double().cos()).exp()

    def learned(self):
        l2, _, logit, scale = self.leaves

        def outer(weights):
            velocity = sum(own["v"].square().sum() for own in weights.state.states.values())
            return self.outer_of(l2)(weights) + 0.1 * velocity

        return rh.Task(
            self.model,
            self.loss,
            self.x,
            outer=outer,
            optimizer=rh.SGD(self.rates(self.leaves), momentum=logit.sigmoid()),
            hyperparameters=l2,
            initial={n: scale * w for (n, _), w in zip(self.model.named_parameters(), self.first, strict=True)},
        )

    # By hand, on flat vectors

    def unflat(self, flat):
        shapes = [w.shape for w in self.first]
        parts = flat.split([w.numel() for w in self.first])
        return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]

    def step(self, t, state, leaves):
        n = len(state) // 2
        w, v = state[:n], state[n:]
        names = [name for name, _ in self.model.named_parameters()]

        def loss(flat):
            named = dict(zip(names, self.unflat(flat), strict=True))
            return self.penalized(torch.func.functional_call(self.model, named, self.x[t]), named, leaves[0])

        v = leaves[2].sigmoid() * v + torch.func.grad(loss)(w)
        return torch.cat([w - self.rates(leaves)[t] * v, v])

    def value_of(self, state, l2):
        n = len(state) // 2
        names = [name for name, _ in self.model.named_parameters()]
        named = dict(zip(names, self.unflat(state[:n]), strict=True))
        return self.outer_of(l2)(named) + 0.1 * state[n:].square().sum()


def jacobian(function, leaves):
    found = torch.autograd.functional.jacobian(function, tuple(x.detach() for x in leaves))
    return torch.cat([j.reshape(j.shape[0], -1) for j in found], 1)


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


@pytest.mark.parametrize("every", [1, 5])
def test_where_hyperparameters_move(every):
    """Z_t = A_t Z_{t-1} + B_t, with all of them by autograd's Jacobians at the hyperparameters of the step."""
    problem = Learned()
    first = flat(problem.first)
    state = torch.cat([problem.scale.detach() * first, torch.zeros_like(first)])
    z = torch.zeros(len(state), 6, dtype=torch.float64)
    z[: len(first), 5] = first
    taken = 0
    for one in rh.RealTime(every).walk(problem.learned, problem.leaves, split=True):
        leaves = [x.detach().clone() for x in problem.leaves]
        while taken < one.step:
            a = jacobian(lambda s, t=taken, h=leaves: problem.step(t, s, h), [state])
            b = jacobian(lambda *h, t=taken, s=state: problem.step(t, s, h), leaves)
            z, state, taken = a @ z + b, problem.step(taken, state, leaves), taken + 1
        alpha, direct = torch.autograd.functional.jacobian(problem.value_of, (state, leaves[0]))
        expected = alpha @ z
        torch.testing.assert_close(flat(one.indirect), expected, rtol=1e-9, atol=1e-12)  # float64, some hundred terms
        torch.testing.assert_close(one.direct[0], direct, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(flat(one.trained.values()), state[: len(first)], rtol=1e-11, atol=1e-13)
        with torch.no_grad():
            for x, g in zip(problem.leaves, one.gradients, strict=True):
                x -= 0.02 * g
    assert taken == STEPS
    assert (problem.log_lr[0] + 2).abs() > 1e-3  # they did move


@pytest.mark.parametrize("every", [1, 4, STEPS])
@pytest.mark.parametrize("chunk", [2, 16])
def test_where_nothing_moves(every, chunk):
    problem = Learned()
    *_, last = rh.RealTime(every, chunk).walk(problem.learned, problem.leaves, split=True)
    (whole,) = as_estimator(rh.Snapshots()).walk(problem.learned, problem.leaves, split=True)
    assert last.step == STEPS
    torch.testing.assert_close(flat(last.gradients), flat(whole.gradients), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(flat(last.direct), flat(whole.direct), rtol=1e-10, atol=1e-13)


def rules(rate):
    yield rh.AdamW(rate, eps=1e-4)
    yield rh.PerParameter({"0.*": rh.SGD(rate), "2.*": rh.Adam(0.5 * rate, eps=1e-4)})
    yield rh.SGD(rate, momentum=0.8, nesterov=True, weight_decay=0.3 * rate)


@pytest.mark.parametrize("which", range(3))
def test_rules_a_value_per_weight_and_clipping(which):
    problem = Problem()
    log_lr = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    limit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def task():
        return rh.Task(
            problem.model,
            problem.loss,
            problem.x,
            outer=problem.outer_of(problem.l2),
            optimizer=list(rules(log_lr.exp()))[which],
            hyperparameters=problem.l2,
            options={"clip": rh.clip_norm(limit), "accumulate": 2},
        )

    leaves = [problem.l2, log_lr, limit]
    *_, last = rh.RealTime(3).walk(task, leaves)
    (whole,) = as_estimator(rh.Snapshots()).walk(task, leaves)
    torch.testing.assert_close(flat(last.gradients), flat(whole.gradients), rtol=1e-8, atol=1e-11)  # Adam's divisions


def test_rates_per_weight_and_momenta_of_the_start():
    problem = Problem()
    rates = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
    velocity = torch.full((2,), 0.1, dtype=torch.float64, requires_grad=True)

    def task():
        lr = {"0.weight": rates[0].exp() * torch.linspace(1, 2, 40).double().reshape(8, 5), "*": rates[1].exp()}
        start = rh.Start(states={"2.bias": {"v": velocity.tanh()}})
        rule = rh.SGD(lr, momentum=0.9)
        return rh.Task(problem.model, problem.loss, problem.x, problem.outer_of(problem.l2), rule, None, problem.l2, start=start)

    leaves = [problem.l2, rates, velocity]
    *_, last = rh.RealTime(5).walk(task, leaves)
    (whole,) = as_estimator(rh.Snapshots()).walk(task, leaves)
    torch.testing.assert_close(flat(last.gradients), flat(whole.gradients), rtol=1e-10, atol=1e-13)


def test_weights_of_the_model_itself():
    """They are hyperparameters, too, if they are among the leaves; after the first step nothing depends on them directly."""
    problem = Problem()
    bias = problem.model[2].bias
    task = lambda: problem.task(0, [problem.l2.detach(), problem.lr.detach()])  # noqa: E731
    *_, last = rh.RealTime().walk(task, [bias])
    (whole,) = as_estimator(rh.Snapshots()).walk(task, [bias])
    torch.testing.assert_close(last.gradients[0], whole.gradients[0], rtol=1e-10, atol=1e-13)


def test_compare():
    problem = Problem()
    h = [problem.l2, problem.lr]
    found = rh.compare(problem.task, h, [rh.RealTime(5)], horizons=[3, STEPS])
    for row in found.rows:
        assert row.cosine == pytest.approx(1)
        assert row.indirect_ratio == pytest.approx(1)


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.factor = x.detach().exp()
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach() * ctx.factor


def test_what_cannot_be_differentiated_twice_is_refused():
    problem = Problem()
    log_lr = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)

    def task():
        rule = rh.SGD(Cut.apply(log_lr), momentum=0.9)
        return rh.Task(problem.model, problem.loss, problem.x, problem.outer_of(problem.l2), rule, hyperparameters=problem.l2)

    with pytest.raises(RuntimeError, match=r"task: expected what is computed from the hyperparameters .* no graph: 0 where 0.0"):
        next(iter(rh.RealTime().walk(task, [log_lr])))


def test_too_many_hyperparameters_and_readouts():
    problem = Problem()
    leaves = [problem.l2, problem.lr]
    with pytest.raises(ValueError, match=r"estimator: RealTime\(every=1, chunk=16, limit=13\) got 14 hyperparameters.*rh.Rev"):
        next(iter(rh.RealTime(limit=13).walk(lambda: problem.task(0, leaves), leaves)))

    def task():
        one = problem.task(0, leaves)
        options = {"readouts": {"mean": rh.UniformAverage()}}
        return rh.Task(one.model, one.loss, one.batches, one.outer, one.optimizer, hyperparameters=problem.l2, options=options)

    with pytest.raises(ValueError, match=r"RealTime.* sees no readouts, which this task asks for in its options"):
        next(iter(rh.RealTime().walk(task, leaves)))


@pytest.mark.parametrize("name", ["every", "chunk", "limit"])
def test_bad_input(name):
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        rh.RealTime(**{name: 0})
    with pytest.raises(TypeError, match=f"{name}: expected an integer >= 1, got 'x'"):
        rh.RealTime(**{name: "x"})
