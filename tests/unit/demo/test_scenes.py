"""What the tiny model learns from: exact scenes, and an autoencoder that the stock VAE loader reads."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from demo import autoencoder, judge, photos, scenes, subjects, tiny_model, train_judge
from demo.autoencoder import NarrowAutoencoder, padded
from demo.scenes import Paint, Rendered, Scene, Thing
from demo.subjects import SUBJECTS, Subject

distance_inside: Any = ndimage.distance_transform_edt
GROUNDS = (*scenes.GROUNDS, scenes.PHOTO)
LIGHTS = np.arange(0.78, 1.0801, 0.01)[:, None, None]


def thing(shape: str = "star", colour: str = "orange", x: float = 0.5, y: float = 0.5, size: float = 0.5, tilt: float = 0.0) -> Thing:
    return Thing(shape, Paint(colour), x, y, size, tilt)


def colour_error(pixels: np.ndarray, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """How far pixels [N, 3] are from a colour under the light that fits best (of 0.78 to 1.08), and that light: [N] each."""
    lit = np.minimum(LIGHTS * np.asarray(scenes.COLOURS[colour]), 255)
    errors = np.abs(lit - pixels[None].astype(float)).max(-1)
    return errors.min(0), LIGHTS[errors.argmin(0), 0, 0]


def test_there_is_enough_to_learn() -> None:
    assert len(set(scenes.SHAPES)) >= 10
    assert len(scenes.COLOURS) >= 8
    assert len(set(scenes.COLOURS.values())) == len(scenes.COLOURS)
    assert len(set(scenes.GROUNDS)) >= 8
    assert set(scenes.PATTERNS) == {"halves", "stripes", "dots"}


AREAS = {
    "ball": math.pi * 0.88**2,
    "box": 1.44**2,
    "triangle": 1.8 * 1.62 / 2,
    "star": 10 * 0.95 * 0.4 * math.sin(math.pi / 5) / 2,
    "ring": math.pi * (0.9**2 - 0.46**2),
    "cross": 2 * 1.76 * 0.6 - 0.6**2,
    "arrow": 1.0 * 0.52 + 1.4 * 0.82 / 2,
}
"""The areas of shapes in a square from -1 to 1, by hand."""


@pytest.mark.parametrize("shape", AREAS)
def test_a_shape_has_its_area_at_every_tilt(shape: str) -> None:
    for tilt in (0.0, 11.0):
        mask = scenes.shape_mask(shape, 96, tilt)
        assert mask.dtype == np.float32
        assert mask.mean() * 4 == pytest.approx(AREAS[shape], rel=0.025)


def test_no_two_shapes_are_alike() -> None:
    drawn = {shape: scenes.shape_mask(shape, 64) for shape in scenes.SHAPES}
    for one, two in itertools.combinations(drawn.values(), 2):
        assert np.minimum(one, two).sum() / np.maximum(one, two).sum() < 0.9
    for unknown in (lambda: scenes.shape_mask("cube", 64), lambda: scenes.ground_pixels("lava", 64, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=r"unknown .*; known:"):
            unknown()


@pytest.mark.parametrize("ground", scenes.GROUNDS)
def test_a_scene_is_the_same_every_time(ground: str) -> None:
    scene = Scene((thing(),), ground, seed=5)
    one = scenes.render(scene, 64)
    two = scenes.render(scene, 64)
    assert one.image.dtype == np.uint8
    assert one.image.shape == (64, 64, 3)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, scenes.render(Scene((thing(),), ground, seed=6), 64).image)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_masks_boxes_and_colours_are_exact(shape: str, colour: str) -> None:
    rendered = scenes.render(Scene((thing(shape, colour, 0.55, 0.45, 0.6, 9.0),), "grass", seed=3))
    (mask,), (box,) = rendered.masks, rendered.boxes
    rows, columns = np.where((mask > 0.5).any(1))[0], np.where((mask > 0.5).any(0))[0]
    assert box == (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    assert abs(box[0] + box[2] / 2 - 0.55 * 128) < 12
    assert abs(box[1] + box[3] / 2 - 0.45 * 128) < 12
    error, light = colour_error(rendered.image[mask == 1], colour)
    assert error.max() < 9
    assert light.mean() == pytest.approx(scenes.MEAN_LIGHT, abs=0.05)


def test_far_from_an_object_the_ground_is_untouched() -> None:
    rendered = scenes.render(Scene((thing(size=0.4),), "bricks", seed=3))
    empty = scenes.render(Scene((), "bricks", seed=3))
    far = distance_inside(rendered.masks[0] == 0) > 0.4 * 128 / 3
    assert 0.2 < far.mean() < 1
    assert np.array_equal(rendered.image[far], empty.image[far])
    assert not np.array_equal(rendered.image, empty.image)


def test_a_later_object_hides_an_earlier_one() -> None:
    first = thing("ball", "red", 0.4)
    second = thing("box", "blue", 0.6)
    alone = [scenes.render(Scene((one,), "snow", seed=1)).masks[0] for one in (first, second)]
    both = scenes.render(Scene((first, second), "snow", seed=1))
    assert np.array_equal(both.masks[1], alone[1])
    np.testing.assert_allclose(both.masks[0], alone[0] * (1 - alone[1]), atol=1e-6)
    overlap = (alone[0] == 1) & (alone[1] == 1)
    assert overlap.sum() > 100
    assert colour_error(both.image[overlap], "blue")[0].max() < 9
    assert both.boxes[0] == scenes.box_of(both.masks[0])
    assert both.boxes[0][2] < scenes.box_of(alone[0])[2]


def test_a_hidden_object_has_an_empty_box() -> None:
    assert scenes.render(Scene((thing("star", size=0.2), thing("box", "blue", size=0.6)), "sand")).boxes[0] == (0, 0, 0, 0)


@pytest.mark.parametrize("pattern", scenes.PATTERNS)
def test_a_pattern_has_two_colours(pattern: str) -> None:
    paint = Paint("red", "white", pattern)
    rendered = scenes.render(Scene((Thing("ball", paint, 0.5, 0.5, 0.7),), "grass"))
    pixels = rendered.image[rendered.masks[0] == 1]
    errors = [colour_error(pixels, colour)[0] for colour in ("red", "white")]
    assert np.minimum(*errors).max() < 9
    assert all((error < 9).mean() > 0.15 for error in errors)
    assert paint.words == f"red and white {pattern}"
    with pytest.raises(ValueError, match="two colours"):
        scenes.render(Scene((Thing("ball", Paint("red", None, pattern), 0.5, 0.5, 0.7),), "grass"))


def test_a_photograph_is_the_ground() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    rendered = scenes.render(Scene((thing(size=0.3),), scenes.PHOTO, photo=photo))
    far = distance_inside(rendered.masks[0] == 0) > 16
    difference = np.abs(rendered.image[far].astype(int) - photo[far])
    assert difference.mean() < 2
    assert difference.max() < 10


def test_captions() -> None:
    star = thing()
    ball = thing("ball", "red")
    assert Scene((star,), "grass").caption() == "an orange star on grass"
    assert Scene((ball,), "water").caption(prefix="a photo of ") == "a photo of a red ball on water"
    assert Scene((star, ball), "sky").caption() == "an orange star and a red ball on sky"
    assert Scene((star, ball), "sky").caption(with_ground=False) == "an orange star and a red ball"
    assert Scene((ball,), scenes.PHOTO).caption() == "a red ball on a photo"


def test_a_third_of_the_combinations_is_held_out_and_stays_so() -> None:
    triples = list(itertools.product(scenes.SHAPES, scenes.COLOURS, GROUNDS))
    part = sum(scenes.held_out(*triple) for triple in triples) / len(triples)
    assert 0.28 < part < 0.39
    assert part == 259 / 720
    for values in (scenes.SHAPES, scenes.COLOURS, GROUNDS):
        for value in values:
            with_it = [scenes.held_out(*triple) for triple in triples if value in triple]
            assert 0 < sum(with_it) < len(with_it)
    for triple in (("fish", "blue", "water"), ("heart", "purple", "night"), ("moon", "yellow", "night"), ("cross", "green", "photo")):
        assert scenes.held_out(*triple)
    for triple in (("star", "orange", "grass"), ("ball", "red", "grass"), ("ball", "red", "photo"), ("box", "white", "snow")):
        assert not scenes.held_out(*triple)


def test_training_never_shows_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    photo = np.zeros((8, 8, 3), np.uint8)
    shown = set()
    counts = []
    for number in range(3000):
        scene = scenes.random_scene(rng, photo if number % 4 == 0 else None)
        assert (scene.ground == scenes.PHOTO) == (number % 4 == 0)
        counts.append(len(scene.things))
        for one in scene.things:
            assert one.paint.pattern is None
            assert one.paint.second is None
            assert not scenes.held_out(one.shape, one.paint.colour, scene.ground)
            shown.add((one.shape, one.paint.colour, scene.ground))
    assert len(shown) > 0.97 * (720 - 259)
    # Two objects are refused more often, for either may be held out.
    assert 0.15 < counts.count(2) / len(counts) < 0.3
    assert set(counts) == {1, 2}
    assert any(
        scenes.held_out(one.shape, one.paint.colour, scene.ground)
        for scene in (scenes.random_scene(rng, allow_held_out=True) for _ in range(50))
        for one in scene.things
    )


def test_random_scenes_show_all_of_their_objects_in_the_captions_order() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        scene = scenes.random_scene(rng, two=0.7)
        rendered = scenes.render(scene, 64)
        assert [one.x for one in scene.things] == sorted(one.x for one in scene.things)
        for one, mask in zip(scene.things, rendered.masks, strict=True):
            whole = scenes.shape_mask(one.shape, round(one.size * 64), one.tilt)
            assert mask.sum() > 0.85 * whole.sum()


@pytest.fixture(scope="module")
def autoencoders() -> tuple[NarrowAutoencoder, Any]:
    """A narrow autoencoder of random weights, and ComfyUI's TAESD that loaded it padded, latents scaled by 0.75; in float64."""
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    narrow = NarrowAutoencoder()
    for parameter in narrow.parameters():
        parameter.data += torch.randn_like(parameter) * 0.03
    stock = TAESD()
    stock.load_state_dict(padded(narrow, 0.75, stock.state_dict()))
    return narrow.double(), stock.double()


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_the_padded_autoencoder_encodes_as_the_narrow_one(autoencoders: tuple[NarrowAutoencoder, Any], size: tuple[int, int]) -> None:
    narrow, stock = autoencoders
    pictures = torch.rand(2, 3, *size).double()
    with torch.no_grad():
        wanted = narrow.encode(pictures)
        found = stock.encode(pictures * 2 - 1)
    assert wanted.shape == (2, 4, size[0] // 8, size[1] // 8)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted / 0.75, atol=1e-8, rtol=0)


def test_the_padded_autoencoder_decodes_as_the_narrow_one(autoencoders: tuple[NarrowAutoencoder, Any]) -> None:
    narrow, stock = autoencoders
    latents = torch.randn(2, 4, 9, 5).double()
    with torch.no_grad():
        wanted = narrow.decode(latents)
        found = stock.decode(latents / 0.75)
    assert wanted.shape == (2, 3, 72, 40)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted * 2 - 1, atol=1e-8, rtol=0)


