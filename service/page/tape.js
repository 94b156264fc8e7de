// What was said in a live session, to be cut into turns.

import { joined } from "./sound.js";

const KEPT = 120; // seconds; a turn that is longer keeps its end

export class Tape {
  #pieces = [];
  #end = 0; // samples since the beginning of the session

  constructor(rate) {
    this.rate = rate;
  }

  append(samples) {
    this.#pieces.push(samples);
    this.#end += samples.length;
    if (this.#length > KEPT * this.rate) this.#pieces.shift();
  }

  /** What was said between two times, as far as it is still there. */
  cut(fromMs, toMs) {
    const start = this.#end - this.#length;
    const [from, to] = [fromMs, toMs].map((ms) => Math.max(0, Math.round((ms * this.rate) / 1000) - start));
    return joined(this.#pieces).slice(from, to);
  }

  get #length() {
    return this.#pieces.reduce((sum, piece) => sum + piece.length, 0);
  }
}
