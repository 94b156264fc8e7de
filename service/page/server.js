// The server as the page shows it: whether it is there, its models, and the key that it wants.

import { models } from "./api.js";
import { Connection } from "./connection.js";
import { find } from "./find.js";
import { key } from "./key.js";
import { complain, say } from "./notice.js";

const STATES = { ready: "Ready", loading: "Loading", gone: "No answer" };
const AWAY = {
  loading: ["The server is loading its model.", "The page goes on by itself as soon as it is ready."],
  gone: ["The server does not answer.", "It may be starting again; the page tries until it is back."],
};

/** Keeps the top of the page true, and asks for a key where one is missing. */
export function watchServer() {
  const connection = new Connection(changed);
  find("key-form").addEventListener("submit", takeKey);
  document.addEventListener("problem", ({ detail: problem }) => {
    if (problem.code === "invalid_api_key") askForKey(problem);
    if (problem.code === "unavailable") connection.look();
  });
  connection.look();
}

function changed(state) {
  const before = find("state").dataset.state;
  find("state").dataset.state = state;
  find("state").textContent = STATES[state];
  if (state in AWAY) say(...AWAY[state], "problem");
  else if (before in AWAY) say("The server is ready again.");
  if (state === "ready") listModels();
}

async function listModels() {
  const picker = find("model");
  try {
    const names = await models();
    const chosen = names.includes(picker.value) ? picker.value : names[0];
    picker.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
    find("key-form").hidden = true;
  } catch (error) {
    complain(error);
  }
}

function askForKey({ message }) {
  find("key-form").hidden = false;
  find("key-why").textContent = key.value ? message : "This server answers whoever has a key.";
  find("key").focus();
}

async function takeKey(event) {
  event.preventDefault();
  key.value = find("key").value.trim();
  await listModels();
  if (find("key-form").hidden) say("The key is good.");
}
