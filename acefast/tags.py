"""Text tags of an audio file: limits that every format keeps, and the two formats that libsndfile 1.2 tags wrongly.

    flac, ogg   UTF-8; libsndfile writes and reads them
    opus        the same, but above about 55 kB in all the file cannot be opened again, hence the limits
    wav         libsndfile reads no tag above 2 kB and above about 55 kB writes no audio; so an INFO list is written
                here, behind the audio, and read here
    mp3         libsndfile marks UTF-8 as Latin-1, which every player shows garbled; so ID3v2.4 is written here

tests/test_audio.py holds all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

# our name (and libsndfile's): the chunk in a wav file's INFO list, the frame in an mp3 file's ID3v2.4 tag
TAGS = {
    "title": ("INAM", "TIT2"),
    "artist": ("IART", "TPE1"),
    "album": ("IPRD", "TALB"),
    "date": ("ICRD", "TDRC"),
    "genre": ("IGNR", "TCON"),
    "copyright": ("ICOP", "TCOP"),
    "software": ("ISFT", "TSSE"),
    "comment": ("ICMT", "COMM"),
}
MAX_COMMENT_BYTES, MAX_TEXT_BYTES = 32_000, 500  # the second is of all others but software:
# libsndfile cuts that, with its own name behind it, at 127 bytes, and dies where the cut splits a character
MAX_SOFTWARE_BYTES = 80


def clean(name: str, value: str) -> str:
    """The tag as every format can hold it: UTF-8 within the limits above, without what would lose the rest.

    NUL (it ends a tag), lone surrogates and the noncharacters U+FFFE and U+FFFF (libFLAC drops a tag that has one) are
    replaced; what is too long is cut at a whole character and ends in an ellipsis.
    """
    limit = {"comment": MAX_COMMENT_BYTES, "software": MAX_SOFTWARE_BYTES}.get(name, MAX_TEXT_BYTES)
    value = value.replace("\0", " ").replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    raw = value.encode("utf-8", "replace")
    if len(raw) > limit:
        raw = raw[: limit - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return raw.decode()


def write_id3(path: Path, tags: Mapping[str, str]) -> None:
    """Put an ID3v2.4 tag in UTF-8 before the stream of an mp3 file that has none.

    Source: https://id3.org/id3v2.4.0-structure; sizes are written with 7 bits in each byte.
    """

    def size(n: int) -> bytes:
        return bytes(n >> shift & 127 for shift in (21, 14, 7, 0))

    frames = b""
    for name, value in tags.items():
        # encoding 3 is UTF-8; a comment has a language (XXX: unknown) and a description (none) before its text
        body = b"\3" + (b"XXX\0" if name == "comment" else b"") + value.encode()
        frames += TAGS[name][1].encode() + size(len(body)) + b"\0\0" + body
    path.write_bytes(b"ID3\4\0\0" + size(len(frames)) + frames + path.read_bytes())


def write_riff_info(path: Path, tags: Mapping[str, str]) -> None:
    """Append an INFO list in UTF-8 to a wav file; every chunk starts at an even byte."""
    items = b""
    for name, value in tags.items():
        text = value.encode() + b"\0"
        items += struct.pack("<4sI", TAGS[name][0].encode(), len(text)) + text + b"\0" * (len(text) % 2)
    with open(path, "r+b") as file:
        file.seek(0, 2)  # an even byte: libsndfile pads the audio
        file.write(struct.pack("<4sI4s", b"LIST", 4 + len(items), b"INFO") + items)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def read_riff_info(path: Path) -> dict[str, str]:
    """The tags in a wav file's INFO list, of any length; {} where it has none."""
    names = {riff.encode(): name for name, (riff, _) in TAGS.items()}
    tags: dict[str, str] = {}
    with open(path, "rb") as file:
        file.seek(12)  # RIFF, size, WAVE
        while len(head := file.read(8)) == 8:
            kind, size = struct.unpack("<4sI", head)
            end = file.tell() + size + size % 2
            if kind == b"LIST" and file.read(4) == b"INFO":
                while file.tell() < end and len(head := file.read(8)) == 8:
                    kind, size = struct.unpack("<4sI", head)
                    text = file.read(size + size % 2)[:size].split(b"\0")[0]
                    if kind in names:
                        tags[names[kind]] = text.decode("utf-8", "replace")
            file.seek(end)
    return tags
