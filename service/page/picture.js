// The waveform of a recording, and its log-mel features: what the model hears of it.

import { HOP, MELS, frameCount, logMels, scaled } from "./mel.js";
import { RATE, joined } from "./sound.js";

const SPAN = 8; // seconds that are seen of what is being recorded
const MOST_FRAMES = 3000; // of a longer recording, some frames stand for all
const DEPTH = 2; // from the loudest to the floor, on Whisper's scale
const BAR = 4; // pixels from one bar of the waveform to the next

/** Draws the waveform of `samples` as bars around the middle. */
export function drawWave(canvas, samples) {
  const { context, width, height, scale } = fitted(canvas);
  const bars = Math.floor(width / (BAR * scale));
  const peaks = Array.from({ length: bars }, (_, i) => peak(samples, i / bars, (i + 1) / bars));
  const loudest = Math.max(0.05, ...peaks);
  context.fillStyle = getComputedStyle(canvas).color;
  context.beginPath();
  peaks.forEach((one, i) => {
    const tall = Math.max(2 * scale, (one / loudest) * height);
    context.roundRect(i * BAR * scale, (height - tall) / 2, (BAR - 1.5) * scale, tall, scale);
  });
  context.fill();
}

/** The two pictures of one recording, which follow the page's size and colours. */
export class Picture {
  #samples = new Float32Array();
  #columns = [];
  #rest = new Float32Array(); // of what is being recorded, less than a hop

  constructor(wave, mel) {
    Object.assign(this, { wave, mel });
    new ResizeObserver(() => this.#draw()).observe(wave);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Shows a whole recording; says how many frames of features it has. */
  show(samples) {
    const frames = frameCount(samples.length);
    this.#samples = samples;
    this.#columns = logMels(samples, 0, frames, Math.ceil(frames / MOST_FRAMES));
    this.#draw();
    return frames;
  }

  /** Begins to show the last seconds of what is being recorded. */
  roll() {
    this.#samples = new Float32Array(SPAN * RATE);
    this.#columns = logMels(this.#samples, 0, frameCount(SPAN * RATE));
    this.#rest = new Float32Array();
    this.#draw();
  }

  /** Adds samples to them. */
  push(samples) {
    const all = joined([this.#rest, samples]);
    const hops = Math.floor(all.length / HOP);
    this.#rest = all.slice(hops * HOP);
    this.#samples.copyWithin(0, hops * HOP);
    this.#samples.set(all.subarray(0, hops * HOP), this.#samples.length - hops * HOP);
    // The newest two frames reach past what has come; they are made again with the next.
    const known = this.#columns.slice(hops, -2);
    const frames = this.#columns.length;
    this.#columns = [...known, ...logMels(this.#samples, known.length, frames)];
    this.#draw();
  }

  #draw() {
    drawWave(this.wave, this.#samples);
    drawMel(this.mel, this.#columns);
  }
}

function drawMel(canvas, columns) {
  const { context, width, height } = fitted(canvas);
  if (!columns.length) return;
  const colours = palette(getComputedStyle(canvas).getPropertyValue("--mel"));
  const image = new ImageData(columns.length, MELS);
  const pixels = new Uint32Array(image.data.buffer);
  const shown = scaled(columns);
  const loudest = shown.reduce((most, column) => column.reduce((a, b) => Math.max(a, b), most), -Infinity);
  shown.forEach((column, x) => {
    column.forEach((value, mel) => {
      const shade = Math.round((1 - (loudest - value) / DEPTH) * 255);
      pixels[(MELS - 1 - mel) * columns.length + x] = colours[shade];
    });
  });
  const small = new OffscreenCanvas(columns.length, MELS);
  small.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(small, 0, 0, width, height);
}

/** 256 colours between the CSS colours of a list, from silence to loud. */
function palette(list) {
  const canvas = new OffscreenCanvas(256, 1);
  const context = canvas.getContext("2d");
  const stops = list.split(",").map((colour) => colour.trim());
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  stops.forEach((colour, i) => gradient.addColorStop(i / (stops.length - 1), colour));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  return new Uint32Array(context.getImageData(0, 0, 256, 1).data.buffer);
}

/** A canvas with as many pixels as the screen gives it, empty. */
function fitted(canvas) {
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * scale)));
  Object.assign(canvas, { width, height });
  return { context: canvas.getContext("2d"), width, height, scale };
}

function peak(samples, from, to) {
  let most = 0;
  for (let i = Math.floor(from * samples.length); i < to * samples.length; i++) most = Math.max(most, Math.abs(samples[i]));
  return most;
}
