// The status page: asks page/live.json about once a second and shows it. Whatever came from outside is set as text, never as markup.

import { Chart } from "./chart.js";

const EVERY_MS = 1000, LEAST_SPAN_MS = 60_000, SPAN_MS = 300_000, ANSWER_MS = 6000, HEADER = { "x-beacon-proxy-page": "1" };
const MASK = "•••";
const byId = id => document.getElementById(id);

// ---- words

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const number = n => grouped.format(n);
const rate = n => (n < 10 ? one : grouped).format(n);

function span(seconds) {
  if (seconds == null) return "–";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 90) return `${seconds < 10 ? one.format(seconds) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

function time(seconds) {
  if (seconds == null) return "–";
  const ms = seconds * 1000;
  return ms < 1 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms < 10 ? one.format(ms) : Math.round(ms)} ms` : span(seconds);
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < 4) { bytes /= 1024; unit += 1; }
  return `${bytes < 10 ? one.format(bytes) : Math.round(bytes)} ${units[unit]}`;
}

const moment = ms => new Date(ms).toISOString().replace("T", " ").replace(/\.\d+Z/, " UTC");
// What would turn the direction of the text around it, or is no character to see.
const visible = text => text.replace(/[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");

// ---- elements

/** An element with text and children. */
function make(name, className, ...content) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...content.filter(part => part != null));
  return element;
}

/** A stranger's text: isolated, so that its direction stays its own. */
function foreign(text, className) {
  const element = make("bdi", className, text === null ? MASK : visible(text));
  if (text === null) element.classList.add("masked");
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set what a part of the page holds, if what it is made from is not what it was. */
const shown = new Map();
function fill(id, from, build) {
  const now = JSON.stringify(from);
  if (shown.get(id) === now) return;
  shown.set(id, now);
  byId(id).replaceChildren(...build());
}

// ---- what is shown

const charts = [
  new Chart(byId("charts"), "received / s", "received", rate),
  new Chart(byId("charts"), "delivered / s", "delivered", rate),
  new Chart(byId("charts"), "refused / s", "refused", rate),
  new Chart(byId("charts"), "backlog", "pending", number),
];
let samples = [], last = -1, values = false, held = false;

function drawCharts(history) {
  if (history.last < last) samples = [];
  last = history.last;
  samples = [...samples, ...history.samples].slice(-300);
  if (!samples.length) return;
  const to = samples.at(-1)[0], known = to - samples[0][0];
  const from = to - Math.min(SPAN_MS, Math.max(LEAST_SPAN_MS, known));
  const within = samples.filter(([at]) => at >= from);
  const rates = column => within.slice(1).map((sample, i) => {
    const seconds = (sample[0] - within[i][0]) / 1000;
    return [sample[0], seconds > 0 ? Math.max(0, sample[column] - within[i][column]) / seconds : 0];
  });
  for (const [i, column] of [1, 2, 3].entries()) if (within.length > 1) charts[i].draw(rates(column), from, to);
  charts[3].draw(within.map(sample => [sample[0], sample[4]]), from, to);
}

function showVerdict({ level, headline, detail }, ready) {
  byId("ready").hidden = ready == null;
  say(byId("ready"), ready ? "ready" : "not ready");
  byId("ready").className = `pill ${ready ? "ok" : "bad"}`;
  byId("verdict").dataset.level = level;
  const icon = `page/icon-${level}.svg`;
  for (const [id, attribute] of [["icon", "href"], ["verdict-icon", "src"]])
    if (byId(id).getAttribute(attribute) !== icon) byId(id).setAttribute(attribute, icon);
  byId("verdict-icon").hidden = false;
  say(byId("headline"), headline);
  say(byId("detail"), detail);
  document.title = { ok: "ready", warn: "look", bad: "NOT READY" }[level] + " – beacon-proxy";
}

function showLedger(ledger, off) {
  const dropped = Object.values(ledger.dropped).reduce((sum, n) => sum + n, 0);
  const counts = { ...ledger, dropped };
  for (const element of byId("ledger").querySelectorAll("dd")) say(element, number(counts[element.dataset.n]));
  for (const bar of byId("shares").children)
    bar.style.flexGrow = counts[bar.className] / Math.max(1, ledger.received);
  const parts = [];
  parts.push(off === 0 ? "Balanced: the beacons on disk were counted, and agree." : off
    ? `Off by ${number(off)}: the beacons on disk do not agree with these counts.`
    : "Balanced by count; too many beacons on disk to count them one by one.");
  if (ledger.oldest_pending_s != null && ledger.oldest_pending_s >= 1) parts.push(`The oldest waits ${span(ledger.oldest_pending_s)}.`);
  parts.push(`${number(ledger.refused)} refused (answered 503; not in received).`);
  if (ledger.trimmed) parts.push(`${number(ledger.trimmed)} delivered shortened.`);
  say(byId("balance"), parts.join(" "));
}

function figure(name, value, note) {
  return make("div", "", make("dt", "", name), make("dd", "", value, note ? make("small", "", note) : null));
}

function showUpstreams(upstreams, forwarders) {
  say(byId("forwarders"), forwarders > 1 ? `${number(forwarders)} forwarders at work` : "");
  fill("upstreams", upstreams, () => upstreams.map(up => {
    const closed = up.state === "closed", good = closed && !up.refusal;
    const since = up.since_s != null && !up.refusal ? ` for ${span(up.since_s)}` : "";
    const why = up.last_failure ? (closed ? `last failure: ${up.last_failure}` : `reason: ${up.last_failure}`) : "no failure";
    const drains = !up.pending ? "–" : !closed ? "when it is back" : up.eta_s == null ? "not now" : `about ${span(Math.max(1, up.eta_s))}`;
    return make("article", "upstream",
      make("h3", "", foreign(up.url)),
      make("p", "", make("span", `pill ${good ? "ok" : "warn"}`, up.words + since), make("span", "note", foreign(why))),
      make("dl", "figures",
        figure("waiting", number(up.pending)),
        figure("drains in", drains),
        figure("delivered / s", rate(up.per_second)),
        figure("in flight", `${number(up.in_flight)}`, ` of ${number(up.limit)}`),
        figure("answers in", time(up.answer?.p50_s), up.answer && ` p99 ${time(up.answer.p99_s)}`),
        figure("delivered after", time(up.delivery?.p50_s), up.delivery && ` p99 ${time(up.delivery.p99_s)}`)));
  }));
}

function showOutcomes(outcomes) {
  const kinds = { delivered: "delivered", dropped: "dropped", dead: "dead" };
  fill("outcomes", outcomes, () => outcomes.length ? outcomes.map(({ outcome, ending, meaning, n }) => make("tr", "",
    make("th", "", make("span", `dot ${kinds[ending]}`), outcome, ending === outcome ? null : make("span", "tag", ending),
      make("small", "", meaning)),
    make("td", "number", number(n))))
    : [make("tr", "", make("td", "note", "Nothing has ended yet."))]);
  for (const header of byId("outcomes").querySelectorAll("th")) header.scope = "row";
}

function showDisk(commit, spool, shared) {
  say(byId("commit-p50"), time(commit?.p50_s));
  say(byId("commit-p99"), time(commit?.p99_s));
  say(byId("spool"), size(spool.bytes));
  say(byId("shared"), shared == null ? "–" : rate(shared));
  byId("spool-bar").style.flexGrow = Math.min(1, spool.bytes / spool.max_bytes);
  const of = !commit ? "No commit yet." : `${number(commit.n)} commits ${commit.lately ? "in the last minute" : "since the beginning"}.`;
  say(byId("disk-note"), `A visitor waits for a commit. ${of} The spool may grow to ${size(spool.max_bytes)}.`);
}

/** The local time, with the day if it is another than today's. */
function when(ms) {
  const at = new Date(ms), today = at.toDateString() === new Date().toDateString();
  const element = make("time", "", at.toLocaleTimeString("en-GB"));
  element.title = moment(ms);
  return make("td", "when", element, today ? null : make("small", "", at.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })));
}

