"""Which path CUDA kernels are loaded by and why not the other, and what a launch hands over: on stand-ins for a GPU."""

from __future__ import annotations

import ctypes
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import acefast
from acefast.cli import main
from acefast.cuda import loader, toolkit


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing loaded by an earlier test; a GPU of sm 80 whose stream is 5."""
    for cached in (loader._function, loader._module, loader._ahead, loader.sm_of):
        cached.cache_clear()
    loader._allowed.clear()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(toolkit, "sources", lambda: ("qk_norm_rope",))
    monkeypatch.setattr(toolkit, "entries", lambda source: ("entry",))
    yield
    for cached in (loader._function, loader._module, loader._ahead, loader.sm_of):
        cached.cache_clear()
    loader._allowed.clear()


class Ahead(ModuleType):
    """acefast._cuda, which notes what it is asked for."""

    sources, archs, cuda_version, driver = {}, (80, 90), 13000, 13000

    def __init__(self, **changes):
        super().__init__("acefast._cuda")
        self.sources = {"qk_norm_rope": toolkit.fingerprint("qk_norm_rope")}
        self.calls = []
        vars(self).update(changes)

    def driver_version(self):
        return self.driver

    def image(self, name):
        return f"fatbin of {name}".encode()

    def load(self, *given):
        self.calls.append(("load", *given))
        return 7

    def function(self, *given):
        self.calls.append(("function", *given))
        return 9

    def launch(self, *given):
        self.calls.append(("launch", *given))


@pytest.fixture
def ahead(monkeypatch):
    """Puts an ``Ahead`` in place; None: acefast was installed without it."""

    def put(module: Ahead | None):
        monkeypatch.setitem(sys.modules, "acefast._cuda", module)
        if module is None:
            monkeypatch.delattr(acefast, "_cuda", raising=False)
        else:
            monkeypatch.setattr(acefast, "_cuda", module, raising=False)
        return module

    return put


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """CuPy, whose NVRTC gives a cubin without its last byte, and whose driver notes what it is asked for."""
    monkeypatch.setenv("ACEFAST_CACHE", str(tmp_path))
    calls = []

    def launch_kernel(*given):
        addresses = ctypes.cast(given[9], ctypes.POINTER(ctypes.c_void_p))
        types = (ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64, ctypes.c_float)
        calls.append(("launch", *given[:9], *(t.from_address(addresses[i]).value for i, t in enumerate(types))))

    nvrtc = SimpleNamespace(
        getVersion=lambda: (13, 0),
        createProgram=lambda text, name, headers, names: calls.append((name, text)) or 3,
        compileProgram=lambda program, options: calls.append(("compile", options)),
        getCUBIN=lambda program: b"cubin",
        destroyProgram=lambda program: None,
        NVRTCError=KeyError,
    )
    driver = SimpleNamespace(
        moduleLoadData=lambda image: calls.append(("load", image)) or 7,
        moduleGetFunction=lambda *given: calls.append(("function", *given)) or 9,
        funcSetAttribute=lambda *given: calls.append(("attribute", *given)),
        launchKernel=launch_kernel,
    )
    runtime = SimpleNamespace(setDevice=lambda device: calls.append(("device", device)))
    module = SimpleNamespace(nvrtc=nvrtc, driver=driver, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=module))
    monkeypatch.setitem(sys.modules, "cupy.cuda", module)
    return SimpleNamespace(calls=calls, nvrtc=nvrtc)


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "cupy.cuda", raising=False)


def launch(entry="entry", grid=(3, 2, 1), types="pilf", x=None):
    x = torch.ones(4, 4) if x is None else x
    loader.launch("qk_norm_rope", entry, grid, 128, 1024, (x, -7, -(2**40), 0.5), types)
    return x.data_ptr()


def test_what_was_built_ahead_is_loaded_once_and_launched_on_the_current_stream(ahead):
    module = ahead(Ahead())
    address = launch()
    launch()
    one = ("launch", 1, 9, (3, 2, 1), 128, 1024, 5, "pilf", [address, -7, -(2**40), 0.5])
    assert module.calls[:3] == [("load", 1, b"fatbin of qk_norm_rope"), ("function", 7, "entry", 1024), one]
    assert len(module.calls) == 4 and module.calls[3][:7] == one[:7]
    loader.launch("qk_norm_rope", "entry", (1, 0, 1), 128, 0, (None,), "p")
    assert len(module.calls) == 4  # no blocks, no launch
    loader.launch("qk_norm_rope", "entry", (1, 1, 1), 128, 1024, (None,), "p")
    assert module.calls[-1][-1] == [0]


def test_what_an_entry_point_is_allowed_does_not_fall(ahead):
    """The driver has one limit for all launches of a function: a wide one, a narrow one, the wide one again."""
    module, x = ahead(Ahead()), torch.ones(4)
    for shared in (80_000, 60_000, 80_000, 90_000):
        loader.launch("qk_norm_rope", "entry", (1, 1, 1), 128, shared, (x,), "p")
    assert [call[3] for call in module.calls if call[0] == "function"] == [80_000, 80_000, 90_000]


def test_more_than_the_driver_allows_is_refused_and_asked_for_no_more(ahead, monkeypatch):
    module, x = ahead(Ahead()), torch.ones(4)
    allow = module.function

    def function(handle, entry, shared):
        if shared > 200_000:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
        return allow(handle, entry, shared)

    monkeypatch.setattr(module, "function", function)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        loader.launch("qk_norm_rope", "entry", (1, 1, 1), 128, 10**6, (x,), "p")
    loader.launch("qk_norm_rope", "entry", (1, 1, 1), 128, 1024, (x,), "p")
    assert [call[3] for call in module.calls if call[0] == "function"] == [1024]


@pytest.mark.parametrize(
    ("changes", "sm", "reason"),
    [
        ({}, 80, ""),
        ({}, 86, ""),  # runs sm_80's machine code
        ({"driver": 12080}, 86, "acefast._cuda was built with CUDA 13.0, the driver is of CUDA 12.8"),
        ({"cuda_version": 13010}, 80, ""),  # of the same major release
        ({"driver": 13010}, 80, ""),
        ({}, 120, ""),  # the driver compiles the PTX of the last
        ({"cuda_version": 13010}, 120, "acefast._cuda was built with CUDA 13.1, the driver is of CUDA 13.0"),
        ({"archs": (86, 100)}, 80, "acefast._cuda was built for sm_86, sm_100 and the GPU is sm_80"),
        ({"archs": (86, 100)}, 90, "acefast._cuda was built for sm_86, sm_100 and the GPU is sm_90"),
        ({"driver": 0}, 80, "there is no CUDA driver"),
        (
            {"sources": {"qk_norm_rope": "other"}},
            80,
            "acefast._cuda was built from other sources than those that are here",
        ),
    ],
)
def test_why_what_was_built_ahead_cannot_run(ahead, changes, sm, reason):
    ahead(Ahead(**changes))
    found = loader.why_not_ahead(sm)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_at_first_use_a_source_is_compiled_for_this_gpu_and_kept(ahead, cupy):
    ahead(None)
    address = launch()
    assert cupy.calls == [
        ("qk_norm_rope.cu", toolkit.text_of("qk_norm_rope", "entry")),
        ("compile", ["-std=c++17", "-arch=sm_80"]),
        *(("device", 1), ("load", b"cubin\0"), ("function", 7, "entry"), ("attribute", 9, 8, 1024)),
        *(("device", 1), ("launch", 9, 3, 2, 1, 128, 1, 1, 1024, 5, address, -7, -(2**40), 0.5)),
    ]
    loader._function.cache_clear()
    loader._module.cache_clear()
    cupy.calls.clear()
    launch()  # in another process
    assert cupy.calls[0] == ("device", 1) and ("load", b"cubin\0") in cupy.calls


def test_at_first_use_is_taken_where_the_driver_is_too_old(ahead, cupy):
    module = ahead(Ahead(driver=12040))
    launch()
    assert ("load", b"cubin\0") in cupy.calls and not module.calls


def test_without_either_path_both_reasons_are_told(ahead, no_cupy):
    ahead(None)
    told = "acefast was installed without nvcc, and CuPy is not installed"
    assert loader.why_unavailable(80) == told
    with pytest.raises(RuntimeError, match=rf"qk_norm_rope: entry failed on cuda:1 with .*: {told}$"):
        launch()
    ahead(Ahead())
    assert loader.why_unavailable(80) == ""


def test_a_cupy_that_cannot_compile_says_why(monkeypatch, ahead, cupy):
    ahead(None)

    def fail():
        raise RuntimeError("libnvrtc.so.13 is\n not found")

    monkeypatch.setattr(cupy.nvrtc, "getVersion", fail)
    assert loader.why_not_at_first_use() == "CuPy finds no NVRTC: libnvrtc.so.13 is not found"


def test_an_error_tells_the_kernel_the_shapes_and_the_gpu(ahead):
    module = ahead(Ahead())

    def fail(*given):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS, an illegal access")

    module.launch = fail
    told = (
        r"^qk_norm_rope: entry failed on cuda:1 with \(\[4, 4\], -7, -1099511627776, 0\.5\), grid \(3, 2, 1\), "
        r"128 threads, 1024 bytes of shared memory: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal access$"
    )
    with pytest.raises(RuntimeError, match=told):
        launch()


def test_without_a_gpu_it_imports_and_a_launch_is_one_error(monkeypatch):
    monkeypatch.undo()
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"^qk_norm_rope: entry failed on no GPU with \(\[4, 4\], .*: .+"):
        launch()


def test_each_path_tells_that_it_is_in_force_or_why_it_is_not(ahead, cupy, tmp_path):
    kept, missing, no_gpu = f"in force, kept in {tmp_path}/cuda", "acefast was installed without nvcc", loader.NO_GPU
    ahead(Ahead())
    assert loader.paths(80) == {"ahead of time": "in force", "at first use": "not needed"}
    assert loader.paths(None) == {"ahead of time": no_gpu, "at first use": no_gpu}
    ahead(None)
    assert loader.paths(80) == {"ahead of time": missing, "at first use": kept}
    assert loader.paths(None) == {"ahead of time": missing, "at first use": no_gpu}


def test_neither_path(ahead, no_cupy):
    ahead(Ahead())
    assert loader.paths(80)["at first use"] == "not needed, and not possible: CuPy is not installed"
    assert loader.paths(None)["at first use"] == "CuPy is not installed"


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_build_compiles_for_the_gpus_here_or_for_those_named(ahead, cupy, gpus, capsys, tmp_path):
    ahead(None)
    assert main(["build"]) == 0
    assert re.fullmatch(r"sm_80: qk_norm_rope, 0 kB in 0\.\d s\n", capsys.readouterr().out)  # two of one kind
    assert len(list((tmp_path / "cuda").iterdir())) == 1
    module = ahead(Ahead())
    assert main(["build"]) == 0 and not module.calls
    assert capsys.readouterr().out == "sm_80: compiled when acefast was installed\n"
    assert main(["build", "--sm", "90", "--sm", "86"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sm_86", "sm_90"]
    assert [options[1][1] for options in cupy.calls if options[0] == "compile"] == [
        f"-arch=sm_{n}" for n in (80, 86, 90)
    ]


def test_build_that_cannot_work_is_one_sentence(ahead, cupy, monkeypatch, capsys):
    ahead(None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["build"]) == 2
    assert "build: torch sees no CUDA GPU; name one with --sm, such as --sm 80" in capsys.readouterr().err

    def refuse(program, options):
        raise KeyError("NVRTC_ERROR_INVALID_OPTION")

    monkeypatch.setattr(cupy.nvrtc, "compileProgram", refuse)
    cupy.nvrtc.getProgramLog = lambda program: "invalid value for\n --gpu-architecture"
    assert main(["build", "--sm", "1"]) == 2
    assert "build: sm_1: qk_norm_rope: invalid value for --gpu-architecture" in capsys.readouterr().err


def test_build_without_cupy_says_how_to_get_it(ahead, no_cupy, gpus, capsys):
    ahead(None)
    assert main(["build"]) == 2
    assert "build: CuPy is not installed; pip install cupy-cuda13x, or cupy-cuda12x" in capsys.readouterr().err


@pytest.mark.parametrize(("types", "threads"), [("pil", 128), ("pilf", 100)])
def test_a_launch_that_does_not_fit_itself_is_refused(types, threads):
    with pytest.raises(ValueError, match=f"entry: 4 arguments of types '{types}', {threads} threads"):
        loader.launch("qk_norm_rope", "entry", (1, 1, 1), threads, 0, (None, 1, 2, 0.5), types)
