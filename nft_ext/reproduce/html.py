"""A report as one self-contained HTML file, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from nft_ext.reproduce.tables import ABSENT, Table

CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #222222; --faint: #5f6368; --line: #dcdfe3;
  --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181c; --ink: #e8e8e8; --faint: #a6abb2; --line: #33363c; --card: #1f2227; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p, li { max-width: 48rem; }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: .5rem 0 1.2rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 32rem; height: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .22rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--ground); }
thead th { font-weight: 600; color: var(--faint); }
td.text { text-align: left; white-space: normal; }
.absent { color: var(--faint); }
pre { background: var(--card); padding: .7rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """A plot: the bytes of an SVG file for a light page and of one for a dark page, and a caption."""

    light: bytes
    dark: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and its content, in this order."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    pairs: dict[str, str] = field(default_factory=dict)
    code: str = ""


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML text. All given text is escaped."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in lead)]
    for section in sections:
        body += [f"<h2>{escape(section.title)}</h2>", *map(_picture, section.pictures), *map(_table, section.tables)]
        body += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
        if section.items:
            body.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in section.items) + "</ul>")
        if section.pairs:
            lines = "".join(
                f'<tr><td>{escape(k)}</td><td class="text">{escape(v)}</td></tr>' for k, v in section.pairs.items()
            )
            body.append(f'<div class="wide"><table><tbody>{lines}</tbody></table></div>')
        if section.code:
            body.append(f"<pre>{escape(section.code)}</pre>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _picture(picture: Picture) -> str:
    light, dark = (
        f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for svg in (picture.light, picture.dark)
    )
    return (
        f'<figure><div class="wide"><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{escape(picture.caption)}"></picture></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    lines = "".join("<tr>" + "".join(_cell(text) for text in line) + "</tr>" for line in table.body)
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f"<td{' class=' + chr(34) + 'absent' + chr(34) if text == ABSENT else ''}>{escape(text)}</td>"
