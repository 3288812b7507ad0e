"""LoRAs at run time: one song without, with one at several weights, and without again, on a model that is loaded once.

    python examples/lora.py rap.safetensors --weights 0.5 1 --out song.wav

Takes a file, a folder with pytorch_lora_weights.safetensors or a hub id. Without one a random LoRA is written beside
the song, to show what is in such a file; it makes the model no better.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import acefast

parser = argparse.ArgumentParser(description="Make a song with a LoRA at several weights.")
parser.add_argument("lora", nargs="?", help="a .safetensors file, a folder or a hub id")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="song.wav", help="-WEIGHT is added")
parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 1], help="-3 to 3")
parser.add_argument("--duration", type=float, default=30, help="seconds")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

pipe, out = acefast.load(args.model), Path(args.out)


def random_lora(file, rank=4):
    """Matrices A [rank, in] and B [out, rank] for the queries of every layer; each is added to its weight as B @ A."""
    tensors = {}
    for name, stored in pipe.model.checkpoint.index.items():
        if name.startswith("decoder.layers.") and name.endswith(".q_proj.weight"):
            module, (out_features, in_features) = name.removesuffix(".weight"), stored.shape
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, in_features) / in_features**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(out_features, rank) / rank**0.5
    save_file(tensors, file)
    return file


lora = args.lora or random_lora(out.with_name("random-lora.safetensors"))
for weight in (None, *args.weights, None):
    begun = time.perf_counter()
    pipe.set_lora(None if weight is None else lora, weight or 0.0)  # None: the weights are the checkpoint's again
    swapped = time.perf_counter() - begun
    song = pipe.generate("boom bap, dusty drums, male rap vocals", duration=args.duration, seed=args.seed)
    name = out if weight is None else out.with_stem(f"{out.stem}-{weight:g}")
    print(f"{song.save(name)}: LoRA {song.lora}, set in {swapped:.2f} s, made in {sum(song.timings.values()):.2f} s")
