"""How a page looks: colors in two schemes, and the style sheet that is made of them.

Text has a contrast of at least 4.5 to 1 with what it stands on in both schemes, lines and marks at least 3 to 1
(WCAG 2.2, criteria 1.4.3 and 1.4.11); a test computes it from the tables below. Hues are Okabe and Ito's, told apart by
color-blind eyes (https://jfly.uni-koeln.de/color/, 2008), darkened or lightened until they meet that.
"""

from __future__ import annotations

LIGHT = {
  'ground': '#ffffff', 'raised': '#f4f6f8', 'ink': '#1c2126', 'soft': '#55606b', 'rule': '#d5dbe1', 'link': '#005a9c',
  'c0': '#0072b2', 'c1': '#c24e00', 'c2': '#007a57', 'c3': '#a83f7f', 'c4': '#8a6400', 'c5': '#5b6bc0', 'c6': '#444b52',
  'shade': '#c3cad1', 'r1': '#eaf3fa', 'r2': '#d3e7f5', 'r3': '#b4d6ee', 'r4': '#93c4e6', 'r5': '#78b4de',
  'w1': '#fdf0e8', 'w2': '#fbdfcc', 'w3': '#f8c8a6', 'w4': '#f4b083', 'w5': '#ee9a63',
  'good': '#00663f', 'bad': '#a32a00',
}  # fmt: skip
DARK = {
  'ground': '#14181c', 'raised': '#1e242a', 'ink': '#e8ecef', 'soft': '#a9b4be', 'rule': '#3a434c', 'link': '#8cc8ff',
  'c0': '#62b5f0', 'c1': '#ff9a5a', 'c2': '#4bd0a0', 'c3': '#f095c8', 'c4': '#e3bd45', 'c5': '#a5b1ff', 'c6': '#c3ccd4',
  'shade': '#475059', 'r1': '#172735', 'r2': '#183349', 'r3': '#19405e', 'r4': '#1b4d74', 'r5': '#1d5986',
  'w1': '#33231a', 'w2': '#4a2d1c', 'w3': '#62371d', 'w4': '#77411f', 'w5': '#8a4a20',
  'good': '#6fdba8', 'bad': '#ffa58a',
}  # fmt: skip
LINES = 7  # colors of lines: c0 and so on
ON_GROUND = ('ink', 'soft', 'link', 'good', 'bad')  # text, on 'ground' and on 'raised'
CELLS = tuple(f'{kind}{level}' for kind in 'rw' for level in range(1, 6))  # stand under 'ink'


def _variables(colors: dict[str, str]) -> str:
  return ' '.join(f'--{name}: {color};' for name, color in colors.items())


_LINES = ' '.join(
  f'.c{index} {{ stroke: var(--c{index}); }} .f{index} {{ fill: var(--c{index}); }}' for index in range(LINES)
)
_CELLS = ' '.join(f'.{name} {{ background: var(--{name}); fill: var(--{name}); }}' for name in CELLS)

