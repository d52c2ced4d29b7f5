// Line charts whose values show under the pointer, or by the arrow keys.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 560, HEIGHT = 250, LEFT = 62, BOTTOM = 34, TOP = 12, RIGHT_EDGE = 14;
  const shape = (tag, attributes, text = "") => {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const plain = (value) => (value === null ? "–" : Number(value.toPrecision(4)).toString());

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  function draw(figure, { title, x: xName, y: yName, series, whole }) {
    const xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
    const ys = series.flatMap(({ points }) => points.map(([, y]) => y)).filter((y) => y !== null);
    const head = document.createElement("figcaption"), readout = document.createElement("p");
    head.textContent = title;
    readout.className = "soft readout";
    readout.setAttribute("role", "status");
    if (!ys.length) return figure.replaceChildren(head, "No finite value.");
    let low = Math.min(...ys), high = Math.max(...ys);
    const log = !whole && low > 0 && high > 3 * low;
    if (whole) [low, high] = [0, 1];
    const scale = log ? Math.log10 : (y) => y;
    const [bottom, top] = [scale(low), scale(high)];
    const toX = (x) => LEFT + ((x - xs[0]) / (xs.at(-1) - xs[0] || 1)) * (WIDTH - LEFT - RIGHT_EDGE);
    const toY = (y) => HEIGHT - BOTTOM - ((scale(y) - bottom) / (top - bottom || 1)) * (HEIGHT - BOTTOM - TOP);
    const svg = shape("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0,
      "aria-label": `${title}: ${yName} by ${xName}. Arrow keys read the values.`,
    });
    const marks = log
      ? [1, 2, 5].flatMap((n) => [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5].map((p) => n * 10 ** p)).filter((y) => y >= low * 0.999 && y <= high * 1.001)
      : ticks(low, high, 4);
    for (const y of marks) {
      svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT_EDGE, y1: toY(y), y2: toY(y), class: "grid" }));
      svg.append(shape("text", { x: LEFT - 7, y: toY(y) + 4, "text-anchor": "end" }, plain(y)));
    }
    for (const x of ticks(xs[0], xs.at(-1), 6))
      svg.append(shape("text", { x: toX(x), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, plain(x)));
    svg.append(shape("text", { x: WIDTH - RIGHT_EDGE, y: HEIGHT - 3, "text-anchor": "end" }, xName));
    const keys = document.createElement("ul");
    keys.className = "keys";
    series.forEach(({ name, points }, i) => {
      let gap = true, path = "";
      for (const [x, y] of points) {
        if (y !== null) path += `${gap ? "M" : "L"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`;
        gap = y === null;
      }
      svg.append(shape("path", { d: path, class: `line line${i % 6}` }));
      if (points.length <= 40)
        for (const [x, y] of points)
          if (y !== null) svg.append(shape("circle", { cx: toX(x), cy: toY(y), r: 2.6, class: `dot line${i % 6}` }));
      const key = document.createElement("li");
      const sample = shape("svg", { viewBox: "0 0 26 8", class: "sample", "aria-hidden": true });
      sample.append(shape("path", { d: "M0 4L26 4", class: `line line${i % 6}` }));
      key.append(sample, name);
      keys.append(key);
    });
    const cursor = shape("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" });
    svg.append(cursor);
    let at = xs.length - 1;
    const read = (index) => {
      at = Math.max(0, Math.min(index, xs.length - 1));
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, toX(xs[at]));
      const values = series.map(({ name, points }) => {
        const away = ([x]) => Math.abs(x - xs[at]);
        const nearest = points.reduce((best, one) => (away(one) < away(best) ? one : best));
        return `${name} ${plain(nearest[1])}`;
      });
      readout.textContent = `${xName} ${plain(xs[at])}: ${values.join(", ")}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      let best = 0;
      xs.forEach((one, i) => { if (Math.abs(toX(one) - x) < Math.abs(toX(xs[best]) - x)) best = i; });
      read(best);
    });
    svg.addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft") read(at - 1);
      if (key === "ArrowRight") read(at + 1);
    });
    figure.replaceChildren(head, svg, keys, readout);
    read(at);
  }

  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const figure of document.querySelectorAll("[data-chart]")) draw(figure, charts[figure.dataset.chart]);
}
