"""`train.py dreamcom`."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import folder
from ..dreamcom import loss as dreamcom
from ..engine import checkpoint, memory
from ..engine.learner import Learner
from .arguments import add_training, number
from .work import Work


def add(methods: Any, general: argparse.ArgumentParser) -> None:
    """Adds the sub-command."""
    usual = dreamcom.Options()
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
    subject.add_argument("--token", default=usual.token, help="a rare word that is to stand for the subject (%(default)s)")
    how = command.add_argument_group("the training")
    add_training(how, usual)
    how.add_argument(
        "--method",
        choices=["lora", "full", "auto"],
        default=usual.method,
        help="lora: a small file. full: all of the UNet's weights; takes a large GPU, the file is as large as the UNet. auto: full from "
        "16 GB of GPU memory on, else lora (%(default)s)",
    )
    how.add_argument(
        "--rank", type=number(lowest=1), default=usual.rank, help="the LoRA's rank: more holds more detail in a larger file (%(default)s)"
    )
    how.add_argument(
        "--rate",
        type=number(float, 1e-12),
        default=usual.rate,
        help="learning rate (default: {lora:g} for lora, {full:g} for full, for SD's width; more for a narrower one)".format(
            **dreamcom.USUAL_RATE
        ),
    )
    how.add_argument(
        "--masked-attention",
        action=argparse.BooleanOptionalAction,
        default=usual.masked_attention,
        help="let the text reach the subject's box only, as the paper does (on, unless --no-...)",
    )
    how.add_argument(
        "--box-margin",
        type=number(float, 0, 1),
        default=usual.box_margin,
        help="draw each subject's box larger on every side by up to this part of its size (%(default)s; 0 is the paper's)",
    )
    command.set_defaults(train=train, folder="loras", title=lambda given: re.sub(r"[^\w-]+", "_", f"dreamcom-{given.token}-{given.noun}"))


def train(work: Work) -> None:
    """Pictures of a subject to a file that Load LoRA takes."""
    given = work.given
    automatic = work.given.method == "auto"
    pictures = folder.load(Path(given.pictures).expanduser())
    model, clip, vae = work.checkpoint()
    options = dreamcom.Options(
        token=given.token.strip(), noun=given.noun.strip(), steps=given.steps, rate=given.rate,
        method="lora" if automatic else given.method, rank=given.rank, batch=given.batch, size=given.size, seed=given.seed,
        masked_attention=given.masked_attention, box_margin=given.box_margin, average=given.average,
        checkpointing=given.checkpointing,
    )  # fmt: skip
    dreamcom.check(model, clip, vae, options, pictures)
    if automatic:
        whole = memory.estimate_full(model, options.latents, options.checkpointing, options.average > 0)
        options = replace(options, method=memory.method_for(model.load_device, whole))
    learner = Learner(model, options.method, options.rank, options.seed, options.checkpointing)
    needed = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0)
    memory.check(needed, learner.device, options.method)
    with torch.no_grad():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (options.prompt, "")]
    fingerprint = options.fingerprint(pictures, checkpoint.signature(model, texts))
    examples = dreamcom.encode(pictures, vae, options, on_crop=work.counter("Encoding crops"))
    settings = options.settings(learner.width)

    def paint() -> Tensor:
        return dreamcom.preview(learner, examples, vae, texts[0], texts[1], options.masked_attention)

    with learner.loaded():
        done = work.run(learner.parameters, dreamcom.Loss(learner, examples, texts[0], options), settings, fingerprint, paint)
        learned = learner.learned()
    told = ("method", "token", "noun", "prompt", "rank", "batch", "size", "seed", "masked_attention", "box_margin", "average")
    about = {name: getattr(options, name) for name in told}
    base = {"format": "maskprompt-dreamcom-1", "base": Path(given.checkpoint).name, "width": learner.width}
    work.save(learned, {**base, **about, "steps": done.step, "rate": settings.learning_rate, "processes": work.processes.count})
    if work.processes.first:
        print(f"Prompt: {options.prompt}")
