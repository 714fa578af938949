"""``python -m studies.claims RUNS... PAGE``: write the page of claims from run folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.claims.kept import keep, with_kept
from studies.claims.page import write_claims
from studies.programs import exit_code_of


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the last argument is the page, those before it folders of runs or files of --keep."""
    parser = argparse.ArgumentParser(prog="python -m studies.claims", description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, folders of some, or files that --keep wrote")
    parser.add_argument("page", type=Path, help="the Markdown file to write")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="also keep what the page is made from in one file")
    options = parser.parse_args(arguments)

    def work() -> None:
        with with_kept(options.runs) as places:
            write_claims(places, options.page)
            if options.keep:
                keep(places, options.keep)

    return exit_code_of("claims", work)


if __name__ == "__main__":
    raise SystemExit(main())
