"""What MCGM's training learns beside the UNet: the handles of the subjects, the text encoder, and the encoder of their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.probe import Group
from ...conditioning import mask_tokens
from ...models.mcgm import mask_encoder
from ..engine.learner import Learner
from ..engine.text_learner import PLACEHOLDER
from .options import Options


class Subjects:
    """What learns beside the UNet: the text encoder with the handles, and the mask encoder (None: Break-A-Scene).

    The learner must be loaded, with this text encoder.
    """

    def __init__(self, learner: Learner, options: Options) -> None:
        if learner.text is None:
            raise ValueError("the learner has no text encoder")
        self.learner = learner
        self.text = learner.text
        self.options = options
        width = sum(rows.shape[1] for rows in self.text.vectors.values())
        bound = len(options.words) * (options.mode == "bound")
        self.encoder = mask_encoder.fresh(width, bound, options.seed).to(learner.device) if options.masks else None
        for rows in self.text.vectors.values():
            rows.data = rows.data.to(learner.device)

    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        """What learns in phase 1 or 2, by name."""
        own = dict(self.text.handles)
        if self.encoder is not None:
            own |= {f"mask_encoder.{name}": value for name, value in self.encoder.named_parameters()}
        return own if phase == 1 else own | self.learner.parameters | self.text.adapted.parameters

    def prompts(self, orders: Sequence[tuple[int, ...]], cells: Tensor) -> Prompts:
        """A prompt for each picture, which names its subjects in this order (equally many in each), with a token for each of their masks.

        `cells` [B, n, 64, 64] are the masks in the same order.
        """
        encoded = {order: self._encoded(order) for order in dict.fromkeys(orders)}
        text = torch.cat([encoded[order][0] for order in orders])
        options = {
            name: torch.cat([encoded[order][1][name] for order in orders]) if isinstance(value, Tensor) else value
            for name, value in encoded[orders[0]][1].items()
        }
        words = text.shape[1]
        count = len(orders[0])
        columns: list[tuple[Group, ...]] = [tuple((column,) for column in encoded[order][2]) for order in orders]
        if self.encoder is not None:
            owners = [number for order in orders for number in order]
            tokens = self.encoder(cells.flatten(0, 1), owners).unflatten(0, (len(orders), count))
            text = mask_tokens.append(text, tokens, words)
            columns = [(*own, *((words + place,) for place in range(count))) for own in columns]
        return Prompts([[text, options]], tuple(columns), text.shape[1])

    def without_subjects(self, prompt: str, masks: int, count: int = 1) -> list[list[Any]]:
        """CONDITIONING of a prompt that names no subject, `count` times, with as many zero tokens as others have mask tokens."""
        text, options = self.text.text(prompt)
        if self.encoder is not None:
            text = mask_tokens.append(text, text.new_zeros(masks, text.shape[2]), text.shape[1])
        return [[text.expand(count, -1, -1), {name: _repeated(value, count) for name, value in options.items()}]]

    def _encoded(self, order: tuple[int, ...]) -> tuple[Tensor, dict[str, Any], list[int]]:
        tokens, columns = self.text.tokens(self.options.prompt([PLACEHOLDER] * len(order)), order)
        text, options = self.text.encode(tokens)
        return text, options, columns


@dataclass(frozen=True)
class Prompts:
    """CONDITIONING of a batch; for each picture the columns of its handles, then of its mask tokens; and the number of all columns."""

    conditioning: list[list[Any]]
    columns: tuple[tuple[Group, ...], ...]
    length: int


def _repeated(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value
