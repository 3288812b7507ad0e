"""A LoRA is merged where the weights lie: the bits of a merged checkpoint with it, those of the checkpoint without."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

import acefast
from acefast import RequestError, lora
from acefast.graphs import Graphs
from acefast.models.v15.config import VAEConfig
from acefast.residence import named, tensors
from acefast.testing import write_checkpoint
from tests.checkpoints import edit, refusal
from tests.loras import MODULES, adapters, merged_copy, write
from tests.songs import same
from tests.test_residence import Parked, begin_another

pytestmark = pytest.mark.usefixtures("offline")
ROOT = Path(__file__).parents[1]
SHORT = VAEConfig(2, (2, 2), (1, 2), 2, 8)  # frames of 4 samples: next to nothing to decode
SONG = dict(prompt="drill", lyrics="[verse]\nla la", seed=1, duration=5.2, steps=2)
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints as written and with rap.safetensors merged at 0.5, and that file; all by one writer, which places
    tensors alike: where they lie in a file decides how its rows are aligned, and so how a product rounds."""
    root = tmp_path_factory.mktemp("lora")
    raw = write_checkpoint(root / "raw", variant="base", vae_config=SHORT)
    write(root / "choir.safetensors", adapters(raw, dict(list(MODULES.items())[:6]), seed=1))
    write(root / "rap.safetensors", tensors := adapters(raw))
    merged_copy(raw, root / "model", {})
    merged_copy(raw, root / "merged", tensors, 0.5)
    return root


def loaded(folder, **options):
    return acefast.load(folder, device="cpu", **{"dtype": "float32", **options})


def weights(pipe):
    parts = pipe.model.transformer, pipe.model.condition_encoder, pipe.model.text_encoder
    return {(i, name): t for i, part in enumerate(parts) for name, t in named(part).items()}


