// In the audio thread: the microphone's frames at the rate that was asked for, posted every 50 ms.

import { Resampler } from "./resampler.js";

const EVERY = 0.05; // seconds

class Recorder extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.frames = new Float32Array(Math.round(rate * EVERY));
    this.count = 0;
    this.going = true;
    this.port.onmessage = () => this.#end();
  }

  process([[channel]]) {
    if (channel && this.going) this.#take(this.resampler.push(channel));
    return this.going;
  }

  #take(samples) {
    for (const sample of samples) {
      this.frames[this.count++] = sample;
      if (this.count === this.frames.length) this.#post();
    }
  }

  #post() {
    this.port.postMessage(this.frames.slice(0, this.count));
    this.count = 0;
  }

  /** Posts what is left, and null behind it. */
  #end() {
    if (this.going) this.#post();
    this.going = false;
    this.port.postMessage(null);
  }
}

registerProcessor("recorder", Recorder);
