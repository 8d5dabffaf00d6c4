"""What an interrupt is to a training: noted, and obeyed after the step or the file that is being written."""

from __future__ import annotations

import signal
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The training stopped after a step because signal `number` asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Inside `with`, Ctrl-C, a hang-up and a request to end are noted in `number`, so that no step and no file is cut in two."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            which = getattr(signal, name, None)
            if which is not None and signal.getsignal(which) is not signal.SIG_IGN:
                self._before[which] = signal.signal(which, self._note)

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, _frame: object) -> None:
        # A launcher sends its processes the same signal once more: only who runs alone means it when it comes twice.
        if self.number and self.alone:
            raise KeyboardInterrupt
        self.number = number
