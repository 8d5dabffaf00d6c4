"""The networks of an image prompt: features of a CLIP vision model -> a few tokens -> keys and values for each cross-attention layer.

Three ways to the tokens: IP-Adapter's projection of the pooled embedding ("base"), IP-Adapter-plus' resampler ("plus"), and the token
compression of "Patch-enhanced Mask Encoder Prompt Image Generation", equation 3 ("compression"). Weights have the names of IP-Adapter's
files. `ops` is where Linear and LayerNorm come from: torch.nn, or `comfy.ops.manual_cast` for ComfyUI's memory management.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64
POOLED = "image_embeds"
PATCHES = "penultimate_hidden_states"


class BaseProjection(nn.Module):
    """The pooled image embedding [N, features] -> [N, tokens, context]."""

    kind = "base"
    source = POOLED

    def __init__(self, features: int, context: int, tokens: int, ops: Any = nn) -> None:
        super().__init__()
        self.features = features
        self.context = context
        self.tokens = tokens
        self.proj = ops.Linear(features, tokens * context)
        self.norm = ops.LayerNorm(context)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features).view(len(features), self.tokens, self.context))


class Resampler(nn.Module):
    """A vision model's patch states [N, M, features] -> [N, tokens, context]; M is free."""

    kind = "plus"
    source = PATCHES

    def __init__(
        self, features: int, context: int, tokens: int, width: int, heads: int, depth: int = 4, hidden: int = 0, ops: Any = nn
    ) -> None:
        super().__init__()
        self.features = features
        self.context = context
        self.tokens = tokens
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = ops.Linear(features, width)
        self.proj_out = ops.Linear(width, context)
        self.norm_out = ops.LayerNorm(context)
        hidden = hidden or 4 * width
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    LatentAttention(width, heads, ops),
                    nn.Sequential(
                        ops.LayerNorm(width), ops.Linear(width, hidden, bias=False), nn.GELU(), ops.Linear(hidden, width, bias=False)
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        states = self.proj_in(features)
        latents = self.latents.to(states).expand(len(states), -1, -1)
        for layer in self.layers:
            attention, forward = layer.children()
            latents = latents + attention(states, latents)
            latents = latents + forward(latents)
        return self.norm_out(self.proj_out(latents))


class LatentAttention(nn.Module):
    """Latents [N, T, width] attend to states and themselves."""

    def __init__(self, width: int, heads: int, ops: Any = nn) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = ops.LayerNorm(width)
        self.norm2 = ops.LayerNorm(width)
        self.to_q = ops.Linear(width, heads * HEAD, bias=False)
        self.to_kv = ops.Linear(width, 2 * heads * HEAD, bias=False)
        self.to_out = ops.Linear(heads * HEAD, width, bias=False)

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat((self.norm1(states), latents), dim=1)).chunk(2, dim=-1)
        return self.to_out(attended(self.to_q(latents), k, v, self.heads))


class Compression(nn.Module):
    """Equation 3: Z' = softmax(Q (Z W_k)^T / sqrt d) (Z W_v), c = `tokens` learned queries for the N > c patch states [B, N, features].

    The paper leaves out the linear maps, the softmax and the scale; these are attention's, in so many heads.
    """

    kind = "compression"
    source = PATCHES

    def __init__(self, features: int, context: int, tokens: int, heads: int, ops: Any = nn) -> None:
        super().__init__()
        if heads < 1 or features % heads:
            raise ValueError(f"{features} features cannot be split into {heads} heads")
        self.features = features
        self.context = context
        self.tokens = tokens
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(tokens, features) / features**0.5)
        self.norm_in = ops.LayerNorm(features)
        self.to_k = ops.Linear(features, features, bias=False)
        self.to_v = ops.Linear(features, features, bias=False)
        self.proj_out = ops.Linear(features, context)
        self.norm_out = ops.LayerNorm(context)

    def forward(self, features: Tensor) -> Tensor:
        states = self.norm_in(features)
        queries = self.queries.to(states).expand(len(states), -1, -1)
        return self.norm_out(self.proj_out(attended(queries, self.to_k(states), self.to_v(states), self.heads)))


Projection = BaseProjection | Resampler | Compression


class KeyValue(nn.Module):
    """One layer's keys and values of the image tokens."""

    def __init__(self, context: int, width: int, ops: Any = nn) -> None:
        super().__init__()
        self.to_k_ip = ops.Linear(context, width, bias=False)
        self.to_v_ip = ops.Linear(context, width, bias=False)


class MecaNetwork(nn.Module):
    """A projection, and the keys and values of every layer. `widths` is each layer's width by IP-Adapter's number (1, 3, 5, …)."""

    def __init__(self, projection: Projection, widths: Mapping[int, int], ops: Any = nn) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.image_proj = projection
        self.ip_adapter = nn.ModuleDict({str(number): KeyValue(projection.context, width, ops) for number, width in widths.items()})

    def forward(self, tokens: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """K and V [N, T, width] of tokens [N, T, context], for each layer's number."""
        pairs: dict[str, Any] = dict(self.ip_adapter.items())
        return {int(number): (pair.to_k_ip(tokens), pair.to_v_ip(tokens)) for number, pair in pairs.items()}


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of [N, T, C] to [N, M, C] in so many heads."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def like(weights: Mapping[str, Tensor], heads: int = 0, ops: Any = nn) -> MecaNetwork:
    """A network on the meta device for weights by name. `heads` is the compression's, which its weights do not tell.

    KeyError where a weight that tells the kind or a size is missing, ValueError where one has another form.
    """
    widths = {int(name.split(".")[1]): len(weight) for name, weight in weights.items() if name.endswith(".to_k_ip.weight")}
    with torch.device("meta"):
        projection = _projection({name: tuple(weight.shape) for name, weight in weights.items()}, heads, ops)
        return MecaNetwork(projection, dict(sorted(widths.items())), ops)


def fresh(text: Mapping[int, tuple[Tensor, Tensor]], features: int, tokens: int, heads: int = 0) -> MecaNetwork:
    """An untrained MECA network: token compression, and the text's own keys and values for the image's (section 3.3).

    `text` holds each layer's `to_k` and `to_v` weights [width, context] by number. `heads` of 0 is one for 64 features.
    """
    context = next(iter(text.values()))[0].shape[1]
    projection = Compression(features, context, tokens, heads or max(1, features // HEAD))
    network = MecaNetwork(projection, {number: len(k) for number, (k, _) in sorted(text.items())})
    for number, (k, v) in text.items():
        pair: Any = network.ip_adapter[str(number)]
        pair.to_k_ip.weight.data.copy_(k)
        pair.to_v_ip.weight.data.copy_(v)
    return network


def _projection(shapes: Mapping[str, tuple[int, ...]], heads: int, ops: Any) -> Projection:
    if "image_proj.queries" in shapes:
        tokens, features = shapes["image_proj.queries"]
        return Compression(features, shapes["image_proj.proj_out.weight"][0], tokens, heads, ops)
    if "image_proj.latents" in shapes:
        _, tokens, width = shapes["image_proj.latents"]
        depth = len({name.split(".")[2] for name in shapes if name.startswith("image_proj.layers.")})
        sizes = (shapes[f"image_proj.{name}.weight"] for name in ("proj_in", "proj_out", "layers.0.0.to_q", "layers.0.1.1"))
        (_, features), (context, _), (inner, _), (hidden, _) = sizes
        return Resampler(features, context, tokens, width, inner // HEAD, depth, hidden, ops)
    (rows, features), (context,) = shapes["image_proj.proj.weight"], shapes["image_proj.norm.weight"]
    return BaseProjection(features, context, rows // context, ops)
