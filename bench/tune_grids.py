"""What bench/tune.py tries: per kernel and shape class, products of tile sizes, warps and stages.

A class may have several grids; an axis that a grid leaves out stays as the table has it. Where a class has none,
warps and stages alone are tried. The values are meant for tensor cores of sm_80 and later: of wgmma (sm_90) four warps
take at least 64 rows, and a product's tile is the larger the better, since every byte of it comes from L2 again and
again.
"""

from __future__ import annotations

Grid = dict[str, tuple[int, ...]]


def _product(m: int, n: int, k: int, warps: int, stages: tuple[int, ...]) -> Grid:
    return {"BLOCK_M": (m,), "BLOCK_N": (n,), "BLOCK_K": (k,), "num_warps": (warps,), "num_stages": stages}


def _unit(m: int, k: int, chunks: tuple[int, ...], warps: int, stages: tuple[int, ...]) -> Grid:
    return {"BLOCK_M": (m,), "BLOCK_K": (k,), "CHUNK": chunks, "num_warps": (warps,), "num_stages": stages}


def _attention(m: int, keys: tuple[int, ...], stages: tuple[int, ...], warps: int) -> Grid:
    return {"M": (m,), "KEYS": keys, "STAGES": stages, "num_warps": (warps,)}


_ATTENTION = (
    _attention(64, (32, 64), (2, 3), 4),
    _attention(64, (128,), (2,), 4),
    _attention(128, (32,), (2, 3), 4),
    _attention(128, (32, 64), (3,), 8),
    _attention(128, (128,), (2,), 8),
)
_WIDE = (
    _product(128, 256, 64, 8, (3, 4)),
    _product(128, 256, 32, 8, (4,)),
    _product(128, 128, 64, 4, (3,)),
    _product(128, 128, 64, 8, (3, 4)),
    _product(128, 128, 128, 8, (2, 3)),
    _product(256, 128, 64, 8, (3, 4)),
    _product(64, 256, 64, 4, (3,)),
)
_HALF = (
    _product(128, 128, 64, 4, (2, 3)),
    _product(128, 128, 64, 8, (2, 3)),
    _product(128, 128, 32, 4, (4,)),
    _product(64, 128, 64, 4, (3, 4)),
    _product(256, 128, 64, 8, (2, 3)),
    _product(128, 64, 64, 4, (3, 4)),
)

GRIDS: dict[tuple[str, str], tuple[Grid, ...]] = {
    ("residual_unit", "c128"): (
        _unit(128, 64, (32, 64), 4, (2, 3)),
        _unit(128, 64, (32,), 8, (2, 3)),
        _unit(128, 64, (64, 128), 8, (3,)),
        _unit(256, 64, (32, 64), 8, (2, 3)),
        _unit(64, 64, (64,), 4, (3,)),
    ),
    ("residual_unit", "c256"): (
        _unit(128, 64, (32, 64), 8, (2, 3)),
        _unit(128, 32, (32,), 8, (4,)),
        _unit(64, 64, (64,), 4, (2, 3)),
        _unit(64, 64, (64,), 8, (3,)),
    ),
    ("conv1d", "wide"): _WIDE,
    ("conv1d", "half"): _HALF,
    ("conv1d", "frames"): (
        _product(64, 128, 64, 4, (4, 6)),
        _product(64, 128, 128, 4, (3, 4)),
        _product(128, 128, 64, 8, (4, 5)),
        _product(128, 64, 64, 4, (5,)),
        _product(64, 64, 128, 4, (4,)),
        _product(128, 128, 128, 8, (3,)),
    ),
    ("conv1d", "last"): (
        _product(64, 16, 128, 4, (4, 5)),
        _product(64, 32, 128, 4, (3, 4)),
        _product(64, 16, 256, 4, (3, 4)),
        _product(32, 32, 128, 4, (4,)),
        _product(16, 32, 256, 4, (4,)),
        _product(32, 16, 256, 4, (4,)),
        _product(64, 64, 128, 4, (4,)),
    ),
    ("conv_transpose1d", "wide"): _WIDE,
    ("conv_transpose1d", "half"): _HALF,
    ("linear_swiglu", "many"): (
        _product(256, 64, 64, 8, (3, 4)),
        _product(256, 64, 32, 8, (5,)),
        _product(128, 128, 64, 8, (3, 4)),
        _product(128, 64, 64, 4, (3,)),
        _product(128, 64, 64, 8, (3, 4)),
        _product(256, 64, 128, 8, (2,)),
    ),
    ("linear_swiglu", "few"): (
        _product(128, 64, 64, 4, (3, 4)),
        _product(128, 64, 64, 8, (3, 4)),
        _product(128, 128, 64, 8, (3, 4)),
        _product(64, 128, 64, 4, (3,)),
        _product(128, 64, 128, 8, (3,)),
        _product(256, 64, 64, 8, (3,)),
    ),
    ("cross_attention", "half-128"): _ATTENTION,
    ("self_attention", "half-128"): _ATTENTION,
    ("residual_norm", "wide"): ({"ROWS": (1, 2), "num_warps": (2, 4, 8)}, {"ROWS": (4,), "num_warps": (8,)}),
    ("apg", "partials"): ({"num_warps": (4, 8, 16, 32)},),
    ("apg", "guide"): ({"PARTIALS": (8, 16, 32), "num_warps": (8, 16)},),
    ("apg", "guide-drawn"): ({"PARTIALS": (16, 32), "num_warps": (8, 16, 32)},),
    ("sampler_step", "plain"): ({"num_warps": (4, 8, 16, 32)},),
    ("sampler_step", "drawn"): ({"num_warps": (8, 16, 32)},),
}
_LAUNCH: tuple[Grid, ...] = ({"num_warps": (4, 8), "num_stages": (2, 3, 4)},)


def grids(kernel: str, name: str) -> tuple[Grid, ...]:
    """Of a kernel's shape class."""
    return GRIDS.get((kernel, name), _LAUNCH)
