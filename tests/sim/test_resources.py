"""The resource reader: what each kernel is known to need is there, and what it is known not to need is not."""

from __future__ import annotations

import json

import pytest
import torch

from acefast.sim import resources
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.resources import AssemblerError, Resources, assemble, main_loop, read_cubin, read_kernel

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from tests.sim import kernels_sound as sound

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")

ENTRY = """
.visible .entry {name}(.param .u64 out) {{
  .reg .b32 %r<3>; .reg .b64 %rd<3>;
  .shared .align 4 .b8 buffer_{name}[2048];
  ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, buffer_{name};
  st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r1, [%r2]; st.global.u32 [%rd1], %r1; ret;
}}"""


def ptx(*names: str, version: str = "8.0", target: str = "sm_80") -> str:
    head = f".version {version}\n.target {target}\n.address_size 64\n"
    return head + "".join(ENTRY.format(name=name) for name in names)


@pytest.fixture(scope="module")
def launches():
    """By name: a matmul pipelined, not pipelined and short of registers; a vector add for sm_80 and sm_90."""
    a, x = (torch.empty(256, size, dtype=torch.bfloat16, device="meta") for size in (256, 1))

    def matmul(**options):
        with dry_run(80) as recorded:
            sound.matmul[(4, 4)](a, a, a, 256, 256, 256, BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, **options)
        return recorded[0]

    def add(sm):
        with dry_run(sm) as recorded:
            sound.add[(2,)](x, x, x, 256, BLOCK=128)
        return recorded[0]

    pipelined, plain = matmul(num_stages=3), matmul(num_stages=1)
    return {
        "pipelined": pipelined,
        "plain": plain,
        "short": matmul(num_stages=3, maxnreg=32),
        "add": add(80),
        "add_90": add(90),
    }


@pytest.fixture(scope="module")
def read(launches):
    return {name: read_kernel(launch.kernel) for name, launch in launches.items()}


def test_a_pipelined_dot_shows_tensor_cores_and_async_copies_and_others_do_not(read):
    pipelined, plain, add = (read[name] for name in ("pipelined", "plain", "add"))
    assert pipelined.count("HMMA") == pipelined.tensor_core > 0
    assert pipelined.count("LDGSTS") == pipelined.cp_async > 0
    assert pipelined.ldmatrix > 0 and pipelined.barriers > 0
    assert plain.tensor_core > 0 and plain.cp_async == 0
    assert (add.tensor_core, add.cp_async, add.ldmatrix, add.barriers) == (0, 0, 0, 0)
    assert (add.count("LDG"), add.count("STG")) == (2, 1)  # masked, so each has a predicate before its name
    assert (pipelined.name, pipelined.sm, add.name) == ("matmul", 80, "add")


SASS = """
        /*0000*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0030*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/                   HFMA2.MMA R1, -RZ, RZ, 0, 0 ;
        /*0060*/              @!P1 BRA `(.L_x_1) ;
        /*0070*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0080*/                   BRA `(.L_x_1) ;
        /*0090*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*00a0*/              @!P3 BRA `(.L_x_0) ;
.L_x_2:
        /*00b0*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*00c0*/               @P2 BRA `(.L_x_2) ;
        /*00d0*/                   EXIT ;
.L_x_3:
        /*00e0*/                   BRA `(.L_x_3);
"""


def test_the_main_loop_is_the_innermost_with_most_products():
    assert main_loop(SASS) == (2, 5)  # from .L_x_1 to the last branch back to it
    assert main_loop(SASS.replace("BRA `(.L_x_1)", "BRA `(.L_x_2)")) == (3, 7)  # .L_x_0 holds no loop now
    assert main_loop(SASS.replace("HMMA", "HADD2")) == main_loop("") == (0, 0)


def test_the_main_loop_of_a_compiled_product_is_counted(read):
    pipelined, plain, add = (read[name] for name in ("pipelined", "plain", "add"))
    for product in (pipelined, plain):  # 4 warps, 64 x 64 x 32: 8 tiles of 16 x 8 each, two steps of k
        assert product.loop_mma == 64 * 64 * 32 // (16 * 8 * 16) // 4
        assert product.loop_mix == round(product.loop_other / product.loop_mma, 3)
    assert 0 < pipelined.loop_other < sum(pipelined.instructions.values()) - pipelined.loop_mma
    assert (add.loop_mma, add.loop_other, add.loop_mix) == (0, 0, None)


