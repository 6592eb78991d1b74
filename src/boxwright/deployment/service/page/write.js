"use strict";

// For detectors that write: watch the sentence, draw its first boxes. What is not defined here is in page.js.
const PACE = 75; // ms from word to word of an object that counts
const QUICK = 30; // ms for all of one that does not
const LEAST = 3; // pixels of the image: a smaller box was a click
const STEP = 8; // pixels of the image that an arrow key moves

let drawn = []; // the first objects, by the user
let beginning = null; // what is known of the box being written or dragged: { x1, y1, x2, y2, category }
let writing = null; // an AbortController as long as a sentence is coming or shown

function offerWriting(model) {
  byId("writer").hidden = !model.writes;
  byId("drawn-class").replaceChildren(...model.names.map((name, place) => new Option(name, place + 1)));
}

// What was being written is not shown any more.
function interrupt() {
  writing?.abort();
  writing = null;
  asked += 1;
}

function forgetWriting() {
  interrupt();
  drawn = [];
  beginning = null;
  byId("sentence").hidden = true;
}

function showWriter() {
  const drawing = byId("draw").checked;
  byId("watch").disabled = !found;
  byId("watch").textContent = writing ? "Stop" : drawn.length ? "Let it finish" : "Watch it write";
  byId("drawing").hidden = !drawing;
  byId("undo").disabled = !drawn.length;
  byId("canvas").classList.toggle("drawing", drawing);
  byId("canvas").tabIndex = drawing ? 0 : -1;
}

async function watch() {
  if (writing) return writing.abort();
  const number = ++asked;
  const stop = (writing = new AbortController());
  const counts = { objects: drawn.length, noise: 0 };
  found = { ...found, annotations: [...drawn] };
  byId("sentence").replaceChildren();
  byId("sentence").hidden = false;
  byId("drop").scrollIntoView({ block: "nearest" }); // on a phone the button is far below
  tell("writing ...");
  show();
  try {
    const options = { method: "POST", body: sentenceForm(), signal: stop.signal };
    await play(await ask("write", options), stop.signal, counts);
    if (number === asked) tell(`${counts.objects} objects written, ${counts.noise} of them noise.`);
  } catch (error) {
    if (number === asked) tell(stop.signal.aborted ? `stopped after ${counts.objects} objects.` : error.message, !stop.signal.aborted);
  }
  if (writing === stop) writing = null;
  if (number !== asked) return;
  beginning = null;
  byId("sentence").scrollTop = 0;
  const others = found.annotations.slice(drawn.length).sort((one, other) => other.score - one.score);
  found = { ...found, annotations: [...drawn, ...others] };
  show();
}

function sentenceForm() {
  const form = new FormData();
  form.append("image", file, file.name || "pasted.png");
  const named = drawn.map(({ category_id, bbox }) => ({ category: found.categories[category_id - 1].name, bbox }));
  form.append("given", JSON.stringify(named));
  return form;
}

// The lines are taken as fast as they come, so that the service need not wait, and shown as fast as one can read.
async function play(answer, signal, counts) {
  const lines = [];
  let ended = false;
  let failed = null;
  const reading = readLines(answer.body, (line) => lines.push(line))
    .catch((error) => (failed = error))
    .finally(() => (ended = true));
  for (let words = []; !signal.aborted; ) {
    if (!lines.length && ended) break;
    if (!lines.length) await pause(10);
    else if ("slot" in lines[0]) words.push(lines.shift());
    else if ("bbox" in lines[0]) await showObject(words.splice(0), lines.shift(), signal, counts);
    else {
      const last = lines.shift();
      if (last.done) return words.length ? showWords(words, QUICK, signal) : undefined;
      throw new Error(last.detail);
    }
  }
  await reading;
  throw failed || new Error("the service went away.");
}

async function readLines(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part));
  }
}

const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
const still = matchMedia("(prefers-reduced-motion: reduce)");

async function showObject(words, object, signal, counts) {
  const noise = words.some(({ slot, text }) => slot === "class" && text === "noise");
  const counted = !object.given && object.score > threshold(object.category_id);
  const row = await showWords(words, counted ? PACE : QUICK / words.length, signal);
  if (signal.aborted) throw new Error("stopped"); // what is drawn by now is the user's
  row.style.setProperty("--class", colour(object.category_id));
  row.classList.toggle("noise", !counted && !object.given);
  counts.noise += noise;
  beginning = null;
  if (object.given) return;
  counts.objects += 1;
  const [, , width, height] = object.bbox;
  found.annotations.push(annotation(object.category_id, object.bbox, object.score, width * height));
  show();
}

async function showWords(words, pace, signal) {
  const list = byId("sentence");
  const row = list.appendChild(document.createElement("li"));
  beginning = {};
  for (const word of words) {
    if (signal.aborted) throw new Error("stopped");
    row.append(chip(word));
    list.scrollTop = list.scrollHeight;
    remember(word);
    paint();
    if (!still.matches && !document.hidden) await pause(pace);
  }
  return row;
}

function remember({ slot, text }) {
  const values = text.split(" ").map(Number);
  if (slot === "class") beginning.category = 1 + found.categories.findIndex(({ name }) => name === text);
  else if (slot !== "end") slot.split(" ").forEach((side, place) => (beginning[side] = values[place]));
}

