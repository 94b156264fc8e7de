// Samples: decoded from files, and written as the bytes that the API takes.

export const RATE = 16_000; // what the model hears, samples per second

/** Pieces of a signal as one. */
export function joined(pieces) {
  const whole = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (whole.set(piece, at), at + piece.length), 0);
  return whole;
}

/** Float samples as 16-bit little-endian ones. */
export function pcm16(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  samples.forEach((sample, i) => view.setInt16(2 * i, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return new Uint8Array(view.buffer);
}

/** A mono wav file of 16 bits. */
export function wav(samples, rate = RATE) {
  const data = pcm16(samples);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  const fields = [36 + data.length, 16, 1, 1, rate, 2 * rate, 2, 16, data.length];
  text(0, "RIFF");
  text(8, "WAVEfmt ");
  text(36, "data");
  head.setUint32(4, fields[0], true);
  head.setUint32(16, fields[1], true); // bytes of the format's fields
  head.setUint16(20, fields[2], true); // PCM
  head.setUint16(22, fields[3], true); // channels
  head.setUint32(24, fields[4], true);
  head.setUint32(28, fields[5], true); // bytes per second
  head.setUint16(32, fields[6], true); // bytes per frame
  head.setUint16(34, fields[7], true); // bits
  head.setUint32(40, fields[8], true);
  return new Blob([head, data], { type: "audio/wav" });
}

/** The samples of a file at 16 kHz, its channels mixed by their mean; throws where the browser cannot decode it. */
export async function decode(file) {
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  const channels = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

/** Bytes in base64; in slices, for a function takes only so many arguments. */
export function base64(bytes) {
  const slice = 3 * 4096; // a multiple of three, so that the pieces join
  let text = "";
  for (let i = 0; i < bytes.length; i += slice) text += btoa(String.fromCharCode(...bytes.subarray(i, i + slice)));
  return text;
}
