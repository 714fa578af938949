"""Control vectors of llama.cpp (and of repeng): fixed vectors of the residual stream in a GGUF file.

llama.cpp adds ``direction.N`` to the stream after block N, N from 1 to the number of blocks less one: blocks count from
0, and the first has no place in its table. Layers that a file leaves out are not steered.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.files import replace_file
from steerscope.finite import require_finite
from steerscope.installed import require
from steerscope.models.wrappers import is_peft
from steerscope.site_kinds import SiteKind, stream_behind
from steerscope.sites import Site
from steerscope.steering.holding import why_not_everywhere

if TYPE_CHECKING:
    from steerscope.steering.model import SteeringModel

ARCHITECTURE = "controlvector"
# llama.cpp's names of architectures where they are not transformers'.
_NAMES = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "phi": "phi2"}


def export_gguf(steering: SteeringModel, file: Path) -> None:
    """Write the adapter that acts; see :meth:`SteeringModel.export_gguf`.

    Args:
        steering: The model; nothing is changed in it.
        file: Where to write.

    Raises:
        InputError: The edits are no control vectors, or the file cannot be written.
    """
    found = directions(steering)
    require("gguf", "a control vector in a GGUF file")
    from gguf import GGUFReader, GGUFWriter  # slow to load

    if file.is_dir() or file.suffix != ".gguf":
        raise InputError(f"a control vector is one file, got {str(file)!r}; name it, 'vector.gguf' for example.")
    if file.exists():
        try:
            held = str(GGUFReader(file).fields["general.architecture"].contents())
        except (ValueError, KeyError, OSError, IndexError):
            held = "no GGUF"
        if held != ARCHITECTURE:
            raise InputError(
                f"the file {str(file)!r} is there and holds no control vector ({held}), so it was not touched. Name "
                "another file."
            )
    config = steering.get_base_model().config

    def write_to(aside: Path) -> None:
        writer = GGUFWriter(aside, ARCHITECTURE)
        try:
            model_type = str(config.model_type)  # type: ignore[union-attr]
            writer.add_string(f"{ARCHITECTURE}.model_hint", _NAMES.get(model_type, model_type))
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(steering.site_map.blocks) - 1)
            for layer, vector in found.items():
                writer.add_tensor(f"direction.{layer}", vector.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    replace_file(file, write_to)


def directions(steering: SteeringModel) -> dict[int, Tensor]:
    """Return what an adapter adds to the stream after blocks, by the block's number: float32 ``(d_model)``.

    Raises:
        InputError: That is not all it does.
    """
    config = steering.steering_config
    if config.positions != "all":
        raise InputError(why_not_everywhere(config.positions).replace("weights act", "a control vector acts", 1))
    if is_peft(steering.base_model):
        raise InputError(
            "this adapter stands on an adapter of PEFT, which a control vector does not hold. Merge PEFT's into the "
            "model, and put the vectors on the result."
        )
    found: dict[int, Tensor] = {}
    for site in steering.sites:
        _require_direction(steering, site)
        vector = steering.edit_at(site).affine().times(steering.adapter().strength).vector
        assert vector is not None
        vector = vector.detach().to("cpu", torch.float64)
        require_finite(f"the edit at '{site}'", vector, advice="Train it again, with a smaller learning rate.")
        found[site.layer] = found.get(site.layer, 0) + vector
    return {layer: vector.float().contiguous() for layer, vector in sorted(found.items())}


def _require_direction(steering: SteeringModel, site: Site) -> None:
    edit, kinds = steering.edit_at(site), steering.site_map.description.kinds
    if not edit.is_affine or edit.has_matrix:
        raise InputError(
            f"the edit at '{site}' ({edit.equation}) depends on what it reads, and a control vector does not. Train "
            "family='vector', or export_lora()."
        )
    where = f"a control vector is added to the stream after a block (resid_post), and the edit at '{site}' "
    # Every kind that adds to the stream behind the block's last branch does the same there.
    if site.head is not None or site.kind.facts.read_by is not None:
        raise InputError(where + "is added inside one. Use resid_post.")
    if not site.kind.facts.written_by:
        raise InputError(where + "is added before the first one. Use resid_post of a later block.")
    told = steering.site_map.blocks[site.layer].description
    if site.kind is not SiteKind.RESID_POST and told.changes_the_stream:
        raise InputError(where + "is added before the block changes the stream. Use resid_post.")
    if stream_behind(site.kind, kinds) is not SiteKind.RESID_POST:
        raise InputError(where + "before the MLP, which reads it. Use resid_post.")
    if site.layer == 0:
        raise InputError(where + "after the first one (0), for which llama.cpp keeps no vector. Use a later block.")
