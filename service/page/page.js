// The page: what can be pressed, and who sees to it.

import { Asking } from "./asking.js";
import { Conversation } from "./conversation.js";
import { find } from "./find.js";
import { Heard } from "./heard.js";
import { Live } from "./live.js";
import { complain, say } from "./notice.js";
import { quiet } from "./player.js";
import { unreachable } from "./problems.js";
import { watchServer } from "./server.js";
import { Talk } from "./talk.js";
import { TaskForm } from "./tasks.js";

const heard = new Heard();
const tasks = new TaskForm(find("task"));
const conversation = new Conversation(find("turns"), find("turn"));
const asking = new Asking(heard, tasks, conversation);
const live = new Live(heard, tasks, conversation);
new Talk(heard, () => asking.ask());

tasks.changed = (instruction) => live.instruct(instruction);

find("task").addEventListener("submit", (event) => {
  event.preventDefault();
  asking.ask();
});
find("instruction").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  find("ask").click();
});

function stop() {
  asking.stop();
  live.stop();
}
find("stop").addEventListener("click", stop);
document.addEventListener("keydown", ({ key }) => key === "Escape" && stop());

find("clear").addEventListener("click", () => {
  quiet();
  asking.stop();
  conversation.clear();
  say("");
});

// Files: chosen, dropped, or samples

find("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) heard.use(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.dataset.dropping = "";
});
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => delete document.body.dataset.dropping);
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) heard.use(file);
});

for (const button of document.querySelectorAll("[data-file]")) {
  button.addEventListener("click", async () => {
    const { file } = button.dataset;
    try {
      const response = await fetch(`page/${file}`);
      await heard.use(new File([await response.blob()], file));
    } catch {
      complain(unreachable());
    }
  });
}

watchServer();
