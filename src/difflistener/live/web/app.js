// The page of `difflistener live`: puts devices, the way to the server, media and view together into a conversation.
//
// Nothing is stored but a name for this tab, so that a reload takes its own session over.

import { Devices, Ear } from "./devices.js";
import { Link, seconds } from "./link.js";
import { Counter, Direct, Relay } from "./media.js";
import { $, View } from "./view.js";

const WAITS_S = [1, 2, 3, 5, 8, 10]; // before each further attempt
const BUSY_WAIT_S = 4;
const QUIET = 0.0006; // loudness that a microphone which is on does not fall below for long
const QUIET_S = 8;
const LOOK_S = 8; // from the beginning, until a face that was not found is worth a word
/** Why the server ends a session. */
const CLOSED = { busy: 4000, moved: 4001, idle: 4002, token: 4003, failed: 1011, flood: 1008, stopped: 1001 };

class Conversation {
  constructor() {
    this.view = new View();
    this.devices = new Devices();
    this.ear = new Ear((level) => this.heard(level), (time, packet) => this.relay?.sound(time, packet));
    this.counter = new Counter();
    this.state = "start";
    this.settings = {}; // what was chosen on this page
    this.attempt = 0;
    this.media = this.link = this.direct = this.relay = this.stats = this.problem = this.about = null;
    this.delay = this.trip = null;
    this.recording = this.again = false;
    this.sees = true;
    this.loudAt = seconds();
    this.token = new URLSearchParams(location.search).get("token");
    const wants = new URLSearchParams(location.search).get("media");
    this.wants = wants === "socket" || !("RTCPeerConnection" in window) ? "socket" : "auto";
    this.page = tabName();
  }

  async begin() {
    this.bind();
    try {
      this.learn(await (await fetch("about")).json());
      this.view.choices(this.about.choices);
      this.settle(this.about.settings);
    } catch (error) {
      console.warn("about:", error);
      this.stop({ title: "The server does not answer.", lead: "The page came, but nothing after.", remedy: "Reload the page." });
      return;
    }
    if (!window.isSecureContext || !navigator.mediaDevices) this.explainSecurity();
  }

  learn(about) {
    this.about = about;
    this.recording = about.recording;
    this.view.recording(about.recording && this.state !== "start");
  }

  /** Show settings, and the body they name. */
  settle(settings) {
    const { choices } = this.about;
    this.current = settings;
    const place = choices.bodies.findIndex(({ name }) => name === settings.body);
    this.view.settings(settings, choices);
    this.view.size(choices.bodies[place].size);
    const still = new URL(`still/${place}`, location.href).href;
    if ($("still").src !== still) $("still").src = still;
    this.look(choices.brains.find(({ name }) => name === settings.brain).sees);
  }

  /** Whether the listener looks at the person; if not, the camera stays off. */
  look(sees) {
    this.sees = sees;
    this.devices.see({ useful: sees });
    this.invite();
  }

  invite() {
    const sees = this.sees && this.devices.wanted.camera;
    if (this.state === "start") this.view.invite({ looks: this.sees, sees, recording: this.recording });
  }

  explainSecurity() {
    const port = location.port || (location.protocol === "https:" ? 443 : 80);
    this.stop({
      title: "This address is not secure.",
      lead: "Browsers give the microphone and the camera only to https pages and to localhost.",
      remedy: `Forward the port to the computer in front of you, and open http://localhost:${port}/${location.search} there:`,
      command: `ssh -L ${port}:localhost:${port} ${location.hostname}`,
      button: "",
    });
  }

  // States

  become(state) {
    if (this.state === state) return;
    this.state = state;
    this.view.state(state);
    if (state !== "start") this.changed();
  }

  /** Come to a full stop and say why. Devices are let go, unless it is they that are waited for. */
  stop(words, isLacking = false) {
    this.hangUp();
    this.view.recording(false);
    this.isLacking = isLacking;
    if (!isLacking) this.devices.release();
    this.ear.listen(null);
    this.problem = `${words.title} ${words.lead}`;
    this.become("failed");
    this.view.stop(words);
    this.view.picture(null);
    this.view.drawer(false);
  }

