"""Triton kernels in Triton's own interpreter, with its bf16 repaired and every memory access checked.

    with interpreted():
        kernel[grid](x, y, n, BLOCK=128)  # runs in numpy, on CPU tensors; the first fault raises KernelFault

The interpreter of Triton 3.9 keeps bf16 as 16-bit integers and adds, multiplies and compares those: silently wrong.
Here bf16 goes to fp32, through the operation and back with one rounding to nearest even, as on the GPU. Besides:

- a load, store or atomic outside the very tensor that its pointer came from, even if it lands in another one;
- a store to what another program stored or loaded, a load of what another program stored, and two lanes of one store
  that write different values to one address; programs that hand data over through atomics need ``races=False``;
- lanes that a mask without ``other=`` leaves out are NaN (the largest integer), not the stock interpreter's zero;
- memory from ``torch.empty`` and its kind is NaN, so that ``check_written`` finds what no program wrote.

Of inline assembly it understands what our kernels use, the stock interpreter none.

Works on kernels decorated in the ordinary way, in the process that also compiles them; TRITON_INTERPRET is not needed.
Not seen: races through atomics, accesses between the rows of a strided view, tf32's rounding in fp32 dots, everything
below the level of tiles. Patches Triton for the whole process while the block lasts: one thread, not nested.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from acefast.backends import emulated
from acefast.sim.interpreter_memory import Access, KernelFault, Memory, split_pointers

__all__ = ["KernelFault", "check_written", "interpreted"]

# Builder methods whose bf16 operands are computed with in fp32; moving bits around needs no repair.
_BF16_OPS = (
    *("create_fadd", "create_fsub", "create_fmul", "create_fdiv", "create_frem", "create_fneg", "create_fma"),
    *("create_precise_divf", "create_approx_divf", "create_clampf", "create_floor", "create_ceil"),
    *("create_minimumf", "create_minnumf", "create_maximumf", "create_maxnumf"),
    *(f"create_fcmp{order}{test}" for order in "OU" for test in ("LT", "GT", "LE", "GE", "EQ", "NE")),
)
# Inline assembly that is understood, a function of fp32 arrays each; any other is refused as before.
_ASSEMBLY = {"sin.approx.f32 $0, $1;": np.sin, "rcp.approx.ftz.f32 $0, $1;": np.reciprocal}
# What is replaced, with the arguments it must have: another Triton may have renamed or reordered them.
_EXPECTED = {
    "InterpreterBuilder.create_masked_load": ("ptrs", "mask", "other", "cache_policy", "is_volatile"),
    "InterpreterBuilder.create_masked_store": ("ptrs", "value", "mask", "cache_policy"),
    "InterpreterBuilder.create_atomic_rmw": ("rmwOp", "ptr", "val", "mask", "sem", "scope"),
    "InterpreterBuilder.create_atomic_cas": ("ptr", "cmp", "val", "sem", "scope"),
    "InterpreterBuilder.create_dot": ("a", "b", "d", "input_precision", "max_num_imprecise_acc"),
    "InterpreterBuilder.create_fp_to_fp": ("src", "dst_type", "rounding_mode"),
    "InterpreterBuilder.cast_impl": ("src", "dst_type"),
    "InterpreterBuilder.create_inline_asm": ("inlineAsm", "constraints", "values", "type", "isPure", "pack"),
    **{f"InterpreterBuilder.{name}": None for name in _BF16_OPS},
    "ReduceScanOpInterface.apply": ("input",),
    "GridExecutor._init_args_hst": ("args_dev", "kwargs"),
    "GridExecutor.__call__": None,
    "InterpretedFunction.rewrite": (),
    "InterpretedFunction.run": None,
    "TensorHandle.get_element_ty": (),
    "_implicit_cvt": None,
    "_patch_lang": None,
}


@contextlib.contextmanager
def interpreted(*, repair_bf16: bool = True, checks: bool = True, races: bool = True) -> Iterator[None]:
    """Within the block ``kernel[grid](...)`` is interpreted, on CPU tensors; Triton and torch are put back after it.

    Args:
        repair_bf16: False leaves bf16 as the stock interpreter has it, which is wrong.
        checks: False runs without any of the checks.
        races: False leaves out the checks between programs and between lanes.
    Raises:
        KernelFault: from the launch, at the first fault: kernel, line, program, tensor and element.
        RuntimeError: triton is missing, is one whose interpreter does not fit, or this block is nested.
    """
    triton, ti = _fitting_triton()
    with contextlib.ExitStack() as undo:
        undo.enter_context(emulated())
        _run_interpreted(triton, ti, undo)
        _understand_assembly(triton.language, ti, undo)
        if repair_bf16:
            _repair_bf16(triton.language, ti, undo)
        if checks:
            _check_memory(ti, undo, races)
            _poison_empty(undo)
        yield


def check_written(name: str, tensor: Tensor) -> None:
    """Raise KernelFault if a NaN is left in ``tensor``, which was allocated within ``interpreted()``."""
    left = tensor.isnan().nonzero()
    if len(left):
        raise KernelFault(
            f"{name}: {len(left)} of {tensor.numel()} elements are NaN, never written or computed from what was not; "
            f"the first is {left[0].tolist()}"
        )


def _fitting_triton() -> tuple[Any, Any]:
    """Triton and its interpreter module, once they are known to be what this file patches."""
    try:
        import triton
        import triton.runtime.interpreter as ti
    except ImportError as error:
        raise RuntimeError("interpreted: triton is not installed; pip install triton==3.9.0") from error
    if getattr(ti, "_acefast", False):
        raise RuntimeError("interpreted: already within an interpreted() block")
    for path, arguments in _EXPECTED.items():
        found: Any = ti
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None and arguments is not None:
            have = tuple(inspect.signature(found).parameters)
            found = have == (("self", *arguments) if "." in path else arguments)
        if not found:
            raise RuntimeError(f"interpreted: made for triton 3.9, got {triton.__version__}, whose {path} differs")
    return triton, ti


def _patch(undo: contextlib.ExitStack, target: Any, name: str, value: Any) -> Any:
    """Set an attribute until the block ends; returns what it was."""
    before = getattr(target, name, None)
    undo.enter_context(mock.patch.object(target, name, value, create=True))
    return before


def _run_interpreted(triton: Any, ti: Any, undo: contextlib.ExitStack) -> None:
    """Launches and calls of @triton.jit functions go to the interpreter, whether or not TRITON_INTERPRET is set.

    The stock interpreter patches triton.language at each call and does not undo it all; here it is done once a launch,
    for both modules that kernels and Triton's own library use, so that compiling works again afterwards.
    """
    language, jit_function = triton.language, triton.runtime.jit.JITFunction
    patch_lang = ti._patch_lang
    both = SimpleNamespace(__globals__={"tl": language, "core": language.core})
    twins: dict[Any, Any] = {}

    def twin(function: Any) -> Any:
        if function.fn not in twins:
            twins[function.fn] = ti.InterpretedFunction(function.fn)
        return twins[function.fn]

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            execute(self, *args, **kwargs)
        except ti.InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, KernelFault):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    _patch(undo, ti, "_acefast", True)
    _patch(undo, ti, "_patch_lang", lambda fn: patch_lang(both))
    _patch(undo, jit_function, "run", lambda self, *args, **kwargs: twin(self).run(*args, **kwargs))
    _patch(undo, jit_function, "__call__", lambda self, *args, **kwargs: twin(self).rewrite()(*args, **kwargs))
    _patch(undo, ti.InterpretedFunction, "__call__", lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs))
    execute = _patch(undo, ti.GridExecutor, "__call__", launch)


def _understand_assembly(tl: Any, ti: Any, undo: contextlib.ExitStack) -> None:
    def run(self: Any, asm: str, constraints: str, values: list, *rest: Any) -> Any:
        if asm not in _ASSEMBLY:
            return refuse(self, asm, constraints, values, *rest)
        result = ti.TensorHandle(_ASSEMBLY[asm](*(value.data for value in values)), tl.float32)
        return SimpleNamespace(get_result=lambda index: result)

    refuse = _patch(undo, ti.InterpreterBuilder, "create_inline_asm", run)


def _to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 to the bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _repair_bf16(tl: Any, ti: Any, undo: contextlib.ExitStack) -> None:
    handle, builder = ti.TensorHandle, ti.InterpreterBuilder

    def is_bf16(x: Any) -> bool:
        return isinstance(x, handle) and not x.dtype.is_ptr() and x.dtype.scalar == tl.bfloat16

    def widen(x: Any) -> Any:
        return handle(_to_float(x.data), tl.float32) if is_bf16(x) else x

    def narrow(x: Any) -> Any:
        return handle(_to_bf16(x.data), tl.bfloat16)

    def in_fp32(operation: Callable) -> Callable:
        def repaired(self: Any, *args: Any) -> Any:
            if not any(map(is_bf16, args)):
                return operation(self, *args)
            result = operation(self, *map(widen, args))
            return result if result.data.dtype == np.bool_ else narrow(result)  # comparisons give bools

        return repaired

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if is_bf16(src) else narrow(handle(src.data.astype(np.float32), tl.float32))
        return stock_cast(self, widen(src), dst_type)

    def float_to_float(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        nearest = rounding_mode in (None, ti._ir.ROUNDING_MODE.RTNE)
        if nearest and dst_type.scalar == tl.bfloat16 and not src.dtype.scalar.is_fp8():
            return cast(self, src, dst_type)
        if dst_type.scalar == tl.float32 and is_bf16(src):
            return widen(src)  # exact
        return stock_float_to_float(self, src, dst_type, rounding_mode)

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return stock_dot(self, widen(a), widen(b), d, *rest)

    def retype(tensor: Any, change: Callable, dtype: Any) -> Any:
        shaped = tl.block_type(dtype, list(tensor.shape)) if tensor.type.is_block() else dtype
        return tl.core.tensor(change(tensor.handle), shaped)

    def reduce_or_scan(self: Any, tensors: Any) -> Any:
        if not isinstance(tensors, tuple):
            return reduce_or_scan(self, (tensors,))[0]
        which = [is_bf16(t.handle) for t in tensors]
        wide = tuple(retype(t, widen, tl.float32) if bf16 else t for t, bf16 in zip(tensors, which))
        results = stock_apply(self, wide)
        return tuple(retype(t, narrow, tl.bfloat16) if bf16 else t for t, bf16 in zip(results, which))

    for name in _BF16_OPS:
        _patch(undo, builder, name, in_fp32(getattr(builder, name)))
    stock_cast = _patch(undo, builder, "cast_impl", cast)
    stock_float_to_float = _patch(undo, builder, "create_fp_to_fp", float_to_float)
    stock_dot = _patch(undo, builder, "create_dot", dot)
    stock_apply = _patch(undo, ti.ReduceScanOpInterface, "apply", reduce_or_scan)


def _check_memory(ti: Any, undo: contextlib.ExitStack, races: bool) -> None:
    """Pointers carry the number of their tensor; each access takes it off, is checked and goes on."""
    handle, builder = ti.TensorHandle, ti.InterpreterBuilder
    memory: Memory | None = None

    def start(self: Any, args: Any, kwargs: Any) -> Any:
        nonlocal memory
        on_host = stock_init(self, args, kwargs)
        named = {**dict(zip(self.arg_names, on_host[0])), **on_host[1]}
        memory = Memory(self.fn.__name__, {n: t for n, t in named.items() if hasattr(t, "data_ptr")}, races)
        return on_host

    def convert(arg: Any) -> Any:
        tensor = stock_convert(arg)
        if hasattr(arg, "data_ptr"):
            tensor.handle.data = memory.tag(arg, tensor.handle.data)
        return tensor

    def checked(self: Any, kind: str, ptrs: Any, mask: Any, values: Any = None, tracked: bool = True) -> Any:
        """Check the lanes that ``mask`` leaves in; the same pointers as plain addresses."""
        pointers = np.atleast_1d(ptrs.data)
        lanes = np.broadcast_to(True if mask is None else mask.data, pointers.shape)
        values = None if values is None else np.broadcast_to(values, pointers.shape)[lanes]
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        memory.check(Access(kind, pointers[lanes], size, self.grid_idx, self.grid_dim, values, tracked, _kernel_line))
        return handle(split_pointers(ptrs.data)[1], ptrs.dtype)

    def load(self: Any, ptrs: Any, mask: Any, other: Any, cache_policy: Any, is_volatile: Any) -> Any:
        real = checked(self, "load", ptrs, mask, tracked=not is_volatile)
        if other is None and not mask.data.all():
            dtype = ptrs.get_element_ty()
            numpy_dtype = ti._get_np_dtype(dtype)
            poison = 0x7FC0 if dtype.is_bf16() else np.nan if numpy_dtype.kind == "f" else _largest(numpy_dtype)
            other = handle(np.full(ptrs.data.shape, poison, numpy_dtype), dtype)
        return stock_load(self, real, mask, other, cache_policy, is_volatile)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, cache_policy: Any) -> Any:
        return stock_store(self, checked(self, "store", ptrs, mask, value.data), value, mask, cache_policy)

    def atomic(self: Any, operation: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
        if ptr.get_element_ty().is_bf16():
            raise NotImplementedError("bf16 atomics: the interpreter would add their bits; accumulate in fp32")
        return stock_rmw(self, operation, checked(self, "atomic", ptr, mask, tracked=False), val, mask, sem, scope)

    def compare_and_swap(self: Any, ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
        return stock_cas(self, checked(self, "atomic", ptr, None, tracked=False), cmp, val, sem, scope)

    stock_init = _patch(undo, ti.GridExecutor, "_init_args_hst", start)
    stock_convert = _patch(undo, ti, "_implicit_cvt", convert)
    stock_load = _patch(undo, builder, "create_masked_load", load)
    stock_store = _patch(undo, builder, "create_masked_store", store)
    stock_rmw = _patch(undo, builder, "create_atomic_rmw", atomic)
    stock_cas = _patch(undo, builder, "create_atomic_cas", compare_and_swap)


def _largest(dtype: np.dtype) -> int | bool:
    return True if dtype.kind == "b" else np.iinfo(dtype).max


def _kernel_line() -> str:
    """File and line of the kernel that is being interpreted: the innermost frame outside triton and this package."""
    frame = sys._getframe(1)
    library = (os.path.dirname(__file__), os.path.dirname(sys.modules["triton"].__file__))
    while frame and frame.f_code.co_filename.startswith(library):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else "?"


def _poison_empty(undo: contextlib.ExitStack) -> None:
    """torch.empty gives NaN (the largest integer), which torch itself does where it is told to be deterministic."""
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic  # a module whose switch is a property, which mock cannot put back
    undo.callback(setattr, fill, "fill_uninitialized_memory", fill.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill.fill_uninitialized_memory = True
