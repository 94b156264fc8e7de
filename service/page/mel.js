// Whisper's log-mel features, as the service computes them: 80 mels, windows of 25 ms, a hop of 10 ms, at 16 kHz.

import { RATE } from "./sound.js";

export const MELS = 80;
const SIZE = 400; // samples of a window
export const HOP = 160; // samples from one window to the next
const BINS = SIZE / 2 + 1;

const hann = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
const cosines = Float32Array.from({ length: SIZE }, (_, i) => Math.cos((2 * Math.PI * i) / SIZE));
const sines = Float32Array.from({ length: SIZE }, (_, i) => -Math.sin((2 * Math.PI * i) / SIZE));
const filters = melFilters();

/** The number of frames of so many samples, the last one perhaps in part. */
export const frameCount = (length) => Math.ceil(length / HOP);

/** Logarithms (base 10) of the mels' powers of frames `from` to `to`, an array of 80 for each; every `stride`th frame. */
export function logMels(samples, from, to, stride = 1) {
  const columns = [];
  for (let frame = from; frame < to; frame += stride) columns.push(column(samples, frame * HOP));
  return columns;
}

/** Whisper's scale: eight decades below the loudest are the floor; about -1 to 1.5. */
export function scaled(columns) {
  const loudest = columns.reduce((most, column) => column.reduce((a, b) => Math.max(a, b), most), -10);
  return columns.map((column) => column.map((power) => (Math.max(power, loudest - 8) + 4) / 4));
}

/** One frame, around the sample `centre`; mirrored before the first sample, silent behind the last. */
function column(samples, centre) {
  const signal = new Float32Array(SIZE);
  for (let i = 0; i < SIZE; i++) signal[i] = hann[i] * (samples[Math.abs(centre - SIZE / 2 + i)] ?? 0);
  const [real, imaginary] = fourier(signal);
  return Float32Array.from(filters, ([first, weights]) => {
    const power = weights.reduce((sum, weight, i) => sum + weight * (real[first + i] ** 2 + imaginary[first + i] ** 2), 0);
    return Math.log10(Math.max(power, 1e-10));
  });
}

/** The Fourier transform by Cooley and Tukey's way, a factor of the size (two, then five) at a time. */
function fourier(signal) {
  const real = new Float32Array(SIZE);
  const imaginary = new Float32Array(SIZE);

  function transform(size, start, step, out) {
    if (size === 1) {
      real[out] = signal[start];
      return;
    }
    const factor = size % 2 ? 5 : 2;
    const part = size / factor;
    for (let q = 0; q < factor; q++) transform(part, start + q * step, step * factor, out + q * part);
    const [re, im] = [new Float32Array(factor), new Float32Array(factor)];
    for (let k = 0; k < part; k++) {
      for (let q = 0; q < factor; q++) [re[q], im[q]] = [real[out + q * part + k], imaginary[out + q * part + k]];
      for (let r = 0; r < factor; r++) {
        const at = out + r * part + k;
        real[at] = imaginary[at] = 0;
        for (let q = 0; q < factor; q++) {
          const turn = (q * (r * part + k) * step) % SIZE;
          real[at] += re[q] * cosines[turn] - im[q] * sines[turn];
          imaginary[at] += re[q] * sines[turn] + im[q] * cosines[turn];
        }
      }
    }
  }

  transform(SIZE, 0, 1, 0);
  return [real, imaginary];
}

/** Triangles on Slaney's mel scale from 0 to 8 kHz, each of the same area: the first bin and the weights from there. */
function melFilters() {
  const knee = 1000; // Hz; linear below (15 mels), logarithmic above
  const growth = Math.log(6.4) / 27;
  const toHz = (mel) => (mel < 15 ? (mel * 200) / 3 : knee * Math.exp(growth * (mel - 15)));
  const top = 15 + Math.log(RATE / 2 / knee) / growth;
  const edges = Array.from({ length: MELS + 2 }, (_, i) => toHz((top * i) / (MELS + 1)));
  return Array.from({ length: MELS }, (_, mel) => {
    const [low, middle, high] = edges.slice(mel, mel + 3);
    const weight = (bin) => {
      const hz = (bin * RATE) / SIZE;
      return (Math.max(0, Math.min((hz - low) / (middle - low), (high - hz) / (high - middle))) * 2) / (high - low);
    };
    const all = Array.from({ length: BINS }, (_, bin) => weight(bin));
    const first = Math.max(0, all.findIndex((one) => one > 0));
    return [first, all.slice(first).filter((one) => one > 0)];
  });
}
