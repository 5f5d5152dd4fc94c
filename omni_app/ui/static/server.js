// Whether the server can still be reached, and whether it is still the same one: a restarted one has another id.
const LOOK_EVERY_MS = 2000, LOOK_AGAIN_MS = 1000, LOOK_AT_MOST_MS = 4000, KNOCK_AT_MOST_MS = 2500, QUICK_MS = 1000;

class ServerWatch {
  // `pending` says whether the page waits for the server: an idle page asks nothing. `lost` and `back` are told once each.
  // `doubted` is told of one missed look, which may be a busy server or a stream that is dead without a word, and of a
  // restart that no look missed.
  constructor({pending, lost, back, doubted}) {
    Object.assign(this, {pending, lost, back, doubted, down: false, id: '', looking: false});
    this.look();
    setInterval(() => { if (this.down || this.pending()) this.look(); }, LOOK_EVERY_MS);
  }
  async look() {
    if (this.looking) return;
    this.looking = true;
    const first = await this.ask(), id = first || !this.down && await this.askAgain();
    this.looking = false;
    const known = this.id;
    this.id = id || known;
    if (!id && !this.down) { this.down = true; this.lost(); }
    else if (id && this.down) { this.down = false; this.back(); }
    else if (id && (!first || (known && id !== known))) this.doubted();
  }
  async quick() {
    const since = performance.now();
    return await this.ask() && performance.now() - since < QUICK_MS;
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
