"""A small stand-in for ComfyUI's server: its real front end, our `web/`, and the recorded node definitions.

It answers a prompt by sending the results that the test has put into `results`, and runs nothing.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

ROOT = Path(__file__).parents[2]
PACK = "rddm-defocus-deblurring"
GOLDEN = ROOT / "tests" / "golden"
EMPTY_LISTS = ("/api/workflow_templates", "/api/node_replacements", "/api/global_subgraphs", "/api/features")


class MockHost:
    """What the server knows; the test changes it while it runs."""

    def __init__(self, front_end: Path, files: Path) -> None:
        self.front_end, self.files = front_end, files
        self.results: dict[str, Any] = {}  # by node id: what `executed` brings
        self.prompts: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.settings: dict[str, Any] = {}
        self.sockets: list[web.WebSocketResponse] = []
        self.url = ""

    def app(self) -> web.Application:
        """The routes that the front end asks for."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/ws", self.socket)
        for prefix in ("", "/api"):
            app.router.add_get(f"{prefix}/view", self.view)
        app.router.add_get("/api/object_info", self.object_info)
        app.router.add_get("/api/extensions", self.extensions)
        app.router.add_get("/api/settings", self.get_settings)
        app.router.add_post("/api/settings", self.set_settings)
        app.router.add_post("/api/settings/{name}", self.set_setting)
        app.router.add_post("/api/prompt", self.prompt)
        app.router.add_post("/api/upload/{kind}", self.upload)
        app.router.add_get("/api/{anything:.*}", self.anything)
        app.router.add_post("/api/{anything:.*}", self.accept)
        app.router.add_static(f"/extensions/{PACK}", ROOT / "web")
        app.router.add_get("/", self.index)
        app.router.add_static("/", self.front_end)
        return app

    async def index(self, _: web.Request) -> web.FileResponse:
        """The page."""
        return web.FileResponse(self.front_end / "index.html")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        """Status on connecting; then whatever a prompt sends."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_json({"type": "status", "data": {"status": self.status(), "sid": "mock"}})
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        return socket

    @staticmethod
    def status() -> dict[str, Any]:
        """An empty queue."""
        return {"exec_info": {"queue_remaining": 0}}

    async def object_info(self, _: web.Request) -> web.Response:
        """The golden files, with the texts that they leave out."""
        nodes = {}
        for name in ("object_info.json", "core_object_info.json"):
            for node, info in json.loads((GOLDEN / name).read_text(encoding="utf-8")).items():
                texts = {"name": node, "display_name": node, "description": "", "category": "test"}
                module = "nodes" if name.startswith("core") else f"custom_nodes.{PACK}"
                kind = {"python_module": module, "output_node": not info["output"]}
                lists = {"output_is_list": [False] * len(info["output"])}
                nodes[node] = {**texts, **kind, **lists, **info}
        return web.json_response(nodes)

    async def extensions(self, _: web.Request) -> web.Response:
        """Every script of ours, as the host lists them."""
        found = sorted(path.relative_to(ROOT / "web").as_posix() for path in (ROOT / "web").rglob("*.js"))
        return web.json_response([f"/extensions/{PACK}/{path}" for path in found])

    async def get_settings(self, _: web.Request) -> web.Response:
        """All settings."""
        return web.json_response(self.settings)

    async def set_settings(self, request: web.Request) -> web.Response:
        """Several at once."""
        self.settings.update(await request.json())
        return web.Response()

    async def set_setting(self, request: web.Request) -> web.Response:
        """One of them."""
        self.settings[request.match_info["name"]] = await request.json()
        return web.Response()

    async def view(self, request: web.Request) -> web.StreamResponse:
        """A picture of the test's folder, or one of its channels as the mask editor wants them."""
        name = request.query["filename"].removesuffix(" [temp]").removesuffix(" [input]")  # as LoadImage writes it
        path = self.files / Path(name).name
        known = path.is_file() and request.query.get("type") in ("temp", "input")
        return web.FileResponse(path) if known else web.Response(status=404)

    async def upload(self, request: web.Request) -> web.Response:
        """Keep what the front end sends."""
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        name = Path(image.filename).name
        (self.files / name).write_bytes(image.file.read())
        self.uploads.append(name)
        return web.json_response({"name": name, "subfolder": str(form.get("subfolder", "")), "type": "input"})

    async def prompt(self, request: web.Request) -> web.Response:
        """Take a prompt and send the results that the test has prepared."""
        self.prompts.append(await request.json())
        identity = f"prompt-{len(self.prompts)}"
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(self.run(identity)))
        return web.json_response({"prompt_id": identity, "number": len(self.prompts), "node_errors": {}})

    async def run(self, identity: str) -> None:
        """The messages of one execution."""
        await self.send("execution_start", prompt_id=identity)
        for node, output in self.results.items():
            await self.send("executing", node=node, display_node=node, prompt_id=identity)
            await self.send("executed", node=node, display_node=node, output=output, prompt_id=identity)
        await self.send("executing", node=None, prompt_id=identity)
        await self.send("execution_success", prompt_id=identity)

    async def send(self, kind: str, **data: Any) -> None:
        """To every page that is open."""
        for socket in self.sockets:
            if not socket.closed:
                await socket.send_json({"type": kind, "data": data})

    async def anything(self, request: web.Request) -> web.Response:
        """The rest of what the front end asks for on starting."""
        path = request.path
        answers: dict[str, Any] = {
            "/api/users": {"storage": "server", "migrated": True},
            "/api/system_stats": {"system": {"os": "posix", "argv": []}, "devices": []},
            "/api/queue": {"queue_running": [], "queue_pending": []},
            "/api/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}},
            "/api/prompt": self.status(),
        }
        if path in answers:
            return web.json_response(answers[path])
        if path.startswith("/api/userdata/"):
            return web.Response(status=404)
        return web.json_response({} if path in (*EMPTY_LISTS, "/api/i18n", "/api/history") else [])

    async def accept(self, _: web.Request) -> web.Response:
        """Saved and forgotten."""
        return web.json_response({})


@contextmanager
def serve(host: MockHost) -> Iterator[MockHost]:
    """Run the server in a thread of its own, on a free port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)  # playwright runs a loop in this one
    thread.start()
    runner = web.AppRunner(host.app())

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield host
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
