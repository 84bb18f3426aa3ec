# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a path means to unmount, what is refused, and in which order mounts go: from mountinfo alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from besom.errors import UsageError
from besom.mount_points import order, refuse, resolve
from besom.mounts import parse_mountinfo
from besom.run import Run
from besom.shutdown import Shutdown
from besom.unmount import UnmountRequest, plan, unmount

LISTED = parse_mountinfo(
    b"""
20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:30 / /a rw - tmpfs a rw
31 30 0:31 / /a/b rw - fuse.x b rw
32 31 0:32 / /a/b/c rw - tmpfs c rw
33 30 0:33 / /a/b2/deep rw - tmpfs d rw
34 30 0:34 / /a rw - tmpfs over rw
35 34 0:35 / /a/e rw - tmpfs e rw
40 20 0:40 / /ab rw - tmpfs ab rw
50 20 0:50 / /auto rw - autofs auto rw
51 50 0:51 / /auto rw - nfs4 server:/x rw
60 20 0:60 / /h rw - tmpfs h rw
61 60 0:61 / /h/x/hidden rw - tmpfs hidden rw
62 60 0:62 / /h/x rw - tmpfs x rw
"""
)


@pytest.mark.parametrize(
    ("target", "ids"),
    [
        # What lies over a path goes before what it hides, what is deeper before what holds it.
        ("/a", [35, 34, 32, 31, 33, 30]),
        ("/a/b", [32, 31]),
        ("/ab", [40]),
        ("/h", [62, 61, 60]),
        ("/auto", [51]),
        ("/none", []),
    ],
)
def test_mounts_go_in_an_order_in_which_they_can(target: str, ids: list[int]) -> None:
    assert [mount.id for mount in order(target, LISTED)] == ids


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/", "contains|system directory"),
        ("/usr", "system directory"),
        ("/var/lib", "system directory"),
        ("/proc/sys/fs/binfmt_misc", "below /proc"),
        ("/dev/shm", "below /dev"),
        ("/sys", "system directory"),
        ("/run", "system directory"),
        ("/tmp", "system directory"),
        ("/lib", "system directory"),
    ],
)
def test_what_the_system_runs_on_is_refused(path: str, how: str) -> None:
    with pytest.raises(UsageError, match=how) as caught:
        refuse(path)
    assert caught.value.status == 2


@pytest.mark.parametrize("path", ["/mnt", "/mnt/x", "/media/disk", "/srv/data", "/run/user/0/gvfs", "/tmp/x"])
def test_other_mount_points_are_fine(path: str) -> None:
    refuse(path)


def test_a_path_is_resolved_to_the_last_component(tmp_path: Path) -> None:
    (tmp_path / "real/at").mkdir(parents=True)
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "real/link").symlink_to(tmp_path / "way/at")
    for spelt in ("real/at", "real/at/", "way/at", "real/link//", "./way/../way/at/.", "real/at/../link"):
        assert resolve(f"{tmp_path}/{spelt}") == f"{tmp_path}/real/at"
    assert resolve(f"{tmp_path}/none/../real/none") == f"{tmp_path}/real/none"
    assert resolve("/..//") == "/"


def test_a_loop_of_symlinks_and_a_relative_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="too many symlinks"):
        resolve(f"{tmp_path}/loop")
    with pytest.raises(UsageError, match="not an absolute path"):
        resolve("mnt")


def test_what_is_not_mounted_is_done_already(tmp_path: Path) -> None:
    request = UnmountRequest((f"{tmp_path}/none", str(tmp_path)))
    report = unmount(request, Run())
    assert [one.state for one in report.mounts] == ["absent", "absent"]
    assert (report.changed, report.messages, report.interrupted) == (False, [], False)
    assert plan(request).to_dict()["dry_run"] is True


def test_one_refused_path_keeps_all_from_being_begun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/usr is refused"):
        unmount(UnmountRequest((str(tmp_path), "/usr")), Run(shutdown=Shutdown()))
