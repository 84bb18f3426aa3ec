# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""artifact_install through the real ansible-core, on the oldest Python and this one, from a real server."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.mirror import Mirror, serve

from .play import Play, Result

STEPS = {"check": True, "run": False, "again": False, "check-again": True}


def app(version: str, name: str = "version") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo(f"app/{name}")
        info.size = len(version)
        archive.addfile(info, io.BytesIO(version.encode()))
    return stream.getvalue()


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        one.add("/1.tgz", app("1"))
        one.add("/2.tgz", app("2"), etag='"2"')
        one.add("/evil.tgz", app("1", name="../../evil"))
        login = base64.b64encode(b"besom:s3cret").decode()
        one.add("/private.tgz", app("1"), authorization=f"Basic {login}")
        one.add("/moved.tgz", location="/1.tgz")
        yield one


@pytest.fixture(scope="module")
def states(
    mirror: Mirror, pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Result]:
    """Installed, upgraded (without a checksum), gone: each dry, for real, and both again."""
    if "3.9" not in pythons:
        pytest.skip("Python 3.9 is not on this machine")
    play = Play(tmp_path_factory.mktemp("states"), {"oldest": pythons["3.9"]})
    place = {"into": "{here}/opt", "name": "app", "current": "live"}
    one = {"url": f"{mirror.url}/1.tgz", "checksum": mirror.files["/1.tgz"].checksum}
    access = {"owner": f"{os.geteuid()}", "group": f"{os.getegid()}", "mode": "0750"}
    states: dict[str, dict[str, Any]] = {
        "installed": {**place, **one, "strip": True, "store": "{here}/store", **access},
        "upgraded": {**place, "url": f"{mirror.url}/2.tgz", "keep": 1},
        "removed": {**place, "state": "absent"},
    }
    for state, args in states.items():
        for step, check in STEPS.items():
            play.add(f"one/{state}-{step}", "artifact_install", args, check=check)
    for name in ("opt", "store"):
        (play.base / "oldest/one" / name).mkdir(parents=True)
    return {task: result for (_, task), result in play.run().items()}


def tops(result: Result) -> set[str]:
    """The names in the directory that is installed into; those of old versions without their time."""
    names = {path.split("/")[1] for path in result.tree if path.startswith("opt/")}
    return {name.split("-app-")[0] for name in names}


@pytest.mark.parametrize(
    ("action", "names"),
    [
        ("installed", {"app", "live"}),
        ("upgraded", {"app", "live", ".besom-old"}),
        ("removed", set()),
    ],
)
def test_check_run_again_check_again(states: dict[str, Result], action: str, names: set[str]) -> None:
    check, run, again, check_again = (states[f"one/{action}-{step}"] for step in STEPS)
    for result in (check, run, again, check_again):
        assert result.status == "ok", result.values
    assert [one["changed"] for one in (check, run, again, check_again)] == [True, True, False, False]
    assert check["action"] == run["action"] == action
    assert (again["action"], again["diff"], check_again["diff"]) == ("", [], [])
    assert check["msg"].startswith(f"Would have {action} ")
    assert run["msg"].startswith(f"{action.capitalize()} ")
    assert check["planned"] == run["planned"] == run["removed"]
    assert tops(run) == names
    assert run.tree == again.tree == check_again.tree
    assert check["diff"][0]["before"] == run["diff"][0]["before"]


def test_the_archive_is_kept_in_the_store(states: dict[str, Result], mirror: Mirror) -> None:
    kept = "store/" + mirror.files["/1.tgz"].checksum.replace(":", "-")
    assert kept not in states["one/installed-check"].tree
    assert kept in states["one/installed-run"].tree


def test_check_mode_changes_nothing(states: dict[str, Result]) -> None:
    assert states["one/installed-check-again"].tree == states["one/upgraded-check"].tree
    assert states["one/upgraded-check-again"].tree == states["one/removed-check"].tree


def test_the_difference_tells_what_it_comes_from(states: dict[str, Result], mirror: Mirror) -> None:
    (diff,) = states["one/upgraded-run"]["diff"]
    one = f"{mirror.url}/1.tgz ({mirror.files['/1.tgz'].checksum})"
    # Nobody gave a checksum for the second.
    two = f"{mirror.url}/2.tgz (blake2b:{hashlib.blake2b(mirror.files['/2.tgz'].content).hexdigest()})"
    assert diff["before"] == f"{one}\nlinked: app\n"
    assert diff["after"].startswith(f"{two}\nlinked: app\nold: .besom-old-app-")
    assert states["one/removed-run"]["diff"][0]["after"] == "absent\n"


@pytest.fixture(scope="module")
def single(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    play = Play(tmp_path_factory.mktemp("single"))
    login = {"url": f"{mirror.url}/private.tgz", "url_username": "besom", "url_password": "s3cret"}
    calls: dict[str, dict[str, Any]] = {
        "private": login,
        "moved": {"url": f"{mirror.url}/moved.tgz"},
        "wrong-login": {
            "url": f"{mirror.url}/private.tgz",
            "url_username": "besom",
            "url_password": "s3cret2",
        },
        "evil": {"url": f"{mirror.url}/evil.tgz"},
        "wrong": {"url": f"{mirror.url}/1.tgz", "checksum": "sha256:" + "0" * 64},
        "weak": {"url": f"{mirror.url}/1.tgz", "checksum": "md5:" + "0" * 32},
        "no-url": {},
        "root": {"url": f"{mirror.url}/1.tgz", "into": "/usr"},
    }
    for name, args in calls.items():
        (play.base / "here" / name / "opt").mkdir(parents=True)
        play.add(f"{name}/run", "artifact_install", {"into": "{here}/opt", "name": "app", **args})
    return {task: result for (_, task), result in play.run().items()}


@pytest.mark.parametrize("name", ["private", "moved"])
def test_login_and_redirect(single: dict[str, Result], name: str) -> None:
    result = single[f"{name}/run"]
    assert result["changed"], result.values
    assert "opt/app/app/version" in result.tree
    assert "s3cret" not in str(result["url"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong-login", "the server answers 401"),
        ("evil", "leads out of it; it is refused"),
        ("wrong", "has the checksum sha256:"),
        ("weak", "md5 can be forged; give a sha256, or allow that with allow_weak_checksum."),
        ("no-url", "state is present but all of the following are missing: url"),
        ("root", "/usr is refused: it is a system directory"),
    ],
)
def test_what_is_wrong_fails_with_one_sentence_and_leaves_nothing(
    single: dict[str, Result], name: str, said: str
) -> None:
    result = single[f"{name}/run"]
    assert result.status == "failed"
    assert said in result.msg
    assert "Traceback" not in str(result.values)
    assert tops(result) == set()
