"""The bundled workflows of MCGM, 22 to 24, through a real server: what the first leaves the others paint with, and each mask acts
where it should.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from maskprompt.models.mcgm import file as mask_encoder_file
from PIL import Image

from demo import run, scenes, stand_ins, subject_pictures
from demo.server import Prompt, Result, Server, WorkflowError

from ..support.graphs import node
from ..support.live_workflows import pictures, titled, with_inputs

FEW = {"steps": 2, "weight_steps": 2, "batch_size": 1, "variations": 8}
WORDS = "embedding:scene-ball and embedding:scene-fish"
STRONG = "strong.safetensors"
POSED = "Posed by the mask"
BLANK = "Without a pose"
EACH = "A mask for each"
ONE = "One mask"


def bundled(server: Server, name: str) -> Prompt:
    """A bundled workflow with the tiny model, in a few steps, and its pictures on the server."""
    prompt = stand_ins.changed(run.workflow(name))
    run.add_photographs(server, [*run.photographs(prompt), "place-ball.png", "pose-fish.png"])
    for entry in prompt.values():
        entry["inputs"] |= {"KSampler": {"steps": 4}, "MaskPromptTrainMCGM": FEW}.get(entry["class_type"], {})
    return prompt


def text(result: Result, name: str) -> str:
    (found,) = result.outputs[name]["text"]
    return found


def white(server: Server, result: Result, name: str) -> list[np.ndarray]:
    """The masks that a node previews, as bool."""
    return [np.asarray(Image.open(server.file_of(image)).convert("L")) > 127 for image in result.outputs[name]["images"]]


def models(server: Server) -> dict[Path, bytes]:
    """Every file below the folders that MCGM writes into, and what is in it."""
    places = [server.folder / "models" / kind for kind in ("embeddings", "loras", "mcgm")]
    return {file.relative_to(server.folder / "models"): file.read_bytes() for place in places for file in place.glob("scene*")}


@pytest.fixture(scope="module")
def training(server: Server) -> Prompt:
    """The training, which also shows the sentence that it paints."""
    prompt = bundled(server, "22 Learn the subjects of one picture")
    return {**prompt, "sentence": node("PreviewAny", source=[titled(prompt, "A new place"), 0])}


@pytest.fixture(scope="module")
def trained(server: Server, training: Prompt) -> Result:
    """Also leaves a copy of the mask encoder in which it matters much whose mask it is."""
    result = server.run(training)
    run.hand_on(server, "22 Learn the subjects of one picture")
    folder = server.folder / "models" / "mcgm"
    encoder = mask_encoder_file.load(str(folder / "scene.safetensors"))
    assert encoder.network.subjects is not None
    encoder.network.subjects.copy_(torch.randn(2, encoder.network.width, generator=torch.Generator().manual_seed(0)))
    mask_encoder_file.save(encoder.network, encoder.about, str(folder / STRONG))
    return result


@pytest.fixture(scope="module")
def pose(server: Server, trained: Result) -> Prompt:
    return bundled(server, "23 Pose a subject by its mask")


@pytest.fixture(scope="module")
def scene(server: Server, trained: Result) -> Prompt:
    return bundled(server, "24 Pose several subjects by masks")


def rewired(prompt: Prompt, title: str, field: str, source: str) -> Prompt:
    """A copy in which an input of a node comes from the first output of another, both by their titles."""
    return with_inputs(prompt, title, **{field: [titled(prompt, source), 0]})


def changed(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    """The titles of the pictures in which anything differs."""
    return {title for title in one if not np.array_equal(one[title], other[title])}


def test_each_subject_is_marked_in_the_order_of_the_words(server: Server, training: Prompt, trained: Result) -> None:
    found = white(server, trained, titled(training, "Marked"))
    wanted = scenes.render(subject_pictures.SCENE, subject_pictures.SIZE).masks > 0.5
    words = training[titled(training, "Train Poseable Subjects")]["inputs"]["words"]
    assert words.split(", ") == [thing.shape for thing in subject_pictures.SCENE.things]
    assert len(found) == len(wanted)
    for mask, subject in zip(found, wanted, strict=True):
        assert (mask & subject).sum() / (mask | subject).sum() > 0.95


def test_a_second_training_keeps_the_first_and_paints_its_own(server: Server, training: Prompt, trained: Result) -> None:
    """Under the name that is taken: the number which is added reaches the proof's words."""
    assert text(trained, "sentence") == f"a photo of {WORDS} on grass"
    before = models(server)
    again = server.run(with_inputs(training, "Train Poseable Subjects", seed=5))
    assert text(again, titled(training, "What your subjects are called")) == WORDS.replace("scene", "scene-2")
    assert text(again, "sentence") == f"a photo of {WORDS.replace('scene', 'scene-2')} on grass"
    after = models(server)
    assert {file: after[file] for file in before} == before
    made = {"embeddings/scene-2-ball", "embeddings/scene-2-fish", "loras/scene-2", "mcgm/scene-2"}
    assert {file.with_suffix("").as_posix() for file in after.keys() - before.keys()} == made


def test_the_trained_files_are_found_under_their_name(server: Server, pose: Prompt) -> None:
    loaded = titled(pose, "Your trained subjects")
    assert pose[loaded]["inputs"]["mcgm_name"] == "scene.safetensors"
    assert text(server.run(pose), titled(pose, "What the subjects are called")) == WORDS
    with_lora = pictures(server, pose)
    assert changed(with_lora, pictures(server, with_inputs(pose, "Your trained subjects", lora_strength=0.0))) == {POSED, BLANK}


