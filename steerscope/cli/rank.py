"""``steerscope rank``: rank a model's sites and write the report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from steerscope.cli.bundles import Asked, Bundle, Loading
from steerscope.cli.options import (
    BASELINES,
    DATA,
    KINDS,
    RESULTS,
    RUNNING,
    SCORES,
    SITES,
    JsonTarget,
    Overwrite,
    Quiet,
    Sharing,
    command_line,
    names_in,
    option,
)
from steerscope.errors import InputError


@dataclass(frozen=True)
class _Ranking(Bundle):
    """By the names of ``RankOptions``."""

    max_examples: Annotated[int, option("Use at most so many training examples; at least 24.", DATA)] = 192
    score: Annotated[
        str,
        option(
            f"Score that orders the sites: {', '.join(SCORES)}; or a baseline: {', '.join(BASELINES)}.",
            SITES,
            values=(*SCORES, *BASELINES),
        ),
    ] = "learnable_share"
    extra: Annotated[
        str | None, option("Scores that cost more, by what they need: {values}.", SITES, values=("spectrum", "step"))
    ] = None
    kinds: Annotated[
        str | None, option("Kinds of site, comma-separated, of {values}; all unless given.", SITES, values=KINDS)
    ] = None
    num_probes: Annotated[
        int | None,
        option(
            "Output directions per example, one backward pass each. Unless given, as many as span the outputs: one "
            "fewer than there are choices, at most 12; 4 without choices.",
            SITES,
            "--probes",
        ),
    ] = None
    rank: Annotated[int, option("Rank of the linear edit that parameters are counted for.", SITES)] = 8
    budget: Annotated[int | None, option("Most parameters in the greedy set.", SITES)] = None
    max_sites: Annotated[int, option("Most sites in the greedy set.", SITES)] = 8
    batch_size: Annotated[
        int, option("Sequences of median length per batch; changes speed and memory only.", RUNNING)
    ] = 16
    seed: Annotated[int, option("Seed of examples, halves, probes and sketches.", RUNNING)] = 0


def rank(
    asked: Asked,
    *,
    wanted: _Ranking,
    out: Annotated[Path | None, option("Folder for ranking.json, index.html and figures.", RESULTS)] = None,
    overwrite: Overwrite = False,
    json: JsonTarget = None,
    limit: Annotated[int, option("Candidates in the printed table.", RESULTS)] = 8,
    verbose: Annotated[
        bool, option("Print kinds, greedy set and how sure each part is, too.", RESULTS, "--verbose", "-v")
    ] = False,
    loading: Loading,
    shard: Sharing = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank the steering sites of a model: what share of fine-tuning's first-order update is learnable where."""
    from steerscope.analysis.data.examples import check_examples
    from steerscope.analysis.ranking import rank_sites
    from steerscope.analysis.scoring.options import MIN_EXAMPLES, RankOptions
    from steerscope.cli.output import check_folder, check_json_target, give_json, say
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.carrying.shard import AUTO, chosen_shard
    from steerscope.experiments.groundwork.shared_ranking import SLICES, shared_ranking
    from steerscope.experiments.tasks import FileTask, at_most
    from steerscope.folders import Kind
    from steerscope.installed import require
    from steerscope.models import load_model
    from steerscope.process import keep_few_compiled_products
    from steerscope.reports.ranking.tables import print_ranking
    from steerscope.sites import parse_kind

    keep_few_compiled_products()
    # Everything that can be refused is refused here, before a model is loaded.
    kinds = None
    if wanted.kinds is not None:
        names = names_in(wanted.kinds)
        if not names:
            raise InputError(f"[[kinds]] is {wanted.kinds!r}; expected names such as resid_post,mlp_out.")
        kinds = tuple(parse_kind(name).value for name in names)
    options = RankOptions(**(wanted.as_dict() | {"extra": names_in(wanted.extra or ""), "kinds": kinds}))
    options.check()
    if limit < 0:
        raise InputError(f"[[limit]] is {limit}; expected at least 0, the number of sites to print.")
    share = chosen_shard(shard)
    if share is not None and out is None:
        if shard != AUTO:
            raise InputError("[[shard]] shares a ranking by its folder; add [[out]], a folder that all processes see.")
        share = None
    if out is not None:
        require("report", "a report ([[out]])")
        begun = share is not None and (out / SLICES).is_dir()  # by another process
        check_folder(out, Kind.RANKING, overwrite=overwrite or begun)
    check_json_target(json, "kernels")
    source = asked.chosen_task(loading)
    if isinstance(source, FileTask):
        source.require("a ranking", train=MIN_EXAMPLES)
    # Training examples: what chooses a site has not seen the test part.
    examples = at_most(source, "train", options.max_examples, options.seed)
    _, about_examples = check_examples(examples, minimum=MIN_EXAMPLES)

    with stage_progress(quiet=quiet) as show:
        show("load", 0, 1)
        loaded = load_model(asked.model, **loading.as_dict())
        show("load", 1, 1)
        told = None if quiet else say
        if share is None or out is None:
            ranking = rank_sites(loaded, examples, options, task=source.name, progress=show, say=told)
        else:
            ranking = shared_ranking(loaded, examples, options, out, share, task=source.name, progress=show, say=told)
    ranking = replace(ranking, settings=replace(ranking.settings, command=command_line()))
    if isinstance(source, FileTask):
        # Those about the file count its lines; those about the training part count the part's.
        others = (warning for warning in ranking.warnings if warning not in about_examples)
        ranking = replace(ranking, warnings=(*source.warnings, *others))

    if out is not None:
        from steerscope.reports.ranking.folder import write_report  # matplotlib is slow to load

        page = write_report(ranking, out)
    if not give_json(json, ranking.to_json(), "kernels"):
        print_ranking(ranking, limit=limit, file=sys.stdout, verbose=verbose)
    if out is not None:
        print(f"report: {page}", file=sys.stderr)
