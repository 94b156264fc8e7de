// Changes the rate of a signal while it arrives.

const REACH = 16; // zero crossings of the filter on each side

/** A windowed sinc, which cuts at the lower of the two rates' highest frequencies. */
export class Resampler {
  constructor(from, to) {
    this.step = from / to; // samples of the source between two of the result
    this.cut = Math.min(1, to / from);
    this.reach = Math.ceil(REACH / this.cut);
    this.held = new Float32Array(this.reach); // silence before the first sample
    this.at = this.reach; // where in what is held the next sample of the result lies
  }

  /** Takes samples; returns those of the result that can be told by now. */
  push(samples) {
    if (this.step === 1) return samples.slice();
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const result = [];
    for (; this.at + this.reach < held.length; this.at += this.step) result.push(this.#around(held, this.at));
    const done = Math.max(0, Math.floor(this.at) - this.reach);
    this.held = held.slice(done);
    this.at -= done;
    return Float32Array.from(result);
  }

  #around(held, at) {
    let sum = 0;
    for (let i = Math.ceil(at - this.reach); i <= at + this.reach; i++) {
      const away = (i - at) * this.cut;
      const sinc = away ? Math.sin(Math.PI * away) / (Math.PI * away) : 1;
      sum += (held[i] ?? 0) * sinc * (0.5 + 0.5 * Math.cos((Math.PI * away) / REACH));
    }
    return sum * this.cut;
  }
}
