"""MCGM's training (Skaik et al., sections 3 and 4): subjects of one picture learned as handles, together with an encoder of their masks.

The first phase trains the handles' vectors and the mask encoder, the second the UNet and the text encoder as well. Without mask tokens it
is Break-A-Scene (Avrahami et al.), on which the paper builds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.chain import Scope
from ...attention.grid import to_grid
from ...attention.maps import Readings
from ...attention.probe import Group, Probe, layers_near
from ...conditioning import mask_tokens
from ...models.mcgm import mask_encoder
from ..engine import loop
from ..engine.checkpoint import StateFile
from ..engine.learner import Learner
from ..engine.noise import Schedule
from ..engine.preview import paint
from ..engine.text_learner import PLACEHOLDER
from . import equations
from .examples import Examples
from .options import Options


@dataclass(frozen=True)
class Prior:
    """Ordinary pictures that the untrained model painted, latents [E, 4, h, w] as a VAE gives them, and their prompt."""

    latents: Tensor
    prompt: str


class Subjects:
    """What learns beside the UNet: the text encoder with the handles, and the mask encoder (None: Break-A-Scene).

    The learner must be loaded, with this text encoder.
    """

    def __init__(self, learner: Learner, options: Options) -> None:
        if learner.text is None:
            raise ValueError("the learner has no text encoder")
        self.learner = learner
        self.text = learner.text
        self.options = options
        width = sum(rows.shape[1] for rows in self.text.vectors.values())
        bound = len(options.words) * (options.mode == "bound")
        self.encoder = mask_encoder.fresh(width, bound, options.seed).to(learner.device) if options.masks else None
        for rows in self.text.vectors.values():
            rows.data = rows.data.to(learner.device)

    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        """What learns in phase 1 or 2, by name."""
        own = dict(self.text.handles)
        if self.encoder is not None:
            own |= {f"mask_encoder.{name}": value for name, value in self.encoder.named_parameters()}
        return own if phase == 1 else own | self.learner.parameters | self.text.adapted.parameters

    def prompts(self, orders: Sequence[tuple[int, ...]], cells: Tensor) -> Prompts:
        """A prompt for each picture, which names its subjects in this order (equally many in each), with a token for each of their masks.

        `cells` [B, n, 64, 64] are the masks in the same order.
        """
        encoded = {order: self._encoded(order) for order in dict.fromkeys(orders)}
        text = torch.cat([encoded[order][0] for order in orders])
        options = {
            name: torch.cat([encoded[order][1][name] for order in orders]) if isinstance(value, Tensor) else value
            for name, value in encoded[orders[0]][1].items()
        }
        words = text.shape[1]
        count = len(orders[0])
        columns: list[tuple[Group, ...]] = [tuple((column,) for column in encoded[order][2]) for order in orders]
        if self.encoder is not None:
            owners = [number for order in orders for number in order]
            tokens = self.encoder(cells.flatten(0, 1), owners).unflatten(0, (len(orders), count))
            text = mask_tokens.append(text, tokens, words)
            columns = [(*own, *((words + place,) for place in range(count))) for own in columns]
        return Prompts([[text, options]], tuple(columns), text.shape[1])

    def without_subjects(self, prompt: str, masks: int, count: int = 1) -> list[list[Any]]:
        """CONDITIONING of a prompt that names no subject, `count` times, with as many zero tokens as others have mask tokens."""
        text, options = self.text.text(prompt)
        if self.encoder is not None:
            text = mask_tokens.append(text, text.new_zeros(masks, text.shape[2]), text.shape[1])
        return [[text.expand(count, -1, -1), {name: _repeated(value, count) for name, value in options.items()}]]

    def _encoded(self, order: tuple[int, ...]) -> tuple[Tensor, dict[str, Any], list[int]]:
        tokens, columns = self.text.tokens(self.options.prompt([PLACEHOLDER] * len(order)), order)
        text, options = self.text.encode(tokens)
        return text, options, columns


@dataclass(frozen=True)
class Prompts:
    """CONDITIONING of a batch; for each picture the columns of its handles, then of its mask tokens; and the number of all columns."""

    conditioning: list[list[Any]]
    columns: tuple[tuple[Group, ...], ...]
    length: int


class Loss:
    """Equation 4 on batches of examples, and prior preservation where there is a prior."""

    def __init__(self, subjects: Subjects, examples: Sequence[Examples], options: Options, prior: Prior | None = None) -> None:
        self.learner = subjects.learner
        self.subjects = subjects
        self.examples = examples
        self.options = options
        self.prior = prior
        self.schedule = Schedule(self.learner.patcher.get_model_object("model_sampling"))
        self.latent = (int(examples[0].latents.shape[2]), int(examples[0].latents.shape[3]))
        self.layers = layers_near(self.learner.network.diffusion_model, self.latent)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of a batch drawn with `generator`: of pictures that show equally many subjects, named in any order."""
        shown = self.examples[int(torch.randint(len(self.examples), (1,), generator=generator))]
        chosen = torch.randint(len(shown.latents), (self.options.batch,), generator=generator)
        places = torch.stack([torch.randperm(shown.subjects.shape[1], generator=generator) for _ in chosen])
        loss = self.of(shown, chosen, places, *self._noise(shown.latents, len(chosen), generator))
        return loss if self.prior is None else loss + self.options.prior_weight * self._of_prior(self.prior, generator)

    def of(self, shown: Examples, chosen: Tensor, places: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of some examples [B] whose subjects are named in the order `places` [B, n], under noise [B, 4, h, w] of the levels [B]."""
        rows = list(zip(chosen, places, strict=True))
        cells, masks = (torch.stack([part[row][own] for row, own in rows]) for part in (shown.cells, shown.masks))
        orders = [tuple(shown.subjects[row][own].tolist()) for row, own in rows]
        prompts = self.subjects.prompts(orders, cells)
        readings = Readings()
        probe = Probe(prompts.columns, prompts.length, readings, Scope(self.layers))
        error = self._error(prompts.conditioning, shown.latents[chosen], noise, sigmas, probe)
        maps = readings.mean()
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        window = (0, 0, *self.latent)
        wanted = torch.stack([torch.stack([to_grid(mask, self.latent, window, grid) for mask in row]) for row in masks])
        attention = equations.attention(maps, wanted.to(maps.device), self.options.mask_attention_weight)
        reconstruction = equations.masked(error, masks.amax(1, keepdim=True).to(error.device), self.options.background_weight)
        return equations.total(reconstruction, attention, self.options.attention_weight)

    def _of_prior(self, prior: Prior, generator: torch.Generator) -> Tensor:
        """Break-A-Scene's prior preservation: the plain error on ordinary pictures, with no mask's token."""
        chosen = torch.randint(len(prior.latents), (self.options.batch,), generator=generator)
        conditioning = self.subjects.without_subjects(prior.prompt, 1, len(chosen))
        return (self._error(conditioning, prior.latents[chosen], *self._noise(prior.latents, len(chosen), generator)) ** 2).mean()

    def _error(self, conditioning: Any, latents: Tensor, noise: Tensor, sigmas: Tensor, *patches: Any) -> Tensor:
        """What the model's output is too much, [B, 4, h, w]."""
        device = self.learner.device
        scaled = self.learner.network.process_latent_in(latents.to(device))
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        conditions = self.learner.conditions(conditioning, scaled)
        denoised = self.learner.denoised(self.schedule.noisy(scaled, noise, sigmas), sigmas, conditions, patches)
        return self.schedule.error(denoised.float(), scaled, sigmas)

    def _noise(self, latents: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn((count, *latents.shape[1:]), generator=generator), self.schedule.draw(count, generator)


def train(
    subjects: Subjects,
    examples: Sequence[Examples],
    options: Options,
    prior: Prior | None = None,
    states: tuple[StateFile, StateFile] | None = None,
    on_step: Callable[[loop.Progress], None] | None = None,
) -> loop.Progress:
    """Both phases. The state files stay: what was learned is to be saved before they go."""
    losses: list[float] = []
    with torch.enable_grad():
        loss = Loss(subjects, examples, options, prior)
        for phase in (1, 2):
            learning = subjects.parameters(phase)
            before = list(losses)
            for name, value in subjects.parameters(2).items():
                value.requires_grad_(name in learning)

            def after(progress: loop.Progress, before: list[float] = before) -> None:
                if on_step is not None:
                    on_step(loop.Progress(len(before) + progress.step, before + progress.losses))

            settings = options.settings(phase, subjects.learner.width)
            losses += loop.run(learning, loss, settings, states and states[phase - 1], after).losses
    return loop.Progress(len(losses), losses)


def state_files(path: Path, fingerprints: Sequence[str]) -> tuple[StateFile, StateFile]:
    """Where the two phases keep their states, beside `path`, which is to be the first fingerprint's own.

    Trainings that differ in the second phase alone share the first's file, and have one each of the second. The first's is written at its
    end too: the second builds on it.
    """
    own = hashlib.sha256(fingerprints[1].encode()).hexdigest()[:12]
    first, second = (path.with_name(f"{path.stem}-{end}{path.suffix}") for end in ("1", f"2-{own}"))
    return StateFile(first, fingerprints[0], last=True), StateFile(second, fingerprints[1], last=True)


def remove_states(states: tuple[StateFile, StateFile]) -> None:
    """Of a training whose outcome is saved. The first phase's stays while another training that was interrupted builds on it."""
    first, second = states
    second.remove()
    if not any(first.path.parent.glob(f"{first.path.stem.removesuffix('1')}2-*{first.path.suffix}")):
        first.remove()


@torch.no_grad()
def preview(subjects: Subjects, whole: Examples, vae: Any) -> Tensor:
    """Each subject by itself where it stands in the picture, painted by what was learned so far, side by side: [1, H, N W, 3].

    `whole` is the picture with all subjects. The learner goes on as if nothing had been.
    """
    learner = subjects.learner
    count = whole.subjects.shape[1]
    try:
        cells = whole.cells[0][whole.subjects[0].argsort()][:, None]
        positive = subjects.prompts([(number,) for number in range(count)], cells).conditioning
        negative = subjects.without_subjects("", 1, count)
        latents = paint(learner, positive, negative, torch.zeros_like(whole.latents[:1]).repeat(count, 1, 1, 1), {})
        return torch.cat(list(vae.decode(latents)), 1)[None]
    finally:
        learner.load()


def _repeated(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value
