# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""That the bench can be run: every contest, small. What the figures are is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
BENCH = TOP / "bench"
CONTESTS = {
    *("age", "size", "trees", "sessions", "idle", "memory", "drain", "daemon", "startup", "lock"),
    *("module", "loop", "fleet", "sync", "get_url"),
}


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [BENCH / "run", *map(str, words)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_contest_runs_and_every_contender_does_its_work(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = bench("--quick", "--where", tmp_path, "--json", file)
    assert done.returncode == 0, done.stderr
    tables = json.loads(file.read_text())["tables"]
    assert {table["contest"] for table in tables} == CONTESTS
    assert all(table["title"] in done.stdout for table in tables)
    # The trees, and the copy of besom, are gone.
    assert list(tmp_path.iterdir()) == [file]

    # What --record makes of it; it is not for a test to write into the checkout.
    drawn = subprocess.run(
        [sys.executable, "-c", DRAW, BENCH, file], capture_output=True, text=True, check=True
    ).stdout
    picture = ElementTree.fromstring(drawn)  # noqa: S314 (it is our own)
    compared = [table for table in tables if table["compared"] == "wall"]
    bars = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == len(compared)


DRAW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from chart import chart
print(chart(json.load(open(sys.argv[2]))["tables"]))
"""


@pytest.mark.parametrize(
    "words", ["--files 0", "--only nothing", "--fs vfat", "--rounds many", "--quick --record"]
)
def test_what_cannot_be_measured_is_a_usage_error(words: str) -> None:
    refused = bench(*words.split())
    assert refused.returncode == 2
    assert words.split()[0] in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
