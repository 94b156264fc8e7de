// The turns of a conversation: as elements of the page, and as what is sent with the next.

import { copy, curl, python } from "./code.js";
import { history } from "./history.js";
import { say } from "./notice.js";
import { drawWave } from "./picture.js";
import { plays } from "./player.js";
import { seconds, showStages } from "./stages.js";
import { RATE } from "./sound.js";

export class Conversation {
  #turns = [];

  constructor(root, template) {
    Object.assign(this, { root, template });
  }

  /** A new turn: {label, instruction, recording}; the recording may come later. */
  add(asked) {
    const element = this.template.content.cloneNode(true).firstElementChild;
    this.root.append(element);
    const turn = new Turn(element, asked);
    this.#turns.push(turn);
    element.scrollIntoView({ block: "nearest" });
    return turn;
  }

  /** Forgets all turns. */
  clear() {
    this.#turns.forEach((turn) => turn.forget());
    this.#turns = [];
    this.root.replaceChildren();
  }

  /** What can go along with the next turn: see history.js. Transcripts are no part of a conversation. */
  history() {
    return history(this.#turns.filter((turn) => turn.isWhole && turn.instruction !== null));
  }
}

/** One recording, what was asked of it, and the answer as far as it has come. */
export class Turn {
  answer = "";
  #began = performance.now();
  #first;
  #links = [];

  constructor(element, { label, instruction, recording }) {
    Object.assign(this, { element, instruction });
    this.find("label").textContent = label;
    if (recording) this.heard(recording);
    plays(this.find("play"), () => this.audio);
    this.state = "waiting";
  }

  find = (name) => this.element.querySelector(`[data-${name}]`);

  get isOpen() {
    return ["waiting", "listening", "writing"].includes(this.element.dataset.state);
  }

  set state(state) {
    this.element.dataset.state = state;
    this.find("answer").setAttribute("aria-busy", String(this.isOpen));
  }

  get audio() {
    return this.recording.file;
  }

  /** Whether there is both a recording and an answer to it. */
  get isWhole() {
    return Boolean(this.recording && this.answer);
  }

  /** The recording that it is about: {file, samples}; samples null where the browser cannot decode it. */
  heard(recording) {
    this.recording = recording;
    const { samples } = recording;
    this.find("wave").hidden = !samples;
    if (samples) drawWave(this.find("wave"), samples);
    this.find("length").textContent = samples ? seconds(samples.length / RATE) : recording.file.name;
    this.find("play").disabled = !samples;
  }

  /** The time from which its answer is waited for. */
  waits() {
    this.#began = performance.now();
    this.state = "waiting";
  }

  /** Adds words to the answer. */
  write(text) {
    this.#first ??= performance.now() - this.#began;
    this.answer += text;
    this.state = "writing";
    this.find("answer").textContent = this.answer.trimStart();
  }

  /** The answer is whole; `reply` is the API's last event about it, and `count` turns went along. */
  finish(reply = {}, { count } = { count: 0 }) {
    this.state = "done";
    const all = (performance.now() - this.#began) / 1000;
    const tokens = reply.usage?.completion_tokens ?? reply.usage?.output_tokens;
    const facts = this.answer ? [`first words after ${seconds(this.#first / 1000)}`, `all after ${seconds(all)}`] : ["nothing to say"];
    if (tokens !== undefined) facts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
    if (reply.audio) facts.push(`${reply.audio.speech_tokens} positions of speech`);
    if (reply.finish_reason === "length") facts.push("cut off: the context is full");
    if (count) facts.push(`${count} earlier ${count === 1 ? "turn" : "turns"} went along`);
    this.#tell(facts.join(" · "));
    if (reply.timings) showStages(this.find("bar"), this.find("legend"), reply.timings);
  }

  /** The answer ends here, by whoever's wish. */
  stop(why) {
    this.state = "stopped";
    this.#tell(why);
  }

  /** There is no answer, or not all of it. */
  fail(problem) {
    this.state = "failed";
    this.#tell(`${problem.message} ${problem.todo}`.trim());
  }

  /** Offers the request {url, fields, withKey} in code. */
  offer(request) {
    const { name } = this.audio;
    this.find("code").hidden = false;
    this.find("curl").textContent = curl({ ...request, file: name });
    this.find("python").textContent = python({ ...request, file: name });
    const files = [this.audio];
    if (request.fields.history) files.push(new File([request.fields.history], "history.json", { type: "application/json" }));
    this.find("files").replaceChildren(...files.map((file) => this.#download(file)));
    for (const button of this.element.querySelectorAll("[data-copy]")) {
      button.addEventListener("click", async () => say(await copy(this.find(button.dataset.copy))));
    }
  }

  /** Gives its memory back. */
  forget() {
    this.#links.forEach((link) => URL.revokeObjectURL(link));
  }

  #tell(text) {
    this.find("facts").textContent = text;
  }

  #link(file) {
    this.#links.push(URL.createObjectURL(file));
    return this.#links.at(-1);
  }

  #download(file) {
    const link = document.createElement("a");
    Object.assign(link, { href: this.#link(file), download: file.name, textContent: file.name });
    return link;
  }
}
