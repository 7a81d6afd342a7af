"""A real ComfyUI with this pack in it, and talking to it over HTTP as the front end does.

Nothing is written outside the folder it is given. COMFYUI_PYTHON names its interpreter, if that is not the one that
runs this.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from pack import run as run_coroutine
from PIL import Image

ROOT = Path(__file__).parents[2]
PACK = "rddm-defocus-deblurring"
START_TIMEOUT, RUN_TIMEOUT = 180, 600
BINARY_PREVIEW, BINARY_PREVIEW_WITH_METADATA = 1, 4


@dataclass
class Run:
    """What one prompt did: messages of the websocket, preview pictures, and the entry in the history."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def types(self) -> list[str]:
        """Types of the messages, in order."""
        return [message["type"] for message in self.messages]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Data of the messages of one type."""
        return [message["data"] for message in self.messages if message["type"] == kind]

    def executed(self) -> set[str]:
        """Ids of the nodes that ran: not those whose results were still known."""
        return {data["node"] for data in self.of_type("executing") if data["node"] is not None}


class Host:
    """A running ComfyUI. Every call opens its own connections, so that tests stay independent."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, base: Path, log: Path) -> None:
        self.process, self.base, self.log = process, base, log
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """JSON, or bytes for anything else."""
        return self._request(f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, data: Any) -> Any:
        """Send JSON."""
        return self._request(path, json.dumps(data).encode())

    def add_input(self, picture: Path | Image.Image, name: str) -> str:
        """Put a picture where LoadImage looks."""
        target = self.base / "input" / name
        if isinstance(picture, Path):
            shutil.copyfile(picture, target)
        else:
            picture.save(target)
        return name

    def view(self, file: dict[str, str]) -> Image.Image:
        """A picture that a node saved."""
        return Image.open(io.BytesIO(self.get("/view", **file)))

    def run(
        self,
        prompt: dict[str, Any],
        *,
        previews: bool = False,
        on_message: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    ) -> Run:
        """Queue a prompt and wait for its end. `on_message` may answer with {"path": .., "data": ..} to post."""
        return run_coroutine(self._run(prompt, previews, on_message))

    def _request(self, path: str, body: bytes | None = None) -> Any:
        try:
            with urlopen(Request(self.url + path, body, {"Content-Type": "application/json"}), timeout=60) as answer:
                content = answer.read()
                return json.loads(content) if answer.headers.get_content_type() == "application/json" else content
        except HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error

    async def _run(self, prompt: Any, previews: bool, on_message: Any) -> Run:
        import aiohttp

        client, run = uuid.uuid4().hex, Run()
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_:
                extra = {"preview_method": "auto"} if previews else {}
                body = {"prompt": prompt, "client_id": client, "extra_data": extra}
                identity = (await asyncio.to_thread(self.post, "/prompt", body))["prompt_id"]
                await asyncio.wait_for(self._listen(socket_, identity, run, on_message), RUN_TIMEOUT)
        for _ in range(100):  # the history follows the last message
            run.history = (await asyncio.to_thread(self.get, f"/history/{identity}")).get(identity, {})
            if run.history:
                return run
            await asyncio.sleep(0.1)
        raise AssertionError(f"the prompt never came into the history\n{self.tail()}")

    async def _listen(self, socket_: Any, identity: str, run: Run, on_message: Any) -> None:
        async for message in socket_:
            if isinstance(message.data, bytes):
                event = int.from_bytes(message.data[:4], "big")
                assert event in (BINARY_PREVIEW, BINARY_PREVIEW_WITH_METADATA)
                run.previews.append(Image.open(io.BytesIO(message.data[8:])))
                continue
            parsed = json.loads(message.data)
            run.messages.append(parsed)
            answer = on_message(parsed) if on_message else None
            if answer:
                await asyncio.to_thread(self.post, answer["path"], answer["data"])
            ends = ("execution_success", "execution_error", "execution_interrupted")
            if parsed["type"] in ends and parsed["data"].get("prompt_id") == identity:
                return

    def tail(self) -> str:
        """The end of the host's log."""
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def running(comfyui: Path, base: Path, *options: str) -> Iterator[Host]:
    """ComfyUI of the checkout `comfyui` on the CPU, with this pack linked into it and all its folders in `base`.

    `options` are added to its command line. Raises RuntimeError where it does not start.
    """
    for folder in ("custom_nodes", "input", "output", "models/rddm"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--port", str(port)]
    command += ["--listen", "127.0.0.1", "--disable-auto-launch", "--disable-api-nodes", "--preview-size", "256"]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", *options]
    log = base / "host.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=comfyui, stdout=output, stderr=subprocess.STDOUT)
    host = Host(process, port, base, log)
    try:
        _wait_until_up(host)
        yield host
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_up(host: Host) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if host.process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with code {host.process.returncode}\n{host.tail()}")
        try:
            host.get("/system_stats")
            return
        except Exception:  # not listening yet
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not answer within {START_TIMEOUT} s\n{host.tail()}")
