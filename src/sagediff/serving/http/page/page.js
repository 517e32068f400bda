// The page: prompts in, images as they come, and what sharing saved.

import { Refused, headers, makeImages, refusal } from "./stream.js";
import { drawTree } from "./tree.js";

const KEY = "sagediff-key";
const WORLD = "demo"; // the built-in model knows captions of one form only, so it has examples of its own
const PARTIAL_IMAGES = 3;
const SMALL = 160; // pixels; images below it are shown with hard edges rather than blurred

const EXAMPLES = {
  [WORLD]: [
    ["Five animals", ["cat", "dog", "lion", "panda", "bear"].map((it) => `a large ${it} at the center on a blue background`)],
    ["Four colours", ["yellow", "white", "orange", "pink"].map((it) => `a small sailboat at the bottom on a ${it} background`)],
    ["Three scenes", [
      ...["yellow", "black", "blue"].map((it) => `a large guitar at the top on a ${it} background`),
      ...["white", "black", "blue"].map((it) => `a small frog at the bottom left on a ${it} background`),
      ...["cat", "dog"].map((it) => `a large ${it} at the bottom right on a green background`),
      "a large castle at the center on a purple background",
    ]],
  ],
  other: [
    ["Six animals", ["fox", "wolf", "deer", "hare", "owl", "bear"].map((it) => `a ${it} in a snowy forest at dawn, watercolour`)],
    ["Four seasons", ["spring", "summer", "autumn", "winter"].map((it) => `a small wooden house by a lake in ${it}, oil painting`)],
    ["Two scenes", [
      ...["red", "blue", "green"].map((it) => `a ${it} vintage car parked in front of a cafe, photograph`),
      ...["roses", "tulips"].map((it) => `a glass vase of ${it} on a window sill, still life`),
    ]],
  ],
};

const at = (id) => document.getElementById(id);
const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const state = { run: null, items: [], steps: 0, retry: null };

// -- asking

