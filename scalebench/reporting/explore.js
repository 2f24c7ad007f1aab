"use strict";

// --- any two columns of the trials against each other ------------------------------------------------------------------

const PLOT = { width: Math.max(300, Math.min(640, document.documentElement.clientWidth - 32)), height: 360, left: 74, right: 16, top: 12, bottom: 44 };
const X_FIRST = /^N /, Y_FIRST = /loss/, LOG_FROM = 20, MOST_PLOTTED = 2000, MOST_COLORS = 8;

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

// The columns with numbers, by place: name and unit.
function plottable(table) {
  const rows = [...table.tBodies[0].rows];
  return [...table.tHead.rows[0].cells].map((head, place) => ({ place, name: head.textContent, unit: head.dataset.unit ?? "" }))
    .filter(({ place }) => new Set(rows.map((row) => row.cells[place].dataset.key).filter((key) => key !== undefined)).size > 1);
}

// What tells the series apart: the first column of words that has a few values, but not the trial's name, status or reason.
function groupOf(table) {
  const rows = [...table.tBodies[0].rows], last = table.tHead.rows[0].cells.length - 1;
  const values = (place) => new Set(rows.map((row) => row.cells[place].textContent));
  const place = [...table.tHead.rows[0].cells].findIndex((head, at) => at > 1 && at < last && head.textContent !== "status"
    && rows.every((row) => row.cells[at].dataset.key === undefined) && values(at).size > 1);
  return place < 0 ? null : { place, names: [...values(place)].slice(0, MOST_COLORS) };
}

function ticksOf([low, high], log) {
  if (log) {
    const subs = high / low < 1000 ? [1, 2, 5] : [1], ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      ticks.push(...subs.map((sub) => sub * 10 ** power).filter((tick) => tick >= low && tick <= high));
    }
    return ticks;
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  return Array.from({ length: 8 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((tick) => tick <= high);
}

function scaleOf(values, log, from, to) {
  const positive = log ? values.filter((value) => value > 0) : values, at = log ? Math.log : Number;
  const ends = [positive.reduce((a, b) => Math.min(a, b)), positive.reduce((a, b) => Math.max(a, b))];
  const margin = 0.04 * (at(ends[1]) - at(ends[0])) || 1;
  const [low, high] = [at(ends[0]) - margin, at(ends[1]) + margin], back = log ? Math.exp : Number;
  const place = (value) => from + (to - from) * (at(value) - low) / (high - low);
  return { place, ticks: ticksOf([back(low), back(high)], log) };
}

function drawAxes(svg, x, y, columns) {
  const { width, height, left, right, top, bottom } = PLOT, grid = "stroke: var(--grid)", ink = "fill: var(--ink)";
  for (const tick of x.ticks) {
    const at = x.place(tick);
    svg.append(element("path", { d: `M${at} ${top}V${height - bottom}`, style: grid }),
      element("text", { x: at, y: height - bottom + 16, "text-anchor": "middle", style: ink }, withPrefix(tick, columns[0].unit)));
  }
  for (const tick of y.ticks) {
    const at = y.place(tick);
    svg.append(element("path", { d: `M${left} ${at}H${width - right}`, style: grid }),
      element("text", { x: left - 6, y: at + 4, "text-anchor": "end", style: ink }, withPrefix(tick, columns[1].unit)));
  }
  svg.append(element("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", style: ink }, columns[0].name),
    element("text", { transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", style: ink }, columns[1].name));
}

function plot(svg, table, group, columns, logs) {
  const rows = [...table.tBodies[0].rows].slice(0, MOST_PLOTTED);
  const points = rows.map((row) => ({ row, at: columns.map(({ place }) => Number(row.cells[place].dataset.key ?? NaN)) }))
    .filter(({ at }) => at.every((value, i) => Number.isFinite(value) && (!logs[i] || value > 0)));
  svg.querySelectorAll(":scope > :not(title, desc, defs)").forEach((old) => old.remove());
  svg.querySelector("desc").textContent = `${points.length} trials: ${columns[1].name} against ${columns[0].name}.`;
  if (!points.length) return;
  const x = scaleOf(points.map(({ at }) => at[0]), logs[0], PLOT.left, PLOT.width - PLOT.right);
  const y = scaleOf(points.map(({ at }) => at[1]), logs[1], PLOT.height - PLOT.bottom, PLOT.top);
  drawAxes(svg, x, y, columns);
  for (const { row, at } of points) {
    const series = group ? group.names.indexOf(row.cells[group.place].textContent) : 0;
    const color = series < 0 ? "--muted" : `--s${series + 1}`;
    const said = columns.map(({ place, name }) => `${name} ${row.cells[place].textContent}`).join(", ");
    svg.append(element("use", { href: `#${svg.id}-dot`, x: x.place(at[0]), y: y.place(at[1]), style: `fill: var(${color})` },
      element("title", {}, `${row.cells[0].textContent}: ${said}`)));
  }
}

function select(label, options, chosen, changed) {
  const field = document.createElement("select"), named = document.createElement("label");
  field.append(...options.map(({ name }, i) => new Option(name, String(i), false, i === chosen)));
  field.addEventListener("change", changed);
  named.append(`${label} `, field);
  return { field, named };
}

function offerPlot(details) {
  const table = details.querySelector("table"), columns = plottable(table), group = groupOf(table);
  if (columns.length < 2) return;
  const id = `${details.id.replace(/-trials$/, "")}-explore`, figure = document.createElement("figure");
  const svg = element("svg", { id: `${id}-drawing`, viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` },
    element("title", { id: `${id}-title` }, "Any two columns of the trials"), element("desc", { id: `${id}-desc` }),
    element("defs", {}, element("circle", { id: `${id}-drawing-dot`, r: 4 })));
  if (group) svg.dataset.series = JSON.stringify(Object.fromEntries(group.names.map((name, i) => [name, `--s${i + 1}`])));
  const first = (pattern, otherwise) => Math.max(0, columns.findIndex(({ name }) => pattern.test(name))) || otherwise;
  const chosen = [first(X_FIRST, 0), first(Y_FIRST, 1)];
  const spans = (place) => {
    const values = [...table.tBodies[0].rows].map((row) => Number(row.cells[place].dataset.key ?? NaN)).filter(Number.isFinite);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    return low > 0 && values.reduce((a, b) => Math.max(a, b), 0) > LOG_FROM * low;
  };
  const redraw = () => {
    const now = fields.map(({ field }) => columns[Number(field.value)]);
    plot(svg, table, group, now, switches.map((each) => each.getAttribute("aria-pressed") === "true"));
  };
  const fields = ["x axis", "y axis"].map((label, i) => select(label, columns, chosen[i], redraw));
  const switches = ["log x", "log y"].map((label, i) => {
    const toggle = button(label, () => {
      toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") === "false"));
      redraw();
    });
    toggle.setAttribute("aria-pressed", String(spans(columns[chosen[i]].place)));
    return toggle;
  });
  const title = Object.assign(document.createElement("h3"), { textContent: "Any two columns of the trials" });
  const drawing = Object.assign(document.createElement("div"), { className: "drawing" });
  const choices = Object.assign(document.createElement("div"), { className: "tools" });
  const caption = Object.assign(document.createElement("figcaption"), { textContent: "Every trial of the table below that has both values." });
  figure.id = id;
  figure.className = "explore";
  drawing.append(svg);
  choices.append(fields[0].named, switches[0], fields[1].named, switches[1]);
  details.querySelector("summary").textContent = "Every trial, with a figure of any two columns";
  figure.append(title, choices, drawing, caption);
  details.querySelector("summary").after(figure);
  redraw();
}
