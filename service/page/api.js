// The service's HTTP API. Addresses are relative, so that the page works below any path.

import { key } from "./key.js";
import { refusal, unreachable } from "./problems.js";

/** The names that a request may give as `model`. */
export async function models() {
  return (await (await request("v1/models")).json()).data.map((model) => model.id);
}

/** Whether the server is "ready", is "loading", or has "gone". */
export async function readiness() {
  try {
    const { ok, status } = await fetch("ready", { cache: "no-store", signal: AbortSignal.timeout(10_000) });
    return ok || status === 401 ? "ready" : "loading"; // 401: its own health is nobody's business
  } catch {
    return "gone";
  }
}

/** Sends a form to an endpoint and gives what it streams, event by event. */
export async function* stream(path, fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("stream", "true");
  const response = await request(path, { method: "POST", body, signal });
  for await (const event of events(response.body)) {
    if (event.error) throw refusal(event.error);
    yield event;
  }
}

async function request(path, options = {}) {
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw refusal(error, response.status, response.headers.get("Retry-After"));
}

/** Server-sent events; a stream that ends before its [DONE] was cut off. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : unreachable();
    });
    if (done) throw unreachable();
    const lines = (text + value).split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
