"use strict";

// Pictures with several views show one of them; without this script all are shown.
for (const figure of document.querySelectorAll("figure[data-views]")) {
  const views = [...figure.querySelectorAll("[data-view]")];
  const bar = document.createElement("div");
  bar.className = "views";
  const show = (name) => {
    for (const view of views) view.hidden = view.dataset.view !== name;
    for (const button of bar.children) button.setAttribute("aria-pressed", button.textContent === name);
  };
  for (const view of views) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = view.dataset.view;
    button.addEventListener("click", () => show(button.textContent));
    bar.append(button);
  }
  figure.prepend(bar);
  show(views[0].dataset.view);
}

// A click on a heading sorts by that column, a second one the other way; empty cells stay last.
const keyOf = (cell) => (cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort));
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const isEmpty = (row) => row.cells[column].textContent === "";
      rows.sort((a, b) => isEmpty(a) - isEmpty(b)
        || (down ? -1 : 1) * compare(keyOf(a.cells[column]), keyOf(b.cells[column])));
      table.tBodies[0].append(...rows);
    });
  });
}
document.documentElement.dataset.script = "done";
