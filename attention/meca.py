"""Mask encoder cross attention: text drives here, image there ("Patch-enhanced Mask Encoder Prompt Image Generation", section 3.3).

An IP-Adapter's keys and values of one or more image prompts are attended to beside the text's:

    global  text + lambda · image                               equation 4; with a region, the image inside it only
    region  (1 - min(lambda, 1) · M) · text + lambda · M · image     equation 6 with M, the region, on the two outputs
    query   softmax((1 - M) Q K^T) V + lambda · softmax(M Q K'^T) V'   equation 6 to the letter

Readings. Equation 6 gives the text 1 - MA and the image MA, so at lambda = 1 no text acts inside (an artist who wants both has `global`).
It has no lambda; a smaller one leaves the text the rest, so lambda = 0 is no adapter. In `query` a masked query is zero, attends to all
keys alike and takes the mean of V; it is computed as that mean. Equation 5 brings the mask to each layer's grid.

Two patches make a region: one takes the text away, beneath all images of the chain, the other adds the image. So several regions add
up, the text is taken out of their union, and what no region covers is the text's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from . import chain
from .chain import EVERYWHERE, Call, Inner, Kind, Patch, Scope, attention
from .grid import Cells, RegionMask
from .layers import Layer
from .masked_attention import Region, regions

Mode = Literal["region", "query", "global"]
Pair = tuple[Tensor, Tensor]


class Keys(Protocol):
    """Where the image's keys and values come from. Numbers 0 to `prompts - 1` are image prompts, `prompts` is the unconditional one."""

    @property
    def prompts(self) -> int: ...

    def of(self, layer: Layer, numbers: tuple[int, ...], like: Tensor) -> Pair:
        """K and V [len(numbers), T, C] of a layer, on the device and in the precision of `like`."""
        ...


@dataclass(frozen=True)
class StoredKeys:
    """Keys and values worked out before the sampling, [prompts + 1, T, C] for each layer, kept on the CPU.

    Copies for a device are made when a layer first runs there and dropped by `release`, after each sampling.
    """

    layers: Mapping[Layer, Pair]
    _ready: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def prompts(self) -> int:
        return len(next(iter(self.layers.values()))[0]) - 1

    def of(self, layer: Layer, numbers: tuple[int, ...], like: Tensor) -> Pair:
        place = (layer, like.device, like.dtype)
        if place not in self._ready:
            self._ready[place] = [part.to(like.device, like.dtype) for part in self.layers[layer]]
        k, v = self._ready[place]
        order = (numbers, like.device)
        if order not in self._ready:
            self._ready[order] = torch.tensor(numbers, device=like.device)
        return k[self._ready[order]], v[self._ready[order]]

    def release(self, *_: Any) -> None:
        self._ready.clear()


@dataclass(frozen=True)
class TextOutside:
    """The text's part of equation 6: all that lies beneath, taken away inside the region (None: everywhere)."""

    region: RegionMask | None
    weight: float = 1.0
    mode: Literal["region", "query"] = "region"
    scope: Scope = EVERYWHERE
    kind: Kind = "cross"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        parts = parts_of(self.region, call, q.device)
        if self.weight == 0 or not any(len(part.cells.foreground) for part in parts):
            return inner(q, k, v)
        share = min(self.weight, 1.0) if self.mode == "region" else 1.0
        if not call.plain or share < 1:
            kept = 1 - share * _inside(parts, q)
            return inner(q, k, v) * kept if self.mode == "region" else inner(q * kept, k, v)
        if len(parts) == 1:
            return self._outside(q, k, v, parts[0].cells, inner)
        result = torch.empty_like(q)
        for part in parts:
            result[part.rows] = self._outside(q[part.rows], k[part.rows], v[part.rows], part.cells, inner)
        return result

    def _outside(self, q: Tensor, k: Tensor, v: Tensor, cells: Cells, inner: Inner) -> Tensor:
        """Only the outer queries run; the inner ones get zero, or the mean that a zero query takes."""
        if len(cells.foreground) == 0:
            return inner(q, k, v)
        rest = v.mean(1, keepdim=True) if self.mode == "query" else torch.zeros_like(v[:, :1])
        result = rest.expand_as(q).clone()
        if len(cells.background):
            result[:, cells.background] = inner(q[:, cells.background], k, v)
        return result


