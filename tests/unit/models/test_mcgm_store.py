"""What one MCGM training leaves on disk: all of it or nothing, under names that were free, found again by Load Poseable Subjects."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.conditioning import handles
from maskprompt.conditioning.handles import Handle, Mention
from maskprompt.models import files
from maskprompt.models.mcgm import file as mask_encoder_file
from maskprompt.models.mcgm import mask_encoder
from maskprompt.models.mcgm import store as mcgm_store
from maskprompt.models.mcgm.file import FOLDER
from maskprompt.nodes.mcgm import LoadMCGM
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.text_learner import TextLearner
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from demo import registration, tiny_model

from ...support.learners import unet_of
from ...support.mask_encoders import blobs
from ...support.text_learners import roughened, stock

WIDTH = 128
WORDS = ("cat", "striped dog")
FILES = ["embeddings/fox-cat", "embeddings/fox-striped-dog", "loras/fox", "mcgm/fox"]
"""What a training of these words under the name fox leaves."""


@pytest.fixture
def root(folders: Path) -> Path:
    """A models folder of our own, known to ComfyUI; nothing lies in it."""
    for kind in ("embeddings", "loras", FOLDER):
        files.register_folder(kind)
    (folders / "models" / "sams").rmdir()
    return folders / "models"


def vectors(number: int) -> dict[str, Tensor]:
    return {"l": torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(number))}


def network(subjects: int = 2) -> mask_encoder.MaskEncoder:
    encoder = mask_encoder.fresh(WIDTH, subjects, seed=3)
    if encoder.subjects is not None:
        encoder.subjects.data = torch.randn(subjects, WIDTH, generator=torch.Generator().manual_seed(4))
    return encoder


def lora() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {f"diffusion_model.some.layer.lora_{part}.weight": torch.randn(3, 3, generator=generator).half() for part in ("up", "down")}


def save(name: str = "fox", words: tuple[str, ...] = WORDS, **more: Any) -> Any:
    return mcgm_store.save(name, words, **{"vectors": vectors, "encoder": network(), "lora": lora(), "base": "tiny", **more})


def stored(root: Path) -> dict[str, bytes]:
    """Every file in the models folder, by its place without suffix."""
    found = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert all(path.suffix == ".safetensors" for path in found), found.keys()
    return {path.with_suffix("").as_posix(): content for path, content in found.items()}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("cat",), ["fox-cat"]),
        (("cat", "big dog", "cat"), ["fox-cat", "fox-big-dog", "fox-cat-2"]),
        (("cat",) * 4, ["fox-cat", "fox-cat-2", "fox-cat-3", "fox-cat-4"]),
        (("big  dog's", "(cat:1.2)", "embedding:own", "T-rex!"), ["fox-big-dog-s", "fox-cat-1-2", "fox-embedding-own", "fox-T-rex"]),
        (("\u043a\u043e\u0442", "!?", "café"), ["fox-subject", "fox-subject-2", "fox-caf"]),
        (("cat 2", "cat", "cat"), ["fox-cat-2", "fox-cat", "fox-cat-3"]),  # what a number makes of one word another one says
        (("cat", "cat", "cat 2"), ["fox-cat", "fox-cat-2", "fox-cat-2-2"]),
        (("Cat", "cat", "CAT"), ["fox-Cat", "fox-cat-2", "fox-CAT-3"]),  # one file on Windows and macOS
        ((), []),
    ],
)
def test_a_handle_is_called_after_its_word(words: tuple[str, ...], wanted: list[str]) -> None:
    assert mcgm_store.handle_names("fox", words) == wanted


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["fox", "a", "Scene_1", "v1.5", "0", "fox-2", "cat.pt"]),
    st.lists(st.one_of(st.text(max_size=12), st.sampled_from(["cat", "Cat", "cat 2", "cat-2", "cat.pt", "2", "-"])), max_size=6),
)
def test_any_words_make_names_that_prompts_can_say(name: str, words: list[str]) -> None:
    """No two the same, no one read as another, each the name of a file in its folder."""
    found = mcgm_store.handle_names(name, words)
    assert len({own.lower() for own in found}) == len(words)
    for own in found:
        handles.check_name(own)
        assert re.fullmatch(rf"{re.escape(name)}-[A-Za-z0-9-]+", own)
    known = [Handle(own, "") for own in found]
    assert handles.mentions(" and ".join(handle.text for handle in known), known) == [Mention(n, True) for n in range(len(known))]


@pytest.mark.parametrize(
    "name", ["", "-fox", ".fox", "fox cat", "../fox", "pets/fox", "pets\\fox", "(fox", "fox,", "<fox>", "fox:1", "füchs"]
)
def test_a_name_that_no_prompt_could_say_is_refused(root: Path, name: str) -> None:
    for call in (mcgm_store.handle_names, mcgm_store.free_name, save):
        with pytest.raises(ValueError, match="cannot be a handle's name"):
            call(name, WORDS)
    assert stored(root) == {}


def test_a_name_that_no_disk_would_take_is_refused(root: Path) -> None:
    for name, words in (("fox" * 80, WORDS), ("fox", ("cat", "dog " * 60))):
        with pytest.raises(ValueError, match=r"'fox.*\.\.\.' is too long for a handle's name \(2\d\d characters, at most 100\)"):
            mcgm_store.handle_names(name, words)
    longest = "x" * (100 - len("fox-"))
    save(words=(longest,), encoder=network(0))
    assert f"embeddings/fox-{longest}" in stored(root)


def test_all_of_a_training_is_written(root: Path) -> None:
    about, loaded = save()
    assert sorted(stored(root)) == FILES
    own = [handles.fingerprint(vectors(number)) for number in range(2)]
    assert about.handles == (Handle("fox-cat", "cat", own[0]), Handle("fox-striped-dog", "striped dog", own[1]))
    assert (about.lora, about.base) == ("fox.safetensors", "tiny")
    for number, name in enumerate(FILES[:2]):
        written = load_file(root / f"{name}.safetensors")
        assert written.keys() == {"emb_params"}
        assert torch.equal(written["emb_params"], vectors(number)["l"])
    written = load_file(root / "loras" / "fox.safetensors")
    wanted = lora()
    assert written.keys() == wanted.keys()
    assert all(written[key].dtype == wanted[key].dtype and torch.equal(written[key], wanted[key]) for key in wanted)
    with safe_open(root / "loras" / "fox.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "maskprompt": "mcgm", "words": "cat, striped dog"}
    again = mask_encoder_file.load(str(root / FOLDER / "fox.safetensors"))
    masks = blobs(2, 64, 64)
    for one in (loaded, again):
        assert (one.about, one.name) == (about, "fox.safetensors")
        assert torch.equal(one.network(masks), network()(masks))
        assert not any(value.requires_grad for value in one.network.parameters())


def test_sdxls_handles_have_two_vectors(root: Path) -> None:
    pair = {"l": torch.randn(1, 768), "g": torch.randn(1, 1280)}
    about, _ = save(words=("cat",), vectors=lambda _: pair, encoder=mask_encoder.fresh(2048))
    written = load_file(root / "embeddings" / "fox-cat.safetensors")
    assert written.keys() == {"clip_l", "clip_g"}
    assert all(torch.equal(written[f"clip_{letter}"], rows) for letter, rows in pair.items())
    assert about.handles[0].fingerprint == handles.fingerprint(pair)


@pytest.mark.parametrize("mode", ["paper", "bound"])
def test_without_a_mask_encoder_it_is_break_a_scene(root: Path, mode: str) -> None:
    """The same handles and LoRA, and no file for Load Poseable Subjects."""
    about, loaded = save(encoder=network(2 if mode == "bound" else 0))
    whole = stored(root)
    plain, nothing = save("owl", encoder=None)
    assert loaded is not None
    assert nothing is None
    assert sorted(stored(root).keys() - whole.keys()) == ["embeddings/owl-cat", "embeddings/owl-striped-dog", "loras/owl"]
    assert [(own.word, own.fingerprint) for own in plain.handles] == [(own.word, own.fingerprint) for own in about.handles]
    assert (plain.lora, plain.base) == ("owl.safetensors", "tiny")
    for name in FILES[:3]:
        one, other = (load_file(root / f"{own}.safetensors") for own in (name, name.replace("fox", "owl")))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("root")
def test_without_a_mask_encoder_an_earlier_ones_of_the_same_name_goes() -> None:
    """Its handles and LoRA are replaced, so that it would pose others' subjects."""
    save("owl")
    *_, encoder = mcgm_store.paths("owl", WORDS, None)
    assert encoder.exists()
    save("owl", encoder=None)
    assert not encoder.exists()


