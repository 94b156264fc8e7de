// The microphone, as mono frames at the rate that is asked for, whatever the machine's own is.

import { Problem } from "./problems.js";

const WORKLET = new URL("recorder-worklet.js", import.meta.url);

/** Opens the microphone; `take` gets its frames, 50 ms each. Throws a Problem where there is none. */
export async function openMicrophone(rate, take) {
  const stream = await microphone();
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule(WORKLET);
    const mono = { channelCount: 1, channelCountMode: "explicit" };
    const recorder = new AudioWorkletNode(context, "recorder", { ...mono, processorOptions: { rate } });
    const ended = new Promise((resolve) => {
      recorder.port.onmessage = ({ data }) => (data === null ? resolve() : take(data));
    });
    context.createMediaStreamSource(stream).connect(recorder);
    recorder.connect(context.destination); // silence, but a node that leads nowhere need not be run
    await context.resume();
    return new Microphone(stream, context, recorder, ended);
  } catch (error) {
    stop(stream);
    await context.close();
    throw error;
  }
}

class Microphone {
  constructor(stream, context, recorder, ended) {
    Object.assign(this, { stream, context, recorder, ended });
  }

  /** Closes it; what was recorded until now has been taken when this returns. */
  async close() {
    this.recorder.port.postMessage("end");
    await this.ended;
    stop(this.stream);
    await this.context.close();
  }
}

const stop = (stream) => stream.getTracks().forEach((track) => track.stop());

async function microphone() {
  if (!navigator.mediaDevices) {
    throw new Problem("Browsers give the microphone only to pages on https or localhost.", "Open this page there, or choose a file.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    const other = new Problem(`The microphone cannot be opened: ${error.message}.`, "See whether another program has it, or choose a file.");
    throw MICROPHONE[error.name] ?? other;
  }
}

const MICROPHONE = {
  NotAllowedError: new Problem("This page may not use the microphone.", "Allow it in the browser's settings of this site, then try again."),
  NotFoundError: new Problem("There is no microphone.", "Connect one, or choose a file."),
};
