// Sorting and filtering of tables, and values under the pointer. The page says all of it without this script too.
"use strict";

// What a cell sorts by: its first number, or its text where a column has none. Counts have commas.
function cellKey(row, column) {
  const text = row.cells[column].textContent.trim();
  const found = /[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?/i.exec(text);
  return { text, number: found ? Number(found[0].replaceAll(",", "")) : NaN };
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, place) => ({ row, place, ...cellKey(row, column) }));
  const named = column === [...body.rows[0].cells].findIndex((cell) => cell.tagName === "TH");
  const numeric = !named && rows.some((one) => !Number.isNaN(one.number));
  rows.sort((a, b) => {
    if (!numeric) {
      const order = a.text.localeCompare(b.text, "en", { numeric: true });
      return (descending ? -order : order) || a.place - b.place;
    }
    // Cells without a number stay last both ways.
    if (Number.isNaN(a.number) || Number.isNaN(b.number)) {
      return Number.isNaN(a.number) - Number.isNaN(b.number) || a.place - b.place;
    }
    return (descending ? b.number - a.number : a.number - b.number) || a.place - b.place;
  });
  body.append(...rows.map((one) => one.row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

function makeFilterable(table) {
  const rows = [...table.tBodies[0].rows];
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  label.className = "filter";
  input.type = "search";
  input.placeholder = "words to keep";
  label.append("Filter rows ", input, " ", count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
  table.closest(".scroll").before(label);
}

// Spots are lines "left top width height text", in parts of a thousand of the figure.
function makeSpots(figure) {
  const spots = figure.dataset.spots.split("\n").map((line) => {
    const [x, y, w, h, ...words] = line.split(" ");
    return { x: +x / 10, y: +y / 10, w: +w / 10, h: +h / 10, text: words.join(" ") };
  });
  const frame = figure.querySelector(".frame");
  const canvas = figure.querySelector(".canvas");
  const box = document.createElement("div");
  const told = document.createElement("output");
  box.className = "spot";
  box.hidden = true;
  told.className = "told";
  told.textContent = "Point at the figure, or focus it and use the arrow keys, to read values.";
  canvas.append(box);
  frame.after(told);
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", "Figure with values; arrow keys move between them");
  let at = -1;
  function show(index) {
    at = index;
    const one = spots[index];
    box.hidden = false;
    Object.assign(box.style, { left: `${one.x}%`, top: `${one.y}%`, width: `${one.w}%`, height: `${one.h}%` });
    told.textContent = one.text;
  }
  canvas.addEventListener("pointermove", (event) => {
    const area = canvas.getBoundingClientRect();
    const x = (100 * (event.clientX - area.left)) / area.width;
    const y = (100 * (event.clientY - area.top)) / area.height;
    const index = spots.findIndex((one) => x >= one.x && x < one.x + one.w && y >= one.y && y < one.y + one.h);
    if (index >= 0 && index !== at) show(index);
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (at < 0) return show(0);
    const from = spots[at];
    let best = -1;
    let least = Infinity;
    spots.forEach((one, index) => {
      const dx = one.x + one.w / 2 - from.x - from.w / 2;
      const dy = one.y + one.h / 2 - from.y - from.h / 2;
      const along = dx * step[0] + dy * step[1];
      const aside = Math.abs(step[0] ? dy : dx);
      if (along > 0.01 && along + 4 * aside < least) [best, least] = [index, along + 4 * aside];
    });
    if (best >= 0) show(best);
  });
}

document.querySelectorAll("table[data-sort]").forEach(makeSortable);
document.querySelectorAll("table[data-filter]").forEach(makeFilterable);
document.querySelectorAll("figure[data-spots]").forEach(makeSpots);
