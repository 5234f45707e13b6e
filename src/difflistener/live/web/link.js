// The way to the server: one WebSocket, whose silence is noticed. Knows nothing of what is said on it.

const SILENT_S = 4.5; // seconds without a word from the server
const LATE_S = 2; // seconds without one that are worth a word
const OPEN_S = 8; // seconds to reach the server

export const seconds = () => performance.now() / 1000;

/** The session's WebSocket. Sends "message", "frame", "late" and, once, "down" with the code it was closed with. */
export class Link extends EventTarget {
  constructor(hello) {
    super();
    const address = new URL("session", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = "";
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.heardAt = seconds();
    this.socket.onopen = () => this.send("hello", hello);
    this.socket.onclose = ({ code }) => this.fall(code);
    this.socket.onmessage = ({ data }) => {
      this.heardAt = seconds();
      const isText = typeof data === "string";
      this.dispatchEvent(new CustomEvent(isText ? "message" : "frame", { detail: isText ? JSON.parse(data) : data }));
    };
    this.watch = setInterval(() => this.check(), 500);
  }

  get isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  get waiting() {
    return this.socket.bufferedAmount;
  }

  send(type, fields = {}) {
    if (this.isOpen) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  sendBytes(bytes) {
    if (this.isOpen) this.socket.send(bytes);
  }

  /** A cut network says nothing: the server's silence does. */
  check() {
    const silence = seconds() - this.heardAt;
    if (silence > (this.isOpen ? SILENT_S : OPEN_S)) this.close(1006);
    else if (silence > LATE_S) this.dispatchEvent(new Event("late"));
  }

  close(code = 1000) {
    this.send("bye");
    this.socket.close();
    this.fall(code);
  }

  fall(code) {
    if (this.watch === null) return;
    clearInterval(this.watch);
    this.watch = null;
    this.dispatchEvent(new CustomEvent("down", { detail: code }));
  }
}
