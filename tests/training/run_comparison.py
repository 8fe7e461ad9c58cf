"""A drawn run by ``train`` and by the textbook's unroll: trained weights, states, readouts, buffers and every hypergradient.

How far the two may be apart is measured, not chosen. 64-bit fixed point holds weights to 2^-42 of the largest, states and what is
added to them to 2^-40, means of squares to 2^-53, as documented. Plain floats round an operation to 2^-53, of which a formula has
dozens, and a difference such as 1 - 0.999^t makes a hundredfold of that. So the unroll is repeated with noise of that size on
every weight, state and gradient of every step: what it changes is how far such roundings go in this very run, whether they shrink
or explode. Up to three draws of noise are taken, since a number may by chance not be moved by one; the largest change counts 8
times for the same reason. Beside it, 1e-13 of the tensor is what sums of a walk back round, and of 1 where they cancel: losses
and weights are of that size.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from drawn_models import EXAMPLES
from drawn_runs import DrawnRun, Part
from drawn_strategies import undoes
from textbook_unroll import Noise, Results, Unroll
from torch import Tensor
from torch.func import functional_call

import reversible_hypergrad as rh

__all__ = ["Comparison", "arguments", "compare"]

DRAWS, FACTOR, FLOOR = 3, 8.0, 1e-13
FIXED_POINT = {"unit": 2.0**-40, "squares": 2.0**-50}
FLOATS = {"unit": 2.0**-46, "squares": 2.0**-46}


class Comparison:
    """What one seed came to: ``refused``, ``diverged``, or how many tensors were ``compared``, of these how many ``tight``ly."""

    def __init__(self, drawn: DrawnRun) -> None:
        self.drawn, self.refused, self.diverged, self.compared, self.tight = drawn, "", False, 0, 0
        strategy = drawn.parts[-1].strategy
        self.strategy = "Reversible" if strategy is None else type(strategy).__name__
        self.rules = {rule.name for rule in drawn.rules.values()}


def compare(seed: int) -> Comparison:
    """An error says how to have it again."""
    drawn = DrawnRun(seed)
    found = Comparison(drawn)
    try:
        _fill(found, seed)
    except Exception as error:
        again = f'PYTHONPATH=.:tests:tests/training python -c "from run_comparison import compare; compare({seed})"'
        raise AssertionError(f"{type(error).__name__}: {error}\n{described(drawn)}\nagain by: {again}") from error
    return found


def described(drawn: DrawnRun) -> str:
    rules = {key: (rule.name, rule.options) for key, rule in drawn.rules.items()}
    return f"{drawn.model_name}, {rules}, {drawn.parts}, clip {drawn.clip}, accumulate {drawn.accumulate}"


def _fill(found: Comparison, seed: int) -> None:
    drawn = found.drawn
    before = {n: t.clone() for n, t in drawn.task.model.state_dict().items()}
    expected_refusals = drawn.refusals()
    try:
        by_train = _by_train(drawn)
    except ValueError as error:
        if not any(re.match(pattern, str(error)) for pattern in expected_refusals):
            raise
        found.refused = str(error)
        return
    except (FloatingPointError, OverflowError):
        assert _diverges(_by_unroll(seed, Noise(0.0, 0.0))), "the textbook's run does not diverge"
        found.diverged = True
        return
    finally:
        assert all(torch.equal(t, before[n]) for n, t in drawn.task.model.state_dict().items()), "the model was changed"
    assert not expected_refusals, f"expected to be refused: {expected_refusals}"
    rounding = FIXED_POINT if any(undoes(part.strategy) for part in drawn.parts) else FLOATS
    exact = _by_unroll(seed, Noise(0.0, 0.0))
    assert by_train.keys() == exact.keys()
    assert all(bool(x.isfinite().all()) for x in exact.values()), "the textbook's run diverges"
    sizes = {label: float(expected.norm()) for label, expected in exact.items()}
    distances = {label: float((by_train[label].double() - expected).norm()) for label, expected in exact.items()}
    bounds = {label: FLOOR * max(size, 1.0) for label, size in sizes.items()}
    for draw in range(DRAWS):
        if all(distances[label] <= bound for label, bound in bounds.items()):
            break  # more noise would only allow more
        noisy = _by_unroll(seed, Noise(**rounding, seed=draw))
        for label, expected in exact.items():
            change = float((noisy[label] - expected).norm())
            bounds[label] = max(bounds[label], FACTOR * change + FLOOR * max(sizes[label], 1.0))
    found.compared = len(exact)
    found.tight = sum(bounds[label] <= 1e-7 * max(size, 1.0) for label, size in sizes.items())
    wrong = [
        f"{label}: off by {distances[label]:.3g} of {sizes[label]:.3g}, {bound:.3g} allowed"
        for label, bound in bounds.items()
        if not distances[label] <= bound
    ]
    assert not wrong, "\n".join(wrong)


def _diverges(outputs: dict[str, Tensor]) -> bool:
    """Whether a number leaves the range of float64, or would at the next step."""
    return any(not bool((x.abs() < 1e140).all()) for x in outputs.values())


def _by_train(drawn: DrawnRun) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        # Of explosion, which the bound is made for.
        warnings.filterwarnings("ignore", message="the gradient by the weights grew", category=RuntimeWarning)
        results = _trained(drawn)
        return {**_outputs(results), **_gradients(drawn, results, by_library=True)}


def _by_unroll(seed: int, noise: Noise) -> dict[str, Tensor]:
    drawn = DrawnRun(seed)
    results = Unroll(drawn, noise).results()
    return {**_outputs(results), **_gradients(drawn, results, by_library=False)}


def arguments(drawn: DrawnRun, part: Part, start: rh.Start | None) -> dict[str, Any]:
    """All that ``train`` is given beside the model and its loss, for one part; ``start`` is where the one before it ended."""
    made = {id(rule): rule.of_part(part.first, part.stop) for rule in drawn.rules.values()}
    of_key = {key: made[id(rule)] for key, rule in drawn.rules.items()}
    initial, start = (None, start) if start is not None else _beginning(drawn)
    return {
        "batches": _batches(drawn),
        "steps": part.stop - part.first,
        "optimizer": of_key[None] if None in of_key else rh.PerParameter(of_key),
        "hyperparameters": drawn.hyperparameters,
        "initial": initial,
        "start": start,
        "readouts": {name: _readout(drawn, *of) for name, of in part.readouts.items()} or None,
        "adjoint": part.strategy,
        "seed": drawn.seed,
        "clip": _clip(drawn, part.first, part.stop),
        "accumulate": drawn.accumulate,
        "check_derivatives": drawn.check_derivatives,
    }


def _trained(drawn: DrawnRun) -> Results:
    start, readouts = None, []
    for part in drawn.parts:
        trained = rh.train(drawn.task.model, drawn.loss, **arguments(drawn, part, start))
        start = trained.state
        readouts.append(trained.readouts)
    # That of a Nesterov step is the gradient, which is no state in the textbook.
    states = {
        n: {s: z for s, z in own.items() if (drawn.rule_of(n).name, s) != ("NesterovSGD", "p")} for n, own in start.states.items()
    }
    return Results(weights=dict(trained), states=states, buffers=trained.buffers, readouts=readouts)


def _beginning(drawn: DrawnRun) -> tuple[dict[str, Tensor] | None, rh.Start | None]:
    in_start = drawn.initial_in_start and (drawn.initial or drawn.states or drawn.begin)
    if in_start or drawn.states or drawn.begin:
        start = rh.Start(drawn.initial if in_start else {}, drawn.states, step=drawn.begin)
        return None if in_start else drawn.initial or None, start
    return drawn.initial or None, None


def _batches(drawn: DrawnRun) -> Any:
    def batch(t: int) -> Any:
        if drawn.lists_micro_batches:
            return rh.MicroBatches([{"i": indices, "t": t} for indices in drawn.micro[t]])
        return {"i": torch.cat(drawn.micro[t]), "t": t}

    return [batch(t) for t in range(drawn.end)] if drawn.batches_are_list else batch


def _readout(drawn: DrawnRun, kind: str, *rest: Any) -> rh.readouts.Readout:
    if kind != "LossAt":
        return getattr(rh, kind)(*rest)
    batch = drawn.validation_batch if rest[1] else drawn.validation_batch(0)
    return rh.LossAt(drawn.loss, batch, rest[0])


def _clip(drawn: DrawnRun, first: int, stop: int) -> Any:
    if drawn.clip is None:
        return None
    limit = drawn.clip_limit.of_part(first, stop, [], whole=False)
    return rh.clip_value(limit) if drawn.clip == "value" else rh.clip_norm(limit, drawn.clip)


def _outputs(results: Results) -> dict[str, Tensor]:
    """All that came out, by label."""
    found = {f"weight {n}": w for n, w in results.weights.items()}
    found.update({f"{s} of {n}": z for n, own in results.states.items() for s, z in own.items()})
    found.update({f"buffer {n}": b for n, b in results.buffers.items()})
    for k, readouts in enumerate(results.readouts):
        for name, value in readouts.items():
            label = f"{name} of part {k}"
            if isinstance(value, Tensor):
                found[label] = value
                continue
            for j, weights in enumerate(value if isinstance(value, list) else [value]):
                found.update({f"{label}, {j}, {n}": w for n, w in weights.items()})
    return {label: value.detach().double() for label, value in found.items()}


def _losses(drawn: DrawnRun, results: Results) -> list[Tensor]:
    """Of some of what came out; the first one of the weights at least."""
    generator = torch.Generator().manual_seed(7)
    losses = []
    for q in range(drawn.losses):
        outputs = [*results.weights.values()]
        if q != 1:
            outputs += [z for own in results.states.values() for z in own.values()]
        if q != 2:
            for readouts in results.readouts:
                for value in readouts.values():
                    of = value if isinstance(value, list) else [value]
                    outputs += [x for one in of for x in (one.values() if isinstance(one, dict) else [one])]
        terms = [(torch.randn(x.shape, generator=generator, dtype=x.dtype) * x * (1 + 0.3 * x)).sum() for x in outputs]
        out = functional_call(drawn.task.model, (dict(results.weights), dict(results.buffers)), (drawn.task.x[: EXAMPLES // 2],))
        losses.append(sum(terms) + out.square().mean())
        if drawn.hyperparameters and "scale" in drawn.hyperparameters:
            losses[-1] = losses[-1] * drawn.hyperparameters["scale"][0]
    return losses


def _gradients(drawn: DrawnRun, results: Results, by_library: bool) -> dict[str, Tensor]:
    """By all leaves, in the way that was drawn; each further one alone walks back through a run that was trained once more."""
    losses, leaves = _losses(drawn, results), drawn.leaves
    if by_library and drawn.way == "hypergradients":
        rows = rh.hypergradients(losses, leaves, drawn.at_a_time)
    elif by_library and drawn.way == "backward":
        rows = [_by_backward(loss, leaves) for loss in losses]
    else:
        found = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True) for loss in losses]
        rows = [dict(zip(leaves, row, strict=True)) for row in found]
    return {
        f"gradient of loss {q} by {label}": torch.zeros_like(leaf) if row[label] is None else row[label].detach()
        for q, row in enumerate(rows)
        for label, leaf in leaves.items()
    }


def _by_backward(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    for leaf in leaves.values():
        leaf.grad = None
    loss.backward(retain_graph=True)
    return {label: leaf.grad for label, leaf in leaves.items()}
