"""``python -m powerclip`` is the command ``powerclip``."""

import sys

from powerclip.cli import main

sys.exit(main())
