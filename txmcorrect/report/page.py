"""One self-contained HTML page: a verdict, words, tables and figures; no network, no script."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from matplotlib.figure import Figure

from txmcorrect import __version__
from txmcorrect.report.plots import styled
from txmcorrect.stream import atomic_output

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #5c636b; --line: #d5d9de;
  --TRUSTED: #1d7a3e; --CHECK: #a85b00; --FAILED: #b3261e; --other: #48525c; }
@media (prefers-color-scheme: dark) { :root { --ink: #d6d9dd; --paper: #101214; --soft: #969da6;
  --line: #33393f; --TRUSTED: #1a6534; --CHECK: #8a4c05; --FAILED: #94211b; --other: #39424b; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { color: #fff; border-radius: .5rem; padding: 1rem; margin: 0 0 1rem; }
.verdict strong { display: block; font-size: 2.2rem; line-height: 1.2; }
.verdict span { display: block; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.5rem; } figure img { display: block; width: 100%; min-width: 34rem; }
"""


class Page:
    """A report that is built from top to bottom and then written.

    Parameters
    ----------
    title : what was done, to what.
    verdict : begins with TRUSTED, CHECK or FAILED (green, amber, red), then why; "" for none.
    subtitle : a line below it, such as where the scale came from.
    """

    def __init__(self, title: str, verdict: str = "", subtitle: str = "") -> None:
        self._title = title
        self._body = [_banner(verdict, subtitle)] if verdict else []
        self._body.append(f"<h1>{html.escape(title)}</h1>")
        if subtitle and not verdict:
            self.text(subtitle)

    def heading(self, text: str) -> Self:
        """Begin a section."""
        return self._add(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> Self:
        """Add a paragraph."""
        return self._add(f"<p>{html.escape(text)}</p>")

    def table(self, rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> Self:
        """Add a table; it scrolls sideways where the screen is narrow."""
        head = f"<thead>{_row(header, 'th')}</thead>" if header else ""
        body = "".join(_row(row, "td") for row in rows)
        return self._add(f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>')

    def figure(self, figure: Figure, caption: str = "") -> Self:
        """Add a figure as PNG; its ground is transparent, so it suits light and dark pages."""
        data = base64.b64encode(png_bytes(figure, transparent=True)).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
        words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        return self._add(f'<figure><div class="wide">{image}</div>{words}</figure>')

    def html(self) -> str:
        """Return the page's text."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(self._body)
            + f'\n<p class="soft">txmcorrect {__version__}</p></body></html>\n'
        )

    def write(self, path: Path) -> Path:
        """Write the page, replacing an older one.

        Raises
        ------
        OutputError : see `stream.check_output`; the disk is full.
        """
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path

    def _add(self, element: str) -> Self:
        self._body.append(element)
        return self


@styled
def png_bytes(figure: Figure, transparent: bool = False, dpi: int = 110) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None}
    )
    return buffer.getvalue()


def write_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG on white, replacing an older one."""
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(png_bytes(figure))
    return path


def _banner(verdict: str, subtitle: str) -> str:
    """Set the verdict's first word large, the rest below."""
    word, reason = re.split(r"[:\s]+|$", verdict, maxsplit=1)
    colour = word if word in ("TRUSTED", "CHECK", "FAILED") else "other"
    lines = [line for line in (reason, subtitle) if line]
    below = "".join(f"<span>{html.escape(line)}</span>" for line in lines)
    return (
        f'<div class="verdict" style="background: var(--{colour})">'
        f"<strong>{html.escape(word)}</strong>{below}</div>"
    )


def _row(cells: Sequence[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"
