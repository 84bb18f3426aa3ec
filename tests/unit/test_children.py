# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Children end at their deadline, with all of their group, hold no descriptor of ours, and are reaped."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Callable

import pytest

from besom import children
from besom.children import CommandMissing, ask, run
from besom.errors import BesomError
from besom.shutdown import Shutdown

LONG = 600.0


def gone(pid: int) -> bool:
    """Whether process pid has ended, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def no_zombies() -> bool:
    """Whether every child of this process that has ended was reaped."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return not any(gone(int(pid)) for pid in pids)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_the_status_and_all_output_of_a_command_are_told(script: str, status: int) -> None:
    ended = run(["sh", "-c", f"echo one; echo two >&2; {script}"], LONG)
    assert (ended.status, ended.text) == (status, "one\ntwo")
    assert (ended.timed_out, ended.interrupted) == (False, False)
    assert no_zombies()


def test_output_is_bounded() -> None:
    ended = run(["head", "-c", "1000000", "/dev/zero"], LONG)
    assert (ended.status, len(ended.output)) == (0, 1 << 16)


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["dies-of-term", "ignores-term"])
def test_at_its_deadline_the_whole_group_goes(tmp_path: Path, trap: str) -> None:
    script = f"{trap} sleep 600 & echo $! >{tmp_path}/pid; echo begun; wait; sleep 600"
    ended = run(["sh", "-c", script], 0.5, grace=0.1)
    assert ended.timed_out
    assert ended.status in (-signal.SIGTERM, -signal.SIGKILL)
    child = int((tmp_path / "pid").read_text())
    while not gone(child):
        pass  # killed, and init reaps it
    assert no_zombies()


def test_a_command_that_cleans_up_on_term_has_the_grace_to() -> None:
    # What is forked before has no trap of its own.
    script = "sleep 600 & trap 'echo cleaned; exit 3' TERM; wait"
    ended = run(["sh", "-c", script], 0.5, grace=LONG)
    assert (ended.timed_out, ended.status, ended.text) == (True, 3, "cleaned")


def test_a_shutdown_ends_it_early() -> None:
    shutdown = Shutdown()
    timer = threading.Timer(0.1, shutdown.request)
    timer.start()
    ended = run(["sleep", "600"], LONG, shutdown)
    timer.join()
    assert (ended.interrupted, ended.timed_out, ended.status) == (True, False, -signal.SIGTERM)


def test_a_grandchild_that_keeps_the_output_open_delays_nothing() -> None:
    ended = run(["sh", "-c", "sleep 600 & echo $!"], LONG)
    os.kill(int(ended.text), signal.SIGKILL)
    assert ended.status == 0


def test_a_command_gets_no_descriptor_and_no_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as stream:
        os.set_inheritable(stream.fileno(), True)
        ended = run(["sh", "-c", "readlink /proc/$$/fd/* /proc/$$/cwd; ps -o sid= -p $$; echo $$"], LONG)
    *links, sid, pid = ended.text.split()
    assert not [link for link in links if link.startswith(str(tmp_path))]
    assert {"/dev/null", "/"} <= set(links)
    assert sid == pid


def test_a_command_that_is_not_there_or_cannot_start_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandMissing, match="besom-no-such-command is not installed here"):
        run(["besom-no-such-command"], LONG)
    (tmp_path / "text").write_text("text")
    with pytest.raises(BesomError, match="cannot be started: Permission denied"):
        run([str(tmp_path / "text")], LONG)


def test_a_question_is_answered_by_a_child() -> None:
    answer = ask(lambda write: write(str(os.getpid()).encode()), LONG)
    assert answer.status == 0
    assert int(answer.output) != os.getpid()
    assert no_zombies()


def test_what_was_answered_before_the_deadline_is_kept() -> None:
    def question(write: Callable[[bytes], None]) -> None:
        write(b"first")
        time.sleep(LONG)

    answer = ask(question, 0.5)
    assert (answer.output, answer.timed_out, answer.status) == (b"first", True, -signal.SIGKILL)
    assert no_zombies()


def test_a_question_that_fails_is_no_answer_and_never_comes_back_into_the_program() -> None:
    def question(_write: Callable[[bytes], None]) -> None:
        raise ValueError("no")

    assert ask(question, LONG).status == 1


def test_a_question_gets_only_the_descriptors_that_it_needs(tmp_path: Path) -> None:
    def question(write: Callable[[bytes], None]) -> None:
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue  # that of listdir itself
        write("\n".join(links).encode())

    with open(tmp_path / "lock", "w"), open(tmp_path / "needed", "w") as needed:
        found = ask(question, LONG, keep=(needed.fileno(),)).output.decode().split("\n")
    assert f"{tmp_path}/needed" in found
    assert f"{tmp_path}/lock" not in found
    assert found.count("/dev/null") == 3


def test_a_child_that_was_left_behind_is_reaped_later() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    children._left_behind.add(pid)
    children.reap()
    assert pid not in children._left_behind
    assert no_zombies()
