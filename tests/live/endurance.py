"""What a long day does to a running ComfyUI: `python -m tests.live.endurance runs|flags|kills`. Ends with 1 if anything went wrong.

runs   every bundled graph that does not train, thirty times with new seeds, other masks, bypassed nodes, interrupts, two clients and
       /free between them: memory stays flat within 3 %, and the first run's seed gives the first run's pictures again
flags  the same graphs once under each of ComfyUI's flags for caches, precision and attention that a CPU takes
kills  every training, ended by kill -9 in its midst and between its end and its saving: run again, it ends with the same weights;
       `--only 26` those of some workflows
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo import compare, run, stand_ins
from demo.server import Prompt, Result, Server, Step, WorkflowError

STEPS = 3
"""Of painting: what is tried here does not hang on how good a picture is."""
GROWTH = 1.03
FLAGS: tuple[tuple[str, ...], ...] = (
    ("--cache-none",), ("--cache-lru", "1"), ("--bf16-unet",), ("--fp16-unet",), ("--fp64-unet",), ("--bf16-vae",), ("--fp16-text-enc",),
    ("--use-split-cross-attention",), ("--use-quad-cross-attention",), ("--use-pytorch-cross-attention",),
    ("--force-upcast-attention",), ("--dont-upcast-attention",), ("--force-channels-last",), ("--deterministic",), ("--fast",),
)  # fmt: skip
LEARNING = 110
"""Steps of a phase of training; a state is written at step 100."""
LATE = 105
"""The step of its last phase in which a training is killed."""
Arrays = dict[str, np.ndarray]


def trains(prompt: Prompt) -> bool:
    return any("Train" in entry["class_type"] for entry in prompt.values())


def graphs(training: bool) -> dict[str, Prompt]:
    """The bundled graphs that train, or those that do not, with the tiny model in few steps."""
    found = {name: stand_ins.changed(prompt) for name, prompt in run.paintable(run.workflows()).items() if trains(prompt) == training}
    for prompt in found.values():
        for entry in prompt.values():
            entry["inputs"] |= {"steps": STEPS} if entry["class_type"] == "KSampler" else {}
    return found


def seeded(prompt: Prompt, seed: int) -> Prompt:
    """The graph with another seed."""
    return {key: {**entry, "inputs": {**entry["inputs"], **{name: seed for name in _seeds(entry)}}} for key, entry in prompt.items()}


def _seeds(entry: Mapping[str, Any]) -> list[str]:
    names = {"KSampler": "seed", "PrimitiveInt": "value"}
    name = names.get(entry["class_type"], "")
    return [name] if name and not isinstance(entry["inputs"].get(name), list) else []


def moved(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """The graph with its boxes moved a little, up to 8 pixels."""
    found = seeded(prompt, int(rng.integers(2**31)))
    for entry in found.values():
        if entry["class_type"] == "MaskPromptBoxMask":
            places = {name: entry["inputs"][name] for name in ("x", "y") if isinstance(entry["inputs"].get(name), int)}
            entry["inputs"] |= {name: max(0, place + int(rng.integers(-8, 9))) for name, place in places.items()}
    return found


def bypassed(prompt: Prompt) -> Prompt:
    """The graph as the frontend sends it with the pack's nodes on the MODEL line bypassed."""
    ours = {key for key, entry in prompt.items() if entry["class_type"].startswith("MaskPrompt") and "model" in entry["inputs"]}
    ours -= {key for key in ours if "Load" in prompt[key]["class_type"]}

    def source(value: Any) -> Any:
        while isinstance(value, list) and value[0] in ours and value[1] == 0:
            value = prompt[value[0]]["inputs"]["model"]
        return value

    left = {key: {**entry, "inputs": {name: source(value) for name, value in entry["inputs"].items()}} for key, entry in prompt.items()}
    linked = {value[0] for entry in left.values() for value in entry["inputs"].values() if isinstance(value, list)}
    return {key: entry for key, entry in left.items() if key not in ours or key in linked}


def pictures(server: Server, result: Result) -> Arrays:
    return {
        f"{node} {index}": np.asarray(Image.open(server.file_of(image)))
        for node, output in sorted(result.outputs.items())
        for index, image in enumerate(output.get("images", []))
    }


def learned(folder: Path) -> Arrays:
    """All numbers of all files of weights that were made in a server's folder."""
    return {key: array for number, file in enumerate(sorted(compare.weights_in(folder))) for key, array in compare.numbers_of(file, number)}


@contextmanager
def stage(*flags: str, more: Sequence[str] = ()) -> Iterator[Server]:
    """A server with the pictures of all graphs, and what the trainings of `more` made."""
    with tempfile.TemporaryDirectory(prefix="maskprompt-", ignore_cleanup_errors=True) as folder:
        server = run.stage(Path(folder), *flags)
        for prompt in run.workflows().values():
            run.add_photographs(server, run.photographs(prompt))
        with server:
            for name in more:
                server.run(short(stand_ins.changed(run.workflow(name)), 2))
                run.hand_on(server, name)
            yield server


def short(prompt: Prompt, steps: int) -> Prompt:
    """The graph with trainings of so many steps of one small picture."""
    few = {"steps": steps, "weight_steps": steps, "batch_size": 1, "variations": 8, "preview_every": 0}
    for entry in prompt.values():
        if "Train" in entry["class_type"]:
            entry["inputs"] |= {name: value for name, value in few.items() if name in entry["inputs"] or name == "preview_every"}
            entry["inputs"] |= {"variations": 8} if "MCGM" in entry["class_type"] else {}
    return prompt


