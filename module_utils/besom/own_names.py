# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names of what besom itself puts into a store, for rooms that only have to know it when they see it."""

from __future__ import annotations

import re

# Temps of files and of trees; the sixteen digits tell them from another tool's.
ORPHAN = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.DOTALL)
TREE = re.compile(r"\.temp-.+-[0-9a-f]{16}", re.DOTALL)
# Owner files, claims, and those being written: never an entry of any layout, never counted, nor removed.
OWNED = re.compile(r"\.besom-owner(\.[0-9a-f]{16}(\.new)?)?")
