// One conversation on the screen, drawn from the state document (truing/collect/talk.py) and nothing else.
// Rooms are made of this: chat.js is helpful and ranking mode, redteam.js adds its own phases.
// What people and models said is set as text, never as markup.

import { get, post } from "./http.js";

/** An element. Properties are set, attributes with a dash or "role" too; children are nodes or texts. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A text with {names} filled in. */
export function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** A text in which characters that turn the direction of all that follows are made visible. */
export function visible(text) {
  return text.replace(/[\u202d\u202e]/g, "\ufffd");
}

/** Something said, as it stands. */
export function said(text, empty = "") {
  return el("p", { class: "said", dir: "auto" }, text.trim() ? visible(text) : empty);
}

/** Open a dialog with much to read: its beginning is seen, and arrows scroll it (browsers go to its first button). */
export function open(dialog) {
  dialog.tabIndex = -1;
  dialog.showModal();
  dialog.focus();
  dialog.scrollTo(0, 0);
}

const sleep = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});
const typing = (target) => target instanceof HTMLElement && target.matches("input, textarea, select");

/** Text that a person has written and not sent, kept in this browser until it is. */
export const drafts = {
  name: (conversation, what) => `truing.draft.${conversation}.${what}`,
  read(conversation, what) {
    try { return localStorage.getItem(this.name(conversation, what)) ?? ""; } catch { return ""; }
  },
  write(conversation, what, text) {
    try {
      if (text) localStorage.setItem(this.name(conversation, what), text);
      else localStorage.removeItem(this.name(conversation, what));
    } catch { /* the browser keeps nothing */ }
  },
};

/**
 * The conversation of a mode. ``phases`` maps further phases to functions (room, screen) → node; a function there
 * stands in for one of ours. Start it with ``begin``.
 */
export class Room {
  constructor(root, phases = {}) {
    this.root = root;
    this.mode = root.dataset.mode;
    this.words = JSON.parse(root.dataset.words);
    this.phases = phases;
    this.screen = null;
    this.shown = "";
    this.ending = false;
    this.sending = false;
    this.keys = null;
    document.addEventListener("keydown", (event) => {
      if (!event.isComposing && !document.querySelector("dialog[open]")) this.keys?.(event);
    });
    const dialog = document.getElementById("instructions");
    document.getElementById("instructions-open")?.addEventListener("click", () => open(dialog));
  }

  word(name, values = {}) {
    return fill(this.words[name] ?? name, values);
  }

  /** A word that modes may have of their own: ``MODE.name``, else ``talk.name``. */
  own(name, values = {}) {
    const mine = `${this.mode}.${name}`;
    return this.word(mine in this.words ? mine : `talk.${name}`, values);
  }

  /** The person's open conversation, or a new one. */
  async begin() {
    this.ending = false;
    await this.send("/api/tasks", { mode: this.mode });
    this.looking?.abort(); // at the last conversation
    if (this.screen && !this.polling) this.poll();
  }

  path(what = "") {
    return `/api/conversations/${this.screen.id}${what}`;
  }

  /** A write of this conversation; true if it was done. */
  act(what, body) {
    return this.send(this.path(`/${what}`), body);
  }

  async send(path, body) {
    if (this.sending) return false;
    this.sending = true;
    this.root.classList.add("sending");
    try {
      this.take(await post(path, body));
      this.say("");
      return true;
    } catch (problem) {
      this.say(problem.text ?? this.word("talk.offline"), "bad");
      if (problem.status === 409 && this.screen) await this.reload();
      return false;
    } finally {
      this.sending = false;
      this.root.classList.remove("sending");
    }
  }

  async reload() {
    try { this.take(await get(this.path())); } catch (problem) { this.say(problem.text, "bad"); }
  }

  async poll() {
    this.polling = true;
    for (;;) {
      this.looking = new AbortController();
      const { signal } = this.looking;
      try {
        const found = await get(`${this.path()}?after=${this.screen.version}`, { pauses: [], signal });
        if (found.id === this.screen.id) this.take(found);
        if (this.late) this.say("");
        this.late = false;
        if (["done", "withdrawn"].includes(this.screen.phase)) await sleep(5000, signal);
        else if (this.screen.candidates.some((c) => c.partial)) await sleep(250);
      } catch (problem) {
        if (signal.aborted) continue;
        if (problem.status === 401) return;
        this.late = true;
        this.say(problem.status ? problem.text : this.word("talk.offline"), "bad");
        await sleep(3000, signal);
      }
    }
  }

  /** A newer screen; what is older than what is shown is left aside. */
  take(screen) {
    const same = this.screen && this.screen.id === screen.id;
    if (same && screen.version < this.screen.version) return;
    if (same && screen.version === this.screen.version && screen.phase === this.screen.phase
      && screen.queue === this.screen.queue) return;
    this.screen = screen;
    this.draw();
  }

