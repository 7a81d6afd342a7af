"""How much memory a computation takes, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The largest sum of bytes in tensors made while it is active, views of `given` ones apart."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        # Kept, or another storage could get the address of one that is gone.
        self.given = [tensor.untyped_storage() for tensor in given]
        self.alive = {storage._cdata: 0 for storage in self.given}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, key: int) -> None:
        self.bytes -= self.alive.pop(key, 0)
