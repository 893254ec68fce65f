"use strict";
// Asks `data` for what is new, and keeps the cards up to date. Rule 1: all text is set as text, never as markup.
// Rule 2: what one reads stays where it is. Rule 3: an answer comes from one process, and there may be several.

const EVERY = 1000;       // ms, from an answer to the next question
const SILENT = 30;        // answers of others, after which a process is taken for gone
const GONE = 100;         // cards of processes that are gone
const FEW = { spans: 8, tasks: 12 };
const NEVER = ["skipped", "dropped", "never_awaited", "never_iterated"];
const LOST = ["unconfirmed", ...NEVER];
const KINDS = ["running", "waiting", "done", "sent", "failed", ...LOST];
const CALLED = { sent: "handed over", never_awaited: "never awaited", never_iterated: "never iterated", unknown: "not heard of again" };

const $ = (id) => document.getElementById(id);
const processes = new Map();  // by the id of their answers
const cards = new Map();      // by process and number
const held = new Set();       // keys of cards that are announced and not shown yet
const chosen = new Set();     // kinds to show
let paused = false, silentSince = null, asking = false;

const called = (kind) => CALLED[kind] ?? kind;
const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const clock = (ms) => new Date(ms).toLocaleTimeString();
const living = () => [...processes.values()].filter((process) => !process.gone);
const sumOf = (several, kind) => several.reduce((sum, process) => sum + (process.totals[kind] ?? 0), 0);
const nowOf = (process) => (process.gone ? process.heard : silentSince ?? Date.now()) + process.offset;

