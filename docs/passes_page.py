"""Write docs/passes.md, the catalogue of the default passes, from their docstrings.

python docs/passes_page.py
"""

import re
import sys
from pathlib import Path

import passes
from reparam.rewrite import Rewrite

PAGE = Path(__file__).with_name("passes.md")

SECTIONS = ("Before", "After", "Algebra", "Legal when", "Profitable when")
FORMULAS = {"Before", "After", "Algebra"}
"""The sections that are shown as they stand."""

HEADER = """\
# The default passes

In the order in which they are asked. Each can be selected alone, for instance
`reparam.compile(model, passes=(passes.fold_batchnorm,))` after `import passes`. This page is made
from the docstrings of the files under `passes/` by `python docs/passes_page.py`.
"""


def page() -> str:
    """The whole page."""
    ours = (one for one in passes.DEFAULT if isinstance(one, Rewrite))
    return "\n".join([HEADER, *map(entry, ours)])


def entry(rewrite: Rewrite) -> str:
    """The part of the page on one pass."""
    docstring = sys.modules[rewrite.function.__module__].__doc__ or ""
    body, _, source = docstring.strip().partition("\nSource: ")
    summary, *rest = re.split(rf"^({'|'.join(SECTIONS)}):$", body, flags=re.MULTILINE)
    if tuple(rest[::2]) != SECTIONS:
        raise ValueError(
            f"{rewrite.name} should have the headings {SECTIONS}, each on its own line"
        )
    lines = [f"## {rewrite.name}", "", unwrapped(summary), ""]
    for heading, text in zip(rest[::2], rest[1::2], strict=True):
        indented = text.strip("\n").rstrip().splitlines()
        plain = [line.removeprefix("    ") for line in indented]
        if heading in FORMULAS:
            lines += [f"{heading}:", "", "```text", *plain, "```", ""]
        else:
            lines += [f"{heading}: {unwrapped(' '.join(plain))}", ""]
    if source:
        lines += [f"Source: {unwrapped(source)}", ""]
    return "\n".join(lines)


def unwrapped(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page())
