// Tool calls through OpenAI's JavaScript client: BASE_URL, MODEL and AUDIO (a wav file) come from the environment.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";

const { BASE_URL, MODEL: model, AUDIO } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "none", maxRetries: 0 });

test("a tool is called about audio", async () => {
  const data = fs.readFileSync(AUDIO).toString("base64");
  const messages = [
    {
      role: "user",
      content: [
        { type: "text", text: "Do what is said." },
        { type: "input_audio", input_audio: { data, format: "wav" } },
      ],
    },
  ];
  const parameters = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false };
  const lamp = { type: "function", function: { name: "lamp", description: "The lamp.", parameters, strict: true } };
  const tool_choice = { type: "function", function: { name: "lamp" } };
  const options = { model, messages, tools: [lamp], tool_choice, temperature: 1, seed: 1, max_tokens: 500 };
  const reply = await client.chat.completions.create(options);
  const [call] = reply.choices[0].message.tool_calls;
  assert.equal(call.function.name, "lamp");
  assert.equal(typeof JSON.parse(call.function.arguments).on, "boolean");
});
