// The charts: uPlot draws, this file says what.
"use strict";

// Eight hues that people with any colour vision tell apart, for both themes; from the ninth line on they come again, dashed.
const HUES = {
  light: ["#0072b2", "#c75000", "#00795a", "#b0508a", "#946200", "#3a86b8", "#565656", "#6f45b0"],
  dark: ["#56b4e9", "#ff8c5a", "#2fcc9a", "#e69bc6", "#f2c14e", "#a5d8f5", "#c4c4c4", "#b79cff"],
};
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const HEIGHT = 240;
// Weight of what came before in smoothed lines.
const SMOOTHING = 0.9;

const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function smoothed(values) {
  let mean = null;
  let weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    mean = SMOOTHING * (mean ?? 0) + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return mean / weight;
  });
}

const round = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01 || size === 0) return value.toFixed(3).replace(/0$/, "");
  return value.toExponential(1);
};

const tick = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

// One chart: lines over steps, a legend of buttons that hide and show lines, and the values at the cursor.
class Chart {
  constructor(card, label, axes) {
    this.card = card;
    this.label = label;
    this.axes = axes;
    this.lines = [];
    this.hidden = new Set();
    this.boundary = 0;
    this.log = false;
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.place.setAttribute("role", "img");
    this.legend = document.createElement("ul");
    this.legend.className = "legend";
    card.append(this.place, this.legend);
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  // `lines`: [{name, values, axis, faint}], each as long as `steps`.
  draw(steps, lines) {
    const same = this.plot && lines.length === this.lines.length && lines.every((line, at) => line.name === this.lines[at].name);
    this.steps = steps;
    this.lines = lines;
    const data = [steps, ...lines.map((line) => line.values)];
    if (same) this.plot.setData(data);
    else this.build(data);
    this.tell(null);
  }

  style(at) {
    const line = this.lines[at];
    const nth = this.lines.slice(0, at).filter((other) => !other.faint).length;
    const hues = HUES[theme()];
    return { hue: hues[nth % hues.length], dash: DASHES[Math.floor(nth / hues.length) % DASHES.length], width: line.faint ? 1 : 2 };
  }

  build(data) {
    this.plot?.destroy();
    const grid = { stroke: colour("--line"), width: 1 };
    const axis = (extra) => ({ stroke: colour("--soft"), grid, ticks: grid, font: "12px system-ui, sans-serif", ...extra });
    const whole = (_, values) => values.map((value) => (Number.isInteger(value) ? value.toLocaleString("en") : ""));
    const scales = { x: { time: false } };
    this.axes.forEach((one) => {
      scales[one.scale] = { distr: this.log && one.canBeLog ? 3 : 1, range: one.range };
    });
    const series = this.lines.map((line, at) => {
      const { hue, dash, width } = this.style(at);
      return {
        label: line.name, scale: line.axis ?? this.axes[0].scale, stroke: line.faint ? `${hue}55` : hue, width, dash, spanGaps: true,
        points: { show: this.steps.length < 3, size: 6 }, show: !this.hidden.has(line.name),
      };
    });
    this.plot = new uPlot({
      width: Math.max(this.place.clientWidth, 200), height: HEIGHT, scales,
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      axes: [
        axis({ values: whole }),
        ...this.axes.map((one, at) => axis({
          scale: one.scale, side: at === 0 ? 3 : 1, size: 58, label: one.label, labelSize: 18, labelFont: "12px system-ui, sans-serif",
          grid: at === 0 ? grid : { show: false }, values: (_, values) => values.map((value) => (value === null ? "" : one.text(value))),
        })),
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)], drawAxes: [(plot) => this.drawBoundary(plot)] },
    }, data, this.place);
    this.buildLegend();
  }

  // Where stage 2 begins.
  drawBoundary(plot) {
    const x = plot.valToPos(this.boundary, "x", true);
    const { left, top, width, height } = plot.bbox;
    if (!this.boundary || x <= left || x >= left + width) return;
    const context = plot.ctx;
    context.save();
    context.strokeStyle = colour("--soft");
    context.fillStyle = colour("--soft");
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(x, top);
    context.lineTo(x, top + height);
    context.stroke();
    if (!this.namesStages) {
      context.restore();
      return;
    }
    context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.fillText("align", x - 6 * devicePixelRatio, top + 12 * devicePixelRatio);
    context.textAlign = "left";
    context.fillText("zipper", x + 6 * devicePixelRatio, top + 12 * devicePixelRatio);
    context.restore();
  }

  buildLegend() {
    this.values = [];
    const items = this.lines.map((line, at) => {
      const { hue, dash } = this.style(at);
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!this.hidden.has(line.name)));
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 22 8");
      svg.setAttribute("aria-hidden", "true");
      const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [key, value] of Object.entries({ x1: 0, x2: 22, y1: 4, y2: 4, stroke: hue, "stroke-width": 3, "stroke-dasharray": dash.join(" ") })) {
        stroke.setAttribute(key, value);
      }
      svg.append(stroke);
      const value = document.createElement("b");
      this.values[at] = value;
      button.append(svg, line.name, value);
      button.addEventListener("click", () => this.toggle(at, button));
      const item = document.createElement("li");
      item.append(button);
      item.hidden = Boolean(line.faint);
      return item;
    });
    this.legend.replaceChildren(...items);
  }

  toggle(at, button) {
    const name = this.lines[at].name;
    const show = this.hidden.has(name);
    if (show) this.hidden.delete(name);
    else this.hidden.add(name);
    button.setAttribute("aria-pressed", String(show));
    this.plot.setSeries(at + 1, { show });
  }

  // Values at a place, or the newest ones.
  tell(at) {
    const newest = (values) => values.findLast((value) => value !== null && value !== undefined);
    const told = this.lines.map((line, index) => {
      const text = round(at === null || at === undefined ? newest(line.values) : line.values[at]);
      if (this.values?.[index]) this.values[index].textContent = text;
      return line.faint ? "" : `${line.name} ${text}`;
    });
    if (at === null || at === undefined) {
      this.place.setAttribute("aria-label", `${this.label}, newest values: ${told.filter(Boolean).join(", ")}`);
    }
  }

  rebuild() {
    if (this.plot) this.build([this.steps, ...this.lines.map((line) => line.values)]);
    this.tell(null);
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
}