def test_a_layout_without_room_is_refused(autoencoders: tuple[NarrowAutoencoder, Any]) -> None:
    reference = {key: value for key, value in autoencoders[1].state_dict().items() if "taesd_decoder.1." not in key}
    with pytest.raises(KeyError, match=r"taesd_decoder\.1\.weight"):
        padded(autoencoders[0], 1.0, reference)


def test_the_registration_is_made_once_and_takes_only_the_tiny_model(model: Any) -> None:
    import comfy.supported_models

    from demo import registration, tiny_model

    registration.register()
    registration.register()
    assert [known.__name__ for known in comfy.supported_models.models].count("TinySD") == 1
    tiny = tiny_model.UNET
    sd15 = comfy.supported_models.SD15.unet_config
    shared = {"adm_in_channels": None, "use_temporal_attention": False}

    def takers(config: dict[str, Any]) -> list[str]:
        return [known.__name__ for known in comfy.supported_models.models if known.matches(config)]

    assert takers({**tiny, **shared}) == ["TinySD"]
    assert takers({**tiny, **shared, **sd15}) == ["SD15"]
    assert type(model.model.model_config).__name__ == "TinySD"
    assert model.model.model_config.inpaint_model()
    assert registration.NODE_CLASS_MAPPINGS == {}


def test_a_checkpoint_file_comes_back_as_what_learned_it(tmp_path: Path) -> None:
    """Training can begin with a checkpoint: UNet, text encoder and the narrow autoencoder are those that were saved."""
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    unet = tiny_model.build_unet()
    text = tiny_model.TextEncoder()
    narrow = autoencoder.NarrowAutoencoder()
    saved = autoencoder.padded(narrow, 1.0, TAESD(latent_channels=4).state_dict())
    tiny_model.save_checkpoint(tmp_path / "tiny.safetensors", unet.state_dict(), text.comfyui_state(), saved, {})
    unet_state, text_state, autoencoder_state = tiny_model.load_checkpoint(tmp_path / "tiny.safetensors")
    fresh = tiny_model.TextEncoder()
    tokens = torch.randint(0, 49408, (2, 77))
    fresh.load_comfyui_state(text_state)
    torch.testing.assert_close(fresh(tokens), text(tokens), atol=2e-2, rtol=1e-2)
    assert all(torch.equal(unet_state[key], value.half()) for key, value in unet.state_dict().items())
    picture = torch.rand(1, 3, 32, 32)
    back = autoencoder.narrowed(autoencoder_state)
    torch.testing.assert_close(back.decode(back.encode(picture)), narrow.decode(narrow.encode(picture)), atol=2e-2, rtol=1e-2)