@pytest.mark.parametrize("taken", FILES)
def test_any_one_file_of_a_name_is_enough_for_a_number(root: Path, taken: str) -> None:
    """No file is overwritten: not the one that is there, nor the one that the next training writes."""
    assert mcgm_store.free_name("fox", WORDS) == "fox"
    contents: dict[str, bytes] = {}
    for number, name in enumerate(("fox-2", "fox-3", "fox-4"), 1):
        path = root / f"{taken if number == 1 else taken.replace('fox', f'fox-{number}')}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"precious {number}".encode())
        contents = stored(root)
        assert mcgm_store.free_name("fox", WORDS) == name
    save("fox-4")
    now = stored(root)
    assert {name: now[name] for name in contents} == contents
    assert sorted(now.keys() - contents.keys()) == [name.replace("fox", "fox-4") for name in FILES]
    assert mcgm_store.free_name("fox", WORDS) == "fox-5"
    assert mcgm_store.free_name("fox-2", WORDS) == "fox-2-2"
    assert mcgm_store.free_name("owl", WORDS) == "owl"


def test_other_words_do_not_take_a_name(root: Path) -> None:
    """But the LoRA's and the mask encoder's files have no word in them."""
    (root / "embeddings").mkdir(parents=True)
    (root / "embeddings" / "fox-bird.safetensors").touch()
    assert mcgm_store.free_name("fox", WORDS) == "fox"
    assert mcgm_store.free_name("fox", ("cat", "bird")) == "fox-2"
    save(words=("fish",), encoder=network(1))
    assert mcgm_store.free_name("fox", WORDS) == "fox-2"


