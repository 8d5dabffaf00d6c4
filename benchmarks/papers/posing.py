"""How well MCGM's pictures fit their masks, by SAM in place of the paper's study, and how alike their things are to those learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import Scene
from .scoring import Kept, Models, Scores, by_case, image_of, painted_of


def posed(cases: Sequence[tuple[Scene, int, str]], folder: Path, models: Models, kept: Kept, tell: Callable[[int, int], None]) -> Scores:
    """Scores of MCGM's pictures, a value for each scene, pose and text; the paper itself asked people.

    CLIP-T of the whole; CLIP-I and DINO of what is painted where the masks are against the things in the picture that was learned; IoU of
    each mask with what SAM finds in its box.
    """

    def measure(scene: Scene, pose: int, text: str, file: Path) -> dict[str, float]:
        from maskprompt.images import foreground

        picture, learned = image_of(file), image_of(scene.picture)
        marks = [torch.from_numpy(one.mask()).float() for one in scene.poses[pose]]
        found: dict[str, float] = {}
        if models.clip is not None and models.clip.reads_text:
            found["CLIP-T"] = float((models.clip.pictures([picture]) @ models.clip.texts([text]).T).item())
        cuts = [foreground.cut_out(picture, mask, foreground.KEEP) for mask in marks]
        own = [foreground.cut_out(learned, torch.from_numpy(one.mask()).float(), foreground.KEEP) for one in scene.things]
        for score, encoder in (("CLIP-I", models.clip), ("DINO", models.dino)):
            if encoder is not None:
                found[score] = float((encoder.pictures(cuts) * encoder.pictures(own)).sum(1).mean())
        if models.sam is not None:
            found["IoU"] = sum(overlap(models.sam, picture, mask) for mask in marks) / len(marks)
        return found

    def each() -> Iterator[tuple[list[Path], Callable[[Path], dict[str, float]]]]:
        for scene, pose, text in cases:
            files = painted_of(folder, scene.picture.stem, f"pose{pose}")
            yield files, lambda file, scene=scene, pose=pose, text=text: measure(scene, pose, text, file)

    return by_case(each(), len(cases), kept, tell)


def overlap(sam: Any, picture: Tensor, mask: Tensor) -> float:
    """Intersection over union of a mask [h, w] and the best of what SAM finds in its box of the picture [H, W, 3]."""
    from maskprompt.images import masks
    from maskprompt.models.sam.model import Prompt

    height, width = picture.shape[:2]
    wanted = masks.resize(mask[None], height, width)[0] > 0.5
    answer = sam.ask(picture, Prompt(box=masks.bounding_box(wanted.float())))
    best = int(answer.scores.argmax())
    seen = sam.full_size(answer.logits[best : best + 1], height, width)[0] > 0
    return float((seen & wanted).sum() / (seen | wanted).sum().clamp(min=1))


def preferred(ours: Scores, others: Scores) -> list[float]:
    """Case by case 100 where our pictures fit their masks better than the others', 50 where both do as well, else 0: the study's question,
    asked of SAM in place of people."""
    return [50.0 if one == other else 100.0 * (one > other) for one, other in zip(ours["IoU"], others["IoU"], strict=True)]
