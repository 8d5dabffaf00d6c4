"""Trains the demo's captioner on renders: a BLIP as small as the tiny model, which Caption Image loads as it loads the published ones.

python -m demo.train_captioner

Leaves the folder tiny-blip in `--work`, to be copied over the one in demo/ if it is better, and says how many captions of held-out scenes
are right word for word.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import photos, scenes, tiny_model
from .train_mask_controlnet import random_things
from .trainer import Log, cosine

FOLDER = tiny_model.ROOT / "demo" / "tiny-blip"
SIDE = 64
PATCH = 8
WIDTH = 64
LAYERS = 3
HEADS = 4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 40
ALONE = 0.7
"""How often of several objects only the first is kept: shapes, which come last, are learned from pictures of one."""


def words() -> list[str]:
    """All that the tokenizer knows: its marks, then every word of a caption."""
    said = {word for text in scenes.vocabulary() for word in text.split()} | set(scenes.PATTERNS)
    return [*SPECIAL, *sorted(said)]


def network() -> Any:
    """A BLIP of this size, not trained. After the tokenizer's words stands the mark that a caption begins with."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    text = {
        **common, "vocab_size": len(words()) + 1, "encoder_hidden_size": WIDTH, "max_position_embeddings": LONGEST,
        "bos_token_id": len(words()),
        "eos_token_id": SPECIAL.index("[SEP]"), "sep_token_id": SPECIAL.index("[SEP]"), "pad_token_id": SPECIAL.index("[PAD]"),
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "label_smoothing": 0.0,
    }  # fmt: skip
    config: Any = BlipConfig(text_config=text, vision_config={**common, "image_size": SIDE, "patch_size": PATCH}, projection_dim=WIDTH)
    config.text_config.projection_dim = WIDTH
    return BlipForConditionalGeneration(config)


def save(blip: Any, folder: Path) -> None:
    """As `transformers` saves one, in half precision."""
    import transformers

    tokenizer: Any = getattr(transformers, "BertTokenizerFast")  # noqa: B009  (of which its types do not tell)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "vocab.txt"
    known.write_text("\n".join(words()) + "\n", "utf-8")
    tokenizer(str(known), do_lower_case=True).save_pretrained(folder)
    known.write_text("\n".join(words()) + "\n", "utf-8")
    transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    blip.half().save_pretrained(folder)
    blip.float()
    for file in folder.glob("*.json"):  # the version of transformers is nobody's business
        content = json.loads(file.read_text("utf-8"))
        content.pop("transformers_version", None)
        file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def draw(rng: np.random.Generator, known: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """A picture of one to three objects, and what it shows."""
    photo = photos.crop(known[int(rng.integers(len(known)))], rng) if rng.random() < 0.2 else None
    ground = scenes.PHOTO if photo is not None else scenes.GROUNDS[int(rng.integers(len(scenes.GROUNDS)))]
    things = random_things(rng)
    things = things[:1] if rng.random() < ALONE else things
    scene = scenes.Scene(things, ground, int(rng.integers(2**31)), photo)
    return scenes.render(scene).image, scene.caption()


def drawn(count: int, seed: int, names: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 [N, 64, 64, 3] and captions."""
    rng = np.random.default_rng([seed, 5])
    known = [photos.load(name) for name in names]
    pairs = [draw(rng, known) for _ in range(count)]
    small = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image, _ in pairs]
    return np.stack(small), [caption for _, caption in pairs]


def tokens_of(captions: list[str]) -> Tensor:
    """Token ids [N, LONGEST - 1]: [CLS], words, [SEP], padding."""
    known = {word: number for number, word in enumerate(words())}
    rows = torch.zeros(len(captions), LONGEST - 1, dtype=torch.long)
    for row, caption in zip(rows, captions, strict=True):
        found = [known["[CLS]"], *(known[word] for word in caption.split()), known["[SEP]"]]
        row[: len(found)] = torch.tensor(found)
    return rows


def train(options: argparse.Namespace) -> Any:
    from transformers import BlipImageProcessor

    torch.manual_seed(options.seed)
    log = Log(options.work / "captioner.log")
    blip = network().train()
    pictures, captions = drawn(options.scenes, options.seed, photos.TRAINING)
    tokens = tokens_of(captions)
    usual: Any = BlipImageProcessor()
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (usual.image_mean, usual.image_std))
    optimizer = torch.optim.AdamW(blip.parameters(), options.rate)
    generator = torch.Generator().manual_seed(options.seed)
    began = time.monotonic()
    losses = []
    log(f"captioner: {sum(value.numel() for value in blip.parameters())} weights, {options.scenes} pictures drawn")
    for step in range(1, options.steps + 1):
        optimizer.param_groups[0]["lr"] = cosine(step / options.steps, options.rate, options.rate / 50)
        rows = torch.randint(len(tokens), (options.batch,), generator=generator)
        pixels = (torch.from_numpy(pictures[rows.numpy()]).movedim(-1, 1).float() / 255 - mean) / deviation
        given = tokens[rows]
        given = given[:, : int((given != 0).sum(1).max())]
        first = given.clone()
        first[:, 0] = len(words())
        labels = first.masked_fill(given == 0, -100)
        loss = blip(pixel_values=pixels, input_ids=first, attention_mask=(given != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(blip.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 250 == 0:
            log(f"captioner: step {step} of {options.steps}, loss {np.mean(losses[-250:]):.4f}, {(time.monotonic() - began) / 60:.1f} min")
    return blip.eval()


@torch.no_grad()
def evaluate(blip: Any, count: int = 200) -> float:
    """The share of pictures, on held-out photographs among others, whose caption is right word for word."""
    from transformers import BlipImageProcessor

    pictures, captions = drawn(count, 999, photos.HELD_OUT)
    usual: Any = BlipImageProcessor()
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (usual.image_mean, usual.image_std))
    pixels = (torch.from_numpy(pictures).movedim(-1, 1).float() / 255 - mean) / deviation
    start = torch.tensor([[SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")]]).repeat(count, 1)
    found = blip.generate(pixel_values=pixels, input_ids=start, max_new_tokens=30, do_sample=False)
    known = words()
    said = [" ".join(known[token] for token in row.tolist() if len(SPECIAL) <= token < len(known)) for row in found]
    return float(np.mean([one == caption for one, caption in zip(said, captions, strict=True)]))


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--work", type=Path, default=tiny_model.ROOT / "demo" / "work")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    blip = train(options)
    Log(options.work / "captioner.log")(
        f"captioner: right word for word {evaluate(blip):.3f} of 200 held-out pictures, seed {options.seed}"
    )
    save(blip, options.work / FOLDER.name)


if __name__ == "__main__":
    main()
