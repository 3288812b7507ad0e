"""What a file tells of its song is read back whole, in every format and any script."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.audio import FORMATS, load_audio, read_tags, write_audio
from acefast.request import RequestError
from acefast.tags import MAX_COMMENT_BYTES, TAGS

UNICODE = {
    "title": "Привет, 世界 🎵 عربى",
    "artist": "ace-step-1.5-turbo",
    "software": "acefast 0.1.0",
    "comment": '{"prompt": "boom bap \\"90\\" $x^2$ ☃", "lyrics": "één\\nДвя\\n三"}',
}


def noise(samples: int, level: float = 0.25) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal((2, samples))).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("extension", FORMATS)
def test_tags_in_any_script_survive(extension, tmp_path):
    path = write_audio(tmp_path / f"a{extension}", noise(10_000), tags=UNICODE | {"album": ""})
    assert read_tags(path) == UNICODE
    assert load_audio(path).shape[1] - 10_000 in range(960)  # the tags have not become samples
    assert read_tags(write_audio(tmp_path / f"b{extension}", noise(10_000))).keys() <= {"software"}


@pytest.mark.parametrize("extension", FORMATS)
def test_the_longest_tags_survive_together_and_longer_ones_are_cut_with_an_ellipsis(extension, tmp_path, capfd):
    long = {name: "é三🎵" * 40_000 for name in TAGS}
    tags = read_tags(write_audio(tmp_path / f"a{extension}", noise(10_000), tags=long))
    assert tags.keys() == TAGS.keys()
    for name, value in tags.items():
        limit = {"comment": MAX_COMMENT_BYTES, "software": 80}.get(name, 500)
        assert limit - 8 < len(value.encode()) <= limit and value[-1] == "…" and long[name].startswith(value[:-1])
    whole = "三" * (MAX_COMMENT_BYTES // 3)
    path = write_audio(tmp_path / f"b{extension}", noise(10_000), tags={"comment": whole})
    assert read_tags(path)["comment"] == whole
    assert load_audio(path).shape[1] >= 10_000


@pytest.mark.parametrize("extension", FORMATS)
def test_what_no_tag_can_hold_is_replaced(extension, tmp_path):
    path = write_audio(tmp_path / f"a{extension}", noise(10_000), tags={"title": "a\0b\ud800c\ufffed\uffff"})
    assert read_tags(path)["title"] == "a b?c\ufffdd\ufffd"


def test_tags_are_found_behind_an_odd_number_of_bytes(tmp_path):
    mono = noise(10_001)[:1]  # 30003 bytes of audio; a chunk starts at an even byte
    path = write_audio(tmp_path / "a.wav", mono, subtype="int24", tags=UNICODE | {"title": "odd"})
    assert read_tags(path) == UNICODE | {"title": "odd"} and path.stat().st_size % 2 == 0
    assert load_audio(path).shape == (2, 10_001)


def test_mp3_tags_are_utf8_id3_at_the_front_of_the_file(tmp_path):
    raw = write_audio(tmp_path / "a.mp3", noise(10_000), tags=UNICODE).read_bytes()
    assert raw[:6] == b"ID3\4\0\0" and b"TIT2" in raw[:20] and b"\3" + UNICODE["title"].encode() in raw[:80]
    size = sum(byte << shift for byte, shift in zip(raw[6:10], (21, 14, 7, 0)))
    assert raw[10 + size] == 0xFF and raw[11 + size] & 0xE0 == 0xE0  # the stream's first frame follows at once


def test_tags_of_what_is_no_audio_are_an_error(tmp_path):
    with pytest.raises(RequestError, match=r"tags: there is no file"):
        read_tags(tmp_path / "no.wav")
