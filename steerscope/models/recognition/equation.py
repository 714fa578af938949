"""Read the equation of one block off a traced pass: its writers, its norms, its multipliers and the maps inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.description import BlockDescription
from steerscope.models.packed import has_maps, weights_besides
from steerscope.models.recognition.maps import linear_calls, mlp_inside
from steerscope.models.recognition.sums import Sum, is_norm, one_branch, sum_of
from steerscope.models.recognition.trace import Trace, Traced, is_result, is_same, mixes_tokens, numbers_of


class BlockReader:
    """One block of a traced pass. ``description()`` says what it computes, or raises with the part that failed."""

    def __init__(self, module: nn.Module, index: int, trace: Trace, shape: torch.Size) -> None:
        """Take one block's part of a trace.

        Args:
            module: The block.
            index: Its number, from 0.
            trace: A pass through the whole stack.
            shape: ``(batch, token)`` of the pass.
        """
        self.module, self.index, self.shape = module, index, shape
        (self.root,) = trace.of(module)
        self.inside = [one for one in trace.calls if one.is_inside(self.root)]
        self.direct = [one for one in self.inside if not any(one.is_inside(other) for other in self.inside)]
        self.paths = {id(part): path for path, part in module.named_modules()}
        assert self.root.given is not None
        assert self.root.gave is not None
        self.h, self.out = self.root.given, self.root.gave
        # Two sums of the same numbers in another order; a multiplier of 1 is told from 1.001 in float32.
        self.tolerance = max(1e-4, 8 * torch.finfo(self.h.dtype).eps)

    def description(self) -> BlockDescription:
        """Return what the block computes.

        Raises:
            UnsupportedModelError: No equation that steerscope knows holds; the message says which part failed.
        """
        attn = self._attention()
        found = sum_of(self, attn)
        wrote, added, scales = found.wrote, found.added, found.scales
        unit, mlp_post = self._unit_of(added)
        attn_post = wrote if not wrote.is_inside(attn) and wrote is not attn else None
        attn_norm = self._norm_before(attn, "attention")
        written = attn if attn_post is not None else wrote
        mlp = mlp_inside(self, unit, unit if mlp_post is not None else added, attn)
        entry = mlp.entry
        if mlp.write is None and entry is not unit:
            raise self.refuse("its MLP is no module, and what its last map reads is not phi(gate) * up or phi(first)")
        parallel, mlp_norm = self._stream_before(entry, found)
        maps = linear_calls(self, [attn, *self.within(attn)])
        writing = next((one for one in maps if is_result(one, written)), None)
        reads = tuple(self.path(one) for one in maps if one is not writing and is_same(one.given, attn.given))
        kept = {self.path(writing)} if writing is not None else set()
        attn_inner = tuple(path for path in map(self.path, maps) if path not in {*reads, *kept})
        end_inner = self._maps_of_end(unit) if found.own_end else ()
        described = [
            *end_inner,
            *reads,
            *kept,
            *attn_inner,
            *mlp.reads,
            *mlp.inner,
            *((mlp.write,) if mlp.write else ()),
        ]
        return BlockDescription(
            layout=_layout(attn_norm, mlp_norm, attn_post, mlp_post, parallel, found, writing is None, mlp.kind),
            attn=self.path(attn),
            attn_reads=reads,
            attn_write=None if writing is None else self.path(writing),
            attn_map=self.path(written) if writing is None else None,
            attn_inner=attn_inner,
            mlp_in=self.path(entry),
            mlp_reads=mlp.reads,
            mlp_write=mlp.write,
            mlp_map=self.path(unit if mlp_post is not None else added) if mlp.write is None else None,
            mlp_inner=mlp.inner,
            activation=mlp.activation,
            gated=mlp.gated,
            attn_norm=None if attn_norm is None else self.path(attn_norm),
            mlp_norm=None if mlp_norm is None else self.path(mlp_norm),
            attn_post_norm=None if attn_post is None else self.path(attn_post),
            mlp_post_norm=None if mlp_post is None else self.path(mlp_post),
            attn_scale=self._named(scales[0]),
            mlp_scale=self._named(scales[1]),
            parallel=parallel,
            mid_norm=None if found.mid_norm is None else self.path(found.mid_norm),
            end_norm=None if found.end_norm is None else self.path(found.end_norm),
            own_end=found.own_end,
            end_inner=end_inner,
            left_out=weights_besides(self.module, map(self.module.get_submodule, described)),
            copied=any(_was_changed(one) for one in (wrote, added)),
        )

    def path(self, one: Traced) -> str:
        """Return where a call's module is, from the block."""
        return self.paths[id(one.module)]

    def within(self, one: Traced) -> list[Traced]:
        """Return the calls that a call made."""
        return [other for other in self.inside if other.is_inside(one)]

    def refuse(self, what: str) -> UnsupportedModelError:
        """Return the error that says which part of a block's equation failed.

        Args:
            what: Which part, as a clause.

        Returns:
            The error, not raised.
        """
        return UnsupportedModelError(
            f"block {self.index} ({type(self.module).__name__}) is none that steerscope knows: {what}. Expected "
            "out = h + a A(n1 h) + b M(n2 m), with h or the stream after attention as m, norms n where there are any "
            "(on what is written, too), numbers a and b, and perhaps norms of the sums themselves. Use another model, "
            "or pass a BlockDescription."
        )

    # --- the parts ---

    def _attention(self) -> Traced:
        """Return the one part of the block that mixes tokens."""
        mixers = [one for one in self.direct if mixes_tokens(one, self.shape, self.tolerance)]
        if len(mixers) == 1:
            return mixers[0]
        names = ", ".join(self.path(one) for one in mixers)
        raise self.refuse(
            f"{len(mixers)} of its parts mix tokens ({names}), where one attention is expected"
            if mixers
            else "none of its parts mixes tokens, where one attention is expected"
        )

    def require_two_branches(self) -> None:
        """Refuse a block that has one part with weights; takes no numbers.

        Raises:
            UnsupportedModelError: It has.
        """
        parts = [one for one in self.direct if has_maps(one.module)]
        if len(parts) == 1:
            raise self.refuse(one_branch(self.path(parts[0])))

    def _named(self, number: float) -> float | str:
        """Return a multiplier, as the name of the block's attribute that holds it where there is one."""
        if number == 1.0:
            return 1.0
        near = [name for name, value in numbers_of(self.module).items() if abs(value / number - 1) <= self.tolerance]
        if near:
            return near[0]
        if torch.finfo(self.h.dtype).eps > 1e-6:
            raise self.refuse(
                f"a branch is multiplied by about {number:.3g} in a data type too coarse to tell exactly; load the "
                "model with [[dtype='float32']]"
            )
        return float(f"{number:.6g}")

    def _source(self, value: Tensor | None, before: Traced) -> Traced | None:
        """Return the part whose output a tensor is, looking through what only hands it on (dropout)."""
        for one in self.inside:  # what calls another part comes before it
            if one.ended < before.began and is_same(one.gave, value) and not is_same(one.given, value):
                return one
        return None

    def _norm_before(self, one: Traced, what: str) -> Traced | None:
        """Return the norm between the stream that enters and what a part reads, or ``None`` where it reads that."""
        if is_same(one.given, self.h):
            return None
        norm = self._source(one.given, one)
        if norm is not None and is_same(norm.given, self.h) and is_norm(norm.module):
            return norm
        raise self.refuse(f"what its {what} ({self.path(one)!r}) reads is neither h nor a norm of h")

    def _unit_of(self, added: Traced) -> tuple[Traced, Traced | None]:
        """Return the MLP, and the norm on what it writes."""
        if added in self.direct and is_norm(added.module):
            unit = self._source(added.given, added)
            if unit is None:
                raise self.refuse(f"what the norm {self.path(added)!r} reads is no part's output")
            return unit, added
        return next(one for one in self.direct if one is added or added.is_inside(one)), None

    def _stream_before(self, entry: Traced, found: Sum) -> tuple[bool, Traced | None]:
        """Return whether the MLP reads the stream that attention reads, and through which norm."""
        candidates: list[tuple[Tensor | None, Traced | None]] = [(entry.given, None)]
        norm = self._source(entry.given, entry)
        if norm is not None and norm is not found.mid_norm and is_norm(norm.module):
            candidates.append((norm.given, norm))
        mid = found.mid.reshape(self.h.shape)
        for stream, norm in candidates:
            if stream is None or stream.numel() != self.h.numel():
                continue
            if is_same(stream, self.h):
                if found.changes_the_stream:
                    raise self.refuse("its attention and MLP read one stream, and it changes their sum")
                return True, norm
            left = (stream.double().reshape(self.h.shape) - mid).norm() / mid.norm()
            if float(left) <= self.tolerance:
                return False, norm
        raise self.refuse(
            f"what its MLP ({self.path(entry)!r}) reads is neither the stream before attention nor that after it, "
            "nor a norm of one of them"
        )

    def _maps_of_end(self, unit: Traced) -> tuple[str, ...]:
        """Return the linear maps that run after the MLP."""
        behind = [one for one in self.inside if one.began > unit.ended]
        return tuple(map(self.path, linear_calls(self, behind)))


