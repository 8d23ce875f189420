"use strict";
// Sort a table by the column of the pressed button: by a cell's data-value or else its text.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => {
      const cell = row.children[column];
      const text = cell.dataset.value ?? cell.textContent.trim();
      return text === "" || isNaN(text) ? text : Number(text);
    };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === ""); // unknown values stay below
      const numbers = typeof x === "number" && typeof y === "number";
      const sign = numbers ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return up ? sign : -sign;
    };
    body.append(...[...body.rows].sort(order));
  });
}
// Show the curves of one layer at a time.
const select = document.getElementById("layer-choice");
if (select) {
  const show = () => {
    for (const figure of document.querySelectorAll(".curve")) {
      figure.hidden = figure.dataset.layer !== select.value;
    }
  };
  select.closest("p").hidden = false;
  select.addEventListener("change", show);
  show();
}
// Hide the layers that did not change.
const only = document.getElementById("only-changed");
if (only) {
  only.closest("p").hidden = false;
  only.addEventListener("change", () => {
    for (const row of document.querySelectorAll("tr[data-kept]")) row.hidden = only.checked;
  });
}
