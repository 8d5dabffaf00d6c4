"""`train.py dreamcom`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ..data import folder
from ..dreamcom.job import prepare
from ..dreamcom.options import USUAL_RATE, Options
from ..engine.options import names
from .arguments import add_options
from .work import Work


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    command = methods.add_parser(
        "dreamcom", parents=[general], help="a subject of yours, from three to five pictures, into an inpainting checkpoint",
        description="Teaches an inpainting checkpoint one subject from three to five pictures in which it is marked (DreamCom). "
        "The result is a LoRA file for ComfyUI's Load LoRA; the prompt `a photo of TOKEN NOUN` then paints the subject into any box.",
    )  # fmt: skip
    subject = command.add_argument_group("the subject")
    subject.add_argument(
        "--pictures",
        metavar="FOLDER",
        required=True,
        help="pictures of any sizes, each with its mask: NAME.mask.png beside NAME.jpg, white where the subject is; or the picture's own "
        "alpha channel, opaque where the subject is",
    )
    subject.add_argument("--noun", required=True, help="what the subject is, in one plain word, such as dog")
    add_options(subject, Options, "token")
    how = command.add_argument_group("the training")
    rates = {"rate": "default: {lora:g} for lora, {full:g} for full".format(**USUAL_RATE)}
    add_options(how, Options, *names(Options, without=("token", "noun")), usual=rates)
    command.set_defaults(train=train, folder="loras", title=lambda given: re.sub(r"[^\w-]+", "_", f"dreamcom-{given.token}-{given.noun}"))


def train(work: Work) -> None:
    """Pictures of a subject to a file that Load LoRA takes."""
    given = work.given
    pictures = folder.load(Path(given.pictures).expanduser())
    model, clip, vae = work.checkpoint()
    values = {name: getattr(given, name) for name in names(Options)} | {"token": given.token.strip(), "noun": given.noun.strip()}
    job = prepare(model, clip, vae, pictures, Options(**values), work.tell, work.processes.number, work.free_disk(), work.begun)
    _, learned = work.train(job, job.states(work.state, given.save_every))
    work.save(learned.lora, {**learned.about, "base": Path(given.checkpoint).name, "processes": work.processes.count})
    if work.processes.first:
        print(f"Prompt: {job.options.prompt}")
