"""Layers of ACE-Step v1's mel autoencoder (AutoencoderDC), and how a checkpoint's tensors become their parameters.

Images are [B, time, frequency, C] contiguous: the checkpoint's (height, width) are (frequency, time), so that the axes
of every filter are swapped at load. Time lies outermost because pieces of a song are cut there, and channels innermost
because then a 1x1 convolution is a matrix product and no library reorders an image.

Widths double from level to level: a level's shortcut hands on pairs of values.

``fast_filters`` chooses those of acefast.ops.spectral_conv2d for ResBlock and of acefast.ops.winograd2d for Up, which
are faster on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.backends import cpu_kernels_take, kernels_take
from acefast.models.v1.local import pieces
from acefast.ops import depthwise2d as op
from acefast.ops import spectral_conv2d as spectral
from acefast.ops import winograd2d as winograd
from acefast.ops.linear import linear as linear_op
from acefast.ops.rms_residual import rms_residual
from acefast.ops.vit_linear_attention import vit_linear_attention
from acefast.panels import some_rows
from acefast.weights import Source, WeightTable, stack

EPS = 1e-5  # of the RMS norms
ATTENTION_EPS = 1e-15
PIECE = 64  # latent frames that a global layer works on at a time
HEADS = 16  # of u, and as many of m, that attention's kernels work on at a time
RES_REACH, ATTENTION_REACH, FFN_REACH = 2, 2, 1  # rows a side


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """A parameter to be filled at load; with a dtype, one that the table keeps in it."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 1) -> Tensor:
    """Convolve [B, T, F, Cin] with [Cout, Kt, Kf, Cin]; zeros lie beyond the ends."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride, padding)
    return y.permute(0, 2, 3, 1).contiguous()  # contiguous already, unless a size of 1 hid the layout


def on_kernels(x: Tensor) -> bool:
    """Whether ops are for kernels here, a GPU's or a CPU's: what follows suits both, and no reference."""
    return cpu_kernels_take(x.dtype, x.device) or kernels_take(x.dtype, x.device)


def depthwise2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every channel of [B, T, F, C] with its own filter, [K, K, C] of all; zeros beyond the ends."""
    if on_kernels(x):
        return op.depthwise2d(x.contiguous(), weight, bias)
    K, _, C = weight.shape
    filters = weight.permute(2, 0, 1).unsqueeze(1).contiguous()
    return F.conv2d(x.permute(0, 3, 1, 2), filters, bias, padding=K // 2, groups=C).permute(0, 2, 3, 1).contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product of [..., Cin] with [Cout, Cin], or its panels, as one of rows: torch makes many of a slice in time."""
    return linear_op(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)


class Conv2d(nn.Module):
    """A convolution of 3x3 taps, weight [Cout, 3, 3, Cin]."""

    def __init__(self, cin: int, cout: int, bias: bool = True):
        super().__init__()
        self.weight = parameter(cout, 3, 3, cin)
        self.bias = parameter(cout) if bias else None

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        y = conv2d(x, self.weight, self.bias)
        return F.silu(y, inplace=True) if silu else y


class SpectralConv2d(nn.Module):
    """The same as ``Conv2d`` by acefast.ops.spectral_conv2d, with its weight, [Cout, 142 * Cin]: faster on a CPU."""

    in_panels = ("weight",)  # on a CPU's kernels, see acefast.panels

    def __init__(self, cin: int, cout: int, bias: bool = True):
        super().__init__()
        self.weight = parameter(cout, spectral.PRODUCTS * cin)
        self.bias = parameter(cout) if bias else None

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        return spectral.spectral_conv2d(x, self.weight, self.bias, silu=silu)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x ** 2) + 1e-5) * weight + bias`` over channels, mean in fp32; plus a residual, or its ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Overwrites x."""
        if on_kernels(x):
            return rms_residual(x, self.weight, self.bias, residual, relu=relu, eps=EPS, out=x)
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(x.shape[-1])
        x.mul_(mean.add_(EPS).rsqrt_().to(x.dtype))
        shift = self.bias if residual is None else residual + self.bias
        y = torch.addcmul(shift, x, self.weight)
        return y.relu_() if relu else y


class ResBlock(nn.Module):
    """Two convolutions, a norm and the input."""

    def __init__(self, channels: int, fast_filters: bool = False):
        super().__init__()
        kind = SpectralConv2d if fast_filters else Conv2d
        self.conv1, self.conv2 = kind(channels, channels), kind(channels, channels, bias=False)
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(self.conv1(x, silu=True)), x)


class Down(nn.Module):
    """Every second row and column of a convolution, twice the channels, plus the means of neighbours in time."""

    def __init__(self, cin: int):
        super().__init__()
        self.conv = Conv2d(cin, 2 * cin)

    def forward(self, x: Tensor) -> Tensor:
        B, T, W, C = x.shape
        y = conv2d(x, self.conv.weight, self.conv.bias, stride=2)
        means = x.view(B, T // 2, 2, W // 2, 2, C).mean(2)  # [B, T / 2, W / 2, 2, C]: output 2c + a is mean[..., a, c]
        y.view(B, T // 2, W // 2, C, 2).add_(means.transpose(3, 4))
        return y


class Up(nn.Module):
    """Every row and column twice and half the channels: nearest neighbour and 3x3 taps, plus a shortcut.

    Two of three taps fall on the same input, so that each of the four results of an input is a convolution of 2x2
    taps; they run as one of four times the channels, weight [2 * 2 * C, 2, 2, 2C], with a result more than inputs on
    each axis, of which the first belongs to no second and the last to no first. With ``fast_filters`` [C, 9 * 2C].
    """

    in_panels = ("weight",)  # that of ``fast_filters`` on a CPU's kernels, see acefast.panels

    def __init__(self, cout: int, fast_filters: bool = False):
        super().__init__()
        self.fast_filters = fast_filters
        self.weight = parameter(cout, 9 * 2 * cout) if fast_filters else parameter(4 * cout, 2, 2, 2 * cout)
        self.bias = parameter(cout)

    def forward(self, x: Tensor) -> Tensor:
        if self.fast_filters:
            return winograd.winograd2d(x, self.weight, self.bias)
        B, T, W, _ = x.shape
        C = len(self.bias)
        taps = conv2d(x, self.weight, None).view(B, T + 1, W + 1, 2, 2, C)
        y = x.new_empty(B, T, 2, W, 2, C)
        for f in range(2):
            shortcut = x.view(B, T, W, C, 2)[..., f] + self.bias
            for t in range(2):
                torch.add(taps[:, t : t + T, f : f + W, t, f], shortcut, out=y[:, :, t, :, f])
        return y.view(B, 2 * T, 2 * W, C)


class Attention(nn.Module):
    """ReLU linear attention over all places of a song, of what 1x1 taps and 5x5 taps make of them.

    Of the stacked projections u and of m, a 5x5 depthwise convolution of u with groups of ``head`` channels mixed, each
    3 * ``head`` consecutive channels are a head: its queries, its keys and its values. All of it in fp32.
    """

    in_panels = "qkv", "out"  # on a CPU's kernels, see acefast.panels

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.head = head
        self.qkv = parameter(3 * channels, channels)
        self.depth = parameter(5, 5, 3 * channels)
        self.mix = parameter(3 * channels // head, head, head)  # [group, in, out]
        self.out = parameter(channels, 2 * channels)
        self.norm = RMSNorm(channels)

    def heads(self, x: Tensor, lo: int, hi: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values [B, heads, S, head] fp32 of the frames ``lo`` to ``hi``, for u and for m."""
        start, end = max(lo - ATTENTION_REACH, 0), min(hi + ATTENTION_REACH, x.shape[1])
        u = linear(x[:, start:end], self.qkv)
        m = depthwise2d(u, self.depth)[:, lo - start : hi - start]
        u = u[:, lo - start : hi - start]
        groups = m.reshape(-1, len(self.mix), self.head).transpose(0, 1)
        m = torch.bmm(groups, self.mix).transpose(0, 1)
        B = len(x)
        found = []
        for part in (u, m):
            q, k, v = part.reshape(B, -1, len(self.mix) // 3, 3, self.head).permute(3, 0, 2, 1, 4).float()
            found.append((q.relu_(), k.relu_(), v))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self._on_kernels(x) if on_kernels(x) else self._in_pieces(x)

    def _on_kernels(self, x: Tensor) -> Tensor:
        """All places at once, some heads at a time: with x 7.5 times its memory."""
        B, T, W, C = x.shape
        y = x.new_empty(B, T * W, 2, C)
        for lo, hi in pieces(0, C, HEADS * self.head):
            self._heads_on_kernels(x, lo, hi, y[..., lo:hi])
        return self.norm(linear(y.view(B, T, W, 2 * C), self.out), x)

    def _heads_on_kernels(self, x: Tensor, lo: int, hi: int, y: Tensor) -> None:
        """Writes the channels ``lo`` to ``hi`` of the heads of u and of those of m to y [B, T * F, 2, hi - lo]."""
        u = linear(x, some_rows(self.qkv, 3 * lo, 3 * hi))
        mix = self.mix[3 * lo // self.head : 3 * hi // self.head]
        m = op.depthwise2d(u, self.depth[..., 3 * lo : 3 * hi].contiguous(), mix=mix)
        for i, part in enumerate((u, m)):
            vit_linear_attention(part.flatten(1, 2), head_dim=self.head, out=y[:, :, i])

    def _in_pieces(self, x: Tensor) -> Tensor:
        B, T, W, C = x.shape
        spans, sums, kept = [*pieces(0, T, PIECE)], [], None
        for lo, hi in spans:
            kept = self.heads(x, lo, hi)
            new = [(k.transpose(2, 3) @ v, k.sum(2).unsqueeze(3)) for _, k, v in kept]  # [B, heads, D, D], [.., D, 1]
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, new)] if sums else new
        y = torch.empty_like(x)
        for lo, hi in spans:
            parts = kept if len(spans) == 1 else self.heads(x, lo, hi)
            found = [q @ kv / (q @ total + ATTENTION_EPS) for (q, _, _), (kv, total) in zip(parts, sums)]
            heads = torch.cat(found, 1).transpose(1, 2).reshape(B, hi - lo, W, 2 * C).to(x.dtype)
            y[:, lo:hi] = self.norm(linear(heads, self.out), x[:, lo:hi])
        return y


