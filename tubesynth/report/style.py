"""The page's style sheet: system fonts, one column, light or dark, 390 pixels to a wide screen,
printable.

On a narrow screen a table and a picture scroll inside a box of their own (.wide), so that the page
never does; the first column of a table stays at the left edge.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --faint: #5f666e; --paper: #fbfbfa;
  --line: #dcdfe3; --warning: #a3202f;
  --c0: #1f6fb4; --c1: #c2560f; --c2: #24804f; --c3: #8a4fb0; --c4: #b23a48; --c5: #5d6770;
  --c6: #857200; --c7: #c2478f; --c8: #14808a; --c9: #7a5230; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --faint: #a3aab2; --paper: #17191c;
  --line: #383d43; --warning: #ff9aa5;
  --c0: #6cb2ee; --c1: #f2a365; --c2: #6fcf9a; --c3: #c79be6; --c4: #ee8a96; --c5: #aab2ba;
  --c6: #e0cb4a; --c7: #f08cc6; --c8: #66d0d6; --c9: #cfa27a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
h3 small { color: var(--faint); font-weight: normal; margin-left: .5rem; }
.lead { color: var(--faint); margin: 0; }
.note { color: var(--faint); font-size: .92rem; max-width: 46rem; margin: .3rem 0 .8rem; }
.warning { color: var(--warning); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .38rem 0 .38rem 1rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left;
  font-weight: normal; padding: .38rem 1rem .38rem 0; white-space: normal; min-width: 17rem; }
thead th { font-size: .85rem; color: var(--faint); font-weight: 600; padding-bottom: .15rem;
  max-width: 9rem; white-space: normal; vertical-align: bottom; }
thead th[colspan] { max-width: none; text-align: left; white-space: nowrap; }
th.first, td.first { padding-left: 2rem; }
tbody tr { border-top: 1px solid var(--line); }
tbody th b { color: var(--faint); }
td small { display: block; color: var(--faint); font-size: .76rem; line-height: 1.25; }
.headline td.synthesis { font-weight: 600; }
.headline td.synthesis small { font-weight: normal; }
.verdict { font-size: 1.1rem; }
code { font: .76rem ui-monospace, Menlo, Consolas, "Liberation Mono", monospace;
  color: var(--faint); }
tbody th code { display: block; line-height: 1.25; overflow-wrap: anywhere; }
.charts { display: grid; gap: 1.2rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.chart { max-width: 620px; }
.chart svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--faint); font-size: 12.5px; font-family: inherit; }
svg .grid { stroke: var(--line); }
svg .bar { stroke-width: 2.5; opacity: .55; }
svg .line { fill: none; stroke-width: 2; }
svg .dashed { stroke-dasharray: 5 4; stroke-width: 1.5; }
.key { margin: .1rem 0 0 3.6rem; font-size: .86rem; }
.key span { margin-right: 1.2rem; display: inline-block; }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .4em; }
.s0 { stroke: var(--c0); fill: var(--c0); background: var(--c0); }
.s1 { stroke: var(--c1); fill: var(--c1); background: var(--c1); }
.s2 { stroke: var(--c2); fill: var(--c2); background: var(--c2); }
.s3 { stroke: var(--c3); fill: var(--c3); background: var(--c3); }
.s4 { stroke: var(--c4); fill: var(--c4); background: var(--c4); }
.s5 { stroke: var(--c5); fill: var(--c5); background: var(--c5); }
.s6 { stroke: var(--c6); fill: var(--c6); background: var(--c6); }
.s7 { stroke: var(--c7); fill: var(--c7); background: var(--c7); }
.s8 { stroke: var(--c8); fill: var(--c8); background: var(--c8); }
.s9 { stroke: var(--c9); fill: var(--c9); background: var(--c9); }
.case img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  margin-bottom: .6rem; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1.2rem;
  font-size: .88rem; margin: .5rem 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  th:first-child { min-width: 8rem; max-width: 8rem; padding-right: .4rem; font-size: .86rem;
    line-height: 1.3; overflow-wrap: break-word; hyphens: auto; }
  th, td { padding-left: .7rem; } thead th { max-width: 6.5rem; }
  th.first, td.first { padding-left: 1rem; }
  td { font-size: .92rem; } td small { font-size: .7rem; } code { font-size: .7rem; }
  svg text { font-size: 18px; } .key { margin-left: 0; }
  .case img { width: 44rem; max-width: none; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { :root { --paper: #fff; --ink: #000; --faint: #444; --line: #bbb;
  color-scheme: light; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } .chart, .case img, tr { break-inside: avoid; } }
"""