function took(ms) {
  if (ms < 10) return `${Math.max(ms, 0).toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  const seconds = Math.floor(ms / 1000), hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function order(parent, children) {
  children.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

// --- what became of a span, and what a card says

const isWork = (span) => span.kind !== "span";
const isLost = (span) => LOST.includes(span.outcome);
const kindOf = (span) => span.end !== null ? span.outcome : span.gone ? "unknown" : span.waiting ? "waiting" : "running";
const hasRun = (span) => !span.waiting && !["skipped", "dropped"].includes(span.outcome);
const nameOf = (span) => span.name.replace(/^background_task /, "").replace(/^send (?=.)/, span.kind === "send" ? "" : "$&");
const ofError = (span) => (span.attributes["error.type"] ?? span.description.split(":")[0]).split(".").pop() || "error";

function lookAt(card) {
  const { root, spans, sent_at: sentAt } = card.data;
  const waiting = card.process.waiting.filter((each) => each.card === card.data.number)
    .map((each, at) => ({ id: `waiting ${at}`, parent: null, trace: card.data.trace, name: each.name, kind: "task",
      start: each.since, end: null, waited: 0, outcome: null, failed: false, description: "", attributes: {}, waiting: true }));
  for (const span of [...spans, ...waiting]) span.gone = card.process.gone;
  const known = new Set(spans.map((span) => span.id));
  card.tasks = spans.filter(isWork)
    .sort((a, b) => (hasRun(a) ? a.start : a.end) - (hasRun(b) ? b.start : b.end) || a.start - b.start).concat(waiting);
  card.inside = new Map();
  for (const span of spans.filter((each) => !isWork(each) && known.has(each.parent)))
    card.inside.set(span.parent, [...(card.inside.get(span.parent) ?? []), span].sort((a, b) => a.start - b.start));
  const first = card.tasks.filter(hasRun).map((span) => span.start);
  const moments = [root?.end, sentAt, ...(card.data.is_exact || sentAt !== null ? [] : first)].filter((moment) => moment != null);
  card.answered = root && moments.length ? Math.max(Math.min(...moments), root.start) : null;
  card.start = root ? root.start : Math.min(...card.tasks.map((span) => span.start - span.waited));
  card.running = (root?.end === null && card.answered === null) || [...card.tasks, ...spans].some((span) => span.end === null);
  card.kinds = new Set(card.tasks.map(kindOf));
  card.ended = Math.max(card.answered ?? 0, root && card.answered === null && root.end ? root.end : 0,
    ...card.tasks.concat(spans).map((span) => span.end ?? 0), card.start);
}

function titleOf(card) {
  const { root, spans } = card.data;
  if (!root) return ["", spans.length ? nameOf(spans[0]) : "background task", "no request"];
  const of = (...keys) => keys.map((key) => root.attributes[key]).find((value) => value !== undefined);
  const method = of("http.request.method", "http.method");
  if (!method) return ["", root.name, ""];
  return [method, of("http.route", "url.path", "http.target") ?? root.name, of("http.response.status_code", "http.status_code") ?? ""];
}

function sayOf(card) {
  const parts = [];
  const count = (kind) => card.tasks.filter((span) => kindOf(span) === kind).length;
  const ran = card.tasks.filter((span) => span.end !== null && !NEVER.includes(span.outcome));
  const root = card.data.root;
  if (root && card.answered === null) parts.push(["not answered yet", ""]);
  else if (root) parts.push([`answered in ${took(card.answered - root.start)}`, ""]);
  if (ran.length && !count("running")) {
    const last = Math.max(...ran.map((span) => span.end)), began = card.answered ?? Math.min(...ran.map((span) => span.start));
    parts[parts.length ? parts.length - 1 : 0] =
      [`${parts.length ? `${parts.at(-1)[0]}, then ` : ""}${plural(ran.length, "task")} for ${took(last - began)}`, ""];
  }
  if (count("running")) parts.push([`${plural(count("running"), "task")} running`, "running"]);
  const waits = card.process.waits[card.data.number] ?? 0;
  if (waits) parts.push([`${waits} waiting`, ""]);
  if (count("failed")) parts.push([`${count("failed")} failed`, "failed"]);
  if (count("unknown")) parts.push([`${count("unknown")} ${called("unknown")}`, ""]);
  for (const kind of LOST) if (count(kind))
    parts.push([`${count(kind)} ${NEVER.includes(kind) ? "never ran: " : ""}${called(kind)}`, "lost"]);
  return parts;
}

// --- a card

function createCard(process, data) {
  const card = { process, data, key: `${process.id}/${data.number}`, rows: new Map(), open: new Set(), all: new Set() };
  card.element = make("article");
  const head = make("div", "head");
  card.title = make("h2");
  card.says = make("p", "says");
  const meta = make("p", "meta");
  card.cut = make("span");
  card.pid = make("span");
  card.when = make("time");
  card.copy = make("button", "", data.trace.slice(0, 8));
  card.copy.type = "button";
  card.copy.title = `Copy the trace id ${data.trace}`;
  card.copy.addEventListener("click", () => copy(card.copy, data.trace));
  meta.append(card.cut, card.pid, card.when, card.copy);
  if (process.traceUrl) {
    const link = make("a", "", "trace ↗");
    link.href = process.traceUrl.replaceAll("{trace_id}", data.trace);
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    meta.append(link);
  }
  head.append(card.title, card.says, meta);
  const axis = make("div", "axis");
  card.total = make("span", "took");
  const track = make("span", "track");
  track.append(make("span", "label", "answered"));
  axis.append(make("span"), track, card.total);
  card.list = make("div", "rows");
  card.element.append(head, axis, card.list);
  return card;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {  // not over plain HTTP from elsewhere: there it can be copied by hand
    button.textContent = text;
    getSelection().selectAllChildren(button);
    return;
  }
  setTimeout(() => set(button, text.slice(0, 8)), 1200);
}

function rowOf(card, id) {
  let row = card.rows.get(id);
  if (row) return row;
  row = { element: make("div"), line: make("button", "line"), name: make("span", "name"), bar: make("i", "bar"), wait: make("i", "wait"), took: make("span", "took"), details: make("div", "details") };
  const track = make("span", "track");
  track.append(row.wait, row.bar);
  row.line.type = "button";
  row.line.append(row.name, track, row.took);
  row.details.hidden = true;
  row.element.append(row.line, row.details);
  row.line.addEventListener("click", () => {
    card.open.has(id) ? card.open.delete(id) : card.open.add(id);
    showDetails(card, row, id);
  });
  card.rows.set(id, row);
  return row;
}

function showDetails(card, row, id) {
  const open = card.open.has(id), span = row.span;
  row.line.setAttribute("aria-expanded", open);
  row.details.hidden = !open;
  if (!open) return;
  const began = hasRun(span) ? "started" : "added";
  const facts = [
    [began, `${clock(span.start)}, ${took(span.start - card.start)} after the beginning`],
    ...(span.waited ? [["waited", took(span.waited)]] : []),
    ...Object.entries(span.attributes),
    ...(span.waiting ? [] : [["trace", span.trace], ["span", span.id]]),
  ];
  const text = JSON.stringify([span.description, facts]);
  if (row.told === text) return;  // or what is selected there would be lost
  row.told = text;
  const list = make("dl");
  for (const [key, value] of facts) list.append(make("dt", "", key), make("dd", "", String(value)));
  row.details.replaceChildren(...(span.description ? [make("p", "", span.description)] : []), list);
}

function fillRow(card, span, className, depth = 0) {
  const row = rowOf(card, span.id);
  const kind = kindOf(span), lost = isLost(span);
  row.span = span;
  row.element.className = ["row", className, ["running", "waiting", "sent"].includes(kind) ? kind : "",
    lost ? `lost ${hasRun(span) ? "ran" : ""}` : span.failed && className !== "request" ? "failed" : ""].join(" ");
  set(row.name, className === "request" ? "request" : nameOf(span) + (span.kind === "span" && span.attributes["server.address"] ? ` ${span.attributes["server.address"]}` : ""));
  row.name.title = span.name;
  row.name.style.paddingLeft = `${depth * .8}rem`;
  if (span.kind === "send") row.name.append(" ", make("small", "", `to ${span.attributes["messaging.system"] ?? "a worker"}`));
  else if (isWork(span) && span.trace !== card.data.trace) row.name.append(" ", make("small", "", "own trace"));
  showDetails(card, row, span.id);
  return row;
}

// The rows of a list that are shown: the first ones, and all that runs, failed or was lost.
function pick(card, list, few, id) {
  if (list.length <= few + 2 || card.all.has(id)) return [list, 0];
  const shown = list.filter((span, at) => at < few || (at < 4 * few && (span.failed || span.end === null)) || span.end === null);
  return [shown, list.length - shown.length];
}

function moreOf(card, id, hidden, what) {
  const row = card.rows.get(`more ${id}`) ?? { element: make("button", "more") };
  card.rows.set(`more ${id}`, row);
  row.element.type = "button";
  row.element.onclick = () => { card.all.add(id); stay(reading(), () => update(card)); };
  set(row.element, `+ ${plural(hidden, what)}`);
  return row.element;
}

function update(card) {
  lookAt(card);
  const { data, process } = card;
  const [method, route, status] = titleOf(card);
  const title = JSON.stringify([method, route, status]);
  if (card.titled !== title) {
    card.titled = title;
    const failed = Number(status) >= 400 ? "status failed" : "status";
    card.title.replaceChildren(method ? `${method} ` : "", make("b", "", route), " ", Number(status) ? make("span", failed, status) : status);
  }
  const says = sayOf(card), saying = JSON.stringify(says);
  if (card.saying !== saying) {
    card.saying = saying;
    card.says.replaceChildren(...says.flatMap(([text, className], at) => [at ? " · " : "", make(className ? "b" : "span", className, text)]));
  }
  set(card.cut, data.cut ? `+ ${plural(data.cut, "span")} not kept` : "");
  set(card.when, clock(card.start));
  card.when.dateTime = new Date(card.start).toISOString();
  set(card.pid, processes.size > 1 ? `pid ${process.pid}${process.gone ? ", gone" : ""}` : "");

  const elements = [];
  if (data.root) elements.push(fillRow(card, { ...data.root, end: card.answered ?? data.root.end }, "request").element);
  const add = (span, depth) => {
    const inside = card.inside.get(span.id) ?? [];
    const [shown, hidden] = pick(card, inside, FEW.spans, span.id);
    for (const each of shown) {
      elements.push(fillRow(card, each, "inner", depth).element);
      if (depth < 5) add(each, depth + 1);
    }
    if (hidden) elements.push(moreOf(card, span.id, hidden, "span"));
  };
  const [tasks, hidden] = pick(card, card.tasks, FEW.tasks, "tasks");
  tasks.forEach((task, at) => {
    elements.push(fillRow(card, task, "task").element);
    add(task, 1);
    if (isLost(task) && task.description && task.description !== tasks[at + 1]?.description) {
      const why = card.rows.get(`why ${task.id}`) ?? { element: make("p", "why") };
      card.rows.set(`why ${task.id}`, why);
      set(why.element, task.description);
      elements.push(why.element);
    }
  });
  if (hidden) elements.push(moreOf(card, "tasks", hidden, "task"));
  const unlisted = (process.waits[data.number] ?? 0) - card.tasks.filter((task) => task.waiting).length;
  if (unlisted > 0) {
    const rest = card.rows.get("waits") ?? { element: make("p", "more") };
    card.rows.set("waits", rest);
    set(rest.element, `+ ${plural(unlisted, "task")} waiting`);
    elements.push(rest.element);
  }
  order(card.list, elements);
  const shown = new Set(elements);
  for (const [id, row] of card.rows) if (!shown.has(row.element)) card.rows.delete(id);
  place(card);
}

// While something runs the scale is a round time, so that bars grow and nothing else moves.
function scaleOf(ms, running) {
  if (!running) return Math.max(ms, 1);
  for (let unit = 1; ; unit *= 10) for (const step of [1, 2, 5]) if (unit * step >= ms * 1.05 && unit * step >= 500) return unit * step;
}

function place(card) {
  const now = Math.max(nowOf(card.process), card.start);
  const end = card.running ? Math.max(now, card.ended) : card.ended;
  const scale = scaleOf(end - card.start, card.running);
  const at = (moment) => `${Math.min(Math.max((moment - card.start) / scale * 100, 0), 100).toFixed(3)}%`;
  card.element.classList.toggle("unanswered", card.answered === null);
  if (card.answered !== null) {
    card.element.style.setProperty("--answered", at(card.answered));
    card.element.classList.toggle("late", (card.answered - card.start) / scale > .5);
  }
  set(card.total, took(scale));
  for (const row of card.rows.values()) {
    const span = row.span;
    if (!span) continue;
    const until = span.end ?? now;
    row.bar.style.left = at(span.start);
    row.bar.style.width = `${Math.max((until - span.start) / scale * 100, 0).toFixed(3)}%`;
    row.wait.hidden = !span.waited;
    if (span.waited) {
      row.wait.style.left = at(span.start - span.waited);
      row.wait.style.width = `${(Math.min(span.waited, span.start - card.start) / scale * 100).toFixed(3)}%`;
    }
    const time = took(until - span.start);
    if (kindOf(span) === "unknown") set(row.took, called("unknown"));
    else if (span.waiting) set(row.took, `waits ${time}`);
    else if (isLost(span)) set(row.took, called(span.outcome));
    else if (span.failed && row.element.classList.contains("failed")) {
      if (row.failed !== time) row.took.replaceChildren(make("b", "", ofError(span)), ` ${row.failed = time}`);
    } else set(row.took, span.kind === "send" && span.end !== null ? `handed over in ${time}` : time);
  }
}

// --- the whole page

// What one reads, if it is in view: what has the focus, the pointer or a selection, is open, or, further down, comes first.
function reading() {
  const inView = [...document.querySelectorAll("article, .head, .axis, .row")].filter((each) => {
    const { top, bottom, height } = each.getBoundingClientRect();
    return height && bottom > 0 && top < innerHeight;
  });
  const selected = getSelection().type === "Range" ? getSelection().anchorNode : null;
  return inView.findLast((each) => each.matches(":focus-within")) ?? inView.findLast((each) => each.matches(":hover"))
    ?? inView.findLast((each) => each.contains(selected)) ?? inView.find((each) => each.matches(":has(> [aria-expanded=true])"))
    ?? (scrollY > 8 ? inView.find((each) => each.getBoundingClientRect().top >= 0) ?? inView.at(-1) : undefined);
}

// Does something, and then scrolls by as much as what one reads has moved. Where there is too little to scroll, it makes room.
function stay(anchor, change) {
  const before = anchor?.getBoundingClientRect().top, above = $("cards").style, whole = document.body.style;
  change();
  if (!anchor) above.paddingTop = whole.minHeight = "";
  const moved = anchor?.isConnected ? anchor.getBoundingClientRect().top - before : 0;
  if (!moved) return;
  const room = parseFloat(above.paddingTop) || 0, left = Math.max(room - moved - (moved < 0 ? scrollY : 0), 0);
  const top = scrollY + moved + left - room;
  above.paddingTop = `${left}px`;
  whole.minHeight = `${top + innerHeight}px`;
  scrollTo({ top, behavior: "instant" });
}

function isWanted(card) {
  if (chosen.size && ![...chosen].some((kind) => card.kinds.has(kind))) return false;
  const text = $("filter").value.trim().toLowerCase();
  return !text || text.split(/\s+/).every((word) => card.text.includes(word));
}

function textOf(card) {
  const spans = card.data.spans.concat(card.tasks);
  return [...titleOf(card), card.data.trace, ...spans.flatMap((span) => [span.name, span.trace, span.description, span.attributes["error.type"] ?? "",
    span.attributes["code.function.name"] ?? "", kindOf(span) ?? ""])].join(" ").toLowerCase();
}

function filter() {
  for (const card of cards.values()) {
    if (!card.kinds) continue;
    card.text = textOf(card);
    card.element.hidden = !isWanted(card) || held.has(card.key);
  }
}

function arrange() {
  const sorted = [...cards.values()].filter((card) => !held.has(card.key)).sort((a, b) => b.start - a.start || b.data.number - a.data.number);
  order($("cards"), sorted.map((card) => card.element));
}

function take(answer) {
  let process = processes.get(answer.process), everything = !process || process.gone;
  if (!process) processes.set(answer.process, process = { id: answer.process, pid: answer.pid, host: answer.host, since: answer.since, until: -1, before: null });
  if (process.before === null) process.next = answer.until;
  process.before = answer.more;
  if (answer.more === null) process.until = process.next;
  Object.assign(process, { heard: Date.now(), offset: answer.now - Date.now(), silent: 0, gone: false, totals: answer.totals, traceUrl: answer.trace_url });
  for (const other of processes.values()) if (other !== process && (++other.silent > SILENT || silentSince !== null))
    other.gone ||= everything = true;
  silentSince = null;

  const touched = new Set(process.waiting?.map((each) => each.card));
  Object.assign(process, { waiting: answer.waiting, waits: answer.waits });
  for (const each of answer.waiting) touched.add(each.card);
  const anchor = reading(), kept = new Set(answer.kept);
  stay(anchor, () => {
    for (const data of answer.cards) {
      const key = `${process.id}/${data.number}`;
      const card = cards.get(key) ?? createCard(process, data);
      card.data = data;
      if (!cards.has(key)) {
        cards.set(key, card);
        if (process.loaded && anchor) held.add(key);
      }
      touched.add(data.number);
    }
    for (const [key, card] of cards) {
      if (card.process === process && !kept.has(card.data.number) && !card.open.size) { cards.delete(key); held.delete(key); }
      else if (everything || (card.process === process && touched.has(card.data.number))) update(card);
    }
    const ofGone = [...cards.values()].filter((card) => card.process.gone && !card.open.size).sort((a, b) => b.start - a.start);
    for (const card of ofGone.slice(GONE)) { cards.delete(card.key); held.delete(card.key); }
    process.loaded ||= answer.more === null;
    filter();
    arrange();
    tellWhole();
  });
}

function tellWhole() {
  const heard = living(), running = [];
  const counts = { waiting: heard.reduce((all, process) => all + Object.values(process.waits).reduce((sum, each) => sum + each, 0), 0) };
  for (const card of cards.values()) for (const span of card.tasks) if (kindOf(span) === "running") running.push([card, span]);
  counts.running = running.length;
  for (const kind of KINDS) {
    const count = counts[kind] ?? sumOf(heard, kind);
    let chip = document.querySelector(`#totals [data-kind=${kind}]`);
    if (!chip) {
      chip = make("button");
      chip.type = "button";
      chip.dataset.kind = kind;
      chip.setAttribute("aria-pressed", "false");
      chip.append(make("b"), ` ${called(kind)}`);
      chip.addEventListener("click", () => {
        chosen.has(kind) ? chosen.delete(kind) : chosen.add(kind);
        chip.setAttribute("aria-pressed", chosen.has(kind));
        filter();
        tellKept();
      });
      if (kind === NEVER[0]) $("totals").append(Object.assign(make("label", "", "never ran:"), { id: "never" }));
      $("totals").append(chip);
    }
    chip.className = `${LOST.includes(kind) ? "lost" : kind} ${count ? "" : "zero"}`;
    chip.hidden = !count && !chosen.has(kind) && (kind === "sent" || LOST.includes(kind));
    set(chip.firstChild, count.toLocaleString());
  }
  $("never").hidden = !NEVER.some((kind) => sumOf(heard, kind) || chosen.has(kind));
  running.sort((a, b) => a[1].start - b[1].start);
  order($("running"), running.map(([card, span]) => {
    if (!span.item) {
      const button = make("button");
      button.type = "button";
      button.append(make("b", "", nameOf(span)), " ", make("i"), " ", make("span", "", titleOf(card).slice(0, 2).join(" ")));
      button.title = `since ${clock(span.start)}`;
      button.addEventListener("click", () => find(card, span));
      span.item = make("li");
      span.item.append(button);
    }
    set(span.item.querySelector("i"), took(nowOf(card.process) - span.start));
    return span.item;
  }).concat(running.length ? [] : [$("idle") ?? Object.assign(make("li", "", "nothing"), { id: "idle" })]));
  const news = [...held].filter((key) => isWanted(cards.get(key))).length;
  $("show").hidden = !news;
  set($("show"), `↑ ${plural(news, "new request")}`);
  tellState();
  tellKept();
}

