"""The pictures on Reference Region's help page, by the pack's own code: `python -m demo.reference_picture`.

The first shows what goes into an edit model in the template *10 Insert my product*: the reference; the tokens of it that the model sees, as
the node's preview has them; the region in which they act. The second shows what comes out: the same template painted by tiny-edit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import edit_pictures, run, setup, stand_ins
from .contact_sheet import HEIGHT, picture_of
from .pack import ROOT, load_pack
from .server import Prompt, Server

PAGE = ROOT / "web" / "docs" / "reference-region.jpg"
PAINTED = ROOT / "web" / "docs" / "reference-region-painted.jpg"
SEEDS: tuple[int, ...] = (1, 2, 3)
"""Not chosen."""
WORKFLOW = "10"
DOWNSCALE, PATCH = 8, 2
"""Of FLUX.2's references: a token is 16 x 16 pixels."""
GAP = 8
MARK = (53, 208, 127)
QUALITY = 82
LINES = 56
"""How dark the lines between tokens are, of 255."""


def loaded(name: str) -> torch.Tensor:
    """A picture that templates bring, float [1, H, W, 3] in 0..1."""
    with Image.open(ROOT / "pictures" / f"{name.partition('.')[0]}.webp") as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float()[None] / 255


def drawn_tokens(shown: torch.Tensor, scale: float) -> Image.Image:
    """What the model is shown, enlarged, with thin lines between its tokens."""
    image = picture_of(shown[0])
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    lines = Image.new("L", image.size)
    draw = ImageDraw.Draw(lines)
    cell = DOWNSCALE * PATCH * scale
    for column in range(1, round(image.width / cell)):
        draw.line([(column * cell, 0), (column * cell, image.height)], LINES)
    for row in range(1, round(image.height / cell)):
        draw.line([(0, row * cell), (image.width, row * cell)], LINES)
    image.paste((0, 0, 0), mask=lines)
    return image


def drawn_region(photograph: torch.Tensor, box: tuple[int, int, int, int]) -> Image.Image:
    """A photograph, darkened but for a box (left, top, right, bottom), which is framed."""
    image = picture_of(photograph[0])
    dark = picture_of(photograph[0] * 0.45)
    dark.paste(image.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle(box, outline=MARK, width=3)
    return dark.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    page = Image.new("RGB", (sum(one.width + GAP for one in pictures) - GAP, HEIGHT), "white")
    left = 0
    for one in pictures:
        page.paste(one, (left, 0))
        left += one.width + GAP
    return page


def ways(prompt: Prompt) -> list[Prompt]:
    """The template with all of the product's reference seen everywhere; as it is; and with that reference in the positive prompt alone."""
    product = next(node for node, entry in prompt.items() if "show" in entry["inputs"])
    guider = next(entry["inputs"] for entry in prompt.values() if entry["class_type"] == "CFGGuider")
    if guider["negative"] != [product, 2]:
        raise ValueError(
            f"the guider of {WORKFLOW} takes its negative from {guider['negative']}: bring demo/reference_picture.py up to date"
        )
    everywhere, alone = (json.loads(json.dumps(prompt)) for _ in range(2))
    for name in ("show", "region"):
        del everywhere[product]["inputs"][name]
    negative = alone[product]["inputs"].pop("negative")
    next(entry for entry in alone.values() if entry["class_type"] == "CFGGuider")["inputs"]["negative"] = negative
    return [everywhere, prompt, alone]


def painted(server: Server, prompt: Prompt, seed: int) -> Image.Image:
    """What tiny-edit paints of the template."""
    for entry in prompt.values():
        if entry["class_type"] == "RandomNoise":
            entry["inputs"]["noise_seed"] = seed
    (saved,) = (node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    with Image.open(server.file_of(server.run(prompt).outputs[saved]["images"][0])) as picture:
        return picture.convert("RGB")


def paint(page: Path = PAINTED) -> None:
    """Paints each way with each seed, and puts them into rows below each other, the product's reference before them."""
    template = run.workflow(WORKFLOW)
    _, product = run.photographs(template)
    reference = Image.fromarray(edit_pictures.load(Path(product).stem))
    rows: list[Image.Image] = []
    with tempfile.TemporaryDirectory(prefix="maskprompt-") as folder, run.stage(Path(folder)) as server:
        run.add_pictures(server, template)
        for seed in SEEDS:
            found = [reference, *(painted(server, stand_ins.changed(way), seed) for way in ways(template))]
            rows.append(beside([one.resize((round(one.width * HEIGHT / one.height), HEIGHT), Image.Resampling.LANCZOS) for one in found]))
    whole = Image.new("RGB", (rows[0].width, len(rows) * (HEIGHT + GAP) - GAP), "white")
    for number, row in enumerate(rows):
        whole.paste(row, (0, number * (HEIGHT + GAP)))
    whole.save(page, quality=QUALITY)


def main() -> None:
    sys.path.insert(0, str(setup.get_comfyui()))
    load_pack()
    from maskprompt.conditioning import references
    from maskprompt.models.sam.model import load
    from maskprompt.nodes.segment import MaskPromptSAMMask

    prompt = run.workflow(WORKFLOW)
    asked = {entry["class_type"]: entry["inputs"] for entry in prompt.values()}
    photograph, product = (loaded(name) for name in run.photographs(prompt))
    click = asked["MaskPromptSAMMask"]["positive_coords"]
    found = MaskPromptSAMMask.execute(sam=load(str(setup.get_mobile_sam())), image=product, positive_coords=click)
    visible = torch.as_tensor(found.args[0]) > 0.5
    tokens = references.visible_tokens(visible, DOWNSCALE, PATCH)
    shown = references.shown(references.without_hidden(product, visible), tokens, DOWNSCALE, PATCH)
    scale = HEIGHT / product.shape[1]
    reference = picture_of(product[0])
    left, top, width, height = (asked["MaskPromptBoxMask"][side] for side in ("x", "y", "width", "height"))
    pictures = [
        reference.resize((round(reference.width * scale), HEIGHT), Image.Resampling.LANCZOS),
        drawn_tokens(shown, scale),
        drawn_region(photograph, (left, top, left + width, top + height)),
    ]
    beside(pictures).save(PAGE, quality=QUALITY)
    paint()


if __name__ == "__main__":
    main()
