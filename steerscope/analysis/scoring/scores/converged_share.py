"""The learnable share of what fine-tuning has learned when it ends, instead of its first step."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate, r_squared
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score
from steerscope.analysis.scoring.spectrum import Spectrum, chosen_ridge, predicted, spectra_of


@register_score(
    label="converged share",
    meaning="the share of fine-tuning's converged update in the linearised model that the edit learns from one half of "
    "the prompts, measured on the other half, without the shift that all prompts have in common",
    unit=Unit.SHARE,
    needs=Needs.SPECTRUM,
    cost="two eigendecompositions of half the rows",
)
def converged_share(candidate: Candidate) -> Tensor:
    """The learnable share of `u = K_FT (K_FT + l)^-1 r`, the site's ridge chosen by leaving one prompt out.

    One gradient step, ``K_FT r``, weighs a mode of the kernel by its eigenvalue and is nearly one mode; at convergence
    modes weigh what they have been learned to. ``l`` is where fine-tuning's own linearised held-out loss is lowest; no
    site is looked at. ``l`` and the ridge are those of all prompts in every jackknife column. The left-out prompt still
    takes part in the mean per probe that is removed, and in ``u``.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    return share_of_converged(candidate, candidate.unit_kernel, candidate.spectra)


def share_of_converged(candidate: Candidate, kernel: Tensor, spectra: tuple[Spectrum, ...] | None = None) -> Tensor:
    """Return the share of the converged update that a kernel ``row row`` of unit scale learns, ``column``.

    Args:
        candidate: The edit; only its problem and the converged update are used.
        kernel: Kernel of unit mean diagonal ``(row row)``.
        spectra: The kernel's spectrum on the training rows of both directions, where it is known.

    Returns:
        The whole sample, then one entry per left-out group ``(column)``.
    """
    assert candidate.converged is not None, "a ranking with scores of this kind solves fine-tuning first"
    problem, updates = candidate.problem, candidate.converged.updates
    spectra = spectra or spectra_of(kernel, problem)
    ridge = chosen_ridge(spectra, problem, candidate.rows, [train[:, 0] for train, _ in updates])
    parts = []
    for spectrum, way, (train, test) in zip(spectra, problem.directions, updates, strict=True):
        parts.append((predicted(kernel, way, spectrum.fit(ridge), train), test, way.test_in))
    return r_squared(parts)
