"""Ops as operators of torch: torch.compile and torch.export see one call each; eager calls stay as they are."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.apg import apg
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.ops.residual_unit import residual_unit
from acefast.ops.snake import snake
from tests.ops.test_snake import inputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Twice(torch.nn.Module):
    def forward(self, x, alpha, inv_beta):
        return 2 * snake(x + 1, alpha, inv_beta, backend="reference")


def calls(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", (True, False))
def test_an_exported_program_has_one_call_and_the_same_values(strict):
    given = inputs(2, 30, 16)
    program = torch.export.export(Twice(), given, strict=strict)
    assert [name for name in calls(program.graph) if "acefast" in name] == ["acefast.snake.default"]
    assert len(calls(program.graph)) == 3
    assert torch.equal(program.module()(*given), Twice()(*given))


def test_what_is_compiled_has_no_break_and_the_same_values():
    seen = []

    def backend(module, example):
        seen.append(calls(module.graph))
        return module.forward

    given = inputs(2, 30, 16, torch.bfloat16)
    compiled = torch.compile(Twice(), fullgraph=True, backend=backend)
    assert torch.equal(compiled(*given), Twice()(*given))
    assert len(seen) == 1 and "acefast.snake.default" in seen[0]


def test_arguments_that_the_operator_leaves_out_are_not_compiled_but_run():
    x, *wave = inputs(2, 30, 16)
    out = torch.empty_like(x)
    torch.compile(lambda: snake(x, *wave, out=out), backend="eager")()
    assert torch.equal(out, snake(x, *wave))


def test_the_operator_keeps_its_promises():
    """Its schema and its fake results are those of what runs; torch's own check."""
    for dtype in (torch.float32, torch.bfloat16):
        x, *wave = inputs(2, 30, 16, dtype)
        torch.library.opcheck(torch.ops.acefast.snake.default, (x, *wave))
        weights = [torch.randn(shape).to(dtype) for shape in ((16, 7, 16), 16, (16, 16), 16)]
        unit = (x, *wave, *weights[:2], *wave, *weights[2:])
        found = torch.ops.acefast.residual_unit(*unit, dilation=3)
        assert torch.equal(found, residual_unit(*unit, dilation=3))
        torch.library.opcheck(torch.ops.acefast.residual_unit.default, unit, {"dilation": 3})
        options = {
            "stride": 2,
            "padding": 5,
            "dilation": 3,
            "share": 0.5,
            "residual": torch.ones(2, 11, 16, dtype=dtype),
        }
        found = torch.ops.acefast.conv1d(x, *weights[:2], **options)
        assert torch.equal(found, conv1d(x, *weights[:2], **options))
        torch.library.opcheck(torch.ops.acefast.conv1d.default, (x, *weights[:2]), options)
        raised = x, torch.randn(32, 64).to(dtype), weights[1]
        found = torch.ops.acefast.conv_transpose1d(*raised, stride=4)
        assert torch.equal(found, conv_transpose1d(*raised, stride=4))
        torch.library.opcheck(torch.ops.acefast.conv_transpose1d.default, raised, {"stride": 4})


def test_eager_calls_do_not_go_through_torchs_dispatcher(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    with torch.profiler.profile() as profile:
        snake(*inputs(1, 4, 16))
    assert not [event for event in profile.events() if "acefast" in event.name]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_guidance_is_one_call_too(dtype):
    cond, uncond = torch.randn(2, 2, 30, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    running, lengths = torch.randn(2, 30, 16), torch.tensor([30, 11])
    for scale in (1.0, 7.0):
        torch.library.opcheck(torch.ops.acefast.apg.default, (cond, uncond, None, scale))
        torch.library.opcheck(torch.ops.acefast.apg.default, (cond, uncond, running, scale), {"lengths": lengths})
    compiled = torch.compile(lambda *given: apg(*given)[0] + 0, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cond, uncond, running, 7.0), apg(cond, uncond, running, 7.0)[0])
