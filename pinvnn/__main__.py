"""``python -m pinvnn`` is the command ``pinvnn``."""

import sys

from ._command import main

sys.exit(main())
