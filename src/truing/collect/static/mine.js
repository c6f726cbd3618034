// One's own conversations: withdraw one.

import { post } from "./http.js";
import { el } from "./talk.js";

const list = document.getElementById("mine");
const words = JSON.parse(list.dataset.words);
const notice = document.getElementById("notice");

for (const item of list.querySelectorAll("[data-id]")) {
  const acts = item.querySelector(".acts");
  const first = acts.querySelector("button");
  first.addEventListener("click", () => {
    const no = el("button", { type: "button", class: "primary", onclick: () => { acts.replaceChildren(first); first.focus(); } }, words["mine.no"]);
    const yes = el("button", { type: "button", class: "danger", onclick: async () => {
      yes.disabled = true;
      try {
        await post(`/api/conversations/${item.dataset.id}/withdraw`);
        item.replaceChildren(el("p", { class: "notice good", role: "status", tabIndex: -1 }, words["mine.gone"]));
        item.firstChild.focus();
      } catch (problem) {
        notice.textContent = problem.text;
        notice.className = "notice bad";
        notice.hidden = false;
        yes.disabled = false;
      }
    } }, words["mine.yes"]);
    acts.replaceChildren(el("span", {}, words["mine.sure"]), no, yes);
    no.focus();
  });
}
