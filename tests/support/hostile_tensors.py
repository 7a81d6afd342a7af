"""Tensors that somebody may hand over by mistake, as a strategy for hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES += [torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
SPECIAL = [float("nan"), float("inf"), -float("inf"), -1e-3, -1.0, 1.001, 255.0, 6e4, 3e38, 1e-40, -0.0]


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A tensor of about this shape: right in one case of four, else wrong in one way or several."""
    dtype = torch.float32
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    if draw(st.integers(0, 3)) == 0:
        return values
    if draw(st.booleans()):
        position = draw(st.integers(0, values.numel() - 1))
        values.view(-1)[position] = draw(st.sampled_from(SPECIAL))
    kind = draw(
        st.sampled_from(["", "", "flat", "more", "other", "empty", "strided", "expanded", "gradient", "sparse"])
    )
    if kind == "flat":
        values = values[0]
    elif kind == "more":
        values = values[None]
    elif kind in ("other", "empty"):
        axis = draw(st.integers(0, len(shape) - 1))
        size = 0 if kind == "empty" else draw(st.sampled_from([1, 2, 4]))
        values = values.new_full((*shape[:axis], size, *shape[axis + 1 :]), 0.5)
    elif kind == "strided":
        values = values.repeat_interleave(2, dim=-1)[..., ::2]
    elif kind == "expanded":
        values = values[:1].expand(shape)
    elif kind == "gradient":
        values.requires_grad_()
    if draw(st.booleans()):
        dtype = draw(st.sampled_from(DTYPES))
    values = values.to(dtype)
    return values.to_sparse() if kind == "sparse" and dtype != torch.float8_e4m3fn else values
