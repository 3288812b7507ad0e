"""The graph checker: each fault planted and found, each sound twin passed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from acefast.sim.graph import GraphUnsafe, check_step, note_launch
from acefast.sim.replay import CaptureError, Recording


def buffers(device="cpu"):
    """x [4, 4] and row [4] to read, out [4, 4] to write, mask of x's shape, fixed indices."""
    x = torch.arange(16.0).view(4, 4) - 7.5
    tensors = dict(x=x, row=x[1].clone(), out=x.clone(), mask=x > 0, index=torch.tensor([2, 0]), pick=x[:2].clone())
    return SimpleNamespace(**{name: t.to(device) for name, t in tensors.items()})


def check(step, s, **options):
    return check_step(lambda: step(s), static=vars(s), **options)


def line_of(step):
    return f"test_graph.py:{step.__code__.co_firstlineno}"


# Fault and sound twin, one line each; both may allocate, which is another test's matter.
SYNCS = {
    "item": (lambda s: s.x * s.row[0].item(), lambda s: s.x * s.row[0]),
    "float": (lambda s: s.x * float(s.row.sum()), lambda s: s.x * s.row.sum()),
    "bool": (lambda s: s.x if (s.row > 0).all() else s.out, lambda s: torch.where((s.row > 0).all(), s.x, s.out)),
    "tolist": (lambda s: s.x * sum(s.row.tolist()), lambda s: s.x * len(s.row)),
    "numpy": (lambda s: s.x * float(s.row.numpy()[0]), lambda s: s.x * s.row.numel()),
    "cpu": (lambda s: s.x.cpu(), lambda s: s.x.contiguous()),
    "print": (lambda s: f"{s.row.sum()}", lambda s: f"{s.row.shape}"),
    "equal": (lambda s: torch.equal(s.x, s.out), lambda s: torch.eq(s.x, s.out)),
    "nonzero": (lambda s: torch.nonzero(s.x), lambda s: torch.argsort(s.x)),
    "where": (lambda s: torch.where(s.mask), lambda s: torch.where(s.mask, s.x, s.out)),
    "masked_select": (lambda s: s.x.masked_select(s.mask), lambda s: s.x.masked_fill(s.mask, 0)),
    "unique": (lambda s: s.x.unique(), lambda s: s.x.sort()),
    "boolean read": (lambda s: s.x[s.mask], lambda s: s.x[s.index]),
    "boolean write": (lambda s: s.out.index_put_((s.mask,), s.row[0]), lambda s: s.out.__setitem__(s.mask, 0.0)),
    "repeats": (
        lambda s: s.pick.repeat_interleave(s.index, 0),
        lambda s: s.pick.repeat_interleave(s.index, 0, output_size=2),
    ),
}


@pytest.mark.parametrize("device", ("cpu", "meta"))
@pytest.mark.parametrize("name", SYNCS)
def test_host_sync_is_found_where_it_is(name, device):
    fault, sound = SYNCS[name]
    report = check(fault, buffers(device))
    (found,) = report.of("sync")
    assert found.where.endswith(line_of(fault)), str(report)
    if report.stopped:  # meta tensors hold nothing to read back; what was found before stands
        assert device == "meta"
    if name == "repeats" and device == "meta":
        return  # torch has no meta kernel for the sound twin either
    report = check(sound, buffers(device)).require(allow=("allocation",))
    assert report.count("sync") == 0


