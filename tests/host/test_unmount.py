# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom unmount on real mounts: idle, busy, hung, nested, stacked, of root and of an ordinary user."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

import besom_host.commands  # noqa: F401 (the ordinary user below may not read it)
from besom import answer, children
from besom.unmount import UnmountRequest, plan
from besom_host import cli

from .conftest import COMMAND, Done, need
from .fuse import Fuse, mounted, silent, stop

pytestmark = pytest.mark.root

NOBODY = 65534
PR_SET_DUMPABLE = 4
SECONDS = 30  # on a machine under load; without a load it is one

Besom = Callable[..., Done]


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Fuse]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    made = Fuse(tmp_path)
    yield made
    made.clear()


def run(*words: str | Path, user: int | None = None, timeout: float = SECONDS) -> Done:
    """besom in a forked child, perhaps as another user, who may not read root's Python: no start-up."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            status = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                # pytest's own stand in their place.
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
                status = cli.main(["--json", *map(str, words)])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(timeout * 1000)
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        assert ended, f"besom did not end within {timeout} s"
        out.seek(0)
        err.seek(0)
        stderr = err.read().decode()
        assert "Traceback" not in stderr
        return Done(status, json.loads(out.read() or b"{}"), stderr)


@pytest.fixture
def besom() -> Besom:
    return run


def states(done: Done) -> dict[str, str]:
    return {one["path"]: one["state"] for one in done.report["mounts"]}


@pytest.mark.parametrize("kind", ["bindfs", "fuse2fs", "tmpfs"])
def test_an_idle_mount_goes_as_predicted_and_the_second_run_finds_nothing_to_do(
    besom: Besom, fuse: Fuse, kind: str
) -> None:
    at = fuse.top / "at"
    getattr(fuse, kind)(at)

    dry = besom("unmount", at, "--dry-run")
    assert mounted(at) == [str(at)]
    done = besom("unmount", at)
    assert mounted(at) == []
    again = besom("unmount", at)

    assert (dry.status, done.status, again.status) == (0, 0, 0)
    assert [states(one)[str(at)] for one in (dry, done, again)] == ["would_unmount", "unmounted", "absent"]
    assert [one.report["changed"] for one in (dry, done, again)] == [True, True, False]
    for key in ("fstype", "source"):
        assert dry.report["mounts"][0][key] == done.report["mounts"][0][key] != ""


@pytest.mark.parametrize("kind", ["cwd", "root", "file", "mmap"])
@pytest.mark.parametrize("hangs", [False, True], ids=["server-well", "server-hung"])
def test_a_busy_mount_stays_with_its_holder_named_and_is_detached_when_asked(
    besom: Besom, fuse: Fuse, kind: str, hangs: bool
) -> None:
    at = fuse.top / "at"
    server = fuse.bindfs(at)
    holder = fuse.hold(kind, at)
    if hangs:
        stop(server)

    done = besom("unmount", at, "--timeout", "0.3", timeout=SECONDS)
    assert mounted(at) == [str(at)]
    lazy = besom("unmount", at, "--timeout", "0.3", "--lazy", timeout=SECONDS)
    assert mounted(at) == []

    assert (done.status, lazy.status) == (1, 0)
    assert (states(done), states(lazy)) == ({str(at): "busy"}, {str(at): "detached"})
    assert (done.report["changed"], lazy.report["changed"]) == (False, True)
    for one in (done, lazy):
        (found,) = one.report["mounts"][0]["holders"]
        assert (found["pid"], found["kind"]) == (holder.pid, kind)
        assert found["command"] == Path(f"/proc/{holder.pid}/comm").read_text().strip()
    assert f"pid {holder.pid}" in done.stderr
    assert f"{at} stays mounted" in done.stderr


def test_a_hung_server_keeps_an_idle_mount_from_nothing(besom: Besom, fuse: Fuse) -> None:
    at = fuse.top / "at"
    stop(fuse.bindfs(at))
    done = besom("unmount", f"{at}/", timeout=SECONDS)
    assert (done.status, states(done), mounted(at)) == (0, {str(at): "unmounted"}, [])


def start(*words: str | Path, path: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "BESOM_CONFIG": os.devnull, "PATH": path + os.environ["PATH"]}
    command = [str(COMMAND), "--json", *map(str, words)]
    return subprocess.Popen(command, env=environment, text=True, stdout=-1, stderr=-1)


@pytest.fixture
def tries(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A PATH on which fusermount3 tells of each try, and what waits for one."""
    pipe = tmp_path / "tries"
    os.mkfifo(pipe)
    wrapper = tmp_path / "bin/fusermount3"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho >{shlex.quote(str(pipe))}\nexec {need("fusermount3")} "$@"\n')
    wrapper.chmod(0o755)
    fd = os.open(pipe, os.O_RDWR)
    yield f"{wrapper.parent}:", lambda: os.read(fd, 1) and None
    os.close(fd)


