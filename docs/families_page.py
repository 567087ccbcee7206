"""Write the table of timm's families, docs/families.md: `make evidence`.

A run that was stopped goes on where it was.
"""

from dataclasses import asdict
from pathlib import Path

from benchmarks.record import EVIDENCE, Record, fingerprint
from tests.timm_families import FAMILIES, Found, measured

PAGE = Path(__file__).with_name("families.md")
DONE = EVIDENCE / "families.jsonl"

HEAD = """\
# timm's families

The smallest model of each of timm's families (`tests/timm_families.json`), its code as it is, batch
norms and layer scales drawn at random, compiled with an example input and compared with the
original in float64. *Calls* are those of the traced graph; *untraced* are modules that stay whole;
*assertions*, most of them of sizes, hold the result to the branches that the example took; *error*
is that of the compiled model against float64, relative to the original's own.

| family | model | image | calls | compiled | batch norms left | untraced | assertions | error |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure what has not been measured yet, and write the page."""
    record = Record(DONE, fingerprint("tests/timm_families.py", "tests/timm_families.json"))
    for family in FAMILIES:
        if (family.name,) not in record.rows:
            record.keep(asdict(measured(family)), family.name)
    lines: list[str] = []
    for family in FAMILIES:
        found = Found(**record.rows[family.name,])
        cells = (
            family.name, f"`{family.model}`", family.size, found.before, found.after, found.norms,
            len(found.untraced), found.asserted, f"{found.ratio:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
