"""What the layers of a model take in while it reads: for methods that round by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def read_inputs(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    ids: Tensor,
    batch_size: int,
    look: Callable[[str, Tensor], None],
) -> dict[str, str]:
    """Show `look` the inputs of the layers while `module` reads `ids`; it is left as it was.

    Layers that are given the very same tensor in the first batch (query, key and value; gate and
    up) share what is seen, and are looked at once.

    Args:
        ids: tokens, int64 [sequences, tokens].
        batch_size: sequences read at once.
        look: (name of a layer, its inputs of one batch [sequences, tokens, in]).

    Returns:
        for each layer reached, the name of the one whose inputs are also its own.
    """
    same: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def seen(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            if name not in same:
                same[name] = last[0][0] if last and last[0][1] is x else name
            if same[name] == name:
                last[:] = [(name, x)]
                look(name, x.detach())

        return seen

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        device = next(module.parameters()).device
        with torch.inference_mode():
            for batch in torch.split(ids, batch_size):
                module(input_ids=batch.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return same