class FeedForward(nn.Module):
    """1x1 taps to eight times the channels, SiLU, 3x3 depthwise, half of it gated by the other, 1x1 taps back."""

    in_panels = "up", "down"  # on a CPU's kernels

    def __init__(self, channels: int):
        super().__init__()
        self.up, self.up_bias = parameter(8 * channels, channels), parameter(8 * channels)
        self.depth, self.depth_bias = parameter(3, 3, 8 * channels), parameter(8 * channels)
        self.down = parameter(channels, 4 * channels)
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Writes the result of x [B, T, F, C] to y."""
        for lo, hi in pieces(0, x.shape[1], PIECE):
            start, end = max(lo - FFN_REACH, 0), min(hi + FFN_REACH, x.shape[1])
            gated = self._gated(linear(x[:, start:end], self.up, self.up_bias), lo - start, hi - start)
            y[:, lo:hi] = self.norm(linear(gated, self.down), x[:, lo:hi])

    def _gated(self, h: Tensor, lo: int, hi: int) -> Tensor:
        """Of frames ``lo`` to ``hi``; writes to h."""
        if on_kernels(h):
            return op.depthwise2d(h, self.depth, self.depth_bias, silu_input=True, gate=True)[:, lo:hi]
        value, gate = depthwise2d(F.silu(h, inplace=True), self.depth, self.depth_bias)[:, lo:hi].chunk(2, -1)
        return F.silu(gate).mul_(value)


class EfficientViT(nn.Module):
    """Attention and a feed-forward, each added to its input; of the whole song, piece by piece."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.attn, self.ff = Attention(channels, head), FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Overwrites x [B, T, F, C], whose memory is that of the result."""
        self.ff(self.attn(x), x)
        return x


