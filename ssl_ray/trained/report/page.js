// Values under the pointer, and one class of a map at a time. The page is complete without this.
"use strict";
const tip = document.getElementById("tip");

function show(event, rows) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
  const top = event.clientY + 16 + height > innerHeight ? event.clientY - 16 - height : event.clientY + 16;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function at(svg, event) {
  const box = svg.viewBox.baseVal, place = svg.getBoundingClientRect();
  return [
    box.x + ((event.clientX - place.left) / place.width) * box.width,
    box.y + ((event.clientY - place.top) / place.height) * box.height,
  ];
}

function nearest(values, wanted) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle; else high = middle;
  }
  return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
}

function text(value, share) {
  if (share) return (100 * value).toFixed(1) + " %";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const { box, data } = JSON.parse(chart.querySelector("script").textContent);
  const curves = data.curves.filter((curve) => curve.x.length);
  const [first, last] = data.x;
  svg.addEventListener("pointermove", (event) => {
    const share = (at(svg, event)[0] - box.left) / (box.right - box.left);
    const wanted = first + Math.min(1, Math.max(0, share)) * (last - first);
    if (!curves.length) return;
    const step = curves.map((c) => c.x[nearest(c.x, wanted)])
      .reduce((a, b) => (Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b));
    const x = box.left + ((step - first) / (last - first)) * (box.right - box.left);
    cursor.firstElementChild.setAttribute("d", `M${x} ${box.top}V${box.bottom}`);
    cursor.setAttribute("visibility", "visible");
    const rows = [element("b", "step " + step.toLocaleString("en"))];
    for (const curve of curves) {
      const i = nearest(curve.x, wanted);
      const row = element("div", "");
      row.append(element("span", "", "swatch s" + curve.run));
      row.append((curves.length > 1 ? curve.name + "  " : "") + text(curve.y[i], data.share));
      rows.push(row);
    }
    show(event, rows);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
}

for (const map of document.querySelectorAll(".map")) {
  const svg = map.querySelector("svg"), ring = svg.querySelector(".ring");
  const { points, names } = JSON.parse(map.querySelector("script").textContent);
  const { cell, columns } = map.dataset;
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = at(svg, event);
    let best = -1, closest = 24 * 24;
    points.forEach(([px, py], i) => {
      const distance = (500 * px - x) ** 2 + (500 * py - y) ** 2;
      if (distance < closest) { closest = distance; best = i; }
    });
    if (best < 0) { tip.hidden = true; ring.setAttribute("visibility", "hidden"); return; }
    ring.setAttribute("cx", 500 * points[best][0]);
    ring.setAttribute("cy", 500 * points[best][1]);
    ring.setAttribute("visibility", "visible");
    const picture = svg.querySelector(".thumb").cloneNode(true);
    for (const name of ["class", "x", "y", "width", "height"]) picture.removeAttribute(name);
    picture.setAttribute("viewBox", `${(best % columns) * cell} ${Math.floor(best / columns) * cell} ${cell} ${cell}`);
    show(event, names[best] ? [picture, element("b", names[best])] : [picture]);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; ring.setAttribute("visibility", "hidden"); });
}

for (const legend of document.querySelectorAll(".legend")) {
  const maps = legend.nextElementSibling;
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const chosen = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.class;
    for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other.dataset.class === chosen));
    for (const mark of maps.querySelectorAll("path.points, .thumb, .frame")) {
      mark.classList.toggle("dimmed", chosen !== null && !mark.classList.contains("c" + chosen));
    }
  });
}
