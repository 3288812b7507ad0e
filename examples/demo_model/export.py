"""Write trained networks as a checkpoint in the official layout.

    python examples/demo_model/export.py RUN FOLDER [--dtype fp16]

FOLDER is then what ``acefast generate --model FOLDER`` takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizer import save_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn

from acefast.config_files import official_config
from acefast.models.v15.config import Config, VAEConfig
from acefast.random_weights import write_sharded

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SILENT_FRAMES = 750  # half a minute of silence; the loader repeats it


def export(
    folder: Path, config: Config, vae_config: VAEConfig, text_config: dict[str, Any], *,
    bundle: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer: Tokenizer, silence: Tensor,
    dtype: torch.dtype = torch.float16,
) -> Path:  # fmt: skip
    """Write the networks, whose state dicts have the official names already.

    Args:
        text_config: arguments of ``Qwen3Config``.
        silence: latents of digital silence, [F, D] float32.
    Returns:
        ``folder``.
    """
    dit, text = folder / "acestep-v15-demo", folder / "Qwen3-Embedding-0.6B"
    _write(dit, "model", bundle, dtype, official_config(config))
    torch.save(silence.float().T[None].contiguous(), dit / "silence_latent.pt")
    values = {"_class_name": "AutoencoderOobleck", **dataclasses.asdict(vae_config)}
    _write(folder / "vae", "diffusion_pytorch_model", vae, dtype, values)
    values = {"architectures": ["Qwen3Model"], "model_type": "qwen3", **text_config}
    _write(text, "model", text_encoder, dtype, values)
    save_tokenizer(tokenizer, text)
    return folder


def _write(folder: Path, stem: str, nets: nn.Module, dtype: torch.dtype, config: dict[str, Any]) -> None:
    items = [(n, tuple(t.shape), lambda t=t: [t.detach().flatten()]) for n, t in nets.state_dict().items()]
    write_sharded(folder, stem, items, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    from train_dit import Run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    args = parser.parse_args(argv)
    folder = Run(args.run).export(args.folder, DTYPES[args.dtype])
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
