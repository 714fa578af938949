"""``python -m steerscope``: the command line."""

from steerscope.cli import main

raise SystemExit(main())
