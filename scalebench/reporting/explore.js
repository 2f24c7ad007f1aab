// --- any two columns of the trials against each other ------------------------------------------------------------------

const PLOT = { width: Math.max(300, Math.min(640, document.documentElement.clientWidth - 32)), height: 360, left: 74, right: 16, top: 12, bottom: 44 };
const X_FIRST = /^N /, Y_FIRST = /loss/, LOG_FROM = 20, MOST_PLOTTED = 2000, MOST_COLORS = 8;

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
    const summary = columns.map(({ place, name }) => `${name} ${row.cells[place].textContent}`).join(", ");
    svg.append(element("use", { href: `#${svg.id}-dot`, x: x.place(at[0]), y: y.place(at[1]), style: `fill: var(${color})` },
      element("title", {}, `${row.cells[0].textContent}: ${summary}`)));
  }
}

function select(label, options, chosen, changed) {
  const field = document.createElement("select"), named = document.createElement("label");
  field.append(...options.map(({ name }, i) => new Option(name, String(i), i === chosen, i === chosen)));
  field.addEventListener("change", changed);
  named.append(`${label} `, field);
  return { field, named };
}

function spansFarther(table, place) {
  const values = [...table.tBodies[0].rows].map((row) => Number(row.cells[place].dataset.key ?? NaN)).filter(Number.isFinite);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  return low > 0 && values.reduce((a, b) => Math.max(a, b), 0) > LOG_FROM * low;
}

function emptyPlot(id, group) {
  const svg = element("svg", { id: `${id}-drawing`, viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` },
    element("title", { id: `${id}-title` }, "Any two columns of the trials"), element("desc", { id: `${id}-desc` }),
    element("defs", {}, element("circle", { id: `${id}-drawing-dot`, r: 4 })));
  if (group) svg.dataset.series = JSON.stringify(Object.fromEntries(group.names.map((name, i) => [name, `--s${i + 1}`])));
  return svg;
}

function offerPlot(details, table) {
  const columns = plottable(table), group = groupOf(table);
  if (columns.length < 2) return null;
  const figure = document.createElement("figure"), id = exploreId(details), svg = emptyPlot(id, group);
  const first = (pattern, otherwise) => Math.max(0, columns.findIndex(({ name }) => pattern.test(name))) || otherwise;
  const chosen = [first(X_FIRST, 0), first(Y_FIRST, 1)];
  const redraw = () => {
    plot(svg, table, group, fields.map(({ field }) => columns[Number(field.value)]), switches.map(isOn));
    for (const each of figure.querySelectorAll("[data-color]")) showColor(svg, each.dataset.color, isOn(each));
  };
  const fields = ["x axis", "y axis"].map((label, i) => select(label, columns, chosen[i], redraw));
  const switches = ["log x", "log y"].map((label, i) => toggle(label, spansFarther(table, columns[chosen[i]].place), redraw));
  const title = Object.assign(document.createElement("h3"), { textContent: "Any two columns of the trials" });
  const drawing = Object.assign(document.createElement("div"), { className: "drawing" });
  const choices = Object.assign(document.createElement("div"), { className: "tools" });
  const caption = Object.assign(document.createElement("figcaption"), { textContent: "Every trial of the table below that has both values." });
  figure.id = id;
  figure.className = "explore";
  drawing.append(svg);
  choices.append(fields[0].named, switches[0], fields[1].named, switches[1]);
  figure.append(title, choices, drawing, caption);
  details.querySelector("summary").after(figure);
  redraw();
  return figure;
}

// --- the trials, made when a reader opens them ------------------------------------------------------------------------

const exploreId = (details) => `${details.id.replace(/-trials$/, "")}-explore`;

// JSON is a table's size without its thousands of elements.
function tableOf(json) {
  const { caption, columns, units, rows } = JSON.parse(json.textContent);
  const table = document.createElement("table"), scroll = Object.assign(document.createElement("div"), { className: "scroll" });
  const head = table.createTHead().insertRow(), body = table.createTBody();
  table.createCaption().append(Object.assign(document.createElement("span"), { textContent: caption }));
  const numeric = columns.map((_, i) => rows.some((row) => Array.isArray(row[i])));
  columns.forEach((name, i) => {
    const cell = Object.assign(document.createElement("th"), { textContent: name, scope: "col" });
    if (units[i]) cell.dataset.unit = units[i];
    if (numeric[i]) cell.className = "n";
    head.append(cell);
  });
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((value, i) => {
      const cell = document.createElement(i ? "td" : "th"), [text, key] = Array.isArray(value) ? value : [value];
      cell.textContent = text;
      if (!i) cell.scope = "row";
      if (key !== undefined || (numeric[i] && text === "—")) cell.className = "n";
      if (key !== undefined) cell.dataset.key = key;
      line.append(cell);
    });
  }
  scroll.append(table);
  json.replaceWith(scroll);
  return table;
}

// A long table has only some of its rows as elements; the others come with it as JSON.
function showAllRows(details) {
  const json = details.querySelector(":scope > script");
  if (!json) return details.querySelector("table");
  details.querySelectorAll(":scope > .scroll, :scope > .tools").forEach((some) => some.remove());
  const table = tableOf(json);
  if (details.classList.contains("trials")) offerSorting(table);
  offerTableTools(table);
  markScrollable();
  return table;
}

// Before a reader sees it, on the screen or on paper.
const fill = (details) => (details.classList.contains("trials") ? showTrials(details) : showAllRows(details));

function showTrials(details) {
  if (details.dataset.shown) return;
  details.dataset.shown = "yes";
  const table = showAllRows(details), figure = offerPlot(details, table);
  if (figure) offerFigureTools(figure);
}

// Below the headline figure of a loss, links to the figure of every trial with its loss against another column.
const OTHER_AXES = ["tokens or samples seen", "compute", "training time", "energy"];

function offerOtherAxes(details) {
  const figure = document.getElementById(details.id.replace(/trials$/, "loss"));
  const json = details.querySelector(":scope > script"), { columns, rows } = json ? JSON.parse(json.textContent) : {};
  const table = details.querySelector("table"), varied = json
    ? columns.filter((_, i) => new Set(rows.map((row) => row[i]?.[1] ?? 0)).size > 1 && rows.some((row) => Array.isArray(row[i])))
    : plottable(table).map(({ name }) => name);
  const names = OTHER_AXES.filter((name) => varied.includes(name));
  if (!figure || !names.length) return;
  const line = Object.assign(document.createElement("p"), { className: "tools", textContent: "Loss of every trial against" });
  for (const name of names) {
    const state = new URLSearchParams([["x axis", name]]);
    line.append(Object.assign(document.createElement("a"), { href: `#${exploreId(details)}?${state}`, textContent: name }));
  }
  figure.querySelector(":scope > .tools")?.after(line);
}

function offerTrials(details) {
  offerOtherAxes(details);
  details.hidden = false;
  details.querySelector("summary").textContent = "Every trial, with a figure of any two columns";
  details.addEventListener("toggle", () => fill(details));
  if (details.open) showTrials(details);
}