def test_a_kernel_short_of_registers_spills_and_its_twin_does_not(launches, read):
    short, enough = (read[name] for name in ("short", "pipelined"))
    assert short.registers == 32 and short.spill_bytes > 100 and short.local > 10
    assert enough.registers > 64 and enough.spill_bytes == 0 and enough.local == 0
    short, enough = (assemble(launches[name].ptx, 80) for name in ("short", "pipelined"))
    assert short.spill_store_bytes > 100 and short.spill_load_bytes > 100 and short.stack_bytes > 100
    assert (enough.spill_store_bytes, enough.spill_load_bytes, enough.stack_bytes) == (0, 0, 0)


def test_shared_memory_is_what_triton_asks_for(read):
    pipelined, plain, add = (read[name] for name in ("pipelined", "plain", "add"))
    assert pipelined.shared_bytes == pipelined.dynamic_shared == 2 * (64 * 32 + 32 * 64) * 2  # two buffers of bf16
    assert 0 < plain.shared_bytes < pipelined.shared_bytes and add.shared_bytes == 0


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
def test_one_ptx_is_assembled_for_every_sm(launches, read, sm):
    assembly = assemble(launches["add"].ptx, sm)
    resources = read_cubin(assembly.cubin)
    assert (resources.name, resources.sm, resources.registers) == ("add", sm, assembly.registers)
    if sm == 80:
        assert resources == read["add"]  # the very code that Triton's own call made


@pytest.mark.parametrize("sm", [80, 90])  # sm_90 keeps 1 KiB of shared memory for itself, which is not the kernel's
def test_static_shared_memory_and_barriers_of_hand_written_ptx(sm):
    assembly = assemble(ptx("only"), sm)
    found = read_cubin(assembly.cubin, dynamic_shared=100)
    assert assembly.static_shared == found.static_shared == 2048
    assert found.shared_bytes == 2148 and found.barriers == 1
    assert found.count("STS") == 1 and found.count("LDS") == 1


def test_a_kernel_among_several_is_read_by_name():
    assembly = assemble(ptx("first", "second"), 80, "second")
    assert read_cubin(assembly.cubin, "first").name == "first"
    with pytest.raises(ValueError, match=r"read_cubin: name must be one of (first, second|second, first), got None"):
        read_cubin(assembly.cubin)
    with pytest.raises(ValueError, match=r"assemble: name must be one of .*, got third"):
        assemble(ptx("first", "second"), 80, "third")


def test_ptx_newer_than_the_first_assembler_goes_to_the_next():
    assert assemble(ptx("only", version="9.0"), 80).static_shared == 2048


def test_what_cannot_be_assembled_or_read_is_one_sentence(launches):
    with pytest.raises(AssemblerError, match=r"assemble: not for sm_80: .*higher"):
        assemble(launches["add_90"].ptx, 80)
    with pytest.raises(AssemblerError, match="assemble: not for sm_100: "):
        assemble(launches["add_90"].ptx, 100)  # sm_90a is tied to its GPU
    with pytest.raises(AssemblerError, match="error"):
        assemble(ptx("only").replace("bar.sync 0", "bar.snyc 0"), 80)
    with pytest.raises(ValueError, match="read_cubin: no kernel in these 11 bytes"):
        read_cubin(b"not a cubin")


def test_missing_tools_are_one_sentence(monkeypatch):
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"ptxas is missing; pip install triton, .* toolkit on PATH"):
        assemble(ptx("only"), 80)
    with pytest.raises(RuntimeError, match="cuobjdump is missing"):
        read_cubin(b"")


def test_an_ordinary_multiply_add_is_no_tensor_core_instruction():
    mix = {"HFMA2.MMA": 3, "HMMA.16816.F32.BF16": 2, "IMMA.16832.S8.S8": 1, "UTCHMMA": 1, "LDL.64": 4, "STL": 5}
    found = Resources("k", 80, 32, 0, 16, 8, mix)
    assert (found.tensor_core, found.local, found.count("HMMA"), found.count("HFMA2")) == (4, 9, 2, 3)
    assert json.loads(json.dumps(found.as_dict()))["shared_bytes"] == 24
