// For screens with harmful text: replies stay blurred until they are uncovered, a count of what was seen, and breaks.

import { el, fill, visible } from "./talk.js";

const uncovered = new Set();

/**
 * A text under a veil. It is blurred, and hidden from screen readers, until the button is pressed; ``name`` tells it
 * from others, so that what was uncovered stays so on this page. ``changed`` is called with each change.
 */
export function veiled(name, text, words, changed = () => {}) {
  const inner = el("p", { class: "said", dir: "auto" }, visible(text));
  const button = el("button", { type: "button", class: "quiet veil-button", onclick: () => set(!uncovered.has(name)) });
  const box = el("div", { class: "veil" }, inner, button);
  const draw = () => {
    const open = uncovered.has(name);
    box.classList.toggle("open", open);
    inner.toggleAttribute("inert", !open);
    if (open) inner.removeAttribute("aria-hidden");
    else inner.setAttribute("aria-hidden", "true");
    button.textContent = words[open ? "care.cover" : "care.uncover"];
    button.setAttribute("aria-expanded", String(open));
  };
  const set = (open) => {
    if (open) uncovered.add(name);
    else uncovered.delete(name);
    draw();
    changed();
  };
  draw();
  return { node: box, open: () => uncovered.has(name), uncover: () => set(true) };
}

/** The count of replies, and a break whenever ``every`` more were seen. Where that was is kept for this tab. */
export function rest({ exposure, break_every: every }, words) {
  document.getElementById("exposure").textContent = fill(words["care.exposure"], { n: exposure });
  let last = 0;
  try { last = Number(sessionStorage.getItem("truing.break")) || 0; } catch { /* the browser keeps nothing */ }
  const keep = (count) => {
    try { sessionStorage.setItem("truing.break", String(count)); } catch { /* see above */ }
  };
  if (exposure < last) keep(last = exposure);
  const dialog = document.getElementById("break");
  if (dialog.open || Math.floor(exposure / every) <= Math.floor(last / every)) return;
  document.getElementById("break-text").textContent = fill(words["care.break"], { n: exposure });
  dialog.addEventListener("close", () => keep(exposure), { once: true });
  document.getElementById("break-stop").onclick = () => { dialog.close(); document.getElementById("stop").click(); };
  dialog.showModal();
}

/** Check boxes of tags in ``box``, at most ``most``; ``chosen()`` gives them, ``changed`` is called with each change. */
export function tagBoxes(tags, { chosen = [], most = Infinity, changed = () => {} } = {}) {
  const boxes = tags.map((tag) => el("input", { type: "checkbox", name: "tag", value: tag, checked: chosen.includes(tag) }));
  const picked = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const limit = () => {
    const full = picked().length >= most;
    for (const box of boxes) box.disabled = full && !box.checked;
    changed(picked());
  };
  for (const box of boxes) box.addEventListener("change", limit);
  const node = el("div", { class: "tags" }, ...boxes.map((box) => el("label", { class: "inline" }, box, box.value)));
  limit();
  return { node, chosen: picked };
}