def test_a_mount_goes_once_its_holder_does(fuse: Fuse, tries: tuple[str, Callable[[], None]]) -> None:
    path, wait_for_try = tries
    at = fuse.top / "at"
    fuse.bindfs(at)
    holder = fuse.hold("cwd", at)
    run = start("unmount", at, "--timeout", "1h", path=path)
    wait_for_try()
    wait_for_try()
    holder.kill()
    report = json.loads(run.communicate(timeout=SECONDS)[0])
    assert (run.returncode, mounted(at)) == (0, [])
    (one,) = report["mounts"]
    assert one["state"] == "unmounted"
    assert one["tries"] >= 2


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_waiting_between_two_tries(
    fuse: Fuse, tries: tuple[str, Callable[[], None]], signum: int, status: int
) -> None:
    path, wait_for_try = tries
    at = fuse.top / "at"
    fuse.bindfs(at)
    holder = fuse.hold("cwd", at)
    run = start("unmount", at, "--timeout", "1h", "--lazy", path=path)
    wait_for_try()
    run.send_signal(signum)
    out, err = run.communicate(timeout=SECONDS)
    report = json.loads(out)
    assert (run.returncode, mounted(at)) == (status, [str(at)])
    assert (report["interrupted"], report["changed"], report["status"]) == (True, False, status)
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert holder.poll() is None


def test_mounts_below_need_recursive_and_go_from_the_deepest_up(besom: Besom, fuse: Fuse) -> None:
    top = fuse.top / "top"
    fuse.tmpfs(top)
    fuse.bindfs(top / "one")
    fuse.tmpfs(top / "one/sub")
    fuse.bindfs(top / "two")
    before = mounted(top)

    refused = besom("unmount", top, timeout=SECONDS)
    assert (refused.status, mounted(top)) == (2, before)
    for word in (f"{top}/one, {top}/one/sub, {top}/two", "recursive"):
        assert word in refused.stderr

    dry = besom("unmount", top, "--recursive", "--dry-run")
    done = besom("unmount", top, "--recursive")
    assert (done.status, mounted(top)) == (0, [])
    order = [one["path"] for one in done.report["mounts"]]
    assert order == [one["path"] for one in dry.report["mounts"]]
    assert sorted(order) == sorted(before)
    assert order.index(f"{top}/one/sub") < order.index(f"{top}/one") < order.index(str(top))


def test_a_mount_whose_sub_mount_is_busy_stays_and_says_why(besom: Besom, fuse: Fuse) -> None:
    top = fuse.top / "top"
    fuse.tmpfs(top)
    fuse.bindfs(top / "busy")
    fuse.bindfs(top / "idle")
    holder = fuse.hold("file", top / "busy")

    done = besom("unmount", top, "--recursive", "--timeout", "0.3")
    assert done.status == 1
    assert states(done) == {f"{top}/busy": "busy", f"{top}/idle": "unmounted", str(top): "busy"}
    assert f"{top} stays mounted: {top}/busy is mounted on it" in done.stderr
    assert done.report["changed"] is True

    done = besom("unmount", top, "--recursive", "--timeout", "0", "--lazy")
    assert (done.status, mounted(top)) == (0, [])
    assert states(done) == {f"{top}/busy": "detached", str(top): "detached"}
    assert done.report["mounts"][0]["holders"][0]["pid"] == holder.pid


