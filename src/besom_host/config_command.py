"""besom config: is the configuration valid?"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace

from besom.errors import UsageError
from besom.housekeep import check_roots
from besom.shutdown import Shutdown
from besom.units import printable

from .config import Problem, find, read


def config_command(options: Namespace, shutdown: Shutdown) -> int:
    named = options.file if options.file is not None else options.config
    config = read(find(named, os.environ), os.environ)
    problems = list(config.problems)
    try:
        check_roots(list(config.stores.values()), config.temps)
    except UsageError as error:
        problems.append(Problem(0, str(error)))
    if options.json:
        listed = [{"line": problem.line or None, "message": problem.message} for problem in problems]
        print(
            json.dumps(
                {
                    "operation": "config check",
                    "changed": False,
                    "file": printable(config.path),
                    "problems": listed,
                }
            )
        )
    elif not problems:
        print(f"{printable(config.path) or 'No file, so nothing configured'}: valid.")
    for problem in problems:
        line = f":{problem.line}" if problem.line else ""
        where = f"{printable(config.path)}{line}: " if problem.in_file else ""
        print(f"{where}{problem.message}", file=sys.stderr)
    return 2 if problems else 0
