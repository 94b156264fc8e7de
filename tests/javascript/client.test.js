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

const said = (reply) => reply.choices[0].message.content;

test("sampling options", async () => {
  const whole = said(await chat({ messages: spoken }));
  const stopped = await chat({ messages: spoken, stop: [whole.slice(5, 8)] });
  assert.equal(said(stopped), whole.slice(0, whole.indexOf(whole.slice(5, 8))));
  const [one, same, other] = await Promise.all(
    [1, 1, 2].map(async (seed) => said(await chat({ messages: spoken, temperature: 1, seed }))),
  );
  assert.equal(one, same);
  assert.notEqual(one, other);
  assert.equal(said(await chat({ messages: spoken, temperature: 2, top_p: 1e-6 })), whole);
  const short = await chat({ messages: spoken, max_tokens: undefined, max_completion_tokens: 3 });
  assert.deepEqual([short.usage.completion_tokens, short.choices[0].finish_reason], [3, "length"]);
});

test("penalties against a bias", async () => {
  const bias = { messages: spoken, logit_bias: { 40: 100, 41: 99 }, return_token_ids: true, max_tokens: 7 };
  assert.deepEqual(new Set((await chat(bias)).choices[0].token_ids), new Set([40]));
  for (const penalty of ["frequency_penalty", "presence_penalty"]) {
    const dear = await chat({ ...bias, [penalty]: 2 });
    assert.deepEqual(new Set(dear.choices[0].token_ids), new Set([40, 41]));
  }
});

test("several choices with logprobs", async () => {
  const reply = await chat({ messages: spoken, n: 2, seed: 7, temperature: 1, logprobs: true, top_logprobs: 2 });
  assert.equal(reply.choices.length, 2);
  for (const { logprobs } of reply.choices) assert.ok(logprobs.content.every((token) => token.top_logprobs.length >= 2));
});

test("replies in JSON", async () => {
  const object = await chat({ messages: spoken, response_format: { type: "json_object" } });
  assert.match(said(object), /^\s*\{/);
  const schema = { type: "object", properties: { loud: { type: "boolean" } }, required: ["loud"], additionalProperties: false };
  const response_format = { type: "json_schema", json_schema: { name: "sound", schema, strict: true } };
  const reply = await chat({ messages: spoken, response_format, max_tokens: 500, temperature: 2, seed: 1 });
  assert.equal(typeof JSON.parse(said(reply)).loud, "boolean");
});

test("audio in several places, and as a URL", async () => {
  const tokens = (reply) => reply.usage.prompt_tokens_details.audio_tokens;
  const [{ content: [text, audio] }] = spoken;
  const once = tokens(await chat({ messages: spoken }));
  assert.equal(tokens(await chat({ messages: [{ role: "user", content: [text, audio, audio] }] })), 2 * once);
  const turns = [{ role: "system", content: "Be brief." }, ...spoken, { role: "assistant", content: "No." }, ...spoken];
  assert.equal(tokens(await chat({ messages: turns })), 2 * once);
  const url = `data:audio/wav;base64,${audio.input_audio.data}`;
  const linked = await chat({ messages: [{ role: "user", content: [text, { type: "audio_url", audio_url: { url } }] }] });
  assert.equal(said(linked), said(await chat({ messages: spoken })));
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
});

test("times of words are not made up", async () => {
  const word = { model, file: recording(), response_format: "verbose_json", timestamp_granularities: ["word"] };
  const reply = await client.audio.transcriptions.create(word);
  assert.equal(reply.words, undefined);
  assert.match(reply.warnings[0], /no times of words/);
});
