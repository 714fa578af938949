r"""P18, P19: can a post-block edit imitate a post-MLP one exactly? By a projection, for few tokens.

A post-MLP linear edit is ``A y``, a post-block one ``B h`` with ``h = I' + y``. If span(I') and span(y) meet only
in zero, the oblique projection ``P`` onto span(y) along span(I') gives ``A P h = A y`` exactly (P18). Two spans of n
tokens in general position meet only in zero as long as ``2 n <= d``; on a data set both are all of R^d, and P18 says
nothing.

If a vector ``v`` lies in both spans, ``h = v`` may mean ``(I', y) = (v, 0)`` or ``(0, v)``, so any B errs by at least
``|A v| / 2`` on one of them, and ``B = A / 2`` by no more. On average, where both parts come with independent
coefficients of one variance, the best B leaves half of ``|A v|^2`` and nothing else (P19). What that becomes for spans
that are everything is P20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import relative_error, run, skip_and_mlp
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

# Rounding times the inverse sine of the smallest angle between the spans (up to 1e3 in real models; near 1
# for well separated ones, which give 2e-13).
PROJECTED = 1e-11
# P19: nothing is below a half, up to rounding; minimising numerically gets this near.
HALF = 0.5 - 1e-9
REACHED = 0.5 + 1e-4
STARTS = 4
# Tokens whose I' are this near to one direction (1 - |cosine|) are one.
SAME = 1e-9
# Two routes to a least-squares residual, relative.
RESIDUAL = 1e-9


# --- formulas under test ---


def mlp_projector(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return the projection (d, d) onto the span of ``mlp`` (n, d) along that of ``skip`` (n, d).

    Zero on what is orthogonal to both spans. If the spans meet, it is no exact separation.

    Args:
        skip: Vectors that span what the skip carries, ``(n, d)``.
        mlp: Vectors that span what the MLP writes, ``(n, d)``.

    Returns:
        ``(d, d)``.
    """
    spanned = torch.cat((skip, mlp)).T  # (d, 2n): columns
    kept = torch.cat((torch.zeros_like(skip), mlp)).T
    return kept @ torch.linalg.pinv(spanned, rtol=1e-12)


