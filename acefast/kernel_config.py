"""Static launch configurations of the Triton kernels: a table per kernel, (shape class, sm) -> ``Config``.

    CONFIGS = {("h2048", 80): Config({"ROWS": 4}, num_warps=8), ("h2048", 90): Config({"ROWS": 2}, num_warps=4)}
    config = pick(CONFIGS, "h2048")
    kernel[(triton.cdiv(rows, config["ROWS"]),)](..., **config.options)

Nothing is tuned at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acefast.backends import emulated_sm


@dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    tiles: Mapping[str, int]  # its constexpr sizes by name
    num_warps: int = 4
    num_stages: int = 1
    compiler: Mapping[str, Any] = field(default_factory=dict)  # further options of Triton's

    def __getitem__(self, tile: str) -> int:
        return self.tiles[tile]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the launch; contraction to fma is on unless ``compiler`` says otherwise."""
        fixed = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return {**self.tiles, **fixed, **self.compiler}


def current_sm() -> int:
    """The GPU's compute capability, 80 for an A100; the one that is emulated where one is."""
    if sm := emulated_sm():
        return sm
    from triton.runtime.driver import driver

    arch = driver.active.get_current_target().arch
    return arch if isinstance(arch, int) else 80  # of other makers' GPUs it is a name


def pick(table: Mapping[tuple[str, int], Config], shape_class: str, sm: int | None = None) -> Config:
    """The row for ``sm`` (the current one by default), else its generation's first (120 for 121), else sm 80's."""
    sm = sm or current_sm()
    rows = (table.get((shape_class, near)) for near in (sm, sm // 10 * 10, 80))
    found = next((row for row in rows if row is not None), None)
    if found is None:
        known = ", ".join(sorted({name for name, _ in table}))
        raise KeyError(f"no configuration for shape class {shape_class!r}; the table has {known}")
    return found
