# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The coverage-guided driver of wild.py: python -m tests.faults.fuzz DIRECTORY SEED RUNS SECONDS [TARGET]...

atheris (libFuzzer) keeps what reaches something new in besom and goes on from there. It runs each of the
targets for RUNS inputs or SECONDS, whichever ends first, and ends at the first finding with status 77.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["besom", "besom_host", "yaml"]):
    from .wild import judge, swollen
    from .wild_planted import PLANTED
    from .wild_targets import TARGETS

# Of so many inputs one is tried once more with a piece of it as often as fits: most, longer than those that
# it keeps and goes on from.
_SWELL, _MOST = 40, 4096


def main() -> None:
    directory, seed, runs, seconds, name = sys.argv[1:]
    target = {**TARGETS, **PLANTED}[name]
    base = Path(directory)
    corpus = base.with_name(base.name + ".corpus")
    for path in (base, corpus):
        path.mkdir()
    for number, one in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(one)
    words = base.with_name(base.name + ".words")
    escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
    words.write_text("".join(f'"{one}"\n' for one in escaped))

    def change(data: bytes, most: int, _seed: int) -> bytes:
        return target.mend(atheris.Mutate(data, most))[:most]

    def one(data: bytes) -> None:
        chance = random.Random(data)  # noqa: S311
        try:
            judge(target, data, base)
            if data and chance.randrange(_SWELL) == 0:
                length = chance.choice((1, 1, 2, 3, 5, 8, 20, 512))
                data = swollen(data, chance.randrange(len(data)), length, target.most)
                judge(target, data, base)
        except BaseException:
            base.with_name(base.name + ".finding").write_bytes(data)
            raise

    atheris.Setup(
        [
            *(sys.argv[0], str(corpus), f"-seed={seed}", f"-runs={runs}", f"-max_total_time={seconds}"),
            *(f"-max_len={_MOST}", f"-dict={words}", f"-artifact_prefix={base}.", "-rss_limit_mb=4096"),
            *("-print_final_stats=1", "-verbosity=1", "-len_control=0"),
        ],
        one,
        custom_mutator=change,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
