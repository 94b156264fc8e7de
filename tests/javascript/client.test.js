// OpenAI's JavaScript client against a running server: BASE_URL, MODEL and AUDIO (a wav file) come from the environment.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";

const { BASE_URL, MODEL: model, AUDIO } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "none", maxRetries: 0 });
const recording = () => fs.createReadStream(AUDIO);
const spoken = [
  {
    role: "user",
    content: [
      { type: "text", text: "What is said here?" },
      { type: "input_audio", input_audio: { data: fs.readFileSync(AUDIO).toString("base64"), format: "wav" } },
    ],
  },
];
const chat = (options) => client.chat.completions.create({ model, temperature: 0, max_tokens: 10, ...options });

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

test("models", async () => {
  const page = await client.models.list();
  assert.deepEqual(page.data.map((entry) => entry.id), [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("chat, text alone", async () => {
  const reply = await chat({ messages: [{ role: "user", content: "Hello" }] });
  assert.ok(reply.choices[0].message.content);
  assert.equal(reply.usage.prompt_tokens_details.audio_tokens, 0);
});

test("chat about audio, plain and streamed", async () => {
  const plain = await chat({ messages: spoken });
  const chunks = await collect(await chat({ messages: spoken, stream: true, stream_options: { include_usage: true } }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, plain.choices[0].message.content);
  const { usage } = chunks.at(-1);
  assert.ok(usage.prompt_tokens_details.audio_tokens > 0);
  assert.equal(usage.total_tokens, plain.usage.total_tokens);
});

test("chat with the client's stream helper", async () => {
  const stream = client.chat.completions.stream({ model, temperature: 0, max_tokens: 10, messages: spoken });
  assert.equal(await stream.finalContent(), (await chat({ messages: spoken })).choices[0].message.content);
});

test("transcriptions", async () => {
  const transcribe = (options) => client.audio.transcriptions.create({ model, file: recording(), ...options });
  const { text, usage } = await transcribe({});
  assert.ok(text);
  assert.equal(usage.type, "tokens");
  const verbose = await transcribe({ response_format: "verbose_json", timestamp_granularities: ["segment"], language: "en" });
  assert.equal(verbose.text, text);
  assert.equal(verbose.language, "en");
  assert.equal(verbose.segments.at(-1).end, verbose.duration);
  const srt = await transcribe({ response_format: "srt" });
  assert.match(srt, /^1\n00:00:00,000 --> 00:00:\d\d,\d\d\d\n/);
  assert.ok(srt.includes(text.split("\n")[0].trim().slice(0, 5)));
  assert.ok((await transcribe({ response_format: "vtt" })).startsWith("WEBVTT\n"));
  const events = await collect(await transcribe({ stream: true }));
  const done = events.at(-1);
  assert.equal(done.type, "transcript.text.done");
  assert.equal(done.text, text);
  assert.equal(events.slice(0, -1).map((event) => event.delta).join(""), text);
});

test("translations", async () => {
  const reply = await client.audio.translations.create({ model, file: recording() });
  assert.ok(reply.text);
});

test("completions and responses", async () => {
  const completion = await client.completions.create({ model, prompt: "Hello", max_tokens: 5 });
  assert.ok(completion.choices[0].text);
  const response = await client.responses.create({ model, input: "Hello", temperature: 0, max_output_tokens: 16 });
  const events = await collect(
    await client.responses.create({ model, input: "Hello", temperature: 0, max_output_tokens: 16, stream: true }),
  );
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), response.output_text);
});

test("errors", async () => {
  await assert.rejects(chat({ messages: spoken, model: "nope" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(chat({ messages: spoken, temperature: -1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
  const word = { model, file: recording(), response_format: "verbose_json", timestamp_granularities: ["word"] };
  await assert.rejects(client.audio.transcriptions.create(word), /no times of words/);
});
