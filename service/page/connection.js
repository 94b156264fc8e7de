// Watches whether the server is there, and asks again, less and less often, while it is not.

import { readiness } from "./api.js";

const CALM = 10_000; // ms between two looks at a server that is well
const FIRST = 500;
const LONGEST = 8_000;

/** Calls `changed(state)` with "ready", "loading" or "gone" whenever that changes. */
export class Connection {
  #timer;
  #wait = FIRST;
  #state;

  constructor(changed) {
    this.changed = changed;
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  /** Looks now, for instance because a request has failed. */
  async look() {
    clearTimeout(this.#timer);
    const state = await readiness();
    clearTimeout(this.#timer); // of another look that was under way
    this.#wait = state === "ready" ? FIRST : Math.min(2 * this.#wait, LONGEST);
    this.#timer = setTimeout(() => this.look(), state === "ready" ? CALM : this.#wait);
    if (state === this.#state) return;
    this.#state = state;
    this.changed(state);
  }
}
