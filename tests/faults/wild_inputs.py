# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The structured driver of wild.py: sound inputs, changed by what each grammar is made of."""

from __future__ import annotations

import json
from typing import Any, Callable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .wild import Target, swollen

# What breaks readers of anything.
_WORDS = (
    *(
        b"\0",
        b"\xff",
        b"\r\n",
        b"\n",
        b"\t",
        b" ",
        b"-1",
        b"0",
        b"1e999",
        b"9" * 30,
        b"9" * 5000,
        b"0x" + b"f" * 5000,
    ),
    *("\ufeff".encode(), "\u2028".encode(), "\ud800".encode("utf-8", "surrogatepass"), "\u212a".encode()),
    *(b"../", b"/", b"\\", b"%s", b"\x1b[31m", b"[" * 3000, b'{"a":' * 3000, b"(" * 3000),
)
_LENGTHS = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 20, 512])
_PLACES = st.floats(0, 1)


@st.composite
def _changed(draw: st.DrawFn, target: Target) -> bytes:
    """A seed in which pieces were replaced, put in, taken out, moved, cut off, or repeated to the end."""
    data = draw(st.sampled_from(target.seeds))
    pieces = st.sampled_from(target.tokens + _WORDS) | st.binary(max_size=6) | st.sampled_from(target.seeds)
    for kind in draw(st.lists(st.sampled_from("ripdmc"), max_size=5)):
        start, length = int(draw(_PLACES) * len(data)), draw(_LENGTHS)
        before, piece, after = data[:start], data[start : start + length], data[start + length :]
        if kind == "r":
            new = draw(pieces)
            data = before + new + data[start + len(new) :]
        elif kind == "i":
            data = before + draw(pieces) + piece + after
        elif kind == "p":
            data = before + draw(pieces) + after
        elif kind == "d":
            data = before + after
        elif kind == "m":
            data = after + piece + before
        else:
            data = before
    if draw(st.integers(0, 9)) == 0:
        data = swollen(data, int(draw(_PLACES) * len(data)), draw(_LENGTHS), target.most)
    return target.mend(data[: target.most])


_LEAVES: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [2**63, -(2**70), 10**400, "", "x" * 3000, "\n", "\ud800", "/srv", "files", "sessions", "10G", "5%"]
    )
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _other_values(draw: st.DrawFn, seeds: tuple[Any, ...]) -> bytes:
    """A record with values of other kinds, keys left out or put in, and one key twice."""

    def change(value: Any, depth: int) -> Any:
        if draw(st.integers(0, 4)) == 0:
            return draw(_TREES)
        if isinstance(value, dict):
            inner = {key: change(one, depth + 1) for key, one in value.items() if draw(st.integers(0, 9))}
            return {**inner, **draw(st.dictionaries(st.text(max_size=3), _LEAVES, max_size=1))}
        if isinstance(value, list):
            return [change(one, depth + 1) for one in value] * draw(st.sampled_from([1, 1, 2]))
        return value

    text = json.dumps(change(draw(st.sampled_from(seeds)), 0), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0 and text.startswith('{"'):
        text = text[:-1] + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


@st.composite
def _laughs(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """YAML of which each alias stands for several others, in the place of a value or as a merge."""
    levels, width = draw(st.integers(1, 30)), draw(st.integers(1, 9))
    lists = draw(st.booleans())
    lines = ["a0: &a0 [x, y]" if lists else "a0: &a0 {x: 1, max_size: 1}"]
    for level in range(1, levels + 1):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"[{inner}]" if lists else f"{{<<: [{inner}], y{level}: 1}}"))
    base = draw(st.sampled_from(seeds)).decode()
    key = draw(
        st.sampled_from(
            ["dest: ", "url: ", "owner: ", "mode: ", "name: ", "path: ", "max_size: ", "layout: "]
        )
    )
    where = base.find(key)
    last = f"*a{levels}"
    if where >= 0:
        end = min(e for e in (base.find(sign, where) for sign in ",}\n") if e > 0)
        base = base[: where + len(key)] + last + " " + base[end:]
    return ("\n".join(lines) + "\n" + base).encode()


class Input(bytes):
    """The bytes of an input, shown by their beginning."""

    def __repr__(self) -> str:
        return f"{bytes(self[:300])!r} ({len(self)} bytes)"


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Inputs for target, each a variation of something sound."""
    found = [_changed(target), _changed(target)]
    records = tuple(value for seed in target.seeds if isinstance(value := _record(seed), dict))
    if records:
        found.append(_other_values(records))
    if target.name in ("config", "manifest"):
        found.append(_laughs(tuple(seed for seed in target.seeds if not seed.startswith(b"{"))))
    return st.one_of(found).map(Input)


def _record(seed: bytes) -> Any:
    try:
        return json.loads(seed.partition(b"\0")[0].replace(b"@PID@", b"1"))
    except ValueError:
        return None


def explore(target: Target, examples: int, look: Callable[[bytes], None]) -> int:
    """Have so many inputs for target looked at, the same every time; returns how many."""
    count = 0

    # Not made smaller: what is slow would be so for minutes.
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target))
    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        look(data)

    one()
    return count