function tellKept() {
  const all = cards.size, shown = [...cards.values()].filter((card) => !card.element.hidden).length;
  const [evicted, missed] = ["evicted", "missed"].map((kind) => sumOf([...processes.values()], kind));
  $("none").hidden = all > 0 || !processes.size;
  set($("kept"), [all && shown < all - held.size ? `${shown} of ${plural(all, "request")} match` : "",
    evicted ? `the oldest ${evicted.toLocaleString()} are no longer kept` : "",
    missed ? `${plural(missed, "span")} could not be recorded` : ""].filter(Boolean).join(" · "));
}

function tellState() {
  const heard = living();
  const names = heard.map((process) => `process ${process.pid}, since ${clock(process.since)}`).join(" and ");
  $("state").className = paused ? "paused" : silentSince ? "silent" : "";
  set($("state"), paused ? `paused at ${clock(paused)}` : silentSince ? `no answer since ${clock(silentSince)}, trying again`
    : heard.length ? `${names}, on ${heard[0].host}` : "asking");
}

function find(card, span) {
  held.delete(card.key);
  filter();
  arrange();
  card.element.hidden = false;
  const row = card.rows.get(span.id);
  (row?.element ?? card.element).scrollIntoView({ block: "center" });
  row?.line.focus({ preventScroll: true });
}

