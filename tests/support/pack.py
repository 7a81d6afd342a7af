"""The pack, loaded as ComfyUI loads it, over a small stand-in for ComfyUI (`tests/nodes/fake_host`)."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
FAKE_HOST = ROOT / "tests" / "nodes" / "fake_host"
FAKE_MODULES = ("comfy", "comfy_api", "folder_paths")


@contextmanager
def fake_host_modules() -> Iterator[SimpleNamespace]:
    """The stand-in's modules, which can be imported inside."""
    sys.path.insert(0, str(FAKE_HOST))
    try:
        import comfy.cli_args
        import comfy.model_management
        import comfy.utils
        import folder_paths

        yield SimpleNamespace(
            args=comfy.cli_args.args,
            previews=comfy.cli_args.LatentPreviewMethod,
            management=comfy.model_management,
            utils=comfy.utils,
            folders=folder_paths,
        )
    finally:
        sys.path.remove(str(FAKE_HOST))
        for name in [name for name in sys.modules if name.split(".")[0] in FAKE_MODULES]:
            del sys.modules[name]


@contextmanager
def loaded_pack() -> Iterator[SimpleNamespace]:
    """The root package under the kind of name that ComfyUI gives it, after `on_load`: module, name, nodes by id."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        extension = run(module.comfy_entrypoint())
        run(extension.on_load())
        nodes = {node.define_schema().node_id: node for node in run(extension.get_node_list())}
        yield SimpleNamespace(module=module, name=name, nodes=nodes)
    finally:
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name.split(".")[0]]:
            del sys.modules[loaded]


def run(coroutine: Any) -> Any:
    """The result of a coroutine, in a thread of its own: the browser of other tests keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
