"""What a compiled kernel needs and is made of: registers, spills, shared memory and the mix of its machine code.

    resources = read_kernel(launches[0].kernel)  # of acefast.sim.driver; read_cubin for any other cubin
    resources.registers, resources.spill_bytes, resources.shared_bytes, resources.tensor_core, resources.cp_async
    resources.loop_mma, resources.loop_other  # tensor-core and other instructions of the main loop
    assemble(launches[0].ptx, sm=90).spill_store_bytes  # the same PTX for another GPU, as ptxas -v reports it

The tools come with the triton wheel (triton/backends/nvidia/bin) or else from a CUDA toolkit on PATH. Nothing here
imports triton or needs a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Not all that says MMA is one: HFMA2.MMA is an ordinary half-precision multiply-add.
TENSOR_CORE = (
    *("HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "OMMA"),  # mma.sync
    *("HGMMA", "IGMMA", "QGMMA", "BGMMA"),  # wgmma of sm_90
    *("UTCHMMA", "UTCIMMA", "UTCQMMA", "UTCOMMA"),  # tcgen05 of sm_100
)
_RESERVED_SHARED = 1024  # bytes; cuobjdump counts them, the limit of a block and ptxas do not
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")


@dataclass(frozen=True)
class Resources:
    """Of one kernel in a cubin; bytes and registers per thread, shared memory per block, instructions as written."""

    name: str
    sm: int
    registers: int
    spill_bytes: int  # frame in local memory: spilled registers, and arrays indexed at run time
    static_shared: int  # what the kernel declares, without the 1024 bytes that sm_90 and newer keep for themselves
    dynamic_shared: int  # Triton's shared memory is all dynamic; the cubin does not know it
    instructions: dict[str, int]  # "HMMA.16816.F32.BF16" -> how often it stands in the code
    loop_mma: int = 0  # tensor-core instructions of the main loop, see main_loop
    loop_other: int = 0  # all others there

    @property
    def shared_bytes(self) -> int:
        return self.static_shared + self.dynamic_shared

    def count(self, *families: str) -> int:
        """Instructions whose name up to the first dot is one of ``families``."""
        return sum(n for opcode, n in self.instructions.items() if opcode.split(".")[0] in families)

    @property
    def tensor_core(self) -> int:
        return self.count(*TENSOR_CORE)

    @property
    def cp_async(self) -> int:
        return self.count("LDGSTS")

    @property
    def ldmatrix(self) -> int:
        return self.count("LDSM")

    @property
    def local(self) -> int:
        """Loads from and stores to local memory: what spills cost."""
        return self.count("LDL", "STL")

    @property
    def barriers(self) -> int:
        return self.count("BAR")

    @property
    def loop_mix(self) -> float | None:
        """Other instructions per tensor-core instruction of the main loop."""
        return round(self.loop_other / self.loop_mma, 3) if self.loop_mma else None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        derived = ("shared_bytes", "tensor_core", "cp_async", "ldmatrix", "local", "barriers", "loop_mix")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True)
class Assembly:
    """What ``ptxas -v`` reports of one kernel, and the cubin it made of the whole text."""

    name: str
    sm: int
    registers: int
    stack_bytes: int
    spill_store_bytes: int  # in the code, as are the loads: each counted once, however often a loop runs it
    spill_load_bytes: int
    static_shared: int
    cubin: bytes


class AssemblerError(ValueError):
    """ptxas refuses a PTX text for a GPU; the message is its own first line."""


def read_kernel(kernel: Any) -> Resources:
    """Resources of what Triton compiled: a CompiledKernel, such as ``Launch.kernel``."""
    return read_cubin(kernel.asm["cubin"], kernel.metadata.name, dynamic_shared=kernel.metadata.shared)


@functools.lru_cache(64)  # several cases may be one entry point
def read_cubin(cubin: bytes, name: str | None = None, *, dynamic_shared: int = 0) -> Resources:
    """Resources of kernel ``name`` in a cubin; the name may be left out where there is one kernel.

    Raises:
        ValueError: ``cubin`` is none, or has no kernel ``name``.
        RuntimeError: the tools are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _run([_tool("cuobjdump")[0], "--dump-resource-usage", str(path)])
        found = dict(re.findall(r"^\s*Function (\S+):\s*\n\s*(REG:.*)$", usage.stdout, re.MULTILINE))
        if usage.returncode or not found:
            raise ValueError(f"read_cubin: no kernel in these {len(cubin)} bytes: {_first_line(usage)}")
        name = _only(found, name, "read_cubin")
        sass = _run([_tool("nvdisasm")[0], "-c", str(path)])
        if sass.returncode:
            raise ValueError(f"read_cubin: nvdisasm cannot read this cubin: {_first_line(sass)}")
    sm = next(int(a or b) for a, b in re.findall(r"\.target\s+sm_(\d+)|EF_CUDA_SM(\d+)", sass.stdout))
    used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", found[name])}
    sections = re.split(r"^\.text\.(\S+):$", sass.stdout, flags=re.MULTILINE)  # [before, name, code, name, code, ...]
    code = dict(zip(sections[1::2], sections[2::2]))[name]
    mix = Counter(_INSTRUCTION.findall(code))
    del mix["NOP"]  # padding after the end
    return Resources(
        name=name,
        sm=sm,
        registers=used["REG"],
        spill_bytes=used["STACK"] + used["LOCAL"],
        static_shared=max(0, used["SHARED"] - (_RESERVED_SHARED if sm >= 90 else 0)),  # 0 where there is none at all
        dynamic_shared=dynamic_shared,
        instructions=dict(sorted(mix.items())),
        **dict(zip(("loop_mma", "loop_other"), main_loop(code))),
    )


