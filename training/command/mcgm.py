"""`train.py mcgm`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.mcgm import store
from ..data import folder
from ..engine.options import names
from ..mcgm.checks import words_of
from ..mcgm.job import Learned, prepare
from ..mcgm.options import MASK_TOKENS, PRESET, USUAL_RATE, WIDGETS, Options, of_mask_tokens, with_preset
from .arguments import add_option, add_options
from .work import Work

LORAS = "loras"
NAME = "scene"


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    command = methods.add_parser(
        "mcgm", parents=[general], help="the subjects of one picture, each with its mask, as handles that prompts name and masks pose",
        description="Teaches a checkpoint one or more subjects from a single picture in which each is marked (MCGM on Break-A-Scene). What "
        "was learned of the model is --out, in a folder loras; the handles go to the folder embeddings beside it, the mask encoder to "
        "mcgm, as Load Poseable Subjects finds them in ComfyUI's models folder.",
    )  # fmt: skip
    subject = command.add_argument_group("the subjects")
    subject.add_argument(
        "--picture", metavar="FILE", required=True,
        help="the picture. Beside NAME.jpg lie the masks NAME.mask.png, NAME.mask-2.png and so on, white where a subject is; or it is the "
        "picture's own alpha channel, opaque where the only subject is",
    )  # fmt: skip
    subject.add_argument("--words", required=True, help='what each subject is, in one plain word, in the order of the masks: "cat, dog"')
    subject.add_argument(
        "--name", help=f"what the files are called: scene and cat make the handle embedding:scene-cat ({NAME}; with --out its file's name)"
    )
    how = command.add_argument_group("the training")
    rates = {"rate": "default: {lora:g} for lora, {full:g} for full".format(**USUAL_RATE)}
    add_options(how, Options, *names(Options), usual=rates)
    add_option(how, "--mask-tokens", "mask_tokens", MASK_TOKENS.choices[0], MASK_TOKENS)
    add_option(how, "--preset", "preset", WIDGETS, PRESET)
    command.set_defaults(train=train, folder=LORAS, title=title_of)


def title_of(given: argparse.Namespace) -> str:
    """The name of the files where --out does not say it. ValueError for one that no handle can have."""
    name = given.name or NAME
    store.handle_names(name, words_of(given.words))
    return name


def train(work: Work) -> None:
    """A picture with its masks to handles, a LoRA and a mask encoder."""
    given = work.given
    words = words_of(given.words)
    name = work.output.stem
    if given.out and given.name not in (None, name):
        raise ValueError(f"--out names the files {name} and --name {given.name}: give one of the two.")
    store.handle_names(name, words)
    root = _root(work.output)
    if work.processes.first:
        _check_free(store.paths(name, words, root), given.overwrite)
        store.check_writable(root)
    image, masks = marked(Path(given.picture).expanduser())
    values = {field: getattr(given, field) for field in names(Options)}
    options = with_preset(Options(words, **values, **of_mask_tokens(given.mask_tokens)), given.preset)
    model, clip, vae = work.checkpoint()
    job = prepare(model, clip, vae, image, masks, options, work.tell, work.processes.number, work.free_disk(), work.begun)
    _, learned = work.train(job, job.states(work.state, given.save_every))
    work.finish(lambda: _saved(name, words, learned, Path(given.checkpoint).name, root))
    if work.processes.first:
        print(f"Prompt: a photo of {' and '.join(f'embedding:{one}' for one in store.handle_names(name, words))}")


def _root(output: Path) -> Path:
    """The models folder, in whose folder loras `output` is to lie."""
    if output.parent.name != LORAS:
        raise ValueError(f"--out {output} must lie in a folder {LORAS}: handles and mask encoder are saved in folders beside it.")
    return output.parent.parent


def _check_free(files: list[Path], overwrite: bool) -> None:
    """ValueError where one of the files is there. They are as good as free with `overwrite`."""
    for file in files:
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists: choose another --name, or replace it with --overwrite.")


def _saved(name: str, words: tuple[str, ...], learned: Learned, base: str, root: Path) -> str:
    """Writes all files; names them."""
    try:
        store.save(name, words, learned.vectors.__getitem__, learned.encoder, learned.lora, base, root)
    except Exception as error:  # safetensors has errors of its own
        raise ValueError(f"what was learned could not be saved in {root}: {error}. Is the disk full?") from error
    return ", ".join(str(path) for path in store.paths(name, words, root) if path.exists())


def marked(picture: Path) -> tuple[Tensor, Tensor]:
    """IMAGE [1, H, W, 3] and MASK [n, H, W] of a picture and the masks beside it, in their order. ValueError that says what would do."""
    if not picture.is_file():
        raise ValueError(f"there is no picture {picture}.")
    opened = folder.open_picture(picture)
    masks, _ = folder.masks_among(sorted(path for path in picture.parent.iterdir() if path.is_file()))
    own = masks.get(picture.stem.lower(), [])
    if own:
        return folder.colours(opened)[None], torch.stack([folder.mask_of(path, picture, opened.size) for path in own])
    mask = folder.alpha(opened)
    if not folder.is_cut_out(mask):
        raise ValueError(
            f"{picture.name} has no mask: save one for each subject beside it, as {picture.stem}.mask.png, {picture.stem}.mask-2.png and "
            "so on, of the same size and white where the subject is."
        )
    return folder.colours(opened)[None], mask[None]
