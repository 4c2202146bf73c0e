"""The style of the pages: one sheet, nothing from outside, light and dark, from a phone to a wide screen."""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ground: #f5f3ee; --card: #ffffff; --ink: #1d1b19; --quiet: #67625b; --line: #e2ded5;
  --accent: #b23a22; --on-accent: #ffffff; --bar: #ece7dc;
  --shade: 0 1px 2px rgb(0 0 0 / .06), 0 6px 18px rgb(0 0 0 / .07);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #131316; --card: #1d1d21; --ink: #eceae6; --quiet: #a5a19a; --line: #303036;
    --accent: #ff8a6b; --on-accent: #2a0f07; --bar: #34343b; --shade: 0 1px 2px rgb(0 0 0 / .5);
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 82rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK JP", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { margin: 0; font-size: clamp(1.6rem, 4vw, 2.25rem); line-height: 1.15; letter-spacing: -.02em; }
h2 { margin: 0; font-size: 1.15rem; line-height: 1.3; letter-spacing: -.01em; overflow-wrap: anywhere; }
h3 { margin: 0; font-size: 1rem; line-height: 1.3; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0; }
ol, ul { margin: 0; padding: 0; list-style: none; }
.facts { margin-top: .6rem; color: var(--quiet); font-size: .9rem; }
.facts b { color: var(--ink); font-weight: 600; }
.note { margin-top: 1rem; padding: .7rem 1rem; border-left: 3px solid var(--accent); background: var(--card); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); column-gap: 2rem; }
.block { grid-column: 1 / -1; min-width: 0; margin-top: 2.5rem; }
.block.pair { grid-column: auto; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem .75rem; margin-bottom: 1rem; }
.head p { color: var(--quiet); font-size: .9rem; }
.ask { display: grid; grid-template-columns: minmax(11rem, 17rem) 1fr; gap: 2rem; align-items: start; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.pair .cards { grid-template-columns: 1fr 1fr; }
.card {
  display: flex; flex-direction: column; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem; box-shadow: var(--shade);
}
.card.lead { border-color: var(--accent); outline: 1px solid var(--accent); }
.art { position: relative; aspect-ratio: 2 / 3; background: var(--bar); }
.art img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.art .none {
  position: absolute; inset: 0; display: grid; place-items: center; padding: 1rem;
  text-align: center; color: var(--quiet); font-size: .85rem;
}
.query .art { aspect-ratio: auto; }
.query .art img { position: static; display: block; height: auto; max-height: 26rem; }
.query .art .none { position: static; min-height: 10rem; }
.text { display: flex; flex-direction: column; gap: .15rem; padding: .7rem .8rem .8rem; min-width: 0; flex: 1; }
.file { color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere; }
.tag {
  display: inline-block; margin-right: .15rem; padding: 0 .5rem; border-radius: 1rem; vertical-align: .06em;
  background: var(--bar); color: var(--quiet); font-size: .75rem; line-height: 1.5; font-variant-numeric: tabular-nums;
}
.lead .tag { background: var(--accent); color: var(--on-accent); }
.score {
  display: flex; align-items: center; gap: .6rem; margin-top: auto; padding-top: .45rem;
  font-size: .85rem; font-variant-numeric: tabular-nums;
}
.bar { flex: 1; height: .35rem; border-radius: 1rem; background: var(--bar); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 1rem; background: var(--accent); }
footer {
  margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet); font-size: .85rem;
}
@media (max-width: 44rem) {
  body { padding-top: 1.5rem; }
  .ask { grid-template-columns: 1fr; gap: 1rem; }
  .query .art img { max-height: 18rem; }
  .cards, .pair .cards { grid-template-columns: 1fr; gap: .75rem; }
  .cards .card { flex-direction: row; }
  .cards .art { flex: 0 0 6.5rem; aspect-ratio: auto; min-height: 9.75rem; }
}
@media print { body { background: none; } .card { box-shadow: none; break-inside: avoid; } }
"""
