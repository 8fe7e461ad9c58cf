"""Parameters of every floating dtype and memory layout, and gradients of other layouts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from optim_problems import (
    bits,
    digits_closure,
    frozen,
    mlp,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
)
from test_sgd_trajectory import Twins
from torch import Tensor, nn

import reversible_hypergrad as rh

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
by_width = pytest.mark.parametrize("state_bits", [64, 32])


@by_width
@by_dtype
def test_trajectory_of_a_dtype(dtype: torch.dtype, state_bits: int) -> None:
    """Against float64: 16-bit parameters follow it to half their ulp, because the fixed point is the master copy."""
    Twins((33,), (7, 3), dtype=dtype, state_bits=state_bits, lr=0.02, momentum=0.9, weight_decay=0.1).run(60)


@by_width
@by_dtype
def test_undo_of_a_dtype(dtype: torch.dtype, state_bits: int) -> None:
    model = mlp().to(dtype)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, momentum=0.9, state_bits=state_bits)
    start = frozen(optimizer)

    def closure_of(step: int) -> Callable[[], Tensor]:
        images = torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).to(dtype)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(images).square().mean()
            loss.backward()
            return loss

        return closure

    for step in range(100):
        optimizer.step(closure_of(step))
    assert frozen(optimizer)["weights"] != start["weights"]
    optimizer.rewind([closure_of(step) for step in reversed(range(100))])
    assert frozen(optimizer) == start


def test_updates_below_a_bfloat16_ulp_add_up() -> None:
    """torch's SGD on a bfloat16 weight loses every one of these updates."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = rh.ReversibleSGD([weight], lr=1e-4, momentum=0.5)
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.allclose(weight.detach().float(), torch.tensor(0.8), atol=0.005)


def test_dtypes_mixed_in_one_group() -> None:
    parameters = [random_parameters((17, 3), dtype=dtype)[0] for dtype in DTYPES]
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 20)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@by_dtype
@by_width
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-7, -1e-7, 3e-30, -12.3, 1 / 3], ids=str)
def test_first_weights_come_back_to_the_last_bit(value: float, dtype: torch.dtype, state_bits: int) -> None:
    """Weights below a quantum, and the sign of zero, are not held by fixed point; rewinding must return them all the same."""
    weight = nn.Parameter(torch.full((5,), value, dtype=dtype))
    optimizer = rh.ReversibleSGD([weight], lr=0.01, state_bits=state_bits)
    before = bits(weight)
    closures = take_steps(optimizer, 3)
    optimizer.rewind(reversed(closures))
    assert bits(weight) == before


def as_channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def as_transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def as_strided_view(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, 7.0)], -1)[..., 0]


def as_broadcast(t: Tensor) -> Tensor:
    return t.flatten()[:1].view(1, 1, 1, 1).expand(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels-last": as_channels_last,
    "transposed": as_transposed,
}
GRADIENT_LAYOUTS = LAYOUTS | {
    "strided": as_strided_view,
    "broadcast": as_broadcast,
    "flipped": lambda t: t.flip(0, 1),
    "negated-view": lambda t: torch._neg_view(t.contiguous()),
    "offset": lambda t: torch.cat([torch.zeros(3), t.flatten()])[3:].view(t.shape),
}


@pytest.mark.parametrize("gradient_layout", GRADIENT_LAYOUTS.values(), ids=GRADIENT_LAYOUTS.keys())
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_parameter_and_gradient(
    layout: Callable[[Tensor], Tensor], gradient_layout: Callable[[Tensor], Tensor]
) -> None:
    """The same numbers must give the same weights, whatever the order in memory."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 5, 2, generator=generator)
    plain, other = nn.Parameter(start.clone()), nn.Parameter(layout(start).clone(memory_format=torch.preserve_format))
    strides = other.stride()
    optimizers = [rh.ReversibleSGD([p], lr=0.1, weight_decay=0.1) for p in (plain, other)]
    gradients = [gradient_layout(torch.randn(4, 3, 5, 2, generator=generator)) for _ in range(5)]
    for gradient in gradients:
        plain.grad, other.grad = gradient.resolve_neg().contiguous(), gradient
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(plain, other)
    for gradient in reversed(gradients):
        optimizers[1].step_back(setting_gradients([other], [gradient]))
    assert torch.equal(other, start)
    assert other.stride() == strides


def test_channels_last_model() -> None:
    """Convolution gradients come channels-last; training equals the contiguous run's numbers within float32 noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    model = model.to(memory_format=torch.channels_last)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.05)
    start = frozen(optimizer)
    closures = [digits_closure(model, optimizer, step) for step in range(20)]
    for closure in closures:
        optimizer.step(closure)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


HOLED = {
    "strided": lambda: torch.randn(8, 2)[:, 0],
    "expanded": lambda: torch.randn(1).expand(4),
    "sliced": lambda: torch.randn(4, 4)[:, :2],
}


@pytest.mark.parametrize("make", HOLED.values(), ids=HOLED.keys())
def test_parameters_with_holes_or_overlaps_are_refused(make: Callable[[], Tensor]) -> None:
    parameter = nn.Parameter(torch.randn(1))
    parameter.data = make()
    with pytest.raises(ValueError, match=r"parameter 0 of group 0.*strides.*contiguous\(\)"):
        rh.ReversibleSGD([parameter])


def test_gradient_of_another_dtype_is_refused() -> None:
    weights = random_parameters((3,), (4,))
    optimizer = rh.ReversibleSGD(weights, lr=0.1)
    take_steps(optimizer, 2)
    weights[0].grad, other = random_gradients(weights, seed=9)
    try:
        weights[1].grad_dtype = None  # where torch allows the gradient to have a dtype of its own
        weights[1].grad = other.double()
    except (AttributeError, RuntimeError):
        pytest.skip("this torch does not allow a gradient of another dtype")
    with refused(optimizer, TypeError, "parameter 1 of group 0", "float64", "float32"):
        optimizer.step()


@by_width
def test_values_just_inside_the_float16_range(state_bits: int) -> None:
    """The visible weight must be finite whenever the step was accepted."""
    weight = nn.Parameter(torch.tensor([65504.0 if state_bits == 64 else 15.9], dtype=torch.float16))
    optimizer = rh.ReversibleSGD([weight], lr=1.0, state_bits=state_bits)
    weight.grad = torch.tensor([-25.0 if state_bits == 64 else -0.05], dtype=torch.float16)
    with contextlib.suppress(OverflowError):
        optimizer.step()
    assert torch.isfinite(weight).all()