@dataclass(frozen=True)
class ImagePrompt:
    """lambda times the image's part of equations 4 and 6, added to what lies beneath; only the region's queries run (None: all)."""

    keys: Keys
    region: RegionMask | None = None
    weight: float = 1.0
    mode: Mode = "region"
    scope: Scope = EVERYWHERE
    kind: Kind = "cross"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        if self.weight == 0:
            return inner(q, k, v)
        if len(q) != len(call.rows):
            raise RuntimeError(
                f"another node runs this layer on {len(q)} rows where the batch has {len(call.rows)} (attention couple and the like), so "
                "it is not known which of them see the image. Bypass that node, or Image Prompt Region."
            )
        result = inner(q, k, v)
        parts = [part for part in parts_of(self.region, call, q.device) if self._acts(part, call)]
        if not parts:
            return result
        count = self.keys.prompts
        numbers = tuple(row.image % count if row.half == 0 else count for row in call.rows)
        keys, values = self.keys.of(call.layer, numbers, q)
        if len(parts[0].rows) == len(q):
            return torch.add(result, self._image(q, keys, values, parts[0].cells, call), alpha=self.weight)
        images = torch.zeros_like(result)
        for part in parts:
            images[part.rows] = self._image(q[part.rows], keys[part.rows], values[part.rows], part.cells, call)
        return torch.add(result, images, alpha=self.weight)

    def _acts(self, part: Region, call: Call) -> bool:
        """Not where the mask is empty. A window beside the region still gets `query`'s mean, as the rest of its picture does."""
        if len(part.cells.foreground) or self.region is None or self.mode != "query":
            return len(part.cells.foreground) > 0
        return bool((self.region.masks[self.region.index(call.rows[part.rows[0]].image)] >= 0.5).any())

    def _image(self, q: Tensor, k: Tensor, v: Tensor, cells: Cells, call: Call) -> Tensor:
        """softmax(QK'^T)V' inside; outside zero, or the mean that a zero query takes."""
        options = {"n_heads": call.heads, **call.options}
        if len(cells.background) == 0:
            return attention(q, k, v, options)
        result = v.mean(1, keepdim=True).expand_as(q).clone() if self.mode == "query" else torch.zeros_like(q)
        if len(cells.foreground):
            result[:, cells.foreground] = attention(q[:, cells.foreground], k, v, options)
        return result


def parts_of(region: RegionMask | None, call: Call, device: torch.device) -> list[Region]:
    """The batch's rows by what the region is for them; without a region, all rows and all cells."""
    if region is not None:
        return regions(region, call, device)
    cells = torch.arange(call.grid[0] * call.grid[1], device=device)
    return [Region(list(range(len(call.rows))), Cells(torch.ones_like(cells, dtype=torch.bool), cells, cells[:0]))]


def install(model: Any, image: ImagePrompt) -> Any:
    """A clone of the MODEL with the image prompt at the end of its chain and, but for `global`, its text patch beneath all images."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    clone = chain.install(model, image)
    if image.mode != "global":
        (whole,) = clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY)
        text = TextOutside(image.region, image.weight, image.mode, image.scope)
        clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, chain.KEY)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, chain.KEY, chain.Chain(beneath_images(whole.patches, text), whole.schedule))
    if isinstance(image.keys, StoredKeys):
        clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, chain.KEY, image.keys.release)
    return clone


def beneath_images(patches: tuple[Patch, ...], text: TextOutside) -> tuple[Patch, ...]:
    """The patches with `text` put before the first image prompt, which must be there."""
    first = next(index for index, patch in enumerate(patches) if isinstance(patch, ImagePrompt))
    return (*patches[:first], text, *patches[first:])


def _inside(parts: list[Region], q: Tensor) -> Tensor:
    """1 inside the region, 0 outside, as [1 or B, N, 1] in q's precision. `parts` must name every row of q, or be one for all."""
    if len(parts) == 1:
        return parts[0].cells.inside[None, :, None].to(q.dtype)
    inside = torch.zeros(q.shape[:2], dtype=torch.bool, device=q.device)
    for part in parts:
        inside[part.rows] = part.cells.inside
    return inside[:, :, None].to(q.dtype)
