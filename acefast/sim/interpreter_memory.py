"""What the programs of one interpreted launch may touch and have touched; numpy alone, no Triton.

A pointer carries in its 16 high bits, which addresses of a process leave free, the number of the tensor it was made
from. Pointer arithmetic keeps them, so an access is held to that tensor even where it lands in another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from acefast.sim.errors import SimError

_SHIFT = np.uint64(48)
_ADDRESS = np.uint64((1 << 48) - 1)
_NOBODY, _SEVERAL = -1, -2


class KernelFault(SimError):
    """A kernel touched memory that it must not, or left some unwritten."""


def split_pointers(pointers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the tensors and the plain addresses."""
    return pointers >> _SHIFT, pointers & _ADDRESS


@dataclass(frozen=True)
class Access:
    """One load, store or atomic of one program: the lanes that its mask leaves in."""

    kind: str  # "load", "store" or "atomic"
    pointers: np.ndarray  # uint64 [lanes], tagged
    size: int  # bytes of an element
    program: tuple[int, int, int]
    grid: tuple[int, int, int]
    values: np.ndarray | None  # [lanes], what is stored
    tracked: bool  # whether it takes part in the search for races
    line: Callable[[], str]  # the place in the kernel's source, asked only for a message


class _Span:
    """One tensor among the arguments: its bytes from the first to the last element."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.low = tensor.data_ptr()
        self.itemsize = tensor.element_size()
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride()))
        self.elements = 0 if 0 in tensor.shape else last + 1
        self.high = self.low + self.elements * self.itemsize


class _Region:
    """Overlapping tensors together: who stored and who loaded each byte, as the program's number in the grid."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.stored = np.full(high - low, _NOBODY, np.int32)
        self.loaded = np.full(high - low, _NOBODY, np.int32)


class Memory:
    """The arguments of one launch, held against every access of its programs.

    Args:
        kernel: its name, for messages.
        tensors: the arguments that are tensors, by name.
        races: also remember which program stored and loaded each byte.
    """

    def __init__(self, kernel: str, tensors: dict[str, Any], races: bool) -> None:
        self.kernel, self.races = kernel, races
        self.spans: list[_Span] = []
        self.numbers: dict[tuple[int, int], int] = {}
        self.regions: list[_Region] = []  # made at the first access, when every tensor is known
        for name, tensor in tensors.items():
            self._add(name, tensor)

    def _add(self, name: str, tensor: Any) -> int:
        self.spans.append(_Span(name, tensor))
        self.numbers[id(tensor), tensor.data_ptr()] = len(self.spans)  # from 1: 0 is a pointer without a number
        return len(self.spans)

    def tag(self, tensor: Any, pointers: np.ndarray) -> np.ndarray:
        """Pointers to ``tensor`` with its number in them; one from within a tuple or descriptor is new here."""
        number = self.numbers.get((id(tensor), tensor.data_ptr())) or self._add(f"tensor {len(self.spans)}", tensor)
        return pointers | (np.uint64(number) << _SHIFT)

    def check(self, access: Access) -> None:
        """Raise KernelFault if some lane is out of bounds or races with another program or lane."""
        if not access.pointers.size:
            return
        numbers, addresses = split_pointers(access.pointers)
        inside = np.zeros(len(addresses), bool)
        for number in np.unique(numbers).tolist():
            for span in self._spans(number):
                fits = (addresses >= span.low) & (addresses + np.uint64(access.size) <= span.high)
                inside |= fits & (numbers == number)
        if not inside.all():
            self._out_of_bounds(access, numbers, addresses, ~inside)
        if self.races and access.tracked:
            self._check_races(access, addresses)

    def _spans(self, number: int) -> list[_Span]:
        """What a pointer of this number may reach: its own tensor; any, if it was read from memory itself."""
        return [self.spans[number - 1]] if 0 < number <= len(self.spans) else self.spans

    def _where(self, access: Access) -> str:
        return f"{self.kernel}, {access.line()}"

    def _out_of_bounds(self, access: Access, numbers: np.ndarray, addresses: np.ndarray, outside: np.ndarray) -> None:
        first = int(outside.argmax())
        address = int(addresses[first])
        message = (
            f"{self._where(access)}: out-of-bounds {access.kind} by program {access.program}, "
            f"{outside.sum()} of {len(outside)} lanes"
        )
        if len(spans := self._spans(int(numbers[first]))) == 1:
            index = (address - spans[0].low) // spans[0].itemsize
            message += f"; the first is {spans[0].name}[{index}] of {spans[0].elements} elements"
        raise KernelFault(message)

    def _check_races(self, access: Access, addresses: np.ndarray) -> None:
        self.regions = self.regions or self._make_regions()
        x, y, z = access.program
        me = (x * access.grid[1] + y) * access.grid[2] + z
        for region in self.regions:
            here = (addresses >= region.low) & (addresses < region.high)
            if not here.any():
                continue
            start = (addresses[here] - np.uint64(region.low)).astype(np.int64)
            if access.kind == "store":
                self._check_lanes(access, addresses, start, access.values[here])
            for offset in range(access.size):
                index = start + offset
                earlier = [("stored", region.stored)]
                if access.kind == "store":
                    earlier.append(("loaded", region.loaded))
                for verb, owner in earlier:
                    clash = (owner[index] != _NOBODY) & (owner[index] != me)
                    if clash.any():
                        lane = int(clash.argmax())
                        self._race(access, verb, int(owner[index[lane]]), region.low + int(start[lane]))
                if access.kind == "store":
                    region.stored[index] = me
                else:
                    before = region.loaded[index]
                    region.loaded[index] = np.where((before == _NOBODY) | (before == me), me, _SEVERAL)

    def _check_lanes(self, access: Access, addresses: np.ndarray, start: np.ndarray, values: np.ndarray) -> None:
        order = np.argsort(start, kind="stable")
        start, values = start[order], values[order]
        bits = np.ascontiguousarray(values).view(f"u{values.itemsize}")
        clash = (start[1:] == start[:-1]) & (bits[1:] != bits[:-1])
        if clash.any():
            raise KernelFault(
                f"{self._where(access)}: write race between lanes of program {access.program}, which store different "
                f"values to one address, {clash.sum() + 1} of {len(start)} lanes"
            )

    def _race(self, access: Access, verb: str, owner: int, address: int) -> None:
        span = next(s for s in self.spans if s.low <= address < s.high)
        element = f"{span.name}[{(address - span.low) // span.itemsize}]"
        _, rows, columns = access.grid
        other = (owner // columns // rows, owner // columns % rows, owner % columns)
        who = "several programs" if owner == _SEVERAL else f"program {other}"
        kind = "write race" if (access.kind, verb) == ("store", "stored") else "read-write race"
        raise KernelFault(
            f"{self._where(access)}: {kind}: program {access.program} {access.kind}s {element}, which {who} {verb}"
        )

    def _make_regions(self) -> list[_Region]:
        merged: list[list[int]] = []
        for span in sorted((s for s in self.spans if s.elements), key=lambda s: s.low):
            if merged and span.low < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], span.high)
            else:
                merged.append([span.low, span.high])
        return [_Region(low, high) for low, high in merged]
