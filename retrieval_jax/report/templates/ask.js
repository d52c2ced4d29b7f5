// Ask: a query's neighbours in the clusters that are searched, and in the whole gallery.
"use strict";
const LISTED = 10;
const past = [];
let current = -1;

function neighbours(item) {
  const found = [];
  for (let at = data.starts[item]; at < data.starts[item + 1]; at++)
    found.push({ item: data.neighbours[at], distance: data.distances[at], rank: data.ranks[at] });
  return found;
}

// How many of the list, from the first, are sure to be the nearest of whatever clusters.
const known = (item) => (isQuery(item) ? data.known[item - data.gallery] : Infinity);

function list(id, item, found) {
  const cards = found.map(({ item: other, distance, missed }) => {
    const note = [distance.toPrecision(4)];
    let mark = missed ? "missed" : "";
    if (labelled) {
      const right = data.label[other] === data.label[item];
      mark += right ? " right" : " wrong";
      note.push(`${right ? "✓" : "✗"} ${className(data.label[other])}`);
    } else note.push(nameOf(other));
    if (missed) note.push("not found");
    return card(other, note, mark);
  });
  byId(id).replaceChildren(...(cards.length ? cards : [element("p", "None.", "soft")]));
}

function answer() {
  const item = current, probes = Number(byId("probes").value), all = neighbours(item);
  const sure = known(item);
  const whole = all.slice(0, sure).slice(0, LISTED);
  const found = all.filter(({ rank }, i) => rank < probes && (probes === 1 || i < sure));
  const kept = whole.filter(({ rank }) => rank < probes).length;
  list("found", item, found.slice(0, LISTED));
  list("whole", item, whole.map((one) => ({ ...one, missed: one.rank >= probes })));
  const where = probes === 1 ? "Its own cluster has" : `The ${probes} nearest clusters have`;
  const mean = data.kept[probes - 1];
  byId("kept").textContent =
    `${where} ${kept} of its ${whole.length} true neighbours` +
    (mean === undefined ? "." : `; over all queries ${percent(mean)} of the first ${LISTED}.`);
  byId("probes-shown").textContent = `${probes} of ${data.kept.length}`;
}

function ask(item, scroll, back = false) {
  if (!back && current >= 0 && current !== item) past.push(current);
  current = item;
  const words = element("div");
  words.append(element("strong", nameOf(item)));
  words.append(element("p", isQuery(item) ? "a query" : "a gallery image: its neighbours are the nearest of the gallery images on this page", "soft"));
  if (labelled) words.append(element("p", `Class: ${className(data.label[item])}`));
  const cluster = element("button", `Cluster ${data.cluster[item]}`);
  cluster.addEventListener("click", () => showCluster(data.cluster[item], true));
  words.append(cluster, element("p", `${data.centroid[item].toPrecision(4)} from its centroid`, "soft"));
  byId("query").replaceChildren(picture(item), words);
  byId("back").disabled = !past.length;
  answer();
  if (map) map.mark(item);
  if (scroll) byId("ask").scrollIntoView({ block: "start" });
}

const ordered = Array.from(data.goodness, (_, i) => i).sort((a, b) => data.goodness[b] - data.goodness[a]);
const steps = {};
function pickQuery(how) {
  const wanted = byId("ask-class") ? Number(byId("ask-class").value) : -1;
  const queries = ordered.map((i) => i + data.gallery).filter((item) => wanted < 0 || data.label[item] === wanted);
  if (!queries.length) return;
  const key = `${how} ${wanted}`, step = steps[key] = (steps[key] ?? -1) + 1;
  if (how === "random") return ask(queries[Math.floor(Math.random() * queries.length)], false);
  if (how === "worst") queries.reverse();
  ask(queries[step % queries.length], false);
}

for (const button of document.querySelectorAll("[data-ask]"))
  button.addEventListener("click", () => pickQuery(button.dataset.ask));
byId("back").addEventListener("click", () => past.length && ask(past.pop(), false, true));
byId("probes").max = data.kept.length;
byId("probes").addEventListener("input", answer);

// Clusters.
function showCluster(number, scroll = false) {
  const one = data.clusters.find((cluster) => cluster.number === number);
  if (!one) return;
  byId("cluster").value = number;
  const facts = [`${one.size.toLocaleString("en")} gallery images, ${one.queries.toLocaleString("en")} queries.`];
  if (one.classes.length) {
    const [label, most] = one.classes[0];
    facts.push(`Purity ${percent(most / one.size)}: the commonest class is ${className(label)}.`);
  }
  const parts = [element("p", facts.join(" "))];
  if (one.classes.length) {
    const classes = element("ul", "", "bars");
    for (const [label, size] of one.classes.slice(0, 10)) {
      const line = element("li"), bar = element("meter");
      [bar.max, bar.value] = [one.size, size];
      bar.setAttribute("aria-label", `share of ${className(label)}`);
      line.append(element("span", className(label)), bar, element("span", size.toLocaleString("en")));
      classes.append(line);
    }
    parts.push(classes);
  }
  const note = (item) => [data.centroid[item].toPrecision(3), labelled && className(data.label[item])];
  for (const [head, items] of [["Most typical", one.typical], ["Most odd", one.odd]]) {
    if (!items.length) continue;
    const row = element("div", "", "thumbs");
    row.append(...items.map((item) => card(item, note(item))));
    parts.push(element("h3", head), row);
  }
  if (one.near.length) {
    const near = element("p", "Nearest clusters: ");
    for (const [other, distance] of one.near) {
      const button = element("button", `Cluster ${other} (${distance.toPrecision(3)})`);
      button.addEventListener("click", () => showCluster(other));
      near.append(button, " ");
    }
    parts.push(near);
  }
  byId("cluster-shown").replaceChildren(...parts);
  if (scroll) byId("clusters").scrollIntoView({ block: "start" });
}
byId("cluster").addEventListener("change", ({ target }) => showCluster(Number(target.value)));

// Judge.
function fill(id, cards) {
  if (byId(id)) byId(id).append(...(cards.length ? cards : [element("p", "None.", "soft")]));
}
const classNote = (item) => labelled && className(data.label[item]);
fill("hubs", data.hubs.map(([item, times]) => card(item, [`in ${times} lists`, classNote(item)])));
fill("leaks", data.leaks.map(([query, item, distance]) => {
  const pair = element("div", "", "pair-of");
  pair.append(card(query, ["query", classNote(query)]), card(item, [distance.toPrecision(3), classNote(item)]));
  return pair;
}));
fill("doubtful", (data.doubtful ?? []).map(([item, label, share]) =>
  card(item, [classNote(item), `neighbours: ${className(label)}, ${percent(share)}`])));

if (data.clusters.length) showCluster(data.clusters[0].number);
if (data.goodness.length) pickQuery("best");
