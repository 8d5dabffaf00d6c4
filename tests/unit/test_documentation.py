"""README and docs/: short, whole, and true where a test can tell."""

from __future__ import annotations

import ast
import re
import urllib.parse
from pathlib import Path

import pytest

from demo.pack import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
]
ROOMS = ("nodes", "attention", "conditioning", "images", "models", "training")


def section(title: str) -> str:
    """The README's text below one heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_is_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 180
    assert section("Your first picture in five minutes").count("\n1. ") == 1
    assert [line[:2] for line in section("Your first picture in five minutes").splitlines() if re.match(r"\d\. ", line)] == [
        f"{number}." for number in range(1, 6)
    ]


def test_the_readme_names_every_workflow_once() -> None:
    named = re.findall(r"\*\*(\d\d [^*]+)\*\*", "\n".join(line.split(" | ")[0] for line in section("The workflows").splitlines()))
    assert sorted(named) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_the_readme_names_every_node_once() -> None:
    named = re.findall(r"^\| \[[^\]]+\]\(web/docs/(\w+)\.md\)", section("The nodes"), re.M)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """A page's headings as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = urllib.parse.unquote(target).partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_of_docs_is_linked() -> None:
    """From the README, or from a page that the README links."""
    linked = {(page.parent / target).resolve() for page in PAGES for target in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text("utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) <= linked


def texts() -> list[str]:
    """Every text in the pack's sources, with what is filled in left out."""
    found: list[str] = []
    for file in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("…".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_are_quoted_as_they_are_written() -> None:
    """Troubleshooting by message: each fragment stands in a text of the pack, so that a search finds it."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = page.split("\n## The message\n")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| \*(.+?)\* \|", rows, re.M)
    assert len(quoted) >= 8
    known = texts()
    for message in quoted:
        for fragment in message.split("…"):
            assert any(fragment.strip() in text for text in known), fragment


def test_contributing_names_files_that_are_there() -> None:
    """The walks, and where a new thing goes: every path of ours stands in the repository, a bare name in the folder of the one before."""
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.S)
    methods = [path.name for path in (ROOT / "training").iterdir() if (path / "loss.py").is_file()]
    made = {line.strip() for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()}
    named = [name for name in re.findall(r"`([\w<>/]+/[\w<>.]*)`", text) if name not in made]
    assert len(named) > 25
    for name in named:
        files = [name.replace("<method>", method) for method in methods] if "<method>" in name else [name]
        assert any((ROOT / file).exists() for file in files), name
    assert len(methods) == 4
    for method in methods:
        assert all((ROOT / "training" / method / f"{part}.py").is_file() for part in ("options", "examples", "loss", "job")), method


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_help_page_opens_with_a_sentence_and_a_small_picture(page: Path) -> None:
    title, sentence, picture, *_ = [part for part in page.read_text("utf-8").split("\n\n") if part]
    assert title.startswith("# ")
    assert len(sentence) <= 250
    found = re.fullmatch(r"!\[[^\]]{10,}\]\(([a-z-]+\.jpg)\)", picture)
    assert found is not None, picture
    assert (page.parent / found[1]).stat().st_size <= 40_000


def test_no_help_picture_is_left_over() -> None:
    shown = {name for page in (ROOT / "web" / "docs").glob("*.md") for name in re.findall(r"\]\(([a-z-]+\.jpg)\)", page.read_text("utf-8"))}
    assert {path.name for path in (ROOT / "web" / "docs").glob("*.jpg")} == shown
