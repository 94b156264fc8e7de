// Where the time of a request went.

const STAGES = ["upload", "decode", "features", "queue", "encode", "prefill", "generate"];

export const seconds = (time) => (time < 0.0995 ? `${(1000 * time).toFixed(time < 0.00995 ? 1 : 0)} ms` : `${time.toFixed(2)} s`);

/** Fills the bar and its legend from a reply's `timings`; stages may run beside each other, so they can add up to more than the whole. */
export function showStages(bar, legend, timings) {
  const stages = STAGES.filter((stage) => timings[stage] !== undefined);
  bar.replaceChildren(...stages.map((stage) => part("span", stage, (one) => (one.style.flexGrow = 1000 * timings[stage]))));
  bar.setAttribute("aria-label", `Time in stages: ${stages.map((stage) => `${stage} ${seconds(timings[stage])}`).join(", ")}`);
  legend.replaceChildren(...stages.map((stage) => part("li", stage, (one) => one.append(`${stage} `, strong(seconds(timings[stage]))))));
}

function part(tag, stage, fill) {
  const element = document.createElement(tag);
  element.dataset.stage = stage;
  fill(element);
  return element;
}

function strong(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}
