// What can be asked about a recording.

export const TASKS = {
  answer: { label: "Answer", instruction: "" },
  transcribe: { label: "Transcribe", instruction: null }, // an endpoint of its own, which words it as the model likes it
  summarise: { label: "Summarise", instruction: "Summarize this in a few words." },
  continue: { label: "Continue", instruction: "Continue the following text in a coherent and engaging style with less than 40 words." },
  translate: { label: "Translate", instruction: "Translate this into French." },
  own: { label: "Other", instruction: "" },
};

const HINTS = {
  answer: "Nothing but the recording: a question is answered, a request followed.",
  transcribe: "The words as they are said, by /v1/audio/transcriptions.",
};

/** The presets and the text field, which show one instruction together; `changed(instruction)` is called when that changes. */
export class TaskForm {
  changed = () => {};

  constructor(form) {
    this.form = form;
    this.text = form.elements.instruction;
    this.hint = form.querySelector("#hint");
    form.addEventListener("change", ({ target }) => target.name === "task" && this.#preset());
    this.text.addEventListener("input", () => this.#typed());
    this.#preset();
  }

  /** The task that is chosen: its label, and the instruction; null: a transcript. */
  get task() {
    const { label, instruction } = TASKS[this.#name];
    const typed = this.text.value.trim();
    return { label: this.#name === "own" && typed ? typed : label, instruction: instruction === null ? null : typed };
  }

  get #name() {
    return this.form.elements.task.value;
  }

  #preset() {
    const { instruction } = TASKS[this.#name];
    if (this.#name === "own") this.text.focus();
    else this.text.value = instruction ?? "";
    this.text.disabled = instruction === null;
    this.#tell();
  }

  #typed() {
    if (this.text.value !== TASKS[this.#name].instruction) this.form.elements.task.value = this.text.value ? "own" : "answer";
    this.#tell();
  }

  #tell() {
    this.hint.textContent = HINTS[this.#name] ?? "The model reads this beside what it hears.";
    this.changed(this.task.instruction);
  }
}
