"""What NVML tells of a GPU: facts that stay, figures sampled by a thread, and what makes a measurement worthless.

    gpu = open_gpu(uuid)
    with Watcher(gpu) as watcher:
        ...
    summary = watcher.summary(begin, end)  # of time.perf_counter()

NVML is asked through ``nvidia-ml-py`` (its module is ``pynvml``), which is optional. What a GPU or a driver does not
tell is None, with the reason in ``Gpu.missing``; nothing but a lost GPU ends the sampling.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

HERTZ = 20.0
SLOWEST = 0.95  # of the mean clock: below it a measurement is of two machines
IDLE = 0x1
THROTTLES = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x200: "board limit",
    0x400: "reliability voltage",
}  # of NVML's reasons; idle, clocks that a user set and display clocks are none
FIGURES = ("sm_mhz", "memory_mhz", "power_w", "limit_w", "celsius", "memory_bytes", "utilisation")
_PROCESSES_EVERY = 20  # samples: listing processes takes longer than all the rest


class NvmlUnavailable(RuntimeError):
    """NVML cannot be asked here; one sentence."""


class GpuLost(RuntimeError):
    """The GPU has fallen off the bus, or needs a reset."""


def open_gpu(uuid: str = "", pci: str = "", library: Any = None) -> Gpu:
    """The GPU of that UUID ("GPU-..."), else of that PCI address ("00000000:65:00.0").

    Args:
        library: what is asked in place of the module ``pynvml``.
    Raises:
        NvmlUnavailable: nvidia-ml-py or the driver is not there, or it does not know the GPU.
    """
    if library is None:
        try:
            import pynvml as library
        except ImportError:
            raise NvmlUnavailable("nvidia-ml-py is not installed; pip install acefast[gpu]") from None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise NvmlUnavailable(f"NVML cannot be started: {error}") from error
    problem: Exception | str = "it was asked for none"
    for find, name in (("nvmlDeviceGetHandleByUUID", uuid), ("nvmlDeviceGetHandleByPciBusId", pci)):
        try:
            if name:
                return Gpu(library, getattr(library, find)(name))
        except library.NVMLError as error:
            problem = error
    raise NvmlUnavailable(f"NVML does not know the GPU {uuid or pci}: {problem}")


class Gpu:
    """One GPU, asked through ``library``."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.missing: dict[str, str] = {}  # what is not told, and why

    def sample(self, processes: bool = True) -> dict[str, Any]:
        """Clocks, power, temperature, throttle reasons, memory, utilisation and errors now; GpuLost without a GPU."""
        n = self.library
        found = {
            "sm_mhz": self._ask("sm_mhz", "nvmlDeviceGetClockInfo", n.NVML_CLOCK_SM),
            "memory_mhz": self._ask("memory_mhz", "nvmlDeviceGetClockInfo", n.NVML_CLOCK_MEM),
            "power_w": self._ask("power_w", "nvmlDeviceGetPowerUsage", then=lambda mw: mw / 1e3),
            "limit_w": self._ask("limit_w", "nvmlDeviceGetEnforcedPowerLimit", then=lambda mw: mw / 1e3),
            "celsius": self._ask("celsius", "nvmlDeviceGetTemperature", n.NVML_TEMPERATURE_GPU),
            "reasons": self._ask("reasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
            "memory_bytes": self._ask("memory_bytes", "nvmlDeviceGetMemoryInfo", then=lambda m: m.used),
            "utilisation": self._ask("utilisation", "nvmlDeviceGetUtilizationRates", then=lambda u: u.gpu),
        }
        for name in ("corrected", "uncorrected"):
            kind = getattr(n, f"NVML_MEMORY_ERROR_TYPE_{name.upper()}")
            ask = ("nvmlDeviceGetTotalEccErrors", kind, n.NVML_VOLATILE_ECC)
            found[f"ecc_{name}"] = self._ask(f"ecc_{name}", *ask)
        found["others"] = self.others() if processes else None
        return found

    def others(self) -> int | None:
        """How many other processes compute on the GPU.

        One of those listed is this process, also where it runs in a container and goes by another number there.
        """
        listed = self._ask("others", "nvmlDeviceGetComputeRunningProcesses")
        if listed is None:
            return None
        pids = {p.pid for p in listed}
        return len(pids - {os.getpid()}) if os.getpid() in pids else max(len(pids) - 1, 0)

    def facts(self) -> dict[str, Any]:
        """Name, hash of the UUID, driver, ECC, MIG and persistence mode, PCIe link: what does not change in a run."""

        def on(mode: Any) -> bool:
            return bool(mode[0] if isinstance(mode, (list, tuple)) else mode)  # current and pending

        def link(which: str) -> str | None:
            generation = self._ask("pcie", f"nvmlDeviceGet{which}PcieLinkGeneration")
            width = self._ask("pcie", f"nvmlDeviceGet{which}PcieLinkWidth")
            return None if None in (generation, width) else f"gen{generation} x{width}"

        return {
            "name": self._ask("name", "nvmlDeviceGetName", then=_text),
            "uuid_hash": self._ask("uuid", "nvmlDeviceGetUUID", then=hashed),
            "driver": self._ask("driver", "nvmlSystemGetDriverVersion", then=_text, of_gpu=False),
            "ecc": self._ask("ecc", "nvmlDeviceGetEccMode", then=on),
            "mig": self._ask("mig", "nvmlDeviceGetMigMode", then=on),
            "persistence": self._ask("persistence", "nvmlDeviceGetPersistenceMode", then=on),
            "pcie": link("Curr"),
            "pcie_max": link("Max"),
        }

    def _ask(
        self, name: str, function: str, *words: Any, then: Callable[[Any], Any] = lambda x: x, of_gpu: bool = True
    ) -> Any:
        """The answer, or None; what is refused for good is not asked again."""
        if name in self.missing:
            return None
        n = self.library
        if (call := getattr(n, function, None)) is None:
            self.missing[name] = f"nvidia-ml-py has no {function}"
            return None
        try:
            return then(call(*([self.handle] if of_gpu else []), *words))
        except n.NVMLError as error:
            if error.value in (n.NVML_ERROR_GPU_IS_LOST, n.NVML_ERROR_RESET_REQUIRED):
                raise GpuLost(str(error)) from error
            if error.value not in (n.NVML_ERROR_TIMEOUT, n.NVML_ERROR_UNKNOWN):  # those may pass
                self.missing[name] = str(error)
            return None


class Watcher:
    """Samples a GPU ``hertz`` times a second within the block, on a thread of its own."""

    def __init__(self, gpu: Gpu, hertz: float = HERTZ, clock: Callable[[], float] = time.perf_counter) -> None:
        self.gpu, self.period, self.clock = gpu, 1 / hertz, clock
        self.samples: list[dict[str, Any]] = []
        self.lost = ""
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, name="acefast-nvml", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def take(self) -> bool:
        """Take one sample; whether there is still a GPU to take another of."""
        try:
            found = self.gpu.sample(processes=len(self.samples) % _PROCESSES_EVERY == 0)
        except GpuLost as error:
            self.lost = str(error)
            return False
        self.samples.append({"time": self.clock(), **found})
        return True

    def _sample_on(self) -> None:
        try:
            due = self.clock()
            while self.take():
                due = max(due + self.period, self.clock())  # a late sample is not caught up with
                if self._ended.wait(max(due - self.clock(), 0)):
                    return
        except BaseException as error:
            self._failure = error  # raised where the block ends

    def summary(self, begin: float, end: float) -> dict[str, Any]:
        """What was sampled from ``begin`` to ``end``: figures, energy, and ``problems``, a sentence each."""
        within = [s for s in self.samples if begin <= s["time"] <= end]
        seen = [s["others"] for s in self.samples if s["others"] is not None]  # looked for too seldom to leave one out
        return summarise(within, end - begin, self.lost, self.gpu, max(seen, default=None))


def summarise(samples: list[dict[str, Any]], seconds: float, lost: str, gpu: Gpu, others: int | None) -> dict[str, Any]:
    """Min, mean and max of every figure, joules by integrating power, errors that came, and ``problems``."""
    problems = [f"the GPU was lost: {lost}"] if lost else []
    if not samples and not lost:
        problems.append("it was over before the GPU could be looked at")
    found: dict[str, Any] = {"samples": len(samples), "seconds": seconds, "lost": lost}
    for name in FIGURES:
        values = [s[name] for s in samples if s[name] is not None]
        found[name] = {"min": min(values), "mean": sum(values) / len(values), "max": max(values)} if values else None

    told = [s["reasons"] for s in samples if s["reasons"] is not None]
    times = {reason: sum(bool(bits & bit) for bits in told) for bit, reason in THROTTLES.items()}
    found["throttled"] = {reason: count / len(told) for reason, count in times.items() if count} if told else None
    if reasons := found["throttled"]:
        shares = ", ".join(f"{reason} in {share:.0%} of the time" for reason, share in reasons.items())
        problems.append(f"the GPU was throttled: {shares}")
    for name, what in (("sm_mhz", "SM"), ("memory_mhz", "memory")):
        busy = [s[name] for s in samples if s[name] is not None and not (s["reasons"] or 0) & IDLE]
        if busy and min(busy) < SLOWEST * (mean := sum(busy) / len(busy)):
            problems.append(f"the {what} clock fell to {min(busy):.0f} MHz, below {SLOWEST:.0%} of its mean {mean:.0f}")
    for name in ("ecc_corrected", "ecc_uncorrected"):
        values = [s[name] for s in samples if s[name] is not None]
        found[name] = values[-1] - values[0] if values else None
    if found["ecc_uncorrected"]:
        problems.append(f"memory had {found['ecc_uncorrected']} uncorrected ECC errors")
    found["others"] = others
    if others:
        problems.append(shared(others))
    found["joules"] = None if lost else joules([(s["time"], s["power_w"]) for s in samples], seconds)
    return {**found, "missing": dict(gpu.missing), "problems": problems}


def shared(others: int) -> str:
    return f"the GPU is shared with {others} other process{'es' * (others > 1)}"


def joules(powers: list[tuple[float, float | None]], seconds: float) -> float | None:
    """Energy of ``seconds``: power integrated by trapezoids; what lies before the first and after the last sample is
    taken at the mean. None of fewer than two samples."""
    known = [(t, watts) for t, watts in powers if watts is not None]
    covered = known[-1][0] - known[0][0] if known else 0
    if covered <= 0:
        return None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(known))
    return area / covered * seconds


def hashed(uuid: str | bytes) -> str:
    """Twelve hex digits that tell two GPUs apart and do not say which they are."""
    return hashlib.sha256(_text(uuid).encode()).hexdigest()[:12]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes before nvidia-ml-py 11.515
