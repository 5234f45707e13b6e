// Microphone and camera: found, lost and found again; and what the microphone hears. Knows nothing of servers.

import { seconds } from "./link.js";

const WANTED = {
  // No sound comes out of this page, so there is no echo to cancel; the rest helps a listener to hear.
  microphone: { audio: { echoCancellation: false, noiseSuppression: true, autoGainControl: true, channelCount: 1 } },
  camera: { video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 20, max: 30 }, facingMode: "user" } },
};

const MISSING = {
  NotAllowedError: (kind) => [`This page may not use the ${kind}.`, "Allow it in the browser's address bar, then try again."],
  NotFoundError: (kind) => [`No ${kind} was found.`, `Connect one; this page notices.`],
  NotReadableError: (kind) => [`The ${kind} does not start.`, "Another program may be using it: close that, then try again."],
  Unplugged: (kind) => [`The ${kind} is gone.`, "Connect it again; this page notices."],
};

/** Microphone and camera. Sends "change" whenever one comes or goes. */
export class Devices extends EventTarget {
  constructor() {
    super();
    this.track = { microphone: null, camera: null };
    this.problem = { microphone: null, camera: null }; // [what is wrong, what to do]
    this.denied = { microphone: false, camera: false };
    this.wanted = { microphone: true, camera: true };
    this.useful = { microphone: true, camera: true };
    this.muted = false;
    this.asking = false;
    navigator.mediaDevices?.addEventListener("devicechange", () => this.retry());
  }

  /** Ask for both at once, or for each where that fails. */
  async open(kinds = ["microphone", "camera"]) {
    kinds = kinds.filter((kind) => this.wanted[kind] && this.useful[kind] && !this.track[kind]);
    if (!kinds.length) return;
    this.asking = true;
    try {
      await this.take(kinds);
    } catch (error) {
      for (const kind of kinds) {
        if (kinds.length > 1) await this.take([kind]).catch((reason) => this.miss(kind, reason));
        else this.miss(kind, error);
      }
    }
    this.asking = false;
    this.dispatchEvent(new Event("change"));
  }

  async take(kinds) {
    const stream = await navigator.mediaDevices.getUserMedia(Object.assign({}, ...kinds.map((kind) => WANTED[kind])));
    for (const track of stream.getTracks()) {
      const kind = track.kind === "audio" ? "microphone" : "camera";
      track.addEventListener("ended", () => this.lose(kind, track));
      track.enabled = !(kind === "microphone" && this.muted);
      this.track[kind] = track;
      this.problem[kind] = null;
    }
  }

  miss(kind, error) {
    const other = () => [`The ${kind} does not work (${error.name}).`, "Choose another one in the browser, then try again."];
    this.problem[kind] = (MISSING[error.name] ?? other)(kind);
    this.denied[kind] = error.name === "NotAllowedError";
  }

  lose(kind, track) {
    if (this.track[kind] !== track) return;
    this.track[kind] = null;
    this.problem[kind] = MISSING.Unplugged(kind);
    this.dispatchEvent(new Event("change"));
    this.retry();
  }

  /** See whether what is missing is there now; who has said no is not asked again. */
  retry(kinds = ["microphone", "camera"].filter((kind) => !this.denied[kind])) {
    if (this.started && !this.asking) this.open(kinds);
  }

  /** Let both go: their lights go out. */
  release() {
    this.started = false;
    for (const kind of ["microphone", "camera"]) {
      this.track[kind]?.stop();
      this.track[kind] = null;
    }
    this.dispatchEvent(new Event("change"));
  }

  mute(muted) {
    this.muted = muted;
    if (this.track.microphone) this.track.microphone.enabled = !muted;
  }

  /** Whether the camera is wanted, and whether it is of any use. Off means that its light goes out. */
  see({ wanted = this.wanted.camera, useful = this.useful.camera }) {
    this.wanted.camera = wanted;
    this.useful.camera = useful;
    if (wanted && useful) return this.retry(["camera"]);
    if (!this.track.camera && !this.problem.camera) return;
    this.track.camera?.stop();
    this.track.camera = this.problem.camera = null;
    this.dispatchEvent(new Event("change"));
  }
}

/** Listens to the microphone in the audio thread. `onLevel` gets 0..1, `onPacket` 20 ms of 16-bit samples and their time. */
export class Ear {
  constructor(onLevel, onPacket) {
    this.onLevel = onLevel;
    this.onPacket = onPacket;
    this.offset = null; // from the worklet's count of samples to this page's clock
  }

  async start() {
    if (this.context) return this.context.resume();
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.context.addEventListener("statechange", () => this.wake());
    await this.context.audioWorklet.addModule("web/audio-worklet.js");
    this.worklet = new AudioWorkletNode(this.context, "ear", { numberOfOutputs: 1, outputChannelCount: [1] });
    this.worklet.port.onmessage = ({ data }) => {
      if (data.level !== undefined) this.onLevel(data.level);
      else this.onPacket(this.time(data), data.packet);
    };
    this.worklet.connect(this.context.destination); // A worklet without a way out is not run; it puts out silence.
    await this.context.resume();
  }

  /** When the packet's first sample was heard. It counts samples, and is set right where a gap shows. */
  time({ seconds: counted, packet }) {
    const now = seconds() - packet.length / 16000;
    if (this.offset === null || Math.abs(counted + this.offset - now) > 0.25) this.offset = now - counted;
    return counted + this.offset;
  }

  listen(track) {
    this.source?.disconnect();
    this.source = this.context && track && this.context.createMediaStreamSource(new MediaStream([track]));
    this.source?.connect(this.worklet);
    if (!track) this.onLevel(0);
  }

  send(sending) {
    this.worklet?.port.postMessage({ sending });
  }

  /** After sleep or a call, phones leave the sound suspended. */
  wake() {
    if (!["running", "closed"].includes(this.context?.state ?? "closed")) this.context.resume().catch(() => {});
  }
}
