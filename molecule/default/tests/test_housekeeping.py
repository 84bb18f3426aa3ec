"""What the housekeeping role leaves behind on a real host."""


def names(host, path):
    return set(host.check_output("ls -A %s", path).splitlines())


def test_store_keeps_the_newest_that_fit(host):
    assert names(host, "/var/cache/app/gems") == {f"{age}-days.gem" for age in range(1, 6)}


def test_only_the_stale_temp_is_swept(host):
    assert names(host, "/var/lib/app/rubies") == {".temp-young", ".temp-held", "3.3.0"}


def test_nothing_outside_is_touched(host):
    assert names(host, "/srv/outside") == {"precious"}


def test_host_is_healthy(host):
    assert host.check_output("systemctl is-system-running") == "running"