async function question() {
  const known = living().map((process) => `${process.id}:${process.until}${process.before === null ? "" : `:${process.before}`}`);
  const response = await fetch(`data?known=${encodeURIComponent(known.join(","))}`, { signal: AbortSignal.timeout(10000) });
  if (!response.ok) throw new Error(response.statusText);
  return response.json();
}

async function ask() {
  if (asking || paused || document.hidden) return;
  asking = true;
  try {
    let answer;
    do {
      answer = await question().catch(() => null);
      if (answer !== null && !paused) take(answer);
    } while (!paused && answer !== null && answer.more !== null);
    if (answer === null) {
      silentSince ??= Date.now();
      tellState();
    }
  } finally {
    asking = false;
  }
}

function grow() {
  if (paused || document.hidden || silentSince !== null) return;
  let any = false;
  for (const card of cards.values()) {
    if (!card.running || card.process.gone) continue;
    any = true;
    place(card);
  }
  if (any) tellWhole();
}

$("pause").addEventListener("click", () => {
  paused = paused ? false : Date.now();
  $("pause").setAttribute("aria-pressed", !!paused);
  set($("pause"), paused ? "Go on" : "Pause");
  tellState();
  ask();
});
$("filter").addEventListener("input", () => { filter(); tellKept(); });
$("tools").addEventListener("submit", (event) => event.preventDefault());
$("show").addEventListener("click", () => {
  held.clear();
  filter();
  arrange();
  tellWhole();
  scrollTo(0, 0);
});
document.addEventListener("visibilitychange", ask);
setInterval(ask, EVERY);
// Without a transition between the steps, which would lay out each frame.
setInterval(grow, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 250);
ask();
