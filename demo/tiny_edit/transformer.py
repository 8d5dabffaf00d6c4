"""tiny-edit's transformer: Flux's layout at a small size, in plain PyTorch and under ComfyUI's names, so that it can learn.

ComfyUI's own class cannot: its rotary kernel has no gradient, and its blocks add in place. This one holds the very weights that
ComfyUI's class loads, and needs nothing but PyTorch. Tests hold it to ComfyUI's class and to `diffusers`'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_LENGTH = 24
"""Tokens of a prompt, its start and end included."""
TEXT_WIDTH = 128


@dataclass(frozen=True)
class Shape:
    """The transformer's sizes. `axes` are the parts of a head that the rotary embedding gives to (reference, row, column), `told_after` the
    single blocks after which tokens are asked where they lie, `matching` the single blocks and heads that are shown where to look."""

    channels: int = 8
    hidden: int = 256
    heads: int = 4
    double: int = 2
    single: int = 6
    axes: tuple[int, ...] = (16, 24, 24)
    words: int = TEXT_WIDTH
    theta: int = 10_000
    reference_step: float = 10.0
    told_after: int = 2
    matching: tuple[tuple[int, int], ...] = ((2, 1), (3, 0))


class Embedder(nn.Module):
    """A vector to the hidden width: Linear, SiLU, Linear."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(inside, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Scale(nn.Module):
    """Divides the last axis by its root mean square and scales it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.scale.shape, self.scale, 1e-6).to(x.dtype)


class QueryKeyNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = Scale(width)
        self.key_norm = Scale(width)


class Attention(nn.Module):
    """Projections of one stream's attention."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = QueryKeyNorm(hidden // heads)
        self.proj = nn.Linear(hidden, hidden)


class Modulation(nn.Module):
    """Shift, scale and gate from the vector of time and words: `parts` tensors [B, 1, hidden]."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(hidden, parts * hidden)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vector))[:, None].chunk(self.parts, -1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))


def _split(qkv: Tensor, heads: int, norm: QueryKeyNorm) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3 * hidden] to normed queries and keys, and values: each [B, heads, L, width]."""
    batch, length, _ = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


Turns = tuple[Tensor, Tensor, Tensor]
"""A rotary embedding's cosines and sines [L, width], and the matrix [width, width] that swaps the channels of a pair, one negated."""


