// Review mode: a description first. The transcript is fetched only when the reviewer goes on, and forgotten afterwards.

import { Problem, post } from "./http.js";
import { el, fill, open, rating, visible } from "./talk.js";
import { rest, tagBoxes, veiled } from "./care.js";

const root = document.getElementById("review");
const words = JSON.parse(root.dataset.words);
const tags = JSON.parse(root.dataset.tags);
const panel = document.getElementById("panel");
const turns = document.getElementById("turns");
const word = (name, values = {}) => fill(words[name] ?? name, values);
let busy = false;
let keys = null;

function say(text, kind = "") {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.className = `notice ${kind}`;
  notice.hidden = !text;
}

async function send(path, body, then) {
  if (busy) return;
  busy = true;
  root.classList.add("sending");
  try {
    const answer = await post(path, body);
    say("");
    then(answer);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    say(problem.text, "bad");
    if ([404, 409].includes(problem.status)) show(button("review.look", next, "primary"));
  } finally {
    busy = false;
    root.classList.remove("sending");
  }
}

function button(name, act, kind = "") {
  return el("button", { type: "button", class: kind, onclick: act, "data-focus": kind === "primary" ? "" : null }, word(name));
}

function show(...nodes) {
  keys = null;
  turns.replaceChildren();
  panel.replaceChildren(el("section", { class: "card stack" }, ...nodes));
  (panel.querySelector("[data-focus]") ?? document.getElementById("main")).focus({ preventScroll: true });
  panel.scrollIntoView({ block: "nearest" });
}

function frame(found) {
  const { done, size } = found.progress;
  document.getElementById("progress").textContent = found.id ? word("review.progress", { n: (done % size) + 1, size }) : "";
  document.getElementById("stop").hidden = !found.id;
  rest(found.care, words);
}

// ---------------------------------------------------------------- the screens

function next() {
  return send("/api/reviews/next", {}, preview);
}

function preview(found) {
  frame(found);
  if (!found.id) return show(el("p", {}, word("review.none")), button("review.look", next));
  const path = `/api/reviews/${found.id}`;
  show(el("h2", { tabIndex: -1, "data-focus": "" }, word("review.preview")),
    el("blockquote", { class: "said", dir: "auto" }, visible(found.description) || word("review.no_description")),
    el("div", { class: "row" },
      el("button", { type: "button", id: "skip", onclick: () => send(`${path}/skip`, {}, next_after) }, word("review.skip")),
      el("button", { type: "button", id: "proceed", class: "primary", onclick: () => send(`${path}/proceed`, {}, read) },
        word("review.proceed")),
      el("span", { class: "hint" }, word("review.skip_hint"))));
}

// `send` is still busy while it hands over: the next request follows when it is done.
const next_after = () => setTimeout(next);

function read(found) {
  if (found.phase !== "read") return next_after();
  const path = `/api/reviews/${found.id}`;
  const ready = () => {
    const chosen = about.chosen();
    submit.disabled = chosen.length < 1 || !value("rating") || !value("intent");
    full.hidden = chosen.length < 2;
  };
  const value = (name) => form.querySelector(`input[name="${name}"]:checked`)?.value;
  const submit = el("button", { class: "primary" }, word("review.next"));
  const full = el("p", { class: "hint", role: "status", hidden: true }, word("review.tags_full"));
  const comment = el("textarea", { rows: 2, maxLength: 8000, dir: "auto" });
  const about = tagBoxes(tags, { most: 2 });
  const act = (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    send(`${path}/submit`, {
      rating: Number(value("rating")), intent: Number(value("intent")), tags: about.chosen(), comment: comment.value,
    }, next_after);
  };
  const form = el("form", { class: "stack", onsubmit: act, onchange: () => ready() },
    el("fieldset", {}, el("legend", {}, word("review.tags")), about.node, full),
    rating(null, "rating", word("review.rating"), word("review.rating_low"), word("review.rating_high")),
    rating(null, "intent", word("review.intent"), word("review.intent_low"), word("review.intent_high")),
    el("label", {}, word("review.comment"), comment),
    el("div", { class: "row" }, submit,
      el("button", { type: "button", class: "quiet", id: "leave", onclick: () => send(`${path}/skip`, {}, next_after) },
        word("review.leave"))));
  show(form);
  ready();
  frame(found);
  const veils = [];
  for (const [place, { human, reply }] of found.turns.entries()) {
    for (const [who, text] of [["you", human], ["assistant", reply]]) {
      if (text === null) continue;
      const veil = veiled(`${found.id} ${place} ${who}`, text.trim() ? text : word("talk.empty"), words);
      veils.push(veil);
      turns.append(el("article", { class: who === "you" ? "turn human" : "turn reply" },
        el("h2", { class: "who" }, word(who === "you" ? "review.human" : "talk.assistant")), veil.node));
    }
  }
  const all = () => { for (const veil of veils) veil.uncover(); };
  turns.prepend(el("p", { class: "row" },
    el("q", { class: "said hint", dir: "auto" }, visible(found.description)),
    el("button", { type: "button", onclick: all, "aria-keyshortcuts": "U", "data-first": "" }, word("review.uncover_all"))));
  keys = (event) => { if (event.key.toLowerCase() === "u") all(); };
  turns.querySelector("[data-first]").focus();
  turns.scrollIntoView({ block: "start" });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.matches("textarea, select, input:not([type=radio], [type=checkbox])");
  if (!typing && !event.isComposing && !event.ctrlKey && !event.altKey && !event.metaKey && !document.querySelector("dialog[open]")) keys?.(event);
});

document.getElementById("stop").addEventListener("click", () => send("/api/reviews/stop", {}, () => {
  document.getElementById("stop").hidden = true;
  document.getElementById("progress").textContent = "";
  show(el("p", { class: "notice good", role: "status" }, word("review.stopped")), button("review.again", next),
    el("a", { class: "button quiet", href: "/" }, word("talk.home")));
}));

const instructions = document.getElementById("instructions");
document.getElementById("instructions-open").addEventListener("click", () => open(instructions));

const spare = document.getElementById("spare");
let spared = tagBoxes(tags, { chosen: JSON.parse(root.dataset.spared) });
document.getElementById("spare-tags").append(spared.node);
document.getElementById("spare-open").addEventListener("click", () => open(spare));
document.getElementById("spare-close").addEventListener("click", () => spare.close());
document.getElementById("spare-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send("/api/exclusions", { tags: spared.chosen() }, () => {
    spare.close();
    // A transcript that is open stays; a description on the screen may be of what is now left out.
    if (!panel.querySelector("form")) next_after();
    say(word("review.spared"), "good");
  });
});

next();
