// Everything beside the charts: what a picture of the run says, as elements. Text is only ever set as text.
"use strict";

const TONES = { starting: "busy", training: "good", evaluating: "busy", recovering: "warn", done: "good", stopped: "warn", failed: "bad", abandoned: "bad" };
// Kinds of the timeline: a mark, and how it sounds.
const MARKS = {
  coordinator: ["◆", ""], generation: ["●", "good"], broken: ["✕", "bad"], recovered: ["↻", "good"], resumed: ["↻", "good"],
  evaluation: ["≡", ""], alarm: ["!", "bad"], alarm_over: ["✓", "good"], straggler: ["~", "warn"], node_left_out: ["✕", "warn"], damaged: ["!", "warn"],
  done: ["✓", "good"], stopped: ["■", "warn"], failed: ["✕", "bad"],
};

const at = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(made.dataset, value);
    else if (key === "style") Object.assign(made.style, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return `${minutes} min ${whole % 60} s`;
  return `${whole} s`;
}

const clock = (text) => new Date(text).toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const stamp = (text) => element("time", { dateTime: text, title: text }, clock(text));
const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
const count = (number, one, several) => `${number.toLocaleString("en")} ${number === 1 ? one : several}`;
const empty = (text) => element("p", { className: "empty" }, text);

function table(heads, rows) {
  const cell = (tag, [text, kind]) => element(tag, { className: kind ?? "" }, text);
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => Object.assign(cell("th", head), { scope: "col" })))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((one) => cell("td", one))))));
}

function showHead(picture) {
  const { run, phase, step } = picture;
  const last = run.align_steps + run.zipper_steps;
  at("name").textContent = run.name;
  at("phase").textContent = phase;
  at("phase").dataset.tone = TONES[phase] ?? "";
  at("detail").textContent = picture.detail;
  const eta = picture.eta_seconds ? `, ${span(picture.eta_seconds)} left` : "";
  at("steps").textContent = `step ${step.toLocaleString("en")} of ${last.toLocaleString("en")}${picture.stage ? ` · ${picture.stage}` : ""}${eta}`;
  document.title = `${last ? Math.floor((100 * step) / last) : 0} % ${phase} · ${run.name}`;
  const bar = at("bar");
  bar.setAttribute("aria-valuemax", last);
  bar.setAttribute("aria-valuenow", step);
  const stages = [[run.align_steps, step], [run.zipper_steps, step - run.align_steps]].filter(([steps]) => steps > 0);
  if (bar.children.length !== stages.length) bar.replaceChildren(...stages.map(() => element("div", {}, element("div"))));
  stages.forEach(([steps, done], index) => {
    bar.children[index].style.flexGrow = String(steps);
    bar.children[index].firstChild.style.width = `${(100 * Math.min(Math.max(done, 0), steps)) / steps}%`;
  });
}

function showTiles(picture) {
  const { latest, nodes, workers, checkpoints, times } = picture;
  const healthy = nodes.healthy ?? 0;
  const all = Object.values(nodes).reduce((sum, number) => sum + number, 0);
  const others = Object.entries(nodes).filter(([state]) => state !== "healthy").map(([state, number]) => `${number} ${state.replace("_", " ")}`);
  const spare = workers.ready ? `, ${workers.ready} to spare` : "";
  const newest = checkpoints.at(-1);
  const finite = latest && latest.loss !== null && latest.grad_norm !== null;
  const leftOut = finite ? "update left out" : "update left out: not finite";
  const tiles = [
    ["loss", latest ? round(latest.loss) : "–", latest?.skipped ? leftOut : latest ? `gradient ${round(latest.grad_norm)}` : ""],
    ["learning rate", latest ? latest.lr.toExponential(1) : "–", ""],
    ["audio s / s", latest ? round(latest.audio_per_second) : "–", picture.seconds_per_step ? `${round(picture.seconds_per_step)} s a step` : ""],
    ["tokens / s", latest ? round(latest.tokens_per_second) : "–", ""],
    ["communication", percent(latest?.comm_share, 0), "of a step waited"],
    ["nodes healthy", all ? `${healthy} / ${all}` : "–", others.join(", ")],
    ["generation", picture.generation || "–", picture.world_size ? `${picture.world_size} ranks${spare}` : ""],
    ["checkpoint", newest ? `step ${newest.step.toLocaleString("en")}` : "none", newest ? `${span((Date.now() - new Date(newest.at)) / 1000)} ago` : ""],
    ["effective time", times.total_seconds ? percent(times.productive_seconds / times.total_seconds) : "–", times.losses ? count(times.losses, "loss", "losses") : "no loss"],
  ];
  at("tiles").replaceChildren(...tiles.map(([name, value, more]) =>
    element("dl", { className: "tile", style: { margin: "0" } }, element("dt", {}, name), element("dd", {}, String(value), element("small", {}, more)))));
}