function prompts() {
  return at("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function body() {
  const asked = { prompts: prompts(), partial_images: PARTIAL_IMAGES };
  if (at("steps").value !== "") asked.num_inference_steps = Number(at("steps").value);
  if (at("size").value.trim() !== "") asked.size = at("size").value.trim().replace(/\s*[x×]\s*/i, "x");
  if (!at("share").checked) asked.share = false;
  return asked;
}

async function start() {
  if (state.run) return;
  const asked = body();
  hideError();
  if (!asked.prompts.length) {
    showError("Write at least one prompt, or choose an example.");
    at("prompts").focus();
    return;
  }
  state.run = new AbortController();
  state.items = asked.prompts.map((prompt, i) => ({ number: i + 1, prompt, card: card(i + 1, prompt) }));
  clearAnswer();
  busy(true);
  say(`${many(asked.prompts.length, "prompt")} sent.`);
  if (matchMedia("(max-width: 56rem)").matches) at("buttons").scrollIntoView(); // images come below the form
  let cancelled = false;
  try {
    await makeImages(asked, sessionStorage.getItem(KEY), state.run.signal, take);
    const missing = state.items.filter((item) => !item.done && !item.failed).length;
    if (missing) throw new TypeError("the stream ended early");
  } catch (error) {
    cancelled = error.name === "AbortError";
    for (const item of state.items) if (!item.done) stop(item, cancelled ? "cancelled" : "not made");
    if (!cancelled) explain(error);
  } finally {
    state.run = null;
    busy(false);
    finish(cancelled);
  }
}

function explain(error) {
  if (!(error instanceof Refused)) {
    showError("The connection to the server was lost. Is it still running?");
  } else if (error.status === 401) {
    askForKey(start);
  } else {
    const which = /^prompts\.(\d+)$/.exec(error.param ?? "");
    const words = which ? error.message.replace(error.param, `prompt ${Number(which[1]) + 1}`) : error.message;
    showError(words.charAt(0).toUpperCase() + words.slice(1));
  }
}

// -- events

function take(event) {
  const item = state.items[event.index];
  if (!item) return;
  if (event.type === "image_generation.failed") {
    item.failed = event.error.message;
    stop(item, "failed");
    say(`Image ${item.number} failed: ${event.error.message}`);
  } else if (event.type === "image_generation.partial_image") {
    show(item, event, event.step / event.steps);
    quietly(`Step ${event.step} of ${event.steps}`);
  } else if (event.type === "image_generation.completed") {
    item.done = event;
    state.steps = event.steps;
    show(item, event, 1);
    say(`${doneOnes().length} of ${many(state.items.length, "image")} finished.`);
    tellSaving();
  }
  const parts = state.items.map((one) => (one.done || one.failed ? 1 : (one.part ?? 0)));
  at("progress").firstElementChild.style.width = `${(100 * parts.reduce((sum, part) => sum + part, 0)) / parts.length}%`;
}

const doneOnes = () => state.items.filter((item) => item.done);

function card(number, prompt) {
  const made = document.createElement("figure");
  made.className = "card";
  const frame = document.createElement("div");
  frame.className = "frame waiting";
  frame.dataset.said = "waiting";
  const step = document.createElement("div");
  step.className = "step";
  step.append(document.createElement("div"));
  frame.append(step);
  const caption = document.createElement("figcaption");
  const label = document.createElement("b");
  label.textContent = number;
  caption.append(label, prompt);
  made.append(frame, caption);
  return made;
}

function show(item, event, part) {
  const frame = item.card.querySelector(".frame");
  let image = frame.querySelector("img");
  if (!image) {
    image = new Image();
    image.alt = item.prompt;
    image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
    frame.prepend(image);
    frame.classList.remove("waiting");
  }
  image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
  item.part = part;
  frame.querySelector(".step div").style.width = `${100 * part}%`;
  frame.querySelector(".step").hidden = part === 1;
}

function stop(item, said) {
  const frame = item.card.querySelector(".frame");
  frame.querySelector("img")?.remove();
  frame.querySelector(".step").hidden = true;
  frame.classList.add("waiting");
  frame.classList.toggle("failed", said === "failed");
  frame.dataset.said = said;
}

// -- the answer

function groupsOf(items) {
  const groups = new Map();
  for (const { number, prompt, done, card: its } of items) {
    const group = groups.get(done.group) ?? { size: done.group_size, shared: done.shared_steps, members: [] };
    group.members.push({ number, prompt, card: its, src: `data:image/${done.output_format};base64,${done.b64_json}` });
    groups.set(done.group, group);
  }
  return [...groups.values()];
}

function clearAnswer() {
  for (const id of ["empty", "saving", "plan"]) at(id).hidden = true;
  at("groups").replaceChildren(section(null, null, state.items));
}

function section(title, detail, members) {
  const made = document.createElement("section");
  made.className = "group";
  if (title) {
    const heading = document.createElement("h2");
    heading.textContent = title;
    made.append(heading);
  }
  if (detail) {
    const words = document.createElement("p");
    words.textContent = detail;
    made.append(words);
  }
  const cards = document.createElement("div");
  cards.className = "cards";
  cards.append(...members.map((member) => member.card));
  made.append(cards);
  return made;
}

function tellSaving() {
  const events = doneOnes().map((item) => item.done);
  const sum = (name) => events.reduce((total, event) => total + event[name], 0);
  const run = sum("evaluations");
  const alone = sum("evaluations_alone");
  const saved = alone > 0 ? Math.max(0, 1 - run / alone) : 0;
  const figure = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });
  at("saved-part").textContent = `${Math.round(100 * saved)} %`;
  at("saved-words").textContent = saved > 0 ? "less work for the model" : "saved: no two prompts shared";
  at("saved-detail").textContent = `${figure(run)} denoiser evaluations instead of ${figure(alone)}, for ${many(events.length, "image")}`;
  at("saving").querySelector(".bar div").style.width = `${alone > 0 ? (100 * run) / alone : 0}%`;
  at("saving").hidden = false;
  return saved;
}

