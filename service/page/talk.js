// Recording while a button or the space bar is held; or from one short press to the next.

import { find } from "./find.js";
import { complain, say } from "./notice.js";
import { openMicrophone } from "./recorder.js";
import { RATE, joined, wav } from "./sound.js";

const TAP = 400; // ms; a shorter press begins a recording that the next press ends
const SHORTEST = 0.2; // seconds of a recording

export class Talk {
  #now = null; // what is being recorded: {began, latched, microphone (a promise), taken}

  /** `done()` is called when `heard` has a new recording. */
  constructor(heard, done) {
    Object.assign(this, { heard, done, button: find("record"), label: find("record-label") });
    this.button.addEventListener("pointerdown", (event) => this.#pointer(event));
    this.button.addEventListener("pointerup", () => this.#release());
    this.button.addEventListener("pointercancel", () => this.#release());
    addEventListener("blur", () => this.#release()); // nobody tells this page when the key goes up
    this.button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch
    this.button.addEventListener("click", ({ detail }) => detail === 0 && this.#press(true)); // by Enter, or what reads the screen
    document.addEventListener("keydown", (event) => this.#space(event, () => event.repeat || this.#press()));
    document.addEventListener("keyup", (event) => this.#space(event, () => this.#release()));
  }

  #pointer(event) {
    if (event.button) return;
    this.button.setPointerCapture(event.pointerId);
    this.#press();
  }

  /** The space bar is for talking wherever it has nothing else to do. */
  #space(event, act) {
    const { code, target } = event;
    if (code !== "Space" || (target !== this.button && target.closest("input, textarea, select, button, a, summary, pre"))) return;
    event.preventDefault();
    act();
  }

  #press(latched = false) {
    if (this.#now?.latched) this.#finish();
    else if (!this.#now && !this.button.disabled) this.#begin(latched);
  }

  #release() {
    if (!this.#now || this.#now.latched) return;
    if (performance.now() - this.#now.began > TAP) this.#finish();
    else this.#latch();
  }

  #latch() {
    this.#now.latched = true;
    this.label.textContent = "Press to ask";
  }

  async #begin(latched) {
    say("");
    const taken = [];
    const microphone = openMicrophone(RATE, (samples) => {
      if (!taken.length) this.heard.roll("Recording");
      taken.push(samples);
      this.heard.push(samples);
    });
    this.#now = { began: performance.now(), latched: false, microphone, taken };
    this.#show(true, "Release to ask");
    if (latched) this.#latch();
    try {
      await microphone;
    } catch (error) {
      this.#now = null;
      this.#show(false, "Hold to talk");
      complain(error);
    }
  }

  async #finish() {
    const { microphone, taken } = this.#now;
    const opened = await microphone.catch(() => null);
    if (!opened || !this.#now) return; // whoever opened it has said why it failed; or this was called twice
    this.#now = null;
    await opened.close();
    this.#show(false, "Hold to talk");
    const samples = joined(taken);
    if (samples.length < SHORTEST * RATE) {
      this.heard.back();
      say("Nothing was recorded.", "Hold the button while you speak, or press it once to begin and once to end.", "problem");
      return;
    }
    this.heard.show({ file: new File([wav(samples)], "recording.wav", { type: "audio/wav" }), samples });
    this.done();
  }

  #show(on, text) {
    this.button.setAttribute("aria-pressed", String(on));
    this.label.textContent = text;
  }
}
