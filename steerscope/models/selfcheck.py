"""Is the site map true? Checked on load, on a tiny input: what sites read, and what their edits move.

For every kind: a zero edit leaves the logits bit-equal, a random edit changes them, the tensor read
satisfies the layout's equation, and the block's output after the edit equals the equation recomputed with
the edit. The last one catches a hook on the norm before the MLP, which reads ``resid_mid`` but writes only
the MLP's branch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.finite import require_finite
from steerscope.models.blocks import Block, linear_weight
from steerscope.models.ends import end_of
from steerscope.models.hooks import Edit, edited, reading
from steerscope.models.offloaded import device_of
from steerscope.models.packed import compute_dtype, is_packed, rounding_of, weights_besides
from steerscope.models.recorded import Calls, recorded_calls
from steerscope.models.site_map import SiteMap
from steerscope.models.upper_blocks import entering_block
from steerscope.models.wrappers import acting_layer, random_tokens, vocab_size
from steerscope.site_kinds import Branch, Place
from steerscope.sites import Site, SiteKind


@torch.no_grad()
def check_sites(model: nn.Module, site_map: SiteMap) -> None:
    """Verify every site of ``model`` against its defining equations.

    Args:
        model: A causal language model in evaluation mode.
        site_map: The map to verify.

    Raises:
        UnsupportedModelError: A tensor or an edit disagrees with its equation; the message names the first.
        InputError: The logits are NaN or infinite.

    Cost: about ten forward passes over 12 tokens.
    """
    generator = torch.Generator().manual_seed(0)
    ids = random_tokens(model, generator)

    def run() -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    allowed = Tolerance.of(model, site_map)
    plain = run()
    # A model may rule out tokens with minus infinity; nothing else is a logit.
    require_finite("a logit of this model, of six random tokens,", plain.masked_fill(plain == -torch.inf, 0.0))
    _check_causal(model, ids, plain, allowed)
    zero: dict[Site, Edit] = dict.fromkeys(site_map.sites(), torch.zeros_like)
    with edited(model, site_map, zero):
        if not torch.equal(run(), plain):
            raise UnsupportedModelError("self-check: zero edits at all sites changed the logits.")

    with recorded_calls(site_map.blocks) as calls:
        clean = _run_and_read(run, site_map)
    for block in site_map.blocks:
        # What enters a block may still be on the device of the block before.
        home = device_of(block.module)
        read = {kind: clean[block.index, kind].to(home) for kind in site_map.description.kinds}
        _check_reads(block, read, calls[block.index], allowed)
        _check_maps(block)

    middle = len(site_map.blocks) // 2
    with entering_block(site_map, middle, clean[middle, SiteKind.RESID_PRE]):
        behind = run()
    found, expected = (logits.masked_fill(logits == -torch.inf, 0.0) for logits in (behind, plain))
    _compare(
        found, expected, f"the model from block {middle} on does not follow from the stream that enters it", allowed
    )
    for kind in site_map.description.kinds:
        layer = 0 if kind.facts.is_first_block_only else middle
        edit = _random_edit(clean[layer, kind], generator)
        with edited(model, site_map, {Site(layer, kind): edit}):
            if torch.equal(run(), plain):
                raise UnsupportedModelError(
                    f"self-check: an edit of '{layer}.{kind}' left the logits as they were: the block does not write "
                    f"there what its description says, or the edit is too small beside the stream in {plain.dtype}. "
                    "Load the model with [[dtype='float32']], or correct the BlockDescription."
                )
        _check_writes(model, site_map, kind, run, clean, generator, allowed)


def _check_causal(model: nn.Module, ids: Tensor, plain: Tensor, allowed: Tolerance) -> None:
    """Require that the logits of a token do not depend on later tokens."""
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % vocab_size(model)
    earlier = model(input_ids=other, use_cache=False).logits[:, :-1]
    known = torch.isfinite(earlier) & torch.isfinite(plain[:, :-1])
    zero = torch.zeros((), dtype=plain.dtype, device=plain.device)
    found, expected = (torch.where(known, value, zero) for value in (earlier, plain[:, :-1]))
    if not allowed.holds(*_errors(found, expected)):
        raise UnsupportedModelError(
            "self-check: another last token changed the logits of the tokens before it, so this is no causal language "
            "model. Load a decoder; for BERT-like models set is_decoder=True in the configuration."
        )


def _run_and_read(run: Callable[[], Tensor], site_map: SiteMap) -> dict[tuple[int, SiteKind], Tensor]:
    with reading(site_map, site_map.sites()) as found:
        run()
    return {(site.layer, site.kind): value.clone() for site, value in found.items()} | {
        # resid_pre of every layer, so that the equations below need no special case
        (site.layer + 1, SiteKind.RESID_PRE): value.clone()
        for site, value in found.items()
        if site.kind is SiteKind.RESID_POST
    }


def _random_edit(like: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    delta = noise.to(like) * like.float().pow(2).mean().sqrt().to(like)
    return lambda _: delta


def _check_maps(block: Block) -> None:
    """Require that the described linear maps are all of the block's, each once: K_FT sums over them."""
    maps = list(block.linear_maps().values())
    # A packed map was found to be linear when its widths were measured.
    described = [id(acting_layer(module) if is_packed(module) else linear_weight(module)) for module in maps]
    missing = [name for name in weights_besides(block.module, maps) if name not in block.description.left_out]
    if missing or len(set(described)) != len(described):
        what = f"leaves out {missing}" if missing else "names a linear map twice"
        raise UnsupportedModelError(
            f"self-check: the description of block {block.index} {what}. List every linear map of the block once, "
            "in attn_reads, attn_write, mlp_reads or mlp_write of the BlockDescription, and in left_out what is no "
            "linear map of every token."
        )


