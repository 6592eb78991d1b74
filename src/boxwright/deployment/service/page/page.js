"use strict";

// The colours that boxwright's pictures have, by position of the class.
const PALETTE = [
  "#2f7ef6", "#f5741d", "#16a85a", "#e5304d", "#9457f5", "#0fb0c4", "#ef4fae", "#b39b00", "#8a5a3c", "#5f7f95",
  "#7fb800", "#c2185b", "#3d5afe", "#00897b", "#ff9e80", "#6d4c9f", "#d4a017", "#546e7a", "#4caf50", "#a1887f",
];
const SMALLEST = 11; // height of a label's letters on the screen, in CSS pixels
const LABELLED = 40; // with more boxes than this, the image could not be seen for labels
const byId = (id) => document.getElementById(id);
const colour = (category) => PALETTE[(category - 1) % PALETTE.length];

let file = null; // that was chosen last
let picture = null; // what the browser shows; null where it cannot read the format
let found = null; // the service's answer, with objects of every score
let hidden = new Set(); // ids of classes that are not to be shown
let stored = { overall: 0.5, classes: [] }; // the detector's own thresholds; of classes, by position
let chosen = false; // whether the user has moved the slider, to one threshold for all classes
let asked = 0; // number of the last question: an older answer is not shown

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  if (key) options.headers = { ...options.headers, Authorization: `Bearer ${key}` };
  const answer = await fetch(path, options);
  if (answer.status === 401) byId("key-form").hidden = false;
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({ detail: answer.statusText }));
    throw new Error(body.detail);
  }
  return answer;
}

