"""HTML by hand, small enough to read: escaped text, tables, sections, and the whole page. Nothing here knows a run.

Whatever comes from a user (names of runs and classes, paths, command lines) passes `escaped`: it is text, never markup.
A page is one file that asks for nothing: its style stands in it, pictures are in it, and its own policy forbids a
browser to load anything, whoever wrote the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from jaxlite.report.style import CSS

_UNSEEN = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], '\ufffd')
_BREAKS = re.compile(r'(?<=[/_.:=])(?=.)')  # behind these
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def escaped(text: object) -> str:
  """Returns text as a page and its attributes take it; what no page may hold is shown as such.

  >>> escaped('<script>"a" & b')
  '&lt;script&gt;&quot;a&quot; &amp; b'
  """
  plain = str(text).translate(_UNSEEN).encode('utf-8', 'replace').decode()
  return html.escape(plain, quote=True)


class Cell(str):
  """A cell that is markup already; every other str is text.

  >>> table('of', [['', 'a'], ['b', Cell('<b>1</b>')]]).count('<b>1</b>')
  1
  """

  __slots__ = ()


def _cell(cell: str) -> str:
  return cell if isinstance(cell, Cell) else escaped(cell.strip())


def breakable(text: str, most: int = 16) -> str:
  """Returns text, escaped, that a narrow column may break where a reader expects it, and nowhere else.

  Args:
    text: a path, a name.
    most: letters of a piece; a longer one is broken all the same.

  >>> breakable('conv1/kernel')
  'conv1/<wbr>kernel'
  """
  pieces = [piece for part in _BREAKS.split(str(text).strip()) for piece in _pieces(part, most)]
  return '<wbr>'.join(map(escaped, pieces))


def _pieces(part: str, most: int) -> list[str]:
  words = part.split(' ')
  if max(map(len, words)) <= most:
    return [part]
  return [part[place : place + most] for place in range(0, len(part), most)]


def inline(text: str) -> str:
  """Returns text, escaped, in which what stands between backticks is code.

  >>> inline('see `jl.deploy`')
  'see <code>jl.deploy</code>'
  """
  parts = str(text).split('`')
  if len(parts) % 2 == 0:
    return escaped(text)
  return ''.join(f'<code>{escaped(part)}</code>' if place % 2 else escaped(part) for place, part in enumerate(parts))


def table(caption: str, cells: Sequence[Sequence[str]], *, wide: bool = False) -> str:
  """Returns a table whose first row and first column name the others.

  Args:
    caption: what it shows.
    cells: rows of text, or `Cell`s; the first row is the head.
    wide: text columns, left-aligned, instead of numbers.

  Returns:
    HTML; the table scrolls by itself where the page is narrower, by keyboard too.
  """
  if not cells:
    return ''
  name = escaped(caption)
  head = ''.join(f'<th scope="col">{breakable(cell, 24)}</th>' if cell.strip() else '<td></td>' for cell in cells[0])
  body = []
  for row in cells[1:]:
    first, *rest = row
    indented = ' class="in"' if first.startswith(' ') else ''
    body.append(
      f'<tr><th scope="row"{indented}>{breakable(first)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in rest)}</tr>'
    )
  kind = ' class="text"' if wide else ''
  return (
    f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table{kind}><caption>{name}</caption>'
    f'<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
  )


def notes(lines: Iterable[str]) -> str:
  """Returns lines as a list; '' of none."""
  items = ''.join(f'<li>{inline(line)}</li>' for line in lines)
  return f'<ul class="notes">{items}</ul>' if items else ''


def section(identity: str, title: str, *parts: str, level: int = 2) -> str:
  """Returns a titled section; '' where it would be empty.

  Args:
    identity: of the section, for links: letters, digits and '-'.
    title: its heading.
    *parts: HTML.
    level: of the heading.
  """
  inside = '\n'.join(part for part in parts if part)
  if not inside:
    return ''
  return (
    f'<section aria-labelledby="{identity}"><h{level} id="{identity}">{escaped(title)}</h{level}>\n{inside}\n</section>'
  )


def contents(entries: Sequence[tuple[str, str]]) -> str:
  """Returns links to sections, (identity, title) each; '' below two."""
  if len(entries) < 2:
    return ''
  links = ''.join(f'<li><a href="#{identity}">{escaped(title)}</a></li>' for identity, title in entries)
  return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def page(title: str, header: str, main: str, *, script: str = '', policy: str = POLICY) -> str:
  """Returns a whole page.

  Args:
    title: of the page.
    header: HTML above what the skip link leads to.
    main: HTML.
    script: a script that stands in the page; its policy has to allow it.
    policy: what the page may load.
  """
  tail = f'<script>{script}</script>' if script else ''
  again = '<noscript><meta http-equiv="refresh" content="10"></noscript>\n' if script else ''
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
    f'{again}'
    f'<title>{escaped(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n'
    f'<a class="skip" href="#main">Skip to the results</a>\n<header>\n{header}\n</header>\n'
    f'<main id="main" tabindex="-1">\n{main}\n</main>\n{tail}</body>\n</html>\n'
  )
