"""Hand-written PTX for the simulator's tests: a body becomes a kernel with registers, parameters and shared memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acefast import sim

REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<20>; .reg .b32 %r<60>; .reg .b64 %d<20>; .reg .f32 %f<20>; .reg .f64 %g<9>;"


def kernel(body: str, pointers: Sequence[str] = ("x", "y"), shared: int = 0) -> str:
    """A kernel called ``snippet``. Its pointers are in %d0, %d1, ...; %r0 is tid.x, %r1 ctaid.x, %r2 the lane."""
    params = ", ".join(f".param .u64 {p}" for p in pointers)
    loads = "\n".join(f"ld.param.u64 %d{i}, [{p}];" for i, p in enumerate(pointers))
    buffer = f".shared .align 128 .b8 buffer[{shared}];" if shared else ""
    start = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %laneid;"
    return f""".version 8.0\n.target sm_80\n.address_size 64
.visible .entry snippet({params})
{{
{REGISTERS}
{buffer}
{loads}
{start}
{body}
ret;
}}
"""


def run(body: str, arrays: Sequence[np.ndarray], *, block=64, grid=1, shared: int = 0, **options) -> sim.Report:
    names = [f"array{i}" for i in range(len(arrays))]
    return sim.launch(kernel(body, names, shared), "snippet", arrays, grid=grid, block=block, **options)


def compute(body: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.dtype], **options) -> list[np.ndarray]:
    """Runs ``body`` once per element: %i0, %i1, ... are the inputs' elements, %o0, %o1, ... become the outputs'."""
    n = len(inputs[0])
    bits = lambda dtype: np.dtype(dtype).itemsize * 8  # noqa: E731
    out = [sim.poisoned(n, dtype) for dtype in outputs]
    text = [f".reg .b{bits(a.dtype)} %i{k};" for k, a in enumerate(inputs)]
    text += [f".reg .b{bits(dtype)} %o{k};" for k, dtype in enumerate(outputs)]
    text += ["mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r1, %r3, %r0;", f"setp.ge.u32 %p8, %r4, {n}; @%p8 exit;"]
    for k, a in enumerate(inputs):
        text += [f"mad.wide.u32 %d19, %r4, {a.itemsize}, %d{k}; ld.global.b{bits(a.dtype)} %i{k}, [%d19];"]
    text += [body]
    for k, a in enumerate(out):
        text += [
            f"mad.wide.u32 %d19, %r4, {a.itemsize}, %d{k + len(inputs)}; st.global.b{bits(a.dtype)} [%d19], %o{k};"
        ]
    run("\n".join(text), [*inputs, *out], block=128, grid=-(-n // 128), **options)
    return out
