// What the page says, beside what stands in the conversation.

import { find } from "./find.js";
import { asProblem } from "./problems.js";

/** Says what is the case, and what can be done. */
export function say(what, todo = "", kind = "") {
  find("notice").className = kind;
  find("notice-what").textContent = what;
  find("notice-todo").textContent = todo;
}

/** Says what went wrong. */
export function complain(error) {
  const problem = tell(error);
  say(problem.message, problem.todo, "problem");
}

/** Lets whoever can mend it know of an error, as a `problem` event of the document; returns it as a Problem. */
export function tell(error) {
  const problem = asProblem(error);
  document.dispatchEvent(new CustomEvent("problem", { detail: problem }));
  return problem;
}
