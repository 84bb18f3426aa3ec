# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tar and zip write comes out as it went in; what is hostile or damaged is refused and harms nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besom.archive import BadArchive
from besom.errors import BesomError, Interrupted, NoSpace
from besom.extract import Extracted, Limits, extract
from besom.run import Run
from besom.shutdown import Shutdown

# Before any clock that tests run by, so that it is kept.
THEN = 1_500_000_000


class Box:
    """An empty directory to extract into; beside it lies what nothing may reach."""

    def __init__(self, base: Path) -> None:
        self.base, self.path = base, base / "box/inner"

    def extract(self, archive: bytes, run: Run | None = None, **options: Any) -> Extracted:
        self.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return extract(io.BytesIO(archive), fd, str(self.path), run or Run(), **options)
        finally:
            os.close(fd)

    def tree(self) -> dict[str, Any]:
        """By path: the content of a file, the target of a link, None for a directory."""
        return {
            str(path.relative_to(self.path)): os.readlink(path)
            if path.is_symlink()
            else None
            if path.is_dir()
            else path.read_bytes()
            for path in self.path.rglob("*")
        }

    def refused(self, archive: bytes, match: str, **options: Any) -> None:
        with pytest.raises(BadArchive, match=match):
            self.extract(archive, **options)
        assert sorted(path.name for path in self.base.iterdir()) == ["box"]
        assert [path.name for path in (self.base / "box").iterdir()] == ["inner"]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o644) -> Any:
    one = tarfile.TarInfo(name)
    one.type, one.linkname, one.size, one.mode, one.mtime = kind, link, size, mode, THEN
    return one