def test_what_is_mounted_in_a_hung_mount_goes_with_it(besom: Besom, fuse: Fuse) -> None:
    top = fuse.top / "top"
    server = fuse.bindfs(top)
    fuse.tmpfs(top / "sub")
    fuse.hold("file", top / "sub")
    stop(server)
    done = besom("unmount", top, "--recursive", "--lazy", "--timeout", "0.5", timeout=SECONDS)
    assert (done.status, mounted(top)) == (0, [])
    assert set(states(done)) == {f"{top}/sub", str(top)}


def test_all_layers_on_one_point_go_also_those_that_hide_mounts(besom: Besom, fuse: Fuse) -> None:
    at = fuse.top / "at"
    fuse.tmpfs(at)
    fuse.tmpfs(at / "hidden")
    fuse.bindfs(at, "-o", "nonempty")
    fuse.tmpfs(at / "sub")
    fuse.tmpfs(at)
    fuse.hold("cwd", fuse.top)

    done = besom("unmount", at, "--recursive")
    assert (done.status, mounted(at)) == (0, [])
    assert [one["path"] for one in done.report["mounts"]] == [
        *(str(at), f"{at}/sub", str(at), f"{at}/hidden", str(at))
    ]
    assert [one["fstype"] for one in done.report["mounts"]][0::2] == ["tmpfs", "fuse", "tmpfs"]


def test_a_process_that_stands_below_a_mount_does_not_hold_it(besom: Besom, fuse: Fuse) -> None:
    at = fuse.top / "at"
    at.mkdir()
    below = fuse.hold("cwd", at)
    fuse.bindfs(at)
    on_it = fuse.hold("cwd", at)
    done = besom("unmount", at, "--timeout", "0")
    assert [one["pid"] for one in done.report["mounts"][0]["holders"]] == [on_it.pid]
    assert below.poll() is None


@pytest.mark.parametrize("name", ["with space", "new\nline", "back\\slash", "#hash", "-dash"])
def test_any_name_works(besom: Besom, fuse: Fuse, name: str) -> None:
    at = fuse.top / name
    fuse.bindfs(at)
    holder = fuse.hold("mmap", at)
    busy = besom("unmount", at, "--timeout", "0")
    assert busy.report["mounts"][0]["holders"][0]["pid"] == holder.pid
    holder.kill()
    done = besom("unmount", at)
    assert (done.status, mounted(fuse.top)) == (0, [])


def test_a_path_may_lead_through_symlinks_and_end_in_a_slash(besom: Besom, fuse: Fuse) -> None:
    (fuse.top / "real").mkdir()
    (fuse.top / "way").symlink_to("real")
    (fuse.top / "real/link").symlink_to(fuse.top / "way/at")
    stop(fuse.bindfs(fuse.top / "real/at"))
    done = besom("unmount", f"{fuse.top}/way/../way/./link//", timeout=SECONDS)
    assert (done.status, states(done)) == (0, {f"{fuse.top}/real/at": "unmounted"})


def test_a_symlink_that_others_could_redirect_is_not_followed(besom: Besom, fuse: Fuse) -> None:
    (fuse.top / "open").mkdir()
    (fuse.top / "open").chmod(0o777)
    (fuse.top / "open/link").symlink_to(fuse.top / "at")
    fuse.bindfs(fuse.top / "at")
    done = besom("unmount", fuse.top / "open/link")
    assert (done.status, mounted(fuse.top)) == (2, [f"{fuse.top}/at"])
    assert "others could redirect" in done.stderr