  async start() {
    if (this.state !== "start" && this.state !== "failed") return;
    if (!navigator.mediaDevices) return;
    this.problem = null;
    this.become("asking");
    if (!this.devices.started || this.isLacking) {
      this.devices.started = true;
      await this.devices.open();
    }
    if (!this.devices.track.microphone && !this.devices.track.camera) {
      const [lead, remedy] = this.devices.problem.microphone ?? this.devices.problem.camera;
      this.stop({ title: "Nothing to hear you with.", lead, remedy }, true);
      return;
    }
    if (this.wakeLock === undefined) this.stayAwake();
    try {
      await this.ear.start();
      this.ear.listen(this.devices.track.microphone);
    } catch (error) {
      console.warn("sound:", error);
    }
    this.attempt = 0;
    this.connect("connecting");
  }

  connect(state) {
    clearTimeout(this.retry);
    clearInterval(this.ticking);
    this.become(state);
    const hello = { media: this.wants, page: this.page, settings: this.settings };
    const link = (this.link = new Link(this.token ? { ...hello, token: this.token } : hello));
    link.addEventListener("message", ({ detail }) => link === this.link && this.take(detail));
    link.addEventListener("frame", ({ detail }) => link === this.link && this.relay?.frame(detail));
    link.addEventListener("late", () => link === this.link && this.view.perceives("The network is slow: nothing has come for a moment."));
    link.addEventListener("down", ({ detail }) => link === this.link && this.down(detail));
  }

  /** Drop every connection; devices stay. */
  hangUp() {
    clearTimeout(this.retry);
    clearInterval(this.ticking);
    const { link, direct, relay } = this;
    if (this.media === "rtc") this.view.hold();
    this.link = this.direct = this.relay = this.media = null;
    this.ear.send(false);
    direct?.close();
    relay?.close();
    link?.close();
  }

  down(code) {
    const was = this.state;
    this.hangUp();
    if (was === "failed" || was === "start") return;
    if (code === CLOSED.moved) {
      const lead = "This page was opened in another tab or window, and the listener went there.";
      this.stop({ title: "The conversation goes on elsewhere.", lead, button: "Continue here" });
    } else if (code === CLOSED.idle) {
      const lead = "Neither sound nor pictures came for a while.";
      this.stop({ title: "The listener has left.", lead, button: "Start listening" });
    } else if (code === CLOSED.failed || code === CLOSED.flood || code === CLOSED.token) {
      this.stop(this.fatal ?? { title: "The server has ended the conversation.", lead: "", remedy: "Reload the page." });
    } else if (code === CLOSED.busy) {
      this.become("busy");
      this.wait(BUSY_WAIT_S, "busy");
    } else {
      this.become("reconnecting");
      if (code === CLOSED.stopped) this.view.say($("status"), "The server has stopped; trying again");
      this.wait(WAITS_S[Math.min(this.attempt++, WAITS_S.length - 1)], "reconnecting");
    }
  }

  /** Try again after a while; of the countdown only its beginning is read out. */
  wait(time, state) {
    const end = seconds() + time;
    const tick = () => state === "reconnecting" && this.view.countdown(Math.ceil(end - seconds()));
    tick();
    this.ticking = setInterval(tick, 250);
    this.retry = setTimeout(() => this.connect(state), 1000 * time);
  }

  /** The network, the lid or the tab is back: do not sit out the wait. */
  hurry() {
    this.ear.wake();
    this.devices.retry();
    if (this.state === "reconnecting" && !this.link) this.connect("reconnecting");
    else this.link?.check();
    if (document.visibilityState === "visible" && this.devices.started) this.stayAwake();
  }

  async stayAwake() {
    try {
      this.wakeLock = await navigator.wakeLock.request("screen");
    } catch {
      this.wakeLock = null; // A battery saver, or a browser without.
    }
  }

  // What the server says

  take(message) {
    switch (message.type) {
      case "welcome":
        return this.welcome(message);
      case "answer":
        return this.direct?.answer(message.sdp);
      case "media":
        return this.settleMedia(message.path);
      case "stats":
        return this.measure(message);
      case "note":
        return this.note(message);
      case "problem":
        if (message.fatal) this.fatal = { title: "The conversation has ended.", lead: message.problem, remedy: message.remedy };
        else this.view.tell(`${message.problem} ${message.remedy}`);
        this.problem = message.problem;
    }
  }

