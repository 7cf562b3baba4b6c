"""``python -m training`` is ``mdrn-train``."""

import sys

from .command import main

sys.exit(main())