def rotations(ids: Tensor, axes: Sequence[int], theta: int) -> Turns:
    """What turns the channels of a head, pair by pair, for positions `ids` [L, number of axes]."""
    angles = []
    for axis, width in enumerate(axes):
        speeds = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=ids.device) / width)
        angles.append(ids[:, axis, None].double() * speeds)
    together = torch.cat(angles, -1).repeat_interleave(2, -1)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], device=ids.device)
    swap = torch.block_diag(*[quarter] * (together.shape[1] // 2))
    return together.cos().float(), together.sin().float(), swap


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Turns each pair of neighbouring channels of [B, heads, L, width], in float32.

    The pairs are swapped by a product with a matrix of zeros and ones: on a CPU that is far faster than every second channel by itself.
    """
    cosine, sine, swap = turns
    return (x * cosine + (x @ swap.to(x.dtype)) * sine).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, turns: Turns) -> Tensor:
    """Attention of all tokens to all: [B, L, hidden]."""
    return attention(rotate(q, turns), rotate(k, turns), v).transpose(1, 2).flatten(2)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention over [B, heads, L, width]. Written out where a CPU learns: there the fused one's backward takes far longer."""
    if q.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class DoubleBlock(nn.Module):
    """Words and pictures with weights of their own, and one attention over both."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.img_mod = Modulation(hidden, 6)
        self.img_attn = Attention(hidden, heads)
        self.img_mlp = _mlp(hidden)
        self.txt_mod = Modulation(hidden, 6)
        self.txt_attn = Attention(hidden, heads)
        self.txt_mlp = _mlp(hidden)

    def forward(self, image: Tensor, text: Tensor, vector: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        image_shift, image_scale, image_gate, image_shift2, image_scale2, image_gate2 = self.img_mod(vector)
        text_shift, text_scale, text_gate, text_shift2, text_scale2, text_gate2 = self.txt_mod(vector)
        of_image = _split(self.img_attn.qkv(_norm(image) * (1 + image_scale) + image_shift), self.heads, self.img_attn.norm)
        of_text = _split(self.txt_attn.qkv(_norm(text) * (1 + text_scale) + text_shift), self.heads, self.txt_attn.norm)
        q, k, v = (torch.cat(pair, 2) for pair in zip(of_text, of_image, strict=True))
        text_part, image_part = attend(q, k, v, turns).split([text.shape[1], image.shape[1]], 1)
        image = image + image_gate * self.img_attn.proj(image_part)
        image = image + image_gate2 * self.img_mlp(_norm(image) * (1 + image_scale2) + image_shift2)
        text = text + text_gate * self.txt_attn.proj(text_part)
        text = text + text_gate2 * self.txt_mlp(_norm(text) * (1 + text_scale2) + text_shift2)
        return image, text


class SingleBlock(nn.Module):
    """Attention and MLP side by side over one sequence."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.hidden = hidden
        self.modulation = Modulation(hidden, 3)
        self.linear1 = nn.Linear(hidden, 7 * hidden)
        self.linear2 = nn.Linear(5 * hidden, hidden)
        self.norm = QueryKeyNorm(hidden // heads)

    def forward(self, x: Tensor, vector: Tensor, turns: Turns) -> Tensor:
        shift, scale, gate = self.modulation(vector)
        qkv, wide = self.linear1(_norm(x) * (1 + scale) + shift).split([3 * self.hidden, 4 * self.hidden], -1)
        attended = attend(*_split(qkv, self.heads, self.norm), turns)
        return x + gate * self.linear2(torch.cat([attended, F.gelu(wide, approximate="tanh")], -1))

    def looks(self, x: Tensor, vector: Tensor, turns: Turns, head: int, painted: slice) -> Tensor:
        """Gives how a head of this block looks from the painted picture's tokens at those behind them: logits [B, painted, behind]."""
        shift, scale, _ = self.modulation(vector)
        normed = _norm(x) * (1 + scale) + shift
        cosine, sine, swap = turns
        width = self.hidden // self.heads

        def side(tokens: slice, part: int, norm: Scale) -> Tensor:
            begin = part * self.hidden + head * width
            rows = slice(begin, begin + width)
            asked = norm(F.linear(normed[:, tokens], self.linear1.weight[rows], self.linear1.bias[rows]))
            return rotate(asked, (cosine[tokens], sine[tokens], swap))

        queries = side(painted, 0, self.norm.query_norm)
        keys = side(slice(painted.stop, None), 1, self.norm.key_norm)
        return queries @ keys.transpose(1, 2) * width**-0.5


class LastLayer(nn.Module):
    """Modulated norm and the projection to patches."""

    def __init__(self, hidden: int, outside: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, outside)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector)[:, None].chunk(2, -1)
        return self.linear(_norm(x) * (1 + scale) + shift)


def time_features(times: Tensor) -> Tensor:
    """Times [B] in 0..1 to cosines and sines [B, 256] of a thousand times them."""
    speeds = torch.exp(-math.log(10_000) * torch.arange(128, device=times.device) / 128)
    angles = 1000 * times.float()[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], -1)


def patches_of(latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] of even height and width to tokens [B, H / 2 * W / 2, 4 * C]."""
    batch, channels, height, width = latents.shape
    cut = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def latents_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `patches_of` for latents of that height and width."""
    batch, _, wide = tokens.shape
    cut = tokens.view(batch, height // 2, width // 2, wide // 4, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, wide // 4, height, width)


def positions(height: int, width: int, index: float, spacing: float = 1.0) -> Tensor:
    """Positions [L, 3] of the tokens of a grid: reference, row, column.

    With a spacing of 2, a picture of half the size covers the same positions as one of the whole size, cell centres on cell centres.
    """
    rows = (torch.arange(height) + 0.5) * spacing - 0.5
    columns = (torch.arange(width) + 0.5) * spacing - 0.5
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.full((len(grid), 1), float(index)), grid], 1)