def _check_reads(block: Block, read: dict[SiteKind, Tensor], calls: Calls, allowed: Tolerance) -> None:
    """Compare every tensor read with the layout's equation, from the tensors before it."""
    h, attn_out = read[SiteKind.RESID_PRE], read[SiteKind.ATTN_OUT]
    mlp_in, hidden, mid = read[SiteKind.MLP_IN], read.get(SiteKind.MLP_HIDDEN), block.stream_mid(h, attn_out)
    normed = h if block.attn_norm is None else block.attn_norm(h)
    expected = {
        SiteKind.ATTN_OUT: block.attn_output(read[SiteKind.ATTN_HEADS])
        if SiteKind.ATTN_HEADS in read
        else block.added(Branch.ATTENTION, calls.again(block, Branch.ATTENTION, normed)),
        SiteKind.MLP_IN: block.mlp_input(h, mid),
        SiteKind.MLP_OUT: block.added(Branch.MLP, calls.again(block, Branch.MLP, mlp_in))
        if hidden is None
        else block.mlp_output(hidden),
        SiteKind.RESID_POST: end_of(block, calls.block, h, mid + read[SiteKind.MLP_OUT]),
    }
    if hidden is not None:
        expected[SiteKind.MLP_HIDDEN] = block.hidden(mlp_in)
    if SiteKind.RESID_MID in read:
        expected[SiteKind.RESID_MID] = mid
    for kind, value in expected.items():
        _compare(read[kind], value, f"the tensor read at '{block.index}.{kind}' is not {kind}'s equation", allowed)


def _check_writes(
    model: nn.Module,
    site_map: SiteMap,
    kind: SiteKind,
    run: Callable[[], Tensor],
    clean: dict[tuple[int, SiteKind], Tensor],
    generator: torch.Generator,
    allowed: Tolerance,
) -> None:
    """Edit one kind at all layers in one pass and recompute every block's output from what entered it."""
    sites = site_map.sites((kind,))
    deltas = {site: _random_edit(clean[site.layer, kind], generator) for site in sites}
    with recorded_calls(site_map.blocks) as calls, edited(model, site_map, deltas):
        read = _run_and_read(run, site_map)  # entered inside the edits, so it sees edited values
    for site in sites:
        block = site_map.blocks[site.layer]
        entered = read[site.layer, SiteKind.RESID_PRE].to(device_of(block.module))
        delta = deltas[site](entered).to(entered.device)
        called = calls[block.index]
        expected = _block_output(block, kind, entered, delta, called)
        unedited = _block_output(block, None, entered, delta, called)
        after = read[site.layer, SiteKind.RESID_POST]
        _compare(after, expected, f"an edit of '{site}' does not move the block as its equation says", allowed)
        if kind.facts.place is not Place.ENTERS and torch.equal(after, unedited):
            raise UnsupportedModelError(
                f"self-check: an edit of '{site}' does not reach the block's output, or is too small beside the stream "
                f"in {after.dtype}. Load the model with [[dtype='float32']], or correct the BlockDescription."
            )


