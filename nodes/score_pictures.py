"""Score Pictures: CLIP-T, CLIP-I and DINO, with models that lie on this computer."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..images import foreground
from ..models.scores import encoders, likeness, pictures, report
from . import score_inputs
from .checked import checked


class ScorePictures(io.ComfyNode):
    """CLIP-T, CLIP-I and DINO of pictures."""

    def __init__(self) -> None:
        super().__init__()
        score_inputs.register(self, "Score Pictures")

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptScorePictures",
            display_name="Score Pictures",
            category=score_inputs.CATEGORY,
            description="Measures how like pictures are to their prompt (CLIP-T) and to pictures of the same subject (CLIP-I, DINO), whole "
            "or the foreground alone. The models lie on this computer; nothing is sent or downloaded.",
            search_aliases=["clip score", "clip-t", "clip-i", "dino score", "evaluate", "metric", "similarity", "likeness", "benchmark"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score: one, a batch, or a list of pictures of any sizes."),
                io.Image.Input(
                    "references", optional=True,
                    tooltip="Pictures of the subject, for CLIP-I and DINO: real ones, as many as you have, of any sizes.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="White is the foreground of `images`, which alone is scored then: one mask for all, or one for each. CLIP-T "
                    "always sees the whole picture.",
                ),
                io.Mask.Input(
                    "reference_masks", optional=True,
                    tooltip="White is the foreground of `references`: one mask for all, or one for each.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True,
                    tooltip="What the pictures should show, for CLIP-T: one line for all of them, or a line for each. Empty: no CLIP-T.",
                ),
                io.Combo.Input(
                    "clip_name", options=[score_inputs.NONE, *encoders.listed(encoders.CLIP)],
                    tooltip="CLIP, from ComfyUI/models/clip_vision: a folder (needed for CLIP-T), or a single file as Load CLIP Vision "
                    "takes it. Papers use clip-vit-base-patch32 or -large-patch14; figures of different ones must not be compared.",
                ),
                io.Combo.Input(
                    "dino_name", options=[score_inputs.NONE, *encoders.listed(encoders.DINO)],
                    tooltip="DINO or DINOv2, from ComfyUI/models/dino or models/clip_vision: a folder, or a single file as Load CLIP "
                    "Vision takes it. Papers use dino-vits16; figures of different ones must not be compared.",
                ),
                io.Combo.Input(
                    "pairing", options=list(likeness.PAIRINGS), default=likeness.ALL, optional=True, advanced=True,
                    tooltip="all references: each picture's mean over all references, as papers do. same number: only with the reference "
                    "of its own number.",
                ),
                io.Combo.Input(
                    "outside", options=list(foreground.OUTSIDES), default="white", optional=True, advanced=True,
                    tooltip="What stands around a foreground that a mask cuts out. white, grey, black: this colour. keep: the picture "
                    "itself, cut to a square around it.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="All scores as a table, for Preview as Text or a file."),
                io.Float.Output("clip_t", display_name="clip_t", tooltip="The mean CLIP-T; nan if it was not measured. Higher is better."),
                io.Float.Output("clip_i", display_name="clip_i", tooltip="The mean CLIP-I; nan if it was not measured. Higher is better."),
                io.Float.Output("dino", display_name="dino", tooltip="The mean DINO score; nan if it was not measured. Higher is better."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(cls, images: list[torch.Tensor], clip_name: list[str], dino_name: list[str], **lists: list[Any]) -> io.NodeOutput:
        painted = pictures.pictures_of(images, "images")
        real = pictures.pictures_of(lists["references"], "references") if lists.get("references") else []
        prompt = pictures.one_text(lists.get("prompt") or [""])
        clip, dino = clip_name[0], dino_name[0]
        _ask_enough(clip, dino, prompt, bool(real))
        prompts = pictures.prompts_of(prompt, len(painted)) if prompt else []
        outside = score_inputs.first(lists, "outside", "white")
        cut = _cut_out(painted, lists.get("masks"), outside, ("masks", "images"))
        cut_real = _cut_out(real, lists.get("reference_masks"), outside, ("reference_masks", "references"))
        models = {
            kind: encoders.load(encoders.find(kind, name), kind)
            for kind, name in ((encoders.CLIP, clip), (encoders.DINO, dino))
            if name != score_inputs.NONE
        }
        score_inputs.hold("Score Pictures", list(models.values()))
        compared = len(models) if real else 0
        bar = score_inputs.Bar(cls.hidden.unique_id, len(painted) * bool(prompts) + (len(painted) + len(real)) * compared)
        scores: dict[str, list[float]] = {}
        if prompts:
            after = bar.round("CLIP-T", len(painted))
            scores["CLIP-T"] = likeness.to_prompts(models[encoders.CLIP], painted, prompts, after)
        for kind, label in ((encoders.CLIP, "CLIP-I"), (encoders.DINO, "DINO")):
            if real and kind in models:
                after = bar.round(label, len(painted) + len(real))
                pairing = score_inputs.first(lists, "pairing", likeness.ALL)
                scores[label] = likeness.to_references(models[kind], cut, cut_real, pairing, after)
        notes = [f"{kind}: {model.name}" for kind, model in models.items()]
        text = report.table(scores, notes)
        bar.progress.say(text)
        means = (report.mean(scores.get(name, [])) for name in ("CLIP-T", "CLIP-I", "DINO"))
        return io.NodeOutput(text, *means, ui=ui.PreviewText(text))


def _cut_out(found: list[torch.Tensor], given: list[Any] | None, outside: str, names: tuple[str, str]) -> list[torch.Tensor]:
    """The foregrounds of pictures, or the pictures where no masks were given."""
    if not given:
        return found
    masks = pictures.masks_of(given, len(found), *names)
    cut = []
    for number, (picture, mask) in enumerate(zip(found, masks, strict=True), 1):
        try:
            cut.append(foreground.cut_out(picture, mask, outside))
        except ValueError as error:
            raise ValueError(f"picture {number} of {names[1]}: {error}") from None
    return cut


def _ask_enough(clip: str, dino: str, prompt: str, references: bool) -> None:
    """ValueError unless the inputs ask for at least one score, and all that they ask for can be measured."""
    if clip == score_inputs.NONE and dino == score_inputs.NONE:
        raise ValueError(
            f"no model is chosen. For CLIP-T and CLIP-I: {encoders.ADVICE[encoders.CLIP]} For DINO: {encoders.ADVICE[encoders.DINO]}"
        )
    if prompt and clip == score_inputs.NONE:
        raise ValueError(f"a prompt is given, but clip_name is {score_inputs.NONE}: CLIP-T needs CLIP. {encoders.ADVICE[encoders.CLIP]}")
    if not prompt and not references:
        raise ValueError("there is nothing to compare with: write a prompt for CLIP-T, or wire references for CLIP-I and DINO.")
    if dino != score_inputs.NONE and not references:
        raise ValueError("dino_name is chosen, but references is not wired: DINO compares pictures with pictures.")


NODES: list[type[io.ComfyNode]] = [ScorePictures]
