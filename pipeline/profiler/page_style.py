"""How the page looks: light and dark, on paper and on a telephone; nothing comes from elsewhere.

One hue (blue) is what was measured, an outline what was computed, a dashed line what the devices ask for, orange what
they lack: Okabe and Ito's colours, told apart by colour-blind people, and all labelled besides.
"""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f4f6f8; --ink: #16191d; --soft: #535b66; --rule: #d5dae0;
  --blue: #0072b2; --tint: #d6e8f3; --lack: #b34a00; --lack-tint: #fbe6d6; --good: #00704f; --good-tint: #d9f0e7; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --panel: #1e2329; --ink: #eceff2; --soft: #a9b2bd;
  --rule: #3a424c; --blue: #56b4e9; --tint: #1d3a4c; --lack: #f0a35c; --lack-tint: #40290f; --good: #4cc9a0;
  --good-tint: #12392c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 20px; }
.kicker { margin: 0 0 2px; color: var(--soft); font-size: 14px; }
h1 { margin: 0; font-size: clamp(28px, 5vw, 46px); line-height: 1.1; letter-spacing: -.02em; }
.lack { color: var(--lack); } .good { color: var(--good); }
h2 { margin: 0 0 2px; font-size: 20px; line-height: 1.25; }
h3 { margin: 0 0 4px; font-size: 16px; line-height: 1.3; }
p { margin: 0 0 8px; }
.sentence { margin: 8px 0 0; font-size: 18px; max-width: 62em; }
.how { color: var(--soft); font-size: 14.5px; margin-bottom: 12px; max-width: 62em; }
.soft { color: var(--soft); font-size: 14.5px; }
.key { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 16px; margin: 14px 0 6px; padding: 0; }
.key div { display: flex; flex-direction: column-reverse; }
.key dt { color: var(--soft); font-size: 14.5px; line-height: 1.3; }
.key dd { margin: 0; font-size: clamp(26px, 5vw, 44px); font-weight: 650; line-height: 1.1; letter-spacing: -.02em;
  overflow-wrap: normal; }
.supply { display: flex; height: 26px; border: 1.5px solid var(--blue); border-radius: 4px; overflow: hidden;
  font-size: 13.5px; line-height: 23px; white-space: nowrap; }
.supply div { overflow: hidden; padding-left: 8px; }
.supply div:first-child { background: var(--blue); color: var(--page); }
.supply .missing { flex: 1; background: repeating-linear-gradient(-45deg, var(--lack-tint) 0 6px, var(--page) 6px 12px);
  color: var(--lack); font-weight: 600; }
.best { margin: 14px 0 0; padding: 12px 16px; border-left: 5px solid var(--good); background: var(--good-tint);
  border-radius: 0 6px 6px 0; }
.best .kicker { color: var(--ink); }
.best .worth { font-size: 18px; margin: 0 0 6px; }
section { padding: 20px 0 14px; border-top: 1px solid var(--rule); margin-top: 22px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 22px 40px; }
.two > * { min-width: 0; }
.rows, .remedies { list-style: none; margin: 0; padding: 0; }
.rows li { margin: 0 0 10px; }
.row { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; font-size: 15px; }
.row b { font-variant-numeric: tabular-nums; }
.row i { font-style: normal; font-weight: 400; color: var(--soft); }
.tight { margin: 0 0 2px; font-size: 15px; }
.remedies > li { margin: 0 0 22px; }
pre { margin: 6px 0; padding: 9px 12px; background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; position: relative; }
pre code { font: inherit; user-select: all; }
pre span { display: inline-block; max-width: 100%; }
pre:has(button) { padding-right: 76px; }
pre button { position: absolute; top: 6px; right: 6px; padding: 3px 10px; font: 13px system-ui, sans-serif;
  color: var(--ink); background: var(--page); border: 1px solid var(--soft); border-radius: 5px; cursor: pointer; }
.wide { overflow-x: auto; }
.wide:focus-visible, pre button:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; overflow-wrap: break-word;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: 13.5px; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
.n + :not(.n) { padding-left: 12px; }
.keep { white-space: nowrap; }
.share { display: block; min-width: 110px; }
.name { overflow-wrap: anywhere; font: 400 13.5px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
svg.bar { display: block; width: 100%; height: 16px; margin-top: 2px; }
td svg.bar { height: 12px; }
svg.plot { display: block; width: 100%; max-width: 500px; height: auto; }
svg path { vector-effect: non-scaling-stroke; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 12px; }
svg .label { paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
.track { fill: var(--panel); } .fill { fill: var(--blue); }
.hollow { fill: var(--tint); stroke: var(--blue); stroke-width: 1.5; stroke-dasharray: 3 2; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--tint); }
.whisker { fill: none; stroke: var(--ink); stroke-width: 2; }
.halo { fill: none; stroke: var(--page); stroke-width: 5; }
.mark { fill: none; stroke: var(--ink); stroke-width: 2; stroke-dasharray: 5 3; }
.knee { fill: none; stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 1.5 3; }
.dots { stroke: var(--blue); stroke-width: 9; stroke-linecap: round; fill: none; }
.hole { stroke: var(--page); stroke-width: 5; stroke-linecap: round; fill: none; }
.cloud { stroke: var(--blue); stroke-width: 5; stroke-linecap: round; fill: none; stroke-opacity: .6; }
footer { padding-top: 8px; padding-bottom: 32px; }
@media (max-width: 600px) {
  .key { gap: 0 10px; } .key dt { font-size: 13px; } .sentence, .best .worth { font-size: 16px; }
  section { margin-top: 14px; }
  pre:has(button) { padding-right: 12px; padding-bottom: 40px; } pre button { top: auto; bottom: 6px; }
  thead { display: none; }
  tr { display: block; padding: 6px 0; border-bottom: 1px solid var(--rule); }
  th, td { display: flex; justify-content: space-between; gap: 12px; padding: 2px 0; border: 0; text-align: left; }
  .n + :not(.n) { padding-left: 0; }
  td::before { content: attr(data-name); color: var(--soft); white-space: nowrap; }
  td:empty, th:empty { display: none; }
  td[data-name=""] { justify-content: flex-start; gap: 0; }
}
@media print {
  :root { --page: #fff; --panel: #f4f6f8; --ink: #000; --soft: #444; --rule: #bbb; --blue: #0072b2; --tint: #d6e8f3;
    --lack: #b34a00; --lack-tint: #fbe6d6; --good: #00704f; --good-tint: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 12px; } pre button { display: none; } section, .remedies > li { break-inside: avoid; }
}
"""

# Only a nicety: without it a click selects the command.
SCRIPT = """
for (const pre of document.querySelectorAll("pre")) {
  const button = pre.appendChild(document.createElement("button"));
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy the command");
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(pre.querySelector("code"));
    button.textContent = document.execCommand("copy") ? "Copied" : "Ctrl+C";
  });
}
"""
