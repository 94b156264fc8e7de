// Talks by OpenAI's JavaScript client, which dials wss whatever its base URL says: BASE_URL, MODEL, KEY and AUDIO (a wav file of 16-bit
// samples at 24 kHz) come from the environment.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const { BASE_URL, MODEL: model, KEY: apiKey, AUDIO } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey });
const HEAD = 44; // bytes
const EVENT = 4800; // bytes: a tenth of a second
const speech = fs.readFileSync(AUDIO).subarray(HEAD);
const silence = Buffer.alloc(48_000);

/** A talk that is open, and what it has told that nobody has waited for yet. */
async function open(session, options = {}) {
  const talk = new OpenAIRealtimeWS({ model, ...options }, client);
  const told = [];
  let arrived = () => {};
  talk.on("event", (event) => {
    told.push(event);
    arrived();
  });
  talk.on("error", () => {}); // each is an event, too
  const until = async (type) => {
    const events = [];
    while (events.at(-1)?.type !== type) {
      while (!told.length) await new Promise((resolve) => (arrived = resolve));
      events.push(told.shift());
    }
    return events;
  };
  await until("session.created");
  talk.send({ type: "session.update", session });
  await until("session.updated");
  const say = (sound) => {
    for (let at = 0; at < sound.length; at += EVENT) {
      const audio = sound.subarray(at, at + EVENT).toString("base64");
      talk.send({ type: "input_audio_buffer.append", audio });
    }
  };
  return { talk, until, say };
}

const text = (events) =>
  events.filter(({ type }) => type === "response.output_text.delta").map(({ delta }) => delta).join("");

test("two turns that the client tells", async () => {
  const session = { type: "realtime", max_output_tokens: 8, audio: { input: { turn_detection: null } } };
  const { talk, until, say } = await open(session);
  const usages = [];
  for (let turn = 0; turn < 2; turn++) {
    say(speech);
    talk.send({ type: "input_audio_buffer.commit" });
    talk.send({ type: "response.create" });
    const events = await until("response.done");
    const { response } = events.at(-1);
    assert.equal(response.output[0].content[0].text, text(events));
    usages.push(response.usage);
  }
  assert.ok(usages[1].input_tokens > 2 * usages[0].input_token_details.audio_tokens);
  talk.close();
});

test("turns that the server tells, and who speaks interrupts", async () => {
  const { talk, until, say } = await open({ type: "realtime" });
  say(Buffer.concat([speech, silence]));
  await until("input_audio_buffer.speech_stopped");
  await until("response.output_text.delta");
  say(speech);
  const { response } = (await until("response.done")).at(-1);
  assert.deepEqual(response.status_details, { type: "cancelled", reason: "turn_detected" });
  talk.close();
});

test("a response is cancelled, and what is wrong is told", async () => {
  const { talk, until } = await open({ type: "realtime" });
  talk.send({ type: "response.create" });
  await until("response.output_text.delta");
  talk.send({ type: "response.cancel" });
  assert.equal((await until("response.done")).at(-1).response.status, "cancelled");
  talk.send({ type: "response.cancel", event_id: "mine" });
  const { error } = (await until("error")).at(-1);
  assert.equal(error.code, "response_cancel_not_active");
  assert.equal(error.event_id, "mine");
  talk.close();
});

test("what is said is written down", async () => {
  const input = { transcription: { model: "gpt-4o-mini-transcribe" }, turn_detection: { type: "semantic_vad" } };
  const { talk, until, say } = await open({ type: "realtime", audio: { input } });
  say(Buffer.concat([speech, silence]));
  const { transcript } = (await until("conversation.item.input_audio_transcription.completed")).at(-1);
  assert.equal(typeof transcript, "string");
  talk.close();
});
