// The page: one connection, which is made again for as long as it takes, and what it brings.
"use strict";

// The server sends something at least every five seconds.
const SILENCE_MS = 15000;
const RETRY_MS = [500, 1000, 2000, 4000];
// More points than this in a page that has been open for long: begin anew, thinned.
const MOST_POINTS = 12000;

const charts = new Charts();
let picture = null;
let tries = 0;
let over = false;

function connection(state, text) {
  const place = document.getElementById("connection");
  if (place.dataset.state === state && place.textContent === text) return;
  place.dataset.state = state;
  place.textContent = text;
}

function connect() {
  const source = new EventSource("/events");
  let watchdog = null;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENCE_MS);
  };
  const lost = () => {
    clearTimeout(watchdog);
    source.close();
    if (over) connection("over", "the run is over");
    else connection("away", "no answer; trying again");
    const pause = over ? RETRY_MS.at(-1) : RETRY_MS[Math.min(tries, RETRY_MS.length - 1)];
    tries += 1;
    setTimeout(connect, pause);
  };
  const on = (name, take) => source.addEventListener(name, (event) => {
    alive();
    take(JSON.parse(event.data));
  });
  source.onopen = () => {
    tries = 0;
    over = false;
    connection("live", "live");
    alive();
  };
  source.onerror = lost;
  on("alive", () => {});
  on("picture", (got) => {
    picture = got;
    showPicture(picture);
  });
  on("steps", ({ reset, columns }) => {
    if (reset) charts.forget();
    charts.add(columns);
    if (charts.columns.step.length > MOST_POINTS) {
      source.close();
      clearTimeout(watchdog);
      connect();
    }
  });
  on("over", () => {
    over = true;
    lost();
  });
}

const THEMES = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

function stored() {
  try {
    return localStorage.getItem("zipper-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function paint(choice) {
  const dark = choice === "dark" || (choice === "auto" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  button.textContent = choice;
  button.setAttribute("aria-label", `Colours: ${choice === "auto" ? "as the system says" : choice}`);
  charts.rebuild();
  if (picture) showTimes(picture.times);
}

let choice = THEMES.includes(stored()) ? stored() : "auto";
document.getElementById("theme").addEventListener("click", () => {
  choice = THEMES[(THEMES.indexOf(choice) + 1) % THEMES.length];
  try {
    localStorage.setItem("zipper-theme", choice);
  } catch {
    // Then it holds until the page is loaded again.
  }
  paint(choice);
});
system.addEventListener("change", () => paint(choice));

function press(id, change) {
  const button = document.getElementById(id);
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(pressed));
    change(pressed);
  });
}
press("smooth", (pressed) => {
  charts.smooth = pressed;
  charts.draw();
});
press("log", (pressed) => {
  for (const chart of [charts.loss, charts.languages]) {
    chart.log = pressed;
    chart.rebuild();
  }
});
// Ages are told by this clock between two pictures.
setInterval(() => picture && showTiles(picture), 1000);

paint(choice);
connect();
