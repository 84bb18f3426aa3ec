"""What the scenes saw on each host; see side_effect.yml for their order."""

import json

import pytest

FIVE = "1 2 3 4 5"
# systemd has notify-reload from 253 on; these are Debian 11, 12 and 13.
TYPES = {"bullseye": "notify", "bookworm": "notify", "trixie": "notify-reload"}


def only(name, host):
    """What no difference between hosts can change is seen on one of them, since every task costs time."""
    if host.backend.get_hostname() != name:
        pytest.skip(f"seen on {name}")


@pytest.fixture(scope="module")
def seen(host):
    """{scene: what it printed}, by one command, since each costs seconds."""
    text = host.check_output('cd /root/seen && for scene in *; do echo "=== $scene"; cat "$scene"; done')
    scenes = {}
    for part in text.split("=== ")[1:]:
        name, _, lines = part.partition("\n")
        scenes[name] = lines.strip()
    return scenes


@pytest.fixture(scope="module")
def facts(seen):
    """facts(scene): what it said, {key: value}."""

    def facts(scene):
        return dict(line.split("=", 1) for line in seen[scene].splitlines() if "=" in line)

    return facts


@pytest.fixture(scope="module")
def status(facts):
    """status(scene): besom's own account of the daemon then."""
    return lambda scene, key="status": json.loads(facts(scene)[key])


def test_check_mode_installs_nothing(host, seen):
    only("trixie", host)
    assert seen["checked"] == ""


def test_the_service_runs_and_comes_back_at_boot(host, facts):
    running = facts("running")
    assert (running["ActiveState"], running["UnitFileState"]) == ("active", "enabled")
    assert running["Type"] == TYPES[host.backend.get_hostname()]
    assert running["NRestarts"] == "0"


def test_systemd_waits_for_the_drain_and_a_margin(facts):
    assert facts("running")["TimeoutStopUSec"] == "35s"


def test_of_roots_powers_it_has_those_that_remove_files_of_others(facts):
    # CAP_DAC_OVERRIDE and CAP_FOWNER are bits 1 and 3.
    assert (facts("running")["capabilities"], facts("running")["privileges"]) == ("a", "1")


def test_it_can_write_to_its_directories_and_nothing_else(facts):
    places = {place: how for place, how in facts("running").items() if place.startswith("/")}
    writable = {
        *("/var/cache/app/gems", "/tmp/app/envs", "/var/lib/app/rubies"),
        *("/run/besom", "/var/log/besom"),
    }
    assert {place for place, how in places.items() if how == "writable"} == writable
    assert len(places) > len(writable)


def test_the_first_run_brought_everything_under_policy(facts):
    running = facts("running")
    assert (running["gems"], running["envs"]) == (FIVE, FIVE)
    assert running["rubies"] == ".temp-young 3.3.0"


def test_it_prunes_when_triggered(facts):
    assert facts("running")["triggered"] == FIVE
    assert facts("running")["scripted"] == FIVE


def test_it_goes_on_in_a_new_log_when_the_old_one_is_rotated(facts):
    assert facts("running")["logs"] == "besom.log besom.log.1"
    assert int(facts("running")["log_bytes"]) > 0


def test_nothing_of_that_restarted_it(facts, status):
    assert facts("running")["pid"] == facts("running")["pid_at_the_end"] == str(status("running")["pid"])
    assert status("running")["last_run"]["outcome"] == "done"


def test_killed_it_is_known_to_be_gone_and_systemd_starts_it_anew(facts, status):
    killed = facts("killed")
    # Unless this machine is so slow that a new one was there already.
    assert status("killed")["state"] == "stopped" or status("killed")["pid"] != int(killed["pid"])
    assert killed["new_pid"] not in ("0", killed["pid"])
    assert status("killed", "new_status")["pid"] == int(killed["new_pid"])


def test_told_to_stop_it_finishes_the_run_in_flight(facts, status):
    (in_flight,) = status("loaded")["in_flight"]
    assert (in_flight["operation"], in_flight["path"]) == ("prune", "/var/cache/app/gems")
    drained = facts("drained")
    assert (drained["ActiveState"], drained["Result"]) == ("inactive", "success")
    assert status("drained")["state"] == "stopped"
    assert status("drained")["last_run"]["outcome"] == "done"
    assert status("drained")["last_run"]["removed_entries"] > 5
    assert len(drained["gems"].split()) == 5


def test_another_interval_is_reloaded(facts, status):
    before, after = facts("before"), facts("interval")
    assert after["InvocationID"] == before["InvocationID"]
    assert status("interval")["pid"] == status("before")["pid"]
    assert status("interval")["next_run"] < status("before")["next_run"] - 1800


def test_a_broken_configuration_changes_nothing(host, facts, status):
    only("bullseye", host)
    assert facts("nonsense")["InvocationID"] == facts("interval")["InvocationID"]
    assert facts("nonsense")["config"] == facts("interval")["config"]
    assert status("nonsense")["warnings"] == []


def test_another_directory_restarts_it_and_can_be_written_then(host, facts):
    only("bullseye", host)
    assert facts("temps")["InvocationID"] != facts("interval")["InvocationID"]
    assert facts("temps")["NRestarts"] == "0"
    assert facts("temps")["later"] == FIVE


def test_after_a_power_cut_it_runs_again_and_knows_how_it_is(facts, status):
    assert status("rebooted")["pid"] == int(facts("rebooted")["pid"])
    assert status("rebooted")["state"] == "idle"
    assert status("rebooted")["last_run"]["outcome"] == "done"
    assert facts("rebooted")["system"] == "running"


def test_taken_down_it_is_stopped_and_what_could_be_unmounted_is(host, facts, status):
    down = facts("down")
    assert status("down")["state"] == "stopped"
    assert down["unit"] == "inactive"
    stays = {"bullseye": "", "bookworm": "/mnt/busy", "trixie": ""}
    assert down["mounts"] == stays[host.backend.get_hostname()]


def test_the_last_prune_has_its_turn_whatever_failed_before(host, facts):
    locked = host.backend.get_hostname() == "trixie"
    left = facts("down")["gems"]
    assert left == facts("mounted")["gems"] if locked else len(left.split()) == 5


def test_a_host_that_was_taken_down_takes_no_work_until_it_is_told_to(facts):
    down = facts("down")
    assert "This host drains since" in down["refused"]
    assert down["refused"].endswith(" 75")
    assert down["started"] == "inactive"
    assert down["cron_prune"] == "0"
    assert down["resumed"] == "New work is taken again. The daemon runs."
    assert down["again"] == "active"


def test_cron_runs_it_and_the_daemon_is_gone(facts, status):
    cron = facts("cron")
    assert cron["gems"] == FIVE
    assert cron["unit"] == ""
    assert status("cron")["state"] == "stopped"
    assert int(cron["cron"]) > 0


def test_uninstalled_it_leaves_nothing(seen):
    assert seen["uninstalled"] == ""


def test_uninstalled_it_leaves_the_stores(host):
    assert host.check_output("ls /var/cache/app/gems | wc -l") == "5"