function showAlarms(alarms) {
  at("alarms").hidden = alarms.length === 0;
  at("alarms").replaceChildren(...alarms.map((alarm) =>
    element("p", {}, element("strong", {}, `! ${alarm.kind.replaceAll("_", " ")} `), stamp(alarm.since), alarm.message)));
}

function showPlacement(picture) {
  const { banks, world_size: world, stage, run } = picture;
  if (banks.length === 0) {
    const why = run.variant === "shared" ? "Variant “shared” has no banks" : stage === "align" ? "Stage align has no banks yet" : "No placement yet";
    at("placement").replaceChildren(empty(`${why}: every rank takes every language.`));
    return;
  }
  const rows = banks.flatMap(({ language, first_rank: first, last_rank: last }) => {
    const name = first === last ? `rank ${first}` : `ranks ${first}–${last}`;
    const [from, wide] = [(100 * first) / world, (100 * (last - first + 1)) / world];
    const bar = element("span", { style: { left: `${from}%`, width: `${wide}%` } });
    const room = wide >= 24;
    if (room) bar.append(name);
    const beside = room ? null : element("span", { className: "outside", style: from > 60 ? { right: `${100 - from}%` } : { left: `${from + wide}%` } }, name);
    return [element("span", {}, language), element("div", { className: "track", title: `${language}: ${name}` }, bar, beside)];
  });
  at("placement").replaceChildren(element("div", { className: "ruler" }, ...rows), element("p", { className: "note" }, `Generation ${picture.generation}, ranks 0 to ${world - 1}.`));
}

// A row for each language, a cell for each layer.
function showGates(gates, languages) {
  at("gates").hidden = !gates;
  if (!gates) return;
  const name = (layer) => layer.split(".").slice(-2).join(" ");
  const rows = languages.filter((language) => gates.by_language[language]).flatMap((language) => {
    const shares = gates.by_language[language];
    const told = shares.filter((share) => share !== null);
    const mean = told.length ? told.reduce((sum, share) => sum + share, 0) / told.length : null;
    const cells = shares.map((share, layer) => element("span", {
      className: "gate", title: `${language}, ${name(gates.layers[layer])}: ${percent(share)}`,
      style: { background: `color-mix(in srgb, var(--accent) ${100 * (share ?? 0)}%, var(--track))` },
    }));
    const row = element("div", { className: "gate-row", ariaHidden: "true" }, ...cells);
    return [element("span", {}, language), row, element("span", { className: "number" }, percent(mean))];
  });
  at("gate-map").replaceChildren(element("div", { className: "gate-map" }, ...rows));
}

function showTimes(times) {
  if (!times.total_seconds) {
    at("times").replaceChildren(empty("Nothing yet."));
    return;
  }
  const hues = HUES[theme()];
  const parts = [["effective", times.productive_seconds], ...Object.entries(times.lost_seconds).sort((a, b) => b[1] - a[1])];
  const hue = (index) => (index === 0 ? colour("--good") : hues[(index + 4) % hues.length]);
  const shares = element("div", { className: "shares", ariaHidden: "true" }, ...parts.map(([name, seconds], index) =>
    element("span", { title: name, style: { flexGrow: String(seconds), background: hue(index) } })));
  const rows = parts.map(([name, seconds], index) => [
    [element("span", {}, element("span", { className: "swatch", style: { background: hue(index) } }), name)],
    [span(seconds), "number"], [percent(seconds / times.total_seconds), "number"],
  ]);
  const losses = element("p", { className: "note" }, `${count(times.losses, "generation was", "generations were")} broken; ${count(times.repeated_steps, "step was", "steps were")} made again.`);
  at("times").replaceChildren(shares, table([["", ""], ["time", "number"], ["share", "number"]], rows), losses);
}

