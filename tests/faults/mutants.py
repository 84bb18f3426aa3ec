"""Faults that are planted into the engine, to see that a harness finds them: one safeguard left out each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from besom import file_removal, locks, sweep, tree
from besom_host.cli import main as besom
from besom_host.clock import Clock

# By name: the function, what stands in it, and what stands there instead.
MUTANTS: dict[str, tuple[Any, str, str]] = {
    "O_NOFOLLOW dropped": (tree.Cursor.enter, "os.O_PATH | os.O_NOFOLLOW", "os.O_PATH"),
    "mount check dropped": (tree.Cursor.enter, "mnt_id(step) != self._root.mnt_id", "False"),
    "re-check of the trash dropped": (
        tree.remove_tree,
        "found.identity == planned and not found.blocked",
        "True",
    ),
    "re-check of files dropped": (file_removal._Hand.remove, "st.st_ino != inode\n", "False and (False)\n"),
    "O_NONBLOCK dropped": (sweep._remove_file, " | os.O_NONBLOCK", ""),
    "every clock believed": (Clock._read, "if offset - self._offset > TOLERANCE_NS:", "if False:"),
    "root taken for all-powerful": (tree.sticky_forbids, "_has_fowner(os.getpid())", "True"),
    "the owner forgotten": (tree.sticky_forbids, "(directory.st_uid, st.st_uid)", "(-1, -2)"),
    "lock skipped": (locks.try_flock, "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    "proof of the lock skipped": (locks.prove_flock, "if try_flock(second):", "if False:"),
}


@contextmanager
def replacing(fault: str) -> Iterator[None]:
    """Leave a safeguard out, in this process and what it forks; whoever has imported the function as well."""
    function, old, new = MUTANTS[fault]
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has no longer exactly one {old!r}"
    made: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"<{function.__qualname__} without it>", "exec")
    exec(code, vars(sys.modules[function.__module__]), made)  # noqa: S102
    whole, function.__code__ = function.__code__, made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = whole


def main() -> int:
    """mutants.py FAULT WORD...: besom's own command without that safeguard."""
    with replacing(sys.argv[1]):
        return besom(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
