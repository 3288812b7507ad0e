"""Which kernel of an op runs where it has several: ``python -m acefast.sim.twins --orders`` makes it of csrc/twins.md.

A measurement on a GPU goes before a prediction. GPUs of sm_80, 86 and 89, and sm_120, have one kind of tensor core
instruction, sm_90 and sm_100 others, which Triton's compiler uses: each row holds up to the next one's sm. A row is an
op's, or where its classes of shapes differ "op/class".
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST: dict[str, dict[int, str]] = {
    "apg": {80: "cuda", 90: "cuda", 120: "cuda"},
    "conv1d": {80: "cuda", 90: "triton", 120: "cuda"},
    "cross_attention": {80: "cuda", 90: "triton", 120: "cuda"},
    "qk_norm_rope": {80: "cuda", 90: "triton", 120: "cuda"},
    "residual_norm": {80: "triton", 90: "triton", 120: "triton"},
    "residual_unit/c128": {80: "cuda", 90: "cuda", 120: "cuda"},
    "residual_unit/c256": {80: "cuda", 90: "triton", 120: "cuda"},
    "sampler_step": {80: "cuda", 90: "triton", 120: "cuda"},
    "self_attention": {80: "cuda", 90: "triton", 120: "cuda"},
}


def fastest_first(op: str, families: Sequence[str], sm: int, shape_class: str = "") -> tuple[str, ...]:
    """``families`` of kernels, such as "triton" and "cuda", in the order to take them on a GPU of ``sm``.

    An op that is in no row keeps the order that it gives.
    """
    known = FIRST.get(f"{op}/{shape_class}") or FIRST.get(op, {})
    rows = {least: family for least, family in known.items() if least <= sm}
    first = rows[max(rows)] if rows else None
    return tuple(sorted(families, key=lambda family: family != first))
