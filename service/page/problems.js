// What goes wrong, in words: what happened, and what to do about it.

export class Problem extends Error {
  /** `code` is the API's, where it said one. */
  constructor(what, todo = "", code = "") {
    super(what);
    Object.assign(this, { todo, code });
  }
}

const ADVICE = {
  invalid_api_key: "Type a valid key above and ask again.",
  invalid_audio: "Try another file, or record anew.",
  unsupported_media_type: "Choose a file with sound in it.",
  audio_too_long: "Choose a shorter recording.",
  upload_too_large: "Choose a smaller file, or clear the conversation.",
  upload_too_slow: "Try again on a faster connection, or with a smaller file.",
  context_length_exceeded: "Clear the conversation, or ask about a shorter recording.",
  model_not_found: "Choose another model at the top.",
  deadline_exceeded: "Try again, or with a shorter recording.",
  encoding_failed: "Try again; if it stays so, whoever runs the server finds more in its log.",
  unavailable: "It is asked again until it is there; then ask once more.",
};

/** The Problem of an error in OpenAI's shape, of an answer of this status. */
export function refusal(error, status, retryAfter) {
  const code = error?.code ?? "";
  const what = error?.message ?? `The server answered with status ${status}.`;
  if (status === 429) return new Problem(what, retryAfter ? `Try again in ${retryAfter} s.` : "Try again in a moment.", code);
  return new Problem(what, ADVICE[code] ?? "", code);
}

/** The Problem of a server that does not answer. */
export const unreachable = () => new Problem("The server does not answer.", ADVICE.unavailable, "unavailable");

/** Any error as a Problem. */
export function asProblem(error) {
  return error instanceof Problem ? error : new Problem(`Something went wrong in this page: ${error.message}.`, "Reload it.");
}
