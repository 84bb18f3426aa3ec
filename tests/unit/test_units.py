# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from besom.errors import UsageError
from besom.units import (
    Share,
    format_duration,
    format_size,
    is_name,
    parse_count,
    parse_duration,
    parse_factor,
    parse_size,
    printable,
    shown,
)

KIB, MIB, GIB = 1024, 1024**2, 1024**3

NEVER = [
    *("", " ", "-1", "+1", "1e3", "1_000", "abc", "nan", "inf", "0x10", "1,5", "1.", ".5", "1..5"),
    *("٣", "\uff11\uff10", "10\x00", "10\n\n10", "9" * 5000, 9**5000, -1, -(9**5000)),
    *(True, False, None, [], {}, b"10", float("nan"), float("inf"), float("-inf"), -1.5, 1e300),
]


def label(value: object) -> str:
    """A short name for a test; str() of a whole number refuses more than 4300 digits."""
    return f"{value.bit_length()}-bits" if isinstance(value, int) else ascii(value)[:20]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500", 500),
        (500, 500),
        ("500B", 500),
        ("500b", 500),
        (" 10K ", 10 * KIB),
        ("10 K", 10 * KIB),
        ("10k", 10 * KIB),
        ("10KB", 10 * KIB),
        ("10KiB", 10 * KIB),
        ("1.5GiB", GIB + GIB // 2),
        (1.5, 1),
        ("0.5K", 512),
        ("2M", 2 * MIB),
        ("1T", 1024 * GIB),
        ("7EiB", 7 * 1024**6),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_size_means_powers_of_1024(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *NEVER,
        "0",
        0,
        "0G",
        "0.4",
        "5iB",
        "5i",
        "10KK",
        "10 KiB B",
        "10%",
        "8EiB",
        "9999999P",
        2**63,
        "10  K",
        "5\u212a",
        "5\u0130B",
    ],
    ids=label,
)
def test_what_is_no_size_is_refused_in_one_line_that_names_the_option(text: object) -> None:
    with pytest.raises(UsageError, match=r"^max_size: .{2,90} is not a size above zero; write for") as caught:
        parse_size(text, "max_size")
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90", 90), (90, 90), ("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800), ("2w", 1209600)],
        *[("1.5h", 5400), ("0.5", 0.5), ("10 m", 600), (1.5, 1.5), ("292w", 292 * 604800)],
    ],
)
def test_a_duration_is_in_seconds_unless_it_has_a_unit(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [*NEVER, "0", 0, "0s", "1M", "1D", "1H", "1y", "5min", "1h30m", "300000000h", "9223372037"],
    ids=label,
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match=r"^older_than: .* is not a duration above zero; write for"):
        parse_duration(text, "older_than")


def test_zero_is_a_duration_where_it_is_a_timeout() -> None:
    assert parse_duration("0", zero=True) == 0
    with pytest.raises(UsageError, match="not a duration; "):
        parse_duration("-1", zero=True)


@pytest.mark.parametrize("text", [*NEVER, "0", 0, "1.5", 1.0, "10K", 10**18], ids=label)
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="whole number above zero"):
        parse_count(text)


def test_a_count_is_a_whole_number() -> None:
    assert (parse_count("12"), parse_count(12), parse_count(10**18 - 1)) == (12, 12, 10**18 - 1)


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3.0), (0, 0.0), (2.5, 2.5), ("0.25", 0.25), (1000, 1000.0)]
)
def test_a_factor_is_a_number_from_0_to_1000(text: object, number: float) -> None:
    assert parse_factor(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        -0.5,
        "nan",
        "sNaN",
        "inf",
        "1e9999",
        "1001",
        True,
        None,
        "x",
        "9" * 5000,
        9**5000,
        "\u0661",
        "2_",
    ],
    ids=label,
)
def test_what_is_no_factor_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="not a number from 0 to 1000"):
        parse_factor(text)


@pytest.mark.parametrize(
    ("text", "of_1000", "shown"),
    [
        *[("5%", 50, "5%"), ("0.1 %", 1, "0.1%"), ("99.9%", 999, "99.9%")],
        *[("1KiB", 1024, "1.0 KiB"), (100, 100, "100 B")],
    ],
)
def test_a_share_is_a_percentage_or_a_size(text: object, of_1000: int, shown: str) -> None:
    share = Share(text)
    assert (share.of(1000), str(share)) == (of_1000, shown)


