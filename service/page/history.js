// Earlier turns as the API takes them: messages in OpenAI's form, the recordings among them.

import { base64 } from "./sound.js";

const MOST_BYTES = 1 << 20; // what the service takes in one field of a form

/** The messages of as many of the latest `turns` as fit, {audio, instruction, answer} each; and how many turns that are. */
export async function history(turns) {
  const kept = [];
  let bytes = 2;
  for (const turn of turns.toReversed()) {
    const messages = await exchange(turn);
    bytes += new Blob([JSON.stringify(messages)]).size;
    if (bytes > MOST_BYTES) break;
    kept.unshift(messages);
  }
  return { messages: kept.flat(), count: kept.length };
}

async function exchange({ audio, instruction, answer }) {
  const data = base64(new Uint8Array(await audio.arrayBuffer()));
  const heard = { type: "input_audio", input_audio: { data, format: "wav" } }; // the service looks at the bytes
  const content = instruction ? [{ type: "text", text: instruction }, heard] : [heard];
  return [
    { role: "user", content },
    { role: "assistant", content: answer },
  ];
}
