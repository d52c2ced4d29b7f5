// The map: every point is written into the pixels of one canvas.
"use strict";
const canvas = byId("map");
const PALETTE = [
  [63, 144, 218], [255, 169, 14], [189, 31, 1], [148, 164, 162], [131, 45, 182],
  [169, 107, 89], [231, 99, 0], [185, 172, 112], [113, 117, 129], [146, 218, 221],
];
const RIGHT = [0, 114, 178], WRONG = [217, 82, 22];

function hue(index) {
  if (index < PALETTE.length) return PALETTE[index];
  const turn = ((index * 137.5) % 360) / 60, x = 1 - Math.abs((turn % 2) - 1);
  const rgb = [[1, x, 0], [x, 1, 0], [0, 1, x], [0, x, 1], [x, 0, 1], [1, 0, x]][Math.floor(turn)];
  return rgb.map((part) => Math.round(60 + 150 * part));
}

function ramp(share) {
  const stops = [[38, 70, 140], [32, 144, 141], [240, 200, 60]];
  const at = Math.min(share * 2, 1.999), low = stops[Math.floor(at)];
  return low.map((part, i) => Math.round(part + (at % 1) * (stops[Math.floor(at) + 1][i] - part)));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

const map = canvas && (() => {
  const points = data.mapped.length;
  const context = canvas.getContext("2d");
  const placeOf = new Map(Array.from(data.mapped, (item, point) => [item, point]));
  const groups = {
    class: labelled && ((item) => data.label[item]),
    cluster: (item) => data.cluster[item],
    right: labelled && ((item) => (isRight(item) ? 0 : 1)),
    distance: null,
  };
  const farthest = data.centroid.reduce((most, one) => Math.max(most, one), 1e-9);
  const colours = new Uint32Array(points);
  const state = { x: 0.5, y: 0.5, zoom: 1, chosen: -1, hovered: -1, lasso: null, query: -1 };
  let width = 1, height = 1, image, pixels, waiting = false, mode = "cluster";

  const colourOf = (item) => {
    if (mode === "distance") return ramp(data.centroid[item] / farthest);
    if (mode === "right") return isRight(item) ? RIGHT : WRONG;
    return hue(groups[mode](item));
  };
  const shown = (item) => byId(isQuery(item) ? "show-queries" : "show-gallery").checked;
  const scale = () => 0.94 * Math.min(width, height) * state.zoom;
  const toX = (point) => (data.x[point] - state.x) * scale() + width / 2;
  const toY = (point) => (data.y[point] - state.y) * scale() + height / 2;

  function recolour() {
    for (let i = 0; i < points; i++) {
      const item = data.mapped[i];
      const faded = state.chosen >= 0 && groups[mode] && groups[mode](item) !== state.chosen;
      const [r, g, b] = colourOf(item);
      colours[i] = !shown(item) ? 0 : ((faded ? 40 : 255) << 24) | (b << 16) | (g << 8) | r;
    }
    redraw();
  }

  function disc(radius) {
    const offsets = [];
    for (let y = -radius; y <= radius; y++)
      for (let x = -radius; x <= radius; x++)
        if (x * x + y * y <= radius * (radius + 0.6)) offsets.push(y * width + x);
    return Int32Array.from(offsets);
  }

  function draw() {
    waiting = false;
    const size = scale(), dx = width / 2 - state.x * size, dy = height / 2 - state.y * size;
    const room = Math.sqrt((width * height) / points) * Math.sqrt(state.zoom);
    const radius = Math.max(1, Math.min(Math.round(room / 9), Math.round(7 * devicePixelRatio)));
    const stamp = disc(radius), rim = disc(radius + Math.ceil(devicePixelRatio));
    const ink = getComputedStyle(canvas).color.match(/\d+/g).map(Number);
    const edge = ((255 << 24) | (ink[2] << 16) | (ink[1] << 8) | ink[0]) >>> 0;
    const margin = radius + 3, seen = [];
    pixels.fill(0);
    for (let i = 0; i < points; i++) {
      const colour = colours[i];
      if (!colour) continue;
      const x = (data.x[i] * size + dx) | 0, y = (data.y[i] * size + dy) | 0;
      if (x < margin || y < margin || x >= width - margin || y >= height - margin) continue;
      const at = y * width + x;
      if (data.mapped[i] >= data.gallery && colour >>> 24 === 255)
        for (let j = 0; j < rim.length; j++) pixels[at + rim[j]] = edge;
      for (let j = 0; j < stamp.length; j++) pixels[at + stamp[j]] = colour;
      if (seen.length <= 150) seen.push(i);
    }
    context.putImageData(image, 0, 0);
    if (seen.length <= 150 && state.zoom > 2) drawPictures(seen);
    ring(placeOf.get(state.query), 2);
    ring(state.hovered, 1);
    if (state.lasso) {
      context.strokeStyle = css(ink.slice(0, 3));
      context.lineWidth = 1.5 * devicePixelRatio;
      context.beginPath();
      for (const [x, y] of state.lasso) context.lineTo(x, y);
      context.stroke();
    }
  }

  // Where there is room, the images themselves.
  function drawPictures(seen) {
    const side = 40 * devicePixelRatio, [w, h] = data.size;
    for (const point of seen) {
      const item = data.mapped[point];
      const wide = (side * w) / Math.max(w, h), high = (side * h) / Math.max(w, h);
      const x = toX(point) - wide / 2, y = toY(point) - high / 2, before = { ...state };
      drawItem(context, item, x, y, wide, high).then((done) => {
        if (!done || before.x !== state.x || before.zoom !== state.zoom) return;
        context.strokeStyle = css(colourOf(item));
        context.lineWidth = 2 * devicePixelRatio;
        context.strokeRect(x, y, wide, high);
      });
    }
  }

  function ring(point, weight) {
    if (point === undefined || point < 0) return;
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 1.5 * weight * devicePixelRatio;
    context.beginPath();
    context.arc(toX(point), toY(point), 9 * devicePixelRatio, 0, 7);
    context.stroke();
  }

  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function resize() {
    const box = canvas.getBoundingClientRect();
    width = canvas.width = Math.max(Math.round(box.width * devicePixelRatio), 16);
    height = canvas.height = Math.max(Math.round(box.height * devicePixelRatio), 16);
    image = context.createImageData(width, height);
    pixels = new Uint32Array(image.data.buffer);
    redraw();
  }

  // The point nearest to a place of the canvas, if it is near; of equals the one on top.
  function pointAt(x, y, reach = 14) {
    let best = -1, least = (reach * devicePixelRatio) ** 2;
    const size = scale(), dx = width / 2 - state.x * size, dy = height / 2 - state.y * size;
    for (let i = 0; i < points; i++) {
      const away = (data.x[i] * size + dx - x) ** 2 + (data.y[i] * size + dy - y) ** 2;
      if (away <= least && colours[i]) [best, least] = [i, away];
    }
    return best;
  }

  function hover(point) {
    if (point === state.hovered) return;
    state.hovered = point;
    const tip = byId("tip");
    tip.hidden = point < 0;
    if (point >= 0) {
      const item = data.mapped[point];
      tip.replaceChildren(picture(item), element("span", describe(item)));
      const x = toX(point) / devicePixelRatio, y = toY(point) / devicePixelRatio;
      const left = x > canvas.clientWidth / 2 ? x - tip.offsetWidth - 14 : x + 14;
      tip.style.left = `${Math.max(0, Math.min(left, canvas.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 20, canvas.clientHeight - tip.offsetHeight))}px`;
    }
    redraw();
  }

  function zoom(factor, x = width / 2, y = height / 2) {
    const before = scale();
    state.zoom = Math.min(Math.max(state.zoom * factor, 0.5), 100);
    state.x += (x - width / 2) * (1 / before - 1 / scale());
    state.y += (y - height / 2) * (1 / before - 1 / scale());
    redraw();
  }

  function pan(dx, dy) {
    state.x -= dx / scale();
    state.y -= dy / scale();
    redraw();
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * devicePixelRatio, (event.clientY - box.top) * devicePixelRatio];
  };
  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    moved = 0;
    if (byId("lasso").getAttribute("aria-pressed") === "true" || event.shiftKey)
      state.lasso = [at(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = fingers.get(event.pointerId);
    if (!before) return hover(pointAt(...now));
    const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (state.lasso) {
      state.lasso.push(now);
      redraw();
    } else if (others.length) {
      const [x, y] = others[0];
      const gap = (place) => Math.hypot(place[0] - x, place[1] - y) || 1;
      zoom(gap(now) / gap(before), (now[0] + x) / 2, (now[1] + y) / 2);
    } else {
      hover(-1);
      pan(now[0] - before[0], now[1] - before[1]);
    }
    fingers.set(event.pointerId, now);
  });
  const up = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (state.lasso && moved > 12) pick(inside(state.lasso), "in the lasso");
    else if (moved < 6 * devicePixelRatio && event.type === "pointerup") choose(pointAt(...at(event), 20));
    state.lasso = null;
    redraw();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / (event.deltaMode ? 12 : 400)), ...at(event));
    hover(pointAt(...at(event)));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 60 * devicePixelRatio;
    const keys = {
      ArrowLeft: () => pan(step, 0), ArrowRight: () => pan(-step, 0),
      ArrowUp: () => pan(0, step), ArrowDown: () => pan(0, -step),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: home,
      Enter: () => choose(state.hovered),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
    if (event.key !== "Enter") hover(pointAt(width / 2, height / 2, 1e4));
  });

  function home() {
    Object.assign(state, { x: 0.5, y: 0.5, zoom: 1 });
    redraw();
  }

  function choose(point) {
    if (point >= 0) ask(data.mapped[point], false);
  }

  function inside(path) {
    const found = [];
    for (let i = 0; i < points; i++) {
      if (!colours[i]) continue;
      const x = toX(i), y = toY(i);
      let within = false;
      for (let j = 0, k = path.length - 1; j < path.length; k = j++) {
        const [[xj, yj], [xk, yk]] = [path[j], path[k]];
        if (yj > y !== yk > y && x < ((xk - xj) * (y - yj)) / (yk - yj) + xj) within = !within;
      }
      if (within) found.push(data.mapped[i]);
    }
    return found;
  }

  function pick(items, where) {
    const queries = items.filter(isQuery).length;
    const gallery = items.length - queries;
    const box = byId("picked"), row = element("div", "", "thumbs");
    const more = element("button", "Show more");
    let from = 0;
    const add = () => {
      row.append(...items.slice(from, from + 60).map((item) =>
        card(item, [labelled ? className(data.label[item]) : nameOf(item)])));
      from += 60;
      more.hidden = from >= items.length;
    };
    more.addEventListener("click", add);
    add();
    const counts = `${gallery.toLocaleString("en")} gallery images, ${queries.toLocaleString("en")} queries`;
    box.replaceChildren(element("h3", `${counts} ${where}`), row, more);
  }

  function legend() {
    const box = byId("legend");
    state.chosen = -1;
    if (mode === "distance") {
      const text = `from 0 (dark blue) to ${farthest.toPrecision(3)} (yellow)`;
      return box.replaceChildren(element("li", text));
    }
    const sizes = new Map();
    for (const item of data.mapped) {
      const group = groups[mode](item);
      sizes.set(group, (sizes.get(group) ?? 0) + 1);
    }
    const title = {
      class: className, cluster: (group) => `cluster ${group}`,
      right: (group) => `nearest neighbour of ${group ? "another" : "the same"} class`,
    }[mode];
    const order = [...sizes].sort(([a], [b]) => a - b);
    box.replaceChildren(...order.slice(0, 40).map(([group, size]) => {
      const entry = element("li"), button = element("button", "", "entry");
      const swatch = element("span", "", "swatch");
      swatch.style.background = css(mode === "right" ? [RIGHT, WRONG][group] : hue(group));
      button.append(swatch, `${title(group)} (${size.toLocaleString("en")})`);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const on = state.chosen !== group;
        state.chosen = on ? group : -1;
        for (const other of box.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(on));
        if (on) pick(Array.from(data.mapped).filter((item) => groups[mode](item) === group), `of ${title(group)}`);
        else byId("picked").replaceChildren();
        if (on && mode === "cluster") showCluster(group);
        recolour();
      });
      entry.append(button);
      return entry;
    }));
    if (order.length > 40) box.append(element("li", `and ${order.length - 40} more`));
  }

  function colourBy() {
    mode = byId("colour").value;
    legend();
    recolour();
  }
  byId("colour").addEventListener("change", colourBy);
  for (const id of ["show-gallery", "show-queries"]) byId(id).addEventListener("change", recolour);
  byId("zoom-in").addEventListener("click", () => zoom(1.5));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  byId("reset").addEventListener("click", home);
  byId("lasso").addEventListener("click", ({ currentTarget }) => {
    const on = currentTarget.getAttribute("aria-pressed") !== "true";
    currentTarget.setAttribute("aria-pressed", String(on));
  });
  new ResizeObserver(resize).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  resize();
  colourBy();
  return { pan, zoom, draw, state, toX, toY, placeOf, mark: (item) => { state.query = item; redraw(); } };
})();
