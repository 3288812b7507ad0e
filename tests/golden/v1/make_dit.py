"""What ACE-Step v1's transformer, lyric encoder and conditioning compute in fp32 on tiny random networks.

    python tests/golden/v1/make_dit.py --checkout PATH

PATH is a checkout of ace-step/ACE-Step at commit d612523. Weights and inputs come from seeds, see
``tests/models/v1/fill.py``; stored is what upstream's own modules make of them:

dit.safetensors       lyric encoder, ``encode``, position embedding, time embedding, patch embedding, every block, and
                      ``decode`` at several lengths
branches.safetensors  one step of ``text2music_diffusion_process`` for every choice of ERG, with double guidance, and
                      one of ``flowedit_diffusion_process``: the condition sequences, masks and velocities of each
                      branch; the text encoder's states, as they are and weakened

Upstream's lyric encoder has its sizes hard-coded; here its class is built with those of ``fill.TINY``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2])]

from tests.models.v1 import cases  # noqa: E402
from tests.models.v1.fill import TINY, official_tensors, text_encoder, upstream_latents  # noqa: E402


def pipeline_class(checkout: Path):
    """Upstream's pipeline class; modules that it imports and that are not installed are stood in for."""
    sys.path.insert(0, str(checkout))
    while True:
        try:
            from acestep.pipeline_ace_step import ACEStepPipeline

            return ACEStepPipeline
        except ModuleNotFoundError as missing:
            sys.modules[missing.name] = MagicMock()
            for name in [n for n in sys.modules if n.startswith("acestep")]:
                del sys.modules[name]


