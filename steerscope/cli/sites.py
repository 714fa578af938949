"""``steerscope sites``: which sites a model has, with their equations."""

from __future__ import annotations

from typing import Annotated

import typer

from steerscope.cli.options import DEFAULT_MODEL, Device, Dtype, ModelName, Revision, TrustRemoteCode


def sites(
    model: ModelName = DEFAULT_MODEL,
    site: Annotated[list[str] | None, typer.Argument(help="Show these sites only, for example 12.resid_post.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List a model's sites, each with the equation that defines it, after checking them on the model."""
    from steerscope.models import load_model
    from steerscope.sites import parse_site

    wanted = [parse_site(name) for name in site or []]  # a typo is refused before the model is loaded
    loaded = load_model(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
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
