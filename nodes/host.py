"""All that the pack knows of ComfyUI beyond the schema of nodes: files, devices, memory, progress, interrupts.

Written against ComfyUI 0.33.0; what it uses is there since 0.19.0.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import comfy.model_management as model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from ..rddm_core.callbacks import Callbacks
    from ..rddm_core.networks.model import RDDM

logger = logging.getLogger(__name__)

MODEL_FOLDER = "rddm"
SHIPPED_WEIGHTS = Path(__file__).parent.parent / "rddm_core" / "weights"
REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
INCLUDED = " [included]"
"""Ends the name of weights that come with the pack, so that no file of the user's can have the same one."""
EXTENSION = ".safetensors"
DTYPES = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USABLE_SHARE = 0.8
"""Of the memory that the host calls free; the rest is for what is estimated too low."""
PREVIEW_INTERVAL = 0.1
"""Seconds between two previews; ComfyUI sends every one that it is given."""

T = TypeVar("T")


class Noise(Protocol):
    """ComfyUI's NOISE."""

    def generate_noise(self, input_latent: dict[str, Tensor]) -> Tensor:
        """Noise of the shape of `input_latent["samples"]`, float32 on the CPU."""
        ...


# ---------------------------------------------------------------- checkpoints


def register_model_folder() -> None:
    """Make models/rddm known, beside what extra_model_paths.yaml says about `rddm`."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, os.path.join(folder_paths.models_dir, MODEL_FOLDER))
    # The host starts a new folder with no extensions at all, which would list every file.
    folder_paths.folder_names_and_paths[MODEL_FOLDER][1].add(EXTENSION)


def checkpoint_names() -> list[str]:
    """What the loader offers: the weights that come with the pack, then the user's."""
    # Filtered again: another pack may have registered the folder, with pickles among its extensions.
    own = [name for name in folder_paths.get_filename_list(MODEL_FOLDER) if name.lower().endswith(EXTENSION)]
    return [*_shipped(), *own]


def checkpoint_path(name: str) -> Path:
    """Where the checkpoint of that name lies. Raises FileNotFoundError that names the folders."""
    path = _shipped().get(name)
    if path is None and name.lower().endswith(EXTENSION):
        found = folder_paths.get_full_path(MODEL_FOLDER, name)
        path = None if found is None else Path(found)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(MODEL_FOLDER))
        raise FileNotFoundError(f"There is no checkpoint {name!r}. Put RDDM checkpoints (.safetensors) into {folders}")
    return path


def _shipped() -> dict[str, Path]:
    return {path.name + INCLUDED: path for path in sorted(SHIPPED_WEIGHTS.glob(f"*{EXTENSION}"))}


# ---------------------------------------------------------------- packages


@contextmanager
def needed_packages() -> Iterator[None]:
    """Inside, ImportError also says how to install what the pack needs, for the Python that runs here."""
    try:
        yield
    except ImportError as error:
        python, listed = (f'"{path}"' if " " in str(path) else path for path in (sys.executable, REQUIREMENTS))
        install = f"{python} -m pip install -r {listed}"  # unquoted where possible: PowerShell runs no quoted name
        raise ImportError(f"{error}. Install what this pack needs, then start ComfyUI again: {install}") from error


# ---------------------------------------------------------------- devices and memory


def load_model(path: Path, dtype: str) -> ModelPatcher:
    """The networks of a checkpoint, in the care of the host's model management.

    Raises `rddm_core.checkpoint.CheckpointError` for a file that cannot be used.
    """
    offload_device = model_management.unet_offload_device()
    with needed_packages():
        from ..rddm_core.checkpoint import load_checkpoint, read_info
        from ..rddm_core.regression import refuse_regression

        refuse_regression(path, read_info(path).provenance)
        model = load_checkpoint(path, dtype=DTYPES[dtype], device=offload_device)
    # Not CoreModelPatcher: on some devices that one needs the host's own layers, and estimator and backbone have none.
    return ModelPatcher(model, load_device=model_management.get_torch_device(), offload_device=offload_device)


def ready(patcher: ModelPatcher, needed: int) -> RDDM:
    """The networks on their device, with so many bytes free for their work."""
    model_management.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
    if patcher.loaded_size() < patcher.model_size():
        # --novram leaves layers behind, to be cast on use. Those of libraries cannot be, and all weigh 50 MB at most.
        patcher.patch_model(patcher.load_device)
    return patcher.model


def auto_tile(patcher: ModelPatcher, height: int, width: int, samples: int = 1) -> int | None:
    """The tile that fits into what is free once the host has made room; None is the whole picture at once.

    Where even the smallest tiles may not fit, `run_in_tiles` finds out.
    """
    from ..rddm_core.memory import MIN_TILE, fits_in_one_tile, guidance_bytes, held_bytes, largest_tile, wanted_bytes

    # Asked for in full: other models may go, so that a picture's tiles, and what they change, seldom depend on them.
    wanted = wanted_bytes(patcher.model.config, height, width, samples)
    config = ready(patcher, round(wanted / USABLE_SHARE)).config
    free = round(USABLE_SHARE * model_management.get_free_memory(patcher.load_device))
    free -= guidance_bytes(config, height, width, samples)
    if model_management.is_device_cpu(patcher.load_device):  # else pictures and results lie in another memory
        free -= held_bytes(height, width, samples)
    side = max(MIN_TILE, largest_tile(config, free, width, samples))
    return None if fits_in_one_tile(height, width, side) else side