function beaconCell(kind, name, extra) {
  const call = { e: "event", s: "properties", a: "alias" }[kind] ?? "beacon";
  return make("td", "beacon", make("span", "tag", call), " ",
    name === "" ? null : foreign(name, "name"), ...extra);
}

function showBeacons(beacons, withValues) {
  byId("beacons-none").hidden = beacons.length > 0;
  fill("beacons", [beacons, withValues], () => beacons.map(b => {
    const properties = b.properties.map(([name, value]) =>
      make("li", "", foreign(name), value === null ? null : ": ", value === null ? null : foreign(value, "value")));
    if (b.more) properties.push(make("li", "note", `and ${b.more} more`));
    return make("tr", "", when(b.at_ms),
      beaconCell(b.kind, b.name, [properties.length ? make("ul", "properties", ...properties) : null,
        b.person === "" ? null : make("span", "person", "person ", foreign(b.person))]),
      make("td", "", make("span", `dot ${b.ending}`), b.outcome,
        make("small", "", [b.answer && visible(b.answer), b.attempt > 1 && `attempt ${b.attempt}`, `after ${span(b.age_ms / 1000)}`].filter(Boolean).join(", "))));
  }));
}

function showDead(outcomes, letters) {
  const reasons = outcomes.filter(({ ending }) => ending === "dead");
  byId("dead").hidden = !reasons.length;
  byId("dead-none").hidden = reasons.length > 0;
  const rows = new Map([...byId("reasons").children].map(row => [row.dataset.reason, row]));
  for (const { outcome, meaning, n } of reasons) {
    let row = rows.get(outcome);
    if (!row) {
      const header = make("th", "", outcome, make("small", "", meaning)), button = make("button", "", "Replay …");
      header.scope = "row";
      button.type = "button";
      button.setAttribute("aria-label", `Replay ${outcome} …`);
      button.addEventListener("click", () => ask(outcome, Number(row.dataset.n)));
      row = make("tr", "", header, make("td", "number"), make("td", "number", button));
      row.dataset.reason = outcome;
      byId("reasons").append(row);
    }
    row.dataset.n = n;
    say(row.children[1], number(n));
    rows.delete(outcome);
  }
  for (const gone of rows.values()) gone.remove();
  byId("replay-all").dataset.n = reasons.reduce((sum, { n }) => sum + n, 0);
  fill("letters", letters, () => letters.map(letter => make("tr", "",
    when(letter.died_ms),
    beaconCell(letter.kind, letter.name, []),
    make("td", "", letter.reason,
      make("small", "", foreign(letter.answer), letter.attempts ? `, ${letter.attempts} attempt${letter.attempts === 1 ? "" : "s"}` : "")))));
}

