"""Which kernel of an op runs where it has several: ``python -m acefast.sim.twins --orders`` makes it of csrc/twins.md.

A measurement on a GPU goes before a prediction. GPUs of sm_80, 86 and 89, and sm_120, have one kind of tensor core
instruction, sm_90 and sm_100 others: each row holds up to the next one's sm.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST: dict[str, dict[int, str]] = {
    "residual_unit": {80: "cuda", 90: "cuda", 120: "cuda"},
    "snake": {80: "triton", 90: "triton", 120: "triton"},
}


def fastest_first(op: str, families: Sequence[str], sm: int) -> tuple[str, ...]:
    """``families`` of kernels, such as "triton" and "cuda", in the order to take them on a GPU of ``sm``.

    An op that is in no row keeps the order that it gives.
    """
    rows = {least: family for least, family in FIRST.get(op, {}).items() if least <= sm}
    first = rows[max(rows)] if rows else None
    return tuple(sorted(families, key=lambda family: family != first))
