"""The stages of tiny-edit's training: how large its pictures are, how many samples a step has, and until when."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SHARDS = 4
STEPS_PER_SHARD = 40
"""A stage of 128 pixels begins with the first shards, and one more is made (or taken) after every so many steps: at once on a machine that
has them. At 256 pixels, where a shard takes four times as long, after four times as many. `--shard-steps` sets another pace."""


@dataclass(frozen=True)
class Stage:
    """Pictures of `size` pixels, `batch` samples a step, until step `until` or minute `minute` (neither: for ever)."""

    size: int
    batch: int
    until: int | None = None
    minute: float | None = None

    @property
    def spacing(self) -> float:
        """Gives the positions between neighbouring tokens: pictures of every size cover those of 256 pixels."""
        return 256 / self.size

    def steps_per_shard(self, at_128: int = STEPS_PER_SHARD) -> int:
        """Says after how many steps one more shard is due, when it is after `at_128` steps in a stage of 128 pixels."""
        return at_128 * max(1, self.size // 128) ** 2

    def ended(self, step: int, minute: float) -> bool:
        """Says whether the stage is over at this step and minute."""
        return minute >= self.minute if self.minute is not None else self.until is not None and step >= self.until

    def samples(self, kind: int) -> int:
        """Says how many samples a step with so many references has."""
        return max(1, round(self.batch / (1, 2, 3)[kind]))


def stages_of(text: str) -> list[Stage]:
    """Reads "128:24:60000,256:8" or "128:384:2.5m,256:128" as stages."""
    found: list[Stage] = []
    for part in text.split(","):
        size, batch, *ends = part.split(":")
        if int(size) % 16:
            raise ValueError(f"a stage's pictures have {size} pixels; a multiple of 16 would do, as 128 or 256")
        minute = float(ends[0][:-1]) if ends and ends[0].endswith("m") else None
        until = int(ends[0]) if ends and minute is None else None
        found.append(Stage(int(size), int(batch), until, minute))
    return found
