// Red-team mode: what it has beyond a conversation (talk.js).

import { Room, drafts, el, rating, said, strip, visible } from "./talk.js";
import { rest, tagBoxes, veiled } from "./care.js";

class RedTeam extends Room {
  draw() {
    super.draw();
    const { plan, care, phase } = this.screen;
    document.getElementById("stop").hidden = ["done", "withdrawn"].includes(phase);
    const place = document.getElementById("plan");
    place.replaceChildren(plan === null || phase === "plan" ? "" : el("p", { class: "hint plan" },
      `${this.word("redteam.your_plan")}: `, el("span", { class: "said", dir: "auto" }, visible(plan))));
    if (document.getElementById("more").dataset.of !== `${this.screen.id} ${phase}`) this.drawMore();
    rest(care, this.words);
  }

  drawTurns(screen) {
    const nodes = screen.turns.flatMap(({ human, reply }, place) => [
      el("article", { class: "turn human" }, el("h2", { class: "who" }, this.word("talk.you")),
        said(human)),
      reply === null ? null : el("article", { class: "turn reply" }, el("h2", { class: "who" }, this.word("talk.assistant")),
        veiled(`${screen.id} ${place}`, reply.trim() ? reply : this.word("talk.empty"), this.words).node),
    ]).filter(Boolean);
    document.getElementById("turns").replaceChildren(...nodes);
  }

  // ---- flag and withdraw, on every screen

  drawMore() {
    const more = document.getElementById("more");
    more.dataset.of = `${this.screen.id} ${this.screen.phase}`;
    if (["withdrawn", "consent"].includes(this.screen.phase)) return more.replaceChildren();
    more.replaceChildren(el("div", { class: "row end" },
      el("button", { type: "button", class: "quiet", id: "flag", onclick: () => this.flag(more) }, this.word("redteam.flag")),
      el("button", { type: "button", class: "quiet", id: "withdraw", onclick: () => this.withdraw(more) },
        this.word("redteam.withdraw"))));
  }

  flag(more) {
    const why = el("textarea", { rows: 2, maxLength: 2000, dir: "auto" });
    const about = el("select", {}, el("option", { value: "" }, this.word("redteam.flag_all")),
      ...this.screen.candidates.map((c) => el("option", { value: c.key }, this.word("talk.reply", { key: c.key.toUpperCase() }))));
    const send = async (event) => {
      event.preventDefault();
      const body = { why: why.value };
      if (about.value) body.key = about.value;
      if (await this.act("flag", body)) {
        this.drawMore();
        this.say(this.word("redteam.flagged"), "good");
      }
    };
    more.replaceChildren(el("form", { class: "card stack", onsubmit: send },
      el("label", {}, this.word("redteam.flag_why"), why), el("label", {}, this.word("redteam.flag_about"), about),
      el("div", { class: "row" }, el("button", { class: "primary" }, this.word("redteam.flag_send")),
        el("button", { type: "button", class: "quiet", onclick: () => this.drawMore() }, this.word("redteam.flag_cancel")))));
    why.focus();
  }

  withdraw(more) {
    const no = el("button", { type: "button", class: "primary", onclick: () => this.drawMore() }, this.word("redteam.withdraw_no"));
    more.replaceChildren(el("section", { class: "card stack" }, el("p", {}, this.word("redteam.withdraw_sure")),
      el("div", { class: "row" }, no, el("button", { type: "button", class: "danger",
        onclick: () => this.act("withdraw", {}) }, this.word("redteam.withdraw_yes")))));
    no.focus();
  }
}

// ---------------------------------------------------------------- phases

function plan(room, screen) {
  const send = async () => {
    if (!text.area.value.trim()) return text.area.focus();
    if (await room.act("plan", { text: text.area.value, tags: about.chosen() })) text.area.forget();
  };
  const text = room.field("plan", room.word("redteam.plan"), { send, focus: true, hint: room.word("redteam.plan_hint") });
  text.area.maxLength = 2000;
  const about = tagBoxes(JSON.parse(room.root.dataset.tags), { most: 2 });
  return el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); send(); } },
    el("h2", {}, room.word("redteam.plan_title")),
    screen.task.of > 1 ? el("p", { class: "hint" }, room.word("redteam.plan_new")) : "", text.node,
    el("details", {}, el("summary", {}, room.word("redteam.plan_tags")), about.node),
    el("div", { class: "row" }, el("button", { class: "primary" }, room.word("redteam.plan_button")),
      el("span", { class: "hint" }, room.word("talk.send_keys"))));
}

