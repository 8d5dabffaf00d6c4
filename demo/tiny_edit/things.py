"""The things of tiny-edit's world: cut-outs of the Fluent 3D emoji, their words, and which of them training never sees.

A thing is known by its code point in hexadecimal, which is its file's name in the npm package; its words come from `unicodedata`,
except where Unicode calls it something that nobody would type.
"""

from __future__ import annotations

import unicodedata

NAMED: tuple[str, ...] = (
    # animals
    "1f98a", "1f43c", "1f427", "1f981", "1f438", "1f431", "1f436", "1f43b", "1f437", "1f430", "1f435", "1f989", "1f986", "1f418",
    "1f422", "1f419", "1f41e", "1f98b", "1f433",
    # food
    "1f34e", "1f34c", "1f353", "1f349", "1f34d", "1f955", "1f344", "1f354", "1f369", "1f382",
    # vehicles
    "1f697", "1f68c", "1f680", "2708",
    # tools, and what else lies about
    "2615", "1f3b8", "1f4f7", "1f4fa", "23f0", "2602", "1f451", "1f3a9", "1f45f", "1f381", "26bd", "1f3c6", "1f33b", "1f335",
    "1f383", "26c4",
)  # fmt: skip
"""What captions name: training shows each of them often."""

UNNAMED: tuple[str, ...] = (
    "1f347", "1f40a", "1f42c", "1f984", "1f9a5", "1f995", "1f996", "1f408", "1f415", "1f40e", "1f404", "1f416", "1f411", "1f407", "1f413",
    "1f9a2", "1f9ad", "1f9a6", "1f99d", "1f985", "1f9a9", "1f420", "1f351", "1f952", "1f951", "1f345", "1f346", "1f33d", "1f370",
    "1f9c1", "1f366", "1f95e", "1f968", "1f35e", "1f9c0", "1f377", "1f37a", "1f692", "1f3ce", "1f69a", "1f6f8", "1f388", "1f3bb",
    "1f3b7", "1f527", "1fa93", "1f512", "1f4fb", "1f4f1", "1f570", "231b", "1f4a1", "1f58c", "1f4da", "270f", "2702", "1f52d",
    "1f52c", "1f452", "1f45e", "1f462", "1f455", "1f457", "1f453", "1f45c", "1f302", "1f3c0", "1f3c8", "1f3be", "1f6f9", "1fa81",
    "1f6cb", "1f6cf", "1f6c1", "1f337", "1f334", "1f332", "1fab4", "1f341", "1f3e0", "26fa", "2693", "1f514", "1f56f", "1fab5",
    "1faa3", "1f9fa", "1f9f9", "1f9f2", "1fa9c", "1f9f3", "1f4e6", "1fa95", "1fa97", "1f3a4", "1f48e", "1f490", "1f9f6", "1f96f",
    "1f9c7", "1f32d", "1f32e", "1f95d", "1f965", "1f352", "1f95a",
    "1f42f", "1f42e", "1f40c", "1f41f", "1f41d", "1f993", "1f992", "1f34b", "1f966", "1f355", "1f695", "1f682", "1f681", "1f6b2",
    "1f6f5", "1f941", "1f528", "1f511", "1f4bb", "1f4d5", "1f339", "1fa91",
)  # fmt: skip
"""What training shows in references only, where sentences call it "the thing": so copying is learned apart from names."""

HELD_OUT: tuple[str, ...] = (
    "1f428", "1f994", "1f99c", "1f980", "1f350", "1f950", "1fad6", "1f69c", "1f3ba", "1f392", "1f9f8", "26f5",
)  # fmt: skip
"""Subjects: no picture of training holds one."""

TRAINING: tuple[str, ...] = NAMED + UNNAMED

_WORDS: dict[str, str] = {
    "1f349": "watermelon", "1f34e": "apple", "1f355": "pizza", "1f369": "doughnut", "1f382": "cake", "1f697": "car",
    "1f682": "train", "1f6f5": "scooter", "2615": "mug", "1f4fa": "television", "1f4bb": "laptop", "23f0": "clock", "1f4d5": "book",
    "1f3a9": "hat", "1f45f": "shoe", "1f381": "present", "26bd": "ball", "1f383": "pumpkin", "26c4": "snowman", "1f41d": "bee",
    "1f41e": "ladybug", "1f433": "whale", "1f98b": "butterfly", "1f392": "backpack", "1f420": "striped fish", "1f941": "drum",
}  # fmt: skip


def words_of(code: str) -> str:
    """What an artist calls the thing, without an article: "fox", "mug", "teddy bear"."""
    if code in _WORDS:
        return _WORDS[code]
    return unicodedata.name(chr(int(code, 16))).lower().removesuffix(" face").replace("-", " ")


def with_article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeio' or words.startswith('umb') else 'a'} {words}"
