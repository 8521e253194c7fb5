"""The bare U-Net (Ho et al. 2020; Dhariwal and Nichol 2021): images in, image out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class NoiseEmbedding(nn.Module):
    """`(b,)` noise level -> `(b, width)`: sines and cosines, then two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.frequencies: Tensor
        half = torch.exp(torch.linspace(math.log(0.5), math.log(64.0), 32))
        self.register_buffer("frequencies", half, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None].float() * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos()], 1)
        out: Tensor = self.layers(waves)
        return out


class Residual(nn.Module):
    """Two convolutions with the noise level as scale and shift between them."""

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.level = nn.Linear(embedding, 2 * after)
        self.norm2, self.conv2 = _norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        nn.init.zeros_(self.conv2.weight)  # each block starts as the identity
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
        return out


class Attention(nn.Module):
    """Self-attention over all places of a level."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(1, channels // 32)
        while channels % self.heads:
            self.heads -= 1
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        mixed = F.scaled_dot_product_attention(
            q.transpose(-1, -2), k.transpose(-1, -2), v.transpose(-1, -2)
        )
        out: Tensor = x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))
        return out


class Stage(nn.Module):
    """A residual block, with attention where the level has it."""

    def __init__(self, before: int, after: int, embedding: int, dropout: float, attend: bool):
        super().__init__()
        self.residual = Residual(before, after, embedding, dropout)
        self.attention = Attention(after) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.attention(self.residual(x, embedding))
        return out


class UNet(nn.Module):
    """U-Net over `(b, in_channels, h, w)` -> `(b, out_channels, h, w)`, any h and w.

    `patch` x `patch` pixels are folded into channels first (space to depth) and unfolded last, and
    the folded input is handed to the last layer as well, through a gate that the noise level sets:
    pixel detail passes by the bottleneck, pure noise does not. Frames are padded by replication to a
    multiple of the coarsest cell and cropped back.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        channels: int = 48,
        multipliers: tuple[int, ...] = (1, 2, 3),
        blocks: int = 1,
        attention: tuple[int, ...] = (2,),
        dropout: float = 0.0,
        patch: int = 4,
    ):
        super().__init__()
        widths = [channels * m for m in multipliers]
        embedding = 4 * channels
        folded = in_channels * patch**2
        self.patch = patch
        self.cell = patch * 2 ** (len(widths) - 1)
        self.embed = NoiseEmbedding(embedding)
        self.first = nn.Conv2d(folded, channels, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        skips, now = [channels], channels
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(Stage(now, width, embedding, dropout, level in attention))
                now = width
                skips.append(now)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
        self.middle = nn.ModuleList(
            [
                Stage(now, now, embedding, dropout, bool(attention)),
                Stage(now, now, embedding, dropout, False),
            ]
        )
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(
                    Stage(now + skips.pop(), width, embedding, dropout, level in attention)
                )
                now = width
            if level > 0:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
        self.blocks = blocks
        self.norm = _norm(now)
        self.gate = nn.Linear(embedding, folded)
        self.last = nn.Conv2d(now + folded, out_channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (0, -w % self.cell, 0, -h % self.cell), mode="replicate")
        x = F.pixel_unshuffle(x, self.patch)
        embedding = self.embed(c_noise)
        features = F.silu(self.norm(self._features(x, embedding)))
        detail = x * self.gate(embedding)[:, :, None, None]
        out = F.pixel_shuffle(self.last(torch.cat([features, detail], 1)), self.patch)
        return out[:, :, :h, :w]

    def _features(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Down, across and up again, with a skip from every block."""
        x = self.first(x)
        skips = [x]
        for level in range(len(self.shrink) + 1):
            for stage in self.down[level * self.blocks : (level + 1) * self.blocks]:
                x = stage(x, embedding)
                skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
                skips.append(x)
        for stage in self.middle:
            x = stage(x, embedding)
        for level in range(len(self.shrink) + 1):
            for stage in self.up[level * (self.blocks + 1) : (level + 1) * (self.blocks + 1)]:
                x = stage(torch.cat([x, skips.pop()], 1), embedding)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x
