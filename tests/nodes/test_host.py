"""Manners towards the host: memory, progress, previews, interrupts, results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

Submodule = Callable[[str], ModuleType]


@pytest.fixture
def sample(pack: SimpleNamespace, model: Any, photo: Tensor, painted: Tensor) -> Callable[..., Any]:
    """Run the sampler on the photo."""

    def run(**inputs: Any) -> Any:
        values = {"model": model, "pre_deblurred": photo, "map": painted, "seed": 0, "steps": 3, "eta": 0.0}
        values |= {"samples": 2, "tiling": {"tiling": "auto"}}
        return pack.nodes["RDDMSampler"].execute(**{**values, **inputs}).result

    return run


# ---------------------------------------------------------------- progress, preview, interrupt


def test_progress_per_step(sample: Callable[..., Any], fake_host: SimpleNamespace) -> None:
    sample()
    total = 2 * 2 * 3  # pictures, samples, steps
    assert [update[:2] for update in fake_host.utils.updates] == [(done, total) for done in range(1, total + 1)]
    assert all(preview is None for _, _, preview in fake_host.utils.updates)  # --preview-method none


def test_progress_per_tile(pack: SimpleNamespace, model: Any, photo: Tensor, fake_host: SimpleNamespace) -> None:
    pack.nodes["RDDMPreDeblur"].execute(model=model, image=photo, map=torch.ones(1, 8, 8))
    assert [update[:2] for update in fake_host.utils.updates] == [(1, 2), (2, 2)]


def test_progress_of_maps_and_what_follows(
    pack: SimpleNamespace, model: Any, photo: Tensor, fake_host: SimpleNamespace
) -> None:
    pack.nodes["RDDMDefocusMap"].execute(model=model, image=photo)
    assert [update[:2] for update in fake_host.utils.updates] == [(1, 2), (2, 2)]
    fake_host.utils.updates.clear()
    pack.nodes["RDDMPreDeblur"].execute(model=model, image=photo)
    assert [update[:2] for update in fake_host.utils.updates] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_preview_per_step(
    sample: Callable[..., Any], fake_host: SimpleNamespace, submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_host.args, "preview_method", fake_host.previews.Auto)
    monkeypatch.setattr(submodule("nodes.host"), "PREVIEW_INTERVAL", 0)
    monkeypatch.setattr(fake_host.args, "preview_size", 77)
    sample(samples=1)
    shown = [(update[0], update[2]) for update in fake_host.utils.updates if update[2] is not None]
    assert [done for done, _ in shown] == [1, 2, 3]  # of the first picture
    for _, (kind, picture, size) in shown:
        assert kind == "JPEG" and size == 77 and picture.size == (90, 70) and picture.mode == "RGB"
    assert shown[0][1][1].tobytes() != shown[-1][1][1].tobytes()


def test_previews_are_not_sent_faster_than_they_can_be_seen(
    sample: Callable[..., Any], fake_host: SimpleNamespace, submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_host.args, "preview_method", fake_host.previews.Auto)
    monkeypatch.setattr(submodule("nodes.host"), "PREVIEW_INTERVAL", 3600)
    sample()
    assert sum(update[2] is not None for update in fake_host.utils.updates) <= 1


def test_deblur_shows_previews_too(
    pack: SimpleNamespace, model: Any, photo: Tensor, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_host.args, "preview_method", fake_host.previews.Auto)
    inputs = {"seed": 0, "steps": 1, "strength": 1.0, "working_size": {"working_size": "full"}}
    pack.nodes["RDDMDeblur"].execute(model=model, image=photo[:1], **inputs)
    assert any(preview is not None for _, _, preview in fake_host.utils.updates)


@pytest.mark.parametrize("passing", [0, 1, 2, 5])
def test_interrupt_stops_within_one_evaluation(
    sample: Callable[..., Any], fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, passing: int
) -> None:
    monkeypatch.setattr(fake_host.management, "interrupt_after", passing)
    with pytest.raises(fake_host.management.InterruptProcessingException):
        sample()
    assert len(fake_host.utils.updates) <= passing


def test_interrupt_reaches_the_other_stages(
    pack: SimpleNamespace, model: Any, photo: Tensor, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ("RDDMDefocusMap", "RDDMPreDeblur"):
        monkeypatch.setattr(fake_host.management, "interrupt_after", 1)
        with pytest.raises(fake_host.management.InterruptProcessingException):
            pack.nodes[node].execute(model=model, image=photo)


# ---------------------------------------------------------------- memory


def test_the_host_loads_the_model(sample: Callable[..., Any], model: Any, fake_host: SimpleNamespace) -> None:
    sample()
    assert fake_host.management.load_calls
    for patcher, needed, full in fake_host.management.load_calls:
        assert patcher is model and full and needed > 0


def test_the_networks_run_on_one_device_and_wait_on_another(
    pack: SimpleNamespace, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(fake_host.management, "get_torch_device", lambda: gpu)
    (patcher,) = pack.nodes["RDDMModelLoader"].execute(file="tiny.safetensors", dtype="auto").result
    assert patcher.load_device == gpu and patcher.offload_device.type == "cpu"


SIZE = (3000, 4000)
"""Height and width of a photograph of 12 megapixels."""


@pytest.fixture
def tile(
    submodule: Submodule, model: Any, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], int | None]:
    """The tile for a picture of SIZE where so many bytes are free."""

    def choose(free: float) -> int | None:
        monkeypatch.setattr(fake_host.management, "free_bytes", free)
        return submodule("nodes.host").auto_tile(model, *SIZE)

    return choose


def test_tiles_fit_into_what_is_free(
    tile: Callable[[float], int | None],
    submodule: Submodule,
    model: Any,
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU the pictures lie elsewhere, so its memory goes further; too little is for `run_in_tiles` to find out."""
    memory = submodule("rddm_core.memory")
    assert tile(64e9) == memory.AUTO_TILE
    needed = memory.held_bytes(*SIZE) + memory.OVERHEAD * memory.network_bytes(model.model.config, 1024, 1024)
    small = tile(1.5 * needed)
    assert small is not None and 512 <= small < memory.AUTO_TILE
    assert tile(0) == memory.MIN_TILE
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    assert (tile(1.5 * needed) or 0) > small
    assert submodule("nodes.host").auto_tile(model, 200, 300) is None


