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
    # since step 81,429: whatever can be held, driven, eaten or met, so that what is copied is seldom seen twice
    "1f30d", "1f30e", "1f30f", "1f31b", "1f31e", "1f31f", "1f321", "1f32f", "1f330", "1f331", "1f333", "1f336", "1f338", "1f33a", "1f33c",
    "1f33e", "1f340", "1f342", "1f348", "1f34a", "1f34f", "1f356", "1f357", "1f358", "1f359", "1f35a", "1f35b", "1f35c", "1f35d", "1f35f",
    "1f360", "1f361", "1f363", "1f364", "1f365", "1f367", "1f368", "1f36a", "1f36b", "1f36c", "1f36d", "1f36e", "1f36f", "1f371", "1f372",
    "1f373", "1f375", "1f376", "1f378", "1f379", "1f37c", "1f37e", "1f37f", "1f380", "1f384", "1f385", "1f389", "1f38d", "1f38e", "1f38f",
    "1f390", "1f393", "1f396", "1f399", "1f39f", "1f3a0", "1f3a1", "1f3a5", "1f3a7", "1f3a8", "1f3aa", "1f3ac", "1f3ad", "1f3ae", "1f3af",
    "1f3b0", "1f3b1", "1f3b2", "1f3b3", "1f3b9", "1f3bd", "1f3bf", "1f3c9", "1f3cd", "1f3cf", "1f3d0", "1f3d2", "1f3d3", "1f3d5", "1f3db",
    "1f3e1", "1f3e2", "1f3e5", "1f3e6", "1f3e7", "1f3ea", "1f3ed", "1f3ee", "1f3ef", "1f3f0", "1f3f5", "1f3f7", "1f3f8", "1f3f9", "1f3fa",
    "1f400", "1f401", "1f402", "1f403", "1f405", "1f406", "1f409", "1f40b", "1f40d", "1f40f", "1f410", "1f412", "1f414", "1f417", "1f41a",
    "1f41b", "1f41c", "1f421", "1f423", "1f424", "1f425", "1f426", "1f429", "1f42a", "1f42b", "1f42d", "1f432", "1f434", "1f439", "1f43a",
    "1f43f", "1f454", "1f456", "1f458", "1f45a", "1f45b", "1f45d", "1f460", "1f461", "1f47b", "1f47d", "1f47e", "1f480", "1f484", "1f488",
    "1f489", "1f48c", "1f48d", "1f492", "1f4a3", "1f4a9", "1f4b0", "1f4b5", "1f4ba", "1f4bc", "1f4be", "1f4bf", "1f4c1", "1f4c5", "1f4cb",
    "1f4cc", "1f4dc", "1f4de", "1f4df", "1f4e0", "1f4e1", "1f4e3", "1f4eb", "1f4ee", "1f4f0", "1f4f9", "1f4fc", "1f4fd", "1f4ff", "1f50a",
    "1f50b", "1f50c", "1f50d", "1f526", "1f529", "1f52a", "1f52b", "1f52e", "1f54c", "1f577", "1f579", "1f58b", "1f58d", "1f5a5", "1f5a8",
    "1f5b1", "1f5bc", "1f5c3", "1f5c4", "1f5d1", "1f5dd", "1f5e1", "1f5f3", "1f5fc", "1f5fd", "1f5ff", "1f63a", "1f648", "1f916", "1f683",
    "1f684", "1f686", "1f687", "1f68a", "1f68b", "1f68d", "1f68e", "1f690", "1f691", "1f693", "1f694", "1f699", "1f69b", "1f69e", "1f6a0",
    "1f6a2", "1f6a4", "1f6a5", "1f6a6", "1f6a7", "1f6a8", "1f6aa", "1f6bd", "1f6bf", "1f6cd", "1f6ce", "1f6d2", "1f6d5", "1f6d6", "1f6dd",
    "1f6de", "1f6df", "1f6e1", "1f6e2", "1f6e9", "1f6f0", "1f6f3", "1f6f4", "1f6f6", "1f6f7", "1f6fa", "1f6fb", "1f6fc", "1f93f", "1f942",
    "1f943", "1f945", "1f947", "1f94a", "1f94c", "1f94f", "1f953", "1f954", "1f956", "1f957", "1f958", "1f959", "1f95b", "1f95c", "1f95f",
    "1f960", "1f961", "1f963", "1f964", "1f967", "1f969", "1f96a", "1f96b", "1f96c", "1f96d", "1f96e", "1f97c", "1f97d", "1f97e", "1f97f",
    "1f982", "1f983", "1f987", "1f988", "1f98c", "1f98d", "1f98e", "1f98f", "1f990", "1f991", "1f997", "1f998", "1f999", "1f99a", "1f99b",
    "1f99e", "1f9a1", "1f9a3", "1f9a4", "1f9a7", "1f9a8", "1f9aa", "1f9ab", "1f9ac", "1f9ae", "1f9b4", "1f9ba", "1f9bc", "1f9be", "1f9c2",
    "1f9c3", "1f9c4", "1f9c5", "1f9c6", "1f9c8", "1f9c9", "1f9ca", "1f9cb", "1f9e0", "1f9e2", "1f9e3", "1f9e4", "1f9e5", "1f9e6", "1f9e7",
    "1f9e8", "1f9e9", "1f9ea", "1f9ed", "1f9ef", "1f9f0", "1f9f1", "1f9f4", "1f9f5", "1f9fb", "1f9fc", "1f9fd", "1f9ff", "1fa70", "1fa71",
    "1fa73", "1fa7a", "1fa80", "1fa82", "1fa85", "1fa86", "1fa90", "1fa92", "1fa96", "1fa98", "1fa99", "1fa9b", "1fa9e", "1fa9f", "1faa0",
    "1faa4", "1faa5", "1faa6", "1faa8", "1faa9", "1fab0", "1fab2", "1fab6", "1fab7", "1fab8", "1faba", "1fac0", "1fad0", "1fad1", "1fad2",
    "1fad3", "1fad4", "1fad5", "1fad8", "1fad9", "231a", "2328", "23f1", "23f2", "260e", "2603", "2694", "2696", "2697", "2699",
    "26b1", "26be", "26cf", "26d1", "26e9", "26ea", "26f2", "26f4", "26f8", "26fd", "2709", "2b50",
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
