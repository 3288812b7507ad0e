"""Guidance of ACE-Step v1 against formulas written down in float64, in upstream's layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from acefast.models.v1.guidance import WindowGuidance, cfg_star
from acefast.ops.philox import philox_normal
from acefast.sampling import shifted_step, step_table
from tests.golden.v1.make_sampling import ours, theirs

B, T = 2, 9


def velocities(n: int) -> list[Tensor]:
    return [philox_normal([10 * i, 10 * i + 1], (T, 128)) for i in range(n)]


def apg_naive(cond: Tensor, uncond: Tensor, running: Tensor | float, scale: float) -> tuple[Tensor, Tensor]:
    """Upstream's APG on [B, 8, 16, T] with norms over the last two axes."""
    c, u = (theirs(x).double() for x in (cond, uncond))
    running = c - u - 0.75 * running
    d = running * (2.5 / running.norm(dim=(2, 3), keepdim=True)).clamp(max=1)
    unit = c / c.norm(dim=(2, 3), keepdim=True)
    return ours(c + (scale - 1) * (d - (d * unit).sum((2, 3), keepdim=True) * unit)), running


def test_apg_is_upstreams_over_rows_and_frames_of_a_channel():
    guidance = WindowGuidance(15.0, window=range(4))
    a, b, c, d = velocities(4)
    first, running = guidance.combine(a, b, a, 0.9)
    second, _ = guidance.combine(c, d, a, 0.8, running, step=1, corrector=True)  # Heun's second is like any other
    want, kept = apg_naive(a, b, 0.0, 15.0)
    torch.testing.assert_close(first.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second.double(), apg_naive(c, d, kept, 15.0)[0], rtol=1e-5, atol=1e-5)


def test_cfg_star_projects_over_the_whole_song_and_makes_nothing_of_the_first_two_steps():
    cond, uncond = velocities(2)
    c, u = (x.double().flatten(1) for x in (cond, uncond))
    share = ((c * u).sum(1) / (u**2).sum(1))[:, None, None]
    want = share * uncond + 4.0 * (cond - share * uncond)
    guidance = WindowGuidance(4.0, "cfg_star", window=range(8))
    torch.testing.assert_close(guidance.combine(cond, uncond, cond, 0.5, step=2)[0].double(), want)
    for step in (0, 1):
        assert not guidance.combine(cond, uncond, cond, 0.9, step=step)[0].any()
    torch.testing.assert_close(cfg_star(cond, uncond, 4.0, 5)[1:], cfg_star(cond[1:], uncond[1:], 4.0, 5))


def test_double_guidance_needs_both_and_takes_no_scale():
    cond, uncond, text = velocities(3)
    guidance = WindowGuidance(15.0, window=range(8), text=5.0, lyric=1.5, decay=1.0)
    assert guidance.double and not WindowGuidance(15.0, text=5.0, lyric=1.0).double
    want = -4.0 * uncond + 3.5 * text + 1.5 * cond
    torch.testing.assert_close(guidance.combine(cond, uncond, cond, 0.5, text=text)[0], want)


def test_the_scale_falls_evenly_over_the_window():
    guidance = WindowGuidance(15.0, window=range(4, 9), decay=0.5, least=3.0)
    assert [guidance.scale_at(i) for i in range(4, 9)] == [15.0, 13.5, 12.0, 10.5, 9.0]
    assert WindowGuidance(15.0, window=range(4, 5), decay=0.5).scale_at(4) == 15.0


def test_it_acts_in_its_window_and_not_at_scale_one():
    guidance = WindowGuidance(0.5, window=range(2, 4))
    assert [guidance.active(0.5, i) for i in range(5)] == [False, False, True, True, False]
    assert not WindowGuidance(1.0, window=range(9)).active(0.5, 3)
    assert not WindowGuidance(7.0).active(0.5, 0)


@pytest.mark.parametrize("options", [dict(scale=2, variant="adg"), dict(scale=-1), dict(scale=float("nan"))])
def test_impossible_guidance_is_refused(options):
    with pytest.raises(ValueError, match="guidance: "):
        WindowGuidance(**options)


def test_a_step_is_stretched_about_each_songs_mean_or_the_batchs():
    x, v = velocities(2)
    table = step_table([0.9, 0.4])
    d = 0.5 * v.double()
    for coupled, mean in ((False, d.mean((1, 2), keepdim=True)), (True, d.mean())):
        got = shifted_step(x, v, table, 0, omega=1.3, coupled=coupled)
        torch.testing.assert_close(got.double(), x - ((d - mean) * 1.3 + mean), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shifted_step(x, v, table, 0), x - 0.5 * v)
    noise = torch.ones_like(x)
    torch.testing.assert_close(shifted_step(x, v, table, 0, noise=noise), 0.4 * noise + 0.6 * (x - 0.9 * v))
