"""``python -m histomri`` is the command ``histomri``."""

from histomri.cli import main

raise SystemExit(main())