def skip_projector(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return the projection onto the span of ``skip`` along that of ``mlp``: what the post prints as P.

    Args:
        skip: Vectors that span what the skip carries, ``(n, d)``.
        mlp: Vectors that span what the MLP writes, ``(n, d)``.

    Returns:
        ``(d, d)``.
    """
    return mlp_projector(mlp, skip)


# --- checks ---


def _unit_tokens(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Return a few different tokens' summands, each of length 1, and where they are among all tokens."""
    skip, mlp = (part.flatten(0, 1) for part in skip_and_mlp(subject))
    width = skip.shape[1]
    skip, mlp = skip / skip.norm(dim=1, keepdim=True), mlp / mlp.norm(dim=1, keepdim=True)
    # Sequences that begin alike have tokens in common: the same vector twice is one.
    alike = (skip @ skip.T).abs().tril(-1).amax(1) > 1 - SAME
    kept = (~alike).nonzero()[:, 0][: max(2, width // 3)]
    return skip[kept], mlp[kept], kept


def _too_many(subject: Subject, edit: Tensor) -> tuple[Measurement, ...]:
    """Return the control with so many tokens that the spans must meet; none if there are not enough."""
    skip, mlp = (part.flatten(0, -2) for part in skip_and_mlp(subject.many))
    d = skip.shape[1]
    if len(skip) < d:
        return ()
    skip, mlp = (part[:d] / part[:d].norm(dim=1, keepdim=True) for part in (skip, mlp))
    found = (skip + mlp) @ (edit @ mlp_projector(skip, mlp)).T
    return (Measurement(f"A P_mlp h with {d} tokens", relative_error(found, mlp @ edit.T), high=PROJECTED),)


def check_projector(subject: Subject) -> Evidence:
    """P18: the projection onto the MLP's part makes the two edits equal; the printed one does not."""
    skip, mlp, kept = _unit_tokens(subject)
    count, d = skip.shape
    edit = subject.draw(d, d, salt=420) / d**0.5
    expected = mlp @ edit.T
    total = skip + mlp
    onto_mlp, onto_skip = mlp_projector(skip, mlp), skip_projector(skip, mlp)
    orthogonal = torch.linalg.qr(mlp.T).Q
    cosine = float(torch.linalg.svdvals(torch.linalg.qr(skip.T).Q.T @ orthogonal)[0])

    def error(name: str, found: Tensor) -> Measurement:
        return Measurement(name, relative_error(found, expected), high=PROJECTED)

    # In the model: the same tokens with their true lengths, both edits, same block output.
    full_skip, full_mlp = skip_and_mlp(subject)
    chosen = torch.isin(torch.arange(full_mlp.shape[0] * full_mlp.shape[1]), kept).view(*full_mlp.shape[:2], 1)

    def edited_output(kind: SiteKind, matrix: Tensor) -> Tensor:
        run_edited = run(
            subject, (SiteKind.RESID_POST,), edits={kind: lambda x: torch.where(chosen, x @ matrix.T, 0.0)}
        )
        return run_edited[SiteKind.RESID_POST] - (full_skip + full_mlp)

    post_mlp = edited_output(SiteKind.MLP_OUT, edit)
    post_block = edited_output(SiteKind.RESID_POST, edit @ onto_mlp)
    # The stream may be far longer than the MLP's part; the projection then cancels digits of its length.
    length_ratio = float(full_skip.norm() / post_mlp.norm())
    return Evidence(
        claim=(
            error("A P_mlp h against A y, relative", total @ (edit @ onto_mlp).T),
            error(
                "A (I - P_skip) h against A y, relative",
                total @ (edit @ (torch.eye(d, dtype=edit.dtype) - onto_skip)).T,
            ),
            Measurement(
                "edits in the model, difference over the stream's length",
                relative_error(post_block, post_mlp) / max(1.0, length_ratio),
                high=PROJECTED,
            ),
        ),
        controls=(
            error("orthogonal projection onto span(y)", total @ (edit @ orthogonal @ orthogonal.T).T),
            *_too_many(subject, edit),
        ),
        published=(error("A P_skip h against A y, relative", total @ (edit @ onto_skip).T),),
        limit=f"for at most d/2 = {d // 2} tokens; on a data set both spans are all of R^d",
        notes=(
            f"{count} tokens in {d} dimensions; smallest angle between the spans has cosine {cosine:.6f}, "
            f"1 / sine {1 / max(1e-300, (1 - cosine**2)) ** 0.5:.1f}",
        ),
    )


def worst_error(found: Tensor, edit: Tensor, shared: Tensor) -> float:
    """Return the larger error of a map B on ``(v, 0)`` and on ``(0, v)``, over ``|A v|``: it should give 0 and ``A v``.

    Args:
        found: B, ``(d, d)``.
        edit: A, ``(d, d)``.
        shared: v, ``(d,)``.

    Returns:
        A number without unit, 1/2 at best (P19).
    """
    wanted = edit @ shared
    return float(torch.maximum((found @ shared).norm(), (found @ shared - wanted).norm()) / wanted.norm())


def minimax_map(edit: Tensor, shared: Tensor, start: Tensor) -> Tensor:
    """Return a map B with a small :func:`worst_error`, found from ``start`` by numerical minimisation.

    The larger of two convex functions has a kink where it is least; the fourth root of the sum of their fourth powers
    has none, and is least at the same place if both are as large there.

    Args:
        edit: A, ``(d, d)``.
        shared: v, ``(d,)``.
        start: Where the search begins, ``(d, d)``.

    Returns:
        ``(d, d)``.
    """
    wanted = edit @ shared
    size, found = wanted.norm(), start.clone().requires_grad_(True)
    search = torch.optim.LBFGS([found], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def both() -> Tensor:
        search.zero_grad()
        image = found @ shared / size
        value = image.square().sum().square() + (image - wanted / size).square().sum().square()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(both)
    return found.detach()


def left_of_meeting(edit: Tensor, shared: Tensor) -> float:
    """Return ``|A v|^2 / 2``: what the best B leaves where both spans hold v, coefficients of variance 1 each.

    Args:
        edit: A, ``(d, d)``.
        shared: v, ``(d,)``.

    Returns:
        Mean squared error.
    """
    return float((edit @ shared).square().sum()) / 2


def check_converse(subject: Subject) -> Evidence:
    """P19: where the spans meet, no linear post-block edit imitates a post-MLP one."""
    skip, mlp, _ = _unit_tokens(subject)
    count, d = skip.shape
    edit = subject.draw(d, d, salt=430) / d**0.5
    meeting = torch.cat((skip[:1], mlp[1:]))  # span(y) now holds the first token's I'
    reached = [
        worst_error(minimax_map(edit, skip[0], subject.draw(d, d, salt=433 + k) / d**0.5), edit, skip[0])
        for k in range(STARTS)
    ]
    # Coefficients of both parts whose second moments are exactly the identity.
    samples = torch.linalg.qr(subject.draw(4 * count, 2 * count, salt=431)).Q
    of_skip, of_mlp = samples[:, :count], samples[:, count:]

    def left(own: Tensor) -> float:
        """Return what least squares leave of ``A y``, over what P19 says they leave."""
        part = of_mlp @ own
        h, target = of_skip @ skip + part, part @ edit.T
        fitted = h @ (torch.linalg.pinv(h, rtol=1e-12) @ target)
        return float((fitted - target).square().sum()) / left_of_meeting(edit, skip[0])

    separate = edit @ mlp_projector(skip, mlp)
    # Control: v in span(y) alone; the projection is right about (v, 0) never being asked, and exact on (0, v).
    only_mlp = float((separate @ mlp[0] - edit @ mlp[0]).norm() / (edit @ mlp[0]).norm())

    def residual(name: str, value: float) -> Measurement:
        return Measurement(name, value, low=1 - RESIDUAL, high=1 + RESIDUAL)

    return Evidence(
        claim=(
            Measurement(
                f"least worst error over |A v|, B sought from {STARTS} random starts",
                min(reached),
                low=HALF,
                high=REACHED,
            ),
            Measurement("the same, the worst of the starts", max(reached), low=HALF, high=REACHED),
            residual("least-squares residual where the spans meet, over |A v|^2 / 2", left(meeting)),
        ),
        controls=(
            residual("least-squares residual where they do not, over the same", left(mlp)),
            Measurement("error of A P_mlp on v in span(y) alone, over |A v|", only_mlp, low=HALF, high=REACHED),
            Measurement("worst error of B = A, over |A v|", worst_error(edit, edit, skip[0]), low=HALF, high=REACHED),
        ),
        notes=("v is one token's I', put into span(y)",),
    )


_GROUP = "post-block against post-MLP"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        18,
        _GROUP,
        "projection, for few tokens",
        "If span(I') and span(y) meet only in zero, A P_mlp h = A y, with P_mlp onto span(y) along span(I').",
        "at most d/2 tokens, or the spans meet; rounding grows with 1 / sin of the smallest angle",
        Source.POST,
        check_projector,
        published="The post projects onto I' and uses A P h; that gives A I'. Right are A P_mlp or A (I - P_skip).",
    ),
    Proposition(
        19,
        _GROUP,
        "no projection where the spans meet",
        "For v in both spans every B has max(|B v|, |B v - A v|) >= |A v| / 2, attained; on average over both the best "
        "leaves |A v|^2 / 2.",
        "A v not zero",
        Source.POST,
        check_converse,
    ),
)
