"""What pages are made of: a document that is one file, tables, escaped text.

A page needs no script and asks for nothing from outside, which its content security policy also
forbids.
"""

from collections.abc import Iterable, Sequence
from html import escape

from etils import epath

from retrieval_jax.runtime.errors import printable
from retrieval_jax.runtime.files import replacing

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1e293b; --soft: #526077; --line: #dbe2ea;
  --page: #f6f8fa; --card: #fff; --accent: #0369a1; --note: #fff7e6; --edge: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9fadbf; --line: #334155;
  --page: #0f172a; --card: #1b2638; --accent: #7dd3fc; --note: #2d2613; --edge: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1, h2, p, li, summary, figcaption, pre { overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
a { color: var(--accent); }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.soft { margin: .3rem 0; }
.tiles { display: grid; gap: .7rem; margin: 1.3rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.4rem, 1fr)); }
.tiles div, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles div { padding: .7rem .9rem; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.tiles dt { color: var(--soft); font-size: .85rem; line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.note { background: var(--note); border-left: .25rem solid var(--edge); margin: 1.2rem 0 0;
  padding: .6rem 1rem; border-radius: .3rem; }
.note p { margin: 0; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.pair { display: grid; gap: .9rem; align-items: start; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 46rem) { .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.scroll { overflow-x: auto; padding: .3rem 0; }
.narrow { max-width: 24rem; }
.tall { max-height: 28rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; unicode-bidi: isolate; }
tbody:last-of-type tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; padding-left: .9rem; position: sticky; left: 0;
  background: var(--card); }
th:last-child, td:last-child { padding-right: .9rem; }
th { max-width: 24rem; overflow-wrap: break-word; }
tbody th { font-weight: 400; white-space: normal; }
tbody th.group { font-weight: 600; padding-top: 1rem; }
thead th { font-weight: 600; color: var(--soft); font-size: .85rem; white-space: normal;
  vertical-align: bottom; }
table.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
figure { margin: 0 0 1rem; padding: clamp(.4rem, 2vw, .9rem); }
figure img { display: block; width: 44rem; max-width: 100%; height: auto; margin: 0 auto;
  border-radius: .35rem; background: #fff; }
figcaption { margin: .6rem auto 0; max-width: 44rem; }
details { margin: .7rem 0; padding: .6rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
pre { font-size: .84rem; white-space: pre-wrap; margin: .6rem 0 0; }
"""


def text(value: object) -> str:
    """Any value as one escaped line of HTML text, safe in an attribute too.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return escape(printable(str(value)))


def page(title: str, body: str, *, policy: str = _POLICY) -> str:
    """A whole HTML document.

    Args:
      title: plain text, escaped here.
      body: HTML, escaped by the caller.
      policy: its content security policy.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write(path: epath.PathLike, document: str) -> None:
    """Writes a document as UTF-8; what can't be encoded (a lone surrogate) is spelt out."""
    with replacing(epath.Path(path)) as file:
        file.write(document.encode("utf-8", "backslashreplace"))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    *,
    label: str,
    style: str = "",
) -> str:
    """A table in a box of its own that scrolls when it is wider than the screen.

    Args:
      head: plain text, one a column; empty for a table without a head.
      rows: plain text, first the row's name, then a value a column. A row of the name alone
        is the heading of the rows after it.
      caption: plain text under the box.
      label: what a screen reader calls the box.
      style: "tall": scrolls down too; "narrow": never wide; "text": values are words, not
        numbers; or empty.
    """
    lines = [
        f'<div class="card scroll {style}" role="region" tabindex="0" aria-label="{text(label)}">'
    ]
    lines.append(f'<table class="{style}">')
    if head:
        cells = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for name, *values in rows:
        if values:
            cells = "".join(f"<td>{text(value)}</td>" for value in values)
            lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
        else:
            span = f'scope="rowgroup" colspan="{len(head)}"'
            lines.append(f'<tr><th class="group" {span}>{text(name)}</th></tr>')
    lines.append("</tbody>\n</table>\n</div>")
    if caption:
        lines.append(f'<p class="soft">{text(caption)}</p>')
    return "\n".join(lines)
