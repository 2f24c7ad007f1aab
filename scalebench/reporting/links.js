// --- permalinks: a figure as the reader has set it --------------------------------------------------------------------

// A link is the figure's id, and what is set otherwise than the page has it: #study-demo-explore?x+axis=compute&log+x=true
const controlsOf = (figure) => [...figure.querySelectorAll(".tools [aria-pressed], .tools select")];
const nameOf = (control) => (control.tagName === "SELECT" ? control.parentNode.firstChild : control).textContent.trim();
const valueOf = (control) => (control.tagName === "SELECT" ? control.selectedOptions[0].text : control.getAttribute("aria-pressed"));

function firstValue(control) {
  return control.tagName === "SELECT" ? [...control.options].find((each) => each.defaultSelected).text : control.dataset.first;
}

function linkTo(figure) {
  const changed = controlsOf(figure).filter((control) => valueOf(control) !== firstValue(control));
  const state = new URLSearchParams(changed.map((control) => [nameOf(control), valueOf(control)])).toString();
  return `#${figure.id}${state && `?${state}`}`;
}

function keepLink(figure, link) {
  link.href = linkTo(figure);
  // A page in a sandboxed frame has no URL.
  try { history.replaceState(null, "", link.href); } catch { /* the link has the state all the same */ }
}

// Columns before scales: another column has its own.
function restore(figure, state) {
  for (const control of controlsOf(figure).sort((a, b) => (b.tagName === "SELECT") - (a.tagName === "SELECT"))) {
    const wanted = state.get(nameOf(control)) ?? firstValue(control);
    if (wanted === valueOf(control)) continue;
    if (control.tagName !== "SELECT") { if (["true", "false"].includes(wanted)) control.click(); continue; }
    const option = [...control.options].find((each) => each.text === wanted);
    if (!option) continue;
    control.value = option.value;
    control.dispatchEvent(new Event("change", { bubbles: true }));
  }
}

function openTarget() {
  let [id, state] = location.hash.slice(1).split("?");
  try { id = decodeURIComponent(id); } catch { return; } // no link of this page
  const made = [...document.querySelectorAll("details.trials")].find((each) => exploreId(each) === id);
  if (made) showTrials(made);
  const target = id && document.getElementById(id);
  if (!target) return;
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  if (state) restore(target, new URLSearchParams(state));
  target.scrollIntoView({ behavior: "instant" });
}
