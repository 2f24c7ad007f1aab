// The page is complete without this: it adds the theme, sorting and filtering, values of marks, and files to save.
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Storage is refused to some pages, such as those in a sandboxed frame: then the theme lasts as long as the page.
function remember(theme) {
  try { localStorage.setItem("scalebench-theme", theme); } catch { /* not remembered */ }
}

function recall() {
  try {
    const theme = localStorage.getItem("scalebench-theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch { /* nothing remembered */ }
}

function offerTheme(button) {
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    remember(document.documentElement.dataset.theme);
    label();
  });
  label();
  button.hidden = false;
}

function compare(a, b) {
  const [x, y] = [a, b].map((cell) => (cell.dataset.key === undefined ? null : Number(cell.dataset.key)));
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1;
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const sign = descending ? -1 : 1;
  const missing = (row) => row.cells[column].textContent === "—";
  const rows = [...body.rows].sort((a, b) =>
    // Missing values stay at the end in either direction.
    missing(a) - missing(b) || sign * compare(a.cells[column], b.cells[column]));
  body.append(...rows);
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function offerSorting(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, column, header));
    header.append(button);
  });
}

// --- tables: filter, copy ---------------------------------------------------------------------------------------------

const FILTER_FROM = 8; // rows

function button(text, action) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", action);
  return made;
}

const isOn = (toggled) => toggled.getAttribute("aria-pressed") === "true";

// A button that is pressed or not; ``changed`` is called with which of both it has become.
function toggle(text, on, changed) {
  const made = button(text, () => {
    made.setAttribute("aria-pressed", String(!isOn(made)));
    changed(isOn(made));
  });
  made.setAttribute("aria-pressed", String(on));
  made.dataset.first = String(on);
  return made;
}

function cellText(cell) {
  const text = (cell.dataset.key ?? cell.textContent).trim().replace(/\s*\n\s*/g, " ");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv(table) {
  return [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(cellText).join(",")).join("\n") + "\n";
}

async function copy(text, origin) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!done) save(new Blob([text], { type: "text/csv" }), "table.csv"); // a page from disk may not reach the clipboard
  const label = origin.textContent;
  origin.textContent = done ? "Copied" : "Saved";
  setTimeout(() => { origin.textContent = label; }, 1500);
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function filterRows(table, text) {
  const wanted = text.toLowerCase();
  for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
}

function offerTableTools(table) {
  const tools = Object.assign(document.createElement("div"), { className: "tools" });
  if (table.tBodies[0].rows.length >= FILTER_FROM) {
    const field = Object.assign(document.createElement("input"), { type: "search", placeholder: "Filter rows" });
    field.setAttribute("aria-label", `Filter rows: ${table.caption.textContent}`);
    field.addEventListener("input", () => filterRows(table, field.value));
    tools.append(field);
  }
  tools.append(button("Copy as CSV", (event) => copy(asCsv(table), event.target)));
  table.parentNode.before(tools);
}

// A region that scrolls must be reachable by keyboard; any other would be a tab stop where nothing can be done.
function markScrollable() {
  for (const region of document.querySelectorAll(".scroll, pre")) {
    const scrolls = region.scrollWidth > region.clientWidth + 1;
    if (scrolls) region.tabIndex = 0; else region.removeAttribute("tabindex");
    if (!scrolls) { region.removeAttribute("role"); region.removeAttribute("aria-label"); continue; }
    region.setAttribute("role", "group");
    region.setAttribute("aria-label", region.querySelector("caption")?.textContent ?? "Text that scrolls");
  }
}

// --- figures: values, series, files -----------------------------------------------------------------------------------

function marksOf(figure) {
  return [...figure.querySelectorAll(".drawing use")].filter((use) => use.querySelector("title"));
}

// The row that a mark's title names: by its first cell, else by its series and size among the title's words.
function rowOf(figure, title) {
  const rows = [...(figure.querySelector("tbody") ?? figure.parentNode.querySelector("tbody"))?.rows ?? []];
  const words = ` ${title.slice(0, title.lastIndexOf(": ")).replace(/[,:] /g, " ")} `.replaceAll("\u00a0", " ");
  const names = (cell) => words.includes(` ${cell.textContent.replaceAll("\u00a0", " ")} `);
  return rows.find((row) => row.cells[0].textContent === title.split(": ")[0])
    ?? rows.find(({ cells: [first, second] }) => names(first) && (first.classList.contains("n") || (second && names(second))));
}

function showMark(figure, mark) {
  [...figure.querySelectorAll(".here"), ...figure.parentNode.querySelectorAll("tr.here")].forEach((old) => old.classList.remove("here"));
  const title = mark?.querySelector("title").textContent ?? "";
  figure.querySelector(".value").textContent = title;
  mark?.classList.add("here");
  if (mark) rowOf(figure, title)?.classList.add("here");
}

function nearest(marks, event) {
  const away = (mark) => {
    const box = mark.getBoundingClientRect();
    return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
  };
  const closest = marks.reduce((best, mark) => (away(mark) < away(best) ? mark : best));
  return away(closest) < 30 ? closest : null;
}

