"""Which options go together: what a task needs, and what has no use beside another option."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acefast.options import NOT_EDIT, REPAINT, SOURCE_TASKS, of_guidance, tasks_of
from acefast.values import RequestError, refusal

if TYPE_CHECKING:
    from acefast.request import Request


def check_together(request: Request) -> None:
    """Refuse a request whose options, each fine by itself, contradict each other or would be ignored.

    Raises:
        RequestError: in one sentence, with the way out.
    """
    for check in (_text, _task, _source, _repaint, _edit, _times, _sampling, _guidance):
        check(request)


def _text(request: Request) -> None:
    if request.instrumental and request.lyrics.strip() not in ("", "[Instrumental]"):
        raise RequestError("instrumental=True leaves no room for lyrics; give one of the two")
    words = request.prompt.strip() or request.lyrics.strip() or request.instrumental
    if request.task == "text2music" and not words and not request.codes and request.reference is None:
        raise RequestError("prompt and lyrics are both empty; describe the music, give words or take instrumental=True")


def _task(request: Request) -> None:
    task = f"task={request.task!r}"
    for name, about in request.given().items():
        if about.tasks and not {request.task, request.acts_as} & {*about.tasks}:
            only = "" if about.tasks == NOT_EDIT else f", only in {tasks_of(about)}"
            raise RequestError(f"{name} has no use in {task}{only}; leave it out")


def _source(request: Request) -> None:
    task = f"task={request.task!r}"
    if request.codes and request.source is not None:
        raise RequestError("codes and source are both given; a cover follows one of them")
    if request.task in SOURCE_TASKS and request.source is None and not request.codes:
        what = "an array, a Song or codes" if request.task == "cover" else "an array or a Song"
        raise RequestError(f"source is missing in {task}; give a path, {what}")
    if request.cover_noise and request.source is None:
        raise RequestError("cover_noise needs source, the song to start from; leave it out with codes")
    if request.duration is not None and request.source is not None and request.task != "extend":
        raise RequestError(f"duration has no use in {task}, where the source's length counts; leave it out")
    if request.codes and request.duration is not None and len(request.codes) / 5 > request.duration:
        needs = f"at least the {len(request.codes) / 5:g} seconds the codes last"
        raise refusal("duration", needs, request.duration, "leave it out")


def _repaint(request: Request) -> None:
    if request.task not in REPAINT:
        return
    if request.strength is not None and request.repaint_mode != "balanced":
        raise RequestError(f"strength has no use in repaint_mode={request.repaint_mode!r}; take 'balanced'")
    for name in ("strength", "repaint_mode"):
        if request.semantics == "diffusers" and name in request.given():
            raise RequestError(f"{name} has no use in {request.task} with semantics='diffusers'; leave it out")


def _edit(request: Request) -> None:
    if request.task != "edit":
        return
    if request.target_prompt is None and request.target_lyrics is None:
        raise RequestError("task='edit' needs target_prompt or target_lyrics, what the song is to become; give one")
    if request.edit_from > request.edit_until:
        raise refusal("edit_from", f"at most edit_until, which is {request.edit_until:g}", request.edit_from)
    if request.solver != "euler":
        raise RequestError(
            f"solver={request.solver!r} has no use in task='edit', whose steps are Euler's; leave it out"
        )


def _times(request: Request) -> None:
    start, end = request.start, request.end
    if start is not None and end is not None and start >= end:
        raise refusal("start", f"before end, which is {end:g} seconds", start)
    if request.task == "extend":
        if end is not None and request.duration is not None:
            raise RequestError("end and duration both say how long task='extend' makes the song; give one of them")
        if end is None and request.duration is None and not (start is not None and start < 0):
            raise RequestError(
                "task='extend' must add something; give start below 0, end past the source's end "
                "or duration, the length of the whole"
            )
    elif start is not None and start < 0:
        raise refusal(
            "start", f"0 seconds or more in task={request.task!r}", start, "task='extend' adds music in front"
        )
    elif end == 0:
        raise refusal("end", "above 0 seconds", end, "leave it out for the source's end")
    if request.duration is not None and request.fade_in + request.fade_out > request.duration:
        fades = request.fade_in + request.fade_out
        raise RequestError(f"fade_in and fade_out take {fades:g} of the {request.duration:g} seconds; shorten them")


def _sampling(request: Request) -> None:
    if request.timesteps is not None:
        if request.steps not in (None, len(request.timesteps)):
            raise RequestError(
                f"steps is {request.steps} and timesteps has {len(request.timesteps)} entries; give one of them"
            )
        if request.sigma_shift is not None:
            raise RequestError("sigma_shift has no use with timesteps, which are taken as they are; leave one out")
    if (request.semantics, request.precision) == ("diffusers", "upstream"):
        raise RequestError(
            "precision='upstream' has no use with semantics='diffusers': it repeats the official code's roundings; "
            "leave one out"
        )
    if request.posterior == "sample" and request.source is None and request.reference is None:
        raise RequestError("posterior has no use without audio to encode; leave it out or give source or reference")
    if request.noise is not None and "noise_source" in request.given() and not request.variation:
        raise RequestError("noise_source has no use with noise, which is taken as it is; leave one out")
    if request.variation_seed is not None and not request.variation and request.task not in (*REPAINT, "edit"):
        raise RequestError("variation_seed has no use while variation is 0; set variation above 0 or leave it out")
    if request.dcw != "off" and request.solver == "sde":
        raise RequestError("dcw has no use with solver='sde'; leave it out or take 'euler' or 'heun'")
    if request.solver == "sde" and "omega" in request.given():
        raise RequestError("omega has no use with solver='sde'; leave it out or take 'euler' or 'heun'")
    if request.oss_steps is not None:
        if request.solver == "heun":
            raise RequestError("oss_steps has no use with solver='heun'; leave it out or take 'euler' or 'sde'")
        if request.steps not in (None, len(request.oss_steps)):
            raise RequestError(
                f"steps is {request.steps} and oss_steps has {len(request.oss_steps)} entries; give one of them"
            )


def _guidance(request: Request) -> None:
    given = [name for name in request.given() if of_guidance(name)]
    if request.guidance_scale == 1 and given:
        raise RequestError(f"{given[0]} has no use with guidance_scale=1, which is no guidance; leave one out")
    apg = ("guidance_momentum", "guidance_norm", "guidance_eta")
    for name in apg:
        if request.guidance != "apg" and name in given:
            raise RequestError(f"{name} has no use with guidance={request.guidance!r}, only with 'apg'; leave it out")
    if "guidance_min" in given and not request.guidance_decay:
        raise RequestError(
            "guidance_min has no use while guidance_decay is 0; set it above 0 or leave guidance_min out"
        )
    double = request.guidance_text > 1 and request.guidance_lyric > 1
    for name in ("guidance_text", "guidance_lyric"):
        if name in given and not double:
            raise RequestError(f"{name} acts only where guidance_text and guidance_lyric are above 1; set both or none")
    for name in ("guidance", "guidance_decay", "guidance_min", *apg):
        if double and name in given:
            raise RequestError(f"{name} has no use with guidance_text and guidance_lyric; leave it or them out")
