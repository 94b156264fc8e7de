// Live speech: one just talks, and what is said becomes turns of the conversation.

import { models } from "./api.js";
import { find } from "./find.js";
import { complain, say } from "./notice.js";
import { Problem } from "./problems.js";
import { openMicrophone } from "./recorder.js";
import { Resampler } from "./resampler.js";
import { SESSION_RATE, Session } from "./session.js";
import { RATE, wav } from "./sound.js";
import { Tape } from "./tape.js";

export class Live {
  #call = null; // the session that is open

  constructor(heard, tasks, conversation) {
    Object.assign(this, { heard, tasks, conversation });
    find("live").addEventListener("click", () => (this.#call ? this.#call.end() : this.#begin()));
  }

  /** Ends the answer that is being written. */
  stop() {
    this.#call?.session.cancel();
  }

  /** Says what to do with all that is said from now on. */
  instruct(instruction) {
    this.#call?.instruct(instruction);
  }

  #begin() {
    say("");
    try {
      const { instruction } = this.tasks.task;
      this.#call = new Call(find("model").value, instruction, this.heard, this.conversation, (problem) => this.#ended(problem));
      this.#show(true, "Connecting");
    } catch (problem) {
      complain(problem);
    }
  }

  #ended(problem) {
    this.#call = null;
    this.#show(false, "Live");
    this.heard.back();
    if (problem) complain(problem);
    else say("Live speech has ended.");
  }

  #show(on, label) {
    find("live").setAttribute("aria-pressed", String(on));
    find("live-label").textContent = label;
    find("record").disabled = find("ask").disabled = on;
    find("stop").disabled = !on;
  }
}

/** One session from its beginning to its end: the socket, the microphone, and the turns in it. */
class Call {
  #tape = new Tape(SESSION_RATE);
  #turns = new Map(); // by the item of what was said
  #answers = new Map(); // turns by their answer
  #microphone = null; // a promise
  #problem = null;

  constructor(model, instruction, heard, conversation, ended) {
    Object.assign(this, { instruction, heard, conversation, ended });
    this.session = new Session(model, instruction, this);
  }

  instruct(instruction) {
    this.instruction = instruction;
    this.session.instruct(instruction);
  }

  end() {
    this.session.close();
  }

  // What the session tells

  opened() {
    this.#microphone ??= this.#listen();
  }

  speechBegan(item, ms) {
    const turn = this.conversation.add({ label: "Live", instruction: this.instruction });
    turn.state = "listening";
    this.#turns.set(item, { turn, ms });
  }

  speechEnded(item, ms) {
    const said = this.#turns.get(item);
    if (!said) return;
    const samples = this.#tape.cut(said.ms, ms);
    const file = new File([wav(samples, SESSION_RATE)], "live.wav", { type: "audio/wav" });
    said.turn.heard({ file, samples: new Resampler(SESSION_RATE, RATE).push(samples) });
    said.turn.waits();
  }

  answering(answer, item) {
    this.#answers.set(answer, this.#turns.get(item)?.turn);
  }

  words(answer, text) {
    this.#answers.get(answer)?.write(text);
  }

  written(item, text) {
    this.#turns.get(item)?.turn.write(text);
  }

  transcribed(item, usage) {
    this.#turns.get(item)?.turn.finish({ usage, finish_reason: "stop" });
  }

  notTranscribed(item, problem) {
    this.#turns.get(item)?.turn.fail(problem);
  }

  answered(answer, { status, status_details: details, usage }) {
    const turn = this.#answers.get(answer);
    if (status === "failed") turn?.fail(new Problem(details?.error?.message ?? "The answer failed."));
    else if (status === "cancelled") turn?.stop(details?.reason === "turn_detected" ? "interrupted by what was said next" : "stopped");
    else turn?.finish({ usage, finish_reason: status === "incomplete" ? "length" : "stop" });
  }

  failed(problem) {
    complain(problem);
  }

  async closed(problem) {
    for (const { turn } of this.#turns.values()) if (turn.isOpen) turn.stop("the connection has ended");
    // A browser does not tell a page why a socket was refused; another request may.
    const told = problem && !this.session.hasBegun && (await models().catch((error) => error));
    this.ended(this.#problem ?? (told instanceof Problem ? told : problem));
    await (await this.#microphone)?.close();
  }

  async #listen() {
    const down = new Resampler(SESSION_RATE, RATE); // from the protocol's rate to what the model hears
    this.heard.roll("Live");
    find("live-label").textContent = "End live";
    try {
      const microphone = await openMicrophone(SESSION_RATE, (samples) => {
        if (this.session.send(samples)) this.#tape.append(samples);
        else if (this.session.isOpen) complain(new Problem("The connection is too slow for live speech: parts of it are left out."));
        this.heard.push(down.push(samples));
      });
      if (this.session.isOpen) say("Speak: the answer comes when you pause.", "Speak again to interrupt it.");
      return microphone;
    } catch (problem) {
      this.#problem = problem;
      this.session.close();
      return null;
    }
  }
}
