"""The modes of ``acefast bench``: each makes the same song and marks its stages, or says why it cannot."""

from __future__ import annotations

import pytest
import torch

from acefast.bench import engines
from acefast.bench.engines import Compiled, Eager, Fused, Graph, Job, ModeUnavailable
from acefast.models.v15.conditions import ConditionEncoder
from acefast.testing import write_checkpoint
from tests.songs import counted


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny checkpoint in diffusers' layout."""
    folder = tmp_path_factory.mktemp("diffusers")
    return write_checkpoint(folder, layout="diffusers", variant="turbo")


def stages(engine, job: Job) -> list[str]:
    marks = []
    out = engine.song(job)(marks.append)
    return marks, out


def opened(kind, path):
    return kind(path, torch.device("cpu"), torch.float32, None)


def test_fused_marks_every_stage(tiny):
    marks, songs = stages(opened(Fused, tiny), Job(5.2, 1, 3))
    assert marks == ["prep", *["step"] * 3, *["decode"] * 3, "copy", "finish"]  # tiles of 25, 50 and 55 frames
    assert [song.audio.shape for song in songs] == [(2, 249_600)]


def test_every_run_encodes_every_songs_words(tiny, monkeypatch):
    engine, job = opened(Fused, tiny), Job(5.0, 2, 1)
    encoded = [counted(monkeypatch, ConditionEncoder, f"{kind}_encode") for kind in ("text", "lyric")]
    for runs in (1, 2):
        stages(engine, job)
        assert [len(calls) for calls in encoded] == [2 * runs, 2 * runs]


def test_eager_is_diffusers_pipeline_and_marks_every_stage(theirs, capfd):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    engine = opened(Eager, theirs)
    for _ in range(2):  # a second song is prepared like the first
        marks, audio = stages(engine, Job(5.0, 2, 3))
        assert marks == ["prep", *["step"] * 3, "decode", "finish", "copy"]
    assert audio.shape == (2, 2, 240_000) and capfd.readouterr().err == ""


def test_both_make_the_same_song(theirs):
    """The same weights, words, length and schedule: from the same noise, the same sound."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    noise = torch.randn(1, 125, 8, generator=torch.Generator().manual_seed(0))
    ours, eager = opened(Fused, theirs), opened(Eager, theirs)
    generate, pipe, found = ours.pipe.generate, eager.pipe, {}
    ours.pipe.generate = lambda *words, **options: found.update(song=generate(*words, **options, noise=noise)[0])

    class WithNoise:
        def __call__(self, **options):
            return pipe(**options, latents=noise)

    eager.pipe = WithNoise()
    job = Job(5.0, 1, 2)
    ours.song(job)(lambda stage: None)
    audio = eager.song(job)(lambda stage: None)[0]
    song = torch.from_numpy(found["song"].audio)
    assert (song - audio).norm() / audio.norm() < 1e-4


@pytest.fixture
def compiling(theirs, monkeypatch):
    """Mode compile with nothing but a note for what is compiled, (class, options) or "anew"; the notes."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    notes = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: notes.append("anew"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: notes.append((type(self).__name__, how)))
    return opened(Compiled, theirs), notes


def test_compile_compiles_transformer_and_decoder_anew_for_each_case(compiling):
    engine, notes = compiling
    how = {"backend": "inductor", "dynamic": False}
    for _ in range(2):
        notes.clear()
        marks, _ = stages(engine, Job(5.0, 1, 2))
        assert marks == ["prep", "step", "step", "decode", "finish", "copy"]
        assert notes == ["anew", ("AceStepTransformer1DModel", how), ("OobleckDecoder", how)]


@pytest.mark.parametrize(
    "said, told", [("", "NoCompiler"), ("\nno g++\nmore", "no g++"), ("raised:\nno g++", "raised: no g++")]
)
def test_compile_says_why_it_cannot_work(compiling, said, told):
    engine, _ = compiling
    failure = type("NoCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def compiled(*_):
        raise failure(said)

    engine.pipe.transformer.register_forward_pre_hook(compiled)
    with pytest.raises(ModeUnavailable) as caught:
        stages(engine, Job(5.0, 1, 1))
    assert str(caught.value) == f"torch.compile fails here: {told}"
    failure.__module__ = "diffusers"
    with pytest.raises(failure):
        stages(engine, Job(5.0, 1, 1))


@pytest.mark.slow
def test_what_is_compiled_is_the_whole_transformer(theirs, monkeypatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(engines, "COMPILER", compiler)
    engine = opened(Compiled, theirs)
    monkeypatch.setattr(engine.pipe.vae.decoder, "compile", lambda **_: None)
    stages(engine, Job(5.0, 1, 2))
    assert len(graphs) == 1  # in one piece, and the second step runs what the first has compiled
    torch._dynamo.reset()


def test_eager_needs_diffusers_and_its_layout(tiny, monkeypatch):
    with pytest.raises(ModeUnavailable, match="diffusers reads its own layout only"):
        opened(Eager, tiny)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert engines.why_unavailable("eager").startswith("diffusers is not installed; pip install")
    assert engines.why_unavailable("fused") == ""


def test_graph_needs_a_gpu_and_graphs_that_were_captured(tiny, monkeypatch):
    assert torch.cuda.is_available() or engines.why_unavailable("graph").startswith("CUDA graphs need a GPU")
    with pytest.raises(ModeUnavailable, match="need a GPU and the device is 'cpu'"):
        opened(Graph, tiny)
    monkeypatch.setattr(Graph, "__init__", Fused.__init__)
    engine = opened(Graph, tiny)
    stages(engine, Job(5.0, 1, 1))
    engine.pipe.model.graphs.failed += ["step", "prep", "step"]
    with pytest.raises(ModeUnavailable, match=r"^prep, step could not be captured$"):
        stages(engine, Job(5.0, 1, 1))