def test_a_share_of_the_free_memory_is_left_for_what_is_estimated_too_low(
    tile: Callable[[float], int | None],
    submodule: Submodule,
    model: Any,
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, memory = submodule("nodes.host"), submodule("rddm_core.memory")
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    just_enough = 1.01 * memory.wanted_bytes(model.model.config, *SIZE)
    assert tile(just_enough / host.USABLE_SHARE) == memory.AUTO_TILE
    smaller = tile(just_enough)
    assert smaller is not None and smaller < memory.AUTO_TILE


def test_what_the_guidance_takes_is_not_there_for_tiles(
    tile: Callable[[float], int | None], submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = submodule("rddm_core.memory")
    monkeypatch.setattr(memory, "guidance_bytes", lambda *_: 64e9)
    assert tile(64e9) == memory.MIN_TILE


def test_tiles_are_chosen_for_the_number_of_samples(
    sample: Callable[..., Any], submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = submodule("nodes.host"), []
    original = host.auto_tile

    def watched(patcher: Any, *picture: int) -> int | None:
        asked.append(picture)
        return original(patcher, *picture)

    monkeypatch.setattr(host, "auto_tile", watched)
    sample(samples=3, steps=1)
    assert asked == [(70, 90, 3)]


def test_other_models_make_room_for_the_usual_tiles(
    submodule: Submodule, model: Any, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a picture's tiles, and with them its last digits, would depend on what the graph has run before."""
    host, memory, management = submodule("nodes.host"), submodule("rddm_core.memory"), fake_host.management
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "free_bytes", 3e8)

    def unload(models: list[Any], memory_required: float = 0, force_full_load: bool = False) -> None:
        management.free_bytes = max(management.free_bytes, memory_required)

    monkeypatch.setattr(management, "load_models_gpu", unload)
    assert host.auto_tile(model, 900, 1100) is None
    assert host.auto_tile(model, 3000, 4000, samples=8) == memory.AUTO_TILE


def test_a_reduced_picture_gets_the_tiles_of_its_own_size(
    pack: SimpleNamespace, model: Any, submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, memory = submodule("rddm_core.pipeline"), submodule("rddm_core.memory")
    monkeypatch.setattr(memory, "AUTO_TILE", 256)
    picture = torch.rand(1, 300, 600, 3, generator=torch.Generator().manual_seed(3))
    inputs = {"model": model, "image": picture, "seed": 0, "steps": 1, "strength": 1.0}
    size = {"working_size": "manual", "size": 320}
    image, _ = pack.nodes["RDDMDeblur"].execute(**inputs, working_size=size).result
    settings = core.DeblurSettings(steps=1, working_size=320, tile=None)
    wanted = core.deblur(model.model, picture.movedim(-1, 1), settings=settings).image
    assert torch.equal(image, wanted.movedim(1, -1))


def test_weights_left_behind_are_fetched(
    sample: Callable[..., Any], model: Any, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--novram loads nothing in advance, which layers of other libraries cannot bear."""
    monkeypatch.setattr(fake_host.management, "partial_loading", True)
    monkeypatch.setattr(model, "loaded", 0)
    sample()
    assert model.loaded_size() == model.model_size()


CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes. Error code 12"
"""What torch raises on a CPU, as a plain RuntimeError, which the host does not take for a lack of memory."""


@pytest.fixture
def limited(submodule: Submodule, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int | None]]:
    """Let a stage of the core run out of memory above a number of pixels; gives the tiles that were tried."""
    core, tried = submodule("rddm_core.pipeline"), []

    def limit(stage: str, pixels: int) -> list[int | None]:
        original = getattr(core, stage)

        def run(networks: Any, picture: Tensor, *args: Any, tile: int | None, **options: Any) -> Tensor:
            tried.append(tile)
            side = max(picture.shape[-2:]) if tile is None else tile
            if min(side, picture.shape[-2]) * min(side, picture.shape[-1]) > pixels:
                raise RuntimeError(CPU_MEMORY)
            return original(networks, picture, *args, tile=tile, **options)

        monkeypatch.setattr(core, stage, run)
        return tried

    return limit


def test_tiles_are_halved_where_memory_runs_out(
    sample: Callable[..., Any], limited: Callable[..., Any], fake_host: SimpleNamespace
) -> None:
    picture = torch.rand(1, 260, 600, 3, generator=torch.Generator().manual_seed(3))
    whole, _ = sample(pre_deblurred=picture, samples=1)
    fake_host.management.load_calls.clear()
    tried = limited("sample_residual", 200 * 200)
    emptied = fake_host.management.emptied
    tiled, _ = sample(pre_deblurred=picture, samples=1)
    assert tried == [None, 300, 150]
    assert fake_host.management.emptied == emptied + 2
    asked = [needed for _, needed, _ in fake_host.management.load_calls[1:]]  # the first is for the budget
    assert asked == sorted(asked, reverse=True) and len(set(asked)) == 3
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_pre_deblur_halves_too(pack: SimpleNamespace, model: Any, limited: Callable[..., Any], painted: Tensor) -> None:
    tried = limited("pre_deblur", 200 * 200)
    picture = torch.rand(1, 300, 300, 3, generator=torch.Generator().manual_seed(3))
    (guess,) = pack.nodes["RDDMPreDeblur"].execute(model=model, image=picture, map=painted).result
    assert tried == [None, 150] and guess.shape == picture.shape


def test_below_the_smallest_tile_the_error_stands(sample: Callable[..., Any], limited: Callable[..., Any]) -> None:
    tried = limited("sample_residual", 0)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        sample(pre_deblurred=torch.rand(1, 300, 300, 3))
    assert tried == [None, 150]


@pytest.fixture
def exhaust(model: Any, submodule: Submodule, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a stage of the core run out of memory with the networks that the host has placed; a copy on the CPU works."""
    core = submodule("rddm_core.pipeline")

    def patch(stage: str) -> None:
        original = getattr(core, stage)

        def run(networks: Any, *args: Any, **options: Any) -> Tensor:
            if networks is model.model:
                raise torch.OutOfMemoryError("out of memory")
            assert {p.device.type for p in networks.parameters()} == {"cpu"}
            return original(networks, *args, **options)

        monkeypatch.setattr(core, stage, run)

    return patch


def test_below_the_smallest_tile_a_gpu_gives_way_to_the_cpu(
    sample: Callable[..., Any],
    exhaust: Callable[[str], None],
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture = torch.rand(1, 300, 300, 3, generator=torch.Generator().manual_seed(3))
    wanted, _ = sample(pre_deblurred=picture, samples=1, tiling={"tiling": "manual", "tile": 150})
    exhaust("sample_residual")
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    found, _ = sample(pre_deblurred=picture, samples=1)
    assert torch.equal(found, wanted) and "on the CPU" in caplog.text


def test_memory_is_given_back_before_the_cpu_takes_over(
    sample: Callable[..., Any],
    exhaust: Callable[[str], None],
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhaust("sample_residual")
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    emptied = fake_host.management.emptied
    sample(samples=1, steps=1)
    assert fake_host.management.emptied == emptied + 1


def test_on_the_cpu_works_a_copy_in_fp32(
    pack: SimpleNamespace, submodule: Submodule, fake_host: SimpleNamespace
) -> None:
    (patcher,) = pack.nodes["RDDMModelLoader"].execute(file="tiny.safetensors", dtype="fp16").result
    fake_host.management.freed.clear()
    copied = submodule("nodes.host")._on_cpu(patcher)
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert {p.dtype for p in patcher.model.parameters()} == {torch.float16}
    # Copied from a full device, the weights would need room there once more.
    assert fake_host.management.freed == [(1e30, patcher.load_device)]


@pytest.mark.parametrize(("missing", "folder"), [("timm", "ComfyUI"), ("piq", "ComfyUI"), ("piq", "Program Files")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, submodule: Submodule, missing: str, folder: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "executable", f"/{folder}/python")
    monkeypatch.setattr(submodule("nodes.host"), "REQUIREMENTS", Path("/pack/requirements.txt"))
    with pytest.raises(ImportError, match=missing) as caught:
        if missing == "timm":
            pack.nodes["RDDMModelLoader"].execute(file="tiny.safetensors", dtype="auto")
        else:
            pack.nodes["RDDMImageQuality"].execute(image=torch.rand(1, 40, 40, 3), reference=torch.rand(1, 40, 40, 3))
    command = str(caught.value).partition("start ComfyUI again: ")[2]
    # PowerShell takes a quoted name for a text, not a command.
    python = f'"{sys.executable}"' if " " in folder else sys.executable
    assert command == f"{python} -m pip install -r {Path('/pack/requirements.txt')}"


def test_the_list_of_packages_is_there(submodule: Submodule) -> None:
    assert submodule("nodes.host").REQUIREMENTS.is_file()


@pytest.mark.parametrize("node", ["RDDMDefocusMap", "RDDMPreDeblur"])
def test_a_map_asks_for_memory_for_a_reduced_picture(
    pack: SimpleNamespace, model: Any, submodule: Submodule, fake_host: SimpleNamespace, node: str
) -> None:
    memory, side = submodule("rddm_core.memory"), model.model.config.estimator.working_size
    picture = torch.rand(1, 4 * side, 5 * side, 3, generator=torch.Generator().manual_seed(3))
    pack.nodes[node].execute(model=model, image=picture)
    asked = fake_host.management.load_calls[0][1]
    assert asked == memory.network_bytes(model.model.config, side, side)


def test_weights_that_do_not_fit_on_a_gpu_are_used_on_the_cpu(
    pack: SimpleNamespace,
    model: Any,
    photo: Tensor,
    painted: Tensor,
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def guess() -> Tensor:
        return pack.nodes["RDDMPreDeblur"].execute(model=model, image=photo, map=painted).result[0]

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    wanted = guess()
    monkeypatch.setattr(fake_host.management, "load_models_gpu", full)
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    assert torch.equal(guess(), wanted)


def test_a_map_that_does_not_fit_on_a_gpu_is_made_on_the_cpu(
    pack: SimpleNamespace,
    model: Any,
    photo: Tensor,
    exhaust: Callable[[str], None],
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def estimated() -> Tensor:
        return pack.nodes["RDDMDefocusMap"].execute(model=model, image=photo).result[0]

    wanted = estimated()
    exhaust("estimate_defocus_map")
    with pytest.raises(torch.OutOfMemoryError):
        estimated()
    monkeypatch.setattr(fake_host.management, "is_device_cpu", lambda device: False)
    assert torch.equal(estimated(), wanted) and "on the CPU" in caplog.text


def test_other_errors_are_not_tried_again(
    sample: Callable[..., Any], submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        raise RuntimeError("something else")

    monkeypatch.setattr(submodule("rddm_core.pipeline"), "sample_residual", broken)
    with pytest.raises(RuntimeError, match="something else"):
        sample(pre_deblurred=torch.rand(1, 300, 300, 3))
    assert calls == [1]


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_result_that_is_not_finite_leaves_a_node(submodule: Submodule, bad: float) -> None:
    with pytest.raises(ValueError, match="set dtype of Load RDDM Model to auto or fp32"):
        submodule("nodes.host").to_intermediate(torch.tensor([0.0, bad]))


def test_results_wait_where_the_host_wants_them(
    submodule: Submodule, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_host.management.intermediates, "device", torch.device("meta"))
    assert submodule("nodes.host").to_intermediate(torch.zeros(2)).device.type == "meta"