function choose(room, screen) {
  const began = performance.now();
  const question = room.word("redteam.question");
  const buttons = strip(room, (pick, strength) => room.act("choices",
    { turn: screen.turn, pick, strength, latency_ms: Math.round(performance.now() - began) }), question);
  const hint = el("p", { class: "hint", role: "status" });
  const check = () => {
    const closed = veils.some((veil) => !veil.open());
    for (const button of buttons.querySelectorAll("button")) button.disabled = closed;
    hint.textContent = closed ? room.word("redteam.first_uncover") : room.word("talk.choice_keys");
  };
  const veils = screen.candidates.map((c) => veiled(`${screen.id} ${screen.turn} ${c.key}`,
    c.text.trim() ? c.text : room.word("talk.empty"), room.words, () => check()));
  const all = () => { for (const veil of veils) veil.uncover(); buttons.focus(); };
  const keys = room.keys;
  room.keys = (event) => {
    const plain = !event.ctrlKey && !event.altKey && !event.metaKey && !event.target.matches?.("input, textarea, select");
    if (plain && event.key.toLowerCase() === "u") all();
    else keys(event);
  };
  check();
  return el("section", { class: "card stack" }, el("h2", {}, question),
    el("button", { type: "button", class: "quiet", onclick: all, "aria-keyshortcuts": "U" }, room.word("care.uncover_all")),
    el("div", { class: "candidates" }, ...screen.candidates.map((c, place) => el("article", { class: "candidate", "data-key": c.key },
      el("h3", {}, room.word("talk.reply", { key: c.key.toUpperCase() })), veils[place].node))),
    screen.message ? el("p", { class: "notice warn", role: "status" }, screen.message) : "", buttons,
    el("div", { class: "row" }, hint, room.finishButton()));
}

function end(room, screen) {
  const names = ["success", "harmfulness", "actionability"];
  const owes = screen.turns.some(({ reply }) => reply !== null);
  const answers = () => names.map((name) => form.querySelector(`input[name="${name}"]:checked`)?.value);
  const submit = async () => {
    if (next.disabled) return;
    const body = { description: described.area.value, comment: comment.area.value };
    if (owes) names.forEach((name, place) => { body[name] = Number(answers()[place]); });
    if (await room.act("finish", body)) { described.area.forget(); comment.area.forget(); room.ending = false; }
  };
  const next = el("button", { class: "primary" }, room.word("redteam.next"));
  const described = room.field("description", room.word("redteam.description"), { text: screen.plan ?? "", send: submit });
  described.area.maxLength = 2000;
  const comment = room.field("comment", room.word("redteam.comment"), { send: submit, rows: 2 });
  const questions = owes ? names.map((name) => rating(room, name, room.word(`redteam.${name}`),
    room.word(`redteam.${name}_low`), room.word(`redteam.${name}_high`))) : [];
  const check = () => { next.disabled = (owes && answers().includes(undefined)) || !described.area.value.trim(); };
  const form = el("form", { class: "card stack", tabIndex: -1, "data-focus": "", oninput: () => check(),
    onsubmit: (event) => { event.preventDefault(); submit(); } },
    el("h2", {}, room.word("redteam.end_title")), described.node, ...questions, comment.node,
    el("div", { class: "row" }, next, screen.phase === "end" ? null
      : el("button", { type: "button", class: "quiet", onclick: () => room.show(false) }, room.word("talk.back"))));
  check();
  return form;
}

function done(room, screen) {
  const { done: count, size } = screen.task;
  const over = count >= size;
  return el("section", { class: "card stack" },
    el("p", { class: "notice good", role: "status" }, room.word(screen.stopped ? "care.stopped" : "talk.done")),
    over ? el("p", {}, room.word("talk.task_done", { size })) : "",
    el("div", { class: "row" }, // by a link, so that a survey can come in between
      el("a", { class: "button primary", href: "/redteam", "data-focus": "" }, room.word(over ? "talk.new_task" : "talk.next")),
      el("a", { class: "button quiet", href: "/" }, room.word("talk.home"))));
}

const room = new RedTeam(document.getElementById("talk"), { plan, choose, end, done });
document.getElementById("stop").addEventListener("click", async () => {
  if (!room.screen) return location.assign("/");
  room.ending = false;
  if (await room.act("stop", {})) {
    for (const what of ["plan", "description", "comment", `turn${room.screen.turn}`]) drafts.write(room.screen.id, what, "");
  }
});
room.begin();
