"""How MECA's table paints: Image Prompt Region's modes, and what the vision model sees of the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

WHOLE = "whole"
HIDE = "hide"
PAPER = "paper"
RENDER = "render"
SEEN = {WHOLE: "whole reference", HIDE: "object hidden", PAPER: "object hidden as in eq. 1"}


@dataclass(frozen=True)
class Method:
    """How a picture is painted. `mode`: Image Prompt Region's ("": the text alone; `render`: not painted at all, but the render of what was
    asked through the autoencoder). `seen`: what the vision model sees of the reference. `adapter`: by the mode it was trained in."""

    way: str
    mode: str = ""
    seen: str = WHOLE
    text: bool = True
    weight: float = 1.0
    threshold: float = 0.5
    adapter: str = "region"

    @property
    def name(self) -> str:
        return f"{self.way}, {SEEN[self.seen]}" if self.mode not in ("", RENDER) else self.way

    @property
    def hidden(self) -> Method:
        return replace(self, seen=HIDE)


RENDERED = Method("render of what was asked", RENDER)
TEXT = Method("text only")
IMAGE = Method("image only", "global", text=False)
GLOBAL = Method("global", "global")
FAINT = Method("global, \u03bb 0.5", "global", weight=0.5)
REGION = Method("region", "region")
QUERY = Method("query", "query")
OWN_QUERY = Method("query, own adapter", "query", adapter="query")
METHODS = (
    RENDERED, TEXT, *(one for method in (IMAGE, GLOBAL, FAINT, REGION, QUERY, OWN_QUERY) for one in (method, method.hidden)),
    replace(REGION, seen=PAPER), Method("region, to the edge", "region", HIDE, threshold=0.0),
)  # fmt: skip
