"""Functions that no layer stands for."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.second_derivatives.cases import Case, case, integers, normal, positive

__all__ = ["FUNCTIONS"]

_HEADS = (normal(2, 2, 3, 4),) * 3
_GRID = normal(2, 3, 4, 4), lambda: 1.6 * torch.rand(2, 3, 3, 2, dtype=torch.float64) - 0.8
_VOLUME = normal(1, 2, 3, 3, 3), lambda: 1.6 * torch.rand(1, 2, 2, 2, 3, dtype=torch.float64) - 0.8
_IMAGE, _PAIR = normal(2, 3, 4, 4), (normal(5, 3), normal(4, 3))
_RESIZED = {
    **dict.fromkeys(("nearest", "nearest-exact", "bilinear", "bicubic", "area"), _IMAGE),
    "linear": normal(2, 3, 5),
    "trilinear": normal(1, 2, 3, 3, 3),
}


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """What torch takes by itself outside of a run."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def _well_conditioned() -> Tensor:
    a = torch.randn(4, 4, dtype=torch.float64)
    return a @ a.T + torch.diag(torch.arange(1.0, 5.0, dtype=torch.float64))


FUNCTIONS: dict[str, Case] = {
    "scaled_dot_product_attention": case(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *_HEADS),
    "scaled_dot_product_attention(is_causal=True)": case(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *_HEADS
    ),
    "scaled_dot_product_attention, by flash attention": case(lambda q, k, v: _flash(q, k, v), *_HEADS),
    "grid_sample": case(lambda x, grid: F.grid_sample(x, grid, align_corners=False), *_GRID),
    "grid_sample(mode='nearest')": case(lambda x, grid: F.grid_sample(x, grid, "nearest", align_corners=False), *_GRID),
    "grid_sample(mode='bicubic')": case(lambda x, grid: F.grid_sample(x, grid, "bicubic", align_corners=False), *_GRID),
    "grid_sample of a volume": case(lambda x, grid: F.grid_sample(x, grid, align_corners=False), *_VOLUME),
    "affine_grid": case(lambda theta: F.affine_grid(theta, [2, 3, 4, 4], align_corners=False), normal(2, 2, 3)),
    **{
        f"interpolate(mode={mode!r})": case(lambda x, mode=mode: F.interpolate(x, scale_factor=1.5, mode=mode), x)
        for mode, x in _RESIZED.items()
    },
    **{
        f"interpolate(mode={mode!r}, antialias=True)": case(
            lambda x, mode=mode: F.interpolate(x, scale_factor=1.5, mode=mode, antialias=True), _IMAGE
        )
        for mode in ("bilinear", "bicubic")
    },
    **{f"cdist(p={p})": case(lambda x, y, p=p: torch.cdist(x, y, p=p), *_PAIR) for p in (1.0, 1.5, 2.0, 3.0, float("inf"))},
    "cdist by matrix products": case(lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"), *_PAIR),
    "pdist": case(lambda x: F.pdist(x), normal(5, 3)),
    "pdist(p=1)": case(lambda x: F.pdist(x, 1.0), normal(5, 3)),
    "gumbel_softmax": case(lambda x: F.gumbel_softmax(x, 0.7), normal(5, 4)),
    "normalize": case(lambda x: F.normalize(x), normal(5, 4)),
    "embedding_bag(per_sample_weights=...)": case(
        lambda table, i, w: F.embedding_bag(i, table, mode="sum", per_sample_weights=w),
        normal(5, 3),
        integers(5, 4, 2),
        normal(4, 2),
    ),
    "conv_tbc": case(lambda x, w, b: torch.conv_tbc(x, w, b, 1), normal(4, 2, 3), normal(2, 3, 2), normal(2)),
    "gather, scatter_add, index_select": case(
        lambda x, i: torch.zeros(6, 4).to(x).scatter_add(0, i, x.gather(0, i)).index_select(0, i[:, 0]),
        normal(5, 4),
        integers(5, 5, 4),
    ),
    "cumprod": case(lambda x: x.cumprod(1), normal(4, 5)),
    "logcumsumexp": case(lambda x: x.logcumsumexp(1), normal(4, 5)),
    "sort, median, amax": case(lambda x: (x.sort(1).values, x.median(1).values, x.amax(1)), normal(4, 5)),
    "std, var, norm": case(lambda x: (x.std(1), x.var(0), x.norm(dim=1), x.norm(p=3)), normal(4, 5)),
    "prod": case(lambda x: (x.prod(1), x.prod()), normal(4, 5)),
    "special functions": case(
        lambda x: (torch.lgamma(x), torch.digamma(x), torch.erf(x), torch.erfinv(x - 1), torch.xlogy(x, x)), positive(4, 5)
    ),
    "inverse, solve, det, cholesky": case(
        lambda a: (a.inverse(), torch.linalg.solve(a, a[0]), torch.linalg.slogdet(a)[1], torch.linalg.cholesky(a @ a.T)),
        _well_conditioned,
    ),
    "eigh, svd, qr": case(
        lambda a: (torch.linalg.eigvalsh(a + a.T), torch.linalg.svdvals(a), torch.linalg.qr(a).R), _well_conditioned
    ),
    "matrix_exp": case(lambda a: torch.linalg.matrix_exp(a / 4), _well_conditioned),
    "fft, rfft": case(lambda x: (torch.fft.fft(x).abs(), torch.view_as_real(torch.fft.rfft(x))), normal(3, 6)),
    "einsum": case(lambda x, y: torch.einsum("ij,kj->ik", x, y), *_PAIR),
}
