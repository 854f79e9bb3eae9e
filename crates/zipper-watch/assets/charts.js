// The charts: Plotly draws, this file says what.
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

// One chart: lines over steps, a legend of buttons that hide and show lines, and the values at the cursor.
class Chart {
  constructor(card, label, axes) {
    this.label = label;
    this.axes = axes;
    this.steps = [];
    this.lines = [];
    this.hidden = new Set();
    this.boundary = 0;
    this.log = false;
    this.revision = 0;
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.place.setAttribute("role", "img");
    this.legend = document.createElement("ul");
    this.legend.className = "legend";
    card.append(this.place, this.legend);
    this.render();
    this.place.on("plotly_hover", ({ points }) => this.tell(points[0].pointIndex));
    this.place.on("plotly_unhover", () => this.tell(null));
    new ResizeObserver(() => this.place.clientWidth > 0 && Plotly.Plots.resize(this.place)).observe(this.place);
  }

  // `lines`: [{name, values, axis, faint}], each as long as `steps`.
  draw(steps, lines) {
    const same = lines.length === this.lines.length && lines.every((line, at) => line.name === this.lines[at].name);
    this.steps = steps;
    this.lines = lines;
    this.render();
    if (!same) this.buildLegend();
    this.tell(null);
  }

  // With the colours of the theme.
  rebuild() {
    this.render();
    this.buildLegend();
    this.tell(null);
  }

  render() {
    this.revision += 1;
    Plotly.react(this.place, this.traces(), this.layout(), { displayModeBar: false, doubleClick: "autosize", showTips: false });
  }

  style(at) {
    const line = this.lines[at];
    const nth = this.lines.slice(0, at).filter((other) => !other.faint).length;
    const hues = HUES[theme()];
    return { hue: hues[nth % hues.length], dash: DASHES[Math.floor(nth / hues.length) % DASHES.length], width: line.faint ? 1 : 2 };
  }

  traces() {
    return this.lines.map((line, at) => {
      const { hue, dash, width } = this.style(at);
      return {
        type: "scatter", mode: this.steps.length < 3 ? "lines+markers" : "lines", x: this.steps, y: line.values, connectgaps: true,
        name: line.name, yaxis: line.axis ?? "y", opacity: line.faint ? 0.35 : 1, visible: !this.hidden.has(line.name), hoverinfo: "none",
        line: { color: hue, width, dash: dash.length ? dash.map((length) => `${length}px`).join() : "solid" },
      };
    });
  }

  layout() {
    const [line, soft] = [colour("--line"), colour("--soft")];
    const axis = (extra) => ({ gridcolor: line, linecolor: line, zeroline: false, ...extra });
    const layout = {
      height: HEIGHT, autosize: true, margin: { l: 62, r: this.axes.length > 1 ? 62 : 12, t: 10, b: 30 }, showlegend: false,
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { family: "system-ui, sans-serif", size: 12, color: soft },
      hovermode: "x", dragmode: "zoom", datarevision: this.revision, uirevision: "zoom",
      xaxis: axis({ tickformat: ",d", showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: soft }),
      shapes: [], annotations: [],
    };
    this.axes.forEach(({ label, canBeLog, fromZero }, at) => {
      layout[at === 0 ? "yaxis" : "yaxis2"] = axis({
        title: { text: label }, fixedrange: true, exponentformat: "SI", type: this.log && canBeLog ? "log" : "linear",
        rangemode: fromZero ? "tozero" : "normal", ...(at === 0 ? {} : { overlaying: "y", side: "right", showgrid: false }),
      });
    });
    if (this.boundary) this.markBoundary(layout, soft);
    return layout;
  }

  // Where stage 2 begins.
  markBoundary(layout, hue) {
    layout.shapes.push({ type: "line", x0: this.boundary, x1: this.boundary, yref: "paper", y0: 0, y1: 1, line: { color: hue, width: 1, dash: "dash" } });
    if (!this.namesStages) return;
    for (const [text, xanchor] of [["align", "right"], ["zipper", "left"]]) {
      layout.annotations.push({ text, x: this.boundary, xanchor, yref: "paper", y: 1, yanchor: "top", showarrow: false, font: { size: 11 } });
    }
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
    Plotly.restyle(this.place, { visible: show }, [at]);
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
}

// All charts of the page over one set of columns.
class Charts {
  constructor() {
    const card = (id) => document.getElementById(id);
    const loss = { label: "nats per token", canBeLog: true };
    this.loss = new Chart(card("chart-loss"), "Loss", [loss]);
    this.languages = new Chart(card("chart-languages"), "Loss by language", [loss]);
    this.throughput = new Chart(card("chart-throughput"), "Throughput", [
      { label: "audio s / s", fromZero: true },
      { label: "tokens / s", fromZero: true },
    ]);
    this.comm = new Chart(card("chart-comm"), "Waiting for communication", [{ label: "% of a step", fromZero: true }]);
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
    this.throughput.draw(step, [{ name: "audio s/s", values: smooth(audio) }, { name: "tokens/s", values: smooth(tokens), axis: "y2" }]);
    this.comm.draw(step, [{ name: "% waiting", values: smooth(comm.map((share) => (share === null ? null : 100 * share))) }]);
  }

  rebuild() {
    this.all.forEach((chart) => chart.rebuild());
  }
}
