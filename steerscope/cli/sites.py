"""``steerscope sites``: which sites a model has, with their equations."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from steerscope.cli.bundles import Loading
from steerscope.cli.options import DEFAULT_MODEL, JsonTarget, ModelName

if TYPE_CHECKING:
    from steerscope.models.load import LoadedModel
    from steerscope.sites import Site


def sites(
    model: ModelName = DEFAULT_MODEL,
    site: Annotated[list[str] | None, typer.Argument(help="Show these sites only, for example 12.resid_post.")] = None,
    *,
    json: JsonTarget = None,
    loading: Loading,
) -> None:
    """List a model's sites, each with the equation that defines it, after checking them on the model."""
    from steerscope.cli.output import check_json_target, give_json
    from steerscope.models import load_model
    from steerscope.sites import parse_site

    check_json_target(json, "sites")
    wanted = [parse_site(name) for name in site or []]  # a typo is refused before the model is loaded
    loaded = load_model(model, **loading.as_dict())
    if json is not None:
        if not give_json(json, _record(loaded, wanted), "sites"):
            print(f"sites: {json}", file=sys.stderr)
        return
    typer.echo(f"{loaded.identity.name}: {loaded.identity.n_params:,} parameters, sha256 {loaded.identity.sha256[:12]}")
    if loaded.identity.quantised:
        typer.echo(f"weights: {loaded.identity.quantised}")
    site_map = loaded.site_map
    if not wanted:
        typer.echo(site_map.describe())
        typer.echo("self-check passed: every site reads and writes what its equation says")
        return
    equations = site_map.description.equations()
    for one in wanted:
        found = site_map.resolve(one)
        typer.echo(f"{found} = {equations[found.kind]}  ({site_map.width(found)} channels)")


def _record(loaded: LoadedModel, wanted: list[Site]) -> str:
    """Return the sites as JSON: those that are asked for, or all."""
    import json

    site_map = loaded.site_map
    equations = site_map.description.equations()
    found = [site_map.resolve(one) for one in wanted] or list(site_map.sites())
    rows = [{"site": str(one), "equation": equations[one.kind], "channels": site_map.width(one)} for one in found]
    record = {"schema_version": 1, "model": loaded.identity.as_dict(), "sites": rows}
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
