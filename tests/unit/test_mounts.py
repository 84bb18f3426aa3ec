# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from besom.mounts import mnt_id, mount_of, mounts, names_mounted_on, parse_mountinfo


@pytest.mark.root
@pytest.mark.parametrize("name", ["plain", "with space", "new\nline", "back\\slash", "#hash", "\udcff"])
def test_a_mount_is_found_under_its_name(area: Any, mount: Callable[..., None], name: str) -> None:
    point = area.dir(name)
    mount("-t", "tmpfs", "besom-test", point)
    fd = os.open(point, os.O_PATH)
    try:
        found = mount_of(fd)
        assert found is not None
        assert (found.path, found.fstype, found.source) == (point, "tmpfs", "besom-test")
        device = os.stat(point).st_dev
        assert found.device == f"{os.major(device)}:{os.minor(device)}"
    finally:
        os.close(fd)
    assert name in names_mounted_on(found.parent)


def test_a_directory_is_on_the_mount_of_its_parent(area: Any) -> None:
    with open(area.file("sub/a"), "rb") as inner, open(area.file("b"), "rb") as outer:
        assert mnt_id(inner.fileno()) == mnt_id(outer.fileno())
        assert mount_of(inner.fileno()) in mounts()


def test_lines_that_do_not_fit_are_passed_over() -> None:
    good = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    text = b"\n".join(
        [
            b"garbage",
            good,
            b"x 35 98:0 / /a rw - ext3 a rw",
            b"1 2 3:4 / /a rw",
            b"1 2 - a",
            b"9" * 5000 + b" 1 98:0 / / rw - t s o",
            b"",
        ]
    )
    (found,) = parse_mountinfo(text)
    assert (found.id, found.parent, found.device, found.path) == (36, 35, "98:0", "/mnt2")
    assert (found.options, found.fstype, found.source) == ("rw,noatime", "ext3", "/dev/root")