COPIES = {
    "python values": (lambda s: s.row * torch.tensor([1.0] * 4, device=s.row.device), lambda s: s.row * 2),
    "list as index": (lambda s: s.x[[2, 0]], lambda s: s.x[s.index]),
    "download": (lambda s: s.x.to("cpu"), lambda s: s.x.to(torch.float64)),
    "upload": (lambda s: s.out.copy_(torch.ones(4, 4)), lambda s: s.out.copy_(s.x)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copy_between_host_and_device_is_found(name):
    fault, sound = COPIES[name]
    report = check(fault, buffers("meta"))
    assert [f.where for f in report.of("copy")] == [report.findings[0].where]
    assert report.findings[0].where.endswith(line_of(fault))
    check(sound, buffers("meta")).require(allow=("allocation",))


def test_copy_the_host_does_not_wait_for_is_sound():
    s, pinned = buffers("meta"), torch.ones(4, 4)
    check(lambda s: s.out.copy_(pinned, non_blocking=True), s).require()


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_allocation_is_found_and_a_declared_buffer_is_none(device):
    s = buffers(device)
    report = check(lambda s: s.x * 2, s)
    (found,) = report.findings
    assert (found.kind, found.count, found.bytes, report.allocated_bytes) == ("allocation", 1, 64, 64)
    check(lambda s: torch.mul(s.x, 2, out=s.out), s).require()
    arena = torch.empty(64, device=device)
    check(lambda s: torch.mul(s.x, 2, out=arena[16:32].view(4, 4)), SimpleNamespace(**vars(s), arena=arena)).require()


def test_buffer_that_grows_is_an_allocation():
    s = buffers()
    report = check_step(lambda: torch.mul(s.x, 2, out=torch.empty(0)), static=vars(s))
    assert [(f.op, f.bytes) for f in report.of("allocation")] == [("aten.mul.out", 64)]
    check_step(lambda: torch.mul(s.x, 2, out=s.out), static=vars(s)).require()


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_input_that_moves_is_found(device):
    s = buffers(device)

    def rebind(_):
        s.x = s.x.clone()

    def step(s):
        return torch.mul(s.x, 2, out=s.out)

    (found,) = check(step, s, between=rebind).findings
    assert (found.kind, found.op) == ("moving", "aten.mul.out")
    assert found.where.endswith(f"test_graph.py:{step.__code__.co_firstlineno + 1}")
    check(step, s, between=lambda _: s.x.copy_(s.out)).require()


def test_view_that_moves_within_its_memory_is_found():
    s, stack, i = buffers(), torch.zeros(9, 4, 4), [0]

    def advance(_):
        i[0] += 1

    views = [stack[k] for k in range(9)]
    (found,) = check(lambda s: s.out.add_(views[i[0]]), s, between=advance).findings
    assert found.kind == "moving"
    check(lambda s: s.out.add_(views[0]), s, between=advance).require()


@pytest.mark.parametrize("host", (torch.ones(4), torch.tensor(2.0)), ids=("vector", "scalar"))
def test_input_on_the_host_is_found(host):
    s = buffers("meta")
    report = check(lambda s: torch.mul(s.x, host, out=s.out), s)
    (found,) = report.of("host")
    assert found.op.startswith("aten.mul")
    on_device = host.to("meta")
    check(lambda s: torch.mul(s.x, on_device, out=s.out), s).require()


def test_tensor_made_on_the_host_may_not_meet_the_device():
    s = buffers("meta")
    assert check(lambda s: s.x + torch.ones(4), s).of("host")
    check(lambda s: s.out.add_(torch.tensor(2.0)), s).require()  # a number that travels with the launch
    check(lambda s: s.out.mul_(float(torch.ones(4).sum())), s).require()  # the host's own arithmetic


def test_shapes_and_calls_that_differ_from_run_to_run_are_found():
    s, n = buffers(), [0]

    def grow(_):
        n[0] += 1

    assert check(lambda s: s.out[:, : n[0]].mul_(2), s, between=grow).of("dynamic")
    assert check(lambda s: s.out.mul_(2) if n[0] % 2 else s.out.add_(1), s, between=grow).of("dynamic")
    assert check(lambda s: [s.out.mul_(2) for _ in range(n[0])], s, between=grow).of("dynamic")
    check(lambda s: s.out[:, :2].mul_(2), s, between=grow).require()


def test_python_value_that_differs_from_run_to_run_is_found():
    s, t = buffers(), [1.0]

    def next_time(_):
        t[0] /= 2
        s.row.fill_(t[0])

    (found,) = check(lambda s: s.out.mul_(t[0]), s, between=next_time).findings
    assert found.kind == "baked" and "0.5" in found.reason and "0.25" in found.reason
    check(lambda s: s.out.mul_(s.row[0]), s, between=next_time).require()


RANDOM = {
    "randn": (lambda s: s.out.add_(torch.randn_like(s.x)), lambda s: s.out.add_(s.x)),
    "generator": (
        lambda s: s.out.normal_(generator=torch.Generator().manual_seed(1)),
        lambda s: s.out.zero_(),
    ),
    "dropout": (lambda s: F.dropout(s.x), lambda s: torch.native_dropout(s.x, 0.5, False)),
    "attention": (
        lambda s: F.scaled_dot_product_attention(*[s.x[None, None]] * 3, dropout_p=0.5),
        lambda s: F.scaled_dot_product_attention(*[s.x[None, None]] * 3),
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_numbers_drawn_inside_are_found(name):
    fault, sound = RANDOM[name]
    assert check(fault, buffers()).of("random")
    check(sound, buffers()).require(allow=("allocation",))


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_launches_are_counted_and_views_are_free(device):
    s = buffers(device)

    def step(s):
        q = s.x.view(1, 1, 4, 4).expand(1, 2, 4, 4).transpose(2, 3)[:, :, :2].unsqueeze(0).squeeze(0)
        F.linear(s.x.view(2, 2, 4), s.x, s.row)
        F.scaled_dot_product_attention(q, q, q)
        s.out.copy_(s.x).mul_(2)
        s.out[0] = 3.0
        torch.empty_like(s.x).unsqueeze_(0)
        s.out[:0].mul_(2)
        note_launch("my_kernel", s.x, s.out)

    launches = check(step, s).launches
    assert launches.total() == 6
    assert launches["my_kernel"] == 1 and launches["aten.addmm.default"] == 1
    assert launches["aten.scaled_dot_product_attention.default"] == 1 and launches["aten.mul_.Tensor"] == 1


def test_caches_fill_up_before_the_watched_runs():
    s, cache = buffers(), {}

    def step(s):
        if "table" not in cache:
            cache["table"] = s.row * int(s.row[0])
        s.out.mul_(cache["table"])

    report = check(step, s).require()
    assert len(report.undeclared) == 1 and "[4]" in report.undeclared[0]  # whoever captures this must keep it alive
    cache.clear()
    assert check(step, s, warmup=0).of("sync")


def test_report_counts_repeated_findings_and_raises():
    s = buffers()
    report = check(lambda s: [s.x * 2 for _ in range(5)] and s.row[0].item(), s)
    (found,) = report.of("allocation")
    assert (found.count, found.bytes, report.count("allocation")) == (5, 320, 5)
    with pytest.raises(GraphUnsafe, match=r"test_graph\.py:\d+: sync: aten\._local_scalar_dense"):
        report.require(allow=("allocation",))
    with pytest.raises(ValueError, match="kind must be one of"):
        report.of("syncs")


def test_error_of_the_step_itself_is_not_swallowed():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        check(lambda s: s.x @ torch.zeros(3, 3), buffers())


@pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="torch 2.6 makes no fake tensor within the fake mode")
def test_fake_tensors_stand_for_cuda_ones():
    with FakeTensorMode() as mode:
        x, out = (FakeTensor(mode, torch.empty(4, 4, device="meta"), torch.device("cuda:0")) for _ in range(2))
        check_step(lambda: torch.mm(x, x, out=out), static=(x, out)).require()
        report = check_step(lambda: torch.tensor([1.0], device="cuda"), static=(x, out))
        assert (report.count("copy"), report.count("sync")) == (1, 0)
        assert [f.kind for f in check_step(lambda: x.cpu(), static=(x, out)).findings] == ["sync"]
        report = check_step(lambda: x.sum().item(), static=(x, out))
        assert report.of("sync") and "DataDependentOutput" in report.stopped


@pytest.mark.parametrize("name", SYNCS)
def test_recording_refuses_host_syncs_and_leaves_memory_alone(name):
    fault, sound = SYNCS[name]
    s = buffers()
    with pytest.raises(CaptureError, match=r"cannot be captured: .*test_graph\.py"):
        Recording(lambda: (s.out.zero_(), fault(s)))
    assert torch.equal(s.out, s.x)
    Recording(lambda: sound(s)).replay()