// ---- the replay

let asked = "";
function ask(reason, n) {
  asked = reason;
  say(byId("confirm-title"), `Replay ${number(n)} dead letter${n === 1 ? "" : "s"}${reason ? ` (${reason})` : ""}?`);
  byId("confirm").showModal();
}

async function replay() {
  byId("confirm").close();
  say(byId("replayed"), "Replaying …");
  try {
    const answer = await fetch(`page/replay?reason=${encodeURIComponent(asked)}`, { method: "POST", headers: HEADER });
    const told = await answer.json();
    say(byId("replayed"), answer.ok ? `${number(told.replayed)} dead letter${told.replayed === 1 ? " is" : "s are"} pending again.` : told.error);
  } catch {
    say(byId("replayed"), "The proxy did not answer; what was replayed shows above.");
  }
}

byId("replay-all").addEventListener("click", event => ask("", Number(event.target.dataset.n)));
byId("cancel").addEventListener("click", () => byId("confirm").close());
byId("go").addEventListener("click", replay);
byId("values").addEventListener("click", () => {
  values = !values;
  byId("values").setAttribute("aria-pressed", values);
  say(byId("values"), values ? "Hide values" : "Show values");
  held = false;
  showHold();
  turn();
});
byId("hold").addEventListener("click", () => { held = !held; showHold(); });
function showHold() {
  byId("hold").setAttribute("aria-pressed", held);
  say(byId("hold"), held ? "Go on" : "Hold");
}

// ---- the turn

let timer = 0, turning = false, again = false, heard = 0;

function show(told) {
  say(byId("version"), told.version);
  showVerdict(told.verdict, told.unready === null ? null : !told.unready);
  fresh(Boolean(told.ledger));
  if (!told.ledger) return;
  showLedger(told.ledger, told.off);
  drawCharts(told.history);
  showUpstreams(told.upstreams, told.ledger.forwarders);
  showOutcomes(told.outcomes);
  showDisk(told.commit, told.spool, told.beacons_a_commit);
  showDead(told.outcomes, told.letters);
  if (!held && told.values === values) showBeacons(told.beacons, values);
}

function pulse(text, lost) {
  say(byId("pulse"), text);
  byId("pulse").classList.toggle("lost", lost);
}

/** Whether the figures on the page are those of now. */
function fresh(are) {
  document.body.classList.toggle("stale", !are);
  if (are) heard = Date.now();
  else say(byId("balance"), heard ? `These figures are ${span((Date.now() - heard) / 1000)} old.` : "No figures yet.");
}

async function turn() {
  clearTimeout(timer);
  if (turning) { again = true; return; }
  turning = true;
  try {
    const answer = await fetch(`page/live.json?after=${last}${values ? "&values=1" : ""}`, { signal: AbortSignal.timeout(ANSWER_MS) });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    show(told);
    pulse("live", false);
  } catch (error) {
    const ours = error.name === "Error";
    const since = heard ? `Last heard ${span((Date.now() - heard) / 1000)} ago; what you see below is as old.` : "";
    pulse("no answer", true);
    fresh(false);
    showVerdict({ level: "bad", headline: ours ? "Nothing can be shown" : "The admin listener does not answer", detail: ours ? error.message : since });
  }
  turning = false;
  const at_once = again && !document.hidden;
  again = false;
  if (!document.hidden) timer = setTimeout(turn, at_once ? 0 : EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); else pulse("paused", false); });
turn();