def main_loop(code: str) -> tuple[int, int]:
    """Tensor-core and other instructions of a kernel's main loop, from its text as nvdisasm writes it; (0, 0) if none.

    A loop is what stands from a label to the last branch back to it. The main loop has the most tensor-core
    instructions of those without such a loop inside them.
    """
    starts, ends, opcodes = {}, {}, []
    for line in code.splitlines():
        if label := _LABEL.match(line):
            starts[label[1]] = len(opcodes)
        elif found := _INSTRUCTION.match(line):
            opcodes.append(found[1].split(".")[0])
            if (branch := _BRANCH.search(line)) and branch[1] in starts:
                ends[branch[1]] = len(opcodes)
    loops = {}  # (from, to) -> tensor-core instructions
    for label, end in ends.items():
        if products := sum(opcode in TENSOR_CORE for opcode in opcodes[starts[label] : end]):
            loops[starts[label], end] = products
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    if not inner:
        return 0, 0
    first, end = max(inner, key=loops.__getitem__)
    return loops[first, end], end - first - loops[first, end]


def assemble(ptx: str, sm: int, name: str | None = None) -> Assembly:
    """Assemble PTX for ``sm``: its own sm or a newer one, unless its target ends in "a", which is tied to its GPU.

    Triton's PTX is assembled with the tool and the options that Triton uses, so the figures are those of its cubin.

    Raises:
        AssemblerError: ptxas refuses.
        ValueError: the text has several kernels and ``name`` is none of them.
        RuntimeError: ptxas is missing.
    """
    tools = _tool("ptxas", "ptxas-blackwell") if sm < 90 else _tool("ptxas-blackwell", "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        for tool in tools:
            options = ["--regAllocOptLevel=2"] if _triton_tools() in Path(tool).parents else []
            gpu = f"--gpu-name=sm_{sm}{'a' if sm >= 90 else ''}"
            done = _run([tool, "-v", "-lineinfo", *options, gpu, str(source), "-o", str(cubin)])
            if done.returncode == 0 or "Unsupported .version" not in done.stderr:
                break  # else the text is newer than this ptxas: the next one may know it
        if done.returncode:
            raise AssemblerError(f"assemble: not for sm_{sm}: {_first_line(done)}")
        data = cubin.read_bytes()
    reports = re.split(r"Compiling entry function '([^']+)'", done.stderr)  # [before, name, report, name, report, ...]
    entries = dict(zip(reports[1::2], reports[2::2]))
    name = _only(entries, name, "assemble")

    def number(pattern: str) -> int:
        found = re.search(pattern, entries[name])
        return int(found[1]) if found else 0

    return Assembly(
        name=name,
        sm=sm,
        registers=number(r"Used (\d+) registers"),
        stack_bytes=number(r"(\d+) bytes stack frame"),
        spill_store_bytes=number(r"(\d+) bytes spill stores"),
        spill_load_bytes=number(r"(\d+) bytes spill loads"),
        static_shared=number(r"(\d+) bytes smem"),
        cubin=data,
    )


def _triton_tools() -> Path | None:
    spec = importlib.util.find_spec("triton")  # finds, does not import
    return Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else None


def _tool(*names: str) -> list[str]:
    """Where these tools are, Triton's before the toolkit's, in the order of ``names``; at least one."""
    folder = _triton_tools()
    ours = [str(folder / name) for name in names if folder and (folder / name).exists()]
    paths = ours + [path for name in names if (path := shutil.which(name))]
    if not paths:
        raise RuntimeError(
            f"acefast.sim: {names[0]} is missing; pip install triton, which brings it, or put the bin folder of a CUDA "
            "toolkit on PATH"
        )
    return paths


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    return next((line.strip() for line in done.stderr.splitlines() if line.strip()), f"exit status {done.returncode}")


def _only(kernels: Iterable[str], name: str | None, who: str) -> str:
    names = list(kernels)
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ValueError(f"{who}: name must be one of {', '.join(names)}, got {name}")
    return name
