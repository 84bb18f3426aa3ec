# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one file that goes to hosts: how it is built, and that it runs on every Python they may have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = TOP / "scripts/build-zipapp"


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def find_python(version: str) -> str:
    """The path of a Python of that version, from PATH or from pyenv; skips the test where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in filter(
        None, [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    ):
        # A pyenv shim may lead nowhere; one that works names the real path.
        asked = run(candidate, "-c", "import sys; print(sys.executable)")
        if asked.returncode == 0:
            return asked.stdout.strip()
    pytest.skip(f"no Python {version} on this machine")


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "besom.pyz"
    built = run(sys.executable, BUILD, "--output", path)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return path


def test_an_installed_collection_builds_the_same_bytes(zipapp: Path, tmp_path: Path) -> None:
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    packed = run(galaxy, "collection", "build", "--output-path", tmp_path, cwd=TOP)
    assert packed.returncode == 0, packed.stderr
    (tarball,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(tarball) as archive:
        archive.extractall(tmp_path / "collection", filter="data")
    # What was fetched once is not fetched again.
    shutil.copytree(TOP / ".cache/zipapp", tmp_path / "cache/besom", ignore=shutil.ignore_patterns("*.pyz"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    built = run(
        sys.executable, tmp_path / "collection/scripts/build-zipapp", env=environment, cwd="/", umask=0o077
    )
    assert built.returncode == 0, built.stderr
    assert Path(built.stdout.rstrip("\n")).read_bytes() == zipapp.read_bytes()


def test_a_second_build_leaves_the_file_alone(zipapp: Path) -> None:
    before = zipapp.stat()
    assert run(sys.executable, BUILD, "--output", zipapp).returncode == 0
    after = zipapp.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_it_is_for_the_python_that_was_named(tmp_path: Path) -> None:
    path = tmp_path / "new/besom.pyz"
    assert run(sys.executable, BUILD, "--python", "/opt/python/bin/python3", "--output", path).returncode == 0
    assert path.read_bytes().startswith(b"#!/opt/python/bin/python3\nPK")
    assert path.stat().st_mode & 0o777 == 0o755


def test_nothing_in_it_is_compiled(zipapp: Path) -> None:
    with zipfile.ZipFile(zipapp) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_it_runs_with_nothing_else_installed(version: str, zipapp: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for age in range(5):
        (store / f"{age}").write_text("x")
        os.utime(store / f"{age}", (1e9 - age, 1e9 - age))
    # For the bar on a terminal as well, everything that it needs is in the file.
    imports = "import portalocker, rich.progress, sh, yaml, inotify_simple; assert not yaml.__with_libyaml__"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(zipapp)}
    python = find_python(version)
    assert run(python, "-S", "-W", "error", "-c", imports, env=environment).stderr == ""

    config = tmp_path / "besom.yml"
    config.write_text(f"stores: [{{name: it, path: {store}, layout: files, max_entries: 2}}]\n")
    pruned = run(python, "-IS", "-W", "error", zipapp, "--config", config, "--json", "prune", "it")
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert json.loads(pruned.stdout)["removed"]["entries"] == 3
    assert {path.name for path in store.iterdir()} == {"0", "1"}


COMPILED = """
import collections, runpy, sys
compiled = collections.Counter()
sys.addaudithook(lambda event, about: compiled.update([about[1]] if event == "compile" else []))
app, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(app, run_name="__main__")
finally:
    import besom.units, besom_host
    print(besom.units.__file__, besom_host.__file__, sep="\\n")
    for name, times in compiled.items():
        print(times, name)
"""


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_what_is_imported_is_compiled_once(version: str, zipapp: Path) -> None:
    """Twice, as Python does it by itself, is a third of what a short command takes."""
    ran = run(find_python(version), "-IS", "-c", COMPILED, zipapp, "config", "check", "--config", os.devnull)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert {f"{zipapp}/besom/units.py", f"{zipapp}/besom_host/__init__.py"} <= set(lines)
    times = dict(line.split(" ", 1)[::-1] for line in lines if line[0].isdigit() and str(zipapp) in line)
    before = {
        "__main__.py",
        "besom_host/__init__.py",
        "besom_host/start.py",
        "besom/__init__.py",
        "besom/zipped.py",
    }
    later = {name: count for name, count in times.items() if name.replace(f"{zipapp}/", "") not in before}
    assert len(later) > 20
    assert set(later.values()) == {"1"}


def test_a_python_that_is_too_old_is_told_so(zipapp: Path) -> None:
    old = run(find_python("3.8"), zipapp, "--version")
    assert old.returncode == 1
    assert old.stderr == "besom: this is Python 3.8, and besom needs 3.9 or newer.\n"


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_a_daemon_goes_on_while_its_file_is_replaced(version: str, zipapp: Path, tmp_path: Path) -> None:
    """Between the copying of a new version and the restart, the old one still works, reloads and drains."""
    python, mine, store = find_python(version), tmp_path / "besom.pyz", tmp_path / "store"
    shutil.copy(zipapp, mine)
    store.mkdir()
    config = tmp_path / "besom.yml"
    config.write_text(
        f"stores: [{{name: it, path: {store}, layout: files, max_entries: 2}}]\n"
        f"daemon: {{state_dir: {tmp_path}/state}}\n"
        f"log: {{file: {tmp_path}/log}}\n"
    )

    def daemon(program: Path, *action: str) -> dict[str, Any]:
        done = run(python, "-IS", program, "--config", config, "--json", "daemon", *action)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    first = daemon(mine, "start")
    try:
        daemon(zipapp, "wait", "--timeout", "60s")
        new = tmp_path / "new"
        new.write_bytes(b"another version")
        new.replace(mine)
        for number in range(5):
            (store / str(number)).write_text("x")
        daemon(zipapp, "trigger")
        assert daemon(zipapp, "wait", "--timeout", "60s")["last_run"]["removed_entries"] == 3
        assert daemon(zipapp, "reload")["pid"] == first["pid"]
    finally:
        assert daemon(zipapp, "stop")["state"] == "stopped"
    assert "error" not in (tmp_path / "log").read_text()
