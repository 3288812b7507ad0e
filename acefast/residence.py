"""Where a model's networks are: all on its device, or where memory is low those of one stage at a time.

    class Model:
        transformer = Part("diffusion", lambda model: ...)  # loaded when it is first asked for
        decoder = Part("decode", lambda model: ...)

        def __init__(self, ...):
            self.residence = Residence(device, memory, forget)

With ``memory="low"`` asking for a part sends those of all other stages away first: on a GPU to pinned memory of the
host, from where they come back over the bus; elsewhere they are dropped, and read from the checkpoint again. Numbers
do not change on the way. What was made for their addresses, CUDA graphs among it, is forgotten with them.

A LoRA (``acefast.lora``) is merged into each network when it is loaded, and so is wherever the networks are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from acefast.lora import LoRA

POLICIES = ("auto", "low", "fast")


class Residence:
    """Which networks of a model are on its device. Only for one thread at a time where memory is low."""

    def __init__(self, device: torch.device, memory: str, forget: Callable[[], None]) -> None:
        """
        Args:
            memory: "fast" or "low".
            forget: drops what a model keeps on the device beside its networks; called when networks leave.
        """
        self.device, self.low, self.forget = device, memory == "low", forget
        self.parks = device.type == "cuda"  # to the host
        self.stage: str | None = None  # of the networks that are here
        self.here: dict[str, nn.Module] = {}
        self.away: dict[str, tuple[nn.Module, list[Tensor]]] = {}  # with their weights on the host
        self.lora: LoRA | None = None  # merged into all of them
        self.merged: set[str] = set()  # official names of the weights that may not be the checkpoint's

    def ask(self, name: str, stage: str, load: Callable[[], nn.Module]) -> nn.Module:
        """The network ``name``, on the device."""
        if self.low and stage != self.stage:
            self.leave()
            self.stage = stage
        if name not in self.here:
            with torch.inference_mode(False):  # weights are ordinary tensors, whenever they are loaded
                self.here[name] = self._back(name) if name in self.away else self._loaded(load())
        return self.here[name]

    def _loaded(self, module: nn.Module) -> nn.Module:
        if self.lora is not None:
            self.lora.merge(module, named(module))
        return module

    def weights(self) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        """Each network that has been loaded, with its tensors by name: those here, and those on the host."""
        yield from ((module, named(module)) for module in self.here.values())
        yield from ((module, dict(zip(named(module), hosts))) for module, hosts in self.away.values())

    def leave(self) -> None:
        """Send the networks that are here away, and give their memory back."""
        if not self.here:
            return
        self.forget()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # another stream may still read them
        for name, module in list(self.here.items()):
            if self.parks:
                with torch.inference_mode(False):
                    self._send(name, module)
            del self.here[name]  # one by one: where the host is full, the others are still on the device
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _send(self, name: str, module: nn.Module) -> None:
        if name not in self.away:
            self.away[name] = (module, [pinned(tensor.data) for tensor in tensors(module)])
        for tensor, host in zip(tensors(module), self.away[name][1]):
            tensor.data = host

    def _back(self, name: str) -> nn.Module:
        module, hosts = self.away[name]
        try:
            for tensor, host in zip(tensors(module), hosts):
                tensor.data = host.to(self.device, non_blocking=True)
        except BaseException:  # the device is full: what has come goes again
            self._send(name, module)
            raise
        return module


class Part:
    """A network of a model that has a ``residence``: an attribute, on the device whenever it is asked for."""

    def __init__(self, stage: str, load: Callable[[Any], nn.Module], about: str = "") -> None:
        self.stage, self.load, self.__doc__ = stage, load, about

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        return model.residence.ask(self.name, self.stage, lambda: self.load(model))


def named(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a network by name, in one order."""
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))


def tensors(module: nn.Module) -> list[Tensor]:
    """All tensors of a network, in that order."""
    return list(named(module).values())


def pinned(tensor: Tensor) -> Tensor:
    """A copy on the host, pinned so that it comes back at the bus' full speed; pageable where no more can be pinned."""
    host = tensor.cpu()
    try:
        return host.pin_memory()
    except RuntimeError:
        return host
