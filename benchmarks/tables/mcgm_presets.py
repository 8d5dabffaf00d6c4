"""MCGM under the presets of Train Poseable Subjects, and what poses an object that is no handle, on the tiny model, by the judge.

The pictures, poses and noises are those of MCGM's table (`mcgm.py`), whose trainings, painted pictures and scores are shared. A preset is
measured with the node's defaults for all that it leaves open: 400 and 400 steps, batches of 1, the usual rate.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from demo import judge, tiny_model
from demo.painter import SAMPLER
from demo.subjects import Subject

from ..figures import Figure, mean, rate, size_of, write
from .mcgm import CFG, STEPS, Bench, Size, settings
from .mcgm_methods import MORE, PRESETS, WHOLE, WORDS, Method
from .mcgm_pictures import PICTURES, SIZE
from .mcgm_scores import Score, figures_of, wins

SHEET = tiny_model.ROOT / "demo" / "output" / "mcgm-presets-table.png"
ALONE = 1
"""Plain words are measured in pictures of so many subjects: there an object of any colour is the word's."""
COMPARED = (PICTURES[0], PICTURES[1], PICTURES[3], PICTURES[4])
"""What brings posing is measured on these, two of one subject and two of two."""


def tables(bench: Bench) -> list[Figure]:
    """All figures: the presets, what brings posing, then plain words."""
    chosen = PICTURES[: bench.size.pictures]
    fewer = tuple(picture for picture in COMPARED if picture in chosen)

    @functools.cache
    def gathered(method: Method, among: tuple[tuple[Subject, ...], ...] = chosen) -> list[Score]:
        found = [score for picture in among for seed in range(bench.size.seeds) for score in bench.scores(picture, method, seed)]
        print(f"{method.name}: {np.mean([value for score in found for value in score.overlap]):.3f}", flush=True)
        return found

    figures: list[Figure] = []
    for shaped, blank in zip(PRESETS[::2], PRESETS[1::2], strict=True):
        figures.append(mean(f"{shaped.name} against blank ones: pairs won", wins(gathered(shaped), gathered(blank))))
    usual, *others = PRESETS[::2]
    for other in others:
        figures.append(mean(f"{usual.name} against {other.name}: pairs won", wins(gathered(usual), gathered(other))))
    for method in PRESETS:
        figures += figures_of(method.name, gathered(method))
    for method in (*PRESETS[:4], *MORE):
        figures += figures_of(f"{len(COMPARED)} pictures, {method.name}", gathered(method, fewer))
    alone = [picture for picture in chosen if len(picture) == ALONE]
    for method in WORDS:
        pages = [(picture, seed) for picture in alone for seed in range(bench.size.seeds)]
        overlaps = [score.overlap[0] for picture, seed in pages for score in bench.scores(picture, method, seed)]
        found = [both for picture, seed in pages for both in found_in(bench, picture, method, seed)]
        print(f"{method.name}: {np.mean(overlaps):.3f}", flush=True)
        figures.append(mean(f"{method.name}: overlap with the mask", overlaps))
        figures.append(rate(f"{method.name}: an object of its shape is there", [shape for shape, _ in found]))
        figures.append(rate(f"{method.name}: an object in the learned subject's two colours is there", [colours for _, colours in found]))
    return figures


def found_in(bench: Bench, picture: tuple[Subject, ...], method: Method, seed: int) -> list[tuple[bool, bool]]:
    """Says of each picture whether the judge finds an object of the first subject's shape, and one in its two main colours."""
    subject = picture[0]
    return [
        (any(one.shape == subject.shape for one in verdict.objects), any(one.painted(*subject.colours) for one in verdict.objects))
        for verdict in judge.look(bench.eye, bench.painted(picture, method, seed))
    ]


def sheet(bench: Bench) -> None:
    """For a human: of each picture six poses, and what each method painted with the first noise."""
    from demo.contact_sheet import picture_of, save_sheet

    rows = []
    for picture in PICTURES[: bench.size.pictures]:
        marked = [("mask", picture_of(np.repeat(one.masks.max(0)[..., None], 3, 2))) for one in bench.poses(picture)[:6]]
        rows.append((", ".join(one.name for one in picture), marked))
        more = MORE[::2] if picture in COMPARED else ()
        for method in (*PRESETS[::2], *more, *(WORDS if len(picture) == ALONE else ())):
            shown = zip(bench.scores(picture, method, 0), bench.painted(picture, method, 0), strict=True)
            rows.append((method.name, [(f"{np.mean(score.overlap):.2f}", picture_of(one)) for score, one in shown][:6]))
    save_sheet(SHEET, rows, 160)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    notes = {
        WHOLE.name: settings(bench.options(PICTURES[0], WHOLE)),
        "presets": f"400 + 400 steps, batches of 1, pictures of {SIZE} px; recommended with a LoRA, paper with all weights; usual rates",
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; 'a photo of (the handles, or a and the plain word) on (a ground)'",
        "overlap": "as in the table mcgm; of plain words in pictures of one subject only, with the cells of any object",
        "checkpoint": tiny_model.CHECKPOINT.name,
    }
    write("mcgm-presets", command, figures, notes, bench.size == usual)
