"use strict";
for (const comparison of document.querySelectorAll(".compare")) {
  const slider = comparison.querySelector("input");
  const show = () => comparison.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", show);
  show(); // A browser may restore the value of an earlier visit.
}

// The affinity explorers. A value is 0 to 255, the probability that a neighbour shares the class.
const svgElement = (parent, name, attributes) => {
  const element = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const htmlElement = (name, text = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
};
const COLORS = [[0, 87, 183], [224, 224, 224], [255, 213, 0]]; // those of the figures
const affinityColor = (value) => {
  const at = value / 127.5, first = Math.min(Math.floor(at), 1);
  const [low, high] = [COLORS[first], COLORS[first + 1]];
  return `rgb(${low.map((part, i) => Math.round(part + (high[i] - part) * (at - first))).join(" ")})`;
};
const percent = (part, whole) => `${(100 * part) / whole}%`;

async function explore(figure) {
  const { height, width, rows, columns, stride, rates, offsets, ...start } =
    JSON.parse(figure.dataset.settings);
  const [values, photograph] = figure.querySelectorAll("img");
  const [cross, near] = [figure.querySelector("i"), figure.querySelector("svg")];
  const [grids, output] = [figure.querySelector(".grids"), figure.querySelector("output")];
  photograph.src = figure.previousElementSibling.querySelector("img").src;
  await values.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [values.naturalWidth, values.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(values, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const affinity = (channel) => data[4 * ((channel * rows + row) * columns + column)];
  const clamped = (value, count) => Math.min(Math.max(value, 0), count - 1);
  const reach = 2 * Math.max(...offsets.flat()) + stride;
  let { row, column } = start;

  const show = () => {
    const [y, x] = [row, column].map((index) => index * stride + (stride >> 1));
    [cross.style.top, cross.style.left] = [percent(y + 0.5, height), percent(x + 0.5, width)];
    near.setAttribute("viewBox", `${x - reach} ${y - reach} ${2 * reach + 1} ${2 * reach + 1}`);
    const neighbors = offsets.map(([down, right], channel) => {
      const there = y + down >= 0 && y + down < height && x + right >= 0 && x + right < width;
      return { there, y: y + down, x: x + right, value: affinity(channel) };
    });
    const size = reach / 28;
    near.replaceChildren(
      svgElement(near, "image", {
        href: photograph.src, width, height, preserveAspectRatio: "none", opacity: 0.7,
      }),
      ...neighbors.filter((each) => each.there).map((each) => svgElement(near, "circle", {
        cx: each.x + 0.5, cy: each.y + 0.5, r: size, fill: affinityColor(each.value),
        stroke: "#000", "stroke-width": size / 6,
      })),
      svgElement(near, "path", {
        d: `M${x + 0.5 - size} ${y + 0.5}h${2 * size}m${-size} ${-size}v${2 * size}`,
        stroke: "#fff", "stroke-width": size / 2,
      }),
    );
    grids.replaceChildren(...rates.map((rate, index) => {
      const table = htmlElement("table");
      table.append(htmlElement("caption", `rate (${rate})`));
      const cells = neighbors.slice(8 * index, 8 * index + 8).map(({ there, value }) => {
        const cell = htmlElement("td", there ? (value / 255).toFixed(2) : "\u2013");
        if (there) cell.style.background = affinityColor(value);
        if (there && value < 70) cell.style.color = "#fff";
        return cell;
      });
      cells.splice(4, 0, htmlElement("td", "+"));
      for (let line = 0; line < 9; line += 3) {
        const tr = htmlElement("tr");
        tr.append(...cells.slice(line, line + 3));
        table.append(tr);
      }
      return table;
    }));
    const means = rates.map((rate, index) => {
      const there = neighbors.slice(8 * index, 8 * index + 8).filter((each) => each.there);
      const sum = there.reduce((total, each) => total + each.value / 255, 0);
      return `${there.length ? (sum / there.length).toFixed(2) : "none"} at rate (${rate})`;
    });
    output.textContent = `Row ${y}, column ${x}: on average ${means.join(", ")}.`;
  };
  const move = (down, right) => {
    [row, column] = [clamped(row + down, rows), clamped(column + right, columns)];
    show();
  };
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  figure.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    if (moves[event.key]) move(...moves[event.key].map((value) => step * value));
    else if (event.key === "Enter") show();
    else return;
    event.preventDefault();
  });
  photograph.addEventListener("click", (event) => {
    const box = photograph.getBoundingClientRect();
    [row, column] = [
      clamped(Math.floor(((event.clientY - box.top) / box.height) * (height / stride)), rows),
      clamped(Math.floor(((event.clientX - box.left) / box.width) * (width / stride)), columns),
    ];
    show();
  });
  show();
}
for (const figure of document.querySelectorAll(".explore")) explore(figure);
