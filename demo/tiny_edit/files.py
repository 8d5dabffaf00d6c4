"""Writes tiny-edit's three files: the transformer, the text encoder and the autoencoder, as the stock loaders take them; and reads them.

    python -m demo.tiny_edit.files FOLDER
    python -m demo.tiny_edit.files FOLDER --begin

Load Diffusion Model, Load CLIP and Load VAE load them once `demo/registration` is there. Weights are in half precision; the transformer's
large matrices and the autoencoder's large kernels in fp8 (E4M3), as ComfyUI keeps any fp8 file: under 35 MB in all. `--begin` goes the
other way: a training of which nothing but the files is left goes on from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import AUTOENCODER, TEXT, TRANSFORMER, folders, train
from .latents import CHANNELS, Latents
from .latents import FILE as AUTOENCODER_WEIGHTS
from .text import TextEncoder, Vocabulary

LIMIT = 35 * 10**6
SMALLEST_FP8 = 2**16
"""Matrices of fewer numbers stay in half precision."""


def transformer_state(average: dict[str, Tensor], fp8: bool) -> dict[str, Tensor]:
    """The transformer's averaged weights under Flux's names; the blocks' large matrices in fp8 if asked."""
    state = {}
    for name, value in average.items():
        if not name.startswith("flux."):
            continue
        own = name.removeprefix("flux.")
        large = "blocks" in own and value.ndim == 2 and value.numel() >= SMALLEST_FP8
        state[own] = value.to(torch.float8_e4m3fn if fp8 and large else torch.float16).contiguous()
    return state


def text_state(average: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """The text encoder's averaged weights under CLIP-L's names, with the embeddings of the words that it knows."""
    from .. import tiny_model

    tiny_model.comfyui_on_path()
    from ..registration.words import packed_words

    encoder = TextEncoder(ids)
    encoder.load_state_dict({name.removeprefix("text."): value.float() for name, value in average.items() if name.startswith("text.")})
    state = {name: value.half().contiguous() for name, value in encoder.clip_state().items()}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    return {**packed_words(state), "text_projection.weight": torch.eye(width, dtype=torch.half)}


def autoencoder_state(latents: Latents, narrow: bool = False) -> dict[str, Tensor]:
    """The autoencoder as a TAESD file, padded to its widths; its large kernels in fp8 if asked."""
    from .. import fp8, tiny_model
    from ..autoencoder import padded

    tiny_model.comfyui_on_path()
    from comfy.taesd.taesd import TAESD

    state = padded(latents.autoencoder, 1.0, TAESD(latent_channels=CHANNELS).state_dict())
    halves = {name: value.half().contiguous() for name, value in state.items()}
    return fp8.in_fp8(halves) if narrow else halves


def write(folder: Path, target: Path, fp8: bool = True) -> list[Path]:
    """Writes the three files of a training folder's averaged weights; ValueError if they are larger than they may be."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = torch.load(folder / train.STATE, weights_only=True, map_location="cpu")
    vocabulary = Vocabulary.load(folder)
    run = {"step": str(state["step"]), "samples": str(state["samples"]), "minutes": f"{state['spent']:.1f}"}
    about = {"format": "maskprompt tiny edit 1", **run}
    parts = {
        TRANSFORMER: transformer_state(state["average"], fp8),
        TEXT: text_state(state["average"], vocabulary.ids),
        AUTOENCODER: autoencoder_state(Latents.load(folder), fp8),
    }
    for name, weights in parts.items():
        save_file(weights, target / name, metadata=about)
    files = [target / name for name in parts]
    size = sum(file.stat().st_size for file in files)
    if size > LIMIT:
        raise ValueError(f"the files have {size / 1e6:.1f} MB; {LIMIT // 10**6} are allowed")
    return files


def read(folder: Path, vocabulary: Vocabulary) -> tuple[dict[str, Tensor], Latents, dict[str, str]]:
    """Reads the files of a folder: all weights of `train.Networks` in float32, the autoencoder, and what `write` said of the run.

    What no file has is begun anew: the head that tells places, and the embedding of a word that the file does not know.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    from .. import tiny_model
    from ..autoencoder import narrowed

    tiny_model.comfyui_on_path()
    from ..registration.words import WORD_IDS, WORDS

    networks = {f"flux.{name}": value.float() for name, value in load_file(folder / TRANSFORMER).items()}
    text = load_file(folder / TEXT)
    rows = {int(number): row for row, number in enumerate(text.pop(WORD_IDS))}
    fresh = train.Networks(vocabulary).state_dict()
    table = fresh[f"text.{WORDS.removeprefix('text_model.')}"].clone()
    for row, number in enumerate(vocabulary.ids):
        if number in rows:
            table[row] = text[WORDS][rows[number]].float()
    text[WORDS] = table
    networks |= {name.replace("text_model.", "text."): value.float() for name, value in text.items() if name.startswith("text_model.")}
    networks |= {name: value for name, value in fresh.items() if name.startswith("places.")}
    with safe_open(folder / TRANSFORMER, "pt") as opened:
        about: dict[str, str] = opened.metadata() or {}
    return networks, Latents(narrowed(load_file(folder / AUTOENCODER))), about


def begin(source: Path, folder: Path) -> Path:
    """Writes into a training folder what the files of `source` hold, as a light state (`train.Training.resume`), and the autoencoder.

    FileExistsError if a training is there already.
    """
    target = folder / train.STATE
    if target.exists():
        raise FileExistsError(f"{target} is there already: that training goes on by itself")
    torch.manual_seed(0)
    vocabulary = Vocabulary.load(folder)
    networks, latents, about = read(source, vocabulary)
    run = {"step": int(about["step"]), "samples": int(about["samples"]), "spent": float(about["minutes"])}
    folders.save(latents.autoencoder.state_dict(), folder / AUTOENCODER_WEIGHTS)
    folders.forget_records(folder)
    folders.save({"networks": networks, "average": networks, **run}, target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.add_argument("target", type=Path, help="where the files are")
    parser.add_argument("--fp16", action="store_true", help="no fp8: larger files")
    parser.add_argument("--begin", action="store_true", help="read the files there, and begin a training folder with them")
    options = parser.parse_args()
    if options.begin:
        folders.begin(options)
        print(begin(options.target, options.folder))
        return
    for file in write(options.folder, options.target, fp8=not options.fp16):
        print(f"{file} {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
