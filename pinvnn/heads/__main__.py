"""``python -m pinvnn.heads`` is the command ``pinvnn``."""

import sys

from ._cli import main

sys.exit(main())
