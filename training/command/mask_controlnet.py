"""`train.py mask-controlnet`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ...models.blip.captioner import captions
from ..data import annotate, object_folder
from ..data.folder_scan import Counted, listed, survey, usable
from ..data.object_folder import MaskedFolder
from ..engine import checkpoint
from ..engine.checks import check_text
from ..engine.learner import Learner
from ..engine.loop import random_numbers
from ..mask_controlnet.examples import Source
from ..mask_controlnet.options import Options
from ..meca.examples import Texts
from .arguments import add_training, number
from .comfyui import load_blip, load_sam
from .work import Work

log = logging.getLogger(__name__)


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    usual = Options()
    command = methods.add_parser(
        "mask-controlnet", parents=[general], help="a control network that keeps an object, from pictures; SAM and BLIP annotate them",
        description="Trains a control network, and the adapter that makes its hint, to keep an object while everything else is painted "
        "anew. The result is a file for Load Mask-ControlNet; the checkpoint stays as it is. Masks and captions that the pictures lack "
        "are made once, by SAM and BLIP.",
    )  # fmt: skip
    _add_data(command.add_argument_group("what it learns from"))
    how = command.add_argument_group("the training")
    add_training(how, usual)
    how.add_argument(
        "--accumulate", type=number(lowest=1), default=usual.accumulate,
        help="batches in a step, in each process: as a larger batch, with the memory of a small one (%(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--rate", type=number(float, 1e-12), default=usual.rate,
        help="learning rate (default: ControlNet's usual one, 1e-05 for SD's width; more for a narrower one)",
    )  # fmt: skip
    how.add_argument("--weight-decay", type=number(float), default=usual.weight_decay, help="AdamW's (%(default)s)")
    how.add_argument(
        "--text-dropout", type=number(float, 0, 1), default=usual.text_dropout,
        help="part of the samples that loses its text, so that the hint also works without a prompt (%(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--mask-prompt", dest="masked", action=argparse.BooleanOptionalAction, default=usual.masked,
        help="show the object beside the reference; without, the reference alone, for comparison (on, unless --no-...)",
    )  # fmt: skip
    command.set_defaults(train=train, folder="controlnet", title=_title)


def _add_data(data: Any) -> None:
    data.add_argument(
        "--pictures", metavar="FOLDER", required=True,
        help="pictures of any sizes. A picture's caption is NAME.txt beside NAME.jpg; its objects are NAME.mask.png, NAME.mask-2.png and "
        "so on, white on the object, or its own alpha channel. What is missing is made by SAM and BLIP",
    )  # fmt: skip
    data.add_argument(
        "--sam", metavar="FILE", help="finds objects in pictures without a mask: a file, or the name of one in ComfyUI's models/sams"
    )
    data.add_argument(
        "--blip", metavar="FOLDER", help="writes captions for pictures without one: a folder, or the name of one in ComfyUI's models/blip"
    )
    data.add_argument(
        "--cache", metavar="FOLDER", help=f"where masks and captions that were made are kept (default: {object_folder.CACHE} in --pictures)"
    )
    data.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read, with a warning")


def _title(given: argparse.Namespace) -> str:
    return re.sub(r"[^\w-]+", "_", f"mask-controlnet-{Path(given.pictures).absolute().name}")


def train(work: Work) -> None:
    """Pictures to a file that Load Mask-ControlNet takes."""
    from ...models.mask_controlnet import file as mask_controlnet_file
    from ..mask_controlnet import loss as mask_controlnet

    given = work.given
    options = Options(**{field.name: getattr(given, field.name) for field in fields(Options)})
    listed(Path(given.pictures).expanduser(), quiet=True)  # what is wrong at first sight, before the checkpoint is read
    model, clip, vae = work.checkpoint()
    examples = _examples(work, lambda found: mask_controlnet.check(model, clip, vae, options, found))
    learner = Learner(model, "frozen", checkpointing=options.checkpointing)
    mask_controlnet.check_memory(learner, vae, options)
    source = Source(examples, options.batch, options.size, options.text_dropout)
    told = replace(source, text_dropout=0.0)  # a preview is of a picture with its text
    first = told.load(told.plan(random_numbers(options.seed, 0)))
    with torch.no_grad():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (first.texts[0], ""))
    check_text(learner, negative)
    signatures = checkpoint.signature(model, [negative]), checkpoint.signature_of(vae.first_stage_model)
    fingerprint = options.fingerprint(examples.fingerprint(), *signatures)
    settings = options.settings(learner.width)
    place = work.processes.number
    parts = options.accumulate

    with learner.loaded():
        branch = mask_controlnet.Branch(learner, vae, options)
        branch.load()

        def paint() -> torch.Tensor:
            return mask_controlnet.preview(branch, first, vae, positive, negative)

        with torch.enable_grad():
            loss = mask_controlnet.Loss(branch, source, Texts(clip), range(place * parts, (place + 1) * parts))
            done = work.run(branch.parameters, loss, settings, fingerprint, paint)
        content = branch.content()
    told = ("weight_decay", "batch", "accumulate", "size", "text_dropout", "seed", "average")
    about = {name: getattr(options, name) for name in told} | {"steps": done.step, "processes": work.processes.count}
    about |= {"rate": settings.learning_rate, "pictures": len(examples), "trained_on": Path(given.checkpoint).name}
    work.save(mask_controlnet_file.together(content), {**about, **mask_controlnet_file.metadata_of(content)})


def _examples(work: Work, check: Callable[[MaskedFolder], None]) -> MaskedFolder:
    """The pictures, annotated by the first process. `check` is asked before that, which may take long."""
    given = work.given
    place = Path(given.pictures).expanduser()
    cache = Path(given.cache).expanduser() if given.cache else place / object_folder.CACHE

    def prepare(beat: Callable[[], None]) -> None:
        found = survey(place, cache, _counted(work, "Reading pictures", beat))
        entries = usable(found, given.size, given.skip_broken)
        check(MaskedFolder(entries, [""] * len(entries), [entry.size for entry in entries]))
        bare, wordless = object_folder.lacking(entries)
        object_folder.check_complete([] if given.sam else bare, [] if given.blip else wordless)
        # Both before the work, which may take hours, and should not fail after them.
        blip: Any = load_blip(given.blip) if wordless else None
        if bare:
            annotate.make_masks(bare, cache, load_sam(given.sam), _counted(work, "Finding objects", beat))
            found = survey(place, cache, quiet=True)
            wordless = object_folder.lacking(usable(found, given.size, given.skip_broken, quiet=True))[1]
        if wordless:
            annotate.make_captions(wordless, cache, lambda shown: captions(blip, shown), _counted(work, "Writing captions", beat))

    try:
        work.first_alone(prepare)
    except KeyboardInterrupt:
        log.warning("The masks and captions that were made are kept in %s; the same command goes on from there.", cache)
        raise
    return object_folder.masked(place, cache, given.size, given.skip_broken, quiet=True)


def _counted(work: Work, what: str, beat: Callable[[], None]) -> Counted:
    """A bar, and a beat after every picture."""
    bar = work.counter(what)

    def count(done: int, of: int) -> None:
        bar(done, of)
        beat()

    return count
