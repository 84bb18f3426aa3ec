# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest

from besom.errors import NoSpace, UsageError
from besom.preflight import FileSystem, Need, preflight, read_needs
from besom.run import Forecast
from besom.units import Share

MIB = 1024**2
URL = "http://user:secret@example.org/ruby.tar.gz?token=secret"


def opener(size: int | None) -> Callable[..., Any]:
    """A server that tells of size bytes, or fails; test_fetch.py asks real ones."""

    @contextlib.contextmanager
    def open_(_url: str, **_options: Any) -> Iterator[Any]:
        if size is None:
            raise URLError("no route to host")
        yield SimpleNamespace(headers={"Content-Length": str(size)}, status=200)

    return open_


NO_URLS = opener(None)


@pytest.fixture
def disk(area: Any, mount: Callable[..., None]) -> Any:
    """A file system of 4 MiB and 100 inodes, with nothing on it."""
    mount("-t", "tmpfs", "-o", "size=4M,nr_inodes=100,mode=755", "besom-test", area.path)
    return area


def one(verdict: Any) -> FileSystem:
    (found,) = verdict.file_systems
    return found


def test_the_message_is_that_of_the_design_word_for_word() -> None:
    fs = FileSystem("/data", "/data", "8:1", 10**9, 312 * MIB, None)
    fs.required, fs.parts = 600 * MIB, ["download", "extract", "download"]
    (message,) = fs.complaints()
    assert message == (
        "Insufficient disk space on /data: required 600.0 MiB (download + extract), available 312.0 MiB, "
        "288.0 MiB more needed. Free up space or choose another location."
    )


@pytest.mark.root
def test_what_fits_exactly_fits_and_one_byte_more_does_not(disk: Any) -> None:
    assert preflight([Need(str(disk.path), 4 * MIB)], NO_URLS).sufficient
    verdict = preflight([Need(str(disk.path), 4 * MIB + 1)], NO_URLS)
    assert (one(verdict).required, one(verdict).available, one(verdict).short) == (4 * MIB + 1, 4 * MIB, 1)
    with pytest.raises(NoSpace) as caught:
        verdict.require()
    assert caught.value.status == 3
    assert str(caught.value) == (
        f"Insufficient disk space on {disk.path}: required 4.0 MiB, available 4.0 MiB, 1 B more needed. "
        "Free up space or choose another location."
    )


@pytest.mark.root
def test_two_paths_of_one_file_system_add_up_and_another_is_judged_by_itself(
    disk: Any, outside: Any, mount: Callable[..., None]
) -> None:
    disk.dir("a")
    disk.dir("b")
    mount("--bind", disk.at("b"), outside.path)
    needs = [Need(disk.at("a"), 3 * MIB), Need(str(outside.path), 2 * MIB), Need("/", 1)]
    verdict = preflight(needs, NO_URLS)
    assert [(fs.path, fs.required) for fs in verdict.file_systems] == [(disk.at("a"), 5 * MIB), ("/", 1)]
    assert verdict.message.count("Insufficient") == 1
    assert "1.0 MiB more needed" in verdict.message
    assert all(preflight([need], NO_URLS).sufficient for need in needs)


@pytest.mark.root
def test_a_path_that_does_not_exist_yet_is_judged_by_its_first_existing_parent(disk: Any) -> None:
    disk.file("file")
    disk.symlink("dangling", "nowhere")
    for name in ("x", "x/y/z", "file/x", "dangling/x", "x/../y", "x/"):
        fs = one(preflight([Need(disk.at(name), 5 * MIB)], NO_URLS))
        assert (fs.mount, fs.total, fs.path) == (str(disk.path), 4 * MIB, disk.at(name))


@pytest.mark.root
@pytest.mark.parametrize(("reserve", "left"), [("25%", 3 * MIB), ("1M", 3 * MIB), ("0.1%", 4 * MIB - 4194)])
def test_a_reserve_stays_free_beside_the_needs(disk: Any, reserve: str, left: int) -> None:
    share = Share(reserve)
    assert preflight([Need(str(disk.path), left)], NO_URLS, share).sufficient
    verdict = preflight([Need(str(disk.path), left + 1)], NO_URLS, share)
    assert one(verdict).short == 1
    assert " in reserve, available 4.0 MiB, 1 B more needed." in verdict.message


@pytest.mark.root
def test_inodes_are_needed_as_well(disk: Any) -> None:
    free = os.statvfs(disk.path).f_favail
    assert preflight([Need(str(disk.path), inodes=free)], NO_URLS).sufficient
    verdict = preflight([Need(str(disk.path), inodes=free - 1), Need(disk.at("x"), inodes=2)], NO_URLS)
    assert verdict.message == (
        f"Insufficient inodes on {disk.path}: required {free + 1}, available {free}, 1 more needed. "
        "Remove files or choose another location."
    )
    figures = one(verdict).to_dict()
    assert (figures["inodes_short"], figures["short_bytes"], figures["sufficient"]) == (1, 0, False)


