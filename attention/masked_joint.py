"""DreamCom's masked attention (Lu et al., "DreamCom", sections 4.2 and 4.3) carried to transformers.

Where words and picture meet in one attention, words see the mask's inside only and only it sees them; inside and outside of the picture
do not see each other in the chosen layers. References are seen by all. `paper` multiplies after the softmax (equation 2), `renormalised`
leaves out before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import prompt_regions
from .chain import EVERYWHERE, Row, Scope
from .grid import RegionMask, Size
from .layers import Layer
from .layout import Grid
from .masked_attention import SelfMode
from .moment import Moment
from .visibility import Masked


@dataclass(frozen=True)
class MaskedJointAttention:
    """A mask's rule for a transformer. `words` confines the words in all layers; `divided` parts the picture in `layers` (None: all)."""

    mask: RegionMask
    words: bool = True
    divided: SelfMode | None = None
    layers: frozenset[Layer] | None = None
    scope: Scope = EVERYWHERE
    kind: Literal["rule"] = "rule"

    def rule(self, row: Row, latent: Size, grid: Grid, layer: Layer, moment: Moment) -> Masked | None:
        """Who sees whom in a row; None where nothing is masked."""
        if self.scope.half != "both" and (min(row.half, 1) == 0) != (self.scope.half == "positive"):
            return None
        divided = self.divided is not None and (self.layers is None or layer in self.layers)
        if not self.words and not divided:
            return None
        key, inside = prompt_regions.place(self.mask, row, latent, grid)
        return Masked(inside, key, self.words, self.divided != "renormalised", divided, self.divided == "paper")
