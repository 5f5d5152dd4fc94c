// Gapless speech: a Worker reads the HTTP stream and hands samples straight to an AudioWorklet, so a busy page cannot
// make it stutter. Where AudioWorklet does not exist (plain http on a network address) AudioBuffers are scheduled instead.
// Every packet carries the generation it belongs to; stop() and play() start a new generation and older packets are dropped.
const WORKLET = `
class SpeechOut extends AudioWorkletProcessor {
  constructor() {
    super();
    this.generation = 0;
    this.prebuffer = 0;
    this.reset();
    this.port.onmessage = ({data}) => {
      if (data.port) data.port.onmessage = (event) => this.receive(event.data);
      if (data.prebuffer !== undefined) this.prebuffer = data.prebuffer;
      if (data.generation !== undefined) { this.reset(); this.generation = data.generation; }
    };
  }
  reset() {
    this.queue = []; this.offset = 0; this.waiting = 0; this.played = 0; this.told = 0;
    this.playing = false; this.ended = false; this.underruns = 0; this.silentSamples = 0;
  }
  receive(packet) {
    if (packet.generation !== this.generation) return;
    if (packet.samples) { this.queue.push(packet.samples); this.waiting += packet.samples.length; }
    if (packet.end) this.ended = true;
  }
  tell(event) { this.port.postMessage({event, generation: this.generation, played: this.played, underruns: this.underruns,
                                       silentSamples: this.silentSamples}); }
  mayStart() { return this.waiting > 0 && (this.waiting >= this.prebuffer || this.ended); }
  process(_, outputs) {
    const out = outputs[0][0];
    if (!this.playing) {
      if (this.mayStart()) { this.playing = true; if (!this.played) this.tell('start'); }
      else {
        if (this.ended) { this.ended = false; this.tell('done'); }
        else if (this.played) this.silentSamples += out.length;
        return true;
      }
    }
    let filled = 0;
    while (filled < out.length && this.queue.length) {
      const head = this.queue[0], count = Math.min(out.length - filled, head.length - this.offset);
      out.set(head.subarray(this.offset, this.offset + count), filled);
      filled += count; this.offset += count;
      if (this.offset >= head.length) { this.queue.shift(); this.offset = 0; }
    }
    this.waiting -= filled; this.played += filled;
    if (this.played - this.told > sampleRate / 20) { this.told = this.played; this.tell('at'); }
    if (filled < out.length) {
      this.playing = false;
      if (!this.ended) { this.underruns++; this.silentSamples += out.length - filled; }
    }
    return true;
  }
}
registerProcessor('speech-out', SpeechOut);`;

const READER = `
let port, order = null, abort = null;
const floats = (bytes) => {
  const ints = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 1);
  return Float32Array.from(ints, (sample) => sample / 32768);
};
function resampler(from, to) {
  if (from === to) return (samples) => samples;
  let last = 0, position = 0;
  return (samples) => {
    const out = [];
    for (; position < samples.length; position += from / to) {
      const index = Math.floor(position), before = index ? samples[index - 1] : last;
      out.push(before + (samples[index] - before) * (position - index));
    }
    position -= samples.length; last = samples[samples.length - 1];
    return Float32Array.from(out);
  };
}
// mine.taken: bytes that were handed on or are not wanted; a stream that is read anew begins with them.
async function read(mine, signal) {
  const response = await fetch(mine.url, {signal, credentials: 'same-origin'});
  if (response.status === 204) return;
  if ([502, 503, 504].includes(response.status)) throw new Error('speech stream answered ' + response.status);
  if (!response.ok) throw Object.assign(new Error('speech stream answered ' + response.status), {last: true});
  const rate = Number(response.headers.get('X-Sample-Rate')) || mine.rate;
  mine.taken ??= 2 * Math.round(mine.from * rate);
  mine.convert ??= resampler(rate, mine.rate);
  const reader = response.body.getReader();
  let rest = new Uint8Array(0), known = mine.taken;
  for (;;) {
    const {done, value: piece} = await reader.read();
    if (done) return;
    const value = piece.subarray(known);
    known -= piece.length - value.length;
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest); bytes.set(value, rest.length);
    const whole = bytes.length & ~1;
    rest = bytes.slice(whole);
    if (!whole) continue;
    mine.taken += whole;
    const samples = mine.convert(floats(bytes.slice(0, whole)));
    port.postMessage({samples, generation: mine.generation}, [samples.buffer]);
  }
}
onmessage = async ({data}) => {
  if (data.port) { port = data.port; return; }
  if (data.again && !order) return;
  if (abort) abort.abort();
  if (!data.again) order = data.url ? data : null;
  if (!order) return;
  abort = new AbortController();
  const mine = order, {generation} = mine;
  try { await read(mine, abort.signal); }
  catch (error) {
    if (error.name === 'AbortError') return;
    postMessage({event: error.last ? 'error' : 'broken', why: String(error), generation});
    if (!error.last) return;  // the order stays: the rest of it may be asked for again
  }
  if (order === mine) order = null;
  port.postMessage({end: true, generation});
};`;

