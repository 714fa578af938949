r"""P18 to P20: can a post-block edit imitate a post-MLP one? Projection, its limit, and the Gaussian relaxation.

A post-MLP linear edit is ``A y``, a post-block one ``B h`` with ``h = I' + y``. If span(I') and span(y) meet only
in zero, the oblique projection ``P`` onto span(y) along span(I') gives ``A P h = A y`` exactly (P18). If a vector
``v`` lies in both spans, ``h = v`` may mean ``(I', y) = (v, 0)`` or ``(0, v)``, so any B errs by at least
``|A v| / 2`` on one of them (P19). For uncorrelated Gaussians ``I' ~ N(0, S)``, ``y ~ N(0, Y)`` the best B is
``A P*`` with ``P* = Y (S + Y)^{-1}`` and leaves

.. math:: E|A y - A P^* h|^2 = \mathrm{tr}(A\,(S{:}Y)\,A^\top), \qquad S{:}Y = S (S + Y)^{-1} Y

the parallel sum, which is below S and below Y (P20). If they are correlated, the conditional covariance of y given
h takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import orthonormal_rows, relative_error, run, skip_and_mlp
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

# Rounding times the inverse sine of the smallest angle between the spans (up to 1e3 in real models; near 1
# for well separated ones, which give 2e-13).
PROJECTED = 1e-10
# The bound of P19 is exact; this allows for rounding.
HALF = 0.5 - 1e-9
# Least-squares residual (relative power) above which "no linear map does it".
LEFT_OVER = 1e-3
# Monte Carlo with n = 4e5 draws: relative standard error about 0.2%, a fifth of the tolerance.
DRAWS = 400_000
MONTE_CARLO = 0.01
# Eigenvalues of a difference of covariances, relative to the largest eigenvalue, up to rounding.
PSD = -1e-12
# Directions of the stream that P20 looks at: few enough for covariances of full rank from a few tokens.
DIRECTIONS = 4


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


def parallel_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return ``S:Y = S (S + Y)^{-1} Y`` of two covariances (d, d).

    Args:
        left: S, ``(d, d)``.
        right: Y, ``(d, d)``.

    Returns:
        ``(d, d)``, made symmetric.
    """
    both = left @ torch.linalg.solve(left + right, right)
    return (both + both.T) / 2


