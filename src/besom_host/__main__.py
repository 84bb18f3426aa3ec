"""python -m besom_host."""

import sys

from .start import main

sys.exit(main())