def test_the_drawn_mask_poses_one_picture_and_not_the_other(server: Server, pose: Prompt) -> None:
    before = pictures(server, pose)
    assert changed(before, pictures(server, with_inputs(pose, "The pose, drawn", image="place-ball.png"))) == {POSED}


def test_the_two_pictures_differ_in_the_mask_alone(server: Server, pose: Prompt) -> None:
    """Given the blank mask, the posed picture is the other one, to the bit."""
    shown = pictures(server, rewired(pose, "Pose by Masks", "masks", "A blank mask"))
    assert np.array_equal(shown[POSED], shown[BLANK])
    assert not np.array_equal(pictures(server, pose)[POSED], shown[BLANK])


@pytest.mark.parametrize("encode", ["Pose by Masks", "Pose by the blank mask"])
def test_the_prompt_says_whose_mask_it_is(server: Server, pose: Prompt, encode: str) -> None:
    """The fish is the second subject: a mask without the prompt would be the ball's. And two masks are one too many for one name."""
    strong = with_inputs(pose, "Your trained subjects", mcgm_name=STRONG)
    strong = rewired(strong, encode, "masks", "The pose, drawn")
    unwired: Prompt = json.loads(json.dumps(strong))
    del unwired[titled(unwired, encode)]["inputs"]["prompt"]
    assert changed(pictures(server, strong), pictures(server, unwired)) == {POSED if encode == "Pose by Masks" else BLANK}
    drawn = [titled(pose, "The pose, drawn"), 0]
    doubled = {**pose, "two": node("BatchMasksNode", **{"masks.mask0": drawn, "masks.mask1": drawn})}
    with pytest.raises(WorkflowError, match="there are 2 masks, but the prompt names 1 subject"):
        server.run(with_inputs(doubled, encode, masks=["two", 0]))


def test_the_sentence_names_both_subjects(server: Server, scene: Prompt) -> None:
    asked = {**scene, "sentence": node("PreviewAny", source=[titled(scene, "What to paint"), 0])}
    assert text(server.run(asked), "sentence") == f"a photo of {WORDS} on grass"


def test_masks_reach_the_encoder_in_their_order(server: Server, scene: Prompt) -> None:
    batch = scene[titled(scene, "Pose by Masks")]["inputs"]["masks"]
    found = white(server, server.run({**scene, "masks": node("MaskPreview", mask=batch)}), "masks")
    wanted = [subject_pictures.load(name)[..., 0] > 127 for name in ("place-ball", "place-fish")]
    assert [mask.tolist() for mask in found] == [mask.tolist() for mask in wanted]


@pytest.mark.parametrize(("title", "wanted"), [("Mask of the first", {EACH}), ("Mask of the second", {EACH}), ("One mask for both", {ONE})])
def test_a_mask_acts_on_its_own_picture(server: Server, scene: Prompt, title: str, wanted: set[str]) -> None:
    assert changed(pictures(server, scene), pictures(server, with_inputs(scene, title, image="pose-fish.png"))) == wanted


def test_masks_follow_the_names_in_the_sentence(server: Server, scene: Prompt) -> None:
    """With the fish named first, its mask comes first too; the order of the training does not matter then."""
    turned = WORDS.replace("ball", "?").replace("fish", "ball").replace("?", "fish")
    strong = with_inputs(with_inputs(scene, "Your trained subjects", mcgm_name=STRONG), "What to paint", replace=turned)
    unwired: Prompt = json.loads(json.dumps(strong))
    del unwired[titled(unwired, "Pose by Masks")]["inputs"]["prompt"]
    assert changed(pictures(server, strong), pictures(server, unwired)) == {EACH}


def test_what_a_workflow_made_is_handed_on(tmp_path: Path) -> None:
    """Train Poseable Subjects' files lie in models already, a saved LoRA is put there, and nothing at all is an error."""
    server = run.stage(tmp_path)
    for workflow in ("22 Learn the subjects of one picture", "20 Teach your subject"):
        with pytest.raises(RuntimeError, match=f"workflow {workflow} left no"):
            run.hand_on(server, workflow)
    encoder = server.folder / "models/mcgm/scene.safetensors"
    lora = server.output / "loras/now.safetensors"
    for file in (encoder, lora):
        file.parent.mkdir(parents=True)
        file.write_bytes(file.name.encode())
    run.hand_on(server, "22 Learn the subjects of one picture")
    run.hand_on(server, "20 Teach your subject")
    assert encoder.read_bytes() == b"scene.safetensors"
    assert (server.folder / "models/loras/dreamcom_subject.safetensors").read_bytes() == b"now.safetensors"
    run.hand_on(server, "02 Paint an object into a box")


def test_the_demo_trains_before_it_poses() -> None:
    trained, *posed = run.in_order(run.workflows(["24", "23"]))
    assert trained == "22 Learn the subjects of one picture"
    assert posed == ["23 Pose a subject by its mask", "24 Pose several subjects by masks"]
    everything = list(run.in_order(run.workflows()))
    assert sorted(everything) == sorted(run.workflows())
    assert everything.index(trained) < min(everything.index(title) for title in posed)


def test_masks_of_poses_are_black_and_white_and_apart() -> None:
    drawn = {name: subject_pictures.load(name) for name in subject_pictures.POSES}
    for mask in drawn.values():
        assert mask.shape == (512, 512, 3)
        assert ((mask == 0) | (mask == 255)).mean() > 0.98
        assert 0.05 < (mask == 255).mean() < 0.3
        assert not any(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert not (drawn["place-ball"] & drawn["place-fish"]).any()
