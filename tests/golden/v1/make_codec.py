"""Golden numbers of ACE-Step v1's codec, made by upstream's own modules on tiny random weights.

    python -m tests.golden.v1.make_codec --checkout PATH  # in the repository's root

PATH is a checkout of ace-step/ACE-Step at commit d612523. Weights and inputs come from ``tests.models.v1.codec_fill``,
which draws them with Philox, the same numbers everywhere; only outputs are stored. Stubbed are librosa, torchaudio (its
MelScale by the filterbank of acefast.models.v1.mel) and torchvision's Normalize. MusicDCAE is built around its
constructor, which would read a checkpoint.

mel       LogMelSpectrogram of two channels
vocoder   ADaMoSHiFiGANV1.decode, seven stages
decode    MusicDCAE.decode, three frames, four stages
overlap   the last samples of its decode_overlap of the same latents
encode    MusicDCAE.encode of 44.1 kHz audio that is no whole number of frames
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

from acefast.models.v1.mel import filterbank
from tests.models.v1 import codec_fill as fill

TAIL = 4096  # samples stored of the overlapped decoding


class MelScale(torch.nn.Module):
    """torchaudio's, as upstream uses it."""

    def __init__(self, *_):
        super().__init__()
        self.register_buffer("fb", filterbank())

    def forward(self, x):
        return (x.transpose(-1, -2) @ self.fb).transpose(-1, -2)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, x):
        return (x - self.mean) / self.std


def stub() -> None:
    import diffusers.loaders
    import diffusers.models.modeling_utils  # noqa: F401 (both ask whether the modules below are installed)

    transforms = types.SimpleNamespace(MelScale=MelScale, Resample=None, Normalize=Normalize)
    transforms.Compose = lambda parts: parts[0]
    for name in ("librosa", "torchaudio", "torchaudio.transforms", "torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
    for package in ("torchaudio", "torchvision"):
        vars(sys.modules[f"{package}.transforms"]).update(vars(transforms))
        sys.modules[package].transforms = sys.modules[f"{package}.transforms"]


def vocoder_of(module, config, tensors):
    values = fill.values(config)
    values["num_mels"] = config.dims[-1]
    values["resblock_dilation_sizes"] = [values.pop("resblock_dilations")] * len(config.resblock_kernel_sizes)
    made = module.ADaMoSHiFiGANV1(**values).requires_grad_(False)
    names = {k.removeprefix("vocoder."): v for k, v in tensors.items()}
    differ = made.load_state_dict(names, strict=False)
    assert not differ.unexpected_keys and all(k.startswith("mel_transform") for k in differ.missing_keys), differ
    return made


def codec_of(pipeline, module):
    """MusicDCAE without a checkpoint."""
    made = pipeline.MusicDCAE.__new__(pipeline.MusicDCAE)
    torch.nn.Module.__init__(made)
    made.dcae = fill.diffusers_dcae(fill.DCAE, fill.dcae_tensors(fill.DCAE))
    made.vocoder = vocoder_of(module, fill.SHORT, fill.vocoder_tensors(fill.SHORT))
    made.resampler = torch.nn.Identity()  # what it is given is at 44.1 kHz
    made.transform = Normalize(0.5, 0.5)
    made.min_mel_value, made.max_mel_value = -11.0, 3.0
    made.time_dimention_multiple = 8
    made.scale_factor, made.shift_factor = 0.1786, -1.9091
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="of ace-step/ACE-Step")
    checkout = parser.parse_args().checkout
    stub()
    sys.path.insert(0, str(checkout / "acestep/music_dcae"))
    import music_dcae_pipeline as pipeline
    import music_vocoder as module

    torch.set_num_threads(1)
    codec = codec_of(pipeline, module)
    latents = fill.latents().view(1, -1, 16, 8).permute(0, 3, 2, 1)
    vocoder = vocoder_of(module, fill.VOCODER, fill.vocoder_tensors(fill.VOCODER))
    audio = fill.sound()
    golden = {
        "mel": torch.stack([codec.vocoder.mel_transform(channel[None])[0] for channel in fill.padded(audio)]),
        "vocoder": vocoder.decode(7 * fill.mel().transpose(1, 2) - 4)[:, 0],
        "decode": codec.decode(latents)[1][0],
        "overlap": codec.decode_overlap(latents)[1][0][:, -TAIL:],
        "encode": codec.encode(audio[None])[0][0].permute(2, 1, 0).flatten(1),
    }
    golden = {name: tensor.float().contiguous() for name, tensor in golden.items()}
    for name, tensor in golden.items():
        print(name, list(tensor.shape), f"std {tensor.std():.3g}")
    save_file(golden, Path(__file__).with_name("codec.safetensors"), {"upstream": "ace-step/ACE-Step d612523"})


if __name__ == "__main__":
    main()
