"""What the pages of this project share: their style, and pictures inside the page."""

from __future__ import annotations

import base64
from html import escape
from string import Template

_STYLE = """:root { color-scheme: light; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --estimate: #1f6feb; --truth: #d1662b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 2.5rem 1.25rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0 .9rem; color: var(--soft); }
code { font-size: .92em; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .88rem; }
.card em { display: block; font-style: normal; font-size: .82rem; margin-top: .35rem; }
.card em::before { content: "\\25CF\\00A0"; }
.met { color: #1a7f37; }
.missed { color: #cf222e; }
img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { font-weight: 600; font-size: .88rem; color: var(--soft); }
td.number { text-align: right; white-space: nowrap; }
td.bar { width: 55%; }
td.bar i { display: block; height: .7rem; border-radius: 3px; background: var(--estimate); min-width: 2px; }
.strip { display: grid; grid-template-columns: 5.5rem 1fr; gap: .5rem; align-items: stretch; }
.strip ul { list-style: none; margin: 0; padding: 0; display: grid; grid-auto-rows: 1fr; color: var(--soft); font-size: .88rem; }
.strip li { display: flex; align-items: center; }"""
"""Style sheet of a page that needs no other file, on screen and in print."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vipe-dag: $video_id</title>
<style>
$style
</style>
</head>
<body>
$body
</body>
</html>
""")


def page(video_id: str, body: str) -> str:
    """The whole page about a video; body is HTML."""
    return _PAGE.substitute(style=_STYLE, video_id=escape(video_id), body=body)


def inline(png: bytes) -> str:
    """A PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
