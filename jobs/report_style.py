"""How the report looks: one style sheet for screens, phones, the dark and paper. Fonts are the reader's own."""

STYLE = """
:root { --back: #fff; --panel: #f5f6f8; --text: #1b1e23; --soft: #565e6b; --line: #d8dce2; --accent: #1a5aa8;
  --good: #17663a; --good-back: #e0f2e7; --bad: #9c2a1e; --bad-back: #fbe7e4; --flat-back: #e9ebef;
  --alert: #fff3d6; --alert-line: #c98a00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .75rem; }
h3 { font-size: 1.02rem; margin: 1.75rem 0 .5rem; }
p, ul, ol, dl { margin: 0 0 .8rem; }
ul, ol { padding-left: 1.25rem; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
small { font-size: .84em; color: var(--soft); }
code, pre { font: .87em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
pre { background: var(--panel); border-radius: .4rem; padding: .7rem .9rem; white-space: pre-wrap; }
section { border-top: 1px solid var(--line); margin-top: 2.25rem; padding-top: 1.5rem; }
.subtitle { color: var(--soft); margin: .25rem 0 1rem; }
.alert { background: var(--alert); border-left: 4px solid var(--alert-line); padding: .6rem .9rem; }
.note { color: var(--soft); font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .8rem; }
.card { background: var(--panel); border-radius: .5rem; padding: .9rem 1.1rem .5rem; }
.card h2 { font-size: .84rem; font-weight: 600; color: var(--soft); margin: 0 0 .2rem; }
.card p, .card li { font-size: .93rem; line-height: 1.45; }
.card p { margin: 0 0 .45rem; }
.card ul { padding-left: 1.1rem; margin: 0 0 .4rem; }
.card li { margin-bottom: .3rem; }
.card .value { font-size: 1.75rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.card .value small { display: inline-block; margin-left: .4rem; font-size: .9rem; font-weight: 400; }
nav { margin-top: 1.3rem; font-size: .93rem; }
nav ol { columns: 3 13rem; column-gap: 1.5rem; margin: 0; }
nav li { break-inside: avoid; margin-bottom: .2rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.4; margin: 0 0 1.2rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child { padding-left: 0; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; border-bottom: 1.5px solid var(--soft); }
tbody th { font-weight: 500; min-width: 8rem; max-width: 22rem; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; } thead .n { white-space: normal; min-width: 4.2rem; }
td small, th small { display: block; font-weight: 400; }
.tag { display: inline-block; border-radius: .8rem; padding: 0 .55rem; font-size: .84em; white-space: nowrap; }
.good { background: var(--good-back); color: var(--good); } .bad { background: var(--bad-back); color: var(--bad); }
.flat { background: var(--flat-back); color: var(--text); }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
dl { display: grid; gap: .3rem 0; }
dl div { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 0 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
.aside dl div { grid-template-columns: 17rem minmax(0, 1fr); }
.rows { list-style: none; padding: 0; }
.rows li { border-left: 3px solid var(--line); padding: .05rem 0 .05rem .9rem; margin: 0 0 1rem; }
.quote { white-space: pre-wrap; margin: 0 0 .25rem; }
.about { font-size: .88rem; color: var(--soft); margin: 0; }
.about span { display: inline-block; margin-right: 1.1rem; }
.about bdi { color: var(--text); font-weight: 600; }
details { margin: 0 0 .45rem; } details[open] { margin-bottom: 1rem; }
summary { cursor: pointer; color: var(--accent); } details[open] > summary { margin-bottom: .6rem; }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #15171b; --panel: #1f2228; --text: #e7e9ec; --soft: #a9b0bc; --line: #363b44; --accent: #8fb8f6;
    --good: #9be0b5; --good-back: #17402a; --bad: #ffb4a8; --bad-back: #54231c; --flat-back: #30343c;
    --alert: #3b3011; --alert-line: #d9a520; }
  figure img { filter: invert(.9) hue-rotate(180deg); }
}
@media screen and (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  .cards { grid-template-columns: minmax(0, 1fr); }
  dl div, .aside dl div { grid-template-columns: minmax(0, 1fr); margin-bottom: .35rem; }
  .scroll > table { width: max-content; min-width: 100%; max-width: 44rem; }
  th, td { padding: .35rem .45rem; } tbody th { max-width: 10rem; } caption { max-width: calc(100vw - 1.8rem); }
}
@page { size: A4; margin: 15mm 14mm 16mm; @bottom-right { content: counter(page); font: 8pt sans-serif; } }
@media print {
  html { font-size: 9.5pt; } body { max-width: none; padding: 0; line-height: 1.4; }
  h2, h3, caption, summary { break-after: avoid; } thead { display: table-header-group; }
  tr, figure, .card, .rows li, dl div, pre, .short, section > dl { break-inside: avoid; }
  p { orphans: 3; widows: 3; }
  a { color: inherit; text-decoration: none; }
  .card, .tag, .alert, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } th, td { padding: .25rem .4rem; }
  tbody th { min-width: 22mm; } thead .n { white-space: normal; overflow-wrap: break-word; }
  figure img { min-width: 0 !important; max-height: 225mm; width: auto; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  details.aside { display: none; }
  summary { color: inherit; list-style: none; font-weight: 600; } nav ol { columns: 3; }
}
"""