function tell(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

async function introduce() {
  try {
    const model = await (await ask("model")).json();
    byId("key-form").hidden = true;
    const names = model.names.slice(0, 12).join(", ") + (model.names.length > 12 ? " ..." : "");
    byId("about").textContent = `finds ${names}`;
    takeThresholds(model);
    offerWriting(model);
    tell("");
  } catch (error) {
    tell(error.message, true);
  }
}

async function detect(chosen, of = 1) {
  forgetWriting();
  const number = ++asked;
  file = chosen;
  found = null;
  hidden = new Set();
  picture = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (number !== asked) return;
  show();
  const only = of > 1 ? ` Only this one of the ${of} files was taken.` : "";
  tell(`${file.name || "image"}: looking ...${only}`);
  const form = new FormData();
  form.append("images", file, file.name || "pasted.png");
  form.append("threshold", "0");
  const started = performance.now();
  try {
    const answer = await (await ask("detect", { method: "POST", body: form })).json();
    if (number !== asked) return;
    found = answer;
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    const unseen = picture ? "" : " This browser cannot show the format; the boxes are right.";
    const { file_name, width, height } = answer.images[0];
    tell(`${file_name}, ${width} x ${height}, ${seconds} s.${unseen}${only}`);
  } catch (error) {
    if (number === asked) tell(error.message + only, true);
  }
  if (number === asked) show();
}

function takeThresholds({ names, threshold, thresholds }) {
  stored = { overall: threshold, classes: thresholds };
  const shown = names.slice(0, 12).map((name, place) => `${name} ${digits(thresholds[place])}`);
  byId("by-class").textContent = shown.join(", ") + (names.length > 12 ? " ..." : "");
  if (!chosen) useStored();
}

function useStored() {
  chosen = false;
  byId("threshold").value = stored.overall;
  show();
}

const digits = (score) => score.toFixed(score && score < 0.1 ? 3 : 2);
const differ = () => new Set(stored.classes).size > 1;
const threshold = (category) => (chosen ? Number(byId("threshold").value) : (stored.classes[category - 1] ?? stored.overall));
const likely = () => (found ? found.annotations.filter((one) => one.score > threshold(one.category_id)) : []);
const visible = () => likely().filter((one) => !hidden.has(one.category_id));

function show() {
  byId("shown-threshold").textContent = differ() && !chosen ? "by class" : digits(threshold(1));
  byId("by-class").hidden = chosen || !differ();
  byId("stored").hidden = !chosen || !differ();
  byId("count").textContent = visible().length;
  byId("counted").hidden = !found;
  byId("canvas").ariaLabel = found ? `the image; boxes shown: ${visible().length}` : "the image";
  byId("save").disabled = !found;
  byId("other").disabled = !found && !picture;
  byId("invitation").hidden = Boolean(found || picture);
  byId("drop").classList.toggle("filled", Boolean(found || picture));
  listClasses();
  showWriter();
  paint();
}

function listClasses() {
  const counts = new Map();
  for (const one of likely()) counts.set(one.category_id, (counts.get(one.category_id) || 0) + 1);
  const rows = (found ? found.categories : []).filter(({ id }) => counts.has(id) || hidden.has(id));
  byId("classes").replaceChildren(...rows.map(({ id, name }) => classRow(id, name, counts.get(id) || 0)));
}

function classRow(id, name, count) {
  const row = document.createElement("li");
  const label = row.appendChild(document.createElement("label"));
  const box = label.appendChild(document.createElement("input"));
  box.type = "checkbox";
  box.checked = !hidden.has(id);
  box.addEventListener("change", () => {
    box.checked ? hidden.delete(id) : hidden.add(id);
    show();
    byId("classes").querySelector(`[data-id="${id}"]`)?.focus();
  });
  box.dataset.id = id;
  const swatch = label.appendChild(document.createElement("span"));
  swatch.className = "swatch";
  swatch.style.background = colour(id);
  for (const [kind, text] of [["name", name], ["number", count]]) {
    const part = label.appendChild(document.createElement("span"));
    part.className = kind;
    part.textContent = text;
  }
  return row;
}

function paint() {
  const canvas = byId("canvas");
  const size = found ? found.images[0] : picture;
  canvas.hidden = !size;
  if (!size) return;
  const scale = Math.min(4096 / Math.max(size.width, size.height), Math.max(1, 900 / Math.max(size.width, size.height)));
  canvas.width = Math.max(1, Math.round(size.width * scale));
  canvas.height = Math.max(1, Math.round(size.height * scale));
  const pen = canvas.getContext("2d");
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  else pen.clearRect(0, 0, canvas.width, canvas.height);
  const shrunk = canvas.width / (canvas.clientWidth || canvas.width); // on a phone, labels would be too small to read
  const unit = Math.max(Math.max(canvas.width, canvas.height) / 900, (SMALLEST / 15) * shrunk);
  const objects = visible();
  for (const one of [...objects].reverse()) paintBox(pen, one.bbox.map((value) => value * scale), one, unit);
  const taken = [];
  for (const one of objects.slice(0, LABELLED)) paintLabel(pen, one.bbox.map((value) => value * scale), one, unit, taken);
  paintBeginning(pen, scale, unit);
}

function paintBox(pen, [x, y, width, height], one, unit) {
  pen.lineWidth = 4 * unit;
  pen.strokeStyle = "rgba(0, 0, 0, .55)";
  pen.strokeRect(x, y, width, height);
  pen.lineWidth = 2.4 * unit;
  pen.strokeStyle = colour(one.category_id);
  pen.strokeRect(x, y, width, height);
}

// At the first place that is free: over the box, inside it, under it. Where none is, the colour alone must tell.
function paintLabel(pen, [x, y, boxWidth, boxHeight], one, unit, taken) {
  const text = `${found.categories[one.category_id - 1].name} ${drawn.includes(one) ? "drawn" : one.score.toFixed(2)}`;
  pen.font = `600 ${15 * unit}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + 10 * unit;
  const height = 21 * unit;
  const left = Math.max(0, Math.min(x, pen.canvas.width - width));
  const free = (top) =>
    top >= 0 && top + height <= pen.canvas.height &&
    !taken.some(([l, t, w]) => left < l + w && l < left + width && top < t + height && t < top + height);
  const top = [y - height, y, y + boxHeight, y + boxHeight - height].find(free);
  if (top === undefined) return;
  taken.push([left, top, width]);
  pen.fillStyle = colour(one.category_id);
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#fff";
  pen.textBaseline = "middle";
  pen.fillText(text, left + 5 * unit, top + height / 2);
}

function save() {
  const annotations = visible().map((one, place) => ({ ...one, id: place + 1 }));
  const text = JSON.stringify({ ...found, annotations }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${found.images[0].file_name.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function first(files) {
  if (files && files.length) detect(files[0], files.length);
}

byId("file").addEventListener("change", (event) => {
  first(event.target.files);
  event.target.value = "";
});
byId("drop").addEventListener("click", (event) => {
  // A click on the picture chooses no other; one on the field within does, by the button or by keys.
  if ((found || picture) && event.target !== byId("file")) event.preventDefault();
});
byId("other").addEventListener("click", () => byId("file").click());
byId("save").addEventListener("click", save);
byId("threshold").addEventListener("input", () => {
  chosen = true;
  show();
});
byId("stored").addEventListener("click", useStored);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value);
  introduce();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") first(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => first(event.clipboardData.files));
document.addEventListener("DOMContentLoaded", introduce); // once write.js is there
