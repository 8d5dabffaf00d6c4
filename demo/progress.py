"""How far a workflow of the demo is, printed while it runs."""

from __future__ import annotations

import sys

from .server import Step


class Progress:
    """Prints how far a workflow is: one line that renews itself in a terminal, one line a node elsewhere."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        self.last = ""
        self.terminal = sys.stdout.isatty()

    def __call__(self, step: Step) -> None:
        count = f" {step.value:.0f}/{step.maximum:.0f}" if step.maximum > 1 else ""
        if self.terminal:
            print(f"\r{self.workflow}: {step.name}{count}".ljust(100), end="", flush=True)
        elif step.name != self.last or 1 < step.maximum == step.value:
            print(f"{self.workflow}: {step.name}{count}", flush=True)
        self.last = step.name
