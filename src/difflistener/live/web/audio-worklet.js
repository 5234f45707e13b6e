// The microphone's sound, in the audio thread: how loud it is, and, where asked for, packets of 20 ms at 16 kHz.

const RATE = 16000;
const PACKET = 320;
const REACH = 12; // zero crossings of the kernel, each side
const LEVEL_S = 0.05;

/** Band-limited resampling from any rate by a windowed sinc: out of step/up input samples comes one. */
class Resampler {
  constructor(rate) {
    let [a, b] = [rate, RATE];
    while (b) [a, b] = [b, a % b];
    this.up = RATE / a;
    this.step = rate / a;
    const cutoff = Math.min(1, RATE / rate) * 0.92; // in units of the input's Nyquist frequency
    this.half = Math.ceil(REACH / cutoff);
    this.kernels = Array.from({ length: this.up }, (_, phase) => this.kernel(phase / this.up, cutoff));
    this.waiting = new Float32Array(2 * this.half); // silence before the first sample
    this.phase = 0;
  }

  /** Weights of the 2 * half input samples around a point `fraction` behind the middle one. */
  kernel(fraction, cutoff) {
    const weights = new Float32Array(2 * this.half);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      const x = i - this.half + 1 - fraction;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
      const window = Math.abs(x) < this.half ? 0.5 + 0.5 * Math.cos((Math.PI * x) / this.half) : 0;
      sum += weights[i] = sinc * window;
    }
    return weights.map((weight) => weight / sum);
  }

  /** Samples of the output that are complete now. */
  push(input) {
    const known = new Float32Array(this.waiting.length + input.length);
    known.set(this.waiting);
    known.set(input, this.waiting.length);
    const output = [];
    let start = 0;
    while (start + 2 * this.half <= known.length) {
      const kernel = this.kernels[this.phase];
      let sum = 0;
      for (let i = 0; i < kernel.length; i++) sum += kernel[i] * known[start + i];
      output.push(sum);
      this.phase += this.step;
      start += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    this.waiting = known.slice(start);
    return output;
  }
}

class Ear extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate);
    this.packet = new Int16Array(PACKET);
    this.filled = 0;
    this.count = 0; // samples of finished packets
    this.sending = false;
    this.squares = this.heard = 0;
    this.port.onmessage = ({ data }) => {
      this.sending = data.sending;
    };
  }

  process([channels]) {
    if (!channels.length) return true; // No source yet, or between two.
    const mono = channels.length === 1 ? channels[0] : channels[0].map((value, i) => (value + channels[1][i]) / 2);
    for (const value of mono) this.squares += value * value;
    this.heard += mono.length;
    if (this.heard >= LEVEL_S * sampleRate) {
      this.port.postMessage({ level: Math.sqrt(this.squares / this.heard) });
      this.squares = this.heard = 0;
    }
    for (const value of this.resampler.push(mono)) {
      this.packet[this.filled++] = Math.round(Math.max(-1, Math.min(1, value)) * 32767);
      if (this.filled === PACKET) this.finish();
    }
    return true;
  }

  finish() {
    if (this.sending) this.port.postMessage({ packet: this.packet, seconds: this.count / RATE }, [this.packet.buffer]);
    this.packet = new Int16Array(PACKET);
    this.count += PACKET;
    this.filled = 0;
  }
}

registerProcessor("ear", Ear);
