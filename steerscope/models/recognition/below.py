"""Do blocks read more of the blocks below them than the stream? Found by leaving those below out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steerscope.models.calls import first_tensor, hooked, remember_output, stream_of
from steerscope.models.upper_blocks import DescribedBlocks, entering_block
from steerscope.models.wrappers import in_evaluation_mode, run_on_random_tokens


@torch.no_grad()
def reads_below(model: nn.Module, site_map: DescribedBlocks) -> bool:
    """Say whether the upper blocks need more than the stream that enters them (keys and values of lower ones, say).

    Args:
        model: The model, without hooks that change it.
        site_map: Its blocks, with a description that does not say so yet.

    Returns:
        Whether the model's last block, or the upper half of its blocks, gives something else without those below.

    Raises:
        OutOfMemoryError: There is no room for a pass; any other error says that a lower block is missed.

    Cost: three forward passes over 12 tokens, two of them through some of the blocks.
    """
    blocks = site_map.blocks
    layers = sorted({len(blocks) // 2, len(blocks) - 1} - {0})
    entered: dict[int, Tensor] = {}
    handles = [block.module.register_forward_hook(remember_output) for block in blocks]
    handles += [
        blocks[layer].module.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: entered.__setitem__(layer, stream_of(args, kwargs).clone()),
            with_kwargs=True,
        )
        for layer in layers
    ]
    left: list[Tensor] = []
    handles.append(blocks[-1].module.register_forward_hook(lambda _, args, output: left.append(_copy_of(output))))
    with hooked(handles), in_evaluation_mode(model):
        run_on_random_tokens(model)
        for layer in layers:
            with entering_block(site_map, layer, entered[layer]):
                try:
                    run_on_random_tokens(model)
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # what a block raises that does not find what a lower one keeps for it
                    return True
    plain = left[0].float()
    return any(float((one.float() - plain).norm()) > 1e-3 * float(plain.norm()) for one in left[1:])


def _copy_of(output: object) -> Tensor:
    found = first_tensor(output)
    assert found is not None
    return found.clone()
