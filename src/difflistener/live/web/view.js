// What a person sees of it all. It only shows what it is told.

const NOTE_MS = 7000;

export const $ = (id) => document.getElementById(id);

const WORDS = {
  start: "",
  asking: "Waiting for your browser: it asks whether this page may hear and see you.",
  connecting: "Connecting …",
  listening: "Listening. You hear nothing: a listener is silent.",
  reconnecting: "The network is gone; trying again",
  busy: "Somebody else is talking with the listener. This page waits for its turn.",
  failed: "",
};

const ATTITUDES = { "": "As it comes", positive: "Likes it", neutral: "Neutral", negative: "Dislikes it" };

export class View {
  constructor() {
    this.note = null;
    this.senses = "";
    this.level = 0;
  }

  state(name) {
    document.body.dataset.state = name;
    const talks = ["connecting", "listening", "reconnecting", "busy"].includes(name);
    const hasFocus = (id) => $(id).contains(document.activeElement);
    const moves = hasFocus(talks ? "card" : "controls");
    $("card").hidden = talks;
    $("controls").hidden = !talks;
    if (moves) $(talks ? "mute" : "start").focus();
    $("meter").hidden = !talks;
    $("start").setAttribute("aria-disabled", name === "asking"); // Disabled, it would lose the focus.
    $("prepare").hidden = name !== "start";
    if (name !== "start") $("camera-choice").hidden = true;
    for (const id of ["again", "forget"]) $(id).disabled = name !== "listening";
    this.say($("status"), WORDS[name]);
    $("countdown").textContent = "";
    if (name !== "listening") $("details").hidden = true;
  }

  /** Text of a live region: written only where it differs, so that it is read out once. */
  say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  countdown(left) {
    $("countdown").textContent = left > 0 ? ` in ${left} s` : " …";
  }

  /** Full stop: what is wrong and what to do, with a button to try again. */
  stop({ title, lead, remedy = "", command = "", button = "Try again" }) {
    $("title").textContent = title;
    $("lead").textContent = lead;
    $("remedy").textContent = remedy;
    $("remedy").hidden = !remedy;
    $("command").textContent = command;
    $("command").hidden = !command;
    $("start").textContent = button;
    $("start").hidden = !button;
    $("promise").hidden = true;
  }

  /** A line below the status: for some seconds, or until the next. */
  tell(text) {
    clearTimeout(this.forgetNote);
    this.note = text;
    this.forgetNote = setTimeout(() => {
      this.note = null;
      this.say($("senses"), this.senses);
    }, NOTE_MS);
    this.say($("senses"), text);
  }

  /** What the listener perceives, in words. */
  perceives(text) {
    this.senses = text;
    if (this.note === null) this.say($("senses"), text);
  }

  picture(kind) {
    $("video").hidden = kind !== "rtc";
    $("canvas").hidden = kind !== "socket";
    $("still").hidden = kind !== null;
  }

  /** Keep the video's last frame in sight: a closed connection leaves it black. */
  hold() {
    const video = $("video"), canvas = $("canvas");
    if (!video.videoWidth) return;
    Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d", { alpha: false }).drawImage(video, 0, 0);
    this.picture("socket");
  }

  /** Shape of the listener's pictures. */
  size([width, height]) {
    document.body.style.setProperty("--ratio", width / height);
  }

  loudness(level) {
    // Decibels from -50 to -10 fill the meter; it rises at once and falls slowly.
    const now = Math.max(0, Math.min(1, (20 * Math.log10(level + 1e-6) + 50) / 40));
    this.level = Math.max(now, this.level * 0.8);
    document.body.style.setProperty("--level", this.level.toFixed(3));
    $("meter").setAttribute("aria-valuenow", Math.round(100 * this.level));
  }

  self(track) {
    $("self").hidden = !track;
    const camera = $("camera");
    if (camera.srcObject?.getVideoTracks()[0] === track) return;
    camera.srcObject = track && new MediaStream([track]);
    if (track) camera.play().catch(() => {});
  }

  buttons({ microphone, camera, muted, sees, wantsCamera }) {
    const name = (id, text, isOff) => {
      this.say($(id).querySelector("span"), text);
      $(id).classList.toggle("off", isOff);
    };
    if (microphone) name("mute", muted ? "Unmute" : "Mute", muted);
    else name("mute", "Find mic", true);
    if (sees && wantsCamera && !camera) name("see", "Find camera", true);
    else name("see", camera ? "Camera off" : "Camera on", !camera);
    $("see").disabled = !sees;
  }

  details({ delay, fps, media }) {
    $("details").hidden = false;
    $("delay").textContent = delay === null ? "" : `reacts after ${Math.round(delay / 10) * 10} ms`;
    $("rate").textContent = `${Math.round(fps)} pictures a second`;
    $("path").textContent = media === "rtc" ? "direct (WebRTC)" : "through one port (WebSocket)";
  }

  recording(is) {
    $("recording").hidden = !is;
  }

  /** What will happen, before it does: `looks` if the listener can look at all, `sees` if it also may. */
  invite({ looks, sees, recording }) {
    $("camera-choice").hidden = !looks;
    const devices = sees ? "the microphone and the camera" : "the microphone";
    $("lead").textContent = `A 3D head hears ${sees ? "and sees " : ""}you. It nods when you finish a thought, `
      + `${sees ? "smiles when you do, " : ""}and stays with you while you are silent. It never speaks.`;
    $("promise").textContent = `Your browser will ask for ${devices}. ` + (recording
      ? "The conversation is recorded on the server: your voice, how your face moves, and how the listener moves. "
        + "Pictures of you are not stored."
      : `${sees ? "Sound and pictures go" : "Sound goes"} to this server only, and nothing is stored.`);
    $("promise").classList.toggle("recorded", recording);
  }

  // Settings

  choices(choices) {
    const fill = (select, names) => select.replaceChildren(...names.map((name) => new Option(name, name)));
    fill($("body"), choices.bodies.map((body) => body.name));
    fill($("brain"), choices.brains.map((brain) => brain.name));
    $("body-field").hidden = choices.bodies.length < 2;
    $("brain-field").hidden = choices.brains.length < 2;
    if ($("attitudes").childElementCount) return;
    for (const value of ["", ...choices.attitudes]) {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "attitude", value });
      label.append(radio, Object.assign(document.createElement("span"), { textContent: ATTITUDES[value] ?? value }));
      $("attitudes").append(label);
    }
  }

  settings(settings, choices) {
    const brain = choices.brains.find(({ name }) => name === settings.brain);
    $("body").value = settings.body;
    $("brain").value = settings.brain;
    document.querySelector(`input[name=attitude][value="${settings.attitude ?? ""}"]`).checked = true;
    for (const name of ["audio_guidance", "face_guidance"]) {
      $(name).value = settings[name] ?? brain[name];
      $(name).disabled = !brain.guidance_is_free;
      this.guidance(name);
    }
    $("face-field").hidden = !brain.sees;
    $("guidance-note").textContent = brain.guidance_is_free ? "1 is as people do; more exaggerates."
      : "Fixed in this brain: it was distilled to react as people do.";
    if (document.activeElement !== $("seed")) $("seed").value = settings.seed;
  }

  guidance(name) {
    $(`${name}_value`).textContent = Number($(name).value).toFixed(1);
  }

  /** Open or close the settings. `opener` is the button they belong to until they are closed. */
  drawer(open, opener = this.opener) {
    if ($("settings").open === open) return;
    this.opener = opener;
    opener.setAttribute("aria-expanded", open);
    if (open) $("settings").show();
    else $("settings").close();
    (open ? $("close") : opener).focus();
  }
}
