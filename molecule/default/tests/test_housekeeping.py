"""What the roles leave behind on a real host."""

import pytest


@pytest.fixture(scope="module")
def below(host):
    """The names directly below a directory; all found by one command, since each costs seconds."""
    paths = host.check_output("find /var/cache/app /var/lib/app /srv/outside -mindepth 1").splitlines()

    def names(directory):
        return {path.rpartition("/")[2] for path in paths if path.rpartition("/")[0] == directory}

    return names


def test_store_of_files_keeps_the_newest_that_fit_and_not_one_less(below):
    assert below("/var/cache/app/gems") == {f"{age}-days.gem" for age in range(1, 6)}


def test_trees_go_whole_and_are_as_old_as_the_newest_file_in_them(below):
    assert below("/var/cache/app/envs") == {"old-but-written-to", "new"}
    assert below("/var/cache/app/envs/old-but-written-to") == {"lib", "pyvenv.cfg"}


def test_only_stale_temps_that_nobody_holds_are_swept(below):
    kept = {".temp-young", ".temp-held", ".temp-being-written", "3.3.0"}
    assert below("/var/lib/app/rubies") == kept
    assert below("/var/lib/app/rubies/.temp-held") == {"ruby"}


def test_held_temp_is_still_held(host):
    assert host.run("flock --nonblock /var/lib/app/rubies/.temp-held true").rc == 1


def test_nothing_outside_is_touched(below):
    assert below("/srv/outside") == {"precious"}


def test_a_gate_creates_nothing(below):
    assert below("/var/cache/app") == {"gems", "envs"}


def test_host_is_healthy(host):
    assert host.check_output("systemctl is-system-running") == "running"