class Answers(NamedTuple):
    """What the transformer says: noise less picture [B, C, H, W]; the tokens of all pictures half-way through [B, L, hidden]; and how the
    matching heads look from the painted picture's tokens at the references', logits [B, painted, references] each."""

    picture: Tensor
    half_way: Tensor
    looks: list[Tensor]


class Flux(nn.Module):
    """Predicts noise less picture. The first reference stands at position `reference_step` of the first axis, the second at twice that."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = s = shape or Shape()
        self.img_in = nn.Linear(4 * s.channels, s.hidden)
        self.txt_in = nn.Linear(s.words, s.hidden)
        self.time_in = Embedder(256, s.hidden)
        self.vector_in = Embedder(s.words, s.hidden)
        self.double_blocks = nn.ModuleList([DoubleBlock(s.hidden, s.heads) for _ in range(s.double)])
        self.single_blocks = nn.ModuleList([SingleBlock(s.hidden, s.heads) for _ in range(s.single)])
        self.final_layer = LastLayer(s.hidden, 4 * s.channels)
        self._turns: dict[tuple[object, ...], Turns] = {}
        self._start()

    def _start(self) -> None:
        """Begins blocks as the identity and the answer as zero, as diffusion transformers do (Peebles and Xie, 2022, "adaLN-Zero")."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedder in (self.time_in, self.vector_in):
            nn.init.normal_(embedder.in_layer.weight, std=0.02)
            nn.init.normal_(embedder.out_layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.lin.weight)
        for linear in (self.final_layer.linear, self.final_layer.adaLN_modulation[1]):
            nn.init.zeros_(linear.weight)  # pyright: ignore[reportArgumentType]

    def turns(self, sizes: Sequence[tuple[int, int]], words: int, spacing: float, device: torch.device) -> Turns:
        """The rotations for words and pictures of these grids (the painted one first), made once."""
        key = (tuple(sizes), words, spacing, device)
        if key not in self._turns:
            step = self.shape.reference_step
            grids = [positions(height, width, number * step, spacing) for number, (height, width) in enumerate(sizes)]
            ids = torch.cat([torch.zeros(words, 3), *grids]).to(device)
            self._turns[key] = rotations(ids, self.shape.axes, self.shape.theta)
        return self._turns[key]

    def forward(
        self, noisy: Tensor, times: Tensor, words: Tensor, pooled: Tensor, references: Sequence[Tensor] = (), spacing: float = 1.0
    ) -> Tensor:
        """Answers [B, C, H, W] for noisy latents [B, C, H, W] at times [B] in 0..1.

        `words` [B, L, 128] and `pooled` [B, 128] are the text encoder's, `references` latents [B, C, h, w] of any even sizes.
        """
        return self.answers(noisy, times, words, pooled, references, spacing).picture

    def answers(
        self,
        noisy: Tensor,
        times: Tensor,
        words: Tensor,
        pooled: Tensor,
        references: Sequence[Tensor] = (),
        spacing: float = 1.0,
        looking: bool = False,
    ) -> Answers:
        """Gives what `forward` gives, and what its tokens are asked in training; how heads look only if `looking`, and at references."""
        height, width = noisy.shape[2:]
        pictures = [noisy, *references]
        image = self.img_in(torch.cat([patches_of(picture) for picture in pictures], 1))
        vector = self.time_in(time_features(times).to(image.dtype)) + self.vector_in(pooled)
        text = self.txt_in(words)
        sizes = [(picture.shape[2] // 2, picture.shape[3] // 2) for picture in pictures]
        turns = self.turns(sizes, text.shape[1], spacing, noisy.device)
        for block in self.double_blocks:
            image, text = block(image, text, vector, turns)
        both = torch.cat([text, image], 1)
        half_way = both
        painted = slice(text.shape[1], text.shape[1] + height * width // 4)
        matching = self.shape.matching if looking and references else ()
        looks = []
        for number, block in enumerate(self.single_blocks):
            assert isinstance(block, SingleBlock)
            looks += [block.looks(both, vector, turns, head, painted) for place, head in matching if place == number]
            both = block(both, vector, turns)
            if number + 1 == self.shape.told_after:
                half_way = both
        picture = latents_of(self.final_layer(both[:, painted], vector), height, width)
        return Answers(picture, half_way[:, text.shape[1] :], looks)