def transformer():
    """Upstream's transformer with the weights of ``official_tensors``."""
    from acestep.models import ace_step_transformer as upstream

    upstream.LyricEncoder = functools.partial(
        upstream.LyricEncoder,
        output_size=TINY.lyric_hidden_size,
        attention_heads=TINY.lyric_heads,
        linear_units=TINY.lyric_intermediate_size,
    )
    model = upstream.ACEStepTransformer2DModel(
        num_layers=TINY.num_layers,
        attention_head_dim=TINY.attention_head_dim,
        num_attention_heads=TINY.num_attention_heads,
        mlp_ratio=TINY.mlp_ratio,
        rope_theta=TINY.rope_theta,
        speaker_embedding_dim=TINY.speaker_embedding_dim,
        text_embedding_dim=TINY.text_embedding_dim,
        lyric_encoder_vocab_size=TINY.lyric_encoder_vocab_size,
        lyric_hidden_size=TINY.lyric_hidden_size,
    )
    state = {name.removeprefix("dit."): tensor for name, tensor in official_tensors().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("add_" in name or "projectors" in name for name in missing)
    return model.eval()


def modules(model) -> dict[str, torch.Tensor]:
    """Outputs of the transformer's parts."""
    made = {}
    ids, mask = cases.padded_lyrics()
    made["lyrics"], _ = model.lyric_encoder(model.lyric_embs(ids), mask)
    text, text_mask = cases.padded_text()
    made["encode"], made["encode_mask"] = model.encode(text, text_mask, torch.zeros(len(text), 8), ids, mask)
    attention = model.transformer_blocks[0].attn.processor
    x = cases.heads()
    made["rope"] = attention.apply_rotary_emb(x.transpose(1, 2), model.rotary_emb(x, x.shape[1])).transpose(1, 2)
    times = torch.tensor(cases.TIMES) * 1000
    embedded = model.timestep_embedder(model.time_proj(times))
    made["time"], made["time_blocks"] = embedded, model.t_block(embedded)
    made["patch"] = model.proj_in(upstream_latents(cases.latents(2, 33)))
    blocks = []
    hooks = [b.register_forward_hook(lambda _, __, out: blocks.append(out)) for b in model.transformer_blocks]
    decode(model, 1, 17, cases.states(1, 12), torch.ones(1, 12))
    made["blocks"] = torch.cat(blocks)
    for hook in hooks:
        hook.remove()
    for frames in cases.FRAMES:
        states, mask = cases.states(2, 12), torch.ones(2, 12)
        mask[1, 7:] = 0
        made[f"decode_{frames}"] = decode(model, 2, frames, states, mask)
    return made


def decode(model, songs: int, frames: int, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    latents = upstream_latents(cases.latents(songs, frames))
    time = torch.full((songs,), cases.TIME * 1000)
    return model.decode(latents, torch.ones(songs, frames), states, mask, time, output_length=frames).sample


def recorded(model, run) -> list[dict[str, torch.Tensor]]:
    """Latents, states, mask and velocity of each call of ``decode`` within ``run()``."""
    calls, plain = [], model.decode

    def spy(*args, **kwargs):
        out = plain(*args, **kwargs)
        names = {"latents": "hidden_states", "states": "encoder_hidden_states", "mask": "encoder_hidden_mask"}
        calls.append({key: kwargs[name] for key, name in names.items()} | {"v": out.sample})
        return out

    model.decode = spy
    run()
    del model.decode
    return calls


def branches(pipeline, model) -> dict[str, torch.Tensor]:
    """What text2music's and edit's branches are conditioned on, and what comes of it."""
    encoder, made = text_encoder(), {}
    me = SimpleNamespace(cpu_offload=False, device=torch.device("cpu"), dtype=torch.float32)
    me.ace_step_transformer, me.text_encoder_model = model, encoder
    made["text"] = encoder(torch.tensor([cases.PROMPT])).last_hidden_state
    ids = {"input_ids": torch.tensor([cases.PROMPT]), "attention_mask": torch.ones(1, len(cases.PROMPT))}
    me.text_tokenizer = lambda *_, **__: dict(ids)
    made["weak_text"] = pipeline.get_text_embeddings_null(me, ["any"])
    made["text_2"] = encoder(torch.tensor([cases.TARGET_PROMPT])).last_hidden_state

    def conditions(prompt: str, lyrics: list[int]) -> tuple:
        text, ids = made[prompt], torch.tensor([lyrics or [0]])
        mask = torch.ones_like(ids) if lyrics else torch.zeros_like(ids)
        return text, torch.ones(1, text.shape[1]), torch.zeros(1, TINY.speaker_embedding_dim), ids, mask

    def noise() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(cases.SEED)]

    me.calc_v = functools.partial(pipeline.calc_v, me)
    for name, lyrics in (("sung", cases.LYRICS), ("wordless", [])):
        for tag, lyric, diffusion in itertools.product((0, 1), repeat=3) if lyrics else [(1, 1, 1), (1, 0, 1)]:
            run = functools.partial(
                pipeline.text2music_diffusion_process,
                *(me, cases.SECONDS, *conditions("text", lyrics), noise()),
                infer_steps=1,
                guidance_interval=1.0,
                guidance_interval_decay=0.0,
                encoder_text_hidden_states_null=made["weak_text"] if tag else None,
                use_erg_lyric=bool(lyric),
                use_erg_diffusion=bool(diffusion),
                guidance_scale_text=5.0,  # with the next one: double guidance, which has a third branch
                guidance_scale_lyric=1.5,
            )
            conditional, text_only, null = recorded(model, run)
            made |= {f"{name}.conditional.{key}": tensor for key, tensor in conditional.items()}
            if tag and diffusion:  # which act on the null branch alone
                made |= {f"{name}.{lyric}.text_only.{key}": text_only[key] for key in ("states", "v")}
            made |= {f"{name}.{tag}{lyric}{diffusion}.null.{key}": null[key] for key in ("states", "v")}
    calls = recorded(
        model,
        lambda: pipeline.flowedit_diffusion_process(
            *(me, *conditions("text", cases.LYRICS), *conditions("text_2", cases.TARGET_LYRICS)),
            upstream_latents(cases.latents(1, 9)),
            random_generators=noise(),
            infer_steps=1,
        ),
    )
    for side, call in zip(("source", "target"), calls, strict=True):
        made |= {f"edit.{side}.{key}": tensor for key, tensor in call.items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    pipeline = pipeline_class(parser.parse_args().checkout)
    with torch.no_grad():
        model = transformer()
        for name, made in (("dit", modules(model)), ("branches", branches(pipeline, model))):
            save_file({k: t.float().contiguous().clone() for k, t in made.items()}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()
