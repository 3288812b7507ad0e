"""The strings the text encoder reads, and their tokens.

A song is described by two prompts: the text prompt (instruction, caption, metadata), encoded by the whole text
encoder, and the lyric prompt (language, words), of which only the token embeddings are used. Every character counts:
the model was trained on exactly these frames.

What the user writes goes in as it is, line ends and headings included. Only ``<|endoftext|>`` is refused, by Request:
it is the token that ends each frame. Other names of special tokens, such as ``<|im_end|>``, become those tokens, as
upstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from acefast.options import COVER, REPAINT
from acefast.values import END, RequestError, shown

if TYPE_CHECKING:
    from acefast.request import Request

TEXT_TOKENS = 256  # longest text prompt, its last token included
LYRIC_TOKENS = 2048

_FILL = "Fill the audio semantic mask based on the given conditions:"
_COVER = "Generate audio semantic tokens based on the given conditions:"
_REPAINT = "Repaint the mask area based on the given conditions:"


class Tokens(NamedTuple):
    """A tokenised prompt: its ids, how many of the user's tokens were cut off, and the text they stood for."""

    ids: list[int]
    cut: int
    lost: str


def instruction(task: str, tracks: str | Sequence[str] = (), codes: bool = False) -> str:
    """The line at the head of a text prompt.

    Args:
        task: one of ``acefast.options.TASKS``.
        tracks: stems of lego, extract and complete: a name, names joined by " | ", or a sequence of names.
        codes: whether the song builds on given audio codes, which makes text2music a cover.
    Source: TASK_INSTRUCTIONS of ace-step/ACE-Step-1.5.
    """
    stems = (tracks if isinstance(tracks, str) else " | ".join(tracks)).upper()
    stem = f" {stems}" if stems else ""
    if task in COVER or (task == "text2music" and codes):
        return _COVER
    if task in REPAINT:
        return _REPAINT
    if task == "extract":
        return f"Extract the{stem} track from the audio:"
    if task == "lego":
        return f"Generate the{stem} track based on the audio context:"
    if task == "complete":
        return f"Complete the input track{' with' if stem else ''}{stem}:"
    return _FILL


def text_prompt(request: Request, seconds: float | None, *, task: str | None = None, lego_sft: bool = False) -> str:
    """The text prompt: instruction, caption and metadata; what is not known is "N/A".

    Args:
        seconds: length of the song, written as whole seconds, cut off; None or below 0 is written as 30, as upstream.
        task: take this task's own instruction in place of the request's; covers use "text2music" for the steps that no
            longer see the source.
        lego_sft: the checkpoint was trained on captions of single stems, see ``_stem_caption``.
    """
    line = instruction(task) if task else request.instruction
    if line is None:
        line = instruction(request.task, request.track or request.tracks, codes=bool(request.codes))
    if not line.endswith(":"):
        line += ":"
    length = int(seconds) if seconds is not None and seconds > 0 else 30
    metadata = {
        "bpm": request.bpm,
        "timesignature": request.time_signature,
        "keyscale": request.key,
        "duration": f"{length} seconds",
    }
    metas = "".join(f"- {name}: {'N/A' if value is None else value}\n" for name, value in metadata.items())
    caption = _stem_caption(request, line) if lego_sft else request.prompt
    return f"# Instruction\n{line}\n\n# Caption\n{caption}\n\n# Metas\n{metas}{END}\n"


def _stem_caption(request: Request, line: str) -> str:
    """The prompt as the stem's own description; that of the whole song, for which there is no option, stays empty."""
    whole_song = "" if "a segment" in line.lower() else "Global: \n"
    explicit = request.chunk_mask == "explicit"  # the other values are upstream's "auto"
    return f"{whole_song}Local: {request.prompt}\nMask Control: {str(explicit).lower()}"


def lost_hints(request: Request, lost: str) -> list[str]:
    """The options given whose line at the end of a text prompt is in ``lost``, what was cut off it."""
    lines = lost.strip().count("\n") + bool(lost.strip())
    hints = ("bpm", "time_signature", "key", "duration")[-lines:] if lines else ()
    return [name for name in hints if name == "duration" or getattr(request, name) is not None]


def lyric_prompt(request: Request) -> str:
    """The lyric prompt: language and words. Instrumental songs have ``[Instrumental]`` for words; empty lyrics without
    that option stay empty. No language is "unknown", in diffusers' semantics "en".
    """
    language = request.language or ("en" if request.semantics == "diffusers" else "unknown")
    lyrics = "[Instrumental]" if request.instrumental else request.lyrics
    return f"# Languages\n{language}\n\n# Lyric\n{lyrics}{END}"


def tokenize(tokenizer: Any, prompt: str, limit: int, *, overflow: str = "cut", name: str = "lyrics") -> Tokens:
    """Token ids of a prompt, at most ``limit``: cut on the right, with the tokenizer's own end token kept.

    Args:
        tokenizer: a fast tokenizer of transformers.
        prompt: as ``text_prompt`` or ``lyric_prompt`` made it.
        overflow: "cut" tells the loss in the result; "refuse" raises.
        name: the option whose text is at the end of the prompt, for the message.
    Returns:
        ids; the number of cut tokens that stood for the prompt's text, its closing ``<|endoftext|>`` not counted; that
        text.
    Raises:
        RequestError: ``overflow`` is "refuse" and the prompt is too long.
    """
    encoded = tokenizer(prompt, truncation=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    if len(ids) <= limit:
        return Tokens(ids, 0, "")
    added = tokenizer.num_special_tokens_to_add(pair=False)  # end tokens the tokenizer puts behind the text
    keep, content = limit - added, len(ids) - added
    close = len(prompt.rstrip("\n")) - len(END) if prompt.rstrip("\n").endswith(END) else len(prompt)
    starts = [start for start, _ in encoded["offset_mapping"][keep:content] if start < close]
    lost = prompt[starts[0] : close] if starts else ""
    if starts and overflow == "refuse":
        raise RequestError(
            f"{name} must fit {keep} tokens with their frame, got {content}: all from {shown(lost[:30])} on would be "
            "lost; shorten it or take lyrics_overflow='cut'"
        )
    return Tokens(ids[:keep] + ids[content:], len(starts), lost)