function showMembers(members) {
  if (members.length === 0) {
    at("members").replaceChildren(empty("Nobody has been heard of yet."));
    return;
  }
  const rows = members.map((member) => [
    [member.worker], [member.rank ?? "–", "number"], [member.hostname], [member.state], [member.step.toLocaleString("en"), "number"],
    [`${member.heard_seconds.toFixed(0)} s ago`, "number"], [member.doing, "words"],
  ]);
  at("members").replaceChildren(table([["worker"], ["rank", "number"], ["machine"], ["state"], ["step", "number"], ["heard of", "number"], ["doing"]], rows));
}

function showTimeline(timeline) {
  const list = at("timeline");
  const open = new Set([...list.querySelectorAll("details[open]")].map((details) => details.dataset.key));
  list.replaceChildren(...timeline.toReversed().map((line) => {
    const [mark, tone] = MARKS[line.kind] ?? ["·", ""];
    const step = line.step ? ` (step ${line.step.toLocaleString("en")})` : "";
    const head = [element("span", { className: "mark", data: { tone }, title: line.kind }, mark), stamp(line.at)];
    const [first, ...rest] = line.text.split("\n");
    if (first.length <= 160 && rest.length === 0) return element("li", {}, ...head, line.text + step);
    const key = line.at + line.kind;
    const details = element("details", { open: open.has(key), data: { key } }, element("summary", {}, ...head, `${first.slice(0, 150)} …`), element("pre", {}, line.text + step));
    return element("li", {}, details);
  }));
  if (timeline.length === 0) list.replaceChildren(element("li", { className: "empty" }, "Nothing yet."));
}

function showStored(picture) {
  const items = picture.checkpoints.toReversed().map((one) => element("li", {}, stamp(one.at), `step ${one.step.toLocaleString("en")}`));
  at("checkpoints").replaceChildren(...(items.length ? items : [element("li", { className: "empty" }, "None yet.")]));
  const rows = picture.evaluations.toReversed().map((one) => [
    [one.name], [one.step.toLocaleString("en"), "number"], [percent(one.wer), "number"], [percent(one.cer), "number"], [one.loss ? round(one.loss) : "–", "number"],
  ]);
  const heads = [["set"], ["step", "number"], ["WER", "number"], ["CER", "number"], ["loss", "number"]];
  at("evaluations").replaceChildren(rows.length ? table(heads, rows) : empty("None yet."));
}

function showFlights(flights) {
  at("flights").hidden = flights.length === 0;
  const shown = [...at("flight-choices").children].map((button) => Number(button.dataset.generation));
  if (shown.join() === flights.join()) return;
  at("flight-choices").replaceChildren(...flights.map((generation) => {
    const button = element("button", { type: "button", data: { generation } }, `generation ${generation}`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => showFlight(generation));
    return button;
  }));
}

async function showFlight(generation) {
  for (const button of at("flight-choices").children) button.setAttribute("aria-pressed", String(Number(button.dataset.generation) === generation));
  const place = at("flight");
  try {
    const answer = await fetch(`/api/flight/${generation}`);
    if (!answer.ok) throw new Error(await answer.text());
    const { records, of } = await answer.json();
    const parts = Object.entries(records).flatMap(([rank, record]) => {
      const rows = record.toReversed().slice(0, 20).map((one) => [
        [one.group], [one.sequence, "number"], [one.operation], [one.what, "words"],
        [one.error ? `failed: ${one.error}` : one.finished === null ? "not finished" : "finished", "words"],
      ]);
      return [element("h2", {}, rank.replace("-", " ")), table([["group"], ["number", "number"], ["operation"], ["for"], ["how it ended"]], rows)];
    });
    const more = of > Object.keys(records).length ? empty(`${of} ranks left records; these are the first.`) : null;
    place.replaceChildren(...(parts.length ? parts : [empty("No rank of this generation left a record.")]), ...(more ? [more] : []));
  } catch (error) {
    place.replaceChildren(empty(`The records cannot be read: ${error.message}`));
  }
}

function showPicture(picture) {
  showHead(picture);
  showTiles(picture);
  showAlarms(picture.alarms);
  showPlacement(picture);
  showGates(picture.latest?.gates, picture.run.languages);
  showTimes(picture.times);
  showMembers(picture.members);
  showTimeline(picture.timeline);
  showStored(picture);
  showFlights(picture.flights);
  at("run").textContent = picture.run.url;
  at("written").textContent = `coordinator ${picture.coordinator.epoch}${picture.coordinator.since ? `, since ${clock(picture.coordinator.since)}` : ""}`;
}
