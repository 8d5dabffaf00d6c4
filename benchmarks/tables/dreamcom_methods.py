"""How DreamCom's table paints: which parts of masked attention act while training and while painting, and on which layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Method:
    """How a subject gets into the box.

    `references`: how many pictures are learned from (0: none, the model as it is).
    `masked`: masked cross-attention while training.
    `cross`: masked cross-attention while painting, on `cross_layers`.
    `layers`: those of masked self-attention while painting: "paper", "outer" (what "paper" leaves out), "all" or "none".
    `outside`: what cells outside of the box take from the text under masked cross-attention: "nothing" (equation 2), or what the
    "empty words" would give them.
    """

    name: str
    references: int = 5
    masked: bool = True
    cross: bool = True
    layers: str = "paper"
    cross_layers: str = "all"
    outside: str = "nothing"


BEFORE = Method("before", 0)
WHOLE = Method("whole")
NO_CROSS = Method("without masked cross-attention", masked=False, cross=False)
NO_SELF = Method("without masked self-attention", layers="none")
NEITHER = Method("without both", masked=False, cross=False, layers="none")
PARTS = (WHOLE, NO_CROSS, NO_SELF, NEITHER)
ALL = Method("all layers", layers="all")
OUTER = Method("the decoder's outer layers", layers="outer")
FEWER = tuple(Method(f"{count} reference{'s' if count > 1 else ''}", count) for count in (1, 2, 3, 4))
FIVE = replace(WHOLE, name="5 references")
CHOICES = (replace(NO_SELF, name="no layer"), ALL, OUTER, replace(WHOLE, name="all but the decoder's outer layers (the paper's)"))
SHOWN = {
    "before": BEFORE, "whole": WHOLE, "no cross": NO_CROSS, "no self": NO_SELF, "neither": NEITHER, "all layers": ALL,
    "outer layers": OUTER,
}  # fmt: skip
"""What the table's sheet shows, from left to right."""

TRAINING = Method("while training only", cross=False)
PAINTING = Method("while painting only", masked=False)
SPOKEN = (
    Method("with the empty words outside", outside="empty words"),
    Method("with the empty words outside, no masked self-attention", layers="none", outside="empty words"),
)
CAUSES = (
    TRAINING,
    PAINTING,
    replace(TRAINING, name=f"{TRAINING.name}, no masked self-attention", layers="none"),
    replace(PAINTING, name=f"{PAINTING.name}, no masked self-attention", layers="none"),
    Method("on all but the decoder's outer layers", cross_layers="paper"),
    Method("on the decoder's outer layers", cross_layers="outer"),
    *SPOKEN,
)
"""Variants of masked cross-attention. With a similar object beside the box the whole method does worse than the one without it; these ask
whether that comes from training or from painting, from which layers, or from the silence outside of the box."""
BESIDE = (*PARTS, *SPOKEN)
"""Whose pictures with a similar object beside the box are counted by subject, too: it is one subject that fails there."""


def patched(model: Any, method: Method, masks: Tensor, empty: Tensor) -> Any:
    """A clone of a MODEL that paints by a method. `masks` [B, H, W]; `empty` [1, tokens, C]: the conditioning of the empty text."""
    from maskprompt.attention import chain, grid, layers
    from maskprompt.attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention

    region = grid.RegionMask(masks)
    unet = model.get_model_object("diffusion_model")
    every = layers.layers_of(unet)
    inner = layers.preset("paper", every)
    named = {"none": frozenset[Any](), "all": frozenset(every), "outer": frozenset(every) - inner, "paper": inner}
    patches: list[Any] = []
    if method.cross:
        scope = chain.EVERYWHERE if method.cross_layers == "all" else chain.Scope(named[method.cross_layers])
        spoken = method.outside == "empty words"
        patches.append(EmptyWordsOutside(region, unet, empty, scope) if spoken else MaskedCrossAttention(region, scope))
    if named[method.layers]:
        patches.append(MaskedSelfAttention(region, "paper", chain.Scope(named[method.layers])))
    return chain.install(model, *patches) if patches else model


@dataclass(frozen=True)
class EmptyWordsOutside:
    """Cross-attention whose queries outside of a mask see the empty text in place of the prompt.

    `unet` is the model that runs, whose own projections make the keys and values of `words` [1, tokens, C].
    """

    mask: Any
    unet: Any
    words: Tensor
    scope: Any
    kind: str = "cross"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Any, inner: Any) -> Tensor:
        from maskprompt.attention.ip_adapter_layers import cross_attention, numbered
        from maskprompt.attention.masked_attention import regions

        number = next(number for number, layer in numbered(self.unet).items() if layer == call.layer)
        module = cross_attention(self.unet)[number]
        words = self.words.to(k).expand(len(k), -1, -1)
        silent = inner(q, module.to_k(words), module.to_v(words))
        result = inner(q, k, v)
        for part in regions(self.mask, call, q.device):
            outside = part.cells.background
            for row in part.rows:
                result[row, outside] = silent[row, outside]
        return result
