"""`train.py mask-controlnet`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...models.blip.captioner import captions
from ..data.folder_scan import Listing
from ..data.object_folder import CACHE, ObjectFolder
from ..engine.options import names
from ..mask_controlnet.options import GIVEN, Options
from .arguments import add_options
from .comfyui import load_blip, load_sam
from .work import Work

log = logging.getLogger(__name__)


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    command = methods.add_parser(
        "mask-controlnet", parents=[general], help="a control network that keeps an object, from pictures; SAM and BLIP annotate them",
        description="Trains a control network, and the adapter that makes its hint, to keep an object while everything else is painted "
        "anew. The result is a file for Load Mask-ControlNet; the checkpoint stays as it is. Masks and captions that the pictures lack "
        "are made once, by SAM and BLIP.",
    )  # fmt: skip
    _add_data(command.add_argument_group("what it learns from"))
    how = command.add_argument_group("the training")
    usual = {"rate": "default: ControlNet's usual one, 1e-05 for SD's width; more for a narrower one"}
    add_options(how, Options, *names(Options), flags={"masked": "--mask-prompt"}, usual=usual)
    command.set_defaults(train=train, folder="controlnet", title=_title)


def _add_data(data: Any) -> None:
    data.add_argument(
        "--pictures", metavar="FOLDER", required=True,
        help="pictures of any sizes. A picture's caption is NAME.txt beside NAME.jpg; its objects are NAME.mask.png, NAME.mask-2.png and "
        "so on, white on the object, or its own alpha channel. What is missing is made by SAM and BLIP. NAME.reference.png shows the same "
        "object in the same place on another ground, for --pairs given",
    )  # fmt: skip
    data.add_argument(
        "--sam", metavar="FILE", help="finds objects in pictures without a mask: a file, or the name of one in ComfyUI's models/sams"
    )
    data.add_argument(
        "--blip", metavar="FOLDER", help="writes captions for pictures without one: a folder, or the name of one in ComfyUI's models/blip"
    )
    data.add_argument(
        "--cache", metavar="FOLDER", help=f"where masks and captions that were made are kept (default: {CACHE} in --pictures)"
    )
    data.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read, with a warning")


def _title(given: argparse.Namespace) -> str:
    return re.sub(r"[^\w-]+", "_", f"mask-controlnet-{Path(given.pictures).absolute().name}")


def train(work: Work) -> None:
    """Pictures to a file that Load Mask-ControlNet takes."""
    from ...models.mask_controlnet import file as mask_controlnet_file
    from ..mask_controlnet import checks
    from ..mask_controlnet.job import prepare

    given = work.given
    options = Options(**{name: getattr(given, name) for name in names(Options)})
    Listing(Path(given.pictures).expanduser(), quiet=True)  # what is wrong at first sight, before the checkpoint is read
    model, clip, vae = work.checkpoint()
    examples = _examples(work, options, lambda found: checks.check(model, clip, vae, options, found))
    job = prepare(model, clip, vae, examples, options, work.tell, work.processes.number)
    _, learned = work.train(job, job.states(work.state, given.save_every))
    about = {**learned.about, "processes": work.processes.count, "trained_on": Path(given.checkpoint).name}
    work.save(mask_controlnet_file.together(learned.content), {**about, **mask_controlnet_file.metadata_of(learned.content)})


def _examples(work: Work, options: Options, check: Callable[[ObjectFolder], None]) -> ObjectFolder:
    """The pictures, annotated by the first process. `check` is asked before that, which may take long."""
    given = work.given
    place = Path(given.pictures).expanduser()
    cache = Path(given.cache).expanduser() if given.cache else place / CACHE
    read = partial(ObjectFolder, place, cache, options.size, given.skip_broken)
    found: list[ObjectFolder] = []

    def annotate(beat: Callable[[], None]) -> None:
        examples = read(on_picture=work.counted("Reading pictures", beat))
        if options.pairs == GIVEN:
            examples.check_references()
        check(examples)
        examples.check_complete(masks=not given.sam, captions=not given.blip)
        # Both before the work, which may take hours, and should not fail after them.
        blip: Any = load_blip(given.blip) if examples.without_caption else None
        if examples.without_mask:
            examples.find_objects(load_sam(given.sam), work.counted("Finding objects", beat))
        if examples.without_caption:
            examples.write_captions(lambda shown: captions(blip, shown), work.counted("Writing captions", beat))
        found.append(examples)

    try:
        work.first_alone(annotate)
    except KeyboardInterrupt:
        log.warning("The masks and captions that were made are kept in %s; the same command goes on from there.", cache)
        raise
    return (found[0] if found else read(quiet=True)).finished()
