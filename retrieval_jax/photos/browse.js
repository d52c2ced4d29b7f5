// Drop a picture, or choose one: the photos nearest to it appear below.
"use strict";
const root = document.currentScript.dataset.root;
const drop = document.getElementById("drop");
const chooser = document.getElementById("chooser");
const status = document.getElementById("status");
const answer = document.getElementById("answer");

async function ask(file) {
  status.textContent = `Looking for photos like ${file.name} …`;
  answer.replaceChildren();
  try {
    const reply = await fetch(root + "query", { method: "POST", body: file });
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    status.textContent = `The nearest to ${file.name}:`;
    answer.replaceChildren(...found.map(figure));
  } catch (error) {
    status.textContent = error.message;
  }
}

function figure(photo) {
  const card = document.createElement("figure");
  card.className = "card";
  const link = document.createElement("a");
  link.href = `${root}like/${photo.row}`;
  const image = document.createElement("img");
  image.src = `${root}thumbnail/${photo.row}`;
  image.alt = photo.path;
  link.append(image);
  const caption = document.createElement("figcaption");
  caption.textContent = `${photo.distance.toFixed(4)}, cluster ${photo.cluster} ${photo.path}`;
  card.append(link, caption);
  return card;
}

chooser.addEventListener("change", () => chooser.files.length && ask(chooser.files[0]));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) ask(event.dataTransfer.files[0]);
});