def _filter(weight: Tensor) -> Tensor:
    """[Cout, Cin, frequency, time] to [Cout, time, frequency, Cin]."""
    return weight.permute(0, 3, 2, 1).contiguous()


def _depthwise_filter(weight: Tensor) -> Tensor:
    """[C, 1, frequency, time] to [time, frequency, C]."""
    return weight[:, 0].permute(2, 1, 0).contiguous()


def _up_filter(weight: Tensor) -> Tensor:
    """The four 2x2 filters of ``Up`` of one of 3x3, in fp32."""
    w = _filter(weight.float())  # [C, 3, 3, 2C]

    def halves(w: Tensor, axis: int) -> Tensor:
        a, b, c = w.unbind(axis)
        return torch.stack((torch.stack((a, b + c), axis), torch.stack((a + b, c), axis)))  # [phase, ...] of 2 taps

    four = halves(halves(w, 2), 2)  # [t, f, C, 2, 2, 2C]
    return four.flatten(0, 2).contiguous()


def _spectral_filter(weight: Tensor) -> Tensor:
    return spectral.transformed(_filter(weight))


def _winograd_up_filter(weight: Tensor) -> Tensor:
    return winograd.transformed(_filter(weight))


def conv_entries(ours: str, theirs: str, bias: bool = True, fast_filters: bool = False) -> WeightTable:
    table = {f"{ours}.weight": Source((f"{theirs}.weight",), _spectral_filter if fast_filters else _filter)}
    return table | ({f"{ours}.bias": Source((f"{theirs}.bias",))} if bias else {})


