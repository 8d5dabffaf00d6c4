"""Score Against: FID, IS, LPIPS, SSIM and PSNR, with networks that lie on this computer."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..models import files
from ..models.scores import pairs, pictures, report, sets
from . import score_inputs
from .checked import checked


class ScoreAgainst(io.ComfyNode):
    """FID, IS, LPIPS, SSIM and PSNR of pictures against other pictures."""

    def __init__(self) -> None:
        super().__init__()
        score_inputs.register(self, "Score Against")

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptScoreAgainst",
            display_name="Score Against",
            category=score_inputs.CATEGORY,
            description="Measures how far pictures are from the originals: picture by picture (PSNR, SSIM, LPIPS), everywhere or inside a "
            "mask, and set against set (FID, IS). The networks lie on this computer; nothing is sent or downloaded.",
            search_aliases=["fid", "inception score", "lpips", "ssim", "psnr", "compare images", "image difference", "metric", "evaluate"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score: one, a batch, or a list of pictures of any sizes."),
                io.Image.Input(
                    "references",
                    tooltip="The originals. For PSNR, SSIM and LPIPS as many as `images`, in order and size; for FID any number and sizes.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="PSNR, SSIM and LPIPS count only where this is white, such as the background that should have stayed: one mask "
                    "for all pictures, or one for each. FID and IS see whole pictures.",
                ),
                io.Boolean.Input(
                    "pairs", default=True, optional=True,
                    tooltip="Compare each picture with the reference of its number (PSNR, SSIM, LPIPS). Off: only the sets (FID, IS).",
                ),
                io.Combo.Input(
                    "lpips_name", options=[score_inputs.NONE, *files.list_files(pairs.FOLDER)],
                    tooltip="The network of LPIPS, in ComfyUI/models/lpips: torchvision's alexnet-owt-7be5be79.pth (as most papers) or "
                    "vgg16-397923af.pth.",
                ),
                io.Combo.Input(
                    "inception_name", options=[score_inputs.NONE, *files.list_files(sets.FOLDER)],
                    tooltip="The network of FID and IS, in ComfyUI/models/inception: weights-inception-2015-12-05-6726825d.pth.",
                ),
                io.Int.Input(
                    "splits", default=10, min=1, max=1000, optional=True, advanced=True,
                    tooltip="Into how many parts the pictures are shuffled for IS; papers use 10. Never more parts than pictures.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True, advanced=True,
                    tooltip="The order in which IS shuffles the pictures.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="All scores as a table, for Preview as Text or a file."),
                io.Float.Output("fid", display_name="fid", tooltip="Frechet Inception Distance; nan if not measured. Lower is better."),
                io.Float.Output("inception_score", display_name="inception_score", tooltip="IS; nan if not measured. Higher is better."),
                io.Float.Output("lpips", display_name="lpips", tooltip="The mean LPIPS; nan if not measured. Lower is better."),
                io.Float.Output("ssim", display_name="ssim", tooltip="The mean SSIM; nan if not measured. Higher is better."),
                io.Float.Output("psnr", display_name="psnr", tooltip="The mean PSNR in dB, inf for equal pictures; nan if not measured."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        images: list[torch.Tensor],
        references: list[torch.Tensor],
        lpips_name: list[str],
        inception_name: list[str],
        **lists: list[Any],
    ) -> io.NodeOutput:
        painted = pictures.pictures_of(images, "images")
        real = pictures.pictures_of(references, "references")
        in_pairs = bool(score_inputs.first(lists, "pairs", True))
        if not in_pairs and inception_name[0] == score_inputs.NONE:
            raise ValueError(
                f"nothing is asked for: turn pairs on for PSNR, SSIM and LPIPS, or choose an inception_name for FID. {sets.ADVICE}"
            )
        masks = None
        if in_pairs:
            pictures.same_sizes(painted, real)
            given = lists.get("masks")
            masks = pictures.masks_of(given, len(painted), "masks", "images") if given else None
        network = score_inputs.loaded(pairs.load_lpips, pairs.FOLDER, lpips_name[0], pairs.ADVICE) if in_pairs else None
        inception = score_inputs.loaded(sets.load_inception, sets.FOLDER, inception_name[0], sets.ADVICE)
        score_inputs.hold("Score Against", [network, inception])
        bar = score_inputs.Bar(cls.hidden.unique_id, len(painted) * in_pairs + (len(painted) + len(real)) * (inception is not None))
        scores: dict[str, list[float]] = {}
        notes: list[str] = []
        if inception is not None:
            scores |= _of_sets(inception, painted, real, lists, bar, notes)
        if in_pairs:
            found = pairs.score_pairs(painted, real, masks, network, bar.round("Pairs", len(painted)))
            scores |= {name.upper(): values for name, values in found.items()}
        if network is not None:
            notes.append(f"LPIPS: {network.kind}")
        text = report.table(scores, notes)
        bar.progress.say(text)
        means = (report.mean(scores.get(name, [])) for name in ("FID", "IS", "LPIPS", "SSIM", "PSNR"))
        return io.NodeOutput(text, *means, ui=ui.PreviewText(text))


def _of_sets(
    inception: sets.Inception,
    painted: Sequence[Any],
    real: Sequence[Any],
    lists: dict[str, list[Any]],
    bar: score_inputs.Bar,
    notes: list[str],
) -> dict[str, list[float]]:
    """FID, if there are two pictures on each side, and IS; what is to be known about them goes into `notes`."""
    ours = inception.see(painted, bar.round("Inception, images", len(painted)))
    theirs = inception.see(real, bar.round("Inception, references", len(real)))
    scores: dict[str, list[float]] = {}
    if min(len(painted), len(real)) > 1:
        scores["FID"] = [sets.frechet_distance(ours.features, theirs.features)]
        if min(len(painted), len(real)) < sets.FEW:
            notes.append(f"FID of {len(painted)} and {len(real)} pictures: compare it only with FIDs of as many.")
    else:
        notes.append("FID needs at least two pictures on each side and was left out.")
    splits = min(int(score_inputs.first(lists, "splits", 10)), len(painted))
    mean, deviation = sets.inception_score(ours.logits, splits, int(score_inputs.first(lists, "seed", 0)))
    scores["IS"] = [mean]
    notes.append(f"IS: {splits} parts, deviation {deviation:.4f}")
    return scores


NODES: list[type[io.ComfyNode]] = [ScoreAgainst]
