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


def test_a_python_that_is_too_old_is_told_so(zipapp: Path) -> None:
    old = run(find_python("3.8"), zipapp, "--version")
    assert old.returncode == 1
    assert old.stderr == "besom: this is Python 3.8, and besom needs 3.9 or newer.\n"
