"""Ops as operators of torch, ``torch.ops.acefast.<op>``, so that torch.compile and torch.export see one call each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("acefast", "FRAGMENT")


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers an op, and sends its calls there while they are being compiled; others cost what they cost before.

    A call with arguments that the schema leaves out, such as ``out``, is not compiled: it breaks the graph.

    Args:
        schema: as torch.library has it, "(Tensor x, *, str? backend=None) -> Tensor"; results share no memory with
            arguments.
        fake: of the same arguments; makes results of the right shapes, dtypes and strides, without values.
    """

    def decorate(op: Callable[..., Any]) -> Callable[..., Any]:
        name = op.__name__
        LIBRARY.define(name + schema)
        LIBRARY.impl(name, op, "CompositeExplicitAutograd")
        torch.library.register_fake(f"acefast::{name}", fake, lib=LIBRARY)
        registered = getattr(torch.ops.acefast, name).default
        known = {argument.name for argument in registered._schema.arguments}

        @functools.wraps(op)
        def call(*arguments: Any, **named: Any) -> Any:
            if torch.compiler.is_compiling() and known.issuperset(named):
                return registered(*arguments, **named)
            return op(*arguments, **named)

        return call

    return decorate
