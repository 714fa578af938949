r"""P45, one edit for all tokens and a map that stands before a nonlinearity, a norm or attention.

To first order an update of any map of the block that reads :math:`z_s` moves the block's output by
:math:`\delta_t = \sum_s J_{ts} \Delta W z_s`, with :math:`J_{ts}` the derivative of the output at token t by what the
map writes at token s: one matrix per token for gate, up, down (behind a norm) and the output map of attention, one per
pair of tokens for queries, keys and values.

**Statement.** For updates with independent entries of mean 0 and one variance the shifts have the token kernel

.. math:: k(t, t') = \sum_{s, s'} \langle z_s, z_{s'} \rangle \, \langle J_{ts}, J_{t's'} \rangle
    = \sum_j \sum_{s, s'} \langle z_s, z_{s'} \rangle \langle J_{ts}^T e_j, J_{t's'}^T e_j \rangle,

up to that variance, and edits :math:`A x_t` with one A for all tokens leave on average the share

.. math:: \frac{tr\,(1 - P_x)\,k}{tr\,k}, \qquad P_x = X (X^T X)^+ X^T.

**Proof.** :math:`E\,\delta_t \delta_{t'}^T = c \sum_{ss'} \langle z_s, z_{s'} \rangle J_{ts} J_{t's'}^T` by
:math:`E\,\Delta W z z'^T \Delta W^T = c \langle z, z' \rangle I`; its trace is :math:`c\,k(t, t')`. The best edit
projects every output channel's values over tokens by :math:`P_x`, so what is left is
:math:`\sum_{tt'} (1 - P_x)_{tt'} \delta_t^T \delta_{t'}`, and expectation goes through. QED. An edit with a ridge,
fitted on other texts, is another matrix over tokens in place of :math:`P_x`.

With all :math:`J_t` alike the kernel is :math:`\langle z, z' \rangle` and P43 comes back; where they differ R squared
of z says nothing, which is the control. The sum over j runs over output directions; where the block is wide, over a few
fixed random ones, for which the statement holds as well. Kernels are made of vector-Jacobian products through the
model, measured shifts of Jacobian-vector products.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.block_tokens import (
    READS,
    BlockTokens,
    data_sets,
    mean_and_error,
    over_data_sets,
    z_score,
)
from steerscope.equivalence.propositions.p43_shared_edit import GROUP, SMALL
from steerscope.equivalence.propositions.shared_edit import OTHERS, PLAIN
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.reach import held_out_kernel_share, unreachable_kernel_share, unreachable_share
from steerscope.models.blocks import Block, linear_shape

# Against the formula of P43 where the map writes at the block's output: two ways to one projection.
EXACT = 1e-6
ERRORS = 5.0
# Output directions of wide blocks; random updates of small and of wide ones.
DIRECTIONS = 4
DRAWS, FEW_DRAWS = 150, 10
# Updates whose shifts are computed side by side, on small and on wide blocks.
CHUNK, FEW = 50, 5


def output_directions(subject: Subject) -> Tensor:
    """Return the directions ``(direction, d)`` of the output that count: all of a narrow block, some random ones."""
    width = subject.site_map.d_model
    if width <= SMALL:
        return torch.eye(width, dtype=torch.float64)
    return torch.linalg.qr(subject.draw(width, DIRECTIONS, salt=4500)).Q.T


def own_token_kernel(reads: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``<z_t, z_t'> sum_j <c_tj, c_t'j>`` of a map that moves its own token alone.

    Args:
        reads: z, ``(token, in)``.
        cotangents: ``c_tj = J_t^T e_j``, ``(token, direction, out)``.

    Returns:
        ``(token, token)``. Source: P45.
    """
    flat = cotangents.flatten(1)
    return (reads @ reads.T) * (flat @ flat.T)