def _was_changed(one: Traced) -> bool:
    """Whether the block changed in place what a part gave it."""
    return one.gave is not None and one.value is not None and not torch.equal(one.gave, one.value)


def _layout(
    attn_norm: Traced | None,
    mlp_norm: Traced | None,
    attn_post: Traced | None,
    mlp_post: Traced | None,
    parallel: bool,
    found: Sum,
    attention_is_one_map: bool,
    mlp: str,
) -> str:
    """Return a layout's name for people, the same for every block of the same shape."""
    reads, writes = (attn_norm is not None, mlp_norm is not None), (attn_post is not None, mlp_post is not None)
    if found.mid_norm is not None or found.end_norm is not None:
        shape = "sequential post-norm" + (", norms on reads" if any(reads) else "")
        shape += ", norms on writes" if any(writes) else ""
    elif parallel:
        shared = attn_norm is not None and mlp_norm is not None and attn_norm.module is mlp_norm.module
        shape = "parallel, one shared norm" if shared else "parallel, two norms" if all(reads) else "parallel"
    elif any(writes):
        shape = "sequential, norms on " + ("reads and writes" if any(reads) else "writes only")
    else:
        shape = "sequential pre-norm" if all(reads) else "sequential"
    words = [shape, mlp]
    if attention_is_one_map:
        words.append("attention as one map")
    if found.scales != (1.0, 1.0):
        words.append("branches multiplied by numbers")
    if found.own_end:
        words.append("an end of its own")
    return ", ".join(words)
