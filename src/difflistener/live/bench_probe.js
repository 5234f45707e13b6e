// Runs in the page of `bench live`, before the page's own scripts: keeps its connections and devices, and once started notes at every
// drawing of the page how loud the microphone is, and how much the listener's picture has changed where it is a new one.

(() => {
  const probe = window.__probe = { peers: [], streams: [], rows: [], decoding: 0, decoded: 0 };
  const Peer = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Peer { constructor(...a) { super(...a); probe.peers.push(this); } };
  const ask = MediaDevices.prototype.getUserMedia;
  MediaDevices.prototype.getUserMedia = async function (...a) {
    const stream = await ask.apply(this, a);
    probe.streams.push(stream);
    return stream;
  };
  const make = window.createImageBitmap;
  window.createImageBitmap = async (...a) => {
    const begun = performance.now(), picture = await make(...a);
    probe.decoding += performance.now() - begun;
    probe.decoded++;
    return picture;
  };
  probe.start = () => {
    const stream = probe.streams.findLast((one) => one.getAudioTracks().some((track) => track.readyState === "live"));
    const context = probe.context = new AudioContext(), analyser = context.createAnalyser();
    analyser.fftSize = 1024;
    context.createMediaStreamSource(stream).connect(analyser);
    const wave = new Float32Array(1024);
    const ink = Object.assign(document.createElement("canvas"), { width: 32, height: 32 }).getContext("2d", { willReadFrequently: true });
    let frames = -1, before = null;
    const look = () => {
      const now = performance.now();
      analyser.getFloatTimeDomainData(wave);
      const level = Math.sqrt(wave.reduce((sum, value) => sum + value * value, 0) / wave.length);
      let moved = null;
      if (window.difflistener.frames !== frames) {
        frames = window.difflistener.frames;
        const shown = [...document.querySelectorAll("#video, #canvas")].find((one) => !one.hidden);
        if (shown) {
          ink.drawImage(shown, 0, 0, 32, 32);
          const pixels = ink.getImageData(0, 0, 32, 32).data;
          if (before) {
            moved = 0;
            for (let i = 1; i < pixels.length; i += 4) moved += (pixels[i] - before[i]) ** 2;
            moved /= 1024;
          }
          before = pixels;
        }
      }
      probe.rows.push([now, level, moved]);
      requestAnimationFrame(look);
    };
    look();
  };
  probe.report = async () => {
    const peer = probe.peers.at(-1), found = { video: null, pair: null, decode_ms: probe.decoding / Math.max(1, probe.decoded) };
    if (peer) for (const one of (await peer.getStats()).values()) {
      if (one.type === "inbound-rtp" && one.kind === "video") found.video = one;
      if (one.type === "candidate-pair" && one.nominated) found.pair = one;
    }
    return found;
  };
})();
