"""What a training keeps on disk, so that it can go on after an interrupt, and what tells one training from another."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, in its shape."""
MANY, FEW = 4096, 64
"""How many numbers of a tensor a signature looks at, about."""
ROOM = 2 * 1024**3
"""Bytes that the states of finished trainings may take beside the newest one."""


@dataclass
class Learning:
    """Everything that a step changes: what learns, its moving average (empty: none), the optimizer, steps done and their losses."""

    parameters: dict[str, torch.nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int
    losses: list[float]

    def content(self) -> dict[str, Any]:
        """As tensors, numbers and lists, which `torch.load` takes with `weights_only`."""
        return {
            "step": self.step,
            "losses": self.losses,
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict()["state"],
        }

    @torch.no_grad()
    def take(self, content: dict[str, Any]) -> None:
        """The reverse of `content`. KeyError, ValueError or RuntimeError, and nothing changed, if it is of something else, or damaged."""
        for own, kept in ((self.parameters, content["parameters"]), (self.average, content["average"])):
            if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in kept.items()}:
                raise ValueError("it holds other weights")
            if not all(bool(torch.isfinite(value).all()) for value in kept.values()):
                raise ValueError("it holds weights that are no numbers (NaN)")
        step = int(content["step"])
        self._check_optimizer(content["optimizer"], step)
        losses = [float(loss) for loss in content["losses"]]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": content["optimizer"], "param_groups": groups})
        for own, kept in ((self.parameters, content["parameters"]), (self.average, content["average"])):
            for name, value in own.items():
                value.copy_(kept[name])
        self.step = step
        self.losses = losses

    def _check_optimizer(self, state: dict[Any, Any], step: int) -> None:
        """ValueError unless this is a state of AdamW for these parameters: what is wrong would only show in a step, again in every run."""
        values = [value for group in self.optimizer.param_groups for value in group["params"]]
        if not state.keys() <= set(range(len(values))) or (step > 0 and not state):
            raise ValueError("its optimizer is of something else")
        for number, moments in state.items():
            if moments.keys() != {"step", *MOMENTS} or not all(isinstance(value, Tensor) for value in moments.values()):
                raise ValueError("its optimizer is not AdamW's")
            if any(moments[name].shape != values[number].shape for name in MOMENTS):
                raise ValueError("its optimizer is of other weights")
            if moments["step"].numel() != 1 or not all(bool(torch.isfinite(value).all()) for value in moments.values()):
                raise ValueError("its optimizer holds what is no number (NaN)")


@dataclass(frozen=True)
class StateFile:
    """Where a training keeps its state: `path`, written every `every` steps and whenever it is interrupted; with `last` at its end too.

    `fingerprint` says what is trained on what; a file of another training is not resumed. `again`: one that came to its end after more
    steps than are asked for is begun again, as its outcome was handed on. `anew`: what the file holds is not looked at, only written over.
    `widget` is what an artist sets its steps with.
    """

    path: Path
    fingerprint: str
    every: int = 100
    last: bool = False
    again: bool = False
    anew: bool = False
    widget: str = "steps"

    def steps(self) -> int:
        """How many steps of this training the file holds: 0 where there is none, none that can be read, or none that counts."""
        if self.anew:
            return 0
        try:
            kept = _opened(self.path)
            return int(kept["step"]) if kept["fingerprint"] == self.fingerprint else 0
        except Exception:  # torch.load raises many kinds; `resume` says what is wrong
            return 0

    def resume(self, learning: Learning, steps: int) -> None:
        """Puts the file's state into place, if there is one and it is this training's; else a warning.

        ValueError if it is further than `steps` and may not be begun `again`: nothing that was learned is thrown away.
        """
        if self.anew or not self.path.is_file():
            return
        try:
            kept: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            if kept["fingerprint"] != self.fingerprint:
                raise ValueError("it is of another training")
            further = int(kept["step"]) > steps
            finished = self.again and bool(kept.get("finished", False))
            if not further:
                learning.take(kept)
        except Exception as error:  # a damaged file is no reason not to train
            log.warning("The training state %s cannot be used: %s. Training starts afresh.", self.path.name, error)
            return
        if further and finished:
            log.info("A longer training of %d steps is done; this one of %d begins again.", kept["step"], steps)
            return
        if further:
            raise ValueError(
                f"this training has done {kept['step']} steps already, and {steps} were asked for. Set {self.widget} to {kept['step']} to "
                "get what was learned so far, or switch `resume` off to begin again."
            )
        log.info("Training goes on from step %d.", learning.step)

    def write(self, learning: Learning, finished: bool = False) -> None:
        """Writes beside the file first, so that a full disk or a power cut spoils nothing. A failure is a warning: training goes on.

        Weights that are no numbers are not written; what was kept before stays.
        """
        partial = self._partial
        try:
            if not all(bool(torch.isfinite(value).all()) for value in learning.parameters.values()):
                log.warning("The training state was not written: weights became no numbers (NaN). What was kept before stays.")
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"fingerprint": self.fingerprint, "finished": finished, **learning.content()}, partial)
            partial.replace(self.path)
        except Exception as error:  # torch reports a full disk as RuntimeError
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            log.warning(
                "The training state could not be written to %s: %s. Is the disk full? An interrupt now would lose it.", self.path, error
            )

    @property
    def _partial(self) -> Path:
        """Where the file is written first."""
        return self.path.with_suffix(".partial")

    def remove(self) -> None:
        """For a training that is done, or begins again."""
        try:
            self.path.unlink(missing_ok=True)
            self._partial.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The training state %s could not be removed: %s.", self.path, error)