function chip({ slot, text, probability, given }) {
  const word = document.createElement("span");
  word.className = "word";
  word.style.setProperty("--part", probability);
  const percent = given ? "given" : `${(100 * probability).toFixed(0)}%`;
  const sides = slot === "class" || slot === "end" ? [] : [["slot", slot]]; // what a name says is plain
  for (const [kind, value] of [...sides, ["text", text], ["percent", percent]]) {
    const part = word.appendChild(document.createElement("span"));
    part.className = kind;
    part.textContent = value;
  }
  return word;
}

// Lines as long as what is known allows: across the image, from a corner, along an edge.
function paintBeginning(pen, scale, unit) {
  if (!beginning) return;
  const { x1, y1, x2, y2, category } = beginning;
  const { width, height } = found.images[0];
  const lines = [];
  for (const y of [y1, y2]) if (y !== undefined) lines.push([x1 ?? 0, y, x2 ?? width, y]);
  for (const x of [x1, x2]) if (x !== undefined) lines.push([x, y1 ?? 0, x, y2 ?? height]);
  pen.setLineDash([7 * unit, 5 * unit]);
  for (const [thick, style] of [[4, "rgba(0, 0, 0, .55)"], [2.2, category > 0 ? colour(category) : "#fff"]]) {
    pen.lineWidth = thick * unit;
    pen.strokeStyle = style;
    pen.beginPath();
    for (const [left, top, right, bottom] of lines) {
      pen.moveTo(left * scale, top * scale);
      pen.lineTo(right * scale, bottom * scale);
    }
    pen.stroke();
  }
  pen.setLineDash([]);
}

function annotation(category_id, bbox, score, area) {
  return { id: found.annotations.length + 1, image_id: 1, category_id, bbox, score, area: thousandth(area), iscrowd: 0 };
}

const tenth = (value) => Math.round(value * 10) / 10;
const thousandth = (value) => Math.round(value * 1000) / 1000; // as the service rounds areas

// Predicted objects are removed: they are predicted again, after these.
function draw(boxes) {
  interrupt();
  beginning = null;
  drawn = boxes;
  found = { ...found, annotations: [...drawn] };
  tell(drawn.length ? `${drawn.length} drawn; the detector can write what is missing.` : "nothing is drawn.");
  show();
}

function boxOf({ x1, y1, x2, y2 }) {
  return [Math.min(x1, x2), Math.min(y1, y2), tenth(Math.abs(x2 - x1)), tenth(Math.abs(y2 - y1))];
}

function drawnObject(bbox) {
  return annotation(Number(byId("drawn-class").value), bbox, 1, bbox[2] * bbox[3]);
}

function placeOf(event) {
  const { left, top, width, height } = byId("canvas").getBoundingClientRect();
  const image = found.images[0];
  const within = (part, most) => tenth(Math.max(0, Math.min(1, part)) * most);
  return [within((event.clientX - left) / width, image.width), within((event.clientY - top) / height, image.height)];
}

function startDragging(event) {
  if (!found || !byId("draw").checked || event.button !== 0) return;
  interrupt();
  byId("canvas").setPointerCapture(event.pointerId);
  const [x, y] = placeOf(event);
  beginning = { x1: x, y1: y, x2: x, y2: y, category: Number(byId("drawn-class").value), dragged: true };
}

function drag(event) {
  if (!beginning?.dragged) return;
  [beginning.x2, beginning.y2] = placeOf(event);
  paint();
}

function stopDragging(event) {
  if (!beginning?.dragged) return;
  const bbox = boxOf(beginning);
  beginning = null;
  if (event.type === "pointerup" && Math.min(bbox[2], bbox[3]) >= LEAST) draw([...drawn, drawnObject(bbox)]);
  else show();
}

const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

function drawByKey(event) {
  if (!found || !byId("draw").checked) return;
  const { width, height } = found.images[0];
  const last = drawn.at(-1);
  if (event.key === "Enter") {
    draw([...drawn, drawnObject([tenth(width * 0.375), tenth(height * 0.375), tenth(width / 4), tenth(height / 4)])]);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    draw(drawn.slice(0, -1));
  } else if (last && event.key in ARROWS) {
    const moved = shifted(last.bbox, ARROWS[event.key], event.shiftKey, width, height);
    draw([...drawn.slice(0, -1), { ...last, bbox: moved, area: thousandth(moved[2] * moved[3]) }]);
  } else return;
  event.preventDefault();
}

function shifted([x, y, width, height], [right, down], resize, mostRight, mostDown) {
  const between = (least, value, most) => tenth(Math.max(least, Math.min(value, most)));
  if (!resize) return [between(0, x + right, mostRight - width), between(0, y + down, mostDown - height), width, height];
  return [x, y, between(LEAST, width + right, mostRight - x), between(LEAST, height + down, mostDown - y)];
}

byId("watch").addEventListener("click", watch);
byId("draw").addEventListener("change", () => show());
byId("undo").addEventListener("click", () => draw(drawn.slice(0, -1)));
byId("canvas").addEventListener("pointerdown", startDragging);
byId("canvas").addEventListener("pointermove", drag);
byId("canvas").addEventListener("pointerup", stopDragging);
byId("canvas").addEventListener("pointercancel", stopDragging);
byId("canvas").addEventListener("keydown", drawByKey);
