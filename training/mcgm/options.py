"""What MCGM's training is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...models.mcgm.mask_encoder import Mode
from ..engine import loop
from ..engine import options as engine
from ..engine.options import Option, option, written
from ..engine.trainable_weights import Method
from .scene import Background, Scene

USUAL_RATE: dict[str, float] = {"lora": 1e-4, "full": 2e-6}
"""Of the second phase: the published rate for all weights, and the usual one for a LoRA, for a UNet of `USUAL_WIDTH` channels (a narrower
one takes more, as `dreamcom.options.USUAL_RATE` says)."""
USUAL_WIDTH = 320
OWN = ("handles.", "mask_encoder.")
LATE = 0.2
"""What the first phase trains goes on at this part of its rate beside a LoRA; in `full` everything has one rate, as in the paper."""
BETAS = (0.9, 0.99)
DECAY = 1e-8
"""Of the paper's Adam. So small a decay is the same in Adam and AdamW, to far less than a step's rounding."""
PLAIN = " on a plain background"
"""What the prompt says of a plain background that is learned too, so that it does not become part of the subject."""
MASK_TOKENS = Option(
    "How masks pose the subjects later. bound: each mask's token also tells whose mask it is. paper: only its shape does. off: "
    "masks pose nothing, words alone paint the subjects: Break-A-Scene.",
    choices=("bound", "paper", "off"),
    advanced=True,
)
"""`masks` and `mode` in one, as node and command line ask for them."""
WIDGETS = "widgets"
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {
        "background": "plain", "move": True, "masks": True, "mode": "bound", "attention_weight": 0.3, "mask_attention_weight": 3.0,
        "background_weight": 0.3, "prior_weight": 0.0,
    },
    "paper": {
        "background": "plain", "move": False, "masks": True, "mode": "paper", "attention_weight": 0.01, "mask_attention_weight": 0.3,
        "background_weight": 0.0, "prior_weight": 0.0, "average": 0.0, "handle_rate": 5e-4, "steps": 400, "weight_steps": 400,
    },
}  # fmt: skip
"""How it is learned, by name; what a card holds (method, rank, batch, size) is left as it is. "recommended" are the defaults."""
PRESET = Option(
    "How it is learned. widgets: as the inputs above say. recommended: with this node's own defaults instead. paper: with the published "
    "weights of the losses, pictures and steps instead. Method, rank, batch and size stay yours.",
    choices=(WIDGETS, *PRESETS),
    advanced=True,
)


@dataclass(frozen=True)
class Options:
    """What the artist sets. `words`: for each subject the plain word that its handle begins as.

    `steps` and `weight_steps` are of the first and the second phase. `rate` None is the method's usual one in the second; `handle_rate`
    is the first's. `method` auto is settled before anything is trained. `masks` off trains without mask tokens: Break-A-Scene.
    `attention_weight` and `mask_attention_weight` are the paper's two lambdas. There they are 0.01 and 0.3, and the mask encoder never
    learned; with them masks pose nothing after so few steps. `background_weight` 0 is the paper's (equation 1), where subjects spread
    beyond their masks.
    """

    words: tuple[str, ...]
    steps: int = engine.steps(
        400, "How long names and masks are learned, before the model itself learns (first phase). The paper takes 400 steps.", lowest=0
    )
    weight_steps: int = engine.steps(
        400,
        "How closely the subjects are learned: steps of the second phase, in which the model and its text encoder learn as "
        "well. 400 in the paper.",
        lowest=0,
    )
    handle_rate: float = 5e-4
    rate: float | None = engine.rate(
        None,
        "How fast the second phase learns: too high spoils the pictures, too low leaves the subjects unlearned. 0 takes the "
        "usual one: 0.0001 for lora, the paper's 0.000002 for full (for a model of SD 1.5's or SDXL's width; more for a "
        "narrower one).",
    )
    method: Method | Literal["auto"] = engine.method(
        "lora",
        "What learns the look in the second phase, and how large the file becomes. lora: a small file beside the checkpoint. "
        "full: all weights (the paper): about 20 GB for SD 1.5. auto: full where the GPU holds it, else lora.",
    )
    rank: int = engine.rank()
    batch: int = engine.batch(1, "How evenly it learns: pictures in each step (paper: 1). More needs more memory.")
    size: int = engine.size(
        "How much detail it sees: the training picture has about size x size pixels, in the given one's proportions. SD 1.5: 512, "
        "SDXL: 1024."
    )
    seed: int = engine.seed()
    background: Background = option(
        "plain",
        "What lies around the subjects while training. plain: a random plain colour, as in the paper, so that they can stand "
        "anywhere. original: the picture itself.",
        choices=("plain", "original"),
        advanced=True,
    )
    move: bool = engine.switch(
        True,
        "Lets masks unlike the picture's own pose the subjects: on a plain background they are shown in other places and "
        "sizes, turned and stretched a little. Off: as in the paper, where they stay and are only mirrored.",
        "move_subjects",
    )
    masks: bool = True
    mode: Mode = "bound"
    attention_weight: float = engine.share(
        0.3,
        "Keeps each subject to its own mask, and subjects from mixing: how strongly each handle's attention is drawn there. "
        "The paper: 0.01.",
        0.01,
        10.0,
    )
    mask_attention_weight: float = engine.share(
        3.0,
        "How well masks pose the subjects: the same for the masks' own tokens, as a multiple of attention_weight. The paper: "
        "0.3, with which masks pose little after so few steps.",
        0.1,
        100.0,
    )
    background_weight: float = engine.share(
        0.3, "Lets a subject end where its mask does: how much the background counts in what is learned. The paper: 0."
    )
    prior_weight: float = engine.share(
        0.0,
        "Keeps the model from forgetting what else it knows (prior preservation): how much ordinary pictures of the same model "
        "count, which it paints before training. 1 in Break-A-Scene's code; nearly twice the time.",
        0.1,
        10.0,
    )
    prior_prompt: str = "a photo at the beach"
    prior_pictures: int = 20
    average: float = engine.average(0.98, "what the second phase learns", "the last weights, as in the paper.")
    checkpointing: bool = engine.checkpointing()
    variations: int = option(
        400,
        "How many pictures of the subjects are made to learn from, before training. Fewer are sooner encoded.",
        lowest=1, highest=10_000, advanced=True,
    )  # fmt: skip

    def settings(self, phase: int, width: int) -> loop.Settings:
        """Of phase 1 or 2, for a UNet of `width` channels."""
        if phase == 1:
            return loop.Settings(self.steps, self.handle_rate, self.seed, DECAY, BETAS)
        rate = USUAL_RATE[self.method] * USUAL_WIDTH / width if self.rate is None else self.rate
        late = tuple((part, self.handle_rate * LATE) for part in OWN) if self.method == "lora" else ()
        return loop.Settings(self.weight_steps, rate, self.seed + 1, DECAY, BETAS, average=self.average, rates=late)

    def prompt(self, names: Sequence[str]) -> str:
        """The sentence that is trained with: "a photo of A and B"."""
        told = self.background == "plain" and self.background_weight > 0
        return "a photo of " + " and ".join(names) + (PLAIN if told else "")

    def latents(self, scene: Scene) -> tuple[int, int, int, int]:
        """The shape of a batch of latents of a fitted scene."""
        return self.batch, 4, scene.masks.shape[1] // 8, scene.masks.shape[2] // 8

    def fingerprint(self, phase: int, scene: Scene, model: str = "") -> str:
        """Says what is trained on what, `model` being its signature.

        A phase's own number of steps is not part of it, so that it can be made longer, nor is what changes memory alone. The first phase
        does not depend on the second.
        """
        same = replace(self, weight_steps=0, checkpointing=True)
        same = replace(same, steps=0, rate=None, method="lora", rank=0, average=0.0) if phase == 1 else same
        return f"mcgm 1 phase {phase} {written(same, 'variations')} {scene.fingerprint()} {model}"


def of_mask_tokens(tokens: str) -> dict[str, Any]:
    """The fields that a choice of `MASK_TOKENS` stands for."""
    return {"masks": tokens != "off", "mode": "paper" if tokens == "paper" else "bound"}


def with_preset(options: Options, name: str) -> Options:
    """The options with what a preset says in place of theirs. ValueError for a name that is none."""
    if name == WIDGETS:
        return options
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}. What would do: {', '.join((WIDGETS, *PRESETS))}.")
    preset: Mapping[str, Any] = PRESETS[name]
    return replace(options, **preset)