  say(text, kind = "") {
    const notice = document.getElementById("notice");
    notice.textContent = text;
    notice.className = `notice ${kind}`;
    notice.hidden = !text;
  }

  // ------------------------------------------------------------ drawing

  draw() {
    const screen = this.screen;
    const task = document.getElementById("task");
    task.textContent = [
      fill(this.word("talk.task"), screen.task),
      ["done", "withdrawn", "plan"].includes(screen.phase) ? null
        : this.word("talk.turns", { turn: screen.turn, suggested: screen.suggested_turns }),
    ].filter(Boolean).join(" · ");
    this.drawTurns(screen);
    const phase = this.ending && screen.can.finish ? "end" : screen.phase;
    const key = `${screen.id} ${phase} ${screen.turn}`;
    if (key === this.shown && this.refresh) return this.refresh(screen);
    this.shown = key;
    this.refresh = null;
    this.keys = null;
    const draw = this.phases[phase] ?? Room.phases[phase];
    const panel = document.getElementById("panel");
    panel.replaceChildren(draw ? draw(this, screen) : "");
    (panel.querySelector("[data-focus]") ?? document.getElementById("main")).focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  }

  drawTurns(screen) {
    const turns = document.getElementById("turns");
    const nodes = screen.turns.flatMap(({ human, reply }) => [
      el("article", { class: "turn human" }, el("h2", { class: "who" }, this.word("talk.you")), said(human)),
      reply === null ? null : el("article", { class: "turn reply" },
        el("h2", { class: "who" }, this.word("talk.assistant")), said(reply, this.word("talk.empty"))),
    ]).filter(Boolean);
    turns.replaceChildren(...nodes);
  }

  /** Show another part of the page, without anything new from the server. */
  show(ending) {
    this.ending = ending;
    this.draw();
  }

  /** A text field whose draft survives a reload. ``send`` is called by ctrl-enter. */
  field(what, label, { send, rows = 3, hint = "", text = "", focus = false } = {}) {
    const id = this.screen.id;
    const area = el("textarea", {
      rows, maxLength: 8000, placeholder: hint, value: drafts.read(id, what) || text, dir: "auto",
      "data-focus": focus ? "" : null,
      oninput: () => drafts.write(id, what, area.value),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
          event.preventDefault();
          send?.();
        }
      },
    });
    area.forget = () => drafts.write(id, what, "");
    return { area, node: el("label", {}, label, area) };
  }

  finishButton() {
    return this.screen.can.finish
      ? el("button", { type: "button", class: "quiet", onclick: () => this.show(true) }, this.word("talk.finish"))
      : null;
  }
}

// ---------------------------------------------------------------- the phases that every room has

