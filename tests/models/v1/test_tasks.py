"""What v1 makes of a source: its frames, where it is made anew, and what is too long."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from acefast.models.v1.tasks import MOST_FRAMES, build_task, check_source, frames_of
from acefast.request import CheckpointTraits, Request, RequestError
from acefast.tasks import Recording, read_audio

V1 = CheckpointTraits("ace-step-v1-3.5b", False, "v1")


def encode(audio: np.ndarray) -> Tensor:
    frames = -(-round(audio.shape[1] * 147 / 160) // 4096)
    return torch.arange(1.0, frames + 1)[None, :, None].expand(1, -1, 128)


def made(seconds: float, task: str, **options):
    audio = np.full((2, 48_000 * min(seconds, 30)), 0.1, np.float32)
    request = Request("rock", task=task, source=audio, **options).for_checkpoint(V1)
    if seconds <= 30:
        recording, _ = read_audio(request)
    else:  # as it would be read, without its memory
        window = request.check_window(seconds)
        waveform = np.broadcast_to(audio[:, :1], (2, round(48_000 * window.seconds)))
        recording = Recording(waveform, window.regions, *(round(48_000 * part) for part in window[:2]))
    check_source(request, recording)
    return build_task([request], recording, encode=encode)


def spans(mask: Tensor) -> list[tuple[int, int]]:
    """The (start, end) pairs of what is 1."""
    edges = torch.diff(mask, prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
    return [*zip(edges[::2], edges[1::2])]


@pytest.mark.parametrize("seconds, frames", [(10, 107), (30, 322), (60, 645), (120, 1291), (180, 1937), (240, 2583)])
def test_frames_of_a_song_are_upstreams(seconds, frames):
    assert frames_of(seconds) == frames
    task = build_task([Request("rock", duration=seconds)], None, encode=encode)
    assert (task.frames, task.source.shape, task.mask.sum()) == (frames, (1, frames, 128), frames)
    assert task.made is None and task.recording is None  # nothing of a waveform is put back


def test_a_repaint_covers_the_frames_of_its_times_and_its_end_is_the_sources():
    task = made(30, "repaint", start=10, end=20)
    assert task.frames == 323 and spans(task.mask) == [(107, 215)]
    assert spans(made(30, "repaint", start=10).mask) == [(107, 323)]  # upstream's 322 leaves the last, padded, frame
    assert spans(made(30, "repaint").mask) == [(0, 323)]
    assert spans(made(30, "repaint", start=10, end=10.01).mask) == [(107, 108)]
    assert spans(made(30, "repaint", start=29.99).mask) == [(322, 323)]
    assert task.made is None and task.recording is None


@pytest.mark.parametrize("task, options", [("audio2audio", {}), ("edit", {"target_prompt": "jazz"})])
def test_whole_sources_are_whole(task, options):
    task = made(30, task, **options)
    assert task.frames == 323 and task.clean.shape == (1, 323, 128) and task.seconds == 30.0


def test_an_extension_has_zeros_where_it_is_made():
    task = made(30, "extend", start=-10)
    assert task.added == (107, 0) and task.frames == 430 and spans(task.mask) == [(0, 107)]
    assert not task.clean[:, :107].any() and task.clean[0, 107, 0] == 1 and task.seconds == 40.0
    task = made(30, "extend", end=40)
    assert task.added == (0, 430 - 323) and spans(task.mask) == [(323, 430)] and not task.clean[:, 323:].any()
    task = made(30, "extend", start=-10, end=40)
    assert task.added == (107, 107) and task.frames == 537 and spans(task.mask) == [(0, 107), (430, 537)]
    task = made(30, "extend", start=25, end=40)  # the last 5 seconds of the source are made anew, too
    assert task.added == (0, 107) and spans(task.mask) == [(269, 430)] and task.clean[0, 300, 0] == 301
    assert made(30, "extend", end=30.1).added == (0, 1)


def test_of_a_song_over_240_seconds_the_far_end_is_put_apart():
    task = made(235, "extend", start=-10)
    total = 107 + 2531
    assert task.frames == MOST_FRAMES == 2583 and spans(task.mask) == [(0, 107)]
    assert [part.shape[1] for part in task.apart] == [0, total - 2583]
    latents = torch.zeros(2, 2583, 128)
    whole, joined = task.whole(latents)
    assert whole.frames == total and whole.apart is None and joined.shape == (2, total, 128)
    assert joined[1, 2583:, 0].tolist() == [*range(2531 - (total - 2583) + 1, 2532)]
    task = made(300, "extend", end=310)
    assert task.frames == 2583 and task.apart[1].shape[1] == 0 and task.clean[0, 0, 0] == task.apart[0].shape[1] + 1
    assert task.whole(latents)[1].shape[1] == frames_of(310)
    assert made(230, "extend", end=240).apart is None


@pytest.mark.parametrize(
    "words, seconds, task, options",
    [
        (("source lasts 241.00", "240", "repaint", "cut it"), 241, "repaint", {}),
        (("source", "audio2audio"), 250, "audio2audio", {}),
        (("source", "edit"), 250, "edit", {"target_prompt": "jazz"}),
        (("260.00 seconds", "both sides", "one side after the other"), 200, "extend", {"start": -30, "end": 230}),
        (("less than 240", "in turns"), 20, "extend", {"end": 265}),
        (("less than 240", "in turns"), 100, "extend", {"start": 5, "end": 300}),
    ],
    ids=str,
)
def test_what_is_too_long_is_refused(words, seconds, task, options):
    with pytest.raises(RequestError) as caught:
        made(seconds, task, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_song_without_source_needs_no_check():
    check_source(Request("rock"), None)
