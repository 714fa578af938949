"""Models whose weights are not all in memory: ``device_map`` may leave them elsewhere until a pass needs them.

Such a model runs, and its sites can be read and edited. What looks at weights, or at where they are, cannot use it.
"""

from __future__ import annotations

from torch import nn

from steerscope.errors import InputError


def require_weights_in_memory(model: nn.Module, what: str) -> None:
    """Refuse a model some of whose weights are only there while it runs.

    Args:
        model: A language model or a wrapper of one.
        what: What needs them, a noun.

    Raises:
        InputError: They are.
    """
    away = [name for name, value in model.named_parameters() if value.is_meta]
    if away:
        raise InputError(
            f"{len(away)} weights of this model are offloaded ({away[0]!r}, for example: device_map puts what does not "
            f"fit on the CPU or the disk), and {what} needs them in memory. Load the model whole: without device_map, "
            "in a smaller data type, or on a device that holds it."
        )
