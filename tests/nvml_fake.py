"""A NVML library object that replays what a GPU told: what ``pynvml`` is to acefast.nvml."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, LIBRARY_NOT_FOUND, LOST = 3, 4, 10, 12, 15
WORDS = {3: "Not Supported", 4: "Insufficient Permissions", 10: "Timeout", 12: "NVML Shared Library Not Found"}
WORDS |= {6: "Not Found", 15: "GPU is lost"}
CALM = dict(sm=1410, memory=1593, watts=300.0, limit=400.0, celsius=55, reasons=0, used=10**9, busy=98, ecc=(0, 0))


class FakeNvml:
    """Replays ``sequence``: each sample is a dict over CALM, the last one stays.

    A value that is an int wrapped in ``Fails`` raises NVMLError of that code. ``pids`` are the processes on the GPU.
    """

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_VOLATILE_ECC = 1, 2, 0, 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED, NVML_ERROR_TIMEOUT, NVML_ERROR_UNKNOWN = LOST, 16, TIMEOUT, 999

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            self.value = value

        def __str__(self) -> str:
            return WORDS.get(self.value, f"NVML Error with code {self.value}")

    def __init__(self, *sequence: dict[str, Any], pids: tuple[int, ...] = (os.getpid(),), starts: int = 0) -> None:
        self.sequence, self.pids, self.starts = [CALM | s for s in sequence or ({},)], pids, starts
        self.at = -1
        self.asked: list[str] = []

    def _told(self, name: str) -> Any:
        self.asked.append(name)
        value = self.sequence[max(0, min(self.at, len(self.sequence) - 1))][name]
        if isinstance(value, Fails):
            raise self.NVMLError(value.code)
        return value

    def nvmlInit(self) -> None:
        if self.starts:
            raise self.NVMLError(self.starts)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise self.NVMLError(6)
        return "handle"

    def nvmlDeviceGetHandleByPciBusId(self, pci: str) -> str:
        if pci != "00000000:65:00.0":
            raise self.NVMLError(6)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        if kind == self.NVML_CLOCK_SM:
            self.at += 1  # the first that a sample asks
        return self._told("sm" if kind == self.NVML_CLOCK_SM else "memory")

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return round(1000 * self._told("watts"))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return round(1000 * self._told("limit"))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._told("celsius")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self._told("reasons")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self._told("used"))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._told("busy"), memory=50)

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        return self._told("ecc")[kind]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        if isinstance(self.pids, Fails):
            raise self.NVMLError(self.pids.code)
        return [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in self.pids]

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA A100-SXM4-40GB"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return "GPU-1"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.86"

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:
        return [0, 1]  # now, and after the next start

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        raise self.NVMLError(NOT_SUPPORTED)

    def nvmlDeviceGetPersistenceMode(self, handle: str) -> int:
        return 1

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: str) -> int:
        return 4

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: str) -> int:
        return 4

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: str) -> int:
        return 8

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: str) -> int:
        return 16


class Fails:
    """In place of a value: asking for it raises NVMLError of ``code``."""

    def __init__(self, code: int) -> None:
        self.code = code