function write(room, screen) {
  const what = `turn${screen.turn}`;
  let own = null;
  const send = async () => {
    const text = message.area.value;
    if (!text.trim()) return message.area.focus();
    const body = { turn: screen.turn, text };
    if (own?.area.value.trim()) body.own_reply = own.area.value;
    if (await room.act("turns", body)) { message.area.forget(); own?.area.forget(); }
  };
  const message = room.field(what, room.word("talk.message"), {
    send, focus: true, hint: screen.turn === 1 ? room.own("first") : "",
  });
  const form = el("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); send(); } }, message.node);
  if (screen.can.own_reply) {
    const add = () => {
      own = room.field(`${what}.own`, room.word("talk.own_label"), { send });
      more.replaceWith(own.node);
    };
    const more = el("button", { type: "button", class: "quiet", onclick: () => { add(); own.area.focus(); } },
      room.word("talk.own_reply"));
    form.append(el("div", {}, more));
    if (drafts.read(screen.id, `${what}.own`)) add();
  }
  form.append(el("div", { class: "row" },
    el("button", { class: "primary" }, room.word("talk.send")),
    el("span", { class: "hint" }, room.word("talk.send_keys")), room.finishButton()));
  return form;
}

function wait(room, screen) {
  const status = el("p", { class: "waiting", role: "status" });
  const replies = el("div", { class: "candidates" });
  room.refresh = (now) => {
    const partial = now.candidates.length > 0;
    const text = partial ? room.word("talk.waiting_stream") : now.queue
      ? room.word("talk.queue", { n: now.queue }) : room.word("talk.waiting");
    if (status.textContent !== text) status.textContent = text;
    replies.replaceChildren(...now.candidates.map((c) => card(room, c)));
  };
  room.refresh(screen);
  return el("section", { class: "card stack", tabIndex: -1, "data-focus": "", "aria-busy": "true" }, status, replies);
}

/** A reply on offer. */
export function card(room, candidate, ...more) {
  const name = room.word("talk.reply", { key: candidate.key.toUpperCase() });
  const own = candidate.own ? ` (${room.word("talk.own")})` : "";
  return el("article", { class: "candidate", "data-key": candidate.key },
    el("h3", {}, name + own), said(candidate.text, candidate.partial ? "" : room.word("talk.empty")), ...more);
}

/** The strip of eight graded buttons: keys 1 to 8, arrows, Enter. ``choose`` gets key and strength. */
export function strip(room, choose, question) {
  const how = room.word("talk.strengths").split("|");
  const steps = [["a", 4], ["a", 3], ["a", 2], ["a", 1], ["b", 1], ["b", 2], ["b", 3], ["b", 4]];
  const buttons = steps.map(([key, strength], place) => {
    const label = room.own("strength", { key: key.toUpperCase(), how: how[strength - 1] });
    return el("button", {
      type: "button", class: `grade s${strength}`, title: label, "aria-label": label, "data-key": key,
      "aria-keyshortcuts": String(place + 1), onclick: () => choose(key, strength),
    }, key.toUpperCase());
  });
  const move = (by) => {
    const free = buttons.filter((button) => !button.disabled);
    const at = free.indexOf(document.activeElement);
    free[at < 0 ? (by > 0 ? free.findIndex((b) => b.dataset.key === "b") : 0) : Math.min(Math.max(at + by, 0), free.length - 1)]?.focus();
  };
  room.keys = (event) => {
    if (typing(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key >= "1" && event.key <= "8") {
      event.preventDefault();
      if (!event.repeat) buttons[Number(event.key) - 1].click();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      move(event.key === "ArrowLeft" ? -1 : 1);
    }
  };
  return el("div", { class: "strip", role: "group", "aria-label": question, tabIndex: -1, "data-focus": "" },
    el("span", { class: "end" }, room.word(`${room.mode}.a`)), ...buttons,
    el("span", { class: "end" }, room.word(`${room.mode}.b`)));
}

function choose(room, screen) {
  const began = performance.now();
  const question = room.word(`${room.mode}.question`);
  let edited = null;
  const pick = async (key, strength) => {
    const body = { turn: screen.turn, pick: key, strength, latency_ms: Math.round(performance.now() - began) };
    if (edited) body.edit = edited.area.value;
    if (await room.act("choices", body)) edited?.area.forget();
  };
  const section = el("section", { class: "card stack" });
  const buttons = strip(room, pick, question);
  const editable = screen.can.edit ? (c) => el("button", { type: "button", class: "quiet", onclick: () => edit(c) },
    room.word("talk.edit", { key: c.key.toUpperCase() })) : () => null;
  const cards = el("div", { class: "candidates" });
  const drawCards = () => cards.replaceChildren(...screen.candidates.map((c) => card(room, c, editable(c))));
  const edit = (candidate) => {
    const key = candidate.key.toUpperCase();
    edited = room.field(`turn${screen.turn}.edit${key}`, room.word("talk.edit_label", { key }), { text: candidate.text, rows: 8 });
    const leave = () => {
      edited.area.forget();
      edited = null;
      for (const button of buttons.querySelectorAll("button")) button.disabled = false;
      drawCards();
    };
    for (const button of buttons.querySelectorAll("button")) button.disabled = button.dataset.key !== candidate.key;
    cards.replaceChildren(...screen.candidates.map((c) => (c === candidate
      ? el("article", { class: "candidate" }, edited.node, el("p", { class: "hint" }, room.word("talk.edit_help")),
        el("button", { type: "button", class: "quiet", onclick: leave }, room.word("talk.edit_cancel")))
      : card(room, c))));
    edited.area.focus();
  };
  drawCards();
  section.append(el("h2", {}, question), cards,
    screen.message ? el("p", { class: "notice warn", role: "status" }, screen.message) : "", buttons,
    el("div", { class: "row" }, el("span", { class: "hint" }, room.word("talk.choice_keys")), room.finishButton()));
  return section;
}

function rank(room, screen) {
  const began = performance.now();
  const keys = screen.candidates.map((c) => c.key);
  let order = [];
  const confirm = async () => {
    if (order.length === keys.length) {
      await room.act("choices", { turn: screen.turn, order, latency_ms: Math.round(performance.now() - began) });
    }
  };
  const place = (key) => { if (!order.includes(key)) order = [...order, key]; refresh(); };
  const buttons = Object.fromEntries(keys.map((key) => [key,
    el("button", { type: "button", class: "place", onclick: () => place(key), "aria-keyshortcuts": key.toUpperCase() })]));
  const done = el("button", { type: "button", class: "primary", onclick: confirm }, room.word("talk.rank_confirm"));
  const clear = el("button", { type: "button", class: "quiet", onclick: () => { order = []; refresh(); } },
    room.word("talk.rank_clear"));
  const refresh = () => {
    for (const key of keys) {
      const at = order.indexOf(key);
      buttons[key].textContent = room.word("talk.place", { place: at < 0 ? `${order.length + 1}?` : at + 1 });
      buttons[key].setAttribute("aria-label", `${room.word("talk.reply", { key: key.toUpperCase() })}: ${buttons[key].textContent}`);
      buttons[key].setAttribute("aria-pressed", String(at >= 0));
      buttons[key].classList.toggle("primary", at >= 0);
    }
    done.disabled = order.length < keys.length;
  };
  refresh();
  room.keys = (event) => {
    if (typing(event.target) || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (keys.includes(key)) place(key);
    else if (key === "backspace") { order = order.slice(0, -1); refresh(); }
    else if (key === "enter" && !(event.target instanceof HTMLButtonElement)) confirm();
    else return;
    event.preventDefault();
  };
  return el("section", { class: "card stack" },
    el("h2", {}, room.word("rank.question")),
    el("div", { class: "candidates", tabIndex: -1, "data-focus": "" },
      ...screen.candidates.map((c) => card(room, c, buttons[c.key]))),
    screen.message ? el("p", { class: "notice warn", role: "status" }, screen.message) : "",
    el("div", { class: "row" }, done, clear, el("span", { class: "hint" }, room.word("talk.rank_keys")), room.finishButton()));
}

/** Five radio buttons, shown as 1 to 5 and worth 0 to 4. */
export function rating(room, name, question, low, high) {
  const radios = [0, 1, 2, 3, 4].map((value) =>
    el("label", { class: "inline" }, el("input", { type: "radio", name, value: String(value), required: true }), String(value + 1)));
  return el("fieldset", { class: "rating" }, el("legend", {}, question), el("div", { class: "five" }, ...radios,
    el("span", { class: "hint low" }, low), el("span", { class: "hint high" }, high)));
}

function end(room, screen) {
  const submit = async () => {
    if (!form.reportValidity()) return;
    const answers = new FormData(form);
    const body = { comment: comment.area.value };
    if (answers.has("rating")) body.rating = Number(answers.get("rating"));
    if (await room.act("finish", body)) { comment.area.forget(); room.ending = false; }
  };
  const comment = room.field("comment", room.word("talk.comment"), { send: submit, hint: room.word("talk.comment_hint") });
  const owes = screen.turns.some(({ reply }) => reply !== null);
  const form = el("form", { class: "card stack", tabIndex: -1, "data-focus": "",
    onsubmit: (event) => { event.preventDefault(); submit(); } },
    el("h2", {}, room.word("talk.end_title")),
    owes ? rating(room, "rating", room.word("talk.rating"), room.word("talk.low"), room.word("talk.high")) : "",
    comment.node,
    el("div", { class: "row" }, el("button", { class: "primary" }, room.word("talk.submit")),
      screen.phase === "end" ? null
        : el("button", { type: "button", class: "quiet", onclick: () => room.show(false) }, room.word("talk.back"))));
  return form;
}

function failed(room, screen) {
  return el("section", { class: "card stack" },
    el("p", { class: "notice bad", role: "alert" }, screen.message),
    el("div", { class: "row" },
      el("button", { type: "button", class: "primary", "data-focus": "",
        onclick: () => room.act("retry", { turn: screen.turn }) }, room.word("talk.retry")), room.finishButton()));
}

function done(room, screen) {
  const { done: count, size } = screen.task;
  const over = count >= size;
  return el("section", { class: "card stack" },
    el("p", { class: "notice good", role: "status" }, room.word("talk.done")),
    over ? el("p", {}, room.word("talk.task_done", { size })) : "",
    el("div", { class: "row" },
      el("button", { type: "button", class: "primary", "data-focus": "", onclick: () => room.begin() },
        room.word(over ? "talk.new_task" : "talk.next")),
      el("a", { class: "button quiet", href: "/" }, room.word("talk.home"))));
}

function withdrawn(room) {
  return el("section", { class: "card stack" }, el("p", { class: "notice" }, room.word("talk.withdrawn")),
    el("a", { class: "button", href: "/", "data-focus": "" }, room.word("talk.home")));
}

function consent(room) {
  return el("section", { class: "card stack" }, el("p", { class: "notice warn" }, room.word("talk.consent")),
    el("a", { class: "button primary", href: `/consent/${room.mode}`, "data-focus": "" }, room.word("talk.read")));
}

Room.phases = { write, wait, choose, rank, end, failed, done, withdrawn, consent };
