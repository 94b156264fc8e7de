// The socket of live speech, in the protocol of OpenAI's Realtime API: the server hears where one begins and ends to speak.

import { key } from "./key.js";
import { Problem, refusal } from "./problems.js";
import { base64, pcm16 } from "./sound.js";

export const SESSION_RATE = 24_000; // samples per second, the protocol's
const MOST_WAITING = 1 << 20; // bytes on their way; more, and the connection is too slow for speech

/** A session, which answers what is said as `instruction` says, or writes it down where that is null. `on` is told what happens:
 *
 * opened(); speechBegan(item, ms), speechEnded(item, ms): times count the samples that were sent; answering(answer, item);
 * words(answer, text); answered(answer, response); written(item, text); transcribed(item, usage); notTranscribed(item, problem);
 * failed(problem); closed(problem or null). Throws a Problem where the key cannot be sent.
 */
export class Session {
  #socket;
  #ended = false;
  #item = null;
  #begun = false;
  #farewell = null; // the Problem for which the server ends the session

  constructor(model, instruction, on) {
    const url = new URL(`v1/realtime?model=${encodeURIComponent(model)}`, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    Object.assign(this, { on, model, instruction });
    this.#socket = opened(url);
    this.#socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
    this.#socket.addEventListener("close", ({ code }) => this.on.closed(this.#ended ? null : this.#why(code)));
  }

  /** Whether the server has ever taken it. */
  get hasBegun() {
    return this.#begun;
  }

  get isOpen() {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** Sends 50 ms of speech at SESSION_RATE; false where the connection is too slow and they were left out. */
  send(samples) {
    if (!this.isOpen || this.#socket.bufferedAmount > MOST_WAITING) return false;
    this.#send({ type: "input_audio_buffer.append", audio: base64(pcm16(samples)) });
    return true;
  }

  /** Says what to do with all that is said from now on. */
  instruct(instruction) {
    this.instruction = instruction;
    if (this.#begun) this.#configure();
  }

  /** Ends the answer that is being written. */
  cancel() {
    this.#send({ type: "response.cancel" });
  }

  close() {
    this.#ended = true;
    this.#socket.close(1000);
  }

  #configure() {
    this.#send({ type: "session.update", session: session(this.model, this.instruction) });
  }

  #send(event) {
    if (this.isOpen) this.#socket.send(JSON.stringify(event));
  }

  #take(event) {
    switch (event.type) {
      case "session.created":
        this.#begun = true;
        return this.#configure();
      case "session.updated":
        return this.on.opened();
      case "input_audio_buffer.speech_started":
        return this.on.speechBegan(event.item_id, event.audio_start_ms);
      case "input_audio_buffer.speech_stopped":
        return this.on.speechEnded(event.item_id, event.audio_end_ms);
      case "input_audio_buffer.committed":
        this.#item = event.item_id;
        return undefined;
      case "response.created":
        return this.on.answering(event.response.id, this.#item);
      case "response.output_text.delta":
        return this.on.words(event.response_id, event.delta);
      case "response.done":
        return this.on.answered(event.response.id, event.response);
      case "conversation.item.input_audio_transcription.delta":
        return this.on.written(event.item_id, event.delta);
      case "conversation.item.input_audio_transcription.completed":
        return this.on.transcribed(event.item_id, event.usage);
      case "conversation.item.input_audio_transcription.failed":
        return this.on.notTranscribed(event.item_id, refusal(event.error));
      case "error":
        return this.#failed(event.error);
      default:
        return undefined;
    }
  }

  #failed(error) {
    if (error.code === "response_cancel_not_active") return; // it had just ended by itself
    const problem = refusal(error);
    if (error.code?.startsWith("session_")) this.#farewell = problem;
    this.on.failed(problem);
  }

  #why(code) {
    if (!this.#begun) return new Problem("The server takes no live connection now.", "Try again later, or hold to talk instead.");
    return this.#farewell ?? new Problem(`The live connection has ended (code ${code}).`, "Press Live to connect again.", "unavailable");
  }
}

/** A browser can send a key nowhere but among the names of protocols. */
function opened(url) {
  try {
    return new WebSocket(url, ["realtime", ...(key.value ? [`openai-insecure-api-key.${key.value}`] : [])]);
  } catch {
    throw new Problem("A key with such characters cannot open a live connection.", "Hold to talk instead, or use another key.");
  }
}

function session(model, instruction) {
  const turn_detection = { type: "server_vad", create_response: instruction !== null, interrupt_response: true };
  const transcription = instruction === null ? { model } : null;
  const input = { format: { type: "audio/pcm", rate: SESSION_RATE }, turn_detection, transcription };
  return { type: "realtime", output_modalities: ["text"], instructions: instruction ?? "", audio: { input } };
}