// All charts of the page over one set of columns.
class Charts {
  constructor() {
    const card = (id) => document.getElementById(id);
    const from = (least) => (_, min, max) => [least, max > least ? max * 1.05 : least + 1];
    const around = (_, min, max) => {
      if (min === null || max === null) return [0, 1];
      const room = Math.max((max - min) * 0.08, Math.abs(max) * 0.01, 1e-6);
      return [min - room, max + room];
    };
    const loss = { scale: "y", label: "nats per token", text: tick, canBeLog: true, range: around };
    this.loss = new Chart(card("chart-loss"), "Loss", [loss]);
    this.languages = new Chart(card("chart-languages"), "Loss by language", [loss]);
    this.throughput = new Chart(card("chart-throughput"), "Throughput", [
      { scale: "y", label: "audio s / s", text: tick, range: from(0) },
      { scale: "tokens", label: "tokens / s", text: tick, range: from(0) },
    ]);
    this.comm = new Chart(card("chart-comm"), "Waiting for communication", [
      { scale: "y", label: "% of a step", text: tick, range: from(0) },
    ]);
    this.loss.namesStages = true;
    this.languages.namesStages = true;
    this.all = [this.loss, this.languages, this.throughput, this.comm];
    this.smooth = true;
    this.forget();
  }

  forget() {
    this.columns = { step: [], stage: [], loss: [], lr: [], grad_norm: [], audio_per_second: [], tokens_per_second: [], comm_share: [], languages: {} };
  }

  add(columns) {
    const before = this.columns.step.length;
    for (const key of Object.keys(this.columns)) {
      if (key !== "languages") this.columns[key].push(...columns[key]);
    }
    for (const [language, values] of Object.entries(columns.languages)) {
      const mine = (this.columns.languages[language] ??= new Array(before).fill(null));
      mine.push(...values);
    }
    this.draw();
  }

  draw() {
    const { step, loss, audio_per_second: audio, tokens_per_second: tokens, comm_share: comm, languages, stage } = this.columns;
    const boundary = stage.includes(1) && stage.includes(2) ? step[stage.indexOf(2)] : 0;
    this.all.forEach((chart) => (chart.boundary = boundary));
    const smooth = (values) => (this.smooth ? smoothed(values) : values);
    this.loss.draw(step, this.smooth ? [{ name: "each step", values: loss, faint: true }, { name: "loss", values: smooth(loss) }] : [{ name: "loss", values: loss }]);
    this.languages.draw(step, Object.entries(languages).map(([name, values]) => ({ name, values: smooth(values) })));
    this.throughput.draw(step, [{ name: "audio s/s", values: smooth(audio) }, { name: "tokens/s", values: smooth(tokens), axis: "tokens" }]);
    this.comm.draw(step, [{ name: "% waiting", values: smooth(comm.map((share) => (share === null ? null : 100 * share))) }]);
  }

  rebuild() {
    this.all.forEach((chart) => chart.rebuild());
  }
}
