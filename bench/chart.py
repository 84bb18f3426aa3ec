"""The ratios as a picture: SVG that is readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from report import plain

WIDTH, LEFT, RIGHT, ROW, TOP = 900, 430, 60, 30, 58
STYLE = """
text { font: 13px sans-serif; fill: #24292f } .small { font-size: 11px; fill: #57606a }
.faster { fill: #2da44e } .slower { fill: #bf8700 } .grid { stroke: #d0d7de } .one { stroke: #57606a }
.bar { stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .faster { fill: #3fb950 } .slower { fill: #d29922 }
  .grid { stroke: #3d444d } .one { stroke: #9198a1 } .bar { stroke: #ff7b72 }
}"""


def chart(tables: Sequence[dict[str, Any]]) -> str:
    """One bar for the first contender of each table beside its yardstick, on a logarithmic scale."""
    rows = [
        (table, table["contenders"][0], table["contenders"][-1])
        for table in tables
        if table["compared"] == "wall"
    ]
    low = math.floor(min((math.log10(row["ratio"]) for _, row, _ in rows), default=-1))
    high = max(0.5, *(math.log10(row["ratio"]) + 0.1 for _, row, _ in rows)) if rows else 0.5
    bottom = TOP + ROW * len(rows)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 24}" role="img">',
        f"<title>How long besom takes beside the yardsticks</title><style>{STYLE}</style>",
        '<text x="8" y="20">besom beside what one would use instead: wall time, logarithmic</text>',
        '<text x="8" y="38" class="small">left of 1 besom is faster; red: the bar to stay under</text>',
    ]
    for power in range(low, 1 + math.floor(high)):
        line = "one" if power == 0 else "grid"
        label = "1" if power == 0 else f"1/{10**-power:,}" if power < 0 else f"{10**power}"
        at = f"{x(10.0**power):.1f}"
        out.append(f'<line class="{line}" x1="{at}" x2="{at}" y1="{TOP - 6}" y2="{bottom}"/>')
        out.append(f'<text class="small" x="{at}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for number, (table, row, last) in enumerate(rows):
        y, one, here = TOP + ROW * number, x(1), x(row["ratio"])
        left, width = min(one, here), max(1.0, abs(here - one))
        kind = "faster" if row["ratio"] <= 1 else "slower"
        label = f"{row['ratio']:.2f} x" if row["ratio"] >= 0.1 else f"1/{1 / row['ratio']:.0f}"
        peer = last["name"].split(",")[0]
        out += [
            f'<text x="8" y="{y + 9}">{escape(shortened(table["title"]))}</text>',
            f'<text x="8" y="{y + 20}" class="small">beside {escape(peer)}</text>',
            f'<rect class="{kind}" x="{left:.1f}" y="{y + 1}" width="{width:.1f}" height="14"/>',
        ]
        # On the far side of where everybody begins, so that bars do not cross it.
        end, anchor = (one + 6, "start") if kind == "faster" else (here + 6, "start")
        out.append(f'<text x="{end:.1f}" y="{y + 13}" text-anchor="{anchor}">{label}</text>')
        for bar in row["bars"]:
            if bar["of"] == "ratio":
                at = f"{x(bar['most']):.1f}"
                out.append(f'<line class="bar" x1="{at}" x2="{at}" y1="{y - 2}" y2="{y + 18}"/>')
    return "\n".join([*out, "</svg>"]) + "\n"


def shortened(title: str) -> str:
    title = plain(title)
    return title if len(title) <= 62 else f"{title[:60]}..."
