"""python -m besom_host."""

import sys

from .cli import main

sys.exit(main())
