"""A user's score from a Python file: a function of a site and the table, or registered scores of a ranking."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from steerscope.analysis.provenance import model_key
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.scores import Needs, all_scores, ranking_scores, unregister_score
from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.site_tables.judging import sites_of
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.experiments.tasks import at_most, get_task
from steerscope.files import read_text
from steerscope.models.load import LoadedModel, load_model
from steerscope.sites import parse_site
from steerscope.steering.config import DEFAULT_RANK

EXPECTED = "expected a function score(site, table), or one or more functions under @register_score"


@dataclass(frozen=True)
class UserScores:
    """What a file of scores has.

    Attributes:
        path: The file.
        function: Its function ``score(site, table)``, if it has one.
        registered: Names of the scores that it registered, in order.
    """

    path: Path
    function: Callable[..., Any] | None
    registered: tuple[str, ...]

    @property
    def needs_ranking(self) -> bool:
        """Whether the sites have to be ranked anew."""
        return bool(self.registered)


def scores_of_file(path: str | Path) -> UserScores:
    """Run a Python file and return the scores that it has. It is run as the user's own program.

    Returns:
        The file's function ``score`` or, where it registers scores, their names.

    Raises:
        InputError: No such file, it fails, or it has no score.
    """
    place = Path(path)
    read_text(place, "the score")  # says why it cannot be read
    spec = importlib.util.spec_from_file_location(f"steerscope_score_{place.stem}", place)
    if spec is None or spec.loader is None:
        raise InputError(f"{str(path)!r} is no Python file; {EXPECTED}.")
    module: ModuleType = importlib.util.module_from_spec(spec)
    before = {score.name for score in all_scores()}
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        for score in all_scores():
            if score.name not in before:
                unregister_score(score.name)
        raise InputError(f"{str(path)!r} cannot be run: {_said(error)}. Correct it.") from error
    registered = tuple(score.name for score in all_scores() if score.name not in before)
    function = getattr(module, "score", None)
    if not registered and not callable(function):
        raise InputError(f"{str(path)!r} has no score; {EXPECTED}.")
    known = set(ranking_scores(Needs.KERNEL, Needs.PLACE))
    if strange := [name for name in registered if name not in known]:
        raise InputError(f"{str(path)!r}: score {strange[0]!r} needs other studies; a ranking cannot compute it.")
    return UserScores(place, function if callable(function) and not registered else None, registered)


def scores_from(
    user: UserScores, table: SiteTable, loaded: LoadedModel | None = None, progress: StageProgress | None = None
) -> dict[str, dict[str, float]]:
    """Return a user's scores of a table's sites, by name and site.

    Args:
        user: What a file has; a function's score is named after the file.
        table: The table.
        loaded: The table's model, for registered scores; see :func:`model_of`.
        progress: Called as the sites are ranked.

    Returns:
        Values by name of the score and name of the site, higher for a better site.

    Raises:
        InputError: The function fails or returns no number, or the task cannot be had.

    Cost: calls of the function; for registered scores one ranking.
    """
    if user.function is not None:
        return {user.path.stem: {site: _called(user, site, table) for site in sites_of(table)}}
    assert loaded is not None, "registered scores are computed by a ranking"
    # The table's own draw, so that the score is paired with those beside it; else a ranking's usual one.
    drawn, usual = table.ranking, RankOptions()
    seed = usual.seed if drawn.seed is None else drawn.seed
    options = RankOptions(
        seed=seed,
        max_examples=drawn.examples or usual.max_examples,
        num_probes=drawn.settings.num_probes,
        num_training=drawn.settings.num_training or table.steps * table.schedule.batch_size,
        kinds=tuple(dict.fromkeys(str(parse_site(site).kind) for site in sites_of(table))),
        rank=table.edit.rank or DEFAULT_RANK,
    )
    examples = list(at_most(get_task(table.task), "train", options.max_examples, seed))
    ranking = rank_sites(loaded, examples, options, task=table.task, progress=progress)
    own = [site for site in ranking.sites if site.family == table.edit.ranked_as]
    return {name: {f"{site.layer}.{site.kind}": site.scores[name] for site in own} for name in user.registered}


def model_of(table: SiteTable, name: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load the model that a table is of, to rank its sites.

    Args:
        table: The table.
        name: What to load; without it what the table calls it.
        device: Where.

    Returns:
        The model, with the same weights as the table's.

    Raises:
        InputError: The task cannot be generated again, the model cannot be loaded, or is another one.
    """
    try:
        get_task(table.task)
    except InputError as error:
        raise InputError(
            f"a registered score needs the examples of the task {table.task!r}, which cannot be made here. Rank the "
            "model with your score (steerscope rank --json), and write score(site, table) that looks it up."
        ) from error
    loaded = load_model(name or table.model.name, device=device)
    if model_key(loaded.identity)[0] != model_key(table.model)[0]:
        raise InputError(
            f"the model {loaded.identity.name!r} has other weights than the one that the table of {table.name} was "
            "made with. Name that one ([[model]])."
        )
    return loaded


def _called(user: UserScores, site: str, table: SiteTable) -> float:
    assert user.function is not None
    try:
        value = user.function(parse_site(site), table)
    except Exception as error:
        raise InputError(f"score() of {str(user.path)!r} fails at {site}: {_said(error)}. Correct it.") from error
    return cast(float, value)  # score_array checks it with all others


def _said(error: Exception) -> str:
    """Return an error with its line in the user's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if "steerscope" not in frame.filename]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    where = "" if line is None else f", line {line}"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}{where}"