def _block_output(
    block: Block,
    kind: SiteKind | None,
    h: Tensor,
    delta: Tensor,
    calls: Calls,
) -> Tensor:
    """Evaluate the layout's equation with ``delta`` added at ``kind`` (nowhere when ``None``)."""

    def plus(value: Tensor, at: SiteKind) -> Tensor:
        return value + delta if at is kind else value

    # Attention, and an MLP that is one map, run as recorded, with the input recomputed from the stream.
    normed = h if block.attn_norm is None else block.attn_norm(h)
    heads = calls.again(block, Branch.ATTENTION, normed)
    if block.whole(Branch.ATTENTION) is None:
        attn_out = block.attn_output(plus(heads, SiteKind.ATTN_HEADS))
    else:
        attn_out = block.added(Branch.ATTENTION, heads)
    mid = plus(block.stream_mid(h, plus(attn_out, SiteKind.ATTN_OUT)), SiteKind.RESID_MID)
    mlp_in = plus(block.mlp_input(h, mid), SiteKind.MLP_IN)
    if block.whole(Branch.MLP) is None:
        mlp_out = block.mlp_output(plus(block.hidden(mlp_in), SiteKind.MLP_HIDDEN))
    else:
        mlp_out = block.added(Branch.MLP, calls.again(block, Branch.MLP, mlp_in))
    mlp_out = plus(mlp_out, SiteKind.MLP_OUT)
    return plus(end_of(block, calls.block, h, mid + mlp_out), SiteKind.RESID_POST)


@dataclass(frozen=True)
class Tolerance:
    """How far two computations of one equation may be apart, relative to the root mean square of the larger.

    Attributes:
        most: Any number of them: sums in another order differ by a few hundred units of rounding at most.
        typical: Their root mean square. In 16 bits the first is no bound (200 units of bfloat16 are 1.6), this one is.
    """

    most: float
    typical: float

    @classmethod
    def of(cls, model: nn.Module, site_map: SiteMap) -> Tolerance:
        """Return what a model's data type allows, and quantised maps that round what they read.

        Args:
            model: The model.
            site_map: Its sites.

        Returns:
            The tolerance.
        """
        eps, rounding = torch.finfo(compute_dtype(model)).eps, rounding_of(site_map.linear_maps().values())
        typical = min(200 * eps, max(8 * eps, 1e-4))
        return cls(max(200 * eps, 20 * rounding), max(typical, 4 * rounding))

    def holds(self, most: float, typical: float) -> bool:
        """Say whether errors are within it; not a number is not.

        Args:
            most: The largest, relative.
            typical: Their root mean square, relative.

        Returns:
            Whether both are.
        """
        return most <= self.most and typical <= self.typical


def _errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference of two tensors and its root mean square, relative to the larger tensor's."""
    expected = expected.to(found.device)
    scale = torch.maximum(found.float().pow(2).mean().sqrt(), expected.float().pow(2).mean().sqrt()).clamp_min(1e-30)
    error = (found - expected.reshape(found.shape)).float() / scale
    return float(error.abs().max()), float(error.pow(2).mean().sqrt())


def _compare(found: Tensor, expected: Tensor, complaint: str, allowed: Tolerance) -> None:
    """Raise unless two tensors agree to rounding."""
    if found.numel() != expected.numel():
        raise UnsupportedModelError(
            f"self-check: {complaint} (it has {tuple(found.shape)}, the equation {tuple(expected.shape)}). "
            "The block is not built as its description says; correct the BlockDescription."
        )
    most, typical = _errors(found, expected)
    if not allowed.holds(most, typical):
        raise UnsupportedModelError(
            f"self-check: {complaint} (relative difference {most:.1e}, {typical:.1e} in the root mean square; allowed "
            f"{allowed.most:.1e} and {allowed.typical:.1e}). The block is not built as its description says; correct "
            "the BlockDescription."
        )