def room(needed: int, free: int | None) -> str:
    """Says what a training's state takes of the disk, and whether that is there; both in bytes."""
    takes = f"While it trains, its state takes up to {_size(needed)} of disk"
    if free is None:
        return f"{takes}."
    if free < needed:
        return f"{takes}, but {_size(free)} are free: an interrupt may lose what was learned. Free some space."
    return f"{takes}; {_size(free)} are free."


def _size(count: int) -> str:
    """Gives bytes in megabytes or gigabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def files_of(path: Path, fingerprints: Sequence[str], every: int = 100, widgets: Sequence[str] = ()) -> tuple[StateFile, ...]:
    """Where the phases of a training keep their states: at `path` if there is one, else beside it.

    Trainings that differ in a later phase alone share the first's file, if `path` is the first fingerprint's own, and have one each of the
    later ones. Every file is written at its phase's end too: what comes after builds on it, and the outcome is not saved yet. `widgets` are
    what an artist sets each phase's steps with.
    """
    named_steps = widgets or ["steps"] * len(fingerprints)
    if len(fingerprints) == 1:
        return (StateFile(path, fingerprints[0], every, last=True, again=True),)
    later = [f"{number}-{_short(one)}" for number, one in enumerate(fingerprints[1:], 2)]
    paths = [path.with_name(f"{path.stem}-{end}{path.suffix}") for end in ("1", *later)]
    phases = zip(paths, fingerprints, named_steps, strict=True)
    return tuple(StateFile(own, one, every, last=True, widget=widget) for own, one, widget in phases)


def begun(path: Path, fingerprints: Sequence[str]) -> bool:
    """Says whether the last phase of a training that keeps its states at `path`, or beside it, has done a step."""
    return files_of(path, fingerprints)[-1].steps() > 0


def named(folder: Path, method: str, fingerprint: str) -> Path:
    """The path of a training's state in a folder that many share."""
    return folder / f"{method}-{_short(fingerprint)}.pt"


def _short(fingerprint: str) -> str:
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:12]


def discard(states: Sequence[StateFile]) -> None:
    """Removes the states of a training whose outcome is saved, or that begins again.

    An earlier phase's stays while a later phase of another training, which was interrupted, builds on it.
    """
    *earlier, last = states
    last.remove()
    for number, state in reversed(list(enumerate(earlier, 1))):
        start = state.path.stem.removesuffix(str(number))
        if not any(state.path.parent.glob(f"{start}{number + 1}-*{state.path.suffix}")):
            state.remove()


def prune(states: Sequence[StateFile], method: str) -> None:
    """Removes the oldest states of finished trainings of a method that take more than `ROOM` together. These, just done, stay.

    So the same Run, and one with more steps, find what was learned, and no disk fills with it. What was interrupted is never removed.
    """
    own = {state.path for state in states}
    folder = next(iter(own)).parent
    taken = 0
    try:
        for path in sorted(folder.glob(f"{method}-*.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
            if path in own or not _is_finished(path):
                continue
            taken += path.stat().st_size
            if taken > ROOM:
                path.unlink()
                log.info("The state of an earlier training, %s, was removed to make room.", path.name)
    except OSError as error:
        log.warning("Earlier training states in %s could not be removed: %s.", folder, error)


def _opened(path: Path) -> dict[str, Any]:
    """A state whose tensors stay on disk until they are looked at."""
    kept: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return kept


def _is_finished(path: Path) -> bool:
    try:
        return bool(_opened(path).get("finished", False))
    except Exception:  # torch.load raises many kinds
        return False


def signature(model: Any, texts: Sequence[Any] = ()) -> str:
    """The same for the same weights, noise levels, LoRAs and conditionings: 16 hexadecimal digits. Loaded or not makes no difference.

    Of every weight some numbers are looked at, of the first and the last layer many.
    """
    digest = hashlib.sha256()
    for key, patches in sorted(model.get_key_patches("diffusion_model.").items()):
        digest.update(key.encode())
        closely = key.startswith(("diffusion_model.input_blocks.0.0.", "diffusion_model.out."))
        _add(digest, patches[0][0], MANY if closely else FEW)  # the weight as it is without LoRAs
    sampling = model.get_model_object("model_sampling")
    digest.update(" ".join(kind.__name__ for kind in type(sampling).__mro__).encode())
    _add(digest, getattr(sampling, "sigmas", None))
    for key, patches in sorted((str(key), patches) for key, patches in model.patches.items()):
        digest.update(key.encode())
        for strength, patch, of_weight, *_ in patches:
            digest.update(f"{strength} {of_weight}".encode())
            _add(digest, getattr(patch, "weights", patch))
    for text in texts:
        for entry, options in text:
            _add(digest, (entry, options.get("pooled_output")))
    return digest.hexdigest()[:16]


def signature_of(network: torch.nn.Module) -> str:
    """The same for a network of the same weights: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any, count: int = MANY) -> None:
    """About `count` numbers of a tensor, or of each in a tuple."""
    if isinstance(value, Tensor):
        some = value.detach().flatten()[:: max(1, value.numel() // count)]
        digest.update(some.float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, (tuple, list)):
        for part in value:
            _add(digest, part, count)