def tar(*members: Any, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members: (name, content) for a file, or a TarInfo."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for one in members:
            if isinstance(one, tuple):
                archive.addfile(info(one[0], size=len(one[1])), io.BytesIO(one[1]))
            else:
                archive.addfile(one)
    return stream.getvalue()


def zipped(*members: Any) -> bytes:
    """A zip file of members: (name, content), or (name, content, mode with its type)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, *mode in members:
            one = zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0))
            one.create_system = 3
            one.compress_type = zipfile.ZIP_DEFLATED
            one.external_attr = (mode or [stat.S_IFREG | 0o644])[0] << 16
            archive.writestr(one, content)
    return stream.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "two gz": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "two bz2": lambda data: bz2.compress(data[:700]) + bz2.compress(data[700:]),
    "two xz, padded": lambda data: lzma.compress(data[:700]) + bytes(8) + lzma.compress(data[700:]),
}


@pytest.mark.parametrize(
    ("packed", "form"),
    [
        *((packed, tarfile.PAX_FORMAT) for packed in PACKED),
        ("gz", tarfile.USTAR_FORMAT),
        ("xz", tarfile.GNU_FORMAT),
    ],
)
def test_a_tar_comes_out_as_it_went_in(box: Box, packed: str, form: int) -> None:
    large = os.urandom(20_000) + bytes(280_000)
    name = "long/" + "/".join(["d" * 60] * 2) + "/" + "f" * 60
    members = (
        info("app", tarfile.DIRTYPE, mode=0o750),
        ("app/large", large),
        ("app/empty", b""),
        info("app/run", mode=0o777),
        ("./app//sub/./file", b"x" * 512),
        info("app/sub/up", tarfile.SYMTYPE, "../large"),
        info("app/hard", tarfile.LNKTYPE, "app/large"),
        (name, b"deep"),
        ("app/ünï ☃\n", b"text"),
    )
    made = box.extract(PACKED[packed](tar(*members, form=form)))
    tree = box.tree()
    assert {path: content for path, content in tree.items() if content is not None} == {
        "app/large": large,
        "app/empty": b"",
        "app/run": b"",
        "app/sub/file": b"x" * 512,
        "app/sub/up": "../large",
        "app/hard": large,
        name: b"deep",
        "app/ünï ☃\n": b"text",
    }
    assert made == Extracted(len(tree), 300_000 + 512 + 4 + 4)
    assert (box.path / "app/hard").samefile(box.path / "app/large")
    assert (box.path / "app/large").stat().st_mtime == THEN
    modes = {path: stat.S_IMODE((box.path / path).stat().st_mode) for path in ("app", "app/run", "app/sub")}
    # Nobody else may write, whatever the archive says.
    assert modes == {"app": 0o750, "app/run": 0o755, "app/sub": 0o755}


def test_a_zip_comes_out_as_it_went_in(box: Box) -> None:
    large = os.urandom(20_000) + bytes(280_000)
    made = box.extract(
        zipped(
            ("app/", b"", stat.S_IFDIR | 0o750),
            ("app/large", large),
            ("app/run", b"#!", stat.S_IFREG | 0o755),
            ("app/link", "sub/☃".encode(), stat.S_IFLNK | 0o777),
            ("app/sub/☃", b"snow"),
        )
    )
    assert box.tree() == {
        "app": None,
        "app/large": large,
        "app/run": b"#!",
        "app/link": "sub/☃",
        "app/sub": None,
        "app/sub/☃": b"snow",
    }
    assert made == Extracted(6, 300_000 + 2 + 4)
    assert stat.S_IMODE((box.path / "app").stat().st_mode) == 0o750
    assert (box.path / "app/run").stat().st_mode & 0o777 == 0o755
    assert (box.path / "app/large").stat().st_mtime == THEN


def test_what_gnu_tar_writes_comes_out(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "app/deep" / ("x" * 200)).mkdir(parents=True)
    (source / "app/deep" / ("x" * 200) / "file").write_bytes(b"1")
    (source / "app/link").symlink_to("deep/" + "y" * 150)
    for form in ("gnu", "pax", "ustar", "v7"):
        parts = ["app"] if form in ("gnu", "pax") else ["app/deep", "--exclude=file"]
        done = subprocess.run(
            ["tar", "-C", source, f"--format={form}", "-cf", "-", *parts], capture_output=True, check=False
        )
        one = Box(tmp_path / form)
        one.extract(done.stdout)
        assert "app/deep" in one.tree()
    assert Box(tmp_path / "pax").tree() == Box(tmp_path / "gnu").tree()
    assert Box(tmp_path / "gnu").tree()["app/link"] == "deep/" + "y" * 150


ZSTD = [*(["compression.zstd"] if sys.version_info >= (3, 14) else []), "backports.zstd", "zstandard"]


def test_without_a_library_for_zst_one_is_named(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression", "compression.zstd", "backports.zstd", "pyzstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BesomError, match="install the Python package zstandard"):
        box.extract(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize("name", ZSTD)
def test_zst_is_read_with_each_library(box: Box, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    compress = pytest.importorskip(name).compress
    for other in {"compression.zstd", "pyzstd", *ZSTD} - {name}:
        monkeypatch.setitem(sys.modules, other, None)
    # A window of 3.75 TiB (RFC 8878, 3.1.1.1.2).
    box.refused(b"\x28\xb5\x2f\xfd\x00\xff" + bytes(600), "damaged")
    data = tar(("a", b"x" * 1_000_000), ("b", content := os.urandom(200_000)))
    for number, packed in enumerate((compress(data), compress(data[:700]) + compress(data[700:]))):
        one = Box(box.base / f"{number}")
        one.extract(packed)
        assert one.tree() == {"a": b"x" * 1_000_000, "b": content}
        Box(box.base / f"bomb{number}").refused(packed, "raise max_size", limits=Limits(bytes=1_100_000))
        for end in range(0, len(packed), len(packed) // 20):
            with pytest.raises(BadArchive):
                Box(box.base / f"{number}-{end}").extract(packed[:end])


def test_the_one_directory_at_the_top_is_left_out(box: Box) -> None:
    made = box.extract(
        tar(
            info("app-1.0", tarfile.DIRTYPE),
            ("app-1.0/bin/run", b"x"),
            info("app-1.0/same", tarfile.LNKTYPE, "app-1.0/bin/run"),
            info("app-1.0/to", tarfile.SYMTYPE, "bin/run"),
        ),
        strip=True,
    )
    assert box.tree() == {"bin": None, "bin/run": b"x", "same": b"x", "to": "bin/run"}
    assert made.entries == 4


@pytest.mark.parametrize("members", [(("a/x", b""), ("b/x", b"")), (("a/x", b""), ("y", b"")), (("y", b""),)])
def test_there_must_be_one_directory_to_leave_out(box: Box, members: Any) -> None:
    box.refused(tar(*members), "not in the one directory", strip=True)


def test_what_is_appended_replaces_a_file_and_no_other_name_of_it(box: Box) -> None:
    box.extract(tar(("a", b"old"), info("b", tarfile.LNKTYPE, "a"), ("a", b"new")))
    assert box.tree() == {"a": b"new", "b": b"old"}


SYMLINK, LINK, DIRECTORY = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
HOSTILE: dict[str, tuple[tuple[Any, ...], str]] = {
    "absolute": ((("/tmp/besom-test-evil", b"x"),), "an absolute name"),
    "up": ((("../evil", b"x"),), "leads out of it"),
    "up later": ((("a/../../evil", b"x"),), "leads out of it"),
    "up and back": ((("a/../b", b"x"),), "leads out of it"),
    "directory up": ((info("../evil", DIRECTORY),), "leads out of it"),
    "link up": ((info("a", SYMLINK, "../evil"),), "a link that leads out"),
    "link to the top's parent": ((info("a", SYMLINK, ".."),), "a link that leads out"),
    "link to an absolute name": ((info("a", SYMLINK, "/etc/passwd"),), "a link to an absolute name"),
    "link behind a link": (
        (info("a/b/c", SYMLINK, "../.."), info("d", SYMLINK, "a/b/c/..")),
        "holds d, a link that leads out",
    ),
    "link through what comes later": (
        (info("d", SYMLINK, "a/b/c/../x"), info("a/b/c", SYMLINK, "../..")),
        "holds d, a link that leads out",
    ),
    "link up from what is missing": ((info("a", SYMLINK, "none/../.."),), "a link that leads out"),
    "links in a circle": ((info("a", SYMLINK, "b"), info("b", SYMLINK, "a")), "in a circle"),
    "empty link": ((info("a", SYMLINK, ""),), "a link to what is no name"),
    "through a link": ((info("a", SYMLINK, "."), ("a/evil", b"x")), "a way through"),
    "through a link out": ((info("a", SYMLINK, ".."), ("a/evil", b"x")), "a way through"),
    "through a file": ((("a", b"x"), ("a/b", b"x")), "a way through"),
    "file over a link": ((info("a", SYMLINK, "../evil"), ("a", b"x")), "a name that it holds already"),
    "file over a directory": ((info("a", DIRECTORY), ("a", b"x")), "a name that it holds already"),
    "link over a file": ((("a", b"x"), info("a", SYMLINK, "b")), "a name that it holds already"),
    "hard link out": ((info("a", LINK, "../../outside"),), "leads out of it"),
    "hard link to an absolute name": ((info("a", LINK, "/etc/passwd"),), "an absolute name"),
    "hard link to nothing": ((info("a", LINK, "b"),), "a link to what is no file"),
    "hard link to a link": ((info("b", SYMLINK, "c"), info("a", LINK, "b")), "a link to what is no file"),
    "hard link through a link": (
        (("d/x", b"x"), info("b", SYMLINK, "d"), info("a", LINK, "b/x")),
        "a link to what is no file",
    ),
    "hard link to a directory": ((info("b", DIRECTORY), info("a", LINK, "b")), "a link to what is no file"),
    "device": ((info("a", tarfile.BLKTYPE),), "a device"),
    "terminal": ((info("a", tarfile.CHRTYPE),), "a device"),
    "fifo": ((info("a", tarfile.FIFOTYPE),), "a FIFO"),
    "sparse": ((info("a", tarfile.GNUTYPE_SPARSE),), "a sparse file"),
    "unknown kind": ((info("a", b"Q"),), "of a kind that besom does not know"),
    "set-user-id": ((info("a", mode=0o4755),), "a set-id program"),
    "set-group-id": ((info("a", mode=0o2755),), "a set-id program"),
    "reserved": (((".mark", b"x"),), "besom's own"),
    "long name": ((("a/" + "b" * 300, b""),), "too long a name"),
    "very long name": ((("a/" * 3000 + "b", b""),), "no name of a file"),
    "nothing": ((), "neither a tar"),
    "only itself": ((info(".", DIRECTORY),), "is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused(box: Box, name: str) -> None:
    members, match = HOSTILE[name]
    box.refused(tar(*members), match, reserved=".mark")


LINKED = stat.S_IFLNK | 0o777
HOSTILE_ZIPS: dict[str, tuple[tuple[Any, ...], str]] = {
    "absolute": ((("/tmp/besom-test-evil", b"x"),), "an absolute name"),
    "up": ((("a/../../evil", b"x"),), "leads out of it"),
    "link up": ((("a", b"../evil", LINKED),), "a link that leads out"),
    "link to an absolute name": ((("a", b"/etc", LINKED),), "a link to an absolute name"),
    "through a link": ((("a", b".", LINKED), ("a/b", b"x")), "a way through"),
    "file over a link": ((("a", b"b", LINKED), ("a", b"x")), "a name that it holds already"),
    "long link": ((("a", b"b" * 5000, LINKED),), "too long a link"),
    "link to no text": ((("a", b"\xff", LINKED),), "not UTF-8"),
    "device": ((("a", b"", stat.S_IFCHR | 0o600),), "no file"),
    "fifo": ((("a", b"", stat.S_IFIFO | 0o600),), "no file"),
    "set-user-id": ((("a", b"", stat.S_IFREG | 0o4755),), "a set-id program"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE_ZIPS)
def test_a_hostile_zip_is_refused(box: Box, name: str) -> None:
    members, match = HOSTILE_ZIPS[name]
    box.refused(zipped(*members), match)


def test_an_encrypted_zip_is_refused(box: Box) -> None:
    data = bytearray(zipped(("a", b"x")))
    for start in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        data[start] |= 1
    box.refused(bytes(data), "encrypted")


def test_a_name_that_is_no_text_is_refused(box: Box) -> None:
    plain = tar(("evil-name", b""), form=tarfile.USTAR_FORMAT).replace(b"evil-name", b"evil\xff\xfeame")
    box.refused(resummed(plain), "not UTF-8")


def resummed(archive: bytes) -> bytes:
    """The tar with the checksum of its first header set right."""
    data = bytearray(archive)
    data[148:156] = b" " * 8
    data[148:155] = b"%06o\0" % sum(data[:512])
    return bytes(data)


def test_set_id_bits_are_kept_where_they_are_allowed(box: Box) -> None:
    box.extract(tar(info("a", mode=0o4755)), limits=Limits(setid=True))
    assert stat.S_IMODE((box.path / "a").stat().st_mode) == 0o4755


BOMBS: dict[str, Callable[[], bytes]] = {
    "file in gz": lambda: gzip.compress(tar(("a", bytes(3_000_000)))),
    "file in bz2": lambda: bz2.compress(tar(("a", bytes(3_000_000)))),
    "file in xz": lambda: lzma.compress(tar(("a", bytes(3_000_000)))),
    "files": lambda: gzip.compress(tar(*((f"{i}", bytes(100_000)) for i in range(30)))),
    "padding behind the end": lambda: gzip.compress(tar(("a", b"")) + bytes(3_000_000)),
    "comments": lambda: gzip.compress(comments(3)),
    "zip": lambda: zipped(("a", bytes(3_000_000))),
    "zip that lies": lambda: lying(zipped(("a", bytes(3_000_000)))),
}


def comments(count: int) -> bytes:
    """A tar of headers that describe nothing."""
    record = b"1000000 comment=".ljust(999_999, b"x") + b"\n"
    block = info("x", tarfile.XGLTYPE, size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    return (block + record + bytes(-len(record) % 512)) * count + tar(("a", b""))


def lying(archive: bytes) -> bytes:
    """The zip file with a declared size that its member exceeds."""
    return archive.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 2_500_000))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_at_the_limit_of_bytes(box: Box, bomb: str) -> None:
    archive = BOMBS[bomb]()
    assert len(archive) < 200_000
    box.refused(archive, "unpacks to more than 1.9 MiB", limits=Limits(bytes=2_000_000))
    written = sum(path.stat().st_size for path in box.path.rglob("*"))
    assert written <= 2_000_000


def test_what_a_zip_declares_must_be_what_comes_out(box: Box) -> None:
    box.refused(lying(zipped(("a", bytes(3_000_000)))), "damaged")


@pytest.mark.parametrize(
    "archive",
    [
        lambda: tar(*((f"{i}", b"") for i in range(21))),
        lambda: tar(("/".join("abcdefghijklmnopqrstu"), b"")),
        lambda: zipped(*((f"{i}/", b"") for i in range(21))),
    ],
)
def test_a_bomb_ends_at_the_limit_of_entries(box: Box, archive: Callable[[], bytes]) -> None:
    box.refused(archive(), "more than 20 entries", limits=Limits(entries=20))
    assert len(box.tree()) <= 21


def test_links_that_take_too_long_to_follow_are_refused(box: Box) -> None:
    # Each leads through all those before it, and each time a long way down and up.
    way = "a/" * 300 + "../" * 300
    members = [info(f"{i}", SYMLINK, f"{way}{i - 1}") for i in range(1, 30)]
    box.refused(tar(("a/" * 300 + "0", b""), *members), "more links than can be followed")


@pytest.mark.parametrize("packed", ["plain", "gz", "bz2", "xz"])
def test_what_is_cut_off_anywhere_is_refused(box: Box, packed: str) -> None:
    archive = PACKED[packed](tar(("a", b"x" * 2000), ("b", os.urandom(2000))))
    # A plain tar may lack some of the zeros behind its end.
    ends = range(0, 5600, 400) if packed == "plain" else range(0, len(archive), len(archive) // 20)
    for end in ends:
        with pytest.raises(BadArchive):
            Box(box.base / f"{end}").extract(archive[:end])


@pytest.mark.parametrize("data", [b"", b"x", b"PK\3\4", b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh9", b"x" * 5000])
def test_what_is_no_archive_is_refused(box: Box, data: bytes) -> None:
    box.refused(data, "neither|damaged|ends too early")


def test_an_xz_that_wants_too_much_memory_is_refused(box: Box) -> None:
    data = bytearray(lzma.compress(tar(("a", b"")), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]))
    # The size of the dictionary is one byte of the block's header, which ends in its CRC.
    start, end = 12, 12 + data[12] * 4
    data[start + 4] = 34  # 512 MiB
    data[end : end + 4] = struct.pack("<I", zlib.crc32(data[start:end]))
    assert lzma.decompress(data)
    box.refused(bytes(data), "damaged")


def test_a_zip_with_too_many_entries_is_refused_before_it_is_read_whatever_it_tells(box: Box) -> None:
    data = bytearray(zipped(*((f"{i}", b"") for i in range(40))))
    end = data.index(b"PK\5\6")
    data[end + 8 : end + 12] = struct.pack("<HH", 1, 1)
    box.refused(bytes(data), "more than 20 entries", limits=Limits(entries=20))
    assert box.tree() == {}


def test_a_zip_with_too_long_a_table_of_contents_is_refused(box: Box) -> None:
    data = bytearray(zipped(("a", b"x")))
    end = data.index(b"PK\5\6")
    size, offset = struct.unpack("<II", data[end + 12 : end + 20])
    table = 33 * 1024**2
    data[end:end] = bytes(table)
    data[end + table + 12 : end + table + 20] = struct.pack("<II", size + table, offset)
    box.refused(bytes(data), "too long a table of contents")


def test_a_signal_ends_it_between_two_pieces(box: Box) -> None:
    shutdown = Shutdown()
    run = Run(shutdown=shutdown, progress=lambda phase, done, total: shutdown.request() if done else None)
    with pytest.raises(Interrupted):
        box.extract(tar(("a", bytes(2_000_000)), ("b", b"")), run)
    assert "b" not in box.tree()


@pytest.mark.root
def test_a_full_disk_is_said_as_such(box: Box, mount: Callable[..., None]) -> None:
    box.path.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=1m", "besom-test", box.path)
    with pytest.raises(NoSpace, match="No space left on device; make room"):
        box.extract(tar(("a", os.urandom(2_000_000))))


WORDS = st.sampled_from(["a", "b", "c", "..", ".", "", "a", "b"])
NAMES = st.lists(WORDS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, SYMLINK, SYMLINK, LINK, DIRECTORY])


@given(members=st.lists(st.tuples(NAMES, KINDS, NAMES), min_size=1, max_size=8), strip=st.booleans())
def test_whatever_links_and_names_there_are_nothing_gets_out(
    members: list[tuple[str, bytes, str]], strip: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = Box(tmp_path_factory.mktemp("wild"))
    archive = tar(*(info(name, kind, link) for name, kind, link in members))
    done = False
    with suppress(BadArchive):
        box.extract(archive, strip=strip)
        done = True
    assert [path for path in box.base.rglob("*") if box.path not in path.parents] == [
        box.path.parent,
        box.path,
    ]
    if done:
        for path in box.path.rglob("*"):
            assert box.path in (real := Path(os.path.realpath(path))).parents or real == box.path


def valid() -> Iterator[bytes]:
    members = (
        ("a/b", b"x" * 700),
        info("l", SYMLINK, "a/b"),
        info("h", LINK, "a/b"),
        ("n" * 80 + "/" + "m" * 80, b"y"),
    )
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive = tar(*members, form=form)[:6144]
        yield archive
        yield gzip.compress(archive, mtime=0)
    yield lzma.compress(tar(*members))
    yield bz2.compress(tar(*members))
    yield zipped(("a/b", b"x" * 700), ("l", b"a/b", LINKED))


@given(
    archive=st.sampled_from(list(valid())),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=4),
)
def test_whatever_is_changed_in_an_archive_it_is_read_or_refused(
    archive: bytes,
    changes: list[tuple[float, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(archive)
    for where, new in changes:
        start = int(where * len(data))
        data[start : start + len(new)] = new
    box = Box(tmp_path_factory.mktemp("changed"))
    with suppress(BadArchive):
        box.extract(bytes(data), limits=Limits(bytes=10_000_000))
    assert [path.name for path in box.base.iterdir()] == ["box"]


def header(kind: bytes, data: bytes) -> bytes:
    return info("x", kind, size=len(data)).tobuf(tarfile.USTAR_FORMAT) + data.ljust(
        -(-len(data) // 512) * 512, b"\0"
    )


def test_keys_that_nobody_uses_take_no_memory(box: Box) -> None:
    records = [
        b"".join(b"20 %012d=abc\n" % (start + n) for n in range(1000)) for start in range(0, 50_000, 1000)
    ]
    archive = b"".join(header(b"g", data) for data in records) + tar(("a", b"x"))
    tracemalloc.start()
    try:
        box.extract(archive)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_header_that_describes_nothing_is_where_an_archive_was_cut(box: Box) -> None:
    box.refused(tar(("a", b"x"))[:1024] + header(b"x", b"9 path=b\n") + bytes(1024), "ends too early")


def test_a_zip_that_wants_too_much_memory_is_refused(box: Box) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 1000)
    archive_ = bytearray(stream.getvalue())
    assert box.extract(bytes(archive_)).entries == 1
    # A local header of 30 bytes, the name, two bytes each of version and length, one of properties.
    archive_[36:40] = b"\xff" * 4
    Box(box.base.parent / "second").refused(bytes(archive_), "too much memory")


def test_a_signal_ends_it_also_where_nothing_comes_out(box: Box) -> None:
    class Stream(io.BytesIO):
        pieces = 0

        def read(self, size: int | None = -1) -> bytes:
            self.pieces += 1
            if self.pieces == 3:
                run.shutdown.request(signal.SIGTERM)
            return super().read(size)

    run, stream = Run(), Stream(gzip.compress(b"") * 100_000)
    box.path.mkdir(parents=True)
    fd = os.open(box.path, os.O_RDONLY)
    try:
        with pytest.raises(Interrupted):
            extract(stream, fd, str(box.path), run)
    finally:
        os.close(fd)
    assert stream.pieces == 3
