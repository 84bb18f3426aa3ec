# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom's engine: plans and executes; standard library only, Python 3.9 and later."""

from __future__ import annotations

__version__ = "0.1.0"

# Of the zip that this was imported from, if it was.
_archive = getattr(getattr(__spec__, "loader", None), "archive", "")
if _archive:
    from .zipped import compile_once

    compile_once(_archive)
