"""The parts of which the page is made, as HTML. Names and words from outside go through ``text``."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from .figures import number, percent, plain
from .report import Remedy, Report


def text(value: str) -> str:
    """Anything, to be read and not to be obeyed."""
    return html.escape(plain(value))


def how(words: str) -> str:
    """The caption that says how to read what follows."""
    return f'<p class="how">{words}</p>'


def line(left: str, right: str) -> str:
    """Words, and a number at the end of the line."""
    return f'<div class="row"><span>{left}</span><b>{right}</b></div>'


def row(left: str, right: str, picture: str) -> str:
    """The same in a list, over its bar."""
    return f"<li>{line(left, right)}{picture}</li>"


def two(parts: Sequence[str]) -> str:
    """Beside each other where there is room."""
    return (
        f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>' if parts else "<p>Not measured.</p>"
    )


def command(words: str) -> str:
    """To be copied. A line may break between words only, not after the hyphens of a flag."""
    words_apart = re.sub(r"[^ \n]+", lambda word: f"<span>{word[0]}</span>", text(words))
    return f"<pre><code>{words_apart}</code></pre>"


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; a column whose head begins with + holds numbers. The first cell names its row."""
    names = [name.lstrip("+") for name in head]
    kinds = ["n" if name.startswith("+") else "" for name in head]
    top = "".join(f'<th scope="col" class="{kind}">{name}</th>' for kind, name in zip(kinds, names, strict=True))
    body = ""
    for first, *cells in rows:
        columns = zip(names[1:], kinds[1:], cells, strict=True)
        rest = "".join(f'<td class="{kind}" data-name="{name}">{cell}</td>' for name, kind, cell in columns)
        body += f'<tr><th scope="row">{first}</th>{rest}</tr>'
    thead = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    grid = f"<table>{thead}<tbody>{body}</tbody></table>"
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{grid}</div>'


def worth(remedy: Remedy, report: Report) -> str:
    """What a remedy changes: images/s, and how long the devices are idle."""
    rate, before = remedy.predicted_images_per_s, report.supply
    gain = f" ({number(rate / before)}x)" if before > 0 else ""
    idle = f"idle {percent(report.stall_fraction)} → <b>{percent(remedy.predicted_stall)}</b>"
    return f'{number(before)} → <b>{number(rate)} images/s</b>{gain}, <span class="keep">{idle}</span>'