function offerValues(figure, drawing) {
  const visible = () => marksOf(figure).filter((mark) => mark.getClientRects().length);
  if (!visible().length) return;
  const line = Object.assign(document.createElement("p"), { className: "value" });
  line.setAttribute("aria-live", "polite");
  drawing.after(line);
  drawing.tabIndex = 0;
  drawing.setAttribute("role", "group");
  drawing.setAttribute("aria-label", `${figure.querySelector("h2, h3").textContent}: arrow keys step through the values`);
  drawing.addEventListener("pointermove", (event) => showMark(figure, nearest(visible(), event)));
  drawing.addEventListener("pointerleave", () => showMark(figure, null));
  drawing.addEventListener("blur", () => showMark(figure, null));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const marks = visible(), at = marks.findIndex((mark) => mark.classList.contains("here"));
    showMark(figure, marks[(at < 0 ? (step > 0 ? 0 : marks.length - 1) : at + step + marks.length) % marks.length]);
  });
}

// A series is what is drawn in one of the page's colours for series, its entry in the legend included.
function showColor(svg, variable, on) {
  for (const part of svg.querySelectorAll("[style]")) {
    if (part.getAttribute("style").includes(`var(${variable})`)) part.style.display = on ? "" : "none";
  }
}

function offerSeries(svg, tools) {
  for (const [name, variable] of Object.entries(JSON.parse(svg.dataset.series ?? "{}"))) {
    const made = toggle(name, true, (on) => showColor(svg, variable, on));
    made.dataset.color = variable;
    tools.append(made);
  }
}

function standalone(svg) {
  const copied = svg.cloneNode(true), box = svg.viewBox.baseVal, look = getComputedStyle(document.documentElement);
  copied.setAttribute("width", box.width);
  copied.setAttribute("height", box.height);
  copied.setAttribute("font-family", "sans-serif");
  const paper = `<rect width="100%" height="100%" fill="${look.getPropertyValue("--paper")}"/>`;
  return new XMLSerializer().serializeToString(copied).replace(/(<\/desc>)/, `$1${paper}`)
    .replace(/var\((--[\w-]+)\)/g, (_, name) => look.getPropertyValue(name).trim())
    .replace(/var\((#\w+)\)/g, "$1");
}

function savePng(svg, name) {
  const image = new Image(), box = svg.viewBox.baseVal, canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [box.width * 3, box.height * 3];
  image.onload = () => {
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(blob, `${name}.png`));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(svg))}`;
}

function offerFigureTools(figure) {
  const drawing = figure.querySelector(".drawing"), svg = drawing?.querySelector("svg");
  if (!svg) return;
  offerValues(figure, drawing);
  const tools = Object.assign(document.createElement("div"), { className: "tools" });
  const link = Object.assign(document.createElement("a"), { href: `#${figure.id}`, textContent: "link" });
  offerScales(svg, tools);
  offerSeries(svg, tools);
  tools.append(
    button("SVG", () => save(new Blob([standalone(svg)], { type: "image/svg+xml" }), `${figure.id}.svg`)),
    button("PNG", () => savePng(svg, figure.id)), link);
  const data = figure.querySelector("details");
  if (data) data.before(tools); else figure.append(tools);
  for (const control of controlsOf(figure)) {
    control.addEventListener(control.tagName === "SELECT" ? "change" : "click", () => keepLink(figure, link));
  }
}

// --- the page ---------------------------------------------------------------------------------------------------------

function offerPrint(print) {
  const details = [...document.querySelectorAll("details")];
  print.addEventListener("click", () => {
    const closed = details.filter((each) => !each.open);
    document.documentElement.classList.add("print-data");
    for (const each of closed) { fill(each); each.open = true; }
    addEventListener("afterprint", () => {
      document.documentElement.classList.remove("print-data");
      for (const each of closed) each.open = false;
    }, { once: true });
    window.print();
  });
  print.hidden = false;
}

// A page of trials that are still running. Who uses it keeps what they opened, sorted and scrolled to.
function loadAgain(seconds) {
  const note = document.querySelector("#live span");
  note.textContent = ` It loads itself again every ${seconds} s until you use it.`;
  const timer = setTimeout(() => location.reload(), 1000 * seconds);
  const stay = () => {
    clearTimeout(timer);
    note.textContent = " Load it again for newer results.";
  };
  for (const use of ["pointerdown", "keydown", "wheel"]) addEventListener(use, stay, { once: true, passive: true });
}

recall();
if (document.body.dataset.liveS) loadAgain(Number(document.body.dataset.liveS));
offerTheme(document.getElementById("theme"));
offerPrint(document.getElementById("print"));
document.querySelectorAll("table.sortable").forEach(offerSorting);
document.querySelectorAll("details.data table, table.overview").forEach(offerTableTools);
document.querySelectorAll("figure").forEach(offerFigureTools);
document.querySelectorAll("details.trials").forEach(offerTrials);
document.querySelectorAll("details.data:not(.trials)").forEach((each) => each.addEventListener("toggle", () => fill(each)));
document.querySelectorAll("details").forEach((each) => each.addEventListener("toggle", markScrollable));
addEventListener("resize", markScrollable);
addEventListener("hashchange", openTarget);
markScrollable();
openTarget();