class Told:
    """Prints what goes wrong, and counts it."""

    def __init__(self) -> None:
        self.wrong = 0

    def __call__(self, fine: bool, what: str) -> None:
        self.wrong += not fine
        print(f"{'ok   ' if fine else 'WRONG'} {what}", flush=True)


def runs(count: int, told: Told) -> None:
    """Every graph `count` times."""
    rng = np.random.default_rng(0)
    made = sorted(set(run.MADE_BY.values()))
    with stage(more=made) as server:
        prompts = graphs(False)
        first = {name: pictures(server, server.run(seeded(prompt, 7))) for name, prompt in prompts.items()}
        sizes: list[int] = []
        for number in range(count):
            for prompt in prompts.values():
                _one_run(server, prompt, rng)
            sizes.append(_resident(server))
            print(f"round {number + 1} of {count}: {sizes[-1] / 2**20:.0f} MiB", flush=True)
        early = statistics.median(sizes[count // 6 : count // 2])
        late = statistics.median(sizes[-(count // 3) :])
        told(late <= GROWTH * early, f"memory: {late / early:.3f} of what it was ({early / 2**20:.0f} to {late / 2**20:.0f} MiB)")
        for name, prompt in prompts.items():
            again = pictures(server, server.run(seeded(prompt, 7)))
            apart = compare.differences(first[name], again)
            told(not apart, f"{name}: the same seed, {'; '.join(apart) or 'the same pictures'}")


def _one_run(server: Server, prompt: Prompt, rng: np.random.Generator) -> None:
    """A run as a restless artist starts one."""
    kind = rng.choice(5, p=(0.6, 0.1, 0.1, 0.1, 0.1))
    changed = moved(prompt, rng)
    if kind == 1:
        server.run(bypassed(changed))
    elif kind == 2:
        _interrupted(server, changed, float(rng.uniform(0.1, 1.5)))
    elif kind == 3:
        others = [threading.Thread(target=server.run, args=(moved(prompt, rng),)) for _ in range(2)]
        for one in others:
            one.start()
        for one in others:
            one.join()
    else:
        server.run(changed)
        if kind == 4:
            server.post("/free", {"unload_models": True, "free_memory": True})


def _interrupted(server: Server, prompt: Prompt, after: float) -> None:
    timer = threading.Timer(after, server.interrupt)
    timer.start()
    try:
        server.run(prompt)
    except WorkflowError as error:
        if "interrupted" not in str(error):
            raise
    finally:
        timer.cancel()


def _resident(server: Server) -> int:
    import psutil

    gc.collect()
    return psutil.Process(server.pid).memory_info().rss


def flags(told: Told) -> None:
    """Every graph once under each flag."""
    made = sorted(set(run.MADE_BY.values()))
    for given in FLAGS:
        with stage(*given, more=made) as server:
            for name, prompt in graphs(False).items():
                try:
                    painted = pictures(server, server.run(prompt))
                except WorkflowError as error:
                    told(False, f"{' '.join(given)}: {name}: {error}")
                    continue
                flat = [key for key, picture in painted.items() if picture.std() < 1]
                told(bool(painted) and not flat, f"{' '.join(given)}: {name}{f': nothing to see in {flat}' if flat else ''}")


def kills(told: Told, only: Sequence[str] = ()) -> None:
    """Every training killed, and run again, or those of the workflows that `only` means."""
    trainings = graphs(True)
    chosen = [title for name in only for title in run.matching(name, trainings)] or list(trainings)
    for name in chosen:
        prompt = trainings[name]
        graph = short(prompt, LEARNING)
        with stage() as server:
            server.run(graph)
            wanted = learned(server.folder)
        ways = [("in its midst", _late), ("before its saving", _ended)]
        if any(entry["class_type"] == "MaskPromptTrainMCGM" for entry in graph.values()):
            ways.pop()  # it saves its files itself, so that nothing lies between its end and its saving
        for what, when in ways:
            with stage() as server:
                try:
                    server.run(graph, when(server, graph))
                    told(False, f"{name}: the server was not killed")
                    continue
                except RuntimeError:
                    pass
                server.stop()
                server.start()
                server.run(graph)
                went_on = "goes on from step" in server.log_tail(1000)
                apart = compare.differences(wanted, learned(server.folder))
                told(
                    went_on and not apart,
                    f"{name}, killed {what}: {'; '.join(apart[:3]) or 'the same weights'}{'' if went_on else ', from the start'}",
                )


def _late(server: Server, graph: Prompt) -> Callable[[Step], None]:
    """Kills the server in a training's last steps, after its last state. Its bar counts the encoding of pictures too, so from the end."""

    def watch(step: Step) -> None:
        if "Train" in step.name and step.maximum >= LEARNING and step.value >= step.maximum - (LEARNING - LATE):
            os.kill(server.pid, signal.SIGKILL)

    return watch


def _ended(server: Server, graph: Prompt) -> Callable[[Step], None]:
    """Kills the server when the node after the training begins."""
    trained = False

    def watch(step: Step) -> None:
        nonlocal trained
        if "Train" in step.name:
            trained = True
        elif trained:
            os.kill(server.pid, signal.SIGKILL)

    return watch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("runs", "flags", "kills"))
    parser.add_argument("--count", type=int, default=30, help="of runs")
    parser.add_argument("--only", nargs="*", default=(), help="kills: numbers, or words of the titles, of the workflows")
    options = parser.parse_args(arguments)
    told = Told()
    {"runs": lambda: runs(options.count, told), "flags": lambda: flags(told), "kills": lambda: kills(told, options.only)}[options.what]()
    print(f"{told.wrong} wrong")
    return int(told.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
