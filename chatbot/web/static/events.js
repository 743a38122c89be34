// Server-sent events, from pieces of text to the data of each event (the HTML standard, "Server-sent events", 9.2.6).
// Pure: no network here, api.js has that.

export class EventReader {
  #rest = "";
  #data = [];

  /** Text as it arrived, cut anywhere; returns the data of the events that it completed. */
  read(text) {
    const found = [];
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      const event = this.#line(line.endsWith("\r") ? line.slice(0, -1) : line);
      if (event !== null) found.push(event);
    }
    return found;
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length === 0) return null;
      const event = this.#data.join("\n");
      this.#data = [];
      return event;
    }
    // Other fields, and comments that keep the connection open, say nothing to this page.
    if (line.startsWith("data:")) this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
    return null;
  }
}
