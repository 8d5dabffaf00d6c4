"""The route behind the picture in SAM Mask: POST /maskprompt/point, marks in, mask out.

It serves what a graph may use and nothing else: pictures below ComfyUI's input, output and temp folders, and SAM files that Load SAM Model
lists. The network runs in one thread of its own, one question at a time, and never while ComfyUI works on a prompt.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

    from ..models.sam.pointing import Picture, Pointer, Question, Shown

log = logging.getLogger(__name__)

PATH = "/maskprompt/point"
FOLDERS = ("input", "output", "temp")
MOST_BYTES = 64 * 1024
MOST_WAITING = 4
HELD = 600.0
"""Seconds for which the model is kept after the last click."""
BUSY = "ComfyUI is working on a prompt; the mask comes when it is done."


class RefusedError(Exception):
    """A question that is not answered: HTTP status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class PointingRoute:
    """One thread, one pointer, and the way from a request to its answer."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._waiting = 0
        self._asked = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._pointer: Pointer | None = None

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one POST: {"mask": PNG as data URL, "width", "height", "score", "part"}, or {"error"} in words."""
        from aiohttp import web

        try:
            body = await _body(request)
            model, picture, question = _model_of(body), _picture_of(body), _question_of(body)
            if self._waiting >= MOST_WAITING:
                raise RefusedError(503, "too many questions at once; ask again.")
            self._waiting += 1
            try:
                answer = await asyncio.get_running_loop().run_in_executor(self._executor(), self._work, model, picture, question)
            finally:
                self._waiting -= 1
                self._asked = time.monotonic()
                asyncio.get_running_loop().call_later(HELD + 1, self._let_go)
        except RefusedError as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        return web.json_response(answer)

    def _check_idle(self) -> None:
        """RefusedError while ComfyUI works on a prompt: the weights of its model must not be pushed off the device."""
        if self._server.prompt_queue.get_tasks_remaining() > 0:
            raise RefusedError(503, BUSY)

    def _let_go(self) -> None:
        """Free the model's memory when nobody has pointed for a while; the next click reads the file again if no graph holds it."""
        if self._pointer is not None and not self._waiting and time.monotonic() - self._asked >= HELD:
            self._executor().submit(self._pointer.release)

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maskprompt-pointing")
        return self._pool

    def _work(self, model: str, picture: Picture, question: Question) -> dict[str, Any]:
        from ..models.sam.pointing import Pointer

        self._check_idle()
        if self._pointer is None:
            self._pointer = Pointer()
        try:
            return _told(self._pointer.answer(model, picture, question, self._check_idle))
        except RefusedError:
            raise
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        except Exception as error:
            if self._server.prompt_queue.get_tasks_remaining() > 0:  # a prompt that began meanwhile may have taken the weights away
                raise RefusedError(503, BUSY) from error
            log.exception("SAM Mask: pointing failed")
            raise RefusedError(500, f"it failed with {type(error).__name__}; ComfyUI's log says more.") from error


def register() -> bool:
    """Add the route to the server that is being started; False where there is none, as in scripts and tests."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return False
    server.routes.post(PATH)(PointingRoute(server).answer)
    return True


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise RefusedError(415, "this answers to JSON only.")
    data = bytearray()
    async for part in request.content.iter_chunked(MOST_BYTES):
        data += part
        if len(data) > MOST_BYTES:
            raise RefusedError(413, "the question is too long.")
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise RefusedError(400, "the question is no JSON.") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the question is no JSON object.")
    return body


def _text(body: dict[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str):
        raise RefusedError(400, f"{name} is missing, or is no text.")
    return value


def _model_of(body: dict[str, Any]) -> str:
    from ..models import files
    from .segment import ADVICE, SAM_FOLDER

    name = _text(body, "sam")
    if name not in files.list_files(SAM_FOLDER):
        raise RefusedError(404, f"There is no SAM file of this name in the list of Load SAM Model. {ADVICE}")
    try:
        return files.find_file(SAM_FOLDER, name, ADVICE)
    except ValueError as error:
        raise RefusedError(404, str(error)) from error


def _picture_of(body: dict[str, Any]) -> Picture:
    """The picture, safely below one of ComfyUI's own folders for pictures."""
    import folder_paths

    from ..models.sam.pointing import Picture

    name, annotated = _text(body, "picture"), None
    for kind in FOLDERS:
        if name.endswith(f"[{kind}]"):
            name, annotated = name[: -len(kind) - 2].rstrip(), kind
    kind = annotated or _text(body, "type", "input")
    subfolder = _text(body, "subfolder", "")
    base = folder_paths.get_directory_by_type(kind) if kind in FOLDERS else None
    if base is None:
        raise RefusedError(400, f"type is one of {', '.join(FOLDERS)}.")
    missing = RefusedError(404, "the picture is not there any more: choose it again, or run the graph once.")
    if not name or "\0" in name + subfolder or any(os.path.isabs(part) or os.path.splitdrive(part)[0] for part in (name, subfolder)):
        raise missing
    base = os.path.abspath(base)
    path = os.path.abspath(os.path.join(base, subfolder, name))
    try:
        inside = os.path.commonpath((base, path)) == base
        found = inside and os.path.isfile(path)
    except (ValueError, OSError):
        raise missing from None
    if not found:
        raise missing
    return Picture(path, f"{os.path.relpath(path, base)} [{kind}]")


def _question_of(body: dict[str, Any]) -> Question:
    from ..models.sam import prompts as sam_prompts
    from ..models.sam.pointing import Question

    choice = _text(body, "choice", sam_prompts.WHOLE)
    least, clean = body.get("min_score", 0), body.get("clean", True)
    if choice not in sam_prompts.CHOICES:
        raise RefusedError(400, f"choice is one of {', '.join(sam_prompts.CHOICES)}.")
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not -1e9 < least < 1e9 or not isinstance(clean, bool):
        raise RefusedError(400, "min_score is a number, clean is true or false.")
    return Question(_text(body, "positive", ""), _text(body, "negative", ""), _text(body, "box", ""), choice, least, clean)


def _told(shown: Shown) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(_png(shown)).decode()}" if shown.mask.any() else None
    part = float(shown.mask.mean())
    return {"mask": url, "width": shown.width, "height": shown.height, "score": round(shown.score, 4), "part": round(part, 6)}


def _png(shown: Shown) -> bytes:
    """White where the object is, see-through elsewhere."""
    from PIL import Image

    alpha = Image.fromarray(shown.mask).convert("L")
    buffer = io.BytesIO()
    Image.merge("LA", (Image.new("L", alpha.size, 255), alpha)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
