# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import subprocess

import pytest

from besom.command_line import command_of, without_secrets


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("besom install https://bob:hunter2@mirror/x.tar --into /opt", "https://mirror/x.tar --into /opt"),
        (
            "besom install https://bob:hun/ter2@mirror/x.tar?sig=hunter2#hunter2",
            "install https://mirror/x.tar",
        ),
        ("besom --url=https://hunter2@mirror/x", "besom --url=https://mirror/x"),
        ("besom install --header Authorization: Bearer hunter2 https://mirror", "besom install ..."),
        ("besom install --header=X: hunter2", "besom install ..."),
        ("besom install --head X: hunter2", "besom install ..."),
        ("sh -c curl -HX:hunter2 https://mirror", "sh -c curl ..."),
        ("head -c 10 /x-Headers --headless", "head -c 10 /x-Headers --headless"),
        ("besom install https://bob:" + "hunter2" * 40 + "@mirror/x", "besom install https://mirror/x"),
    ],
)
def test_a_command_line_is_shown_without_its_secrets(command: str, shown: str) -> None:
    found = without_secrets(command)
    assert found.endswith(shown)
    assert "hunter2" not in found


def test_that_of_a_process_is_what_the_kernel_has() -> None:
    with subprocess.Popen(
        ["sh", "-c", "echo; read x", "https://bob:hunter2@mirror"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert command_of(child.pid) == "sh -c echo; read x https://mirror"
        assert command_of(child.pid, most=2) == "sh -c"
        child.communicate()
    assert command_of() == command_of(os.getpid())
