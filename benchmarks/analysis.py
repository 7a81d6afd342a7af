"""Where the time goes, how near that is to what the machine can do, and what other settings would bring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
from rddm_core.networks import deformable
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import DeblurSettings, deblur

from .contenders import LONG, stage_works
from .pictures import photograph
from .process import timed

TAPS = "tap by tap"
VARIANTS = ("as shipped", "channels_last", "contiguous", "huge pages", TAPS)
"""Ways to run the same weights: memory formats, THP_MEM_ALLOC_ENABLE in the environment, deformable layers by taps."""
COMPILED = "compiled"


# ---------------------------------------------------------------- profile


def profile_stages(size: tuple[int, int], threads: int, rows: int) -> dict[str, Any]:
    """Per stage, on the whole photograph: milliseconds by torch.profiler, the operators that take most of the time, and
    those whose results take most of the memory, all calls together.
    """
    torch.set_num_threads(threads)
    found = {}
    with torch.inference_mode():
        for stage, work in stage_works(load_checkpoint(default_checkpoint_path()), size).items():
            work()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                work()
            with CostCounter() as counter:
                work()
            operators = profiler.key_averages()
            total = sum(o.self_cpu_time_total for o in operators)
            by_time = sorted(operators, key=lambda o: -o.self_cpu_time_total)[:rows]
            allocated = Counter[str]()
            for cost in counter.costs:
                allocated[cost.operator] += round(cost.allocated)
            found[stage] = {
                "milliseconds": total / 1e3,
                "time": [
                    {"operator": o.key, "calls": o.count, "share": o.self_cpu_time_total / total} for o in by_time
                ],
                "memory": [{"operator": name, "megabytes": size / 1e6} for name, size in allocated.most_common(rows)],
            }
    return found


# ---------------------------------------------------------------- floor


COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one operator call, the bytes of its inputs and outputs, and those it allocates."""

    flops: float
    bytes: float
    allocated: float = 0
    operator: str = ""


class CostCounter(TorchDispatchMode):
    """Records the cost of every operator that is called inside it.

    Counted are matrix products and convolutions (torch.utils.flop_counter), Fourier transforms (2.5 n log2 n for real
    ones) and embedding bags; what works element by element counts by its bytes alone. Views and bare allocations cost
    nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[Cost] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operators arrive here in one piece: count their parts. Not by func.decompose(),
        # which prefers decompositions for compilers to the kernel that really runs.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        if not _moves_nothing(func):
            moved = sum(_bytes(x) for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            in_place = any(r.alias_info is not None for r in func._schema.returns)
            allocated = 0 if in_place else sum(_bytes(x) for x in tree_leaves(out) if isinstance(x, Tensor))
            self.costs.append(Cost(_flops(func, args, kwargs, out), moved, allocated, func._overloadpacket.__name__))
        return out


def _moves_nothing(func: Any) -> bool:
    name = func._schema.name.removeprefix("aten::")
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return is_view or name.startswith(("empty", "new_empty", "_local_scalar_dense"))


def _bytes(x: Tensor) -> int:
    # A broadcast tensor is read once from its own storage.
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    packet = func._overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet in (torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r):
        real, axes = (args[0] if packet is torch.ops.aten._fft_r2c else out), args[1]
        return 2.5 * real.numel() * math.log2(math.prod(real.shape[axis] for axis in axes))
    if packet in (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only):
        table, indices = args[:2]
        return 2.0 * indices.numel() * table.shape[1]
    return 0.0


def floor_seconds(costs: Iterable[Cost], flops_per_second: float, bytes_per_second: float) -> dict[str, float]:
    """The least time for these operators, one after the other: each by its arithmetic or its bytes, whichever is more.

    `arithmetic` and `traffic` are the two alone. A fused program could come below `floor`, down to `arithmetic`.
    """
    costs = list(costs)
    arithmetic = [c.flops / flops_per_second for c in costs]
    traffic = [c.bytes / bytes_per_second for c in costs]
    return {
        "gflop": sum(c.flops for c in costs) / 1e9,
        "gigabytes": sum(c.bytes for c in costs) / 1e9,
        "arithmetic": sum(arithmetic),
        "traffic": sum(traffic),
        "floor": sum(max(pair) for pair in zip(arithmetic, traffic, strict=True)),
    }


def measure_floor(size: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """The machine's best rates, and for every stage on the whole photograph its floor beside the measured seconds."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        rates = machine_rates(repeats)
        stages = {}
        for stage, work in stage_works(load_checkpoint(default_checkpoint_path()), size).items():
            with CostCounter() as counter:
                work()
            floor = floor_seconds(counter.costs, max(rates["gemm"], rates["convolution"]), rates["copy"])
            stages[stage] = floor | {"measured": min(timed(work) for _ in range(repeats))}
        return {"rates": rates, "stages": stages}


def machine_rates(repeats: int) -> dict[str, float]:
    """FLOP/s of a matrix product and of a 3x3 convolution, and bytes/s (read and written) of a copy, fp32, at best."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    x = torch.randn(1, 64, 192, 192).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source).fill_(0)  # touched, so that no page is new when it is timed

    def best(work: Callable[[], object]) -> float:
        work()
        return min(timed(work) for _ in range(repeats))

    return {
        "gemm": 2 * 1536**3 / best(lambda: a @ b),
        "convolution": 2 * x.numel() * w.numel() / 64 / best(lambda: F.conv2d(x, w, padding=1)),
        "copy": 2 * source.numel() * 4 / best(lambda: target.copy_(source)),
    }


# ---------------------------------------------------------------- other settings


def measure_variant(variant: str, size: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of the first and of `repeats` further runs (one, if it is long) of the whole pipeline on the whole
    photograph, and the largest difference of the result from that of the weights as shipped, in 1/255.
    """
    torch.set_num_threads(threads)
    picture = photograph(*size)
    settings = DeblurSettings(tile=None, working_size="full")

    def run(model: RDDM) -> Tensor:
        return deblur(model, picture, settings=settings).image

    expected = run(load_checkpoint(default_checkpoint_path()))
    model = load_checkpoint(default_checkpoint_path())
    if variant in ("channels_last", "contiguous"):
        use_memory_format(model, torch.channels_last if variant == "channels_last" else torch.contiguous_format)
    elif variant == TAPS:
        deformable._aggregate_in_bags = deformable._aggregate_taps
    elif variant == COMPILED:
        compile_networks(model)
    first, seconds = timed(lambda: run(model)), [timed(lambda: run(model))]
    while len(seconds) < repeats and seconds[0] < LONG:
        seconds.append(timed(lambda: run(model)))
    return {"first": first, "seconds": seconds, "difference": float((run(model) - expected).abs().max()) * 255}


def use_memory_format(model: RDDM, memory_format: torch.memory_format) -> None:
    """Weights, and what every convolution is given, in `memory_format`."""
    model.to(memory_format=memory_format)

    def convert(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=memory_format) for x in inputs)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(convert)


def compile_networks(model: RDDM) -> None:
    """torch.compile for everything but the estimator, which does not grow with the picture."""
    for network in (model.pre_deblur, model.guidance, model.denoiser):
        network.compile()
    condition: Any = torch.compile(model.denoiser.encode_condition)
    model.denoiser.encode_condition = condition  # type: ignore[method-assign]