def bits(pipe):
    return {name: t.clone() for name, t in weights(pipe).items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


@pytest.fixture
def pipe(folders):
    """The fp32 one, with lanes and a scheduler of its own."""
    return loaded(folders / "model")


@pytest.mark.parametrize("dtype", DTYPES)
def test_songs_are_those_of_a_merged_checkpoint_and_afterwards_those_of_the_model(folders, dtype):
    """Of a model that has made songs before: what it computed with its weights and kept is computed again."""
    pipe, merged = loaded(folders / "model", dtype=dtype), loaded(folders / "merged", dtype=dtype)
    without, before, places = pipe.generate(**SONG), bits(pipe), [t.data_ptr() for t in weights(pipe).values()]
    pipe.set_lora(folders / "rap.safetensors", 0.5)
    assert equal(bits(pipe), bits(merged))
    made = pipe.generate(**SONG)
    assert same(made, merged.generate(**SONG)) and not same(made, without)
    pipe.set_lora(None)
    assert equal(bits(pipe), before) and same(pipe.generate(**SONG), without)
    assert [t.data_ptr() for t in weights(pipe).values()] == places


def test_swaps_do_not_drift_and_the_file_stays_as_it_is(folders, tmp_path):
    root = shutil.copytree(folders / "model", tmp_path / "own")
    (file,) = root.glob("acestep-v15-*/model.safetensors")
    content = file.read_bytes()
    file.chmod(0o444)
    pipe = loaded(root)
    found = {}
    for _ in range(3):
        for name, weight in (("rap", 1.0), ("choir", -3), ("rap", 0.5), (None, 1.0)):
            pipe.set_lora(name and folders / f"{name}.safetensors", weight)
            assert equal(bits(pipe), found.setdefault((name, weight), bits(pipe)))
    assert equal(found["rap", 0.5], bits(loaded(folders / "merged")))
    assert equal(found[None, 1.0], bits(loaded(folders / "model")))
    assert file.read_bytes() == content


def test_16_bit_files_are_merged_in_fp32_and_rounded_once(folders, tmp_path):
    raw = write_checkpoint(tmp_path / "raw", variant="base", vae_config=SHORT, dtype=torch.bfloat16)
    half = {name: t.half() for name, t in adapters(raw).items()}
    pipe = loaded(raw, dtype="bfloat16", lora=write(tmp_path / "x.safetensors", half), lora_weight=-1.5)
    assert equal(bits(pipe), bits(loaded(merged_copy(raw, tmp_path / "merged", half, -1.5), dtype="bfloat16")))
    pipe.set_lora(None)
    assert equal(bits(pipe), bits(loaded(raw, dtype="bfloat16")))


def test_a_weight_of_zero_changes_no_bit(folders, pipe):
    before = bits(pipe)
    pipe.set_lora(folders / "rap.safetensors", 0)
    assert equal(bits(pipe), before) and pipe.lora == {"name": "rap", "weight": 0.0}


class Elsewhere(Parked):
    """What comes back is other memory than what it left on the host."""

    def _back(self, name):
        module, hosts = self.away[name]
        for tensor, host in zip(tensors(module), hosts):
            tensor.data = host.clone()
        return module


@pytest.mark.parametrize("kind", ["dropped", "parked"])
def test_it_stays_where_networks_come_and_go(folders, kind):
    pipe, plain, merged = (loaded(folders / name) for name in ("model", "model", "merged"))
    if kind == "dropped":
        pipe = loaded(folders / "model", memory="low")
    else:
        pipe.model.residence = Elsewhere(torch.device("cpu"), "low", pipe.model.residence.forget)
    for _ in range(2):
        assert same(pipe.generate(**SONG), plain.generate(**SONG))
        begin_another(pipe)  # the transformer is here, and on the host
        pipe.set_lora(folders / "choir.safetensors")
        pipe.set_lora(folders / "rap.safetensors", 0.5)
        for seed in (1, 2):
            assert same(pipe.generate(**{**SONG, "seed": seed}), merged.generate(**{**SONG, "seed": seed}))
        begin_another(pipe)
        pipe.set_lora(None)


@pytest.mark.parametrize("early", [True, False], ids=["loaded before", "loaded after"])
def test_networks_that_few_tasks_need_have_it_too(folders, pipe, tmp_path, early):
    tensors = adapters(folders / "model", {"tokenizer.audio_acoustic_proj": 2})
    want = loaded(merged_copy(folders / "model", tmp_path / "merged", tensors)).model.audio_tokenizer
    if early:
        assert pipe.model.audio_tokenizer
    pipe.set_lora(write(tmp_path / "x.safetensors", tensors))
    assert equal(named(pipe.model.audio_tokenizer), named(want))


def test_load_takes_one_and_so_does_generate(folders, monkeypatch):
    file, merged = folders / "rap.safetensors", loaded(folders / "merged").generate(**SONG)
    assert same(loaded(folders / "model", lora=file, lora_weight=0.5).generate(**SONG), merged)
    place = dict(model=folders / "model", device="cpu", dtype="float32")
    loads = []
    real = acefast.pipeline.load
    monkeypatch.setattr(acefast.pipeline, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    for own, weight in ((file, 0.5), (None, 1.0), (file, 0.5)):
        song = acefast.generate(**SONG, **place, lora=own, lora_weight=weight)
        assert same(song, merged) == (own is not None)
    assert len(loads) == 1


def test_the_same_one_is_left_in_place_unless_its_file_was_written_anew(folders, pipe, tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    shutil.copy(folders / "rap.safetensors", file)
    remade, real = [], lora.remake
    monkeypatch.setattr(lora, "remake", lambda *args: remade.append(1) or real(*args))
    pipe.set_lora(file)
    (once,) = {len(remade)}
    pipe.set_lora(str(file))
    assert len(remade) == once
    pipe.set_lora(file, 0.5)
    assert len(remade) == 2 * once
    shutil.copy(folders / "choir.safetensors", file)
    pipe.set_lora(file, 0.5)
    assert len(remade) == 3 * once
    pipe.set_lora(None)
    pipe.set_lora(None)
    assert len(remade) == 4 * once


# -- the record --------------------------------------------------------------------------------------------------------


def test_a_song_tells_what_it_was_composed_with(folders, pipe, tmp_path):
    pipe.set_lora(folders / "rap.safetensors", 0.5)

    def change(stage, done, total):
        if stage == "decode":  # composed by then
            pipe.set_lora(None)

    song = pipe.generate(**SONG, progress=change)
    assert song.lora == {"name": "rap", "weight": 0.5} and pipe.lora is None
    song.save(tmp_path / "x.wav", json=True)
    assert json.loads((tmp_path / "x.json").read_text())["lora"] == song.lora
    plain = pipe.generate(**SONG)
    assert plain.lora is None and "lora" not in plain.metadata()


# -- threads -----------------------------------------------------------------------------------------------------------


def test_it_cannot_change_amid_a_song(folders, pipe):
    told = []

    def on_step(info):
        with pytest.raises(RequestError, match="amid a song"):
            pipe.set_lora(folders / "rap.safetensors")
        told.append(info.step)

    before = bits(pipe)
    pipe.generate(**SONG, on_step=on_step)
    assert told == [0, 1] and equal(bits(pipe), before)


def test_it_waits_for_the_song_that_is_composed(folders, pipe):
    """Of a thread of its own, while another one composes: that song has none of it, the next one all."""
    want, merged = pipe.generate(**SONG), loaded(folders / "merged").generate(**SONG)
    threads = []

    def on_step(info):
        if info.step == 0:
            threads.append(threading.Thread(target=pipe.set_lora, args=(folders / "rap.safetensors", 0.5)))
            threads[0].start()
            threads[0].join(0.2)
            assert threads[0].is_alive() and pipe.lora is None

    assert same(pipe.generate(**SONG, on_step=on_step), want)
    threads[0].join()
    with pipe.scheduler:
        assert same(pipe.submit(**SONG).result(), merged)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_where_it_cannot_be_merged_the_one_before_stays(folders, pipe, monkeypatch):
    pipe.set_lora(folders / "rap.safetensors", 0.5)
    before, song, done, real = bits(pipe), pipe.generate(**SONG), [], lora.merge_into

    def merge_into(*args):
        done.append(1)
        if len(done) == 5:
            raise MemoryError("no room")
        return real(*args)

    monkeypatch.setattr(lora, "merge_into", merge_into)
    with pytest.raises(RequestError, match="the LoRA ran out of memory"):
        pipe.set_lora(folders / "choir.safetensors")
    assert len(done) > 5 and equal(bits(pipe), before) and pipe.lora == {"name": "rap", "weight": 0.5}
    assert same(pipe.generate(**SONG), song)


def test_what_could_not_be_put_back_is_made_anew_by_the_next_one(folders, pipe, monkeypatch):
    before, full, real = bits(pipe), [], lora.merge_into

    def merge_into(*args):
        full.append(1)
        if len(full) > 4:
            raise MemoryError("no room")
        return real(*args)

    monkeypatch.setattr(lora, "merge_into", merge_into)
    with pytest.raises(RequestError):
        pipe.set_lora(folders / "rap.safetensors")
    assert not equal(bits(pipe), before)
    monkeypatch.setattr(lora, "merge_into", real)
    pipe.set_lora(None)
    assert equal(bits(pipe), before)


def test_a_checkpoint_that_was_changed_meanwhile_is_not_mixed_in(folders, tmp_path):
    root = shutil.copytree(folders / "model", tmp_path / "own")
    pipe = loaded(root)
    (file,) = root.glob("acestep-v15-*/model.safetensors")
    before = bits(pipe)
    changed = tmp_path / "changed.safetensors"
    shutil.copy(file, changed)
    edit(changed, lambda values: values.update({name: value + 1 for name, value in values.items()}))
    os.replace(changed, file)
    text = refusal(pipe.set_lora, folders / "rap.safetensors")
    assert "has changed since the model was loaded from it; load the model again" in text
    file.unlink()
    assert refusal(pipe.set_lora, folders / "rap.safetensors") == text
    assert equal(bits(pipe), before) and pipe.lora is None


@pytest.mark.parametrize("weight", [-3.1, 4, float("nan"), "1", True, None])
def test_weights_out_of_range_are_refused(folders, pipe, weight):
    with pytest.raises(RequestError, match="lora_weight must be -3 to 3, got "):
        pipe.set_lora(folders / "rap.safetensors", weight)


# -- on a GPU's static memory ------------------------------------------------------------------------------------------


def test_what_lies_in_static_memory_is_spoilt():
    graphs, entry = Graphs(torch.device("cpu")), Parking()
    graphs.take(entry)
    assert graphs.take(entry)
    graphs.spoil()
    assert not graphs.take(entry) and graphs.take(entry)


class Parking:
    """Something that can be referred to weakly."""


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
def test_songs_on_static_memory_are_those_of_a_merged_checkpoint(folders):
    """The kernels in the interpreter: steps are made once and hold modulations, keys and values of one song only."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    song = {**SONG, "steps": 1, "duration": 5.12}
    with interpreted():
        pipe, merged = (loaded(folders / name, dtype="bfloat16", backend="triton") for name in ("model", "merged"))
        without = pipe.generate(**song)
        steps = list(pipe.model.graphs._kept["step"].values())
        pipe.set_lora(folders / "rap.safetensors", 0.5)
        assert same(pipe.generate(**song), merged.generate(**song))
        pipe.set_lora(None)
        assert same(pipe.generate(**song), without)
        assert list(pipe.model.graphs._kept["step"].values()) == steps


def test_the_bench_says_how_long_it_takes(capsys):
    spec = importlib.util.spec_from_file_location("bench_lora", ROOT / "bench/bench_lora.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.main(["--width", "16", "--rank", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(re.match(r"(merged |restored) +\d\.\d{3} s, of the CPU ", line) for line in lines)
