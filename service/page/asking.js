// One request after the other, each a turn of the conversation.

import { stream } from "./api.js";
import { find } from "./find.js";
import { key } from "./key.js";
import { say, tell } from "./notice.js";

export class Asking {
  #running = Promise.resolve();
  #ending = null; // the AbortController of the request that runs

  constructor(heard, tasks, conversation) {
    Object.assign(this, { heard, tasks, conversation });
  }

  /** Asks about the recording that is there; an answer that is still being written ends. */
  async ask() {
    if (!this.heard.recording) {
      say("There is no recording yet.", "Record one, choose a file, or take a sample.", "problem");
      return;
    }
    say("");
    this.stop();
    const before = this.#running;
    this.#running = before.then(() => this.#ask());
    await this.#running;
  }

  /** Ends the answer that is being written; what there is of it stays. */
  stop() {
    this.#ending?.abort();
  }

  async #ask() {
    const { recording } = this.heard;
    const { label, instruction } = this.tasks.task;
    this.#ending = new AbortController();
    find("stop").disabled = false;
    const earlier = find("along").checked && instruction !== null ? await this.conversation.history() : { count: 0 };
    const turn = this.conversation.add({ label, instruction, recording });
    const path = instruction === null ? "v1/audio/transcriptions" : "v1/speech";
    const fields = {
      model: find("model").value,
      ...(instruction && { instruction }),
      ...(earlier.count && { history: JSON.stringify(earlier.messages) }),
    };
    turn.offer({ url: new URL(path, document.baseURI).href, fields, withKey: Boolean(key.value) });
    try {
      const reply = await written(turn, stream(path, { ...fields, file: recording.file }, this.#ending.signal));
      turn.finish(reply, earlier);
    } catch (error) {
      if (error.name === "AbortError") turn.stop("stopped");
      else turn.fail(tell(error));
    } finally {
      this.#ending = null;
      if (document.activeElement === find("stop")) find("ask").focus();
      find("stop").disabled = find("live").getAttribute("aria-pressed") === "false"; // else live speech can be stopped
    }
  }
}

/** Writes the words as they come; returns the last event, which is about the whole. */
async function written(turn, events) {
  let last;
  for await (const event of events) {
    if (event.delta === undefined) last = event;
    else turn.write(event.delta);
  }
  return last;
}
