"use strict";

// --- axes: ticks and their labels, and figures drawn logarithmic or linear ---------------------------------------------

const SVG = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function withPrefix(value, unit) {
  if (value === 0) return `0${unit && " " + unit}`;
  const power = Math.max(-3, Math.min(6, Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9)));
  const prefix = { "-3": "n", "-2": "µ", "-1": "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E" }[power];
  return power < 0 && unit !== "s" ? String(Number(value.toPrecision(3)))
    : `${Number((value / 1000 ** power).toPrecision(3))} ${prefix}${unit}`.trim();
}

const SUBS = [[8, [1, 1.5, 2, 3, 4, 5, 7]], [100, [1, 2, 5]], [1000, [1, 3]]];

function ticksOf([low, high], log) {
  if (log && high / low > 3) {
    const ticks = [], subs = SUBS.find(([most]) => high / low < most)?.[1] ?? [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      ticks.push(...subs.map((sub) => sub * 10 ** power).filter((tick) => tick >= low && tick <= high));
    }
    return ticks;
  }
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  return Array.from({ length: 8 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((tick) => tick <= high);
}

// One direction of a drawing as the page has it: the values at both ends and where they are, in units of the drawing.
class Axis {
  constructor([log, low, high, from, to, least]) {
    Object.assign(this, { log, low, high, from, to, least, now: log });
  }

  // The value at the lower end, which the logarithm needs above zero.
  get start() { return this.now && !this.log ? this.least : this.low; }

  value(place) {
    const share = (place - this.from) / (this.to - this.from);
    return this.log ? this.low * (this.high / this.low) ** share : this.low + (this.high - this.low) * share;
  }

  place(value) {
    const { start, high, from, to } = this;
    const share = this.now ? Math.log(Math.max(value, start / 1e3) / start) / Math.log(high / start) : (value - start) / (high - start);
    return from + (to - from) * share;
  }

  moved(place) { return this.now === this.log ? place : this.place(this.value(place)); }
}

const PAIR = /(-?[\d.]+) (-?[\d.]+)/g;

// A label at the end of a line stays where it is: its leader starts at the line's new end.
function movedLeader(path, x, y) {
  const [[x0, y0], [x1], [x2, y2]] = [...path.matchAll(PAIR)].map(([, ...pair]) => pair.map(Number));
  const start = y.moved(y0);
  return `M ${x.moved(x0)} ${start} L ${x1} ${start + 0.3 * (y2 - start)} L ${x2} ${y2}`;
}

// What is drawn by its values is clipped to the axes; frames, names and legends are not.
function move(part, x, y) {
  const first = part.original ??= { d: part.getAttribute("d"), x: part.getAttribute("x"), y: part.getAttribute("y") };
  if (x.now === x.log && y.now === y.log) {
    for (const [name, value] of Object.entries(first)) if (value !== null) part.setAttribute(name, value);
  } else if (part.classList.contains("leader")) part.setAttribute("d", movedLeader(first.d, x, y));
  else if (part.tagName === "path") part.setAttribute("d", first.d.replace(PAIR, (_, a, b) => `${x.moved(Number(a))} ${y.moved(Number(b))}`));
  else {
    part.setAttribute("x", x.moved(Number(first.x)));
    part.setAttribute("y", y.moved(Number(first.y)));
  }
}

function drawTicks(svg, x, y) {
  const made = element("g", { class: "redrawn" }), ends = `V${y.to}`;
  for (const [axis, kind] of [[x, "tx"], [y, "ty"]]) {
    const old = [...svg.querySelectorAll(`.${kind}`)], changed = axis.now !== axis.log;
    for (const part of old) part.style.display = changed ? "none" : "";
    const text = old.find((part) => part.tagName === "text"), line = old.find((part) => part.tagName === "path");
    for (const value of changed && text ? ticksOf([axis.start, axis.high], axis.now) : []) {
      const at = axis.place(value), label = text.cloneNode(false), grid = element("path", { d: axis === x ? `M${at} ${y.from}${ends}` : `M${x.from} ${at}H${x.to}`, style: line?.getAttribute("style") ?? "" });
      label.removeAttribute("transform");
      label.setAttribute(axis === x ? "x" : "y", axis === x ? at : at + 3.5);
      label.style.display = "";
      label.textContent = withPrefix(value, "");
      made.append(grid, label);
      grid.style.display = "";
    }
  }
  svg.querySelector(".redrawn")?.remove();
  svg.querySelector("defs").after(made);
}

function redrawn(svg, [x, y]) {
  for (const part of svg.querySelectorAll(":is(path, use)[clip-path]:not(.tx, .ty), [clip-path] :is(path, use), .leader")) move(part, x, y);
  drawTicks(svg, x, y);
}

// A direction along which a logarithm makes no sense has no switch, and never moves.
function offerScales(svg, tools) {
  if (!svg.dataset.axes) return;
  const axes = JSON.parse(svg.dataset.axes).map((given) => new Axis(given));
  axes.forEach((axis, i) => {
    if (axis.least === null) return;
    tools.append(toggle(["log x", "log y"][i], axis.log, (on) => {
      axis.now = on;
      redrawn(svg, axes);
    }));
  });
}