def test_a_path_in_a_hung_mount_that_is_no_mount_point_is_absent(
    monkeypatch: pytest.MonkeyPatch, fuse: Fuse
) -> None:
    monkeypatch.setattr(answer, "PATIENCE_S", 0.3)
    at = fuse.top / "at"
    stop(fuse.bindfs(at))
    (found,) = plan(UnmountRequest((f"{at}/sub/deeper",))).mounts
    assert (found.path, found.state) == (f"{at}/sub/deeper", "absent")


@pytest.mark.parametrize(
    "path",
    ["/", "/usr", "/proc", "/proc/sys/fs", "/sys/fs/cgroup", "/dev/shm", "/run", "/tmp", "/usr/../var"],
)
def test_what_the_system_runs_on_is_refused(besom: Besom, path: str) -> None:
    before = mounted(Path("/"))
    done = besom("unmount", path, "--lazy", "--recursive", "--timeout", "0")
    assert (done.status, mounted(Path("/"))) == (2, before)
    assert "is refused" in done.stderr


def test_several_mounts_share_the_time_and_one_that_is_busy_delays_no_other(besom: Besom, fuse: Fuse) -> None:
    for name in ("busy", "idle"):
        fuse.bindfs(fuse.top / name)
    fuse.hold("cwd", fuse.top / "busy")
    done = besom("unmount", fuse.top / "busy", fuse.top / "idle", fuse.top / "none", "--timeout", "0.3")
    assert done.status == 1
    found = {Path(path).name: state for path, state in states(done).items()}
    assert found == {"busy": "busy", "idle": "unmounted", "none": "absent"}


@pytest.mark.parametrize("hung", [False, True], ids=["well", "hung"])
def test_a_server_that_takes_requests_and_never_answers_hangs_nobody(
    monkeypatch: pytest.MonkeyPatch, besom: Besom, tmp_path: Path, hung: bool
) -> None:
    at = tmp_path / "at"
    monkeypatch.setattr(answer, "PATIENCE_S", 0.3)
    monkeypatch.setattr(answer, "_asked", {})
    with silent(at) as device:
        fd = os.open(at, os.O_PATH)
        if hung:
            # One thread reads the question, which can then not be taken back: its asker cannot be killed.
            reader = subprocess.Popen(
                ["dd", "bs=128K", "count=1", "status=none", "of=/dev/null"], stdin=device
            )
        try:
            assert answer.answers(fd) is False
        finally:
            os.close(fd)
        if hung:
            assert reader.wait(SECONDS) == 0
        assert bool(children._left_behind) is hung
        done = besom("unmount", at, "--lazy", "--timeout", "0.3", timeout=SECONDS)
        assert (done.status, mounted(at)) == (0, [])
    for pid in list(children._left_behind):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    children.reap()
    assert not children._left_behind


@pytest.fixture
def device_for_all() -> Iterator[None]:
    """/dev/fuse as udev leaves it, open to all."""
    before = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)  # noqa: S103
    yield
    os.chmod("/dev/fuse", before)


@pytest.fixture
def users(device_for_all: None) -> Iterator[Fuse]:
    """Mounts in a directory of nobody's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: S103
        os.chown(name, NOBODY, NOBODY)
        made = Fuse(Path(name))
        yield made
        made.clear()


def test_an_ordinary_user_unmounts_a_mount_of_its_own(besom: Besom, users: Fuse) -> None:
    at = users.top / "at"
    stop(users.bindfs(at, "--no-allow-other", user=NOBODY))
    done = besom("unmount", at, user=NOBODY)
    assert (done.status, mounted(at)) == (0, []), done.stderr
    assert done.report["changed"] is True


def test_an_ordinary_user_gets_a_sentence_for_a_mount_that_is_not_its_own(besom: Besom, users: Fuse) -> None:
    for kind in ("bindfs", "tmpfs"):
        at = users.top / kind
        getattr(users, kind)(at)
        done = besom("unmount", at, "--timeout", "1h", "--lazy", user=NOBODY)
        assert (done.status, mounted(at)) == (1, [str(at)])
        assert f"{at} stays mounted: " in done.stderr
