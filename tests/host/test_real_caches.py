# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real caches of real tools, pruned to half: the tool still works, and still finds what stayed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .conftest import Done, need
from .web import Web, serve

Besom = Callable[..., Done]
PACKAGES = 16
NOISE = 65536  # bytes in each package that do not compress


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user without any settings, in an empty home."""
    (tmp_path / "home").mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "LC_ALL": "C.UTF-8"}


def prune_to_half(besom: Besom, cache: Path, order: str = "oldest") -> None:
    """To half its size and not one entry further; the plan's promise is what is freed."""
    largest = max(path.stat().st_blocks * 512 for path in cache.rglob("*") if path.is_file())
    size = besom("prune", cache, "--layout", "files", "--max-size", "1E").report["bytes_before"]
    done = besom("prune", cache, "--layout", "files", "--max-size", str(size // 2), "--order", order)
    assert done.status == 0, done.stderr
    assert size // 2 - largest < done.report["bytes_after"] <= size // 2
    assert done.report["planned"] == done.report["removed"]
    assert done.report["freed_bytes"] == size - done.report["bytes_after"]


def run(*command: str | Path, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ccache(besom: Besom, tmp_path: Path, environment: dict[str, str]) -> None:
    ccache, gcc = need("ccache"), need("gcc")
    cache, log = tmp_path / "cache", tmp_path / "log"
    # The counters in the cache may be pruned like anything else: count in a log beside it.
    env = {**environment, "CCACHE_DIR": str(cache), "CCACHE_STATSLOG": str(log), "CCACHE_NOINODECACHE": "1"}
    for number in range(PACKAGES):
        noise = ", ".join(map(str, os.urandom(NOISE)))
        (tmp_path / f"{number}.c").write_text(f"const unsigned char noise_{number}[] = {{ {noise} }};\n")

    def compile_all() -> tuple[list[bytes], int]:
        """All objects, and how many of them came from the cache."""
        log.write_text("")
        for number in range(PACKAGES):
            run(ccache, gcc, "-c", f"{number}.c", "-o", f"{number}.o", env=env, cwd=tmp_path)
        lines = log.read_text().splitlines()
        hits = lines.count("direct_cache_hit") + lines.count("preprocessed_cache_hit")
        assert hits + lines.count("cache_miss") == PACKAGES
        return [(tmp_path / f"{number}.o").read_bytes() for number in range(PACKAGES)], hits

    objects, hits = compile_all()
    assert hits == 0
    prune_to_half(besom, cache)
    again, hits = compile_all()
    assert again == objects
    assert PACKAGES // 4 <= hits <= PACKAGES * 3 // 4
    assert compile_all() == (objects, PACKAGES)


def npm_package(web: Web, name: str) -> None:
    """Put a package into the registry: its document, and the tarball that this names."""
    manifest = {"name": name, "version": "1.0.0"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in (("package.json", json.dumps(manifest).encode()), ("noise", os.urandom(NOISE))):
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = packed.getvalue()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    dist = {"tarball": f"{web.url}/{name}/-/{name}-1.0.0.tgz", "integrity": integrity}
    versions = {"1.0.0": {**manifest, "dist": dist}}
    document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": versions}
    web.files[f"/{name}"] = ("application/json", json.dumps(document).encode())
    web.files[f"/{name}/-/{name}-1.0.0.tgz"] = ("application/octet-stream", content)


def test_npm(besom: Besom, tmp_path: Path, environment: dict[str, str], web: Web) -> None:
    npm = need("npm")
    names = [f"besom-test-{number}" for number in range(PACKAGES)]
    for name in names:
        npm_package(web, name)
    cache = tmp_path / "cache"
    if os.statvfs(tmp_path).f_flag & 1024:
        pytest.skip("mounted noatime: there is no last use to go by")

    def install(folder: str) -> int:
        """Install all packages into a new project; returns how many had to be downloaded."""
        project = tmp_path / folder
        project.mkdir()
        (project / "package.json").write_text(json.dumps({"dependencies": dict.fromkeys(names, "1.0.0")}))
        web.asked.clear()
        options = ["--registry", web.url, "--cache", cache, "--no-audit", "--no-fund", "--no-update-notifier"]
        run(npm, "install", *options, env=environment, cwd=project)
        for name in names:
            assert (project / "node_modules" / name / "noise").stat().st_size == NOISE
        return sum(path.endswith(".tgz") for path in web.asked)

    assert install("first") == PACKAGES
    assert install("cached") == 0
    # npm reads an index, then the content it names, and fails when only the content is gone. By last use
    # the index goes first; by mtime it may be the other way round, and the next install fails (ENOENT).
    prune_to_half(besom, cache / "_cacache", order="lru")
    assert PACKAGES // 4 <= install("second") <= PACKAGES * 3 // 4
    assert install("third") == 0
    run(npm, "cache", "verify", "--cache", cache, env=environment, cwd=tmp_path)
    install("verified")


def pip_package(web: Web, name: str) -> None:
    """Put a wheel into the index."""
    wheel = f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{name}.bin", os.urandom(NOISE))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = packed.getvalue()
    link = f'<a href="/{wheel}#sha256={hashlib.sha256(content).hexdigest()}">{wheel}</a>'
    web.files[f"/simple/{name}/"] = ("text/html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode())
    web.files[f"/{wheel}"] = ("application/octet-stream", content)


def test_pip(besom: Besom, tmp_path: Path, environment: dict[str, str], web: Web) -> None:
    names = [f"besom_test_{chr(ord('a') + number)}" for number in range(PACKAGES)]
    for name in names:
        pip_package(web, name)
        # pip asks for the normalised name, PEP 503.
        web.files[f"/simple/{name.replace('_', '-')}/"] = web.files.pop(f"/simple/{name}/")
    cache = tmp_path / "cache"

    def install(folder: str) -> int:
        """Install all packages anew; returns how many had to be downloaded."""
        web.asked.clear()
        options = ["--isolated", "--disable-pip-version-check", "--no-input", "--cache-dir", cache]
        # Only what comes from a trusted host, or over TLS, is cached.
        trusted = ["--trusted-host", web.url.partition("//")[2]]
        index = ["--index-url", f"{web.url}/simple/", "--target", tmp_path / folder, "--no-compile"]
        run(
            sys.executable,
            "-m",
            "pip",
            "install",
            *options,
            *trusted,
            *index,
            *names,
            env=environment,
            cwd=tmp_path,
        )
        for name in names:
            assert (tmp_path / folder / f"{name}.bin").stat().st_size == NOISE
        return sum(path.endswith(".whl") for path in web.asked)

    assert install("first") == PACKAGES
    assert install("cached") == 0
    prune_to_half(besom, cache)
    assert PACKAGES // 4 <= install("second") <= PACKAGES * 3 // 4
    assert install("third") == 0