def test_a_file_system_that_counts_no_inodes_has_no_limit_on_them() -> None:
    assert os.statvfs("/proc").f_files == 0
    verdict = preflight([Need("/proc", inodes=10**9)], NO_URLS)
    assert (verdict.sufficient, one(verdict).inodes_available) == (True, None)


@pytest.mark.root
def test_a_url_needs_its_download_and_what_it_expands_to(disk: Any) -> None:
    need = Need(str(disk.path), url=URL)
    assert one(preflight([need], opener(MIB))).required == 4 * MIB
    assert one(preflight([need], opener(MIB), expand=0.5)).required == MIB + MIB // 2
    assert one(preflight([need], opener(MIB), expand=0)).required == MIB
    assert one(preflight([Need(str(disk.path), url=URL, extract=False)], opener(MIB))).required == MIB
    verdict = preflight([need, Need(str(disk.path), size=10)], opener(2 * MIB))
    assert verdict.message.startswith(
        f"Insufficient disk space on {disk.path}: required 8.0 MiB (download + extract), available 4.0 MiB, "
        "4.0 MiB more needed."
    )
    verdict = preflight([Need(str(disk.path), url=URL, extract=False)], opener(5 * MIB))
    assert "required 5.0 MiB (download), available" in verdict.message


def test_a_url_of_unknown_size_is_left_out_with_a_warning_that_shows_no_secret(area: Any) -> None:
    verdict = preflight([Need(str(area.path), url=URL)], opener(None))
    assert (verdict.sufficient, one(verdict).required) == (True, 0)
    assert verdict.warnings == [
        "The size of http://example.org/ruby.tar.gz is unknown, so its space is not checked."
    ]


def test_a_url_of_unknown_size_fails_where_that_was_asked_for(area: Any) -> None:
    with pytest.raises(NoSpace, match="on_unknown: warn") as caught:
        preflight([Need(str(area.path), url=URL)], opener(None), unknown_fails=True)
    assert "secret" not in str(caught.value)


@pytest.mark.root
def test_what_a_dry_run_would_have_freed_counts_as_free(disk: Any) -> None:
    device = one(preflight([Need(str(disk.path))], NO_URLS)).device
    forecast = Forecast(freed={device: MIB})
    assert preflight([Need(str(disk.path), 5 * MIB)], NO_URLS, forecast=forecast).sufficient


def test_the_figures_come_whether_it_fits_or_not(area: Any) -> None:
    for size in (1, 2**62):
        result = preflight([Need(str(area.path), size)], NO_URLS).to_dict()
        assert (result["operation"], result["changed"], result["sufficient"]) == (
            "preflight",
            False,
            size == 1,
        )
        (figures,) = result["file_systems"]
        assert figures["required_bytes"] == size
        assert figures["total_bytes"] >= figures["available_bytes"] > 0


def test_nothing_changes(area: Any, snapshot: Callable[..., Any]) -> None:
    area.file("a")
    before = snapshot(area)
    preflight([Need(area.at("a/b/c"), 1), Need(area.at("x"), 2**62)], NO_URLS)
    assert snapshot(area) == before


def test_a_path_that_nobody_can_look_up_is_a_usage_error(area: Any) -> None:
    area.symlink("loop", "loop")
    for name in ("loop/x", "n" * 300):
        with pytest.raises(UsageError, match="cannot be looked up"):
            preflight([Need(area.at(name), 1)], NO_URLS)


def test_needs_are_read_as_a_user_writes_them() -> None:
    values = [
        {"path": "/a", "size": "1K"},
        {"path": "/b", "inodes": 5},
        {"path": "/c", "url": URL, "extract": False},
    ]
    assert read_needs(values) == [Need("/a", 1024), Need("/b", inodes=5), Need("/c", url=URL, extract=False)]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("/a", "must be a mapping"),
        ({"path": "a", "size": 1}, "path: a is not an absolute path"),
        ({"size": 1}, "path: None is not"),
        ({"path": "/a"}, "/a needs nothing; give size, inodes or url"),
        ({"path": "/a", "size": 0}, "size: '0' is not a size"),
        ({"path": "/a", "inodes": 0}, "inodes: '0' is not a whole number"),
        ({"path": "/a", "url": "x"}, "url: x is not an http or https URL"),
        ({"path": "/a", "url": URL, "extract": "no"}, "extract is true or false"),
        ({"path": "/a", "sise": 1}, "unknown key sise"),
    ],
)
def test_a_need_that_makes_no_sense_is_refused(value: Any, says: str) -> None:
    with pytest.raises(UsageError, match=r"^needs: ") as caught:
        read_needs([value])
    assert says in str(caught.value)
