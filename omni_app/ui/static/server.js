// Whether the server can still be reached, and whether it is still the same one: a restarted one has another id.
const LOOK_EVERY_MS = 2000, LOOK_AGAIN_MS = 1000, LOOK_AT_MOST_MS = 4000, KNOCK_AT_MOST_MS = 2500;

class ServerWatch {
  // `pending` says whether the page waits for the server: an idle page asks nothing. `lost` and `back` are told once each;
  // `back` also where only one look was missed, because what streamed meanwhile may be dead without a word.
  constructor({pending, lost, back}) {
    Object.assign(this, {pending, lost, back, down: false, id: '', looking: false});
    this.look();
    setInterval(() => { if (this.down || this.pending()) this.look(); }, LOOK_EVERY_MS);
  }
  async look() {
    if (this.looking) return;
    this.looking = true;
    const first = await this.ask(), id = first || !this.down && await this.askAgain();
    this.looking = false;
    const missed = this.down || !first || (this.id && id !== this.id);
    if (!id && !this.down) { this.down = true; this.lost(); }
    if (id && missed) { this.down = false; this.back(); }
    this.id = id || this.id;
  }
  // One request may fail on any network; two in a row mean something.
  async askAgain() {
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    return this.ask();
  }
  async ask() {
    try {
      const response = await fetch(new URL('gradio_api/app_id', document.baseURI),
        {cache: 'no-store', credentials: 'same-origin', signal: AbortSignal.timeout(this.down ? KNOCK_AT_MOST_MS : LOOK_AT_MOST_MS)});
      // A proxy in front answers for a server that is away.
      return [502, 503, 504].includes(response.status) ? '' : await response.text();
    } catch { return ''; }
  }
}