const asUrl = (source) => URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));

const LEAST_PREBUFFER_SECONDS = 0.05, MOST_PREBUFFER_SECONDS = 0.4;

class SpeechPlayer {
  constructor({rate = 24000, on = () => {}} = {}) {
    Object.assign(this, {rate, on, prebufferSeconds: LEAST_PREBUFFER_SECONDS, generation: 0, wanted: 0, from: 0, stats: {}});
    this.fall();
  }
  // `pending`: speech is wanted and none of it was heard yet.
  fall() { this.speaking = this.pending = false; this.played = 0; }
  // Must first be called from a click or a key press: browsers allow no sound before one.
  ready() {
    if (this.muted) this.context.resume();
    return this.opening ??= this.open();
  }
  get muted() { return this.context?.state === 'suspended'; }
  // Seconds of the speech that were heard; null when there is nothing to go on with.
  get heardSeconds() {
    return this.speaking || this.pending ? this.from + (this.sink?.played?.() ?? this.played) / this.rate : null;
  }
  async open() {
    this.context = new AudioContext({sampleRate: this.rate, latencyHint: 'interactive'});
    this.context.onstatechange = () => this.on('state');
    this.reader = new Worker(asUrl(READER));
    this.reader.onmessage = ({data}) => this.heard(data);
    const channel = new MessageChannel();
    this.reader.postMessage({port: channel.port2}, [channel.port2]);
    this.sink = this.context.audioWorklet ? await this.worklet(channel.port1) : this.scheduler(channel.port1);
  }
  async worklet(port) {
    await this.context.audioWorklet.addModule(asUrl(WORKLET));
    const node = new AudioWorkletNode(this.context, 'speech-out', {outputChannelCount: [1]});
    node.connect(this.context.destination);
    node.port.onmessage = ({data}) => this.heard(data);
    node.port.postMessage({port}, [port]);
    return node.port;
  }
  scheduler(port) {
    let generation = 0, at = 0, taken = 0;
    const sources = new Set();
    port.onmessage = ({data}) => {
      if (data.generation !== generation) return;
      const now = this.context.currentTime;
      if (data.end) { setTimeout(() => this.heard({event: 'done', generation: data.generation}), Math.max(0, at - now) * 1000); return; }
      if (!at) { at = now + this.prebufferSeconds; this.heard({event: 'start', generation}); }
      else if (at < now) at = now + 0.05;
      const buffer = this.context.createBuffer(1, data.samples.length, this.rate);
      buffer.copyToChannel(data.samples, 0);
      const source = new AudioBufferSourceNode(this.context, {buffer});
      source.connect(this.context.destination);
      source.start(at);
      at += buffer.duration;
      taken += data.samples.length;
      sources.add(source);
      source.onended = () => sources.delete(source);
    };
    return {
      postMessage: (data) => { sources.forEach((source) => source.stop()); sources.clear(); at = taken = 0; generation = data.generation; },
      played: () => Math.max(0, taken - Math.max(0, at - this.context.currentTime) * this.rate),
    };
  }
  heard(message) {
    if (message.generation !== this.generation) return;
    if (message.played !== undefined) { this.stats = message; this.played = message.played; }
    if (message.event === 'at') return;
    if (message.event === 'start') { this.speaking = true; this.pending = false; }
    if (message.event === 'done') { this.speaking = this.pending = false; this.learn(message.silentSamples / this.rate); }
    if (message.event === 'error') console.error('speech:', message.why);
    this.on(message.event);
  }
  // Speech that ran dry would have been whole had it begun that much later: begin the next one later, and recover slowly.
  learn(silentSeconds = 0) {
    const wanted = silentSeconds ? this.prebufferSeconds + silentSeconds : this.prebufferSeconds * 0.8;
    this.prebufferSeconds = Math.min(MOST_PREBUFFER_SECONDS, Math.max(LEAST_PREBUFFER_SECONDS, wanted));
  }
  // The first play() waits for the sound to open; a stop(), or another play(), may come before it has.
  // `from`: seconds of it that are not wanted, since they were heard.
  async play(url, from = 0) {
    const mine = ++this.wanted;
    Object.assign(this, {from, pending: true});
    await this.ready();
    if (mine !== this.wanted) return;
    this.renew({url: new URL(url, document.baseURI).href, rate: this.rate, from});
    this.pending = true;
  }
  // What is still to come of the speech by another connection, since this one broke or may be dead without a word.
  again() { if (this.reader) this.reader.postMessage({again: true}); }
  stop() {
    this.wanted++;
    this.fall();
    if (this.sink) this.renew({});
  }
  renew(order) {
    this.generation++;
    this.fall();
    this.sink.postMessage({generation: this.generation, prebuffer: Math.round(this.prebufferSeconds * this.rate)});
    this.reader.postMessage({generation: this.generation, ...order});
  }
}