@pytest.mark.parametrize(
    "text", [*NEVER, "0%", "100%", "101%", "-5%", "%", "5%%", "1e1%", "٣%", "5 % 5"], ids=label
)
def test_what_is_no_share_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match=r"^min_free: "):
        Share(text, "min_free")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *[(0, "0 B"), (1, "1 B"), (500, "500 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (-2048, "-2.0 KiB")],
        *[(600 * MIB, "600.0 MiB"), (312 * MIB, "312.0 MiB"), (24536678, "23.4 MiB"), (10 * GIB, "10.0 GiB")],
        *[(MIB - 1, "1.0 MiB"), (1024**6 - 1, "1.0 EiB"), (2**63 - 1, "8.0 EiB"), (1024**7, "1024.0 EiB")],
    ],
)
def test_sizes_are_shown_with_one_decimal_and_binary_units(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 2**62))
def test_a_size_that_was_shown_reads_back_within_its_rounding(size: int) -> None:
    text = format_size(size)
    assert len(text) <= len("1023.9 KiB")
    unit = 1024 ** " KMGTPE".find(text.split()[1][0]) if text[-2] == "i" else 1
    assert abs(parse_size(text) - size) <= unit * 0.0501


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0s"), (0.04, "40ms"), (1, "1s"), (40, "40s"), (90, "90s"), (900, "15m"), (86400, "24h")],
        *[(172800, "2d"), (302400, "3.5d"), (-90, "-90s")],
    ],
)
def test_durations_are_shown_in_the_largest_unit_that_reads_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    # What two different names could be confused by: backslashes, hex digits, and what they escape.
    st.lists(st.sampled_from([b"\\", b"x", b"f", b"\xff", b"\n", b"\xc3", b"\xbf", b"0a"]), min_size=1).map(
        b"".join
    ),
    st.text(min_size=1, max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@settings(max_examples=40)
@given(NAMES, NAMES)
@example(b"\xff", b"\\xff")
@example("é".encode(), "é".encode("latin-1"))
@example(b"\n", b"\\x0a")
def test_two_names_never_look_the_same(one: bytes, other: bytes) -> None:
    assert (printable(one) == printable(other)) == (one == other)


@given(NAMES)
@example("\u2028\u2029\x85\x1b[2J\u202e".encode())
def test_a_name_is_one_line_of_plain_text_that_turns_back_into_it(name: bytes) -> None:
    text = printable(name)
    assert text.splitlines() == [text]
    assert text.isprintable()
    text.encode("utf-8")
    pairs = re.findall(r"\\\\|\\x[0-9a-f]{2}|[^\\]", text)
    assert "".join(pairs) == text
    back = [
        b"\\" if one == "\\\\" else bytes.fromhex(one[2:]) if one[0] == "\\" else one.encode()
        for one in pairs
    ]
    assert b"".join(back) == name
    assert printable(os.fsdecode(name)) == text


def test_half_a_character_of_json_is_shown_and_is_no_name() -> None:
    assert printable("a\ud800\udfff") == r"a\xed\xa0\x80\xed\xbf\xbf"
    assert [is_name(text) for text in ("a", "\udcff", "\ud800", "a\0")] == [True, True, False, False]


def test_names_are_shown_the_same_where_the_encoding_is_ascii() -> None:
    code = (
        "import os; from besom.units import is_name, printable; "
        "print(ascii([printable(os.fsdecode(b'\\xc3\\xa9\\xff')), printable('\\xe9\\n'), is_name('\\xe9')]))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **locale, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.decode().strip() == ascii(["é\\xff", "é\\x0a", False])


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert printable("/srv/Bücher & 本/a b.txt") == "/srv/Bücher & 本/a b.txt"


@pytest.mark.parametrize("value", ["x" * 10**6, "\n" * 10**6, 16**6000, ["x" * 1000]], ids=label)
def test_a_value_is_shown_in_a_short_line_whatever_it_is(value: Any) -> None:
    text = shown(value)
    assert text.isprintable()
    assert len(text) <= 203
    assert text.endswith("...")
