"""tiny-edit's words: a vocabulary of token ids, and the text encoder that learns.

The encoder is SD 1's CLIP at two layers of width 128 and 24 tokens, in plain PyTorch and under CLIP's names. It holds the embeddings of the
vocabulary's tokens only (a few hundred of 49,408); the file has them all, those of other tokens zero.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .transformer import TEXT_LENGTH, TEXT_WIDTH, attention

HEADS = 4
LAYERS = 2
START, END = 49_406, 49_407
TABLE = 49_408
FILE = "vocabulary.json"


class Vocabulary:
    """Token ids of SD 1's tokenizer for every word that a sentence can have; `rows` numbers the ids that occur."""

    def __init__(self, words: dict[str, list[int]]) -> None:
        self.words = words
        self.ids = sorted({START, END, *(number for numbers in words.values() for number in numbers)})
        self._row = {number: row for row, number in enumerate(self.ids)}
        self._rows = {word: [self._row[number] for number in numbers] for word, numbers in words.items()}

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Reads the training folder's vocabulary, which is made with ComfyUI's tokenizer if it is not there."""
        file = folder / FILE
        if not file.is_file():
            file.write_text(json.dumps(tokenized(), indent=0), "utf-8")
        return cls(json.loads(file.read_text("utf-8")))

    def token_ids(self, sentence: str) -> list[int]:
        """The sentence's ids as ComfyUI's tokenizer gives them: start, words, and ends up to 24."""
        return [self.ids[row] for row in self.rows(sentence)]

    def rows(self, sentence: str) -> list[int]:
        """The same as numbers of the encoder's rows. ValueError for a sentence that is too long."""
        found = [self._row[START]]
        for word in sentence.split():
            found += self._rows[word]
        if len(found) > TEXT_LENGTH - 1:
            raise ValueError(f"{sentence!r} has {len(found) - 1} tokens; {TEXT_LENGTH - 2} fit")
        return found + [self._row[END]] * (TEXT_LENGTH - len(found))

    def batch(self, sentences: Sequence[str]) -> Tensor:
        """Row numbers [B, 24] of sentences."""
        return torch.tensor([self.rows(sentence) for sentence in sentences])


def tokenized() -> dict[str, list[int]]:
    """Every word that a sentence can have, and its ids; needs ComfyUI and transformers."""
    from .. import tiny_model
    from . import sentences

    tiny_model.comfyui_on_path()
    tokenizer = tiny_model.tokenizer()
    return {word: tokenizer(word)["input_ids"][1:-1] for word in sentences.vocabulary()}


class Projections(nn.Module):
    """Causal attention of the words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v, causal=True).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers and CLIP's quick GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.fc1(x)
        return self.fc2(inner * torch.sigmoid(1.702 * inner))


class Layer(nn.Module):
    """One layer, norms first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = Projections(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Row numbers [B, 24] to words [B, 24, 128] and pooled words [B, 128] (the first end's)."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__()
        self.ids = list(ids)
        self.end = self.ids.index(END)
        self.embeddings = nn.ModuleDict(
            {"token_embedding": nn.Embedding(len(self.ids), TEXT_WIDTH), "position_embedding": nn.Embedding(TEXT_LENGTH, TEXT_WIDTH)}
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Layer(TEXT_WIDTH) for _ in range(LAYERS)])})
        self.final_layer_norm = nn.LayerNorm(TEXT_WIDTH)
        nn.init.normal_(self.token_table, std=0.2)
        nn.init.normal_(self.place_table, std=0.1)

    @property
    def token_table(self) -> Tensor:
        return self.embeddings["token_embedding"].weight  # pyright: ignore[reportReturnType]

    @property
    def place_table(self) -> Tensor:
        return self.embeddings["position_embedding"].weight  # pyright: ignore[reportReturnType]

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = self.token_table[rows] + self.place_table
        for layer in self.encoder["layers"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        x = self.final_layer_norm(x)
        first_end = (rows == self.end).int().argmax(1)
        return x, x[torch.arange(len(x), device=x.device), first_end]

    def clip_state(self) -> dict[str, Tensor]:
        """The weights under the names of a CLIP-L file, with all 49,408 tokens."""
        state = {f"text_model.{name}": value.detach() for name, value in self.state_dict().items()}
        name = "text_model.embeddings.token_embedding.weight"
        table = torch.zeros(TABLE, TEXT_WIDTH, dtype=state[name].dtype)
        table[self.ids] = state[name].cpu()
        return {**state, name: table}