def norm_entries(ours: str, theirs: str) -> WeightTable:
    return {f"{ours}.{leaf}": Source((f"{theirs}.{leaf}",)) for leaf in ("weight", "bias")}


def res_entries(ours: str, theirs: str, fast_filters: bool = False) -> WeightTable:
    table = conv_entries(f"{ours}.conv1", f"{theirs}.conv1", fast_filters=fast_filters)
    table |= conv_entries(f"{ours}.conv2", f"{theirs}.conv2", bias=False, fast_filters=fast_filters)
    return table | norm_entries(f"{ours}.norm", f"{theirs}.norm")


def up_entries(ours: str, theirs: str, fast_filters: bool = False) -> WeightTable:
    return {
        f"{ours}.weight": Source((f"{theirs}.conv.weight",), _winograd_up_filter if fast_filters else _up_filter),
        f"{ours}.bias": Source((f"{theirs}.conv.bias",)),
    }


def vit_entries(ours: str, theirs: str, head: int) -> WeightTable:
    multiscale = f"{theirs}.attn.to_qkv_multiscale.0"
    return {
        f"{ours}.attn.qkv": Source(tuple(f"{theirs}.attn.to_{x}.weight" for x in "qkv"), stack),
        f"{ours}.attn.depth": Source((f"{multiscale}.proj_in.weight",), _depthwise_filter),
        f"{ours}.attn.mix": Source(
            (f"{multiscale}.proj_out.weight",), lambda w: w.view(-1, head, head).transpose(1, 2)
        ),
        f"{ours}.attn.out": Source((f"{theirs}.attn.to_out.weight",)),
        **norm_entries(f"{ours}.attn.norm", f"{theirs}.attn.norm_out"),
        f"{ours}.ff.up": Source((f"{theirs}.conv_out.conv_inverted.weight",), lambda w: w.flatten(1)),
        f"{ours}.ff.up_bias": Source((f"{theirs}.conv_out.conv_inverted.bias",)),
        f"{ours}.ff.depth": Source((f"{theirs}.conv_out.conv_depth.weight",), _depthwise_filter),
        f"{ours}.ff.depth_bias": Source((f"{theirs}.conv_out.conv_depth.bias",)),
        f"{ours}.ff.down": Source((f"{theirs}.conv_out.conv_point.weight",), lambda w: w.flatten(1)),
        **norm_entries(f"{ours}.ff.norm", f"{theirs}.conv_out.norm"),
    }
