"""A real ComfyUI server in a folder of its own: started, spoken to over its API, stopped.

The demo, the tests and the thumbnails all go through here, so what they do is what any service does
that posts API-format JSON to a headless ComfyUI.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket

ROOT = Path(__file__).resolve().parent.parent
NOT_THE_PACK = shutil.ignore_patterns(".*", "__pycache__", "demo", "tests", "benchmarks", "output", "noxfile.py")

Prompt = dict[str, dict[str, Any]]


class WorkflowError(RuntimeError):
    """ComfyUI refused a workflow or a node of it failed; the text names the node and gives its own words."""


@dataclass(frozen=True)
class Step:
    """One word of progress: node `node` (of class `name`) has done `value` of `maximum`."""

    node: str
    name: str
    value: float = 0
    maximum: float = 0


@dataclass(frozen=True)
class Result:
    """`outputs` is the history's: node id to, for example, {"images": [...]}. `executed` are the nodes that really ran."""

    outputs: dict[str, dict[str, Any]]
    executed: tuple[str, ...]
    seconds: float


def has_accelerator() -> bool:
    """Whether PyTorch sees a GPU that ComfyUI would use."""
    import torch

    backends = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
    return any(backend is not None and backend.is_available() for backend in backends)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """ComfyUI from `comfyui`, with base directory `folder` (made if missing) and `packs` in its custom_nodes.

    `packs` maps a folder name below custom_nodes to the pack copied there; a pack keeps neither its
    tests nor its demo, as nothing that users run may need them. `threads` is how many PyTorch may use (0: as many as it likes).
    Use it in a `with` statement.
    """

    def __init__(self, comfyui: Path, folder: Path, packs: Mapping[str, Path], arguments: Sequence[str] = (), threads: int = 0) -> None:
        self.comfyui = comfyui
        self.threads = threads
        self.folder = folder.resolve()
        self.arguments = list(arguments)
        self.port = _free_port()
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("input", "output", "temp", "user", "custom_nodes", "models"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name, source in packs.items():
            shutil.copytree(source, self.folder / "custom_nodes" / name, ignore=NOT_THE_PACK, dirs_exist_ok=True)

    def add_model(self, kind: str, source: Path, name: str | None = None) -> None:
        """Puts a model file, or a folder of them, into models/`kind`, as a link where the system allows one."""
        target = self.folder / "models" / kind / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        try:
            target.symlink_to(source.resolve())
        except OSError:  # Windows grants symbolic links to few accounts
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self, timeout: float = 300) -> None:
        """Returns when the server answers; RuntimeError with the end of its log if it does not within `timeout` seconds."""
        command = [sys.executable, str(self.comfyui / "main.py"), "--port", str(self.port), "--base-directory", str(self.folder)]
        command += ["--database-url", f"sqlite:///{(self.folder / 'user' / 'comfyui.db').as_posix()}"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *self.arguments]
        if not has_accelerator():
            command.append("--cpu")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        few = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env={**os.environ, **offline, **few}
            )
        try:
            self._wait_until_ready(self._process, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while True:
            try:
                self.get("/system_stats")
                break
            except OSError:
                time.sleep(0.2)
            if process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting. The end of its log:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"ComfyUI was not ready in time. The end of its log:\n{self.log_tail()}")
        if "(IMPORT FAILED)" in self.log_tail(1_000_000):
            raise RuntimeError(f"ComfyUI could not import a pack. The end of its log:\n{self.log_tail()}")

    def stop(self) -> None:
        """Ends the server that `start` started, and no other."""
        process = self._process
        self._process = None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self, lines: int = 40) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    @property
    def pid(self) -> int:
        """The server's process; RuntimeError if it is not running."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> bytes:
        """The body of GET `path`; urllib.error.URLError (an OSError) if there is none."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            data = response.read()
        return json.loads(data) if data else None

    def object_info(self) -> dict[str, dict[str, Any]]:
        return self.get_json("/object_info")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def file_of(self, image: Mapping[str, str]) -> Path:
        """The file of one entry of a node's "images"."""
        return self.folder / image["type"] / image["subfolder"] / image["filename"]

    def run(
        self,
        prompt: Prompt,
        on_step: Callable[[Step], None] | None = None,
        timeout: float = 600,
        on_bytes: Callable[[bytes], None] | None = None,
    ) -> Result:
        """Queues an API-format workflow and waits for its end, following it over the websocket.

        `on_bytes` gets the binary messages: previews, and the lines of text that nodes show.
        Raises WorkflowError if ComfyUI refuses it, if any node fails, or if it is interrupted;
        TimeoutError if it is not done within `timeout` seconds (it is interrupted then).
        """
        client = uuid.uuid4().hex
        began = time.monotonic()
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=60)
        connection.settimeout(2)
        try:
            prompt_id = self._queue(prompt, client)
            executed: list[str] = []
            while True:
                if time.monotonic() - began > timeout:
                    self.interrupt()
                    raise TimeoutError(f"the workflow was not done within {timeout:.0f} s. ComfyUI's log ends:\n{self.log_tail()}")
                message = self._receive(connection)
                if isinstance(message, bytes):
                    if on_bytes:
                        on_bytes(message)
                    continue
                data = message.get("data", {})
                if data.get("prompt_id") != prompt_id:
                    continue
                node = data.get("node")
                if message["type"] == "executing" and node is None:
                    break
                if message["type"] == "executing":
                    executed.append(node)
                if on_step and message["type"] in ("executing", "progress") and node in prompt:
                    on_step(Step(node, prompt[node]["class_type"], data.get("value", 0), data.get("max", 0)))
        finally:
            connection.close()
        history = self.get_json(f"/history/{prompt_id}")[prompt_id]
        if history["status"]["status_str"] != "success":
            raise WorkflowError(_failure(history["status"]["messages"]))
        return Result(history["outputs"], tuple(executed), time.monotonic() - began)

    def _receive(self, connection: websocket.WebSocket) -> dict[str, Any] | bytes:
        """The next message, or an empty one after two silent seconds."""
        try:
            text = connection.recv()
        except websocket.WebSocketTimeoutException:
            text = "{}"
        except (websocket.WebSocketException, OSError) as error:
            raise RuntimeError(f"ComfyUI closed the connection ({error}). The end of its log:\n{self.log_tail()}") from error
        return json.loads(text or "{}") if isinstance(text, str) else bytes(text)

    def _queue(self, prompt: Prompt, client: str) -> str:
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
        except urllib.error.HTTPError as error:
            raise WorkflowError(_refusal(json.loads(error.read()))) from error
        if answer["node_errors"]:
            raise WorkflowError(_refusal(answer))
        return answer["prompt_id"]


def _refusal(answer: Mapping[str, Any]) -> str:
    error = answer.get("error") or {}
    lines = [f"ComfyUI refused the workflow: {error.get('message', '')} {error.get('details', '')}".strip()]
    for node, problem in (answer.get("node_errors") or {}).items():
        lines += [f"  node {node} ({problem['class_type']}): {each['message']}: {each['details']}" for each in problem["errors"]]
    return "\n".join(lines)


def _failure(messages: Sequence[Sequence[Any]]) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            where = f"node {data['node_id']} ({data['node_type']})"
            return f"{where} failed with {data['exception_type']}: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"the workflow was interrupted at node {data['node_id']} ({data['node_type']})"
    return f"the workflow failed: {messages}"
