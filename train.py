"""Trains the pack's methods from the command line: on one device, or with `accelerate launch` on many.

python train.py dreamcom --comfyui ComfyUI --checkpoint sd-v1-5-inpainting.safetensors --pictures my-dog --noun dog
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from maskprompt.training.loop import LossOf, Progress, Settings

log = logging.getLogger("maskprompt.train")

ROOT = Path(os.path.abspath(__file__)).parent
RECENT = 20
"""The loss shown is the mean of this many steps."""
BUCKET = 2**25
"""Gradients are averaged in messages of about this many numbers: few messages, and no second copy of a whole model's gradients."""
PATIENCE = timedelta(minutes=30)
"""How long processes wait for the first one, which writes the state and paints previews."""


class Interrupted(KeyboardInterrupt):
    """The training stopped after a step because signal `number` asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class UnreadyError(ValueError):
    """Some process cannot train; every one of them knows it."""


class Signals:
    """Inside `with`, Ctrl-C, a hang-up and a request to end are noted in `number`, so that no step and no file is cut in two."""

    def __init__(self, alone: bool) -> None:
        self.alone, self.number = alone, 0
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


class Processes:
    """This process (`number` of `count`) among those that a launcher started, each on a device of its own; 0 of 1 without a launcher."""

    def __init__(self, cpu: bool) -> None:
        self.count, self.number = (int(os.environ.get(name, usual)) for name, usual in (("WORLD_SIZE", 1), ("RANK", 0)))
        self.ready_all = False
        self.state: Any = None
        if self.count > 1:
            self._join(cpu)

    def _join(self, cpu: bool) -> None:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ValueError(f"{self.count} processes were started, which takes accelerate: pip install accelerate") from error
        if not cpu and torch.cuda.is_available():
            here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
            if here > devices:
                raise ValueError(f"{here} processes were started on a machine with {devices} GPU(s): --num_processes {devices} would do.")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        self.state = PartialState(cpu=cpu, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        return self.number == 0

    def ready(self, start: str = "", problem: str = "") -> None:
        """Waits until all are ready to train. `UnreadyError` in every process if one has a problem, or if they would not `start` alike."""
        if self.state is None or self.ready_all:
            return
        from accelerate.utils import gather_object

        self.ready_all = True
        starts, problems = zip(*gather_object([(start, problem)]), strict=True)
        if any(problems):
            raise UnreadyError("\n".join(dict.fromkeys(filter(None, problems))))
        if len(set(starts)) > 1:
            raise UnreadyError(
                f"the processes would start differently ({'; '.join(starts)}): give all of them the same files, and keep the state file "
                "on a disk that all machines see."
            )

    def highest(self, number: int) -> int:
        """The highest of all processes' numbers."""
        return number if self.state is None else int(self._reduced(torch.tensor([number], device=self.state.device), "max"))

    def share(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their mean over all processes."""
        for dtype in {gradient.dtype: None for gradient in gradients}:
            bucket: list[Tensor] = []
            for gradient in (one for one in gradients if one.dtype == dtype):
                if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET:
                    self._share(bucket)
                    bucket = []
                bucket.append(gradient)
            self._share(bucket)

    def _share(self, bucket: list[Tensor]) -> None:
        mean = self._reduced(torch.cat([one.flatten() for one in bucket]), "mean")
        for one, part in zip(bucket, mean.split([one.numel() for one in bucket]), strict=True):
            one.copy_(part.view_as(one))

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        from accelerate.utils import reduce

        result: Any = reduce(tensor, how)
        return result

    def leave(self) -> None:
        """Parts in peace: all have come to the end."""
        if self.state is not None:
            self.state.destroy_process_group()


class Work:
    """One training: the command's arguments, this process, and the files that come of it. Serves every method."""

    def __init__(self, given: argparse.Namespace, processes: Processes, output: Path) -> None:
        self.given, self.processes, self.output = given, processes, output
        self.state = Path(given.state).expanduser() if given.state else output.with_suffix(".state.pt")
        self.preview = Path(given.preview).expanduser() if given.preview else None
        self.signals = Signals(processes.count == 1)
        self.started = False
        if processes.first:
            self._check_files()

    def _check_files(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"--out {self.output} must end in .safetensors.")
        if self.output.exists() and not self.given.overwrite:
            raise ValueError(f"{self.output} exists: choose another --out, or replace it with --overwrite.")
        for folder in (self.output.parent, self.state.parent, *([self.preview] if self.preview else [])):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise ValueError(f"nothing can be written into {folder}: {error.strerror}.") from error

    def checkpoint(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of --checkpoint."""
        return load_checkpoint(self.given.checkpoint)

    def counter(self, what: str) -> Callable[[int, int], None]:
        """A bar for work before the training: to be called with how much is done, of how much."""
        from tqdm import tqdm

        bar = tqdm(desc=what, leave=False, disable=not self.processes.first)

        def count(done: int, of: int) -> None:
            bar.total, bar.n = of, done
            bar.refresh()
            if done >= of:
                bar.close()

        return count

    def run(
        self,
        parameters: dict[str, nn.Parameter],
        loss: LossOf,
        settings: Settings,
        fingerprint: str,
        paint: Callable[[], Tensor] | None = None,
    ) -> Progress:
        """Trains the parameters (`training.loop.run`) from the state file on, with a line of progress and previews by `paint`."""
        from maskprompt.training import loop
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        size = sum(value.numel() for value in parameters.values())
        if self.processes.first and (free := shutil.disk_usage(self.output.parent).free) < 2 * size:
            raise ValueError(f"{self.output} will take {2 * size / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left.")
        start = self._start(fingerprint, settings.steps)
        self.processes.ready(f"{size} weights from step {start}")
        self.started = True
        shown = {"initial": start, "total": settings.steps, "desc": "Training", "unit": "step", "disable": not self.processes.first}
        seldom = 0.5 if sys.stderr.isatty() else 10.0
        with self.signals, tqdm(**shown, mininterval=seldom) as bar, logging_redirect_tqdm():

            def after(progress: Progress) -> None:
                recent = progress.losses[-RECENT:]
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}, rate {settings.learning_rate:g}", refresh=False)
                bar.update(progress.step - bar.n)
                number = self.processes.highest(self.signals.number)
                if number and progress.step < settings.steps:
                    raise Interrupted(number)
                if paint is not None and self.preview is not None and self.processes.first:
                    self._preview(progress.step, settings.steps, self.preview, paint)

            keep = loop.StateFile(self.state, fingerprint, self.given.save_every)
            share = self.processes.share if self.processes.count > 1 else None
            return loop.run(parameters, loss, settings, keep, after, process=self.processes.number, share=share)

    def save(self, learned: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Writes what was learned, with `about` as metadata, wholly or not at all; then the state has served."""
        if not self.processes.first:
            return
        state = {name: value.contiguous() for name, value in learned.items()}
        metadata = {name: str(value) for name, value in about.items()}
        with self.signals:
            problem = _written(self.output, state, metadata)
            if problem is None:
                self.state.unlink(missing_ok=True)
                print(f"Saved {self.output}.")
                return
            places = (self.state.parent, Path(tempfile.gettempdir()))
            spare = [place / f"{self.output.stem}-{os.getpid()}.safetensors" for place in places]
            saved = next((path for path in spare if _written(path, state, metadata) is None), None)
        instead = f" It was saved as {saved} instead." if saved else ""
        raise ValueError(f"{self.output} could not be written: {problem}. Is the disk full?{instead}")

    def kept(self) -> str:
        """What there is of a training that did not come to its end."""
        if not self.state.is_file():
            return "There is no training state."
        return f"The training's state is kept in {self.state}; the same command goes on from there."

    def _start(self, fingerprint: str, steps: int) -> int:
        """The step from which the state file goes on. ValueError for a file that this training would throw away."""
        if not self.state.is_file():
            return 0
        try:
            kept = torch.load(self.state, map_location="cpu", mmap=True, weights_only=True)
            step = int(kept["step"])
            problem = "" if kept["fingerprint"] == fingerprint else "is of another training (other options or pictures)"
        except Exception as error:  # torch.load raises many kinds
            step, problem = 0, f"cannot be read ({error})"
        if not problem and step > steps:
            problem = f"has {step} steps done already, more than --steps {steps}"
        if problem and not self.given.overwrite:
            raise ValueError(f"the training state {self.state} {problem}: name another file with --state, or begin anew with --overwrite.")
        return 0 if problem else step

    def _preview(self, step: int, steps: int, folder: Path, paint: Callable[[], Tensor]) -> None:
        if step % self.given.preview_every and step < steps:
            return
        from PIL import Image

        image = Image.fromarray((paint()[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        try:
            image.save(folder / f"step-{step:06d}.png")
        except OSError as error:
            log.warning("The preview of step %d could not be written: %s.", step, error)


def _written(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Exception | None:
    """Writes a safetensors file beside its place first, so that there is never half of one; or why it could not be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(state, partial, metadata)
        partial.chmod(mode)  # newer versions of safetensors let nobody else read their files
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        return error
    return None


def find_comfyui(given: str | None) -> Path:
    """ComfyUI's folder: `given`, else COMFYUI_PATH, else the one in whose custom_nodes the pack lies."""
    named = given or os.environ.get("COMFYUI_PATH")
    folder = Path(named).expanduser().absolute() if named else ROOT.parent.parent
    if not (folder / "comfy" / "sd.py").is_file():
        raise ValueError(
            f"there is no ComfyUI in {folder}: name its folder, in which main.py lies, with --comfyui or in the environment variable "
            "COMFYUI_PATH."
        )
    return folder


def start_comfyui(folder: Path, cpu: bool) -> None:
    """Puts ComfyUI on the path. Its own options stay at their defaults: it reads no command line unless its main.py asks it to."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        from comfy.cli_args import args

        args.cpu = args.cpu or cpu
        importlib.import_module("comfy.sd")
    except ImportError as error:
        raise ValueError(f"ComfyUI in {folder} does not start ({error}): run train.py with the Python that runs ComfyUI.") from error


def load_package(name: str, folder: Path) -> ModuleType:
    """A Python package (or a single file) by its path, under a name of its own."""
    if name in sys.modules:
        return sys.modules[name]
    is_file = folder.suffix == ".py"
    inside = None if is_file else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder if is_file else folder / "__init__.py", submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python package at {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def register(path: str) -> None:
    """Imports what makes ComfyUI know further models."""
    place = Path(path).expanduser().absolute()
    try:
        load_package(f"register_{re.sub(r'[^0-9a-zA-Z]', '_', str(place))}", place)
    except Exception as error:
        raise ValueError(f"--register {path} cannot be imported: {error}. It takes a Python file, or a folder with __init__.py.") from error


def load_checkpoint(name: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a file, or of one in ComfyUI's models/checkpoints. ValueError if there is none, or not all three."""
    import comfy.sd
    import folder_paths

    path = name if os.path.isfile(name) else folder_paths.get_full_path("checkpoints", name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths("checkpoints"))
        raise ValueError(f"there is no checkpoint {name}, neither from here nor in {places}.")
    try:
        loaded: Any = comfy.sd.load_checkpoint_guess_config(path, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    except Exception as error:  # unknown models, damaged files
        raise ValueError(
            f"ComfyUI cannot load the checkpoint {name}: {str(error).strip()}. It may be damaged, or no checkpoint. "
            "What makes ComfyUI know other models can be imported with --register."
        ) from error
    model, clip, vae = loaded[:3]
    for part, there in (("text encoder", clip), ("VAE", vae is not None and vae.first_stage_model is not None)):
        if not there:
            raise ValueError(f"the checkpoint {name} holds no {part}: a whole checkpoint is needed, with UNet, text encoder and VAE.")
    return model, clip, vae


def number(kind: type[int] | type[float] = int, lowest: float = 0, highest: float = math.inf, multiple: int = 1) -> Callable[[str], float]:
    """Reads a number from `lowest` to `highest` for argparse."""

    def read(text: str) -> float:
        value = kind(text)
        if not lowest <= value <= highest or value == math.inf or (multiple > 1 and value % multiple):
            limits = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}{f' and a multiple of {multiple}' if multiple > 1 else ''}")
        return value

    read.__name__ = "number" if kind is float else "whole number"
    return read


def general_options() -> argparse.ArgumentParser:
    """What every method takes."""
    parser = argparse.ArgumentParser(add_help=False)
    where = parser.add_argument_group("where things are")
    where.add_argument("--comfyui", metavar="FOLDER", help="ComfyUI, if it is neither in COMFYUI_PATH nor around this pack")
    where.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="what is trained: a file, or the name of one in ComfyUI's models/checkpoints"
    )
    where.add_argument(
        "--register",
        metavar="PATH",
        action="append",
        default=[],
        help="a Python file or package to import first, which makes ComfyUI know a model that it does not know by itself; its code is run",
    )
    where.add_argument("--cpu", action="store_true", help="train on the processor even if there is a GPU")
    files = parser.add_argument_group("what is written")
    files.add_argument("--out", metavar="FILE", help="what was learned, .safetensors (default: in ComfyUI's models/loras)")
    files.add_argument("--overwrite", action="store_true", help="replace --out if it exists, and a state of another training")
    files.add_argument(
        "--state", metavar="FILE", help="the state of an interrupted training, from which the same command goes on (default: beside --out)"
    )
    files.add_argument(
        "--save-every", metavar="STEPS", type=number(lowest=1), default=100, help="how often the state is written (%(default)s)"
    )
    files.add_argument("--preview", metavar="FOLDER", help="paint what has been learned into this folder")
    files.add_argument(
        "--preview-every", metavar="STEPS", type=number(lowest=1), default=100, help="how often (%(default)s), and at the end"
    )
    files.add_argument("--verbose", action="store_true", help="show ComfyUI's messages, and where in the program an error arose")
    return parser


def parser() -> argparse.ArgumentParser:
    """The command line: a sub-command for each method."""
    whole = argparse.ArgumentParser(prog="train.py", description="Trains a method of MaskPrompt. `train.py METHOD --help` explains it.")
    methods = whole.add_subparsers(metavar="METHOD", required=True)
    general = general_options()
    for add in METHODS:
        add(methods, general)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the program's); the exit status."""
    load_package("maskprompt", ROOT)
    given = parser().parse_args(arguments)
    processes: Processes | None = None
    work: Work | None = None
    try:
        comfyui = find_comfyui(given.comfyui)
        cpu = given.cpu or _cpu_only()
        processes = Processes(cpu)
        start_comfyui(comfyui, cpu)
        for path in given.register:
            register(path)
        output = Path(given.out).expanduser() if given.out else comfyui / "models" / "loras" / f"{given.title(given)}.safetensors"
        work = Work(given, processes, output)
        given.train(work)
        processes.leave()
        return 0
    except KeyboardInterrupt as stop:
        if _speaks(processes):
            print(f"\nInterrupted. {work.kept() if work and work.started else ''}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)
    except Exception as error:
        return _failed(error, given.verbose, processes, work)


def _failed(error: Exception, verbose: bool, processes: Processes | None, work: Work | None) -> int:
    """Tells what went wrong, once if it went wrong for all processes alike; the exit status."""
    text = str(error) or type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError):
        text = f"the device ran out of memory. Smaller crops, a smaller batch, or a LoRA instead of all weights take less. ({text})"
    if verbose or not isinstance(error, (ValueError, RuntimeError, OSError)):
        traceback.print_exception(error)
    if processes is not None:
        try:
            processes.ready(problem=text)
        except UnreadyError as merged:
            error, text = merged, str(merged)
    if _speaks(processes) or (work is not None and work.started):
        kept = f"\n{work.kept()}" if work is not None and work.started and work.processes.first else ""
        print(f"train.py: {text}{kept}", file=sys.stderr)
    return 1


def _speaks(processes: Processes | None) -> bool:
    """Whether this process tells what happened to all."""
    return processes.first if processes is not None else int(os.environ.get("LOCAL_RANK", 0)) == 0


def _cpu_only() -> bool:
    """Whether there is nothing but the processor, or `accelerate launch --cpu` asks for it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return True
    known = getattr(torch, "accelerator", None)  # not in older versions of PyTorch
    return not (known.is_available() if known else torch.cuda.is_available() or torch.backends.mps.is_available())


# DreamCom


def dreamcom_options(methods: Any, general: argparse.ArgumentParser) -> None:
    """`train.py dreamcom`."""
    from maskprompt.training.dreamcom import USUAL_RATE, Options

    usual = Options()
    command = methods.add_parser(
        "dreamcom", parents=[general], help="a subject of yours, from three to five pictures, into an inpainting checkpoint",
        description="Teaches an inpainting checkpoint one subject from three to five pictures in which it is marked (DreamCom). "
        "The result is a LoRA file for ComfyUI's Load LoRA; the prompt `a photo of TOKEN NOUN` then paints the subject into any box.",
    )  # fmt: skip
    subject = command.add_argument_group("the subject")
    subject.add_argument(
        "--pictures",
        metavar="FOLDER",
        required=True,
        help="pictures of any sizes, each with its mask: NAME.mask.png beside NAME.jpg, white where the subject is; or the picture's own "
        "alpha channel, opaque where the subject is",
    )
    subject.add_argument("--noun", required=True, help="what the subject is, in one plain word, such as dog")
    subject.add_argument("--token", default=usual.token, help="a rare word that is to stand for the subject (%(default)s)")
    how = command.add_argument_group("the training")
    how.add_argument("--steps", type=number(lowest=1), default=usual.steps, help="training steps, one batch each (%(default)s)")
    how.add_argument(
        "--method",
        choices=["lora", "full", "auto"],
        default=usual.method,
        help="lora: a small file. full: all of the UNet's weights; takes a large GPU, the file is as large as the UNet. auto: full from "
        "16 GB of GPU memory on, else lora (%(default)s)",
    )
    how.add_argument(
        "--rank", type=number(lowest=1), default=usual.rank, help="the LoRA's rank: more holds more detail in a larger file (%(default)s)"
    )
    how.add_argument(
        "--rate",
        type=number(float, 1e-12),
        default=usual.rate,
        help=f"learning rate (default: {USUAL_RATE['lora']:g} for lora, {USUAL_RATE['full']:g} for full, for SD's width; more for a "
        "narrower one)",
    )
    how.add_argument(
        "--batch", type=number(lowest=1), default=usual.batch, help="crops in a step, in each process; more takes more memory (%(default)s)"
    )
    how.add_argument(
        "--size",
        type=number(lowest=64, multiple=8),
        default=usual.size,
        help="side of the training crops in pixels: 512 for SD 1.5, 1024 for SDXL (%(default)s)",
    )
    how.add_argument("--seed", type=number(), default=usual.seed, help="the same seed trains the same (%(default)s)")
    how.add_argument(
        "--average",
        type=number(float, 0, 0.9999),
        default=usual.average,
        help="keep a moving average of the weights with this decay, such as 0.99; 0 keeps the last weights (%(default)s)",
    )
    how.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=usual.checkpointing,
        help="compute activations twice instead of keeping them: far less memory, about a third more time (on, unless --no-...)",
    )
    how.add_argument(
        "--masked-attention",
        action=argparse.BooleanOptionalAction,
        default=usual.masked_attention,
        help="let the text reach the subject's box only, as the paper does (on, unless --no-...)",
    )
    how.add_argument(
        "--box-margin",
        type=number(float, 0, 1),
        default=usual.box_margin,
        help="draw each subject's box larger on every side by up to this part of its size (%(default)s; 0 is the paper's)",
    )
    command.set_defaults(train=train_dreamcom, title=lambda given: re.sub(r"[^\w-]+", "_", f"dreamcom-{given.token}-{given.noun}"))


def train_dreamcom(work: Work) -> None:
    """Pictures of a subject to a file that Load LoRA takes."""
    from maskprompt.training import dreamcom, folder, memory, state
    from maskprompt.training.learner import Learner

    given, automatic = work.given, work.given.method == "auto"
    pictures = folder.load(Path(given.pictures).expanduser())
    model, clip, vae = work.checkpoint()
    options = dreamcom.Options(
        token=given.token.strip(), noun=given.noun.strip(), steps=given.steps, rate=given.rate,
        method="lora" if automatic else given.method, rank=given.rank, batch=given.batch, size=given.size, seed=given.seed,
        masked_attention=given.masked_attention, box_margin=given.box_margin, average=given.average,
        checkpointing=given.checkpointing,
    )  # fmt: skip
    dreamcom.check(model, clip, vae, options, pictures)
    if automatic:
        whole = memory.estimate_full(model, options.latents, options.checkpointing, options.average > 0)
        options = replace(options, method=memory.method_for(model.load_device, whole))
    learner = Learner(model, options.method, options.rank, options.seed, options.checkpointing)
    needed = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0)
    memory.check(needed, learner.device, options.method)
    with torch.no_grad():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (options.prompt, "")]
    fingerprint = options.fingerprint(pictures, state.signature(model, texts))
    examples = dreamcom.encode(pictures, vae, options, on_crop=work.counter("Encoding crops"))
    settings = options.settings(learner.width)

    def paint() -> Tensor:
        return dreamcom.preview(learner, examples, vae, texts[0], texts[1], options.masked_attention)

    with learner.loaded():
        done = work.run(learner.parameters, dreamcom.Loss(learner, examples, texts[0], options), settings, fingerprint, paint)
        learned = learner.learned()
    told = ("method", "token", "noun", "prompt", "rank", "batch", "size", "seed", "masked_attention", "box_margin", "average")
    about = {name: getattr(options, name) for name in told}
    base = {"format": "maskprompt-dreamcom-1", "base": Path(given.checkpoint).name, "width": learner.width}
    work.save(learned, {**base, **about, "steps": done.step, "rate": settings.learning_rate, "processes": work.processes.count})
    if work.processes.first:
        print(f"Prompt: {options.prompt}")


METHODS: list[Callable[[Any, argparse.ArgumentParser], None]] = [dreamcom_options]


def script() -> int:
    """The program: as `main`, with messages of the pack shown, in the first process only."""
    # The folder of a script is on its path, where this pack's `nodes` and `models` would hide ComfyUI's.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != str(ROOT)]
    others = int(os.environ.get("RANK", 0)) > 0
    verbose = "--verbose" in sys.argv
    logging.basicConfig(level=logging.ERROR if others else logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("maskprompt").setLevel(logging.ERROR if others else logging.INFO)
    return main()


if __name__ == "__main__":
    sys.exit(script())
