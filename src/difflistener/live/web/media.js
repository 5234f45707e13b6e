// The two ways that sound and pictures go: directly, over WebRTC, or over the session's WebSocket.

import { seconds } from "./link.js";

const DIRECT_S = 4; // seconds WebRTC has for each step: to connect, and to show a picture
const LOST_S = 3; // seconds a WebRTC connection may be disconnected
const GATHER_MS = 1500;
const CAMERA = { maxBitrate: 700_000, maxFramerate: 25 };
const PICTURE_MS = 83; // between camera pictures on the socket
const PICTURE_WIDTH = 320;
const WAITING_BYTES = { picture: 24_000, sound: 64_000 }; // in the socket, beyond which no more go in

/** Counts frames as they are shown. */
export class Counter {
  constructor() {
    this.frames = this.dropped = this.number = 0;
    this.times = [];
  }

  count(frames = 1) {
    this.frames += frames;
    this.times.push([seconds(), frames]);
  }

  /** Frames a second, over the last five. */
  get fps() {
    const now = seconds();
    while (this.times.length && this.times[0][0] < now - 5) this.times.shift();
    if (this.times.length < 2) return 0;
    const shown = this.times.slice(1).reduce((sum, [, frames]) => sum + frames, 0);
    return shown / Math.max(now - this.times[0][0], 0.2);
  }
}

/** Sound and pictures over WebRTC. `onFail` is called once, when it is of no more use. */
export class Direct {
  constructor({ ice, video, counter, onFirst, onFail, offer }) {
    Object.assign(this, { video, counter, onFirst, onFail, offer });
    this.peer = new RTCPeerConnection({ iceServers: ice, bundlePolicy: "max-bundle" });
    this.peer.ontrack = ({ track, receiver }) => this.show(track, receiver);
    this.peer.onconnectionstatechange = () => this.follow(this.peer.connectionState);
    this.expect();
    this.delays = { buffer: 0, decode: 0 }; // ms
    this.before = {};
  }

  /** The next step, connection or first picture, must come in time. */
  expect() {
    clearTimeout(this.late);
    this.late = setTimeout(() => this.fail(), 1000 * DIRECT_S);
  }

  async start({ microphone, camera }) {
    try {
      this.sound = this.peer.addTransceiver(microphone ?? "audio", { direction: "sendonly" }).sender;
      const pictures = this.peer.addTransceiver(camera ?? "video", { direction: "sendrecv" });
      this.pictures = pictures.sender;
      const codecs = RTCRtpReceiver.getCapabilities("video")?.codecs ?? [];
      pictures.setCodecPreferences?.([...codecs].sort((a, b) => (b.mimeType === "video/VP8") - (a.mimeType === "video/VP8")));
      await this.peer.setLocalDescription();
      await this.gathered();
      this.offer(this.peer.localDescription.sdp);
    } catch (error) {
      console.warn("WebRTC:", error);
      this.fail();
    }
  }

  gathered() {
    return new Promise((resolve) => {
      const done = () => this.peer.iceGatheringState === "complete" && resolve();
      this.peer.addEventListener("icegatheringstatechange", done);
      setTimeout(resolve, GATHER_MS);
      done();
    });
  }

  async answer(sdp) {
    try {
      await this.peer.setRemoteDescription({ type: "answer", sdp });
      const parameters = this.pictures.getParameters();
      for (const encoding of parameters.encodings ?? []) Object.assign(encoding, CAMERA);
      await this.pictures.setParameters(parameters);
    } catch (error) {
      if (this.peer.connectionState !== "closed") console.warn("WebRTC:", error);
    }
  }

  change({ microphone, camera }) {
    this.sound?.replaceTrack(microphone).catch(() => {});
    this.pictures?.replaceTrack(camera).catch(() => {});
  }

  show(track, receiver) {
    if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
    this.receiver = receiver;
    this.video.srcObject = new MediaStream([track]);
    this.video.play().catch(() => {});
    this.video.onloadeddata = () => {
      clearTimeout(this.late);
      if (!this.closed) this.onFirst();
    };
    let before = null;
    const seen = (_, { presentedFrames }) => {
      if (this.closed) return;
      this.counter.count(before === null ? 1 : Math.max(1, presentedFrames - before));
      before = presentedFrames;
      this.video.requestVideoFrameCallback(seen);
    };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(seen);
  }

  follow(state) {
    clearTimeout(this.lost);
    if (state === "connected") {
      if (this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) this.expect();
    } else if (state === "disconnected") {
      this.lost = setTimeout(() => this.fail(), 1000 * LOST_S);
    } else if (state === "failed" || state === "closed") {
      this.fail();
    }
  }

