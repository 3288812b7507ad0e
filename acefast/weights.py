"""From a checkpoint's files to a module's tensors: weight tables, headers, mapped reads, fusing and casting at load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acefast.values import shown

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHUNK_BYTES = 8 << 20  # of the file: what is mapped at once while a large tensor is cast
SHOWN = 20  # names of tensors in one message


class CheckpointError(RuntimeError):
    """Weights that cannot be used, told in one sentence: what, got, way out."""


class Source(NamedTuple):
    """Where one of our tensors comes from; fusing happens here, once, at load."""

    names: tuple[str, ...]  # official tensor names, see acefast.models.v15.names
    combine: Callable[..., Tensor] | None = None  # takes those tensors in the file's dtype; None: the one as it is
    dtype: torch.dtype | None = None  # stored dtype; None: the model's


WeightTable = dict[str, Source]


class Stored(NamedTuple):
    """One tensor in a file, under the shape we use it in."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: torch.dtype
    norm: bool = False  # a folded convolution has no weight_g: it is the norm of this tensor's rows, in fp32

    @property
    def bytes(self) -> int:
        """Size in the file; a norm is derived and takes none."""
        return 0 if self.norm else self.dtype.itemsize * self.params

    @property
    def params(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


Index = dict[str, Stored]
Stamp = tuple[int, int] | None  # size of a file and when it was written; None: there is none


class Origin(NamedTuple):
    """What ``load`` filled a module from."""

    table: Mapping[str, Source]
    index: Index
    stamps: dict[Path, Stamp]  # of each file with a tensor of the table, as it was then


def stack(*tensors: Tensor) -> Tensor:
    """Rows of several linear layers with one input, as one layer."""
    return torch.cat(tensors)


def listing(names: list[str]) -> str:
    """Names for a message: the first few and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextlib.contextmanager
def access_told() -> Iterator[None]:
    """Turn what the system refuses, a folder without access or a name too long, into a CheckpointError."""
    try:
        yield
    except OSError as error:
        what = shown(str(error.filename or "a file of the model"), 200)
        raise CheckpointError(f"{what} cannot be read: {error.strerror}; check its name and permissions") from error


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped until the block ends and until the tensors taken from it are gone.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_why_unreadable(path, error)) from error
    with handle:
        yield handle


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file by their name in it, and the file's metadata; reads no weights.

    Raises:
        CheckpointError: as ``open_file``, or a tensor is neither bf16, fp16 nor fp32. Integer tensors pass, as int64:
            the only ones in use are buffers that no model takes, and the text tokeniser in a file of v1.
    """
    stored, foreign = {}, []
    with open_file(path) as handle:
        for name in handle.keys():  # noqa: SIM118 (a handle is not a dict)
            view = handle.get_slice(name)
            kind = view.get_dtype()
            if kind not in DTYPES and not kind.startswith(("I", "U", "BOOL")):
                foreign.append(f"{name} ({kind})")
            stored[name] = Stored(path, name, tuple(view.get_shape()), DTYPES.get(kind, torch.int64))
        metadata = handle.metadata() or {}
    if foreign:
        raise CheckpointError(
            f"{path} holds tensors that are neither bf16, fp16 nor fp32: {listing(foreign)}; use an unquantised file"
        )
    return stored, metadata


def _why_unreadable(path: Path, error: Exception) -> str:
    if not path.is_file():
        return f"{path} does not exist or cannot be read; download the checkpoint again"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as failure:
        return f"{path} cannot be read ({failure.strerror}); check its permissions"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder"
    if head.startswith((b"PK\x03\x04", b"\x80")) and head[8:9] != b"{":  # else the length of a header is 0x..80
        return f"{path} is a pickle, which can run code when read; convert it to safetensors"
    reason = " ".join(str(error).split())
    return f"{path} is a truncated or corrupt safetensors file ({reason}); download it again"


def load(
    module: nn.Module,
    table: Mapping[str, Source],
    checkpoint: Any,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Fill a module that was built under ``torch.device("meta")``.

    A tensor that is used as it is, on the CPU in the file's dtype, stays a view of the mapped file; every other is
    read through a mapping that lives only while it is combined and cast, so that peak memory stays near the module's
    own size.

    Args:
        module: its parameters and buffers are replaced, parameters with ``requires_grad=False``; it gets an attribute
            ``origin``, an ``Origin``.
        table: every name in the module's state dict and where it comes from.
        checkpoint: a ``Checkpoint``, or anything with its ``index``.
        device, dtype: where and as what the tensors are kept; ``Source.dtype`` wins over ``dtype``.
    Raises:
        CheckpointError: all the tensors that the checkpoint lacks, or one whose shape is wrong.
        ValueError: ``table`` and the module's tensors are not the same set, an error in the model.
    """
    index, device = checkpoint.index, torch.device(device)
    targets = dict(module.state_dict(keep_vars=True))
    if differ := sorted(targets.keys() ^ table.keys()):
        raise ValueError(f"{type(module).__name__}: weight table and state dict differ in {listing(differ)}")
    if missing := sorted({name for source in table.values() for name in source.names} - index.keys()):
        raise CheckpointError(
            f"{type(module).__name__}: the checkpoint lacks {len(missing)} tensor(s): {listing(missing)}; "
            "use a complete checkpoint of this model"
        )
    stamps = {file: stamp(file) for file in {index[n].file for source in table.values() for n in source.names}}
    with contextlib.ExitStack() as files:
        mapped: dict[Path, Any] = {}

        def handle(path: Path) -> Any:
            if path not in mapped:
                mapped[path] = files.enter_context(open_file(path))
            return mapped[path]

        for name, source in table.items():
            stored = [index[n] for n in source.names]
            tensor = _read(stored, source.combine, tuple(targets[name].shape), device, source.dtype or dtype, handle)
            if tensor.shape != targets[name].shape:
                raise CheckpointError(
                    f"{type(module).__name__}: {name} must be {list(targets[name].shape)}, got {list(tensor.shape)} "
                    f"from {listing(list(source.names))}; the checkpoint is not of this model"
                )
            _assign(module, name, tensor)
    if unfilled := [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]:
        raise ValueError(f"{type(module).__name__}: no weight table entry fills {listing(unfilled)}")
    module.origin = Origin(table, index, stamps)


def stamp(path: Path) -> Stamp:
    """What tells a file from another one that takes its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def read(source: Source, index: Index, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One entry of a weight table, read as ``load`` reads it; maybe a view of the mapped file."""
    with contextlib.ExitStack() as files:
        stored = [index[name] for name in source.names]
        return _read(stored, source.combine, shape, device, dtype, lambda path: files.enter_context(open_file(path)))


def _read(
    stored: list[Stored],
    combine: Callable[..., Tensor] | None,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    handle: Callable[[Path], Any],
) -> Tensor:
    if combine is None:
        (one,) = stored
        if not one.norm and one.dtype == dtype and device.type == "cpu":
            return handle(one.file).get_tensor(one.name).reshape(one.shape)
    # Rows can be read one by one unless the tensor is derived or may have another shape in the file: [C] for [1, C, 1].
    rows = 0 if any(s.norm or s.shape[:1] in ((), (1,)) for s in stored) else sum(s.shape[0] for s in stored)
    if combine in (None, stack) and rows and all((rows, *s.shape[1:]) == shape for s in stored):
        return _gather(stored, shape, device, dtype)
    with contextlib.ExitStack() as files:
        tensors = [read_tensor(files.enter_context(open_file(s.file)), s) for s in stored]
        result = combine(*tensors) if combine else tensors[0]
        return result.to(device, dtype).contiguous()


def read_tensor(handle: Any, stored: Stored) -> Tensor:
    """A view of the mapped tensor, in the file's dtype and our shape."""
    tensor = handle.get_tensor(stored.name)
    if stored.norm:
        return tensor.float().flatten(1).norm(dim=1).view(stored.shape)
    return tensor.reshape(stored.shape)


def _gather(stored: list[Stored], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Tensors above each other, in another dtype or on another device, with a few of their rows mapped at a time."""
    out = torch.empty(shape, dtype=dtype, device=device)
    place = 0
    for one in stored:
        rows = max(1, CHUNK_BYTES * one.shape[0] // max(1, one.bytes))
        for start in range(0, one.shape[0], rows):
            stop = min(start + rows, one.shape[0])
            _copy_rows(one, start, stop, out[place + start : place + stop])
        place += one.shape[0]
    return out


def _copy_rows(stored: Stored, start: int, stop: int, out: Tensor) -> None:
    """Rows into ``out``, through a mapping of their own that is gone on return, and its pages with it."""
    with open_file(stored.file) as file:
        out.copy_(file.get_slice(stored.name)[start:stop].reshape(out.shape))


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
