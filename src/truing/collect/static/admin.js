// The numbers of the moment, asked for every five seconds while somebody looks.

import { get } from "./http.js";

const cells = new Map([...document.querySelectorAll("[data-live]")].map((cell) => [cell.dataset.live, cell]));

async function look() {
  if (!document.hidden) {
    try {
      for (const [name, value] of Object.entries(await get("/api/admin/live", { pauses: [] }))) {
        if (cells.has(name)) cells.get(name).textContent = value;
      }
    } catch {
      // The numbers stay as they were; the next look may work.
    }
  }
  setTimeout(look, 5000);
}

setTimeout(look, 5000);
