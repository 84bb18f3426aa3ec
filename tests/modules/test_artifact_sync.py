# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""artifact_sync: check, run, run again, check again; on the oldest Python, if it is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..host.mirror import Mirror, serve, truncated
from .play import Play, Result

STEPS = {"check": True, "run": False, "again": False, "check-again": True}
HOSTS = ("3.9",)


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        yield one


@pytest.fixture(scope="module")
def results(
    pythons: dict[str, str], mirror: Mirror, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Result]:
    hosts = {name: pythons[name] for name in HOSTS if name in pythons}
    play = Play(tmp_path_factory.mktemp("play"), hosts)
    for host in hosts:
        (play.base / host / "store/cache").mkdir(parents=True)
    content = bytes(range(256)) * 1000
    file = mirror.add("/one", content, etag='"1"', vices=[truncated(1000)] * len(hosts))
    mirror.add("/two", b"two", authorization="Bearer token", location="/three")
    mirror.add("/three", b"three", etag='"3"', authorization="Bearer token")
    artifacts: list[dict[str, Any]] = [
        {"url": f"{mirror.url}/one", "dest": "deep/one", "checksum": file.checksum, "mode": "0640"},
        {"url": f"{mirror.url}/two", "dest": "two", "headers": {"Authorization": "Bearer token"}},
    ]
    request = {"path": "{here}/cache", "artifacts": artifacts}
    for step, check in STEPS.items():
        play.add(f"store/{step}", "artifact_sync", request, check)
    wrong = [{**artifacts[0], "dest": "wrong", "checksum": "sha256:" + "0" * 64}]
    play.add("store/wrong", "artifact_sync", {**request, "artifacts": wrong})
    play.add("store/outside", "artifact_sync", {**request, "artifacts": [{**wrong[0], "dest": "../x"}]})
    return play.run()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, results: dict[tuple[str, str], Result]) -> str:
    if not any(request.param == where for where, _ in results):
        pytest.skip(f"there is no Python {request.param}")
    return str(request.param)


def paths(items: list[dict[str, Any]]) -> list[str]:
    return sorted(item["path"] for item in items)


def test_check_predicts_run_does_and_again_changes_nothing(
    results: dict[tuple[str, str], Result], host: str
) -> None:
    found = {step: results[host, f"store/{step}"] for step in STEPS}
    assert {step: result.status for step, result in found.items()} == dict.fromkeys(STEPS, "ok")
    assert {step: result["changed"] for step, result in found.items()} == {
        "check": True,
        "run": True,
        "again": False,
        "check-again": False,
    }
    both = ["deep/one", "two"]
    assert paths(found["check"]["fetched"]) == paths(found["run"]["fetched"]) == both
    assert found["check"]["planned"] == found["run"]["planned"]
    assert paths(found["again"]["unchanged"]) == both
    files = {path for path in found["run"].tree if Path(path).suffix != "" or path.endswith(("one", "two"))}
    assert files == {"cache/deep/one", "cache/two"}
    assert not any(path.endswith(("one", "two")) for path in found["check"].tree)
    assert "deep/one (absent)" in found["run"]["diff"]["after"]


def test_a_lost_connection_is_taken_up(
    results: dict[tuple[str, str], Result], host: str, mirror: Mirror
) -> None:
    assert results[host, "store/run"]["retries"]["requests"] == 1
    assert "bytes=1000-" in [one.range for one in mirror.of("/one")]
    assert results[host, "store/run"]["fetched_bytes"] == 256_000 + len("three")


def test_what_is_wrong_fails_in_a_sentence(results: dict[tuple[str, str], Result], host: str) -> None:
    wrong = results[host, "store/wrong"]
    assert wrong.status == "failed"
    assert "wrong failed: http" in wrong.msg
    assert paths(wrong["failures"]) == ["wrong"]
    assert "cache/wrong" not in wrong.tree
    outside = results[host, "store/outside"]
    assert outside.msg.startswith("artifacts: dest: '../x' may lead out of the store")