  welcome(message) {
    this.fatal = this.problem = null;
    this.learn({ ...this.about, choices: message.choices, recording: message.recording });
    this.settle(message.settings);
    this.look(message.sees);
    this.changed();
    if (this.wants === "socket") return this.useSocket();
    const link = this.link;
    this.direct = new Direct({
      ice: message.ice,
      video: $("video"),
      counter: this.counter,
      offer: (sdp) => link.send("offer", { sdp }),
      onFirst: () => this.established("rtc"),
      onFail: () => {
        if (this.media !== "rtc") this.wants = "socket"; // There is no way; do not look for it again.
        this.useSocket(true);
      },
    });
    this.direct.start(this.devices.track);
  }

  /** Media over this very socket: asked for where WebRTC finds no way, or loses it. */
  useSocket(instead = false) {
    if (this.relay || !this.link) return;
    if (this.media === "rtc") this.view.hold();
    this.direct?.close();
    this.direct = null;
    this.relay = new Relay({
      link: this.link,
      canvas: $("canvas"),
      camera: $("camera"),
      counter: this.counter,
      onFirst: () => this.established("socket"),
    });
    if (instead) this.link.send("use", { media: "socket" });
    this.ear.send(true);
  }

  settleMedia(path) {
    if (path === null && this.direct) this.direct.fail();
  }

  established(media) {
    this.media = media;
    this.attempt = 0;
    this.loudAt = this.begunAt = seconds();
    this.seesFace = false;
    this.view.picture(media);
    this.become("listening");
  }

  note({ text, settings, size, sees, again, recording }) {
    if (text && again === undefined) this.view.tell(text);
    if (settings) this.settle(settings);
    if (size) this.view.size(size);
    if (sees !== undefined) this.look(sees);
    if (again !== undefined) {
      this.again = again;
      $("badge").hidden = !again;
    }
    if (recording !== undefined) {
      this.recording = recording;
      this.view.recording(recording);
    }
    this.changed();
  }

  /** Once a second: the server's figures, and ours for it. */
  async measure(stats) {
    this.stats = stats;
    if (stats.at !== null && stats.at === this.toldAt) {
      this.trip = Math.max(0, performance.now() - stats.at - stats.held_ms);
      this.relay?.adapt(this.trip);
    }
    await this.direct?.measure();
    const path = this.direct ?? this.relay;
    const reaction = stats.delay_ms?.p50 ?? null;
    this.delay = reaction === null || !path ? null : reaction + (this.trip ?? 0) + path.delay;
    this.toldAt = performance.now();
    this.link?.send("shown", {
      number: this.counter.number, at: this.toldAt, age_ms: this.delay, fps: this.counter.fps,
      dropped: this.counter.dropped, frames: this.counter.frames, rtt_ms: this.trip,
    });
    if (this.state === "listening") this.view.details({ delay: this.delay, fps: this.counter.fps, media: this.media });
    this.changed();
  }

  // What is heard and seen of the person

  heard(level) {
    if (level > QUIET) this.loudAt = seconds();
    this.view.loudness(this.devices.muted ? 0 : level);
  }

  /** Devices came or went. */
  changedDevices() {
    const { microphone, camera } = this.devices.track;
    if (this.state === "failed" && this.isLacking && (microphone || camera)) this.start();
    if (this.ear.worklet && this.state !== "failed") this.ear.listen(microphone);
    this.direct?.change(this.devices.track);
    this.changed();
  }

  changed() {
    const { track, wanted, muted } = this.devices;
    this.view.self(track.camera);
    this.view.buttons({ ...track, muted, sees: this.sees, wantsCamera: wanted.camera });
    if (this.state === "listening") this.view.perceives(this.perceives());
    else if (!["start", "failed"].includes(this.state)) this.view.perceives("");
  }

  /** In the listener's words: what of you reaches it. */
  perceives() {
    const { track, problem, wanted, muted } = this.devices;
    if (!track.microphone) return `I cannot hear you. ${(problem.microphone ?? []).join(" ")}`;
    if (muted) return track.camera ? "You are muted: I only see you." : "You are muted.";
    if (seconds() - this.loudAt > QUIET_S) return "I hear nothing at all. Is your microphone switched off, or is it another one?";
    if (!this.sees) return "I hear you. This brain does not look at faces.";
    if (!wanted.camera) return "I only hear you: the camera is off.";
    if (!track.camera) return `I only hear you. ${(problem.camera ?? []).join(" ")}`;
    const seen = this.stats?.face_seen ?? null;
    if (seen === null) return "I hear you.";
    this.seesFace = seen > (this.seesFace ? 0.1 : 0.5); // Said again only where it has changed for good.
    if (!this.seesFace && seconds() - this.begunAt < LOOK_S) return "I hear you, and look for your face.";
    return this.seesFace ? "I hear and see you." : "I hear you, but do not see your face.";
  }

