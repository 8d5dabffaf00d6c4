"""What a viewer, a vision-language model, saw in the pictures of the table `tiny-edit`, which it was shown without their sentences.

`benchmarks/viewed/tiny-edit.json` has, for the weights whose pictures they were: of each picture of two things the names of what was seen
("" for what nobody could name); of each box whether the thing lies in it, and what it is; of each subject which of the twelve it is most
like. What things look like, and their names, was shown on a sheet of their cut-outs. Where the weights are others there is no viewer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.tiny_edit import things

from ..figures import Figure, rate

FILE = Path(__file__).resolve().parent.parent / "viewed" / "tiny-edit.json"
BY = ", by a viewer who was not told what was asked"


@dataclass(frozen=True)
class Viewer:
    """`boxes` (is it inside?), `named` (what is in the box?) and `subjects` by how many references are guided, "0" or "1"."""

    pairs: list[list[str]]
    boxes: dict[str, list[bool]]
    named: dict[str, list[str]]
    subjects: dict[str, list[str]]

    @classmethod
    def load(cls, weights: str, file: Path = FILE) -> Viewer | None:
        """Gives the viewer of these weights' pictures, None if nobody looked at them."""
        if not file.is_file():
            return None
        said = json.loads(file.read_text("utf-8"))
        return cls(said["pairs"], said["boxes"], said["named"], said["subjects"]) if said["weights"] == weights else None

    def of_pairs(self, name: str, asked: Sequence[tuple[str, str]], verdicts: Sequence[Sequence[bool]]) -> list[Figure]:
        """Gives the viewer's row of two things, and how often judges say the same of a picture."""
        right = [set(seen) == {things.words_of(code) for code in both} for seen, both in zip(self.pairs, asked, strict=True)]
        return rows(name, right, verdicts)

    def of_boxes(self, name: str, guided: int, verdicts: Sequence[Sequence[bool]]) -> list[Figure]:
        """The same of boxes."""
        return rows(name, self.boxes[str(guided)], verdicts)

    def of_named(self, name: str, guided: int, codes: Sequence[str], verdicts: Sequence[Sequence[bool]]) -> list[Figure]:
        """The same of what is in the boxes."""
        right = [seen == things.words_of(code) for seen, code in zip(self.named[str(guided)], codes, strict=True)]
        return rows(name, right, verdicts)

    def of_subjects(self, name: str, guided: int, codes: Sequence[str], verdicts: Sequence[Sequence[bool]]) -> list[Figure]:
        """The same of subjects."""
        right = [seen == things.words_of(code) for seen, code in zip(self.subjects[str(guided)], codes, strict=True)]
        return rows(name, right, verdicts)


def rows(name: str, right: Sequence[bool], verdicts: Sequence[Sequence[bool]]) -> list[Figure]:
    """The viewer's own row, then for the judge and the matching one the pictures of which they say what the viewer says."""
    judges = ("the judge", "the matching judge")
    same = [[own == other for own, other in zip(right, verdict, strict=True)] for verdict in verdicts]
    agreed = [rate(f"{name}: {judge} agrees with the viewer", one) for judge, one in zip(judges, same, strict=False)]
    return [rate(f"{name}{BY}", right), *agreed]
