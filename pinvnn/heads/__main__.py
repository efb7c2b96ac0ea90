"""``python -m pinvnn.heads`` is the command ``pinvnn`` without those of surgery."""

import sys

from ._cli import main

sys.exit(main())
