// Vercel's AI SDK against a running server: BASE_URL, MODEL and AUDIO (a wav file) come from the environment.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { experimental_transcribe as transcribe, generateText, streamText } from "ai";

const { BASE_URL, MODEL, AUDIO } = process.env;
const audio = fs.readFileSync(AUDIO);
const openai = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "blsp", baseURL: `${BASE_URL}/v1`, includeUsage: true });
const question = {
  system: "Be brief.",
  messages: [
    {
      role: "user",
      content: [
        { type: "text", text: "What is said?" },
        { type: "file", mediaType: "audio/wav", data: audio },
      ],
    },
  ],
  temperature: 0,
  maxOutputTokens: 8,
  maxRetries: 0,
};

for (const [name, model] of [["openai", openai.chat(MODEL)], ["openai-compatible", compatible(MODEL)]]) {
  test(`${name}: text about audio, whole and streamed`, async () => {
    const { text, usage } = await generateText({ model, ...question });
    assert.ok(text);
    assert.equal(usage.outputTokens, 8);
    const stream = streamText({ model, ...question });
    assert.equal(await stream.text, text);
    assert.equal((await stream.usage).outputTokens, 8);
  });
}

const transcript = (options = {}, provider = openai, name = MODEL) =>
  transcribe({ model: provider.transcription(name), audio, maxRetries: 0, providerOptions: { openai: options } });

test("a transcript, and what may be asked of one", async () => {
  const { text } = await transcript();
  assert.ok(text);
  assert.equal((await transcript({ language: "en", temperature: 0, include: ["logprobs"] })).text, text);
  assert.ok((await transcript({ keywords: ["Thingamajig"], prompt: "Of things.", chunkingStrategy: "auto" })).text);
});

test("a transcript in verbose JSON has segments", async () => {
  const { text, segments, durationInSeconds } = await transcript({ responseFormat: "verbose_json" });
  assert.equal(text, (await transcript()).text);
  assert.equal(durationInSeconds, 2);
  assert.deepEqual(segments.map(({ startSecond, endSecond }) => [startSecond, endSecond]), [[0, 2]]);
  assert.equal(segments[0].text.trim(), text);
});

test("Azure's paths", async () => {
  const azure = createOpenAI({ baseURL: `${BASE_URL}/openai/deployments/${MODEL}`, apiKey: "none" });
  assert.equal((await transcript({}, azure, "gpt-4o-transcribe")).text, (await transcript()).text);
  assert.ok((await generateText({ model: azure.chat("gpt-4o"), ...question })).text);
});

test("an error", async () => {
  await assert.rejects(generateText({ model: openai.chat("nope"), ...question }), /does not exist/);
});
