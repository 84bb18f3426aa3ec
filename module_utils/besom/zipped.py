# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Importing from the zip that a task or the zipapp arrives as, with each module compiled once.

Python's own importer compiles a module to tell the name of its file, and once more to run it
(python/cpython#141276). Nothing that arrives is compiled yet, so that was a third of a task.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from zipimport import zipimporter


class _Importer(zipimporter):
    """Tells the name of a file without a look into it."""

    def get_filename(self, fullname: str) -> str:
        """Where the source of a module is. Raises ZipImportError, as is_package does, where there is none."""
        name = fullname.rpartition(".")[2]
        name += "/__init__.py" if self.is_package(fullname) else ".py"
        return os.path.join(self.archive, self.prefix, name)


def compile_once(archive: str) -> None:
    """Import what is imported from this zip from now on so; of what else is on sys.path nothing changes."""

    def is_inside(path: Any) -> bool:
        return isinstance(path, str) and (path + "/").startswith(archive + "/")

    def importer(path: Any) -> _Importer:
        if not is_inside(path):
            raise ImportError(f"{path} is not in {archive}")
        return _Importer(path)

    sys.path_hooks.insert(0, importer)
    for path in list(filter(is_inside, sys.path_importer_cache)):
        del sys.path_importer_cache[path]