CSS = f"""\
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ color-scheme: light; {_variables(LIGHT)} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.8rem, 3vw, 2rem) 3rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere; }}
h1, h2, h3 {{ line-height: 1.2; margin: 1.6em 0 .5em; text-wrap: balance; }}
h1 {{ font-size: 1.7rem; margin-top: .3em; }}
h2 {{ font-size: 1.3rem; border-top: 1px solid var(--rule); padding-top: .8em; }}
h3 {{ font-size: 1.05rem; }}
p {{ max-width: 46rem; }}
a {{ color: var(--link); }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
main:focus {{ outline: none; }}
.skip {{ position: absolute; left: -999rem; }}
.skip:focus {{ left: 1rem; top: .5rem; background: var(--ground); padding: .4rem .8rem; z-index: 1; }}
.soft, figcaption, caption, .notes, footer {{ color: var(--soft); }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .6rem 0; }}
nav a {{ display: inline-block; padding: .25rem 0; }}
.verdict {{ background: var(--raised); border-left: 4px solid var(--c0); padding: .7rem 1rem; max-width: 50rem; }}
.is-good {{ border-color: var(--good); }} .is-bad {{ border-color: var(--bad); }}
.verdict p {{ margin: .3em 0; }}
.verdict strong {{ font-size: 1.1rem; }}
progress {{ width: min(100%, 26rem); accent-color: var(--c0); }}
.state {{ font-weight: 600; }}
.good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
.notes {{ padding-left: 1.2rem; max-width: 60rem; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; max-width: 100%; background:
  linear-gradient(to right, var(--ground) 40%, transparent) left top / 2.4rem calc(100% + 2px) no-repeat local,
  linear-gradient(to left, var(--ground) 40%, transparent) right top / 2.4rem calc(100% + 2px) no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll; }}
.beside {{ display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }}
.key {{ display: flex; flex-wrap: wrap; gap: .4rem 2.4rem; margin: 1rem 0; }}
.key div {{ display: flex; flex-direction: column-reverse; }}
.key dd {{ font-size: 1.6rem; font-weight: 600; line-height: 1.2; margin: 0; font-variant-numeric: tabular-nums; }}
.key dt {{ font-size: .88rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }}
caption {{ text-align: left; padding-bottom: .35rem; font-size: .92rem; position: sticky; left: 0;
  max-width: min(46rem, 91vw); }}
th, td {{ padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); unicode-bidi: isolate;
  overflow-wrap: normal; }}
td {{ white-space: nowrap; }}
th {{ font-weight: 600; vertical-align: bottom; }}
thead th:first-child {{ text-align: left; }}
th[scope=row], table.text th, table.text td {{ text-align: left; vertical-align: top; }}
th[scope=row] {{ font-weight: 400; }}
table.text td {{ white-space: normal; min-width: 9rem; max-width: 34rem; overflow-wrap: anywhere; }}
th.in {{ padding-left: 1.6rem; color: var(--soft); }}
table.grid th, table.grid td {{ padding: .3rem .45rem; min-width: 2.2rem; text-align: center; }}
table.grid th[scope=row] {{ text-align: right; }}
table.grid thead th {{ font-weight: 400; }}
pre, code {{ font: .88rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  unicode-bidi: isolate; }}
pre {{ background: var(--raised); padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .6rem 0; }}
dl {{ display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; margin: .6rem 0; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; }}
details {{ margin: .6rem 0; }} summary {{ cursor: pointer; padding: .25rem 0; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.6rem; }}
figure {{ margin: 0 0 .6rem; max-width: 40rem; min-width: 0; }}
figure > svg {{ display: block; width: 100%; height: auto; overflow: visible; }}
figcaption {{ font-size: .88rem; }}
.map figure {{ max-width: 30rem; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0; margin: .4rem 0;
  font-size: .9rem; }}
.legend svg {{ width: 1.9rem; height: .7rem; margin-right: .4rem; vertical-align: baseline; }}
svg text {{ fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }}
svg .title {{ fill: var(--ink); font-size: 12.5px; font-weight: 600; }}
.line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }}
.thin {{ stroke-width: 1.1; }}
.faint {{ stroke: var(--soft); stroke-width: .7; opacity: .45; }}
.axis {{ fill: none; stroke: var(--soft); stroke-width: 1; }} .across {{ stroke: var(--rule); stroke-width: 1; }}
.ring {{ stroke: var(--ground); stroke-width: 1.2; }}
.track {{ fill: var(--rule); }}
{_LINES}
{_CELLS}
.bar {{ width: 7rem; height: .7rem; vertical-align: middle; }}
.worst {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .9rem; padding: 0;
  list-style: none; }}
.worst img {{ width: 100%; max-width: 9rem; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
  background: var(--raised); display: block; }}
.worst p {{ margin: .3rem 0 0; font-size: .88rem; line-height: 1.35; }}
@media (max-width: 34rem) {{
  th, td {{ padding: .28rem .3rem; }} table {{ font-size: .86rem; }}
  table.grid th, table.grid td {{ padding: .28rem .2rem; min-width: 1.65rem; }}
  table.grid thead td {{ white-space: normal; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: .5rem; }}
}}
@media print {{
  @page {{ margin: 1.4cm; }}
  body {{ max-width: none; padding: 0; font-size: 10pt; }} nav, .skip {{ display: none; }}
  .scroll {{ overflow: visible; background: none; }} caption {{ max-width: none; }}
  table {{ font-size: 8.2pt; }} table.many {{ font-size: 6.2pt; }}
  td, table.text td {{ white-space: normal; min-width: 0; }} th, td {{ padding: .15rem .35rem; }}
  table.grid th, table.grid td {{ min-width: 0; padding: .12rem .2rem; }}
  table.many td {{ white-space: nowrap; }}
  details::details-content {{ content-visibility: visible; block-size: auto; }}
  tr, figure, .verdict, li, table:not(.many) {{ break-inside: avoid; }} h2, h3, caption {{ break-after: avoid; }}
  thead {{ display: table-header-group; }} caption {{ position: static; }}
  * {{ -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
  .charts {{ grid-template-columns: 1fr 1fr; }} figure {{ max-width: 11cm; }}
}}
"""