def best_projection(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return ``P* = Y (S + Y)^{-1}`` for uncorrelated covariances S, Y (d, d).

    Args:
        skip: S, the covariance of what the skip carries, ``(d, d)``.
        mlp: Y, the covariance of what the MLP writes, ``(d, d)``.

    Returns:
        ``(d, d)``: the linear map that predicts y from ``I' + y`` with the least squared error.
    """
    return torch.linalg.solve(skip + mlp, mlp).T


def conditional_covariance(skip: Tensor, mlp: Tensor, cross: Tensor) -> Tensor:
    """Return the covariance of y given ``h = I' + y``; ``cross = E[I' y^T]``. A Schur complement.

    Without correlation it is :func:`parallel_sum`.

    Args:
        skip: Covariance of ``I'``, ``(d, d)``.
        mlp: Covariance of ``y``, ``(d, d)``.
        cross: ``E[I' y^T]``, ``(d, d)``.

    Returns:
        ``(d, d)``.
    """
    of_sum = skip + mlp + cross + cross.T
    y_with_sum = mlp + cross.T  # E[y h^T]
    return mlp - y_with_sum @ torch.linalg.solve(of_sum, y_with_sum.T)


# --- checks ---


def _unit_tokens(subject: Subject) -> tuple[Tensor, Tensor, int]:
    """Return a few tokens' summands, each of length 1, and how many."""
    skip, mlp = skip_and_mlp(subject)
    width = skip.shape[-1]
    count = max(2, min(skip.shape[0] * skip.shape[1], width // 3))
    flat_skip, flat_mlp = skip.reshape(-1, width)[:count], mlp.reshape(-1, width)[:count]
    return flat_skip / flat_skip.norm(dim=1, keepdim=True), flat_mlp / flat_mlp.norm(dim=1, keepdim=True), count


def check_projector(subject: Subject) -> Evidence:
    """P18: the projection onto the MLP's part makes the two edits equal; the printed one does not."""
    skip, mlp, count = _unit_tokens(subject)
    d = skip.shape[1]
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
    chosen = (torch.arange(full_mlp.shape[0] * full_mlp.shape[1]) < count).view(*full_mlp.shape[:2], 1)

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
        controls=(error("orthogonal projection onto span(y)", total @ (edit @ orthogonal @ orthogonal.T).T),),
        published=(error("A P_skip h against A y, relative", total @ (edit @ onto_skip).T),),
        notes=(
            f"{count} tokens in {d} dimensions; smallest angle between the spans has cosine {cosine:.6f}, "
            f"1 / sine {1 / max(1e-300, (1 - cosine**2)) ** 0.5:.1f}",
        ),
    )


def least_worst_error(edit: Tensor, shared: Tensor, maps: tuple[Tensor, ...]) -> float:
    """Return the least, over the maps B, of the larger error on ``(v, 0)`` and ``(0, v)``, over ``|A v|``.

    For one vector ``v`` (d,) in both spans: ``B v`` has to be 0 and ``A v``.

    Args:
        edit: A, ``(d, d)``.
        shared: v, ``(d,)``.
        maps: Candidates for B, ``(d, d)`` each.

    Returns:
        A number without unit, 1/2 at best (P19).
    """
    wanted = edit @ shared
    worst = [torch.maximum((b @ shared).norm(), (b @ shared - wanted).norm()) for b in maps]
    return float(torch.stack(worst).min() / wanted.norm())


def check_converse(subject: Subject) -> Evidence:
    """P19: where the spans meet, no linear post-block edit imitates a post-MLP one."""
    skip, mlp, count = _unit_tokens(subject)
    d = skip.shape[1]
    edit = subject.draw(d, d, salt=430) / d**0.5
    meeting = torch.cat((skip[:1], mlp[1:]))  # span(y) now holds the first token's I'
    weights_skip, weights_mlp = subject.draw(4 * count, count, salt=431), subject.draw(4 * count, count, salt=432)

    def residual(own: Tensor) -> tuple[float, Tensor]:
        part = weights_mlp @ own
        h, target = weights_skip @ skip + part, part @ edit.T
        best = (torch.linalg.pinv(h, rtol=1e-12) @ target).T
        return float((h @ best.T - target).square().sum() / target.square().sum()), best

    left, best = residual(meeting)
    apart, _ = residual(mlp)
    maps = (best, edit, torch.zeros_like(edit), edit / 2, edit @ mlp_projector(skip, mlp))
    separate = edit @ mlp_projector(skip, mlp)
    # Control: v in span(y) alone; the projection is right about (v, 0) never being asked, and exact on (0, v).
    only_mlp = float((separate @ mlp[0] - edit @ mlp[0]).norm() / (edit @ mlp[0]).norm())
    return Evidence(
        claim=(
            Measurement("least worst error over |A v|, five maps B", least_worst_error(edit, skip[0], maps), low=HALF),
            Measurement("least-squares residual, spans meet, relative power", left, low=LEFT_OVER),
        ),
        controls=(
            Measurement("least-squares residual, spans apart, relative power", apart, low=LEFT_OVER),
            Measurement("error of A P_mlp on v in span(y) alone, over |A v|", only_mlp, low=HALF),
        ),
        notes=("the bound 1/2 is attained by B = A / 2",),
    )


def check_gaussian(subject: Subject) -> Evidence:
    """P20: error of the best linear imitation, by formula and by Monte Carlo."""
    skip, mlp = _unit_tokens_all(subject)
    directions = orthonormal_rows(subject, min(DIRECTIONS, skip.shape[0] - 1), skip.shape[1], salt=440)
    s, y = _covariance(skip @ directions.T), _covariance(mlp @ directions.T)
    k = len(directions)
    edit = subject.draw(k, k, salt=441)
    expected = float(torch.trace(edit @ parallel_sum(s, y) @ edit.T))
    converse = float(torch.trace(edit @ s @ edit.T))
    # Every error below is linear in the drawn (I', y), so the sample enters by its second moments alone.
    roots = torch.block_diag(torch.linalg.cholesky(s), torch.linalg.cholesky(y))
    noise = torch.randn(2 * k, DRAWS, generator=subject.generator(442)).double()
    moments = roots @ (noise @ noise.T / DRAWS) @ roots.T
    identity, nothing = torch.eye(k, dtype=y.dtype), torch.zeros(k, k, dtype=y.dtype)
    of_skip, of_mlp = torch.cat((identity, nothing), 1), torch.cat((nothing, identity), 1)  # (k, 2k): what reads what
    h = of_skip + of_mlp

    def power(error: Tensor) -> float:
        return float(torch.trace(edit @ error @ moments @ error.T @ edit.T))

    def fitted(read: Tensor, wanted: Tensor) -> Tensor:
        """Return the error of the least-squares map from ``read`` to ``wanted``, both maps of (I', y)."""
        return wanted - wanted @ moments @ read.T @ torch.linalg.inv(read @ moments @ read.T) @ read

    def ratio(name: str, measured: float, formula: float) -> Measurement:
        return Measurement(name, measured / formula, 1 - MONTE_CARLO, 1 + MONTE_CARLO)

    # Correlated: I' is given half of y.
    correlated = h + 0.5 * of_mlp
    s_correlated, cross = s + 0.25 * y, 0.5 * y
    left_correlated = power(fitted(correlated, of_mlp))
    schur = float(torch.trace(edit @ conditional_covariance(s_correlated, y, cross) @ edit.T))
    ignoring = float(torch.trace(edit @ parallel_sum(s_correlated, y) @ edit.T))
    between = parallel_sum(s, y)

    def least(difference: Tensor, whole: Tensor) -> float:
        return float(torch.linalg.eigvalsh(difference)[0] / torch.linalg.eigvalsh(whole)[-1])

    return Evidence(
        claim=(
            ratio("fitted map's error over tr(A (S:Y) A^T)", power(fitted(h, of_mlp)), expected),
            ratio("error of P* over tr(A (S:Y) A^T)", power(of_mlp - best_projection(s, y) @ h), expected),
            ratio("converse's error over tr(A S A^T)", power(fitted(of_mlp, h)), converse),
            ratio("correlated: fitted error over the Schur complement", left_correlated, schur),
            Measurement("least eigenvalue of S - S:Y, relative", least(s - between, s), low=PSD),
            Measurement("least eigenvalue of Y - S:Y, relative", least(y - between, y), low=PSD),
            Measurement("post-block imitating post-MLP over the converse", expected / converse, high=1.0),
        ),
        controls=(
            ratio("correlated: fitted error over tr(A (S:Y) A^T)", left_correlated, ignoring),
            ratio("error with S and Y exchanged in P*", power(of_mlp - best_projection(y, s) @ h), expected),
        ),
        notes=(f"covariances of the block's two summands in {k} random directions, {DRAWS} draws",),
    )


def _unit_tokens_all(subject: Subject) -> tuple[Tensor, Tensor]:
    skip, mlp = (value.reshape(-1, value.shape[-1]) for value in skip_and_mlp(subject))
    skip, mlp = skip / skip.norm(dim=1, keepdim=True), 0.5 * mlp / mlp.norm(dim=1, keepdim=True)
    return skip, mlp


def _covariance(tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / len(tokens)
    # A tenth of the mean variance in every direction: few tokens can leave one nearly empty.
    return covariance + 0.1 * torch.trace(covariance) / len(covariance) * torch.eye(len(covariance), dtype=tokens.dtype)


_GROUP = "post-block against post-MLP"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        18,
        _GROUP,
        "projection",
        "If span(I') and span(y) meet only in zero, A P_mlp h = A y, with P_mlp onto span(y) along span(I').",
        "few enough tokens for disjoint spans; rounding grows with 1 / sin of the smallest angle",
        Source.POST,
        check_projector,
        published="The post projects onto I' and uses A P h; that gives A I'. Right are A P_mlp or A (I - P_skip).",
    ),
    Proposition(
        19,
        _GROUP,
        "no projection where the spans meet",
        "For v in both spans every B has max(|B v|, |B v - A v|) >= |A v| / 2.",
        "A v not zero",
        Source.POST,
        check_converse,
    ),
    Proposition(
        20,
        _GROUP,
        "Gaussian relaxation",
        "The best linear post-block imitation leaves tr(A (S:Y) A^T), the converse tr(A S A^T); S:Y <= S and <= Y.",
        "I' and y Gaussian, uncorrelated; with correlation the covariance of y given h instead of S:Y",
        Source.OURS,
        check_gaussian,
    ),
)
