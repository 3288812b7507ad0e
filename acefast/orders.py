"""Which kernel of an op runs where it has several: ``python -m acefast.sim.twins --orders`` makes it of csrc/twins.md.

GPUs before sm_90 go by what is predicted for sm_80, sm_90 and later ones by what was measured on an H100, whose tensor
cores have instructions that Triton's compiler knows and these kernels do not. A row is an op's, or where its classes of
shapes differ "op/class".
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST: dict[str, dict[int, str]] = {
    "apg": {80: "cuda", 90: "cuda"},
    "conv1d": {80: "cuda", 90: "triton"},
    "conv_transpose1d": {80: "cuda", 90: "triton"},
    "cross_attention": {80: "cuda", 90: "triton"},
    "qk_norm_rope": {80: "triton", 90: "cuda"},
    "residual_unit/c128": {80: "cuda", 90: "cuda"},
    "residual_unit/c256": {80: "cuda", 90: "triton"},
    "sampler_step": {80: "cuda", 90: "triton"},
    "self_attention": {80: "cuda", 90: "triton"},
}


def fastest_first(op: str, families: Sequence[str], sm: int, shape_class: str = "") -> tuple[str, ...]:
    """``families`` of kernels, such as "triton" and "cuda", in the order to take them on a GPU of ``sm``.

    An op that is in no row keeps the order that it gives.
    """
    known = FIRST.get(f"{op}/{shape_class}") or FIRST.get(op, {})
    rows = {least: family for least, family in known.items() if least <= sm}
    first = rows[max(rows)] if rows else None
    return tuple(sorted(families, key=lambda family: family != first))