  // What a person does

  bind() {
    const on = (id, event, act) => $(id).addEventListener(event, act);
    on("start", "click", () => this.start());
    on("mute", "click", () => {
      if (this.devices.track.microphone) this.devices.mute(!this.devices.muted);
      else this.devices.open(["microphone"]);
      this.changed();
    });
    on("see", "click", () => {
      this.devices.see({ wanted: !this.devices.track.camera });
      this.changed();
    });
    on("again", "click", () => this.link?.send("again"));
    on("forget", "click", () => this.link?.send("clear"));
    for (const id of ["open", "prepare"]) on(id, "click", () => this.view.drawer(!$("settings").open, $(id)));
    on("wants-camera", "change", ({ target }) => {
      this.devices.see({ wanted: target.checked });
      this.invite();
    });
    on("close", "click", () => this.view.drawer(false));
    on("dice", "click", () => {
      $("seed").value = Math.floor(Math.random() * 10000);
      this.choose({ seed: Number($("seed").value) });
    });
    on("form", "submit", (event) => event.preventDefault());
    on("form", "input", ({ target }) => target.type === "range" && this.view.guidance(target.name));
    on("form", "change", ({ target }) => this.chosen(target));
    this.devices.addEventListener("change", () => this.changedDevices());
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("visibilitychange", () => this.hurry());
    window.addEventListener("online", () => this.hurry());
    window.addEventListener("pageshow", ({ persisted }) => persisted && this.hurry());
    window.addEventListener("pagehide", () => this.link?.send("bye"));
    for (const name of ["microphone", "camera"]) {
      navigator.permissions?.query({ name }).then((permission) => {
        permission.onchange = () => permission.state === "granted" && this.devices.retry([name]);
      }, () => {});
    }
  }

  chosen({ name, value, type, validity }) {
    if (!name || (type === "number" && (!validity.valid || value === ""))) return;
    if (name === "attitude") this.choose({ attitude: value || null });
    else if (type === "range" || type === "number") this.choose({ [name]: Number(value) });
    else this.choose({ [name]: value });
  }

  choose(wanted) {
    Object.assign(this.settings, wanted);
    if (this.link?.isOpen) return this.link.send("set", wanted);
    const { choices } = this.about;
    const settings = { ...this.current, ...wanted };
    const fits = (brain) => brain.bodies.includes(settings.body);
    const brain = choices.brains.find(({ name }) => name === settings.brain);
    if (!fits(brain) && "brain" in wanted) settings.body = brain.bodies[0];
    else if (!fits(brain)) settings.brain = choices.brains.find(fits).name;
    this.settle(settings);
  }

  key(event) {
    const isText = event.target.closest("input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && $("settings").open) this.view.drawer(false);
    else if (event.key.toLowerCase() === "r" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat && !isText
      && $("shortcut").checked && !$("again").disabled) this.link?.send("again");
  }
}

/** A name for this tab that outlives a reload. */
function tabName() {
  const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("-");
  try {
    const name = sessionStorage.getItem("page") ?? fresh();
    sessionStorage.setItem("page", name);
    return name;
  } catch {
    return fresh(); // Storage is forbidden here.
  }
}

const conversation = new Conversation();

/** What tests and measurements read. */
window.difflistener = {
  start: () => conversation.start(),
  get state() { return conversation.state; },
  get media() { return conversation.media; },
  get frames() { return conversation.counter.frames; },
  get fps() { return conversation.counter.fps; },
  get dropped() { return conversation.counter.dropped; },
  get age_ms() { return conversation.delay; },
  get rtt_ms() { return conversation.trip; },
  get microphone() { return !!conversation.devices.track.microphone && !conversation.devices.muted; },
  get camera() { return !!conversation.devices.track.camera; },
  get recording() { return conversation.recording; },
  get again() { return conversation.again; },
  get problem() { return conversation.problem; },
  get stats() { return conversation.stats; },
};

conversation.begin();
