// The page is complete without this: it adds the theme button, sorting, and opened details in print.
"use strict";

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function offerTheme(button) {
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
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

function openForPrint() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
}

offerTheme(document.getElementById("theme"));
document.querySelectorAll("table.sortable").forEach(offerSorting);
openForPrint();
