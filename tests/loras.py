"""LoRA files for tiny checkpoints, and those checkpoints with a LoRA merged by hand.

Test files import its functions before pytest takes its fixtures, too late for its asserts: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from acefast.checkpoint import open_checkpoint
from acefast.ops.philox import philox_normal
from tests.checkpoints import edit

# Of 1.5: alone in our tensor, of two and of three that are stacked, of the encoders, of what is computed once a
# schedule, once a model (the null condition's values), once a song.
MODULES = {
    "decoder.layers.0.self_attn.q_proj": 4,
    "decoder.layers.0.self_attn.v_proj": 2,
    "decoder.layers.1.cross_attn.v_proj": 3,
    "decoder.layers.1.cross_attn.o_proj": 4,
    "decoder.layers.0.mlp.up_proj": 4,
    "decoder.condition_embedder": 4,
    "decoder.time_embed.linear_2": 4,
    "decoder.time_embed_r.linear_1": 4,
    "encoder.text_projector": 4,
    "encoder.lyric_encoder.layers.0.self_attn.k_proj": 4,
    "encoder.timbre_encoder.embed_tokens": 4,
}


def adapters(folder: Path, modules: dict[str, int] = MODULES, seed: int = 0) -> dict[str, Tensor]:
    """A and B of ``modules``, with their ranks, for the checkpoint in ``folder``; B @ A is as large as a weight."""
    index, found = open_checkpoint(folder, offline=True).index, {}
    for i, (module, rank) in enumerate(modules.items()):
        out, inp = index[f"{module}.weight"].shape
        found[f"{module}.lora_A.weight"] = philox_normal([seed], (rank, inp), stream=2 * i)[0] / inp**0.5
        found[f"{module}.lora_B.weight"] = philox_normal([seed], (out, rank), stream=2 * i + 1)[0] / rank**0.5
    return found


def write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata)
    return file


def with_terms(values: dict[str, Tensor], tensors: dict[str, Tensor], factor: float) -> None:
    """Put W + factor * B @ A, in fp32, in the place of every W that ``tensors`` have an A and a B of."""
    for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        down, up = (tensors[f"{module}.lora_{half}.weight"].float() for half in "AB")
        values[f"{module}.weight"] = values[f"{module}.weight"].float() + factor * torch.matmul(up, down)


def merged_copy(folder: Path, copy: Path, tensors: dict[str, Tensor], factor: float = 1.0) -> Path:
    """The official checkpoint in ``folder`` with the transformer's file in fp32 and the LoRA merged."""
    shutil.copytree(folder, copy)
    (file,) = copy.glob("acestep-v15-*/model.safetensors")

    def change(values: dict[str, Tensor]) -> None:
        values.update({name: value.float() for name, value in values.items()})
        with_terms(values, tensors, factor)

    edit(file, change)
    return copy