def across_token_features(reads: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``sum_s c_ts z_s^T`` of a map that moves later tokens, too, for one direction of the output.

    Their inner products are ``sum_ss' <z_s, z_s'> <c_ts, c_t's'>``.

    Args:
        reads: z of the sequence that each token stands in, ``(token, sequence token, in)``.
        cotangents: ``c_ts = J_ts^T e``, ``(token, sequence token, out)``.

    Returns:
        ``(token, out*in)``. Source: P45.
    """
    return (cotangents.mT @ reads).flatten(1)


def _kernels(data: BlockTokens, maps: dict[str, nn.Module], directions: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the token kernel of every map, by name."""
    block, kept = data.subject.block, data.kept
    crossing = {name: module for name, module in maps.items() if module in block.attn_reads}
    own = {name: module for name, module in maps.items() if name not in crossing}
    shape = data.stream.shape
    fields = (direction.expand(shape).contiguous() for direction in directions)
    found = [[one[kept] for one in back] for back in data.pullbacks(list(own.values()), fields)]
    for index, (name, module) in enumerate(own.items()):
        cotangents = torch.stack([back[index] for back in found], dim=1)
        yield name, own_token_kernel(data.read_by(module)[kept], cotangents)
    if crossing:
        yield from _crossing(data, crossing, directions)


def _crossing(data: BlockTokens, maps: dict[str, nn.Module], directions: Tensor) -> Iterator[tuple[str, Tensor]]:
    sequence, position = data.kept.nonzero(as_tuple=True)
    tokens = data.stream.shape[1]
    reads = {name: data.read_by(module)[sequence] for name, module in maps.items()}
    features: dict[str, list[Tensor]] = {name: [] for name in maps}
    for direction in directions:
        # A cotangent at one position of every sequence: sequences do not see each other.
        fields = []
        for place in range(tokens):
            field = torch.zeros_like(data.stream)
            field[:, place] = direction
            fields.append(field)
        by_place = list(data.pullbacks(list(maps.values()), fields))
        for index, name in enumerate(maps):
            cotangents = torch.stack([back[index] for back in by_place])[position, sequence]
            features[name].append(across_token_features(reads[name], cotangents))
    for name, found in features.items():
        joined = torch.cat(found, dim=1)
        yield name, joined @ joined.T


def _check_token_jacobians(subject: Subject) -> Evidence:
    found = tuple(data.halved() for data in data_sets(subject))
    return over_data_sets(found, partial(_on_data, subject))


def _on_data(subject: Subject, data: BlockTokens) -> Evidence:
    block, n, small = subject.block, data.fitted, subject.site_map.d_model <= SMALL
    names = [name for name in READS if data.identifies(name)]
    if not names:
        return Evidence()
    maps = block.linear_maps()
    if not small:
        # A backward pass per position and direction: too many for long texts and wide blocks.
        maps = {name: module for name, module in maps.items() if module not in block.attn_reads}
    directions = output_directions(subject)
    edits = {name: data.edit(name) for name in names}
    claim: list[Measurement] = []
    controls: list[Measurement] = []
    notes: list[str] = []
    for path, kernel in _kernels(data, maps, directions):
        module = maps[path]
        drawn = _draws(subject, data, module, directions, DRAWS if small else FEW_DRAWS)
        told: list[str] = []
        for name, edit in edits.items():
            label = f"{data.name}, {path}, reads {name}"
            expected = {
                PLAIN: unreachable_kernel_share(edit.basis, kernel[:n, :n]),
                OTHERS: held_out_kernel_share(edit.weights, kernel),
            }
            measured = {kind: _ratio(edit.errors(kind, drawn.flatten(1)), len(directions)) for kind in expected}
            for place, value in expected.items():
                ratio = measured[place]
                claim.append(
                    Measurement(
                        f"{label}, {place}: random updates minus formula, standard errors",
                        z_score(ratio, value),
                        -ERRORS,
                        ERRORS,
                    )
                )
            told.append(
                f"reads {name} {expected[PLAIN]:.4f} ({measured[PLAIN][0]:.4f} +- {measured[PLAIN][1]:.4f}) here, "
                f"{expected[OTHERS]:.4f} ({measured[OTHERS][0]:.4f} +- {measured[OTHERS][1]:.4f}) on other texts"
            )
            if name == "h'":
                wrong = unreachable_share(edit.fitted, data.read_by(module)[data.kept][:n])
                if _writes_the_output(block, module):
                    error = abs(expected[PLAIN] - wrong)
                    claim.append(Measurement(f"{label}: |kernel formula - formula of P43|", error, high=EXACT))
                elif module in block.mlp_reads or (small and module is not block.mlp_write):
                    # Behind a norm alone the matrices differ little, as they do past one whole MLP: few draws of a wide
                    # block tell neither from what the map reads.
                    controls.append(
                        Measurement(
                            f"{label}: against the R^2 of what the map reads, standard errors",
                            z_score(measured[PLAIN], wrong),
                            -ERRORS,
                            ERRORS,
                        )
                    )
        notes.append(f"{data.name}, {path}, formula ({drawn.shape[1]} random updates): " + "; ".join(told))
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


def _writes_the_output(block: Block, module: nn.Module) -> bool:
    """Whether what a map writes is added to the block's output as it is: all J_t are the identity."""
    if module is block.mlp_write:
        return block.mlp_post_norm is None
    return block.description.parallel and module is block.attn_write and block.attn_post_norm is None


def _draws(subject: Subject, data: BlockTokens, module: nn.Module, directions: Tensor, count: int) -> Tensor:
    """Return first-order shifts of random updates along the directions: ``(row, draw, direction)``."""
    out, into = linear_shape(module)
    found, step = [], CHUNK if subject.site_map.d_model <= SMALL else FEW
    for start in range(0, count, step):
        changes = torch.stack(
            [subject.draw(out, into, salt=4520 + draw) for draw in range(start, min(start + step, count))]
        )
        found.append(data.linear_shifts(module, changes) @ directions.T)
    return torch.cat(found).transpose(0, 1)


def _ratio(pair: tuple[Tensor, Tensor], directions: int) -> tuple[float, float]:
    """Return the share left and its standard error over draws; channels of one draw move together."""
    left, whole = (one.unflatten(0, (-1, directions)).sum(1) for one in pair)
    return mean_and_error(left, whole)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        45,
        GROUP,
        "what one edit leaves of an update before a nonlinearity",
        "Of random updates of any map of the block edits A x leave on average tr (1 - P_x) k / tr k with the token "
        "kernel k(t, t') = sum_ss' <z_s, z_s'> <J_ts, J_t's'>, J_ts the output's derivative at t by what the "
        "map writes at s.",
        "First order; updates with independent entries of one variance.",
        Source.OURS,
        _check_token_jacobians,
    ),
)