def test_subjects_are_unlike_each_other_and_what_training_showed() -> None:
    assert len(SUBJECTS) >= 8
    for part in ([one.shape for one in SUBJECTS], [one.name for one in SUBJECTS], [frozenset(one.colours) for one in SUBJECTS]):
        assert len(set(part)) == len(SUBJECTS)
    assert {one.paint.pattern for one in SUBJECTS} == {"halves", "stripes"}  # and training's family has none, as a test above says
    for one in SUBJECTS:
        assert subjects.distance(*(scenes.COLOURS[name] for name in one.colours)) > 30
        assert 4 <= len(one.grounds()) <= 8
    assert "snow" not in Subject("star", Paint("red", "white", "stripes")).grounds()
    assert Subject("star", Paint("orange", "purple", "stripes")).grounds() == list(scenes.GROUNDS)
    with pytest.raises(ValueError, match="one colour"):
        _ = Subject("star", Paint("red")).colours


class Watch:
    """Which photographs are loaded and which scenes rendered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.photographs: set[str] = set()
        self.drawn: list[tuple[Scene, Rendered]] = []
        load = photos.load
        render = scenes.render

        def watched_load(name: str) -> np.ndarray:
            self.photographs.add(name)
            return load(name)

        def watched_render(scene: Scene, size: int = 128) -> Rendered:
            self.drawn.append((scene, render(scene, size)))
            return self.drawn[-1][1]

        monkeypatch.setattr(photos, "load", watched_load)
        monkeypatch.setattr(scenes, "render", watched_render)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_references_show_the_whole_subject(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    shown, again, fewer, others = (subjects.references(subject, count, seed) for count, seed in ((5, 0), (5, 0), (2, 0), (5, 1)))
    assert watch.photographs <= set(photos.TRAINING)
    assert len({scene.ground for scene, _ in watch.drawn[:5]}) >= 4
    for index, (scene, rendered) in enumerate(watch.drawn[:5]):
        (one,), (mask,) = scene.things, rendered.masks
        assert one.paint == subject.paint
        assert 0.4 <= one.size <= 0.65
        assert np.array_equal(shown[index].image, rendered.image)
        assert np.array_equal(shown[index].image, again[index].image)
        assert not np.array_equal(shown[index].image, others[index].image)
        assert mask.sum() == pytest.approx(scenes.shape_mask(subject.shape, round(one.size * 128), one.tilt).sum())
        assert not any(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert [one.image.tobytes() for one in fewer] == [one.image.tobytes() for one in shown[:2]]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_backgrounds_leave_the_box_to_the_subject(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    shown = subjects.backgrounds(subject)
    again = subjects.backgrounds(subject, 20, 0)
    assert watch.photographs == set(photos.HELD_OUT)
    assert len(shown) == 20
    assert sum(one.similar for one in shown) == 7
    assert {scene.ground for scene, _ in watch.drawn[:20]} == {scenes.PHOTO, *subject.grounds()}
    for one, two, (scene, rendered) in zip(shown, again, watch.drawn, strict=False):
        x, y, width, height = one.box
        assert 48 <= min(width, height) <= max(width, height) <= 80
        assert x >= 0 <= y
        assert max(x + width, y + height) <= 128
        assert width / height == pytest.approx(subject.aspect, rel=0.16) or min(width, height) == 48
        assert one.box == two.box
        assert np.array_equal(one.image, two.image)
        assert len(scene.things) == int(one.similar)
        for beside in scene.things:
            assert beside.shape == subject.shape
            assert beside.paint.pattern is None
            assert beside.paint.colour not in subject.colours
            assert rendered.masks[0].sum() > 500
            assert not rendered.masks[0][y : y + height, x : x + width].any()


@pytest.fixture(scope="module")
def eye() -> judge.Judge:
    return judge.load()


@pytest.mark.parametrize("pattern", [False, True])
def test_the_judge_knows_fresh_renders(eye: judge.Judge, pattern: bool) -> None:
    """A quick look at what `train_judge` measures on 600."""
    right = train_judge.right_of(eye, seed=7, count=60, pattern=pattern)
    assert {name: sum(values) >= 54 for name, values in right.items()} == {"shape": True, "colour": True, "ground": True}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_the_judge_tells_how_much_of_a_subject_has_which_colour(eye: judge.Judge, subject: Subject) -> None:
    scene = Scene((Thing(subject.shape, subject.paint, 0.5, 0.5, 0.6),), "bricks", seed=2)
    rendered = scenes.render(scene)
    found = judge.look(eye, torch.from_numpy(rendered.image)[None].float() / 255)[0].best(subject.shape)
    assert found is not None
    pixels = rendered.image[rendered.masks[0] == 1]
    errors = np.stack([colour_error(pixels, name)[0] for name in subject.colours])
    for name, part in zip(subject.colours, (errors.argmin(0) == 0, errors.argmin(0) == 1), strict=True):
        assert found.colours[name] == pytest.approx(part.mean(), abs=0.08)
    assert sum(found.colours.values()) == pytest.approx(1)
    assert found.painted(*subject.colours)
    assert found.painted(*reversed(subject.colours))


def test_the_judge_can_look_at_a_box_only(eye: judge.Judge) -> None:
    rendered = scenes.render(Scene((thing("ball", "red", 0.25, size=0.4), thing("ball", "blue", 0.75, size=0.4)), "sand"))
    pictures = torch.from_numpy(rendered.image).expand(3, -1, -1, -1).float() / 255
    masks = torch.zeros(3, 128, 128)
    masks[1, :, :64] = 1
    masks[2, :, :96] = 1
    nothing, left, half = judge.look(eye, pictures, masks)
    whole = judge.look(eye, pictures[:1])[0]
    assert [one.colour for one in whole.objects] == ["red", "blue"]
    assert nothing.objects == ()
    assert [one.colour for one in left.objects] == ["red"]
    assert np.array_equal(left.objects[0].mask, whole.objects[0].mask)
    assert np.array_equal(half.objects[1].mask, whole.objects[1].mask & (np.arange(64) < 48))


def test_subjects_survive_the_autoencoder(eye: judge.Judge) -> None:
    """What the autoencoder loses no training can bring back: shape and colours must still be seen in pictures that passed it."""
    narrow = autoencoder.narrowed(tiny_model.load_checkpoint(tiny_model.CHECKPOINT)[2])
    for subject in SUBJECTS:
        pictures = torch.stack([torch.from_numpy(one.image) for one in subjects.references(subject, 8, seed=1)]).movedim(-1, 1).float()
        with torch.no_grad():
            back = narrow.decode(narrow.encode(pictures / 255)).clamp(0, 1).movedim(1, -1)
        found = [verdict.best(subject.shape) for verdict in judge.look(eye, back)]
        right = [one is not None and one.shape == subject.shape and one.painted(*subject.colours) for one in found]
        assert sum(right) >= 6, subject.name


def test_two_colours_count_when_they_are_the_main_ones() -> None:
    def found(**colours: float) -> judge.Found:
        return judge.Found("star", "red", np.ones((64, 64), bool), np.zeros(3), dict.fromkeys(scenes.COLOURS, 0.0) | colours)

    assert found(red=0.5, white=0.4, blue=0.1).painted("white", "red")
    assert found(red=0.8, white=0.15, blue=0.05).painted("red", "white")
    assert not found(red=0.8, white=0.14, blue=0.06).painted("red", "white")
    assert not found(red=0.4, white=0.25, blue=0.35).painted("red", "white")
    assert not found(red=0.5, white=0.5).painted("red", "blue")


def test_the_training_of_the_judge_labels_both_colours() -> None:
    ball = Thing("ball", Paint("red", "white", "halves"), 0.25, 0.5, 0.4)
    box = thing("box", "blue", 0.75, 0.5, 0.4)
    scene = Scene((ball, box), "grass", 1)
    objects, colours, ground = train_judge.labels_of(scene, scenes.render(scene))
    assert judge.GROUND_NAMES[ground] == "grass"
    names = np.asarray(judge.COLOUR_NAMES)[colours]
    assert set(names[objects == 0]) == {""}
    assert set(names[objects == 2]) == {"blue"}
    for rows, name in ((slice(0, 31), "red"), (slice(33, 64), "white")):
        assert set(names[rows][objects[rows] == 1]) == {name}
    rng = np.random.default_rng(0)
    kinds = [train_judge.patterned(rng, scene, 0.5).things[1].paint.pattern for _ in range(60)]
    assert set(kinds) == {None, *scenes.PATTERNS}
    assert 15 < kinds.count(None) < 45


def test_features_are_of_the_object_alone(eye: judge.Judge) -> None:
    """Neither the ground, nor the place, nor the size tells much; the subject does."""
    shown = {subject: subjects.references(subject, 3) for subject in SUBJECTS}
    images = torch.stack([torch.from_numpy(one.image) for group in shown.values() for one in group]).float() / 255
    masks = torch.stack([torch.from_numpy(one.masks[0]) for group in shown.values() for one in group])
    found = judge.features(eye, images, masks)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    alike = (found @ found.T).numpy()
    same = np.kron(np.eye(len(SUBJECTS)), np.ones((3, 3))) > 0
    assert alike[same & ~np.eye(len(alike), dtype=bool)].min() > alike[~same].max()
    solid = (masks > 0.5).float()
    elsewhere = images * solid[..., None] + torch.rand_like(images) * (1 - solid[..., None])
    torch.testing.assert_close(judge.features(eye, elsewhere, solid), judge.features(eye, images, solid), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="mask is empty"):
        judge.features(eye, images[:1], torch.zeros(1, 128, 128))
