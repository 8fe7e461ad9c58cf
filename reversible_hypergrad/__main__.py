"""``python -m reversible_hypergrad``."""

import sys

from reversible_hypergrad.cli import main

sys.exit(main())