  /** Once a second: what the browser knows of buffers and losses. */
  async measure() {
    if (!this.receiver) return;
    for (const one of (await this.receiver.getStats()).values()) {
      if (one.type !== "inbound-rtp" || one.kind !== "video") continue;
      const since = (name) => (one[name] ?? 0) - (this.before[name] ?? 0);
      const emitted = since("jitterBufferEmittedCount");
      const decoded = since("framesDecoded");
      if (emitted > 0) this.delays.buffer = (1000 * since("jitterBufferDelay")) / emitted;
      if (decoded > 0) this.delays.decode = (1000 * since("totalDecodeTime")) / decoded;
      if (!this.video.requestVideoFrameCallback && decoded > 0) this.counter.count(decoded);
      this.counter.dropped += since("framesDropped");
      this.before = one;
    }
  }

  get delay() {
    return this.delays.buffer + this.delays.decode;
  }

  fail() {
    if (this.closed) return;
    this.onFail();
    this.close();
  }

  close() {
    this.closed = true;
    clearTimeout(this.late);
    clearTimeout(this.lost);
    this.peer.onconnectionstatechange = null;
    this.peer.close();
  }
}

/** Sound and pictures over the WebSocket: packets of sound and JPEGs out, JPEGs in. The newest counts, none waits. */
export class Relay {
  constructor({ link, canvas, camera, counter, onFirst }) {
    Object.assign(this, { link, canvas, camera, counter, onFirst });
    this.context = canvas.getContext("2d", { alpha: false });
    this.sketch = document.createElement("canvas");
    this.every = PICTURE_MS;
    this.trips = [];
    this.decode = 0; // ms
    this.last = null; // number of the last frame that came
    this.next = null; // the frame that waits to be decoded
    this.busy = this.sketching = false;
    this.schedule();
  }

  sound(time, packet) {
    if (this.link.waiting > WAITING_BYTES.sound) return;
    this.link.sendBytes(this.message(1, time, packet.buffer));
  }

  message(kind, time, content) {
    const bytes = new Uint8Array(9 + content.byteLength);
    bytes[0] = kind;
    new DataView(bytes.buffer).setFloat64(1, time, true);
    bytes.set(new Uint8Array(content), 9);
    return bytes;
  }

  schedule() {
    this.timer = setTimeout(() => {
      this.picture();
      this.schedule();
    }, this.every);
  }

  picture() {
    const { videoWidth: width, videoHeight: height } = this.camera;
    if (this.sketching || !width || !this.camera.srcObject || this.link.waiting > WAITING_BYTES.picture) return;
    const scale = Math.min(1, PICTURE_WIDTH / Math.max(width, height));
    const time = seconds();
    Object.assign(this.sketch, { width: Math.round(width * scale), height: Math.round(height * scale) });
    this.sketch.getContext("2d").drawImage(this.camera, 0, 0, this.sketch.width, this.sketch.height);
    this.sketching = true;
    this.sketch.toBlob(async (blob) => {
      this.sketching = false;
      if (blob && !this.closed) this.link.sendBytes(this.message(2, time, await blob.arrayBuffer()));
    }, "image/jpeg", 0.75);
  }

  /** Send fewer pictures where the way has become slow. */
  adapt(trip) {
    this.trips = [...this.trips.slice(-29), trip];
    const isSlow = trip > Math.min(...this.trips) + 300;
    this.every = isSlow ? Math.min(1000, this.every * 1.5) : Math.max(PICTURE_MS, this.every * 0.85);
  }

  /** A frame message of the server. */
  async frame(buffer) {
    const number = new DataView(buffer).getUint32(1, true);
    if (this.last !== null && number > this.last + 1) this.counter.dropped += number - this.last - 1;
    this.last = number;
    if (this.next) this.counter.dropped++;
    this.next = buffer;
    if (this.busy) return;
    this.busy = true;
    while (this.next && !this.closed) {
      const now = this.next;
      this.next = null;
      await this.draw(now).catch((error) => console.warn("frame:", error));
    }
    this.busy = false;
  }

  async draw(buffer) {
    const begun = seconds();
    const picture = await createImageBitmap(new Blob([new Uint8Array(buffer, 9)], { type: "image/jpeg" }));
    if (this.closed) return;
    if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
      Object.assign(this.canvas, { width: picture.width, height: picture.height });
    }
    this.context.drawImage(picture, 0, 0);
    picture.close();
    this.decode = 1000 * (seconds() - begun);
    const number = new DataView(buffer).getUint32(1, true);
    const seen = new DataView(new ArrayBuffer(5));
    seen.setUint8(0, 4);
    seen.setUint32(1, number, true);
    this.link.sendBytes(seen.buffer);
    this.counter.number = number;
    this.counter.count();
    this.onFirst?.();
    this.onFirst = null;
  }

  get delay() {
    return this.decode;
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}