function finish(cancelled) {
  quietly("");
  at("progress").hidden = true;
  const made = doneOnes();
  if (!made.length) {
    if (cancelled) say("Cancelled.");
    else if (!state.items.some((item) => item.failed)) {
      say("");
      at("groups").replaceChildren();
      at("empty").hidden = false;
    }
    return;
  }
  const saved = tellSaving();
  const groups = groupsOf(made);
  draw(groups);
  const together = groups.filter((group) => group.shared);
  const alone = groups.filter((group) => !group.shared).flatMap((group) => group.members);
  const missing = state.items.filter((item) => !item.done);
  const sections = together.map((group, i) => {
    const others = group.size - group.members.length;
    const with_ = others ? ` with ${others} of other requests` : "";
    return section(`Group ${i + 1}`, `${many(group.members.length, "image")}${with_} shared the first ${group.shared} of ${state.steps} steps.`, group.members);
  });
  if (alone.length) sections.push(section("Alone", `Took all ${state.steps} steps without others.`, alone));
  if (missing.length) sections.push(section("Not made", missing.find((one) => one.failed)?.failed, missing));
  at("groups").replaceChildren(...sections);
  const shared = together.length ? `${many(together.length, "group")} shared steps, ` : "";
  say(`${cancelled ? "Cancelled" : "Done"}: ${many(made.length, "image")}, ${shared}${Math.round(100 * saved)} % saved.`);
}

function draw(groups) {
  at("plan").hidden = false;
  const tree = at("tree");
  tree.drawn = groups;
  tree.replaceChildren(drawTree(groups, state.steps, tree.clientWidth));
}

new ResizeObserver(() => {
  const tree = at("tree");
  const width = Number(tree.querySelector("svg")?.viewBox.baseVal.width);
  if (tree.drawn && width && Math.abs(width - tree.clientWidth) > 1 && tree.clientWidth) draw(tree.drawn);
}).observe(at("tree"));

// -- what is said

/** Read aloud by screen readers. */
function say(words) {
  at("status").textContent = words;
}

/** Seen only: read aloud, it would drown everything else, as it changes so often. */
function quietly(words) {
  at("now").textContent = words;
}

function showError(words) {
  at("error").textContent = words;
  at("error").hidden = false;
  at("error").scrollIntoView({ block: "nearest" });
}

function hideError() {
  at("error").hidden = true;
}

function busy(is) {
  const had = document.activeElement;
  at("go").setAttribute("aria-disabled", String(is));
  at("cancel").hidden = !is;
  at("progress").hidden = !is;
  at("progress").firstElementChild.style.width = "0";
  if (!is && had === at("cancel")) at("go").focus(); // the focused button disappears
}

function askForKey(then) {
  state.retry = then;
  const tried = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  at("key-form").hidden = false;
  at("key").focus();
  if (tried) showError("The server does not know this key.");
  else say("This server asks for an API key.");
}

function countPrompts() {
  const count = prompts().length;
  const most = state.most && count > state.most ? `, but ${state.most} at most at once` : "";
  at("count").textContent = count ? many(count, "prompt") + most : "No prompts yet";
}

// -- the beginning

function offer(examples) {
  at("examples").replaceChildren(...examples.map(([name, lines]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.onclick = () => {
      at("prompts").value = lines.join("\n");
      countPrompts();
    };
    return button;
  }));
}

async function learn() {
  const answer = await fetch("v1/models", { headers: headers(sessionStorage.getItem(KEY)) });
  if (!answer.ok) throw await refusal(answer);
  const model = (await answer.json()).data[0];
  at("model").textContent = `model: ${model.id}`;
  at("steps").placeholder = model.steps;
  at("steps").max = model.max_steps;
  state.most = model.max_images;
  offer(EXAMPLES[model.id] ?? EXAMPLES.other);
  countPrompts();
}

/** Whether the server answered. */
async function begin() {
  try {
    await learn();
    return true;
  } catch (error) {
    if (error.status === 401) askForKey(null);
    else explain(error);
    return false;
  }
}

at("form").onsubmit = (event) => {
  event.preventDefault();
  start();
};
at("prompts").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
};
at("prompts").oninput = countPrompts;
at("cancel").onclick = () => state.run?.abort();
at("key-form").onsubmit = async (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value);
  at("key").value = "";
  at("key-form").hidden = true;
  hideError();
  at("go").focus();
  const then = state.retry;
  if ((await begin()) && then) then();
};
begin();
