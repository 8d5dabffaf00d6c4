"""What one MCGM training leaves on disk: handles in models/embeddings, a LoRA in models/loras, the mask encoder in models/mcgm."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from torch import Tensor

from ...conditioning import handles
from ...conditioning.handles import Handle
from .. import files
from . import file as mask_encoder_file
from .bundle import EMBEDDINGS, LORAS
from .file import FOLDER, About, LoadedEncoder
from .mask_encoder import MaskEncoder

LONGEST = 100
"""Characters of a handle's name, without the numbers that tell it from others: most file systems take 255 in all."""


def handle_names(name: str, words: Sequence[str]) -> list[str]:
    """A handle's name for each word: "fox" and ("cat", "big dog", "cat") to fox-cat, fox-big-dog, fox-cat-2.

    No two are the same file, also where a file system does not tell Cat from cat. ValueError for a name that no prompt could say, or that
    is too long for a file.
    """
    for plain in (_handle_name(name, word) for word in words):
        if len(plain) > LONGEST:
            raise ValueError(
                f"'{plain[:40]}...' is too long for a handle's name ({len(plain)} characters, at most {LONGEST}). Use a shorter name, and "
                "one plain word for each subject."
            )
    return _handle_names(name, words)


def free_name(name: str, words: Sequence[str]) -> str:
    """`name`, or with the first number (fox-2) under which nothing is stored yet, so that no file is overwritten.

    Nor may another embedding have a handle's name, in whichever folder: which of them a text node then takes is chance. ValueError as from
    `handle_names`; the number may make a name longer than is taken from the artist.
    """
    import folder_paths

    handle_names(name, words)
    known = {Path(file).stem.lower() for file in folder_paths.get_filename_list(EMBEDDINGS)}
    count = 1
    while _taken(_numbered(name, count), words, known):
        count += 1
    return _numbered(name, count)


def save(
    name: str,
    words: Sequence[str],
    vectors: Callable[[int], Mapping[str, Tensor]],
    encoder: MaskEncoder | None,
    lora: Mapping[str, Tensor],
    base: str = "",
    root: Path | None = None,
) -> tuple[About, LoadedEncoder | None]:
    """Writes everything under a name that is free. `vectors` gives a subject's vectors, as `handles.save` takes them.

    `root`: a models folder, in place of ComfyUI's own ones.

    Without a mask encoder (Break-A-Scene) there is no file in models/mcgm; one that is there is removed. OSError or safetensors' error
    where a file cannot be written; then none is there that was not, and what was there is as it was.
    """
    *embeddings, lora_path, encoder_path = paths(name, words, root)
    with _in_place([*embeddings, lora_path, encoder_path]) as unfinished:
        found: list[Handle] = []
        for number, (word, path) in enumerate(zip(words, embeddings, strict=True)):
            own = vectors(number)
            handles.save(str(unfinished[path].parent), path.stem, own, word)
            found.append(Handle(path.stem, word, handles.fingerprint(own)))
        about = About(tuple(found), lora_path.name, base)
        told = {"format": "pt", "maskprompt": "mcgm", "words": ", ".join(words)}
        files.write_weights(unfinished[lora_path], lora, told)
        loaded: LoadedEncoder | None = None
        if encoder is not None:
            mask_encoder_file.save(encoder, about, str(unfinished[encoder_path]))
            loaded = mask_encoder_file.load(str(unfinished[encoder_path]))
    if encoder is None:
        encoder_path.unlink(missing_ok=True)  # that of an earlier training of this name, which these files replace
    return about, loaded


def check_writable(root: Path | None = None) -> None:
    """Tries the folders that `save` writes into. ValueError that names one into which nothing can be written."""
    for folder in _folders() if root is None else _folders_below(root):
        files.check_writable(folder)


@contextlib.contextmanager
def _in_place(targets: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Gives a path for each target, in a folder beside it, and puts what was written there in its place once all of it was written."""
    with contextlib.ExitStack() as stack:
        folders: dict[Path, Path] = {}
        for folder in dict.fromkeys(target.parent for target in targets):
            folder.mkdir(parents=True, exist_ok=True)
            folders[folder] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".maskprompt-")))
        unfinished = {target: folders[target.parent] / target.name for target in targets}
        yield unfinished
        for target, written in unfinished.items():
            if written.exists():
                written.replace(target)


def _handle_names(name: str, words: Sequence[str]) -> list[str]:
    """`handle_names` of any length: also of a name that a number has made longer."""
    found: list[str] = []
    for plain in (_handle_name(name, word) for word in words):
        taken = {other.lower() for other in found}
        found.append(next(own for count in itertools.count(1) if (own := _numbered(plain, count)).lower() not in taken))
        handles.check_name(found[-1])
    return found


def _handle_name(name: str, word: str) -> str:
    return f"{name}-{'-'.join(part for part in _letters(word).split('-') if part) or 'subject'}"


def paths(name: str, words: Sequence[str], root: Path | None = None) -> list[Path]:
    """Of the handles, the LoRA and the mask encoder, in the models folder `root` or in ComfyUI's own ones."""
    embeddings, loras, encoders = _folders() if root is None else _folders_below(root)
    return [*(embeddings / f"{own}.safetensors" for own in _handle_names(name, words)),
            *(folder / f"{name}.safetensors" for folder in (loras, encoders))]  # fmt: skip


def _folders_below(root: Path) -> tuple[Path, Path, Path]:
    return root / EMBEDDINGS, root / LORAS, root / FOLDER


def _folders() -> tuple[Path, Path, Path]:
    import folder_paths

    files.register_folder(FOLDER)
    embeddings, loras, encoders = (Path(folder_paths.get_folder_paths(folder)[0]) for folder in (EMBEDDINGS, LORAS, FOLDER))
    return embeddings, loras, encoders


def _taken(name: str, words: Sequence[str], known: Set[str]) -> bool:
    """Whether a file of that name is there, or its handles are among the names of embeddings `known`, in small letters."""
    return any(path.exists() for path in paths(name, words)) or any(own.lower() in known for own in _handle_names(name, words))


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}-{count}"


def _letters(word: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in word)
