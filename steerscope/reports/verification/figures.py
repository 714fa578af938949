"""Which figures a verification's page has, in its order, with their captions; each where its measurement was made."""

from __future__ import annotations

from collections.abc import Iterator

from steerscope.experiments.verification.results import Verification
from steerscope.reports.page_folder import PageFigure
from steerscope.reports.verification.block_figures import plot_conditioning, plot_modulation, plot_stream_shares
from steerscope.reports.verification.edit_figures import plot_oracle_spectra, plot_residual_map, plot_strength
from steerscope.reports.verification.proposition_figures import plot_curves, plot_verdicts
from steerscope.reports.verification.slope_figures import plot_block_slopes, plot_radius, plot_slopes, slope_words
from steerscope.reports.vocabulary import count


def figure_entries(found: Verification) -> list[PageFigure[Verification]]:
    """Return the figures this verification has the data for, in the order of the page."""
    return list(_entries(found))


FIGURE_STEMS = (
    "verdicts",
    "curves",
    "slopes",
    "block_slopes",
    "radius",
    "conditioning",
    "stream_shares",
    "oracle_spectra",
    "residual_map",
    "modulation",
    "strength",
)


def _entries(found: Verification) -> Iterator[PageFigure[Verification]]:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in found.counts().items())
    yield PageFigure(
        "verdicts",
        "Every proposition at a glance",
        plot_verdicts,
        f"A grid of {count(len(found.propositions), 'proposition')} with a letter each: {counts}.",
        "H holds, C holds with a correction of the public statement, V says nothing on this subject, F fails. "
        "A proposition holds only if its claim is inside and every negative control outside the tolerance fixed in "
        "advance.",
    )
    if any(len(data.x) > 1 for one in found.propositions for data in one.series.values()):
        yield PageFigure(
            "curves",
            "Curves behind the verdicts",
            plot_curves,
            "Small panels with the curves that checks recorded, each named by its proposition.",
            "What checks recorded on the way; axes are logarithmic where values span a factor of ten or more.",
        )
    measured = found.measurements
    if measured.get("slopes"):
        slopes = ", ".join(f"{one['at']} {slope_words(one)}" for one in measured["slopes"])
        yield PageFigure(
            "slopes",
            "Is the map first-order through the whole model?",
            plot_slopes,
            f"Remainder against size of the update on logarithmic axes; slopes: {slopes}.",
            "What the first-order map leaves over must fall with the square of the update, as long as the update is "
            "small; the weights of all blocks change at once, along the direction of a real fine-tuning. In brackets: "
            "without the sizes at which the relative error exceeds 0.1, where third-order terms bend the line.",
        )
    if measured.get("block_slopes"):
        within = sum(one["within"] for one in measured["block_slopes"])
        yield PageFigure(
            "block_slopes",
            "Is the map first-order on every block?",
            plot_block_slopes,
            f"Slope of the remainder per block and update; {within} of {len(measured['block_slopes'])} are 2.00 +- "
            "0.05.",
            "One block at a time: its own weights updated, what enters it held fixed, sizes from 1e-2 to 1e-6 relative "
            "to its weights, in float64. Random updates have the trained one's norm in every matrix.",
        )
    if measured.get("radius"):
        yield PageFigure(
            "radius",
            "Where the first-order map ends",
            plot_radius,
            "Lines of the radius over the layers, for the trained and for random updates.",
            "The radius is the relative size of the update at which the explained part of the shift, 1 - e^2 with e "
            "the relative error (median over tokens), falls below 0.9. The direction is that of the whole update; "
            "random updates have the same norm in every matrix. Below the dashed line the fine-tuning itself is larger "
            "than the radius.",
        )
    if measured.get("conditioning"):
        yield PageFigure(
            "conditioning",
            "Reachable, but at what cost?",
            plot_conditioning,
            "Condition numbers of W_d and A(z), and norms of needed edits, over the layers on logarithmic axes.",
            "With more hidden channels than width every target is reachable per token; what remains is conditioning. "
            "Below: the edit an oracle needs, at mlp_in for the MLP's part of the update (linear), at attn_out for the "
            "whole block (Newton's method), relative to the tensor it is added to.",
        )
    if measured.get("stream_shares"):
        yield PageFigure(
            "stream_shares",
            "What a block's output is made of",
            plot_stream_shares,
            "Lines over the layers of the shares of the entering stream, the MLP and the attention.",
            "Shares are part . output / |output|^2 and sum to one for every token (medians over tokens are drawn). The "
            "published ratio compares MLP and attention only and leaves out the entering stream.",
        )
    if measured.get("oracle_spectra"):
        yield PageFigure(
            "oracle_spectra",
            "Low rank is one thing, linear another",
            plot_oracle_spectra,
            "Two panels against rank: energy in the leading directions, and held-out R squared of linear maps.",
            "Above: how concentrated the oracle shifts h_FT - h_base are. Below: how much of them the best linear map "
            "of that rank from the base stream predicts, on prompts it was not fitted on.",
        )
    if measured.get("residual_map"):
        yield PageFigure(
            "residual_map",
            "What a linear edit at each site cannot imitate",
            plot_residual_map,
            "Numbered cells, sites against weight matrices: percent of the first-order shift left over.",
            "For each weight matrix's part of the fine-tuning: percent of the block's first-order shift that the best "
            "token-shared linear edit at a site leaves over on held-out prompts. Free edits per token (oracles) leave "
            "nothing at most sites; their numbers are in verify.json.",
        )
    if measured.get("modulation"):
        yield PageFigure(
            "modulation",
            "What the gate lets through",
            plot_modulation,
            "Bands of quantiles of phi'(a_g) * a_u and of phi(a_g) over the layers.",
            "The gate's change is multiplied by the first, the up projection's by the second. Only phi(a_g) has a "
            "minimum: a histogram of magnitudes that piles up at that number is one of phi(a_g).",
        )
    if measured.get("strength"):
        yield PageFigure(
            "strength",
            "Oracle edits of one layer, by strength",
            plot_strength,
            "Delta KL over the layer steered, one line per strength, panels for attention and MLP output.",
            "KL(steered || fine-tuned) - KL(base || fine-tuned) at the answer, teacher forcing; negative is nearer to "
            "the fine-tuned model; the dashed line is the best possible. The oracle of a site is its shift under the "
            "fine-tuning, added at every position.",
        )
