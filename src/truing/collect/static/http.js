// Talking to the server so that nothing is lost or done twice: a write has one key however often it is sent.

const PAUSES = [0.5, 1, 2, 4, 8, 8]; // seconds before each further try
const AGAIN = new Set([429, 502, 503, 504]);

/** What the server, or the lack of one, answered. status is 0 without a connection; text is for people. */
export class Problem extends Error {
  constructor(status, text) {
    super(text);
    this.name = "Problem";
    this.status = status;
    this.text = text;
  }
}

/** 128 random bits as hexadecimal digits (crypto.randomUUID is missing on plain http). */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (x) => x.toString(16).padStart(2, "0")).join("");
}

function meta(name) {
  return document.querySelector(`meta[name="${name}"]`)?.content ?? "";
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function problem(answer) {
  let text = "";
  try {
    text = (await answer.json()).error ?? "";
  } catch {
    // Not from the app: a proxy's page.
  }
  return new Problem(answer.status, text || meta("offline") || answer.statusText);
}

async function ask(path, options, pauses) {
  for (let turn = 0; ; turn++) {
    let found;
    let wait = pauses[turn];
    try {
      const answer = await fetch(path, { credentials: "same-origin", redirect: "error", ...options });
      if (answer.ok) return answer.status === 204 ? null : await answer.json();
      found = await problem(answer);
      if (found.status === 401) location.assign("/login");
      if (!AGAIN.has(found.status)) throw found;
      wait = Math.max(wait, Number(answer.headers.get("Retry-After")) || 0);
    } catch (error) {
      if (error instanceof Problem || options.signal?.aborted) throw error;
      found = new Problem(0, meta("offline"));
    }
    if (turn >= pauses.length || wait > 30) throw found;
    await sleep(wait * (0.8 + 0.4 * Math.random()), options.signal);
  }
}

/**
 * Write. The key is made once per call and kept for every try, so that the server does it once. Tries again without a
 * connection and while the server is overloaded; otherwise throws a Problem with .status and .text.
 */
export function post(path, body = {}, { key = newKey(), signal } = {}) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key, "X-CSRF-Token": meta("csrf") };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal }, PAUSES);
}

/** Read. Tries again like post; pauses are seconds between tries ([] for none). */
export function get(path, { signal, pauses = PAUSES } = {}) {
  return ask(path, { headers: { Accept: "application/json" }, signal }, pauses);
}
