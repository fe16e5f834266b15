"""The page around it: one file without anything from elsewhere, for a screen, a phone and paper, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from coproc.report.marks import Markup, el, together

# Colours of contestants: Okabe and Ito's, told apart by those who see fewer colours too, with their yellow and black
# replaced, which are lost on white and on black paper. Order, parts: light to dark, so that lightness alone tells them.
_LIGHT = {
    "paper": "#ffffff", "ink": "#1a1e24", "quiet": "#5a6470", "hair": "#dde2e8", "wash": "#f5f7f9", "warn": "#a33b00",
    "k0": "#0072b2", "k1": "#d55e00", "k2": "#009e73", "k3": "#b8578f", "k4": "#d99500", "k5": "#56b4e9",
    "k6": "#7a1f4f", "k7": "#8a8a2b", "k8": "#6a51c7", "k9": "#8c5a2b", "k10": "#00838f", "k11": "#e05a7d",
    "alone": "#7b8591",
    "s0": "#9dc6e0", "s1": "#62a5cf", "s2": "#2f82b8", "s3": "#125f95", "s4": "#0a3f68", "s5": "#06263f",
    "p0": "#aab4bf", "p1": "#7cc0e8", "p2": "#2b7bb0", "p3": "#e3a13a", "p4": "#a8432f",
}  # fmt: skip
_DARK = {
    "paper": "#14171b", "ink": "#e7eaee", "quiet": "#9ba6b2", "hair": "#2d343c", "wash": "#1c2126", "warn": "#ff9a5c",
    "k0": "#3fa2e0", "k1": "#ef7f33", "k2": "#2fc596", "k3": "#de8fbf", "k4": "#f0b429", "k5": "#a5dbfb",
    "k6": "#c9568f", "k7": "#bcbc55", "k8": "#a593f5", "k9": "#c8935c", "k10": "#3fc3ce", "k11": "#ff8fab",
    "alone": "#8d98a5",
    "s0": "#245b82", "s1": "#2f7cb0", "s2": "#4d9dd2", "s3": "#7cbbe4", "s4": "#aed6f0", "s5": "#dceefa",
    "p0": "#5b6671", "p1": "#86c6ea", "p2": "#3c8cc2", "p3": "#e6ab4c", "p4": "#cd6a52",
}  # fmt: skip

_STYLE = """\
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:3rem 0 .4rem;letter-spacing:-.005em}
h3{font-size:.95rem;margin:1.4rem 0 .4rem}
p{max-width:46rem;margin:.4rem 0}
.lead{color:var(--quiet);margin-bottom:1.6rem}
.verdict{border-left:4px solid var(--k0);background:var(--wash);padding:.8rem 1.1rem;margin:1.2rem 0 1.4rem}
.verdict p{max-width:52rem}
.verdict p:first-child{font-size:1.13rem;line-height:1.45;font-weight:600}
.small,summary{font-size:.84rem;color:var(--quiet)}
small{display:block;font-weight:400;font-size:.92em;color:var(--quiet);line-height:1.2;white-space:nowrap}
figure{margin:1rem 0 0}
.scroll{overflow-x:auto;margin:.6rem 0}
.scroll:focus-visible{outline:2px solid var(--k0);outline-offset:2px}
table{border-collapse:collapse;font-size:.875rem;line-height:1.3;font-variant-numeric:tabular-nums}
.scores{width:100%}
th,td{padding:.42rem .5rem;text-align:right;vertical-align:baseline;border-bottom:1px solid var(--hair)}
th:first-child,td:first-child{padding-left:0}
thead th{vertical-align:bottom;font-weight:500;color:var(--quiet);font-size:.8rem;line-height:1.2;min-width:3rem}
tbody th{font-weight:600;min-width:7rem;max-width:16rem;overflow-wrap:break-word;
padding-left:1.2em!important;text-indent:-1.2em}
.left{text-align:left}
.group th{padding:1.1rem 0 .3rem!important;text-indent:0;font-weight:600;color:var(--quiet)}
.why,.error{color:var(--warn)}
.why{position:sticky;left:7rem;display:block;max-width:calc(100vw - 9.5rem)}
.error{display:block;min-width:16rem;white-space:pre-wrap;overflow-wrap:anywhere}
.no{color:var(--warn)}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;background:var(--k);margin-right:.5em;text-indent:0}
.settings th{font-weight:500;padding-left:0!important;text-indent:0;color:var(--quiet);vertical-align:top}
.settings td{overflow-wrap:anywhere}
.settings thead{display:none}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.2rem 0}
svg{display:block;max-width:100%;height:auto;overflow:visible}
svg.strip{display:inline-block;vertical-align:-.2em;max-width:none}
.narrow{display:none}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.6rem 2.2rem}
text{font-size:12px;fill:var(--ink)}
.tick,.axis{fill:var(--quiet)}
.grid{stroke:var(--hair);stroke-width:1}
.rule{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3}
.curve{fill:none;stroke:var(--k);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:5 4}
.band{fill:var(--k);fill-opacity:.16}
.whisker{stroke:var(--ink);stroke-width:1.2}
.curve~.whisker{stroke:var(--k)}
.mark{fill:var(--k);stroke:var(--k);stroke-width:1.5}
.bar{fill:var(--k)}
.hollow{fill:var(--paper);stroke:var(--k);stroke-width:1.5}
.bar.hollow{fill:var(--k);fill-opacity:.3;stroke-dasharray:3 2;stroke-width:1.2}
.thread{fill:none;stroke:var(--k);stroke-width:1;stroke-opacity:.55}
.guide{--k:var(--quiet)}
.guide .curve{stroke-width:1}
.guide text{fill:var(--quiet)}
footer{margin-top:3.5rem;border-top:1px solid var(--hair);padding-top:.8rem}
@media (max-width:720px){
main{padding:1.2rem 1rem 3rem}
h1{font-size:1.4rem}
.wide{display:none}
.narrow{display:block}
.scores tbody th{position:sticky;left:0;background:var(--paper);min-width:6.4rem}
.scores thead th{min-width:5rem}
}
@media print{
@page{margin:14mm 12mm}
html{font-size:9.5pt}
body{font-size:1rem}
h2{margin-top:2rem}
text{font-size:13px}
main{max-width:none;padding:0}
.wide,.panel,tr,.verdict,p{break-inside:avoid}
h2,h3,h2~p,summary{break-after:avoid}
.scroll{overflow:visible}
table{font-size:7.6pt}
thead th{font-size:7pt;min-width:0}
th,td{padding:.2rem .3rem}
tbody th{min-width:0}
svg.strip{width:60px}
.verdict{-webkit-print-color-adjust:exact;print-color-adjust:exact}
svg,.dot{-webkit-print-color-adjust:exact;print-color-adjust:exact}
details:not([open])::details-content{content-visibility:visible;display:block;block-size:auto}
summary{list-style:none}
}
"""


def page(title: str, lead: str, parts: Sequence[Markup | None]) -> str:
    """The whole file."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(_style())),
    )
    body = el("body", el("main", el("h1", title), el("p", lead, class_="lead") if lead else None, together(*parts)))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _style() -> str:
    names = [name for name in _LIGHT if name[1:].isdigit() or name == "alone"]
    looks = "".join(f".{name}{{--k:var(--{name})}}\n" for name in names)
    light, dark = f":root{{{_colours(_LIGHT)}}}", f":root{{{_colours(_DARK)}}}"
    # Paper is white, whatever the reader's screen is.
    return f"{light}\n@media screen and (prefers-color-scheme:dark){{{dark}}}\n{looks}{_STYLE}"


def _colours(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())