@pytest.mark.parametrize("other", ["embeddings/pets/fox-cat.safetensors", "embeddings/fox-cat.pt", "embeddings/pets/FOX-CAT.bin",
                                   "elsewhere/fox-striped-dog.safetensors"])  # fmt: skip
def test_a_handle_shares_its_name_with_no_embedding_that_comfyui_knows(root: Path, other: str) -> None:
    """ComfyUI takes any of them, in whichever folder, for `embedding:fox-cat`."""
    import folder_paths

    folder_paths.add_model_folder_path("embeddings", str(root / "elsewhere"))
    assert mcgm_store.free_name("fox", WORDS) == "fox"
    path = root / other
    path.parent.mkdir(parents=True)
    path.touch()
    assert mcgm_store.free_name("fox", WORDS) == "fox-2"
    assert mcgm_store.free_name("fox", ("bird",)) == "fox"


class DiskFullError(OSError): ...


@pytest.mark.parametrize("error", [DiskFullError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it is written"])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("replaced", [False, True], ids=["under a free name", "in place of others"])
def test_a_failure_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: bool, replaced: bool, error: type[BaseException]
) -> None:
    """At whichever of the four files; what lay there before stays, of that name too, and no file is there before all of them are."""
    save("owl")
    if replaced:
        save(vectors=lambda number: vectors(number + 10))
    before = stored(root)
    write = files.write_weights
    tried = list[str]()

    def failing(path: Any, *given: Any) -> None:
        folder = Path(path).relative_to(root).parts[0]
        tried.append(f"{folder}/{Path(path).stem}")
        if after or len(tried) <= number:
            write(path, *given)
        if len(tried) == number + 1:
            assert {name: content for name, content in stored(root).items() if "/.maskprompt-" not in name} == before
            raise error

    monkeypatch.setattr(files, "write_weights", failing)
    with pytest.raises(error):
        save()
    assert tried == FILES[: number + 1]
    assert stored(root) == before
    monkeypatch.undo()


def bad_encoder() -> mask_encoder.MaskEncoder:
    encoder = network()
    encoder.linear.weight.data[0, 0] = float("nan")
    return encoder


def bad_vectors(number: int) -> dict[str, Tensor]:
    if number == 1:
        raise RuntimeError("out of memory")
    return vectors(number)


def shared_memory() -> dict[str, Tensor]:
    """Which safetensors does not write."""
    weight = torch.zeros(4)
    return {"one": weight, "other": weight}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda: {"encoder": bad_encoder()}, "holds numbers that are none"),
        (lambda: {"encoder": network(3)}, "for 3 subjects, but 2 handles"),
        (lambda: {"vectors": bad_vectors}, "out of memory"),
        (lambda: {"lora": shared_memory()}, "share memory"),
    ],
)
def test_what_cannot_be_saved_leaves_nothing_behind(root: Path, more: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        save(**more())
    assert stored(root) == {}


@pytest.mark.parametrize("kind", ["embeddings", "loras", FOLDER])
def test_a_folder_that_cannot_be_written_to(root: Path, kind: str) -> None:
    """Here a file lies in its place."""
    (root / kind).write_bytes(b"no folder")
    with pytest.raises(OSError, match=kind):
        save()
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == [kind]


def test_load_mcgm_finds_all_that_a_training_left(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the learner's own encoder says of its handles is what stock text nodes then say of them, with a LoRA for text and UNet."""
    registration.register()
    clip = comfy.sd.load_checkpoint_guess_config(
        str(tiny_model.CHECKPOINT), output_vae=False, output_model=False, embedding_directory=[str(root / "embeddings")]
    )[1]
    model = unet_of(32, small=True)
    before = stock(clip, "a photo of a cat")
    text = TextLearner(clip, WORDS, "lora", 2)
    learner = Learner(model, "lora", 2, text=text)
    with learner.loaded(), torch.no_grad():
        roughened(text)
        encoded = text.encode(text.tokens("a photo of x and x", [1, 0])[0])
        learned = learner.learned()
    name = mcgm_store.free_name("fox", WORDS)
    about, own = mcgm_store.save(name, WORDS, text.handle, network(), learned)
    with caplog.at_level(logging.WARNING):
        trained, changed, loaded, words = LoadMCGM.execute(model, clip, f"{name}.safetensors").args
    assert not caplog.records
    assert loaded.about == about
    assert own is not None
    assert torch.equal(loaded.network(blobs(2, 64, 64)), own.network(blobs(2, 64, 64)))
    assert words == "embedding:fox-cat and embedding:fox-striped-dog"
    assert len(trained.patches) == len(learner.adapted.adapters)
    found = stock(changed, "a photo of embedding:fox-striped-dog and embedding:fox-cat")
    as_words = stock(clip, "a photo of striped dog and cat")
    assert (encoded[0] - as_words[0]).std() > 0.05 * as_words[0].std()
    # The checkpoint is in half precision, in which the stock loader keeps the sum of weight and LoRA.
    assert (found[0] - encoded[0]).std() < 0.01 * (encoded[0] - as_words[0]).std()
    assert torch.equal(stock(clip, "a photo of a cat")[0], before[0])
    assert LoadMCGM.execute(model, clip, f"{name}.safetensors", 0.0).args[1] is clip