def run_in_tiles(
    patcher: ModelPatcher,
    size: tuple[int, int],
    tile: int | Literal["auto"] | None,
    stage: Callable[[RDDM, int | None], T],
    samples: int = 1,
) -> T:
    """`stage(networks, tile)` for a picture of that size, "auto" with the tile of `auto_tile`; where memory runs out,
    again with tiles of half the side, and where tiles of MIN_TILE do not fit either, on the CPU.

    Raises the error of the exhausted memory where that was the CPU's.
    """
    from ..rddm_core.memory import AUTO_TILE, MIN_TILE, network_bytes

    height, width = size
    limit = max(size)
    while True:
        try:
            if tile == "auto":
                limit = min(limit, AUTO_TILE)  # should not even the networks fit
                tile = auto_tile(patcher, height, width, samples)
            limit = max(size) if tile is None else tile
            needed = network_bytes(patcher.model.config, min(height, limit), min(width, limit))
            return stage(ready(patcher, needed), tile)
        except Exception as error:
            _raise_unless_out_of_memory(error)
            smaller = min(limit, max(size)) // 2
            if smaller >= MIN_TILE:
                tile = smaller
                logger.warning("RDDM: out of memory, starting again with tiles of %d pixels", tile)
            elif model_management.is_device_cpu(patcher.load_device):
                raise
            else:
                logger.warning("RDDM: not even tiles of %d pixels fit on %s: on the CPU", limit, patcher.load_device)
                break
        model_management.soft_empty_cache()
    model_management.soft_empty_cache()
    return stage(_on_cpu(patcher), None if tile == "auto" else tile)


def estimate_map(patcher: ModelPatcher, image: Tensor, watch: Callbacks) -> Tensor:
    """`pipeline.estimate_defocus_map`, which needs memory for reduced pictures alone; where even that runs out, on the
    CPU.

    Raises the error of the exhausted memory where that was the CPU's.
    """
    from ..rddm_core.memory import network_bytes
    from ..rddm_core.pipeline import estimate_defocus_map

    config = patcher.model.config
    height, width = (min(side, config.estimator.working_size) for side in image.shape[-2:])
    try:
        networks = ready(patcher, network_bytes(config, height, width))
        return estimate_defocus_map(networks, image, callbacks=watch)
    except Exception as error:
        _raise_unless_out_of_memory(error)
        if model_management.is_device_cpu(patcher.load_device):
            raise
    logger.warning("RDDM: the defocus map does not fit on %s: on the CPU", patcher.load_device)
    model_management.soft_empty_cache()
    return estimate_defocus_map(_on_cpu(patcher), image, callbacks=watch)


def _raise_unless_out_of_memory(error: Exception) -> None:
    """The host knows what GPUs raise, the core what torch raises on a CPU."""
    from ..rddm_core.memory import ran_out_of_memory

    try:
        model_management.raise_non_oom(error)  # asked first: it clears the error that CUDA keeps
    except Exception:
        if not ran_out_of_memory(error):
            raise


def _on_cpu(patcher: ModelPatcher) -> RDDM:
    """A copy, because what the host has placed stays in its care; in fp32, in which CPUs are faster than in fp16."""
    model_management.free_memory(1e30, patcher.load_device)  # or a full device would have to hold the copy as well
    return copy.deepcopy(patcher.model).to("cpu", torch.float32)


def to_intermediate(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A result as the host wants it between nodes; `dtype` overrides the precision.

    Raises ValueError for values that are not finite: no node passes them on.
    """
    from ..rddm_core.checks import value_range

    if not all(math.isfinite(value) for value in value_range(x)):
        raise ValueError(
            "the result contains invalid values (NaN or infinity): set dtype of Load RDDM Model to auto or fp32; "
            "if that does not help, the file of the model is damaged"
        )
    return x.to(model_management.intermediate_device(), dtype or model_management.intermediate_dtype())


# ---------------------------------------------------------------- progress, preview, interrupt


def callbacks(preview: bool = False) -> Callbacks:
    """Progress bar and interrupt of the running node; with `preview` also pictures, where the user has not
    switched them off.
    """
    from ..rddm_core.callbacks import Callbacks

    report = _Report()
    wanted = preview and args.preview_method != LatentPreviewMethod.NoPreviews
    return Callbacks(
        progress=report.progress,
        preview=report.preview if wanted else None,
        check_interrupt=model_management.throw_exception_if_processing_interrupted,
    )


class _Report:
    """The progress bar of one execution of a node."""

    def __init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(1)
        self.shown = -PREVIEW_INTERVAL

    def progress(self, done: int, total: int) -> None:
        self.bar.update_absolute(done, total)

    def preview(self, image: Tensor) -> None:
        now = time.monotonic()
        if now - self.shown < PREVIEW_INTERVAL:
            return
        self.shown = now
        array = (image[0].movedim(0, -1) * 255).round().to("cpu", torch.uint8).numpy()
        self.bar.update_absolute(self.bar.current, preview=("JPEG", Image.fromarray(array), args.preview_size))


def draw_noise(noise: Noise | Any, batch: int, samples: int, size: tuple[int, int]) -> Tensor:
    """Noise [B, N, 3, H, W] from the host's NOISE. Raises ValueError for what is no such noise."""
    height, width = size
    drawn = noise.generate_noise({"samples": torch.zeros(batch * samples, 3, height, width)})
    if tuple(drawn.shape) != (batch * samples, 3, height, width):
        raise ValueError(f"noise has the shape {list(drawn.shape)}: connect a node such as RandomNoise")
    return drawn.float().reshape(batch, samples, 3, height, width)
