"""YAML and JSON that a person or a program has written: read whole, within bounds, or not at all."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

Place = tuple[Any, ...]
# In a short text aliases may stand for so many values; a thousand can for more than any memory holds.
_MOST_ALIASED = 100_000


class Unreadable(Exception):
    """Why a text is no document, and in which line; None where there is none to name."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass
class Document:
    """The values of a text. lines: that of each value by its path of keys and indexes; twice: the keys that
    stand twice in one mapping, of which one is lost, with the line of the second."""

    values: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    twice: dict[Place, int] = field(default_factory=dict)


def read_text(path: str, most: int) -> str:
    """The text of the file at path. Raises Unreadable, also for more than most characters; OSError."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(most + 1)
    except UnicodeError:
        raise Unreadable("it is not UTF-8") from None
    if len(text) > most:
        raise Unreadable(f"it is longer than {most} characters")
    return text


def parse_yaml(text: str, most: int) -> Document:
    """What a text of YAML holds. most: values in it; with what its aliases stand for at most twice as many.

    Raises Unreadable, also for what no sentence can show: huge numbers, halves of characters.
    """
    # 20 ms that only a file needs.
    import yaml

    class Loader(yaml.SafeLoader):
        nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.nodes > most:
                raise Unreadable("it has too many values")
            return super().compose_node(parent, index)

    document = Document()
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            if _note(document, node, (), max(_MOST_ALIASED, 2 * loader.nodes)) < 0:
                raise Unreadable("it has too many values")
            document.values = loader.construct_document(node)
            json.dumps(document.values, ensure_ascii=False, default=str, skipkeys=True).encode()
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 (PyYAML's constructors raise what comes, as for !!int "")
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or "it cannot be parsed")
        raise Unreadable(problem, mark.line + 1 if mark else 1) from None
    finally:
        if loader is not None:
            loader.dispose()
    return document


def _note(document: Document, node: yaml.Node, place: Place, left: int) -> int:
    """Note lines and repeated keys of a node and all in it; how many values may still follow."""
    left -= 1
    if left < 0:
        return left
    document.lines.setdefault(place, node.start_mark.line + 1)
    kind = getattr(node, "id", "")
    if kind == "sequence":
        for index, item in enumerate(node.value):
            left = _note(document, item, (*place, index), left)
            if left < 0:
                break
    elif kind == "mapping":
        for key, value in node.value:
            name = key.value if isinstance(key.value, Hashable) else None
            inner, line = (*place, name), key.start_mark.line + 1
            if inner in document.lines and key.tag != "tag:yaml.org,2002:merge":
                document.twice.setdefault(inner, line)
            document.lines[inner] = line
            left = _note(document, value, inner, left)
            if left < 0:
                break
    return left
