"""Projections: nearest points, by the conditions that single them out and by a solver that knows nothing of sums."""

from __future__ import annotations

import math

import pytest
import torch

import reversible_hypergrad as rh

SETS = {
    "box": rh.Box(-0.5, 1),
    "box with tensors": rh.Box(torch.linspace(-1, 0, 7), torch.linspace(0, 2, 7)),
    "half": rh.Box(low=0.1),
    "ball": rh.L1Ball(1.5),
    "simplex": rh.Simplex(),
    "box and ball": rh.Box(0, 1) & rh.L1Ball(2),
    "signed box and ball": rh.L1Ball(1.2) & rh.Box(-0.4, 0.7),
    "box away from 0 and ball": rh.Box(0.1, 0.9) & rh.L1Ball(1.5),
    "box and simplex": rh.Simplex(2) & rh.Box(0.05, 0.5),
    "tensor box and ball": rh.Box(torch.linspace(-1, 0, 7).double(), 0.8) & rh.L1Ball(1),
}


def points(count=20):
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        x = torch.randn(7, dtype=torch.float64, generator=generator) * 10 ** (i % 5 - 2)
        yield x.round(decimals=1) if i % 3 == 0 else x  # ties, and kinks


def is_in(s, x, slack=1e-12):
    sums = s.limit is None or float(x.abs().sum()) <= s.limit + slack
    sums = sums and (s.total is None or abs(float(x.sum()) - s.total) <= slack)
    return sums and bool(
        (x >= torch.as_tensor(s.low, dtype=x.dtype)).all() and (x <= torch.as_tensor(s.high, dtype=x.dtype)).all()
    )


def by_dykstra(s, x, rounds=1000):
    """Box and half-spaces or a hyperplane in turn (Boyle and Dykstra 1986): the ball is the half-space of the signs of x, because
    the nearest point has no element of the other sign unless the box is away from 0."""
    low, high = torch.as_tensor(s.low, dtype=x.dtype), torch.as_tensor(s.high, dtype=x.dtype)
    signs = torch.where(low > 0, 1.0, torch.where(high < 0, -1.0, x.sign()))
    if s.limit is not None:  # on the side of 0 where x is
        low = torch.where(signs > 0, low.clamp(min=0), low)
        high = torch.where(signs < 0, high.clamp(max=0), high)
    y, p, q = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(rounds):
        z = (y + p).clamp(low, high)
        p = y + p - z
        y = z + q
        normal = torch.ones_like(x) if s.total is not None else signs
        bound = s.total if s.total is not None else s.limit
        if bound is not None:
            excess = float(normal @ y) - bound
            if s.total is not None or excess > 0:
                y = y - excess / float(normal @ normal) * normal
        q = z + q - y
    return z


@pytest.mark.parametrize("name", SETS)
def test_nearest_points(name):
    """A projection p of x is in the set, and (x - p) . (z - p) <= 0 for each z of the set, such as other projections."""
    s, found = SETS[name], [(x, SETS[name].project(x)) for x in points()]
    for x, p in found:
        assert is_in(s, p)
        others = torch.stack([z for _, z in found])
        assert float(((others - p) @ (x - p)).max()) <= 1e-10 * (1 + float(x.norm()))
        torch.testing.assert_close(s.project(p), p, rtol=0, atol=1e-12)  # it stays where it is
        assert s.distance(x) == pytest.approx(float((x - p).abs().max()))


@pytest.mark.parametrize("name", SETS)
def test_against_alternating_projections(name):
    for x in list(points(8)):
        if float(x.abs().max()) < 20:  # which the slow solver gets done
            torch.testing.assert_close(SETS[name].project(x), by_dykstra(SETS[name], x), rtol=0, atol=1e-6)


def test_multipliers_of_a_large_box_with_a_ball():
    """Free elements are all shrunk by the same number, which those at an end do not need more of, or less."""
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    p = (rh.Box(0, 1) & rh.L1Ball(2000)).project(x)
    assert float(p.sum()) == pytest.approx(2000, rel=1e-13)
    free = (p > 0) & (p < 1)
    shift = (x - p)[free]
    assert float(shift.max() - shift.min()) < 1e-12
    assert bool((x[p == 0] <= shift.max() + 1e-12).all())
    assert bool((x[p == 1] >= 1 + shift.min() - 1e-12).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_dtypes(dtype):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    p = (rh.Box(0, 1) & rh.L1Ball(1)).project(x)
    assert p.shape == x.shape
    assert p.dtype == dtype
    assert not p.requires_grad
    assert bool(((p >= 0) & (p <= 1)).all())
    assert float(p.double().sum()) <= 1 + 12 * torch.finfo(dtype).eps
    expected = (rh.Box(0, 1) & rh.L1Ball(1)).project(x.double())
    torch.testing.assert_close(p.double(), expected, rtol=0, atol=torch.finfo(dtype).eps)


def test_ends():
    """Where a bound holds with equality in all elements, and where nothing is to be done."""
    tight = rh.Simplex(1) & rh.Box(0.1, 1)
    x = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tight.project(x), torch.full_like(x, 0.1), rtol=0, atol=1e-15)
    inside = torch.tensor([0.2, -0.3])
    assert torch.equal(rh.L1Ball(1).project(inside), inside)
    assert rh.L1Ball(1).project(torch.empty(0)).shape == (0,)
    assert rh.Simplex(3).project(torch.tensor(7.0)).item() == 3
    assert torch.equal(rh.Box(0, 1).project(torch.tensor([math.inf, -math.inf])), torch.tensor([1.0, 0.0]))


def test_intersections():
    assert repr(rh.Box(0, 1) & rh.L1Ball(2)) == "Box(0, 1) & L1Ball(2)"
    both = rh.Box(0, 2) & rh.Box(1, 3)
    assert (both.low, both.high) == (1, 2)
    assert (rh.L1Ball(3) & rh.L1Ball(2)).limit == 2
    assert (rh.Simplex(1) & rh.L1Ball(2)).limit is None


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: rh.Box(2, 1), ValueError, r"Box: expected low <= high, got low=2, high=1"),
        (lambda: rh.Box(math.nan, 1), ValueError, r"Box: expected low <= high, got low=nan"),
        (lambda: rh.Box("0", 1), TypeError, r"Box: low: expected a number or a tensor, got '0'"),
        (lambda: rh.L1Ball(0), ValueError, r"L1Ball: radius: expected a finite number above 0, got 0"),
        (lambda: rh.Simplex(None), TypeError, r"Simplex: total: expected a number, got None"),
        (lambda: rh.Box(0, 1) & rh.Box(2, 3), ValueError, r"Box\(0, 1\) & Box\(2, 3\): expected sets that meet"),
        (lambda: rh.Simplex(2) & rh.L1Ball(1), ValueError, r"expected sets that meet"),
        (lambda: rh.Simplex(2) & rh.Simplex(1), ValueError, r"expected sets that meet"),
        (
            lambda: (rh.Box(0, 0.1) & rh.Simplex(1)).project(torch.zeros(3)),
            ValueError,
            r"shape \(3,\), but sums of its 3 elements",
        ),
        (lambda: (rh.Box(1, 2) & rh.L1Ball(2)).project(torch.zeros(3)), ValueError, r"are from 3 to inf"),
        (lambda: rh.L1Ball(1).project(torch.tensor([math.nan])), ValueError, r"expected finite numbers to project"),
        (lambda: rh.Box(0, 1).project(torch.tensor([1])), TypeError, r"expected a tensor of floating point, got torch.int64"),
    ],
)
def test_bad_input(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
