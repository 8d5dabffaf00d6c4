"""`train.py meca`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ...models.ip_adapter import file as meca_file
from ..data import folder
from ..engine.options import names
from ..meca.job import prepare
from ..meca.options import Options
from .arguments import add_options
from .comfyui import load_clip_vision
from .work import Work


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    command = methods.add_parser(
        "meca", parents=[general], help="an adapter that lets an image drive a region, from pictures with captions",
        description="Trains an adapter that lets an image be a prompt, in a region or everywhere (mask encoder cross attention). The "
        "result is a file for Load Image Prompt Adapter; checkpoint and vision model stay as they are.",
    )  # fmt: skip
    data = command.add_argument_group("what it learns from")
    data.add_argument(
        "--pictures",
        metavar="FOLDER",
        required=True,
        help="pictures of any sizes, each with its caption: NAME.txt beside NAME.jpg. With NAME.mask.png, or an alpha channel, a sample's "
        "region is that mask or all but it; without, regions are random",
    )
    data.add_argument(
        "--clip-vision", metavar="FILE", required=True, help="the vision model: a file, or the name of one in ComfyUI's models/clip_vision"
    )
    add_options(command.add_argument_group("the training"), Options, *names(Options))
    command.set_defaults(train=train, folder="ipadapter", title=_title)


def _title(given: argparse.Namespace) -> str:
    return re.sub(r"[^\w-]+", "_", f"meca-{Path(given.pictures).absolute().name}")


def train(work: Work) -> None:
    """Pictures with captions to a file that Load Image Prompt Adapter takes."""
    given = work.given
    options = Options(**{name: getattr(given, name) for name in names(Options)})
    pictures = folder.captioned(Path(given.pictures).expanduser())
    pictures.check_size(options.size)
    if not work.state.exists():  # what has begun was read before; a training may not end at a picture hours later
        work.first_alone(lambda beat: pictures.read_all(work.counted("Reading pictures", beat)))
    model, clip, vae = work.checkpoint()
    clip_vision = load_clip_vision(given.clip_vision)
    base = Path(given.checkpoint).name
    job = prepare(model, clip, vae, clip_vision, pictures, options, work.tell, work.processes.number, base)
    _, learned = work.train(job, job.states(work.state, given.save_every))
    network = learned.adapter.patcher.model
    about = {**learned.about, "processes": work.processes.count, **meca_file.metadata_of(network, learned.adapter.about)}
    work.save(network.state_dict(), {**about, "clip_vision": Path(given.clip_vision).name})
