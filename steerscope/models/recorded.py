"""The calls of a block's attention and MLP in one pass, to be made again on other inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.blocks import Block, as_token_axes
from steerscope.models.calls import Call, first_tensor, hooked, remember_output
from steerscope.site_kinds import Branch


@dataclass
class Calls:
    """How one block, its attention and the module that its MLP begins with were called."""

    of: dict[Branch, Call] = field(default_factory=dict)
    block: Call | None = None

    def again(self, block: Block, branch: Branch, value: Tensor) -> Tensor:
        """Call a branch as it was called, on another input.

        Args:
            block: The block whose calls these are.
            branch: Attention, or an MLP that is one map.
            value: What it gets instead, ``batch token d_model``.

        Returns:
            What its output projection reads; of a branch that is one map, what that writes before a norm on it.

        Raises:
            UnsupportedModelError: That part did not run.
        """
        module = block.attn if branch is Branch.ATTENTION else block.mlp_in
        whole = block.whole(branch)
        found: list[Tensor | None] = []
        if whole is None:
            handle = block.attn_write.register_forward_pre_hook(
                lambda _, args, kwargs: found.append(Call(args, kwargs).first), with_kwargs=True
            )
        else:
            handle = whole.register_forward_hook(lambda _, args, output: found.append(first_tensor(output)))
        call = self.of.get(branch)
        with handle:
            if call is not None and call.first is not None:
                call.again(module, value.reshape(call.first.shape))
        if not found or found[-1] is None:
            raise UnsupportedModelError(
                f"self-check: the {branch} of block {block.index} does not run, or not as one tensor to another. "
                "Correct the BlockDescription."
            )
        return as_token_axes(found[-1], *value.shape[:2])


@contextmanager
def recorded_calls(blocks: Sequence[Block]) -> Iterator[dict[int, Calls]]:
    """Record the calls of attention and MLP of passes inside the context.

    Args:
        blocks: The blocks.

    Yields:
        Per block its calls, those of the last pass; filled as the model runs.
    """
    calls = {block.index: Calls() for block in blocks}

    def recorder(index: int, branch: Branch) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[index].of[branch] = Call(args, kwargs)

        return hook

    def whole(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[index].block = Call(args, kwargs)

        return hook

    handles = [block.module.register_forward_pre_hook(whole(block.index), with_kwargs=True) for block in blocks]
    handles += [
        module.register_forward_pre_hook(recorder(block.index, branch), with_kwargs=True)
        for block in blocks
        for branch, module in ((Branch.ATTENTION, block.attn), (Branch.MLP, block.mlp_in))
    ]
    handles += [block.module.register_forward_hook(remember_output) for block in blocks]
    with hooked(handles):
        yield calls
