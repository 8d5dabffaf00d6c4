"""`train.py meca`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ...attention.meca import Mode
from ...models.ip_adapter import file as meca_file
from ..data import folder
from ..engine import checkpoint, memory
from ..engine.checks import check_text
from ..engine.learner import Learner
from ..meca import examples as meca_samples
from ..meca import loss as meca
from .arguments import add_training, number
from .comfyui import load_clip_vision
from .signals import Interrupted
from .work import Work


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    usual = meca.Options()
    command = methods.add_parser(
        "meca", parents=[general], help="an adapter that lets an image drive a region, from pictures with captions",
        description="Trains an adapter that lets an image be a prompt, in a region or everywhere (mask encoder cross attention). The "
        "result is a file for Load MECA Adapter; checkpoint and vision model stay as they are.",
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
    how = command.add_argument_group("the training")
    add_training(how, usual)
    how.add_argument("--rate", type=number(float, 1e-12), default=usual.rate, help="learning rate (%(default)s)")
    how.add_argument("--weight-decay", type=number(float), default=usual.weight_decay, help="AdamW's (%(default)s)")
    how.add_argument(
        "--tokens", type=number(lowest=1), default=usual.tokens, help="into how many tokens an image is compressed (%(default)s)"
    )
    how.add_argument(
        "--mode",
        choices=get_args(Mode),
        default=usual.mode,
        help="how text and image share a picture that has a region. region: text outside, image inside. query: equation 6 to the letter. "
        "global: text everywhere, image inside (%(default)s)",
    )
    for name, said in (
        ("masked", "part of the samples that has a region"),
        ("text-only", "part of the samples that has text and no image"),
        ("text-dropout", "part of the samples that loses its text; 0 is the paper's"),
        ("blank", "part of those with a region that is shown no image, as guidance's unconditional half is; 0 is the paper's"),
        ("threshold", "a patch is hidden when more than this part of it lies outside of the region"),
    ):
        how.add_argument(
            f"--{name}", type=number(float, 0, 1), default=getattr(usual, name.replace("-", "_")), help=f"{said} (%(default)s)"
        )
    for name, said in (("random-crop", "take any square of a picture instead of the middle one"), ("flip", "mirror half of the samples")):
        default = getattr(usual, name.replace("-", "_"))
        how.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=f"{said} (off)")
    command.set_defaults(train=train, folder="ipadapter", title=_title)


def _title(given: argparse.Namespace) -> str:
    return re.sub(r"[^\w-]+", "_", f"meca-{Path(given.pictures).absolute().name}")


def train(work: Work) -> None:
    """Pictures with captions to a file that Load MECA Adapter takes."""
    given = work.given
    options = meca.Options(**{field.name: getattr(given, field.name) for field in fields(meca.Options)})
    pictures = folder.captioned(Path(given.pictures).expanduser())
    model, clip, vae = work.checkpoint()
    clip_vision = load_clip_vision(given.clip_vision)
    meca.check(model, clip, vae, clip_vision, options, pictures)
    learner = Learner(model, "frozen", checkpointing=options.checkpointing)
    features = meca_samples.width_of(clip_vision)
    weights = meca.size(learner, features, options)
    needed = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0, weights)
    memory.check(needed, learner.device, learner.method)
    with torch.no_grad():
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    check_text(learner, negative)
    fingerprint = options.fingerprint(
        pictures.fingerprint(),
        checkpoint.signature(model, [negative]),
        *(checkpoint.signature_of(part) for part in (clip_vision.model, vae.first_stage_model)),
    )
    source = meca_samples.Source(pictures, clip, vae, clip_vision, options, work.processes.number, _bars(work))
    shown = source.shown() if work.preview and work.processes.first else None

    with learner.loaded():
        network = meca.fresh(learner, features, options).to(learner.device)

        def paint() -> Tensor:
            assert shown is not None
            return meca.preview(learner, network, shown, vae, negative, options)

        loss = meca.Loss(learner, network, source, options)
        done = work.run(meca.parameters_of(network), loss, options.settings(), fingerprint, paint if shown else None)
        adapter = meca.finished(network, options, Path(given.checkpoint).name, work.output.name)
    told = ("rate", "weight_decay", "batch", "size", "masked", "text_only", "text_dropout", "blank", "threshold", "seed", "average")
    about = {name: getattr(options, name) for name in told} | {"steps": done.step, "processes": work.processes.count}
    trained = adapter.patcher.model
    work.save(trained.state_dict(), {**about, **meca_file.metadata_of(trained, adapter.about), "clip_vision": Path(given.clip_vision).name})


def _bars(work: Work) -> Callable[[int, int], None]:
    """A bar for each chunk of samples that is encoded."""
    bars: list[Callable[[int, int], None]] = []

    def told(done: int, count: int) -> None:
        if work.signals.number and work.processes.count == 1:  # several would not stop at the same sample
            raise Interrupted(work.signals.number)
        if not bars:
            bars.append(work.counter("Encoding pictures"))
        bars[0](done, count)
        if done >= count:
            bars.clear()

    return told
