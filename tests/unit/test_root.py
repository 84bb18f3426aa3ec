# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from besom.errors import UsageError
from besom.root import Root, refuse_overlap

SYSTEM = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/usr",
    "/var",
]
NOBODY = 65534


def homes() -> list[str]:
    """Homes of the password database that are directories of their own, spelled without a symlink."""
    found = {user.pw_dir for user in pwd.getpwall()}
    return sorted(p for p in found if p not in SYSTEM and os.path.isdir(p) and os.path.realpath(p) == p)


@pytest.mark.parametrize("path", SYSTEM)
def test_a_system_directory_is_refused(path: str) -> None:
    if not os.path.lexists(path):
        pytest.skip(f"{path} does not exist here")
    with pytest.raises(UsageError, match=r"is a system directory|is a symlink; name the directory") as caught:
        Root(path)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    "path", ["//etc", "/etc/", "/etc/.", "/usr/../etc", "/etc/../etc", "/../etc", "/etc//"]
)
def test_another_spelling_of_a_system_directory_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="it is a system directory"):
        Root(path)


def test_a_home_of_the_password_database_is_refused() -> None:
    if not homes():
        pytest.skip("no user has a home of its own here")
    for home in homes():
        with pytest.raises(UsageError, match=r"is refused: it (is|contains) .*(home|system) directory"):
            Root(home)


def test_what_contains_a_home_is_refused() -> None:
    parents = [os.path.dirname(home) for home in homes()]
    parents = [p for p in parents if p not in (*SYSTEM, "/tmp", "/var/tmp")]
    if not parents:
        pytest.skip("every home lies directly in a system directory here")
    with pytest.raises(UsageError, match=r"contains .*the home directory of"):
        Root(parents[0])


@pytest.mark.root
def test_a_system_directory_under_another_name_is_refused(area: Any, mount: Callable[..., None]) -> None:
    mount("--bind", "/etc", area.path)
    with pytest.raises(UsageError, match="it is a system directory"):
        Root(str(area.path))


@pytest.mark.parametrize("path", ["/tmp", "/var/tmp"])
def test_the_directories_for_temporary_files_are_fine(path: str) -> None:
    if os.path.realpath(path) != path:
        pytest.skip(f"{path} is a symlink here")
    with Root(path) as root:
        assert os.path.samestat(os.fstat(root.fd), os.stat(path))


def test_a_directory_is_opened_however_it_is_spelled(area: Any) -> None:
    inner = area.dir("a")
    for spelling in (inner, inner + "/", f"{inner}/.", f"{inner}/../a", f"{area.path}//a"):
        with Root(spelling) as root:
            assert root.ident == (os.stat(inner).st_dev, os.stat(inner).st_ino)


@pytest.mark.parametrize("path", ["", ".", "..", "a", "~", "~root"])
def test_a_path_that_depends_on_where_one_stands_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is not an absolute path"):
        Root(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *[
            ("missing", "does not exist"),
            ("file/below", "is not a directory"),
            ("file", "is not a directory"),
        ],
        *[("fifo", "is not a directory"), ("link", "is a symlink"), ("link/", "is a symlink")],
        *[("dangling", "is a symlink"), ("x" * 300, "cannot be opened"), ("a\0b", "not an absolute path")],
        *[("loop/below", "too many symlinks"), ("./" * 20 + "a/" * 2001, "too many components")],
    ],
)
def test_what_is_no_directory_is_refused_in_one_line(area: Any, name: str, says: str) -> None:
    area.file("file")
    os.mkfifo(area.at("fifo"))
    area.symlink("link", area.dir("real"))
    area.symlink("dangling", "nowhere")
    area.symlink("loop", "pool")
    area.symlink("pool", "loop")
    with pytest.raises(UsageError, match=says) as caught:
        Root(area.at(name))
    assert str(caught.value).isprintable()


def test_a_symlink_on_the_way_is_followed_where_only_its_owner_could_have_made_it(area: Any) -> None:
    real = area.dir("real/store")
    area.symlink("absolute", area.at("real"))
    area.symlink("relative", "absolute/../real")
    for name in ("absolute/store", "relative/store"):
        with Root(area.at(name)) as root:
            assert root.ident[1] == os.stat(real).st_ino
            assert root.real == real


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_symlink_on_the_way_in_a_directory_that_others_can_write_is_refused(area: Any, mode: int) -> None:
    area.dir("real/store")
    area.symlink("link", area.at("real"))
    area.path.chmod(mode)
    with pytest.raises(UsageError, match="leads through the symlink link, which others could redirect"):
        Root(area.at("link/store"))


@pytest.mark.root
@pytest.mark.parametrize("whose", ["link", "directory"])
def test_a_symlink_on_the_way_that_another_user_controls_is_refused(area: Any, whose: str) -> None:
    area.dir("real/store")
    link = area.symlink("link", area.at("real"))
    os.chown(link if whose == "link" else area.path, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UsageError, match="others could redirect"):
        Root(area.at("link/store"))


def test_a_root_knows_when_its_path_names_another_directory(area: Any, tmp_path: Path) -> None:
    with Root(str(area.path)) as root:
        assert root.is_current()
        area.path.rename(tmp_path / "old")
        assert not root.is_current()
        area.path.mkdir()
        assert not root.is_current()
        root.reopen()
        assert root.is_current()


def test_no_descriptor_is_left_open_by_a_refusal(area: Any) -> None:
    area.symlink("link", area.dir("real"))
    before = os.listdir("/proc/self/fd")
    for path in ("/etc", area.at("link"), area.at("missing"), area.at("real/..") + "/link/x"):
        with pytest.raises(UsageError):
            Root(path)
    assert os.listdir("/proc/self/fd") == before


def test_stores_that_overlap_are_refused(area: Any) -> None:
    area.dir("a/b")
    area.dir("ab")
    with (
        Root(area.at("a")) as a,
        Root(area.at("a/b")) as b,
        Root(area.at("ab")) as ab,
        Root(area.at("a/")) as same,
    ):
        refuse_overlap([a, ab])
        for pair in ([a, b], [b, a], [a, ab, b], [a, same]):
            with pytest.raises(UsageError, match="overlap; give each a directory of its own"):
                refuse_overlap(pair)
