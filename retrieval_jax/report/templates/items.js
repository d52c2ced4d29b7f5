// The images of the page: what is known of each, and its thumbnail.
"use strict";
const data = JSON.parse(document.getElementById("items").textContent);

function unpack({ bytes, scale, data }) {
  const raw = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const whole = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[bytes];
  const numbers = new whole(raw.buffer);
  return scale === 1 ? numbers : Float32Array.from(numbers, (n) => n * scale);
}

for (const [key, value] of Object.entries(data)) {
  if (value && value.bytes) data[key] = unpack(value);
}
const labelled = Boolean(data.label);
const isQuery = (item) => item >= data.gallery;
const className = (label) => data.classes[label] ?? `class ${label}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const byId = (id) => document.getElementById(id);

function nameOf(item) {
  const name = data.names[item];
  return typeof name === "string" ? name : `image ${name}`;
}

function describe(item) {
  const parts = [isQuery(item) ? "Query" : "Gallery", nameOf(item)];
  if (labelled) parts.push(className(data.label[item]));
  return `${parts.join(", ")}, cluster ${data.cluster[item]}`;
}

// The class that an image's nearest neighbour has, if it has one.
function isRight(item) {
  const at = data.starts[item];
  return at < data.starts[item + 1] && data.label[data.neighbours[at]] === data.label[item];
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const sheets = data.sheets.map(() => null);
function sheetOf(item) {
  const number = (data.thumbnails[item] - 1) >> 10;
  if (!sheets[number]) {
    const image = new Image();
    image.src = `data:image/webp;base64,${data.sheets[number]}`;
    sheets[number] = image.decode().then(() => image);
  }
  return sheets[number];
}

// Draws an item's thumbnail once its sheet is there; tells whether there is one.
function drawItem(context, item, x, y, width, height) {
  if (!data.thumbnails[item]) return Promise.resolve(false);
  const place = (data.thumbnails[item] - 1) & 1023;
  const [w, h] = data.size;
  return sheetOf(item).then((sheet) => {
    context.imageSmoothingEnabled = w >= 48;
    context.drawImage(sheet, (place & 31) * w, (place >> 5) * h, w, h, x, y, width, height);
    return true;
  });
}

function picture(item) {
  const canvas = element("canvas", "", "picture");
  [canvas.width, canvas.height] = data.size;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", describe(item));
  drawItem(canvas.getContext("2d"), item, 0, 0, ...data.size);
  return canvas;
}

// An image as a button that makes it the query.
function card(item, note, mark = "") {
  const made = element("button", "", `thumb ${mark}`);
  made.type = "button";
  made.dataset.item = item;
  made.title = describe(item);
  made.append(picture(item));
  for (const line of note.filter(Boolean)) made.append(element("span", line));
  made.addEventListener("click", () => ask(item, true));
  return made;
}
