// The recording that is asked about, and its picture.

import { find } from "./find.js";
import { say } from "./notice.js";
import { Picture } from "./picture.js";
import { plays, quiet } from "./player.js";
import { RATE, decode } from "./sound.js";
import { seconds } from "./stages.js";

export class Heard {
  /** {file, samples}; samples null where the browser cannot decode the file. */
  recording = null;
  #picture = new Picture(find("wave"), find("mel"));
  #pushed = 0; // samples of what is being recorded

  constructor() {
    plays(find("play"), () => this.recording.file);
  }

  /** Takes a file. */
  async use(file) {
    quiet();
    say("");
    const samples = await decode(file).catch(() => null);
    this.show({ file, samples });
    if (!samples) say("This browser cannot decode the file.", "The server knows more formats: ask all the same.");
  }

  /** Takes a recording. */
  show(recording) {
    this.recording = recording;
    const { file, samples } = recording;
    const frames = this.#picture.show(samples ?? new Float32Array());
    find("unseen").textContent = "No picture: this browser cannot decode the file";
    this.#label(samples ? "whole" : "unseen", file.name, samples ? `${seconds(samples.length / RATE)} · ${frames} frames of 80 mels` : "");
    find("play").disabled = !samples;
  }

  /** Shows what is being recorded, as `push` brings it. */
  roll(name) {
    quiet();
    this.#pushed = 0;
    this.#picture.roll();
    this.#label("rolling", name, "");
  }

  push(samples) {
    if (find("heard").dataset.state !== "rolling") return; // something else has been chosen meanwhile
    this.#pushed += samples.length;
    this.#picture.push(samples);
    find("length").textContent = `${(this.#pushed / RATE).toFixed(1)} s`;
  }

  /** Shows again what was there before. */
  back() {
    if (this.recording) this.show(this.recording);
    else this.#label("empty", "", "");
  }

  #label(state, name, length) {
    find("heard").dataset.state = state;
    find("name").textContent = name;
    find("length").textContent = length;
  }
}
